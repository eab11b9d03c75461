"""The surface baselines: what they find where there is something, nothing in our questions, and what they can read."""

import json
import random
from dataclasses import asdict

import pytest

from personavlm_lib.__main__ import main
from personavlm_lib.benchmark.lives import simulate_life, write_lives
from personavlm_lib.benchmark.questions import ASPECTS
from personavlm_lib.benchmark.tasks import make_questions
from personavlm_lib.evaluation.shortcuts import (
    BASELINES,
    ShortcutItem,
    measure_shortcuts,
    read_items,
    shortcut_table,
)
from personavlm_lib.simulation.plan import sample_plan


# What leaks today; a task that is mended makes its test fail until it is taken off this list.
def items(n=400, seed=0, **better):
    """`n` items of a benchmark without a leak, but for `better`: share of items in which the right option is so."""
    rng = random.Random(seed)
    for i in range(n):
        words = [
            f"{rng.choice('abcdefgh')}{rng.choice('klmnop') * rng.randint(2, 7)}" for _ in range(3)
        ]
        right = rng.choice("abcdefgh") + rng.choice("klmnop") * rng.randint(2, 7)
        if rng.random() < better.get("longest", 0):
            right = "x" * 12 + str(rng.random())
        if rng.random() < better.get("often", 0):
            right = "usual"
        place = 1 if rng.random() < better.get("second", 0) else rng.randrange(4)
        asked = right if rng.random() < better.get("overlap", 0) else "nothing"
        yield ShortcutItem(
            "t", f"u{i % 20}", f"what of {asked}", (*words[:place], right, *words[place:]), place
        )


def accuracies(made, **kwargs):
    table = shortcut_table(list(made), **kwargs)
    return dict(zip(table["baseline"], table["accuracy"], strict=True))


@pytest.mark.parametrize("leak, found_by", [
    ("longest", "longest"), ("longest", "surface"), ("often", "most_frequent"), ("second", "surface"),
    ("overlap", "surface"),
])  # fmt: skip
def test_each_baseline_finds_its_leak(leak, found_by):
    assert accuracies(items(**{leak: 0.6}))[found_by] > 0.45
    assert accuracies(items())[found_by] == pytest.approx(0.25, abs=0.07)


def test_equals_share_the_choice_and_nothing_is_learned_from_the_item_itself():
    alike = [ShortcutItem("t", f"u{i}", "?", ("aa", "bb", "cc", "dd"), i % 4) for i in range(40)]
    found = accuracies(alike)
    assert found["longest"] == found["shortest"] == 0.25
    unique = [
        ShortcutItem("t", f"u{i}", "?", (f"right{i:02d}", f"wrong{i:02d}"), 0) for i in range(40)
    ]
    assert accuracies(unique)["most_frequent"] == 0.5


def test_of_one_user_nothing_can_be_learned_and_no_interval_is_given():
    table = shortcut_table([ShortcutItem("t", "u", "?", ("a", "bb", "ccc", "dddd"), 3)] * 8)
    assert dict(zip(table["baseline"], table["accuracy"], strict=True)) == {
        "longest": 1, "shortest": 0, "most_frequent": 0.25, "surface": 0.25
    }  # fmt: skip
    assert table["low"].isna().all()


def persona_mme(path, n=12):
    """A made-up file of the authors' shape, in which the right option is the longest."""
    cases = []
    for i in range(n):
        choices = {f"({letter})": "word" for letter in "abcd"} | {
            f"({'abcd'[i % 4]})": "the longest of them"
        }
        cases.append({
            "data_path": f"./data/Persona-MME/samples/50/{i % 3}/user_data.json", "type": "Intent Inference",
            "question_type": "Explicit Intent Inference", "time": "2024-09-23 20:08 (Monday)", "query": "Which one?",
            "choices": choices, "answer": f"({'abcd'[i % 4]})",
        })  # fmt: skip
        if i % 3 == 0:
            cases[-1]["alignment"] = {"chosen": "Sure, with joy!", "rejected": "No."}
    path.write_text(json.dumps(cases))
    return path


def test_the_authors_file_and_our_lives_are_read(tmp_path):
    result = measure_shortcuts(persona_mme(tmp_path / "Persona-MME.json"))
    task = result["tasks"]["Explicit Intent Inference"]
    assert (result["questions"], result["users"], task["n"], task["chance"]) == (16, 3, 12, 0.25)
    assert (
        set(task["baselines"]) == set(BASELINES) and task["baselines"]["longest"]["accuracy"] == 1
    )
    pairs = result["tasks"]["Personality Alignment"]
    assert (pairs["n"], pairs["chance"], pairs["baselines"]["longest"]["accuracy"]) == (4, 0.5, 1)
    own = [simulate_life(seed, tmp_path / "images", 20, 0.7, 8, 1) for seed in (1, 2)]
    write_lives(tmp_path / "lives.jsonl", own)
    read = read_items(tmp_path / "lives.jsonl")
    asked = [question for life in own for question in life.questions]
    assert (
        len(read)
        == sum(q.kind == "choice" for q in asked) + sum(q.kind == "binary" for q in asked) / 2
    )
    rights = {q.answer for q in asked if q.kind == "choice"} | {
        q.text for q in asked if q.answer == "yes"
    }
    assert {item.options[item.right] for item in read} == rights


def test_the_command_writes_numbers_and_fails_in_one_line(tmp_path, capsys):
    path = persona_mme(tmp_path / "Persona-MME.json")
    assert main(["shortcuts", str(path), "--json", str(tmp_path / "out.json")]) == 0
    assert json.loads((tmp_path / "out.json").read_text()) == measure_shortcuts(path)
    assert "Explicit Intent Inference" in capsys.readouterr().out
    for bad in (
        "[]",
        "[1]",
        '[{"query": "?"}]',
        "{",
        '{"users": 1}',
        path.read_text().replace("(a)", "(z)", 1),
    ):
        (tmp_path / "bad.json").write_text(bad)
        assert main(["shortcuts", str(tmp_path / "bad.json")]) == 1
        told = capsys.readouterr().err.strip()
        assert "\n" not in told and "bad.json" in told and "expected lives" in told
    assert main(["shortcuts", str(tmp_path / "missing.json")]) == 1
    assert "\n" not in capsys.readouterr().err.strip()


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """The leak table of the questions about two thousand lives; no picture is drawn and no turn told.

    Three points are three standard errors of a task with one question a life; with a thousand lives they are two.
    """
    made, path = [], tmp_path_factory.mktemp("ours") / "lives.jsonl"
    for seed in range(2000):
        plan = sample_plan(seed, *((28, 1.0) if seed % 2 else (70, 1.2)))
        made.append(
            json.dumps(
                {"user": plan.user, "questions": [asdict(q) for q in make_questions(plan, 26, 4)]},
                default=str,
            )
        )
    path.write_text("\n".join(made))
    return shortcut_table(
        read_items(path), folds=2
    )  # few folds: the rarest of equally many is rare in the rest of them


@pytest.mark.parametrize("task", ASPECTS)
def test_no_surface_baseline_is_off_chance_by_three_points(task, table):
    rows = table[table["task"] == task]
    off = dict(zip(rows["baseline"], (rows["accuracy"] - rows["chance"]).round(3), strict=True))
    assert (
        len(off) == len(BASELINES)
        and {name: by for name, by in off.items() if abs(by) > 0.03} == {}
    )
