"""Stage 2: GRPO whose rollout is the agent itself (paper, section 3.2, Eq. 3-4, appendix B.2, Table 3).

A group of trajectories is `run(respond(...), model)` with the policy sampling: the keywords and the period that it
writes reach the retriever, top-k is drawn anew for each trajectory, and the loss sees only what the model wrote.
Deviations from the paper: a LoRA; a rule-based judge; beta and epsilon, which the paper does not state, are settings.

Launch: python -m personavlm_lib.training.grpo --config CONFIG.yaml
"""

import random
from pathlib import Path

from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from personavlm_lib.agent.prompt_sets import PromptSet
from personavlm_lib.agent.respond import AgentSettings, respond
from personavlm_lib.benchmark.lives import as_query, read_lives
from personavlm_lib.benchmark.mixtures import rl_questions
from personavlm_lib.benchmark.questions import Question
from personavlm_lib.caching import cache_key
from personavlm_lib.evaluation.judges import accuracy, consistency, grammar
from personavlm_lib.memory.search import PAPER_RETRIEVER
from personavlm_lib.memory.store import MemoryStore
from personavlm_lib.models.engine import run_trajectories
from personavlm_lib.models.local import GenerationSettings, LocalModel, Transcript
from personavlm_lib.models.weights import load_processor, weights_fingerprint
from personavlm_lib.training.launch import main
from personavlm_lib.training.sft import MetricsLog, load_to_train, lora, saving, train_and_save

# What the trainer calls its metrics -> what the study calls them.
NAMES = {
    "rewards/answer_reward/mean": "reward_accuracy", "rewards/format_reward/mean": "reward_format",
    "frac_reward_zero_std": "zero_spread", "completions/mean_length": "tokens_written",
}  # fmt: skip


def answer_reward(f_acc: list[float], f_cons: list[float], **_) -> list[float]:
    """f_acc * f_cons of Eq. 3, weight 1. The columns come with the rollout."""
    return [acc * cons for acc, cons in zip(f_acc, f_cons, strict=True)]


def format_reward(f_format: list[float], **_) -> list[float]:
    """f_format of Eq. 3, weight 0.5."""
    return list(f_format)


class Policy(LocalModel):
    """The model being trained, asked through the same adapter as any other; its transcripts are kept."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.transcripts: list[Transcript] = []

    def start(self) -> Transcript:
        self.transcripts.append(super().start())
        return self.transcripts[-1]


class AgentTrainer(GRPOTrainer):
    """GRPOTrainer that hands the images of injected turns to the policy's forward pass.

    trl has this for images that tools return; `rollout_func` alone does not reach it. Elements 6 and 7 of what
    `_generate` returns are all images of each row and the injected ones; `tools` must be truthy until the batch is
    scored, for trl to take the path that reads them.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.model.register_forward_pre_hook(_without_empty_images, with_kwargs=True)

    def _generate(self, prompts):
        *result, images, injected = super()._generate(prompts)
        found = result[5].pop("injected_images")
        if any(found):
            images, injected = [row or None for row in found], found
            self.tools = [None]
        return *result, images, injected

    def _generate_and_score_completions(self, inputs):
        try:
            return super()._generate_and_score_completions(inputs)
        finally:
            self.tools = None


