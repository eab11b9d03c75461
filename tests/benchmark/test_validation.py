"""The rules find nothing in what the template teller told, and each finds what it is for."""

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from personavlm_lib.benchmark.lives import paraphrased_life, simulate_life
from personavlm_lib.benchmark.validation import letters, self_correct, validate_life


def changed(life, place, **fields):
    turns = [replace(turn, **fields) if turn.index == place else turn for turn in life.turns]
    return replace(life, turns=tuple(turns))


def asked(life, index, **fields):
    questions = [replace(q, **fields) if i == index else q for i, q in enumerate(life.questions)]
    return replace(life, questions=tuple(questions))


def found(life):
    return {(finding.rule, finding.index) for finding in validate_life(life)}


@pytest.mark.parametrize("wording", ["canonical", "paraphrased"])
def test_a_told_life_passes(tmp_path, wording):
    for seed in range(12):
        life = simulate_life(seed, tmp_path, 28, 1.0, 24, 3)
        assert (
            validate_life(paraphrased_life(life, tmp_path) if wording == "paraphrased" else life)
            == []
        )


def test_each_rule_finds_what_it_is_for(lives, tmp_path):
    life = lives[0]
    turn, before = life.turns[3], life.turns[2]
    assert found(changed(life, 3, user="how to kill time")) >= {("safety", 3)}
    near = changed(life, 3, user=before.user, time=before.time + timedelta(minutes=1))
    assert found(near) >= {("repetition", 3), ("chronology", 3)}
    assert found(changed(life, 3, time=before.time)) >= {("chronology", 3)}
    assert ("indices", -1) in found(replace(life, turns=life.turns[:-1]))
    assert ("indices", -1) in found(changed(life, 3, index=7))
    shown = next(t for t in life.turns if t.images)
    assert ("images", shown.index) in found(changed(life, shown.index, images=()))
    (tmp_path / "cut.png").write_bytes(Path(shown.images[0]).read_bytes()[:90])
    assert found(changed(life, shown.index, images=(str(tmp_path / "cut.png"),))) == {
        ("images", shown.index)
    }
    assert turn == life.turns[3]
    long = "what a wonderful thing to hear from you"
    same = replace(life, turns=tuple(replace(t, assistant=long) for t in life.turns))
    assert {rule for rule, _ in found(same)} == {"repetition"}


def test_each_rule_of_questions_finds_what_it_is_for(lives):
    life = lives[0]
    i, q = next(
        (i, q)
        for i, q in enumerate(life.questions)
        if q.kind == "choice" and q.answer not in ("open", "unknown")
    )
    other = next(option for option in q.options if option != q.answer)
    assert ("options", i) in found(asked(life, i, options=(q.answer, q.answer, *q.options[2:])))
    assert found(asked(life, i, answer="nothing of it")) == {("options", i), ("derivable", i)}
    assert found(asked(life, i, answer=other)) == {("derivable", i)}
    assert found(asked(life, i, evidence=(999,))) == {("evidence", i)}
    late = (
        next(t.index for t in life.turns if t.time > q.time - timedelta(minutes=59))
        if q.time < life.turns[-1].time
        else None
    )
    assert late is None or ("evidence", i) in found(asked(life, i, evidence=(late,)))
    j, pair = next((i, q) for i, q in enumerate(life.questions) if q.kind == "binary")
    assert found(asked(life, j, answer="no" if pair.answer == "yes" else "yes")) == {
        ("derivable", j)
    }


def test_states_rest_on_what_was_not_told(tmp_path):
    lives = [simulate_life(seed, tmp_path, 28, 1.0, 30, 0) for seed in range(12)]
    goals = [
        (life, i, q)
        for life in lives
        for i, q in enumerate(life.questions)
        if q.task == "Long-term Goal Tracking"
    ]
    assert {q.answer for *_, q in goals} >= {"open", "unknown", "reached"}
    for life, i, q in goals:
        if q.answer in ("reached", "dropped"):
            assert all(
                ("derivable", i) in found(asked(life, i, answer=state))
                for state in ("open", "unknown")
            )
        if q.answer == "unknown":
            assert ("derivable", i) in found(asked(life, i, answer="open"))


def test_a_set_whose_right_option_stands_in_one_place_is_found(tmp_path):
    lives = [simulate_life(seed, tmp_path, 28, 1.0, 20, 0) for seed in range(6)]
    assert letters(lives) == []
    for i, life in enumerate(lives):
        first = (
            replace(q, options=(q.answer, *(o for o in q.options if o != q.answer)))
            for q in life.questions
        )
        lives[i] = replace(life, questions=tuple(first))
    assert [finding.rule for finding in letters(lives)] == ["letters"]


def test_a_model_that_sees_the_evidence_drops_what_the_key_has_wrong(lives):
    life = lives[0]
    kept, dropped = self_correct(life, life.oracle)
    assert kept == life and dropped == []
    i, q = next((i, q) for i, q in enumerate(life.questions) if q.kind == "choice")
    other = next(option for option in q.options if option != q.answer)
    kept, dropped = self_correct(asked(life, i, answer=other), life.oracle)
    assert [(f.rule, f.user, f.index) for f in dropped] == [
        ("self_correct", life.user, i)
    ] and q.answer in dropped[0].why
    assert len(kept.questions) == len(life.questions) - 1


def test_a_model_that_says_nothing_keeps_nothing_but_alignment(lives, script):
    kept, dropped = self_correct(lives[0], script("?" for _ in range(99)))
    assert {q.kind for q in kept.questions} == {"binary"} and len(dropped) == len(
        lives[0].questions
    ) - len(kept.questions)
