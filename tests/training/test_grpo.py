"""GRPO: the agent is the rollout; the trainer scores the tokens and images that the model had."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from personavlm_lib.agent.protocol_writer import write_answer, write_retrieve
from personavlm_lib.benchmark.lives import write_lives
from personavlm_lib.memory.records import SESSION_GAP
from personavlm_lib.models.chat import ChatReply
from personavlm_lib.models.local import LocalModel
from personavlm_lib.simulation.wording import statement
from personavlm_lib.training import grpo


@pytest.fixture(scope="module")
def life(lives):
    """A life with only the questions that come after its first picture can be retrieved."""
    life = lives[0]
    first_picture = next(turn for turn in life.turns if turn.images)
    retrievable = first_picture.time + 2 * SESSION_GAP
    late_questions = tuple(q for q in life.questions if q.time > retrievable)
    return replace(life, questions=late_questions)


@pytest.fixture(scope="module")
def inputs(life, memories):
    """Paths of the life's file, which lies beside its images, and of the folder of its memory."""
    image = next(image for turn in life.turns for image in turn.images)
    path = Path(image).parents[1] / "lives.jsonl"
    write_lives(path, [life])
    memory = memories[life.user].folder.parent
    return dict(lives=str(path), memory=str(memory))


def config(checkpoint, inputs, **changes):
    settings = dict(
        model=str(checkpoint),
        prompts="nano",
        questions=12,
        steps=2,
        group=4,
        groups=1,
        accumulate=2,
        seed=0,
        warmup=0,
        learning_rate=1e-3,
        lora_rank=4,
        beta=0.01,
        epsilon=0.2,
        temperature=1.0,
        repetition_penalty=1.05,
        max_tokens=48,
        width=4,
        gradient_checkpointing=False,
    )
    return inputs | settings | changes


@pytest.fixture
def script_policy(monkeypatch, processor, life):
    """A function that makes the policy follow a script.

    `searches` maps rows of a group of four to the keywords that they look up first; "picture"
    stands for the statement about the life's first picture.
    """
    picture = statement(next(event for event in life.plan.events if event.scene))
    tokenizer = processor.tokenizer
    head = tokenizer.convert_tokens_to_ids("<|im_start|>")

    def script(searches):
        def reply(row, ids):
            # The heads of a first request: the system's, the user's and the assistant's.
            if row in searches and ids.count(head) == 3:
                keywords = searches[row].replace("picture", picture)
                return write_retrieve("look up", keywords, quote=False)
            return write_answer("my cup is red", "(a)" if row % 2 else "(b)")

        def generate(self, input_ids, **_):
            replies = []
            for row, ids in enumerate(input_ids):
                text = reply(row, ids.tolist()) + "<|im_end|>"
                replies.append(tokenizer(text).input_ids)
            width = max(map(len, replies))
            pad = tokenizer.pad_token_id
            padded = [ids + [pad] * (width - len(ids)) for ids in replies]
            return torch.cat([input_ids, torch.tensor(padded)], dim=1)

        monkeypatch.setattr(Qwen2_5_VLForConditionalGeneration, "generate", generate)

    return script


@pytest.fixture
def scored_batches(monkeypatch):
    """A list that receives each batch as the trainer scores it.

    Each entry has `rows`, `batch`, `trainer` and the `transcripts` of the rollout; `trainer_logps`
    are the trainer's log-probabilities, `plain_logps` those of plain forward passes.
    """
    entries, transcripts = [], []
    original_score = grpo.AgentTrainer._generate_and_score_completions
    original_policy = grpo.Policy

    def recording_policy(*args, **kwargs):
        policy = original_policy(*args, **kwargs)
        transcripts.append(policy.transcripts)
        return policy

    def recording_score(trainer, rows):
        batch = original_score(trainer, rows)
        model = trainer.accelerator.unwrap_model(trainer.model)
        model.eval()
        trainer_logps = _trainer_logps(trainer, model, batch)
        local = LocalModel(model=model, processor=trainer.processing_class)
        plain_logps = [
            _plain_logps(local, transcript, trainer.temperature) for transcript in transcripts[-1]
        ]
        model.train()
        entry = SimpleNamespace(
            transcripts=transcripts[-1],
            batch=batch,
            trainer_logps=trainer_logps,
            plain_logps=plain_logps,
            rows=rows,
            trainer=trainer,
        )
        entries.append(entry)
        return batch

    monkeypatch.setattr(grpo, "Policy", recording_policy)
    monkeypatch.setattr(grpo.AgentTrainer, "_generate_and_score_completions", recording_score)
    return entries


@torch.no_grad()
def _trainer_logps(trainer, model, batch):
    """Log-probabilities of the completions, padded, as the trainer's loss computes them."""
    names = ("pixel_values", "image_grid_thw", "num_images", "mm_token_type_ids")
    fields = {name: batch.get(name) for name in names}
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
    width = batch["completion_ids"].shape[1]
    logps, *_ = trainer._get_per_token_logps_and_entropies(model, ids, mask, width, **fields)
    return logps


