"""Data sets from a seed: the same bytes whoever makes them, whole or not there, and personas from a file."""

import hashlib
import json
from collections import Counter
from dataclasses import fields
from functools import partial
from pathlib import Path

import pandas as pd
import pytest

from personavlm_lib.__main__ import main
from personavlm_lib.benchmark import synthesis
from personavlm_lib.benchmark.lives import read_lives
from personavlm_lib.benchmark.synthesis import (
    DATASET_SIZES,
    Group,
    group_questions,
    read_personas,
    synthesize,
)
from personavlm_lib.evaluation.shortcuts import read_items
from personavlm_lib.simulation.dialogue import render_dialogue
from personavlm_lib.simulation.plan import sample_plan
from personavlm_lib.simulation.storyteller import StorytellingResult
from personavlm_lib.study.components import open_recognizer
from personavlm_lib.study.profiles import load_profile

RECOGNIZER = partial(open_recognizer, "classical", "nano")
TINY = (
    Group("train", 0, 3, 20, 6, 1, size=0.5, sft=60, rl=20),
    Group("test", 50_000, 1, 20, 4, 1, size=0.5),
)


def hashes(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The tiny data set, made by one worker and by two, in jobs of two lives."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(synthesis, "CHUNK", 2)
        told = [
            synthesize(TINY, 3, folder / name, workers, RECOGNIZER)
            for name, workers in (("one", 1), ("two", 2))
        ]
    assert (
        told[0] == told[1] == {"lives": 4, "sft": 60, "rl": 20, "findings": 0, "broken_personas": 0}
    )
    return folder


def test_the_same_bytes_from_one_worker_and_from_two(made):
    one = hashes(made / "one")
    assert one == hashes(made / "two")
    assert {
        "train.jsonl",
        "test.parquet",
        "sft.parquet",
        "rl.jsonl",
        "findings.csv",
        "README.md",
    } <= set(one)
    assert not [name for name in one if name.endswith((".part", ".sft"))]
    assert sorted(path.name for path in made.iterdir()) == ["one", "two"]


def test_the_data_set_is_read_by_what_reads_lives_and_samples(made):
    lives = read_lives(made / "one" / "train.jsonl")
    assert [life.plan.seed for life in lives] == [300_000, 300_001, 300_002]
    assert all(
        life.plan.events[turn.index].time == turn.time for life in lives for turn in life.turns
    )
    assert len(read_items(made / "one" / "test.jsonl")) == 5
    sft = pd.read_parquet(made / "one" / "sft.parquet")
    assert sft.purpose.value_counts()["respond"] == 26
    pictures = [image for images in sft.images for image in images]
    assert pictures and all(
        image["bytes"][1:4] == b"PNG" and image["path"].startswith("images/") for image in pictures
    )
    kinds = pd.Series(
        [json.loads(line)["kind"] for line in open(made / "one" / "rl.jsonl")]
    ).value_counts()
    assert kinds.to_dict() == {"choice": 11, "binary": 5, "open": 4}
    card = (made / "one" / "README.md").read_text()
    assert "data_files: train.parquet" in card and "| choice | 11 | 55 |" in card


def test_what_fails_leaves_nothing_and_what_is_there_is_not_touched(tmp_path, made):
    with pytest.raises(Exception, match="nowhere"):
        synthesize(
            TINY[:1],
            3,
            tmp_path / "new",
            1,
            partial(open_recognizer, "classical", str(tmp_path / "nowhere")),
        )
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(FileExistsError, match="is there already"):
        synthesize(TINY, 3, made / "one", 1, RECOGNIZER)


def test_another_teller_is_believed_and_what_it_could_not_tell_is_left_out(tmp_path, made, capsys):
    def teller(plans, folder):
        lives = {
            plan.user: render_dialogue(plan, folder / "images", draw=False, wording="paraphrased")
            for plan in plans[1:]
        }
        return StorytellingResult(lives, Counter({"no JSON": 1}))

    counted = synthesize(TINY, 3, tmp_path / "told", 1, RECOGNIZER, teller=teller)
    assert counted["lives"] == 3 and "1 left out (1 no JSON" in capsys.readouterr().out
    (_, *others), told = (
        read_lives(folder / "train.jsonl") for folder in (made / "one", tmp_path / "told")
    )
    assert [life.plan for life in told] == [life.plan for life in others]
    assert all(
        [t.user for t in a.turns] != [t.user for t in b.turns]
        for a, b in zip(told, others, strict=True)
    )
    assert all(
        path.is_file() for life in told for turn in life.turns for path in map(Path, turn.images)
    )


def test_nano_is_what_its_profile_makes():
    stages = load_profile("nano").stages
    given, (train, test) = stages["01_synthesize"], DATASET_SIZES["nano"]
    assert (train.users, train.questions, train.pairs) == (
        given["train_users"],
        given["train_questions"],
        given["alignment"],
    )
    assert (test.users, test.questions, test.pairs) == (
        given["test_users"],
        given["test_questions"],
        given["alignment"],
    )
    assert (train.size, test.size) == (given["scale"], 1.2 * given["scale"])
    assert (train.sft, train.rl) == (given["sft_samples"], stages["03_grpo"]["questions"])


def test_the_papers_numbers():
    train, short, long = DATASET_SIZES["paper"]
    assert (train.users, short.users + long.users, train.sft, train.rl) == (500, 200, 78_000, 5_600)
    assert train.turns == short.turns == (20, 100) and long.turns == (100, 500)
    assert sum(group.users * group.questions for group in (short, long)) == 2_000
    assert sum(group.users * group.pairs for group in (short, long)) / 2_000 == pytest.approx(0.2)
    assert len({field.name for field in fields(Group)}) == 10


def test_a_question_comes_again_only_at_another_moment():
    plan = sample_plan(1, 28, 1.0)
    asked = group_questions(plan, 50, 3)
    assert len({(q.time, q.query) for q in asked}) == len({q.case for q in asked}) == len(asked)
    assert (
        40 <= sum(q.kind == "choice" for q in asked) <= 50
        and sum(q.kind == "binary" for q in asked) <= 6
    )
    assert [q.time for q in asked] == sorted(q.time for q in asked)
    assert len(group_questions(plan, 5, 0)) == 5


def test_broken_lines_of_a_persona_file_are_counted_and_too_few_are_refused(tmp_path, capsys):
    path = tmp_path / "personas.jsonl"
    good = [json.dumps({"persona": f"a baker from town {i}"}) for i in range(4)]
    broken = ["{", "[]", '{"persona": 3}', '{"persona": " "}', '{"who": "a"}', '"text"', "\x00"]
    path.write_text("\n".join([good[0], *broken[:4], "", *good[1:], *broken[4:]]))
    assert read_personas(path, 4) == ([f"a baker from town {i}" for i in range(4)], 7)
    assert read_personas(path, 2)[0] == ["a baker from town 0", "a baker from town 1"]
    code = main(
        ["synthesize", "--size", "short", "--out", str(tmp_path / "out"), "--personas", str(path)]
    )
    told = capsys.readouterr().err.strip()
    assert (
        code == 1
        and "\n" not in told
        and "4 lines" in told
        and "7 broken ones; needed: 100" in told
    )
    assert main(["synthesize", "--size", "huge", "--out", str(tmp_path / "out")]) == 1
    assert (
        "choose nano, short, long, paper" in capsys.readouterr().err
        and not (tmp_path / "out").exists()
    )
