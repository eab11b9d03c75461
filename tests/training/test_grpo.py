"""GRPO: the rollout is the agent, the loss sees what the model wrote, and the trainer sees what the model saw."""

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
from personavlm_lib.models.local import LocalModel
from personavlm_lib.simulation.wording import statement
from personavlm_lib.training import grpo


@pytest.fixture(scope="module")
def life(lives):
    """A life and only such questions about it as are asked when there is a picture to be found."""
    first = next(turn for turn in lives[0].turns if turn.images)
    late = tuple(q for q in lives[0].questions if q.time > first.time + 2 * SESSION_GAP)
    return replace(lives[0], questions=late)


@pytest.fixture(scope="module")
def inputs(life, memories):
    """The life's file, beside its images, and the folder of its memory."""
    path = (
        Path(next(image for turn in life.turns for image in turn.images)).parents[1] / "lives.jsonl"
    )
    write_lives(path, [life])
    return dict(lives=str(path), memory=str(memories[life.user].folder.parent))


def config(checkpoint, inputs, **changes):
    return inputs | dict(
        model=str(checkpoint), prompts="nano", questions=12, steps=2, group=4, groups=1, accumulate=2, seed=0, warmup=0,
        learning_rate=1e-3, lora_rank=4, beta=0.01, epsilon=0.2, temperature=1.0, repetition_penalty=1.05,
        max_tokens=48, width=4, gradient_checkpointing=False,
    ) | changes  # fmt: skip


@pytest.fixture
def recite(monkeypatch, processor, life):
    """The policy writes by a script: the rows of four in `searches` first look up the keywords given there."""
    picture = statement(next(event for event in life.plan.events if event.scene))
    tokenizer = processor.tokenizer
    head = tokenizer.convert_tokens_to_ids("<|im_start|>")

    def script(searches):
        def line(row, ids):
            # heads: the system's, then the user's and the assistant's of each turn
            if row in searches and ids.count(head) == 3:
                return write_retrieve(
                    "look up", searches[row].replace("picture", picture), quote=False
                )
            return write_answer("my cup is red", "(a)" if row % 2 else "(b)")

        def generate(self, input_ids, **_):
            new = [
                tokenizer(line(n, ids.tolist()) + "<|im_end|>").input_ids
                for n, ids in enumerate(input_ids)
            ]
            width = max(map(len, new))
            new = [ids + [tokenizer.pad_token_id] * (width - len(ids)) for ids in new]
            return torch.cat([input_ids, torch.tensor(new)], dim=1)

        monkeypatch.setattr(Qwen2_5_VLForConditionalGeneration, "generate", generate)

    return script


@pytest.fixture
def scored(monkeypatch):
    """(transcripts, the batch as the trainer scored it, its own log-probabilities, those of plain forward passes)."""
    kept, transcripts = [], []
    score, policy = grpo.AgentTrainer._generate_and_score_completions, grpo.Policy

    def remembering(*args, **kwargs):
        made = policy(*args, **kwargs)
        transcripts.append(made.transcripts)
        return made

    def spying(trainer, rows):
        batch = score(trainer, rows)
        fields = {
            k: batch.get(k)
            for k in ("pixel_values", "image_grid_thw", "num_images", "mm_token_type_ids")
        }
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
        mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
        model, width = (
            trainer.accelerator.unwrap_model(trainer.model),
            batch["completion_ids"].shape[1],
        )
        model.eval()
        with torch.no_grad():
            trainers, *_ = trainer._get_per_token_logps_and_entropies(
                model, ids, mask, width, **fields
            )
        local = LocalModel(model=model, processor=trainer.processing_class)
        plain = [_plain(local, transcript, trainer.temperature) for transcript in transcripts[-1]]
        model.train()
        kept.append(SimpleNamespace(transcripts=transcripts[-1], batch=batch, trainers=trainers, plain=plain, rows=rows,
                                    trainer=trainer))  # fmt: skip
        return batch

    monkeypatch.setattr(grpo, "Policy", remembering)
    monkeypatch.setattr(grpo.AgentTrainer, "_generate_and_score_completions", spying)
    return kept


@torch.no_grad()
def _plain(local, transcript, temperature):
    """Log-probabilities of the completion's tokens: one row, no padding, no trainer."""
    logits = local.model(**local._batch([transcript])).logits[0, :-1] / temperature
    chosen = torch.tensor(transcript.ids[1:])
    return logits.log_softmax(-1).gather(-1, chosen[:, None])[transcript.prompt_length - 1 :, 0]