@torch.no_grad()
def _plain_logps(local, transcript, temperature):
    """Log-probabilities of a completion's tokens: one row, no padding, no trainer."""
    logits = local.model(**local._batch([transcript])).logits[0, :-1] / temperature
    chosen = torch.tensor(transcript.ids[1:])
    return logits.log_softmax(-1).gather(-1, chosen[:, None])[transcript.prompt_length - 1 :, 0]


@pytest.mark.parametrize(
    "searches", [{1: "picture", 2: "my drink", 3: "picture"}, {1: "picture"}, {}]
)
def test_trainer_scores_what_the_model_saw_and_wrote(
    checkpoint, inputs, script_policy, scored_batches, tmp_path, searches
):
    """Text and images in one and several turns; one picture only (a micro-batch has none); text."""
    script_policy(searches)
    grpo.train(config(checkpoint, inputs, temperature=0.7), tmp_path)
    assert len(scored_batches) == 2
    for scored in scored_batches:
        batch = scored.batch
        prompts = [row["prompt"] for row in scored.rows]
        template_ids = scored.trainer._tokenize_prompts(prompts)[0]
        for n, transcript in enumerate(scored.transcripts):
            start = transcript.prompt_length
            prompt_ids = batch["prompt_ids"][n][batch["prompt_mask"][n].bool()].tolist()
            assert prompt_ids == template_ids[n] == transcript.ids[:start]
            completion = batch["completion_mask"][n].bool()
            assert batch["completion_ids"][n][completion].tolist() == transcript.ids[start:]
            assert batch["tool_mask"][n][completion].tolist() == transcript.generated_mask[start:]
            torch.testing.assert_close(
                scored.trainer_logps[n][completion], scored.plain_logps[n], atol=1e-4, rtol=0
            )
            assert (0 in transcript.generated_mask[start:]) == (n in searches)
            assert bool(transcript.images) or searches.get(n) != "picture"
    pictured = [bool(transcript.images) for transcript in scored_batches[0].transcripts]
    assert any(pictured) == bool(searches) and not all(pictured)


def test_rewards_follow_the_answers(checkpoint, inputs, script_policy, scored_batches, tmp_path):
    script_policy({1: "my drink", 2: "my food", 3: "my job"})
    grpo.train(config(checkpoint, inputs, steps=1), tmp_path)
    assert len(scored_batches[0].transcripts) == 4
    (entry,) = map(
        json.loads, (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    )
    assert entry["reward_format"] == 1 and entry["retrievals"] == 0.75
    assert entry["reward"] == pytest.approx(entry["reward_accuracy"] + 0.5 * entry["reward_format"])


def test_two_steps_of_sampling_write_metrics_and_a_model(checkpoint, inputs, tmp_path):
    settings = config(
        checkpoint, inputs, max_tokens=6, group=2, groups=2, width=3, gradient_checkpointing=True
    )
    grpo.train(settings, tmp_path)
    metrics = [
        json.loads(line)
        for line in (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert [entry["step"] for entry in metrics] == [1, 2]
    expected = {
        "reward",
        "reward_accuracy",
        "reward_format",
        "zero_spread",
        "retrievals",
        "accuracy",
        "entropy",
        "kl",
    }
    for entry in metrics:
        assert expected <= set(entry)
    merged = LocalModel(tmp_path / "model").model.state_dict()
    adapted = LocalModel(checkpoint, tmp_path / "adapter")
    for name, weight in adapted.model.state_dict().items():
        torch.testing.assert_close(weight, merged[name])


def test_group_shares_its_question_and_each_row_draws_its_own_top_k(
    lives, memories, processor, model
):
    settings = dict(prompts="nano", max_tokens=8, seed=0, temperature=1.0, repetition_penalty=1.0)
    question = next(q for life in lives for q in life.questions if q.hops)
    rollout = grpo.Rollout(memories, {}, settings)
    assert len({rollout.first_prompt(question) for _ in range(4)}) == 1
    shown = set()
    for row in range(8):
        trajectory = rollout.trajectory(question, 1, row)
        next(trajectory)
        search = write_retrieve("look", "my drink", quote=False)
        reply = ChatReply(search, 1, 1)
        shown.add(trajectory.send(reply).text)
    assert len(shown) > 2


def test_prompt_text_is_read_from_a_string_or_a_list_of_parts():
    assert grpo.text_of([{"role": "user", "content": "ask a"}]) == "ask a"
    parts = [
        {"type": "text", "text": "ask "},
        {"type": "image", "text": None},
        {"type": "text", "text": "a"},
    ]
    assert grpo.text_of([{"role": "user", "content": parts}]) == "ask a"


def test_rewards_are_accuracy_times_consistency_and_format():
    assert grpo.answer_reward(f_acc=[1, 1, 0], f_cons=[1, 0, 1]) == [1, 0, 0]
    assert grpo.format_reward(f_format=[1.0, 0.0]) == [1.0, 0.0]
