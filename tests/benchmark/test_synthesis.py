"""Data sets depend on the seed alone and are complete or absent; personas come from a file."""

import hashlib
import json
from collections import Counter
from dataclasses import fields, replace
from functools import partial
from pathlib import Path

import pandas as pd
import pytest

from personavlm_lib.__main__ import main
from personavlm_lib.benchmark import synthesis
from personavlm_lib.benchmark.lives import read_lives
from personavlm_lib.benchmark.sizes import DATASET_SIZES, Group
from personavlm_lib.benchmark.synthesis import (
    SynthesisSettings,
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
SETTINGS = SynthesisSettings(seed=3, workers=1, recognizer=RECOGNIZER)
TINY = (
    Group("train", 0, 3, 20, 6, 1, size=0.5, sft=60, rl=20),
    Group("test", 50_000, 1, 20, 4, 1, size=0.5),
)


def hashes(folder):
    digests = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            digests[str(path.relative_to(folder))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return digests


@pytest.fixture(scope="module")
def data_sets(tmp_path_factory):
    """A folder with the tiny data set made by one worker and by two, in jobs of two lives."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(synthesis, "CHUNK", 2)
        for name, workers in (("one", 1), ("two", 2)):
            counts = synthesize(TINY, folder / name, replace(SETTINGS, workers=workers))
            expected = {"lives": 4, "sft": 60, "rl": 20, "findings": 0, "broken_personas": 0}
            assert counts == expected
    return folder


def test_number_of_workers_does_not_change_the_files(data_sets):
    one = hashes(data_sets / "one")
    assert one == hashes(data_sets / "two")
    assert {
        "train.jsonl",
        "test.parquet",
        "sft.parquet",
        "rl.jsonl",
        "findings.csv",
        "README.md",
    } <= set(one)
    assert not [name for name in one if name.endswith((".part", ".sft"))]
    assert sorted(path.name for path in data_sets.iterdir()) == ["one", "two"]


def test_data_set_has_the_expected_lives_samples_and_card(data_sets):
    lives = read_lives(data_sets / "one" / "train.jsonl")
    assert [life.plan.seed for life in lives] == [300_000, 300_001, 300_002]
    assert all(
        life.plan.events[turn.index].time == turn.time for life in lives for turn in life.turns
    )
    assert len(read_items(data_sets / "one" / "test.jsonl")) == 5
    sft = pd.read_parquet(data_sets / "one" / "sft.parquet")
    assert sft.purpose.value_counts()["respond"] == 26
    pictures = [image for images in sft.images for image in images]
    assert pictures and all(
        image["bytes"][1:4] == b"PNG" and image["path"].startswith("images/") for image in pictures
    )
    lines = (data_sets / "one" / "rl.jsonl").read_text(encoding="utf-8").splitlines()
    kinds = Counter(json.loads(line)["kind"] for line in lines)
    assert kinds == {"choice": 11, "binary": 5, "open": 4}
    card = (data_sets / "one" / "README.md").read_text(encoding="utf-8")
    assert "data_files: train.parquet" in card and "| choice | 11 | 55 |" in card


def test_failure_leaves_no_files_and_existing_folder_is_refused(tmp_path, data_sets):
    broken = partial(open_recognizer, "classical", str(tmp_path / "nowhere"))
    with pytest.raises(Exception, match="nowhere"):
        synthesize(TINY[:1], tmp_path / "new", replace(SETTINGS, recognizer=broken))
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(FileExistsError, match="already exists"):
        synthesize(TINY, data_sets / "one", SETTINGS)


def test_generated_dialogues_replace_templates_and_failures_are_omitted(
    tmp_path, data_sets, capsys
):
    def generator(plans, folder):
        lives = {
            plan.user: render_dialogue(plan, folder / "images", draw=False, wording="paraphrased")
            for plan in plans[1:]
        }
        return StorytellingResult(lives, Counter({"no JSON": 1}))

    counts = synthesize(TINY, tmp_path / "generated", replace(SETTINGS, generator=generator))
    assert counts["lives"] == 3 and "1 left out (1 no JSON" in capsys.readouterr().out
    _, *originals = read_lives(data_sets / "one" / "train.jsonl")
    generated = read_lives(tmp_path / "generated" / "train.jsonl")
    assert [life.plan for life in generated] == [life.plan for life in originals]
    for life, original in zip(generated, originals, strict=True):
        assert [turn.user for turn in life.turns] != [turn.user for turn in original.turns]
    images = [Path(image) for life in generated for turn in life.turns for image in turn.images]
    assert all(image.is_file() for image in images)


def test_nano_groups_match_the_nano_profile():
    stages = load_profile("nano").stages
    stage = stages["01_synthesize"]
    train, test = DATASET_SIZES["nano"]
    assert (train.users, test.users) == (stage["train_users"], stage["test_users"])
    assert (train.questions, test.questions) == (stage["train_questions"], stage["test_questions"])
    assert train.pairs == test.pairs == stage["alignment"]
    assert (train.size, test.size) == (stage["scale"], 1.2 * stage["scale"])
    assert (train.sft, train.rl) == (stage["sft_samples"], stages["03_grpo"]["questions"])


def test_paper_groups_have_the_numbers_of_the_paper():
    train, short, long = DATASET_SIZES["paper"]
    assert (train.users, short.users + long.users, train.sft, train.rl) == (500, 200, 78_000, 5_600)
    assert train.turns == short.turns == (20, 100) and long.turns == (100, 500)
    assert sum(group.users * group.questions for group in (short, long)) == 2_000
    assert sum(group.users * group.pairs for group in (short, long)) / 2_000 == pytest.approx(0.2)
    assert len({field.name for field in fields(Group)}) == 10


def test_group_questions_repeat_only_at_another_moment():
    plan = sample_plan(1, 28, 1.0)
    questions = group_questions(plan, 50, 3)
    n = len(questions)
    assert len({(q.time, q.query) for q in questions}) == len({q.case for q in questions}) == n
    kinds = Counter(question.kind for question in questions)
    assert 40 <= kinds["choice"] <= 50 and kinds["binary"] <= 6
    assert [q.time for q in questions] == sorted(q.time for q in questions)
    assert len(group_questions(plan, 5, 0)) == 5


def test_personas_count_broken_lines_and_reject_too_short_a_file(tmp_path, capsys):
    path = tmp_path / "personas.jsonl"
    good = [json.dumps({"persona": f"a baker from town {i}"}) for i in range(4)]
    broken = ["{", "[]", '{"persona": 3}', '{"persona": " "}', '{"who": "a"}', '"text"', "\x00"]
    path.write_text("\n".join([good[0], *broken[:4], "", *good[1:], *broken[4:]]), encoding="utf-8")
    assert read_personas(path, 4) == ([f"a baker from town {i}" for i in range(4)], 7)
    assert read_personas(path, 2)[0] == ["a baker from town 0", "a baker from town 1"]
    out = tmp_path / "out"
    command = ["synthesize", "--size", "short", "--out", str(out), "--personas", str(path)]
    assert main(command) == 1
    error = capsys.readouterr().err.strip()
    assert "\n" not in error and "4 lines" in error
    assert "7 broken ones, but 100 personas are needed" in error
    assert main(["synthesize", "--size", "huge", "--out", str(out)]) == 2
    assert "choose one of nano, short, long, paper" in capsys.readouterr().err
    assert not out.exists()