def _without_empty_images(module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """Of a batch with images a micro-batch may hold none: the vision tower must then be left out, not given nothing."""
    if (pixels := kwargs.get("pixel_values")) is not None and not len(pixels):
        kwargs = kwargs | {"pixel_values": None, "image_grid_thw": None}
    return args, kwargs


class Rollout:
    """`rollout_func`: prompts, each repeated for its group, to trajectories of the agent."""

    def __init__(self, stores: dict[str, MemoryStore], cases: dict[str, Question], config: dict):
        self.stores, self.cases, self.config = stores, cases, config
        self.settings = AgentSettings(
            PromptSet(config["prompts"]), random_top_k=True, max_tokens=config["max_tokens"]
        )
        self.retriever = PAPER_RETRIEVER

    def first_ask(self, question: Question) -> str:
        return next(self.trajectory(question, 0, 0)).text

    def trajectory(self, question: Question, step: int, row: int):
        """Draws by step and row alone: a resumed training so draws what an unbroken one does."""
        rng = random.Random(f"{self.config['seed']} {step} {row}")
        view = self.stores[question.user].as_of(question.time)
        return respond(as_query(question), view, self.retriever, self.settings, rng=rng)

    def __call__(self, prompts: list, trainer: GRPOTrainer) -> dict:
        """One trajectory per prompt, same order: ids, the mask of what the model wrote, and columns for the reward."""
        questions = [self.cases[text_of(prompt)] for prompt in prompts]
        model = trainer.accelerator.unwrap_model(trainer.model)
        policy = Policy(
            model=model,
            processor=trainer.processing_class,
            settings=GenerationSettings(
                temperature=self.config["temperature"],
                repetition_penalty=self.config["repetition_penalty"],
            ),
        )
        model.eval()
        step, first = trainer.state.global_step, trainer.accelerator.process_index * len(questions)
        trajectories = [
            self.trajectory(question, step, row) for row, question in enumerate(questions, first)
        ]
        responses = run_trajectories(trajectories, policy, self.config["width"])
        model.train()
        pairs = list(zip(questions, responses, strict=True))
        trainer._metrics["train"]["retrievals"].append(
            sum(len(r.retrieved) for r in responses) / len(responses)
        )
        trainer._metrics["train"]["accuracy"].append(
            sum(accuracy(q, r.answer) for q, r in pairs) / len(pairs)
        )
        return {
            "prompt_ids": [t.ids[: t.prompt_length] for t in policy.transcripts],
            "completion_ids": [t.ids[t.prompt_length :] for t in policy.transcripts],
            "env_mask": [t.generated_mask[t.prompt_length :] for t in policy.transcripts],
            "logprobs": None,
            "injected_images": [t.images for t in policy.transcripts],
            "f_acc": [accuracy(q, r.answer) for q, r in pairs],
            "f_cons": [consistency(q, r) for q, r in pairs],
            "f_format": [grammar(r) for _, r in pairs],
        }


def text_of(prompt: list[dict]) -> str:
    """The text of a prompt of one user message, whether its content is a string or a list of parts."""
    content = prompt[-1]["content"]
    return (
        content if isinstance(content, str) else "".join(part.get("text") or "" for part in content)
    )


def train(config: dict, folder: Path) -> None:
    """Trains with `config` (model, lives, memory, prompts, steps, group, ...) into `folder`."""
    inputs = {"model": weights_fingerprint(config["model"]), "lives": Path(config["lives"])}
    made = cache_key(
        **config | inputs | {"memory": "that of the lives"}
    )  # vectors are added to its files as it is read
    lives = read_lives(Path(config["lives"]))
    stores = {life.user: MemoryStore(Path(config["memory"]) / life.user) for life in lives}
    rng = random.Random(config["seed"])
    rollout = Rollout(stores, {}, config)
    for _, question in rl_questions(lives, config["questions"], rng):
        rollout.cases[rollout.first_ask(question)] = question
    # One epoch in an order of its own: the trainer's sampler could not go on in the middle of a later one.
    asks, count = list(rollout.cases), config["groups"] * config["steps"]
    order = [text for _ in range(-(-count // len(asks))) for text in rng.sample(asks, len(asks))][
        :count
    ]
    processor, (model, precision) = load_processor(config["model"]), load_to_train(config)
    per_step = config["group"] * config["groups"]
    trainer = AgentTrainer(
        model=model,
        reward_funcs=[answer_reward, format_reward],
        args=GRPOConfig(
            max_steps=config["steps"], seed=config["seed"], shuffle_dataset=False,
            num_generations=config["group"], per_device_train_batch_size=per_step // config["accumulate"],
            gradient_accumulation_steps=config["accumulate"], steps_per_generation=config["accumulate"],
            learning_rate=config["learning_rate"], lr_scheduler_type="cosine", warmup_steps=config["warmup"],
            beta=config["beta"], epsilon=config["epsilon"], num_iterations=1, loss_type="grpo", scale_rewards="group",
            use_bias_correction_kl=False, reward_weights=[1.0, 0.5], temperature=config["temperature"],
            max_completion_length=config["max_tokens"], logging_steps=1, report_to="none", disable_tqdm=True,
            gradient_checkpointing=config["gradient_checkpointing"], **precision,
            **saving(folder, made, config["steps"], 1),
        ),
        train_dataset=Dataset.from_dict({"prompt": [[{"role": "user", "content": text}] for text in order]}),
        processing_class=processor,
        peft_config=lora(config),
        rollout_func=rollout,
        callbacks=[MetricsLog(folder / "metrics.jsonl", made, NAMES)],
    )  # fmt: skip
    train_and_save(trainer, folder, config["model"], made)


if __name__ == "__main__":
    main(train)
