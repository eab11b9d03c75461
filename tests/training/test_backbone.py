"""The backbone's training data, its loss, and a few training steps."""

import json
import random
import re
from datetime import datetime
from itertools import pairwise

import pytest
import torch

from personavlm_lib.agent import protocol
from personavlm_lib.agent.prompt_sets import periods
from personavlm_lib.benchmark.seeds import BACKBONE_USERS
from personavlm_lib.memory.records import TRAITS
from personavlm_lib.models.chat import ChatRequest
from personavlm_lib.models.local import LocalModel
from personavlm_lib.training import backbone, backbone_drills
from personavlm_lib.training.backbone import answer_loss
from personavlm_lib.training.backbone_data import BackboneData, collate, encode
from personavlm_lib.training.backbone_drills import examples


def question_answer_pairs(row):
    questions = [text for _, text in row.messages[::2]]
    answers = [text for _, text in row.messages[1::2]]
    return list(zip(questions, answers, strict=True))


@pytest.mark.parametrize("kind", examples(0))
def test_labels_cover_assistant_text_and_each_image_has_its_tokens(processor, kind):
    for seed in range(5):
        row = examples(seed)[kind]
        encoded = encode(row, processor)
        ids, labels = encoded["ids"], encoded["labels"]
        assert len(ids) == len(labels)
        learned = [label for label in labels if label != -100]
        answers = ["".join(text.split()) for role, text in row.messages if role == "assistant"]
        turns = processor.tokenizer.decode(learned).split("<|im_end|>")
        assert ["".join(turn.split()) for turn in turns] == [*answers, ""]
        assert all(label in (-100, token) for token, label in zip(ids, labels, strict=True))
        assert sum(text.count("<img>") for _, text in row.messages) == len(row.images)
        pads = ids.count(processor.image_token_id)
        assert pads == (int(encoded["image_grid_thw"].prod(-1).sum()) // 4 if row.images else 0)


def test_rows_are_tokenized_as_the_agent_tokenizes_its_requests(processor, model):
    """The ids of a row begin as LocalModel would render the same messages."""
    row = backbone_drills.conversation(random.Random(0), 6, 2, False, False)
    local = LocalModel(model=model, processor=processor)
    transcript = local.start()
    local.append_request(transcript, ChatRequest(row.messages[0][1]))
    assert encode(row, processor)["ids"][: len(transcript.ids)] == transcript.ids


def test_conversation_answers_rest_on_the_context():
    rng = random.Random(0)
    for _ in range(20):
        row = backbone_drills.conversation(rng, 8, 2, False, False)
        context = row.messages[0][1]
        for _, answer in question_answer_pairs(row):
            thought = answer.split("<think>")[1].split("</think>")[0]
            # word for word, from value to value, then common knowledge about the last one
            stated = thought.split(" takes ")[0]
            words = stated.split()
            if words[1:2] and words[1] in TRAITS:  # the line on personality has no "my"
                stated = stated.removeprefix("my ")
            steps = re.split(" (?=from )", stated)
            is_unknown = re.fullmatch(r"my goal \w+ is unknown", thought)
            assert all(step in context for step in steps) or is_unknown


def test_table_drill_answers_with_the_newest_value():
    for seed in range(30):
        row = backbone_drills.table_drill(random.Random(seed), 12, 4)
        lines = row.messages[0][1].splitlines()
        for question, answer in question_answer_pairs(row):
            question = question.splitlines()[-1]
            subject = re.sub(r"^ask (what is |why did )?|( now| change)? [?]$", "", question)
            facts = [line[line.index(subject) :] for line in lines[:-1] if f"{subject} " in line]
            answer = answer.removeprefix("<think>").removesuffix("</answer>")
            thought, value = answer.split("</think>\n<answer>")
            steps = [re.search(r"( from \w+)? is (\w+)", line) for line in facts]
            assert all(step[1] == f" from {before[2]}" for before, step in pairwise(steps))
            cause = re.search(r"( because \w+)?$", facts[-1])[0]
            assert thought == subject + "".join(step[0] for step in steps) + cause
            assert value == (cause.split()[-1] if "why" in question else steps[-1][2])


def test_date_drill_names_the_periods_that_the_agent_parses():
    for seed in range(10):
        row = backbone_drills.date_drill(random.Random(seed), 8)
        now = datetime.strptime(row.messages[0][1].split()[2], "%Y-%m-%d")
        for question, answer in question_answer_pairs(row):
            start, end = periods(now)[question.splitlines()[-1].removeprefix("ask ")]
            arguments = answer.split("</think>")[1]
            step = protocol.parse_step(f"<think>t</think>\n<retrieve>\n{arguments}\n</retrieve>")
            assert (step.retrieve.start, step.retrieve.end) == (start, end)


def test_list_drill_answers_are_read_by_the_agents_parsers():
    for seed in range(10):
        row = backbone_drills.list_drill(random.Random(seed), 8)
        turns = [line for line in row.messages[0][1].splitlines() if line[0].isdigit()]
        for question, answer in question_answer_pairs(row):
            if question.endswith("all"):
                episodes = protocol.parse_episodes(answer)
                indices = [episode.indices for episode in episodes]
                assert indices == [(i,) for i in range(len(turns))]
                for episode, turn in zip(episodes, turns, strict=True):
                    beginning = f"{episode.indices[0]} user {episode.topic_summary}"
                    assert turn.startswith(beginning) or "my" in turn
            else:
                for key, text in protocol.parse_procedural(answer).items():
                    assert any(key in turn and text in turn for turn in turns)


def test_training_lives_are_used_by_no_other_stage(monkeypatch):
    seeds = []
    sample_plan = backbone_drills.sample_plan

    def recording_sample_plan(seed, *size):
        seeds.append(seed)
        return sample_plan(seed, *size)

    monkeypatch.setattr(backbone_drills, "sample_plan", recording_sample_plan)
    for seed in range(20):
        examples(seed)
    assert len(seeds) >= 20 and set(seeds) <= set(BACKBONE_USERS)


def test_answer_loss_is_that_of_the_labeled_tokens(processor, model):
    rows = [encode(row, processor) for row in examples(1).values()]
    batch = collate(rows, processor.tokenizer.pad_token_id, processor.image_token_id)
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    with torch.no_grad():
        logits = model(**inputs).logits[:, :-1]
        expected = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), batch["labels"][:, 1:].flatten()
        )
        torch.testing.assert_close(answer_loss(model, batch), expected)


def test_batches_depend_on_the_seed_only(processor):
    first, again, other = (next(iter(BackboneData(processor, 2, 4, seed))) for seed in (0, 0, 1))
    assert first.keys() == again.keys()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert first["input_ids"].tolist() != other["input_ids"].tolist()


def test_two_steps_write_metrics_and_a_model_that_answers(tmp_path, monkeypatch):
    monkeypatch.setattr(backbone, "probe", lambda *_: {"see": 0.0})
    config = dict(
        seed=0, steps=2, batch=2, learning_rate=1e-3, width=64, layers=1, log_every=1, workers=0
    )
    backbone.train(config, tmp_path)
    metrics = [
        json.loads(line)
        for line in (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert [entry["step"] for entry in metrics] == [1, 2]
    assert all(entry["loss"] > 0 for entry in metrics)
    local = LocalModel(tmp_path)
    assert local.reply([(local.start(), ChatRequest("hello", max_tokens=3))])[0].tokens_out <= 3


def test_probe_measures_every_skill(processor, model):
    shares = backbone.probe(model, processor, n=2)
    skills = {"table", "copy", "read_8", "read_all", "know", "date", "list", "see", "recall"}
    assert set(shares) == skills
    assert all(0 <= share <= 1 for share in shares.values())
