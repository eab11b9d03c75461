"""Test the surface baselines on benchmarks with and without shortcuts, and on our own questions."""

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


def random_items(n=400, seed=0, **shortcuts):
    """`n` items without a shortcut, except for `shortcuts`: its name -> the share of items with it.

    longest: the right option is the longest. often: it is always the same. second: it is the second
    option. overlap: it appears in the question.
    """
    rng = random.Random(seed)
    for i in range(n):
        wrong = [random_option(rng) for _ in range(3)]
        right = random_option(rng)
        if rng.random() < shortcuts.get("longest", 0):
            right = "x" * 12 + str(rng.random())
        if rng.random() < shortcuts.get("often", 0):
            right = "usual"
        if rng.random() < shortcuts.get("second", 0):
            position = 1
        else:
            position = rng.randrange(4)
        subject = right if rng.random() < shortcuts.get("overlap", 0) else "nothing"
        options = (*wrong[:position], right, *wrong[position:])
        yield ShortcutItem("t", f"u{i % 20}", f"what of {subject}", options, position)


def random_option(rng: random.Random) -> str:
    return rng.choice("abcdefgh") + rng.choice("klmnop") * rng.randint(2, 7)


def accuracies(items, **kwargs):
    table = shortcut_table(list(items), **kwargs)
    return dict(zip(table["baseline"], table["accuracy"], strict=True))


@pytest.mark.parametrize(
    "shortcut, found_by",
    [
        ("longest", "longest"),
        ("longest", "surface"),
        ("often", "most_frequent"),
        ("second", "surface"),
        ("overlap", "surface"),
    ],
)
def test_each_baseline_finds_its_shortcut(shortcut, found_by):
    with_shortcut = accuracies(random_items(**{shortcut: 0.6}))
    assert with_shortcut[found_by] > 0.45
    without = accuracies(random_items())
    assert without[found_by] == pytest.approx(0.25, abs=0.07)


def test_options_of_equal_length_share_the_choice():
    options = ("aa", "bb", "cc", "dd")
    items = [ShortcutItem("t", f"u{i}", "?", options, i % 4) for i in range(40)]
    by_baseline = accuracies(items)
    assert by_baseline["longest"] == 0.25
    assert by_baseline["shortest"] == 0.25


def test_nothing_is_learned_from_the_tested_item():
    items = []
    for i in range(40):
        options = (f"right{i:02d}", f"wrong{i:02d}")
        items.append(ShortcutItem("t", f"u{i}", "?", options, 0))
    assert accuracies(items)["most_frequent"] == 0.5


def test_one_user_gives_guesses_and_no_interval():
    table = shortcut_table([ShortcutItem("t", "u", "?", ("a", "bb", "ccc", "dddd"), 3)] * 8)
    by_baseline = dict(zip(table["baseline"], table["accuracy"], strict=True))
    assert by_baseline == {"longest": 1, "shortest": 0, "most_frequent": 0.25, "surface": 0.25}
    assert table["low"].isna().all()


def write_author_file(path, n=12):
    """Write a file in the authors' format in which the right option is always the longest."""
    cases = []
    for i in range(n):
        choices = {f"({letter})": "word" for letter in "abcd"}
        answer = f"({'abcd'[i % 4]})"
        choices[answer] = "the longest of them"
        case = {
            "data_path": f"./data/Persona-MME/samples/50/{i % 3}/user_data.json",
            "type": "Intent Inference",
            "question_type": "Explicit Intent Inference",
            "time": "2024-09-23 20:08 (Monday)",
            "query": "Which one?",
            "choices": choices,
            "answer": answer,
        }
        if i % 3 == 0:
            case["alignment"] = {"chosen": "Sure, with joy!", "rejected": "No."}
        cases.append(case)
    path.write_text(json.dumps(cases), encoding="utf-8")
    return path


def test_the_authors_file_is_measured(tmp_path):
    result = measure_shortcuts(write_author_file(tmp_path / "Persona-MME.json"))
    assert (result["questions"], result["users"]) == (16, 3)
    task = result["tasks"]["Explicit Intent Inference"]
    assert (task["n"], task["chance"]) == (12, 0.25)
    assert set(task["baselines"]) == set(BASELINES)
    assert task["baselines"]["longest"]["accuracy"] == 1
    pairs = result["tasks"]["Personality Alignment"]
    assert (pairs["n"], pairs["chance"]) == (4, 0.5)
    assert pairs["baselines"]["longest"]["accuracy"] == 1


def test_our_lives_are_read(tmp_path):
    lives = [simulate_life(seed, tmp_path / "images", 20, 0.7, 8, 1) for seed in (1, 2)]
    path = tmp_path / "lives.jsonl"
    write_lives(path, lives)
    items = read_items(path)
    questions = [question for life in lives for question in life.questions]
    choice = [question for question in questions if question.kind == "choice"]
    binary = [question for question in questions if question.kind == "binary"]
    assert len(items) == len(choice) + len(binary) / 2
    right = {question.answer for question in choice}
    right |= {question.text for question in binary if question.answer == "yes"}
    assert {item.options[item.right] for item in items} == right


def test_the_command_prints_and_writes_the_numbers(tmp_path, capsys):
    path = write_author_file(tmp_path / "Persona-MME.json")
    out = tmp_path / "out.json"
    assert main(["shortcuts", str(path), "--json", str(out)]) == 0
    assert json.loads(out.read_text(encoding="utf-8")) == measure_shortcuts(path)
    assert "Explicit Intent Inference" in capsys.readouterr().out


def test_the_command_rejects_other_files_in_one_line(tmp_path, capsys):
    valid = write_author_file(tmp_path / "Persona-MME.json").read_text(encoding="utf-8")
    path = tmp_path / "bad.json"
    for text in (
        "[]",
        "[1]",
        '[{"query": "?"}]',
        "{",
        '{"users": 1}',
        valid.replace("(a)", "(z)", 1),
    ):
        path.write_text(text, encoding="utf-8")
        assert main(["shortcuts", str(path)]) == 1
        error = capsys.readouterr().err.strip()
        assert "\n" not in error
        assert "bad.json" in error
        assert "expected lives" in error
    assert main(["shortcuts", str(tmp_path / "missing.json")]) == 2
    assert "\n" not in capsys.readouterr().err.strip()


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """The shortcut table of questions about 2,000 lives, without images and dialogues.

    With 2,000 lives, three percentage points are three standard errors of a task with one question
    per life; with 1,000 lives they would be two.
    """
    lines = []
    for seed in range(2000):
        days, size = (28, 1.0) if seed % 2 else (70, 1.2)
        plan = sample_plan(seed, days, size)
        questions = [asdict(question) for question in make_questions(plan, 26, 4)]
        lines.append(json.dumps({"user": plan.user, "questions": questions}, default=str))
    path = tmp_path_factory.mktemp("ours") / "lives.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    # All options are right equally often, so the right ones of the test items are a little rarer in
    # the training items. The more folds, the more this pulls `most_frequent` below chance.
    return shortcut_table(read_items(path), folds=2)


@pytest.mark.slow
@pytest.mark.parametrize("task", ASPECTS)
def test_no_surface_baseline_is_three_points_off_chance(task, table):
    rows = table[table["task"] == task]
    differences = (rows["accuracy"] - rows["chance"]).round(3)
    by_baseline = dict(zip(rows["baseline"], differences, strict=True))
    assert len(by_baseline) == len(BASELINES)
    assert {name: by for name, by in by_baseline.items() if abs(by) > 0.03} == {}