@pytest.mark.parametrize(
    "searches", [{1: "picture", 2: "my drink", 3: "picture"}, {1: "picture"}, {}]
)
def test_the_trainer_scores_what_the_model_saw_and_wrote(
    checkpoint, inputs, recite, scored, tmp_path, searches
):
    """Text and images, one turn and several; one picture in the batch, so that a micro-batch has none; text alone."""
    recite(searches)
    grpo.train(config(checkpoint, inputs, temperature=0.7), tmp_path)
    assert len(scored) == 2
    for step in scored:
        batch, template = (
            step.batch,
            step.trainer._tokenize_prompts([row["prompt"] for row in step.rows])[0],
        )
        for n, transcript in enumerate(step.transcripts):
            prompt = batch["prompt_ids"][n][batch["prompt_mask"][n].bool()].tolist()
            completion = batch["completion_mask"][n].bool()
            assert prompt == template[n] == transcript.ids[: transcript.prompt_length]
            assert (
                batch["completion_ids"][n][completion].tolist()
                == transcript.ids[transcript.prompt_length :]
            )
            assert (
                batch["tool_mask"][n][completion].tolist()
                == transcript.generated_mask[transcript.prompt_length :]
            )
            torch.testing.assert_close(
                step.trainers[n][completion], step.plain[n], atol=1e-4, rtol=0
            )
            assert (0 in transcript.generated_mask[transcript.prompt_length :]) == (n in searches)
            assert bool(transcript.images) or searches.get(n) != "picture"
    pictured = [bool(t.images) for t in scored[0].transcripts]
    assert any(pictured) == bool(searches) and not all(pictured)


def test_rewards_follow_the_answers(checkpoint, inputs, recite, scored, tmp_path):
    recite({1: "my drink", 2: "my food", 3: "my job"})
    grpo.train(config(checkpoint, inputs, steps=1), tmp_path)
    assert len(scored[0].transcripts) == 4
    (entry,) = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert entry["reward_format"] == 1 and entry["retrievals"] == 0.75
    assert entry["reward"] == pytest.approx(entry["reward_accuracy"] + 0.5 * entry["reward_format"])


def test_two_steps_of_sampling_leave_metrics_and_a_model(checkpoint, inputs, tmp_path):
    grpo.train(
        config(
            checkpoint,
            inputs,
            max_tokens=6,
            group=2,
            groups=2,
            width=3,
            gradient_checkpointing=True,
        ),
        tmp_path,
    )
    metrics = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in metrics] == [1, 2]
    for entry in metrics:
        assert {
            "reward",
            "reward_accuracy",
            "reward_format",
            "zero_spread",
            "retrievals",
            "accuracy",
            "entropy",
            "kl",
        } <= set(entry)
    merged, adapted = LocalModel(tmp_path / "model"), LocalModel(checkpoint, tmp_path / "adapter")
    for name, weight in adapted.model.state_dict().items():
        torch.testing.assert_close(weight, merged.model.state_dict()[name])


def test_the_group_shares_its_question_and_draws_its_own_top_k(lives, memories, processor, model):
    settings = dict(prompts="nano", max_tokens=8, seed=0, temperature=1.0, repetition_penalty=1.0)
    question = next(q for life in lives for q in life.questions if q.hops)
    rollout = grpo.Rollout(memories, {}, settings)
    assert len({rollout.first_ask(question) for _ in range(4)}) == 1
    shown = set()
    for row in range(8):
        trajectory = rollout.trajectory(question, 1, row)
        next(trajectory)
        reply = SimpleNamespace(
            text=write_retrieve("look", "my drink", quote=False), tokens_in=1, tokens_out=1
        )
        shown.add(trajectory.send(reply).text)
    assert len(shown) > 2


def test_prompts_find_their_questions_whatever_form_the_content_has(lives, memories):
    assert grpo.text_of([{"role": "user", "content": "ask a"}]) == "ask a"
    parts = [
        {"type": "text", "text": "ask "},
        {"type": "image", "text": None},
        {"type": "text", "text": "a"},
    ]
    assert grpo.text_of([{"role": "user", "content": parts}]) == "ask a"


def test_the_reward_is_a_product_and_a_format():
    assert grpo.answer_reward(f_acc=[1, 1, 0], f_cons=[1, 0, 1]) == [1, 0, 0]
    assert grpo.format_reward(f_format=[1.0, 0.0]) == [1.0, 0.0]
