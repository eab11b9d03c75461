"""The backbone's data and loss: what is learned, from whom, and that a few steps run."""

import json
import random
import re
from datetime import datetime
from itertools import pairwise

import pytest
import torch

from personavlm_lib.agent import protocol
from personavlm_lib.agent.prompt_sets import periods
from personavlm_lib.memory.records import TRAITS
from personavlm_lib.models.chat import ChatRequest
from personavlm_lib.models.local import LocalModel
from personavlm_lib.training import backbone, backbone_data
from personavlm_lib.training.backbone import answer_loss
from personavlm_lib.training.backbone_data import SEEDS, BackboneData, collate, encode, examples


@pytest.mark.parametrize("kind", examples(0))
def test_labels_are_the_assistants_words_and_each_image_has_its_tokens(processor, kind):
    for seed in range(5):
        row = examples(seed)[kind]
        encoded = encode(row, processor)
        assert len(encoded["ids"]) == len(encoded["labels"])
        learned = [i for i in encoded["labels"] if i != -100]
        said = ["".join(text.split()) for role, text in row.messages if role == "assistant"]
        turns = [
            "".join(turn.split())
            for turn in processor.tokenizer.decode(learned).split("<|im_end|>")
        ]
        assert turns == [*said, ""]
        assert all(
            label in (-100, i) for i, label in zip(encoded["ids"], encoded["labels"], strict=True)
        )
        assert sum(text.count("<img>") for _, text in row.messages) == len(row.images)
        pads = encoded["ids"].count(processor.image_token_id)
        assert pads == (int(encoded["image_grid_thw"].prod(-1).sum()) // 4 if row.images else 0)


def test_what_is_learned_is_laid_out_as_the_agent_will_ask(processor, model):
    """The ids of a row begin as LocalModel would render the same messages."""
    row = backbone_data.conversation(random.Random(0), 6, 2, False, False)
    local = LocalModel(model=model, processor=processor)
    transcript = local.start()
    local.append_request(transcript, ChatRequest(row.messages[0][1]))
    assert encode(row, processor)["ids"][: len(transcript.ids)] == transcript.ids


def test_answers_of_conversations_stand_in_the_context():
    rng = random.Random(0)
    for _ in range(20):
        row = backbone_data.conversation(rng, 8, 2, False, False)
        thoughts = [
            text.split("<think>")[1].split("</think>")[0]
            for role, text in row.messages
            if role == "assistant"
        ]
        for (
            thought
        ) in thoughts:  # word for word, from value to value, then what is commonly known of it
            stated = thought.split(" takes ")[0]
            if (
                stated.split()[1:2] and stated.split()[1] in TRAITS
            ):  # the line on personality has no "my"
                stated = stated.removeprefix("my ")
            steps = re.split(" (?=from )", stated)
            assert all(step in row.messages[0][1] for step in steps) or re.fullmatch(
                r"my goal \w+ is unknown", thought
            )


def test_a_table_answers_with_the_newest():
    for seed in range(30):
        row = backbone_data.table(random.Random(seed), 12, 4)
        lines = row.messages[0][1].splitlines()
        for (_, asked), (_, said) in zip(row.messages[::2], row.messages[1::2], strict=True):
            ask = asked.splitlines()[-1]
            about = re.sub(r"^ask (what is |why did )?|( now| change)? [?]$", "", ask)
            told = [line[line.index(about) :] for line in lines[:-1] if f"{about} " in line]
            thought, answer = (
                said.removeprefix("<think>").removesuffix("</answer>").split("</think>\n<answer>")
            )
            steps = [re.search(r"( from \w+)? is (\w+)", line) for line in told]
            assert all(step[1] == f" from {before[2]}" for before, step in pairwise(steps))
            cause = re.search(r"( because \w+)?$", told[-1])[0]
            assert thought == about + "".join(step[0] for step in steps) + cause
            assert answer == (cause.split()[-1] if "why" in ask else steps[-1][2])


def test_a_calendar_is_read_as_the_agent_reads_it():
    for seed in range(10):
        row = backbone_data.dating(random.Random(seed), 8)
        now = datetime.strptime(row.messages[0][1].split()[2], "%Y-%m-%d")
        for (_, asked), (_, said) in zip(row.messages[::2], row.messages[1::2], strict=True):
            start, end = periods(now)[asked.splitlines()[-1].removeprefix("ask ")]
            step = protocol.parse_step(
                f"<think>t</think>\n<retrieve>\n{said.split('</think>')[1]}\n</retrieve>"
            )
            assert (step.retrieve.start, step.retrieve.end) == (start, end)


def test_listed_turns_are_read_by_the_agents_own_parsers():
    for seed in range(10):
        row = backbone_data.listing(random.Random(seed), 8)
        turns = [line for line in row.messages[0][1].splitlines() if line[0].isdigit()]
        for (_, asked), (_, said) in zip(row.messages[::2], row.messages[1::2], strict=True):
            if asked.endswith("all"):
                episodes = protocol.parse_episodes(said)
                assert [episode.indices for episode in episodes] == [
                    (i,) for i in range(len(turns))
                ]
                shown = zip(episodes, turns, strict=True)
                assert all(
                    turn.startswith(f"{e.indices[0]} user {e.topic_summary}") or "my" in turn
                    for e, turn in shown
                )
            else:
                for key, text in protocol.parse_procedural(said).items():
                    assert any(key in turn and text in turn for turn in turns)


def test_its_lives_are_its_own(monkeypatch):
    seeds = []
    sample = backbone_data.sample_plan
    monkeypatch.setattr(
        backbone_data, "sample_plan", lambda seed, *size: seeds.append(seed) or sample(seed, *size)
    )
    for seed in range(20):
        examples(seed)
    assert len(seeds) >= 20 and min(seeds) >= SEEDS


def test_the_loss_is_that_of_the_labelled_tokens(processor, model):
    rows = [encode(row, processor) for row in examples(1).values()]
    batch = collate(rows, processor.tokenizer.pad_token_id, processor.image_token_id)
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    with torch.no_grad():
        logits = model(**inputs).logits[:, :-1]
        expected = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), batch["labels"][:, 1:].flatten()
        )
        torch.testing.assert_close(answer_loss(model, batch), expected)


def test_batches_are_the_same_each_time(processor):
    one, other, third = (next(iter(BackboneData(processor, 2, 4, seed))) for seed in (0, 0, 1))
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    assert one["input_ids"].tolist() != third["input_ids"].tolist()


def test_two_steps_leave_a_model_that_answers(tmp_path, monkeypatch):
    monkeypatch.setattr(backbone, "probe", lambda *_: {"see": 0.0})
    config = dict(
        seed=0, steps=2, batch=2, learning_rate=1e-3, width=64, layers=1, log_every=1, workers=0
    )
    backbone.train(config, tmp_path)
    metrics = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in metrics] == [1, 2] and all(
        entry["loss"] > 0 for entry in metrics
    )
    local = LocalModel(tmp_path)
    assert local.reply([(local.start(), ChatRequest("hello", max_tokens=3))])[0].tokens_out <= 3


def test_the_probe_measures_every_skill(processor, model):
    shares = backbone.probe(model, processor, n=2)
    assert set(shares) == {
        "table",
        "copy",
        "read_8",
        "read_all",
        "know",
        "date",
        "list",
        "see",
        "recall",
    }
    assert all(0 <= share <= 1 for share in shares.values())
