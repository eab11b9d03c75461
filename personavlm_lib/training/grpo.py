"""Stage 2: GRPO with the agent itself as rollout (paper, Section 3.2, Eq. 3 and 4, B.2, Table 3).

A trajectory is the agent's `respond(...)`, run with the sampling policy as model: the keywords and
the period that it writes reach the retriever, top-k is drawn again for each trajectory (B.2), and
the loss covers only the tokens that the model wrote (Eq. 4). The reward is that of Eq. 3.

Deviations from the paper: a LoRA instead of all weights; rules instead of Qwen3-30B-A3B as judge of
the reward; no repetition penalty except in the profile `paper`, because it would make the sampling
distribution differ from the policy; beta and epsilon, which the paper does not state, are settings.

Launch one process: `python -m personavlm_lib.training.grpo --config CONFIG.yaml`
Launch several: `accelerate launch -m personavlm_lib.training.grpo --config CONFIG.yaml`
"""

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from personavlm_lib.agent.prompt_sets import PromptSet
from personavlm_lib.agent.respond import AgentSettings, Response, respond, training_top_k
from personavlm_lib.benchmark.lives import as_query, read_lives
from personavlm_lib.benchmark.mixtures import rl_questions
from personavlm_lib.benchmark.questions import Question
from personavlm_lib.caching import cache_key
from personavlm_lib.evaluation.judges import accuracy, consistency, grammar
from personavlm_lib.memory.search import PAPER_RETRIEVER
from personavlm_lib.memory.store import MemoryStore
from personavlm_lib.models.chat import ChatRequest, Trajectory
from personavlm_lib.models.engine import run_trajectories
from personavlm_lib.models.local import GenerationSettings, LocalModel, Transcript
from personavlm_lib.models.weights import load_processor, weights_fingerprint
from personavlm_lib.training import sft
from personavlm_lib.training.launch import main


def answer_reward(f_acc: list[float], f_cons: list[float], **_) -> list[float]:
    """f_acc * f_cons of Eq. 3, which has the weight 1. The rollout supplies both columns."""
    return [acc * cons for acc, cons in zip(f_acc, f_cons, strict=True)]


def format_reward(f_format: list[float], **_) -> list[float]:
    """f_format of Eq. 3, which has the weight 0.5 (`reward_weights`)."""
    return list(f_format)


class Policy(LocalModel):
    """The model in training, queried through the same class as any other; it keeps transcripts."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.transcripts: list[Transcript] = []

    def start(self) -> Transcript:
        transcript = super().start()
        self.transcripts.append(transcript)
        return transcript


class AgentTrainer(GRPOTrainer):
    """GRPOTrainer that passes the images of retrieved turns to the policy's forward pass.

    trl supports images that tools return, but not images from a `rollout_func`. `_generate` returns
    all images of each row and the tools' images as its last two elements, and trl uses them only if
    `tools` is truthy until the batch is scored.
    """

    tools: Any

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        assert self.model is not None
        self.model.register_forward_pre_hook(_without_empty_images, with_kwargs=True)

    def _generate(self, prompts):
        *result, images, tool_images = super()._generate(prompts)
        columns = result[5]  # trl 1.16: the columns that the rollout adds to its token ids
        rollout_images = columns.pop("injected_images")
        if any(rollout_images):
            images = [row or None for row in rollout_images]
            tool_images = rollout_images
            self.tools = [None]  # a placeholder: trl only checks that there is a tool
        return *result, images, tool_images

    def _generate_and_score_completions(self, inputs):
        try:
            return super()._generate_and_score_completions(inputs)
        finally:
            self.tools = None


def _without_empty_images(module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """Leave the vision tower out of a micro-batch without images.

    If its batch has images, the micro-batch arrives with an empty tensor, which the tower rejects.
    """
    pixels = kwargs.get("pixel_values")
    if pixels is not None and len(pixels) == 0:
        no_images = {"pixel_values": None, "image_grid_thw": None}
        kwargs = kwargs | no_images
    return args, kwargs


class Rollout:
    """trl's `rollout_func`: runs the agent on prompts, each repeated for its group."""

    def __init__(self, stores: dict[str, MemoryStore], cases: dict[str, Question], config: dict):
        self.stores = stores
        self.cases = cases  # text of the first prompt -> question
        self.config = config
        self.settings = AgentSettings(PromptSet(config["prompts"]), max_tokens=config["max_tokens"])
        self.retriever = PAPER_RETRIEVER

    def first_prompt(self, question: Question) -> str:
        """The text of the agent's first request, which no random draw changes."""
        request = next(self.trajectory(question, 0, 0))
        assert isinstance(request, ChatRequest)
        return request.text

    def trajectory(self, question: Question, step: int, row: int) -> Trajectory[Response]:
        """The agent's trajectory on a question.

        The random seed depends on step and row alone, so a resumed training draws the same numbers
        as an uninterrupted one.
        """
        rng = random.Random(f"{self.config['seed']} {step} {row}")
        view = self.stores[question.user].as_of(question.time)
        settings = replace(self.settings, top_k=training_top_k(rng))
        return respond(as_query(question), view, self.retriever, settings)

    def __call__(self, prompts: list, trainer: GRPOTrainer) -> dict:
        """Run one trajectory per prompt, in order.

        Returns token ids, the mask of the tokens that the model wrote, images, and the columns of
        the reward functions.
        """
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
        step = trainer.state.global_step
        first_row = trainer.accelerator.process_index * len(questions)
        trajectories = []
        for row, question in enumerate(questions, first_row):
            trajectories.append(self.trajectory(question, step, row))
        model.eval()
        responses = run_trajectories(trajectories, policy, self.config["width"])
        model.train()
        scores = reward_factors(questions, responses)
        retrievals = sum(len(response.retrieved) for response in responses)
        metrics = trainer._metrics["train"]
        metrics["retrievals"].append(retrievals / len(responses))
        metrics["accuracy"].append(sum(scores["f_acc"]) / len(responses))
        return _token_columns(policy.transcripts) | scores


