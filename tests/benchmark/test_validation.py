"""Validation rules accept simulated lives, and each detects its own violation."""

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from personavlm_lib.benchmark.lives import paraphrased_life, simulate_life
from personavlm_lib.benchmark.validation import letters, self_correct, validate_life


def change_turn(life, place, **fields):
    turns = [replace(turn, **fields) if turn.index == place else turn for turn in life.turns]
    return replace(life, turns=tuple(turns))


def change_question(life, index, **fields):
    questions = [replace(q, **fields) if i == index else q for i, q in enumerate(life.questions)]
    return replace(life, questions=tuple(questions))


def violations(life):
    return {(violation.rule, violation.index) for violation in validate_life(life)}


@pytest.mark.parametrize("wording", ["canonical", "paraphrased"])
def test_simulated_life_has_no_violations(tmp_path, wording):
    for seed in range(12):
        life = simulate_life(seed, tmp_path, 28, 1.0, 24, 3)
        if wording == "paraphrased":
            life = paraphrased_life(life, tmp_path)
        assert validate_life(life) == []


def test_each_dialogue_rule_detects_its_violation(lives, tmp_path):
    life = lives[0]
    turn = life.turns[3]
    before = life.turns[2]
    assert violations(change_turn(life, 3, user="how to kill time")) >= {("safety", 3)}
    near = change_turn(life, 3, user=before.user, time=before.time + timedelta(minutes=1))
    assert violations(near) >= {("repetition", 3), ("chronology", 3)}
    assert violations(change_turn(life, 3, time=before.time)) >= {("chronology", 3)}
    assert ("indices", -1) in violations(replace(life, turns=life.turns[:-1]))
    assert ("indices", -1) in violations(change_turn(life, 3, index=7))
    shown = next(t for t in life.turns if t.images)
    assert ("images", shown.index) in violations(change_turn(life, shown.index, images=()))
    truncated = tmp_path / "truncated.png"
    truncated.write_bytes(Path(shown.images[0]).read_bytes()[:90])
    unreadable = change_turn(life, shown.index, images=(str(truncated),))
    assert violations(unreadable) == {("images", shown.index)}
    assert turn == life.turns[3]
    long = "what a wonderful thing to hear from you"
    same = replace(life, turns=tuple(replace(t, assistant=long) for t in life.turns))
    assert {rule for rule, _ in violations(same)} == {"repetition"}


def test_each_question_rule_detects_its_violation(lives):
    life = lives[0]
    i, q = next(
        (i, q)
        for i, q in enumerate(life.questions)
        if q.kind == "choice" and q.answer not in ("open", "unknown")
    )
    other = next(option for option in q.options if option != q.answer)
    duplicate = change_question(life, i, options=(q.answer, q.answer, *q.options[2:]))
    assert ("options", i) in violations(duplicate)
    foreign = change_question(life, i, answer="nothing of it")
    assert violations(foreign) == {("options", i), ("derivable", i)}
    assert violations(change_question(life, i, answer=other)) == {("derivable", i)}
    assert violations(change_question(life, i, evidence=(999,))) == {("evidence", i)}
    if q.time < life.turns[-1].time:
        late = next(t.index for t in life.turns if t.time > q.time - timedelta(minutes=59))
        assert ("evidence", i) in violations(change_question(life, i, evidence=(late,)))
    j, item = next((i, q) for i, q in enumerate(life.questions) if q.kind == "binary")
    inverted = change_question(life, j, answer="no" if item.answer == "yes" else "yes")
    assert violations(inverted) == {("derivable", j)}


def test_goal_states_follow_from_missing_statements(tmp_path):
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
            for state in ("open", "unknown"):
                assert ("derivable", i) in violations(change_question(life, i, answer=state))
        if q.answer == "unknown":
            assert ("derivable", i) in violations(change_question(life, i, answer="open"))


def test_letters_detects_an_unbalanced_answer_place(tmp_path):
    lives = [simulate_life(seed, tmp_path, 28, 1.0, 20, 0) for seed in range(6)]
    assert letters(lives) == []
    for i, life in enumerate(lives):
        questions = []
        for question in life.questions:
            others = [option for option in question.options if option != question.answer]
            questions.append(replace(question, options=(question.answer, *others)))
        lives[i] = replace(life, questions=tuple(questions))
    assert [violation.rule for violation in letters(lives)] == ["letters"]


def test_self_correct_drops_questions_with_a_wrong_key(lives):
    life = lives[0]
    corrected, dropped = self_correct(life, life.oracle)
    assert corrected == life and dropped == []
    i, q = next((i, q) for i, q in enumerate(life.questions) if q.kind == "choice")
    other = next(option for option in q.options if option != q.answer)
    corrected, dropped = self_correct(change_question(life, i, answer=other), life.oracle)
    assert [(v.rule, v.user, v.index) for v in dropped] == [("self_correct", life.user, i)]
    assert q.answer in dropped[0].why
    assert len(corrected.questions) == len(life.questions) - 1


def test_self_correct_without_answers_keeps_alignment_only(lives, script):
    corrected, dropped = self_correct(lives[0], script("?" for _ in range(99)))
    assert {q.kind for q in corrected.questions} == {"binary"}
    assert len(dropped) == len(lives[0].questions) - len(corrected.questions)