def reward_factors(
    questions: Sequence[Question], responses: Sequence[Response]
) -> dict[str, list[float]]:
    """The factors of Eq. 3 for each response, as columns for the reward functions."""
    scores: dict[str, list[float]] = {"f_acc": [], "f_cons": [], "f_format": []}
    for question, response in zip(questions, responses, strict=True):
        scores["f_acc"].append(accuracy(question, response.answer))
        scores["f_cons"].append(consistency(question, response))
        scores["f_format"].append(grammar(response))
    return scores


def _token_columns(transcripts: Sequence[Transcript]) -> dict[str, Any]:
    """The columns that trl takes from a `rollout_func`, and the images of each row."""
    columns: dict[str, Any] = {
        "prompt_ids": [],
        "completion_ids": [],
        "env_mask": [],
        "logprobs": None,
        "injected_images": [],
    }
    for transcript in transcripts:
        start = transcript.prompt_length
        columns["prompt_ids"].append(transcript.ids[:start])
        columns["completion_ids"].append(transcript.ids[start:])
        columns["env_mask"].append(transcript.generated_mask[start:])
        columns["injected_images"].append(transcript.images)
    return columns


def text_of(prompt: list[dict]) -> str:
    """The text of a one-message prompt, whose content is a string or a list of parts."""
    content = prompt[-1]["content"]
    if isinstance(content, str):
        return content
    texts = [part.get("text") or "" for part in content]
    return "".join(texts)


def open_rollout(config: dict, rng: random.Random) -> Rollout:
    """A rollout over the training lives, with the questions drawn in the paper's mixture."""
    lives = read_lives(Path(config["lives"]))
    memory = Path(config["memory"])
    stores = {life.user: MemoryStore(memory / life.user) for life in lives}
    rollout = Rollout(stores, {}, config)
    questions = rl_questions(lives, config["questions"], rng)
    for _, question in questions:
        prompt = rollout.first_prompt(question)
        rollout.cases[prompt] = question
    return rollout


def _prompt_order(prompts: list[str], count: int, rng: random.Random) -> list[str]:
    """`count` prompts: all prompts in random order, repeated as often as needed.

    This order is the trainer's only epoch, because its own sampler could not resume in the middle
    of a later one.
    """
    rounds = math.ceil(count / len(prompts))
    order: list[str] = []
    for _ in range(rounds):
        shuffled = rng.sample(prompts, len(prompts))
        order += shuffled
    return order[:count]


def train(config: dict, folder: Path) -> None:
    """Train with `config` (model, lives, memory, prompts, steps, group, ...).

    Writes checkpoints, metrics, `adapter/` and `model/` to `folder`.
    """
    inputs = {
        "model": weights_fingerprint(config["model"]),
        "lives": Path(config["lives"]),
        # Not the folder's contents: vectors are added to its files whenever it is read.
        "memory": "that of the lives",
    }
    key = cache_key(**config | inputs)
    rng = random.Random(config["seed"])
    rollout = open_rollout(config, rng)
    count = config["groups"] * config["steps"]
    order = _prompt_order(list(rollout.cases), count, rng)
    messages = [[{"role": "user", "content": text}] for text in order]
    processor = load_processor(config["model"])
    model, precision = sft.load_to_train(config)
    checkpoints = sft.prepare_checkpoints(folder, key, config["steps"], log_every=1)
    arguments = GRPOConfig(
        **_grpo_arguments(config), **sft.schedule_arguments(config), **precision, **checkpoints
    )
    metrics_log = sft.MetricsLog(folder / "metrics.jsonl", key, sft.TRAINERS["grpo_metrics"])
    trainer = AgentTrainer(
        model=model,
        reward_funcs=[answer_reward, format_reward],
        args=arguments,
        train_dataset=Dataset.from_dict({"prompt": messages}),
        processing_class=processor,
        peft_config=sft.lora(config),
        rollout_func=rollout,
        callbacks=[metrics_log],
    )
    sft.train_and_save(trainer, folder, config["model"], key)


def _grpo_arguments(config: dict) -> dict:
    """The trainer's arguments of the algorithm itself: groups, rewards, sampling and loss."""
    trajectories = config["group"] * config["groups"]
    return dict(
        num_generations=config["group"],
        per_device_train_batch_size=trajectories // config["accumulate"],
        steps_per_generation=config["accumulate"],
        beta=config["beta"],
        epsilon=config["epsilon"],
        temperature=config["temperature"],
        max_completion_length=config["max_tokens"],
        **sft.TRAINERS["grpo"],
    )


if __name__ == "__main__":
    main(train)
