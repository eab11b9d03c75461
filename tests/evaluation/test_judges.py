"""Test the three terms of the reward (Eq. 3), case by case."""

from dataclasses import replace
from datetime import datetime

import pytest

from personavlm_lib.agent.protocol import parse_step
from personavlm_lib.agent.protocol_writer import write_answer, write_retrieve
from personavlm_lib.agent.respond import Response
from personavlm_lib.benchmark.questions import Question
from personavlm_lib.evaluation.judges import accuracy, consistency, grammar

CHOICE = Question(
    case="c0",
    user="u",
    task="Latest Preference Recognition",
    kind="choice",
    time=datetime(2024, 4, 1),
    text="what is my drink now ?",
    options=("tea", "coffee", "cola", "milk"),
    answer="coffee",
    evidence=(0,),
    thought="my drink is coffee",
)
OPEN = replace(CHOICE, kind="open", options=())
BINARY = replace(
    CHOICE,
    task="Personality Alignment",
    kind="binary",
    options=("yes", "no"),
    answer="yes",
    text="does a warm reply suit me ?",
)
HIGH = "my agreeableness high takes warm"
LOW = "my agreeableness low takes direct"
SEARCH = write_retrieve("look up my drink", "my drink", quote=False)


def response(*texts, unfinished=False):
    steps = [parse_step(text) for text in texts]
    answer = steps[-1].answer if steps else None
    return Response(answer, steps, unfinished=unfinished)


@pytest.mark.parametrize(
    ("question", "answer", "expected"),
    [
        (CHOICE, "coffee", 1),
        (CHOICE, "(b)", 1),
        (CHOICE, "b", 1),
        (CHOICE, "(b) coffee", 1),
        (CHOICE, "Coffee.", 1),
        (CHOICE, "tea", 0),
        (CHOICE, "(a)", 0),
        (CHOICE, "(a) coffee", 0),
        (CHOICE, "tea or coffee", 0),
        (CHOICE, "", 0),
        (CHOICE, None, 0),
        (CHOICE, "unknown", 0),
        (OPEN, "coffee", 1),
        (OPEN, "Coffee .", 1),
        (OPEN, "tea", 0),
        (OPEN, "", 0),
        (OPEN, "(b)", 0),
        (OPEN, "coffee tea", 0),
        (BINARY, "yes", 1),
        (BINARY, "Yes.", 1),
        (BINARY, "no", 0),
    ],
)
def test_accuracy(question, answer, expected):
    assert accuracy(question, answer) == expected


@pytest.mark.parametrize(
    ("question", "think", "answer", "expected"),
    [
        (CHOICE, "my drink is coffee", "coffee", 1),
        (CHOICE, "my drink is coffee", "(b)", 1),
        (CHOICE, "my drink is coffee", "tea", 0),
        (CHOICE, "my drink is coffee", "(a)", 0),
        (CHOICE, "unknown", "coffee", 0),
        (CHOICE, "my drink is tea", "tea", 1),  # consistent but wrong
        (OPEN, "my drink is coffee", "coffee", 1),
        (OPEN, "my drink is coffee", "tea", 0),
        (OPEN, "my drink is coffee", "", 0),
        (BINARY, f"{HIGH} asked warm", "yes", 1),
        (BINARY, f"{HIGH} asked warm", "no", 0),
        (BINARY, f"{LOW} asked warm", "no", 1),
        (BINARY, f"{LOW} asked warm", "yes", 0),
        (BINARY, "warm suits me", "yes", 0),
        (BINARY, "warm suits me", "no", 0),
    ],
)
def test_consistency(question, think, answer, expected):
    text = write_answer(think, answer)
    assert consistency(question, response(text)) == expected


def test_consistency_reads_the_last_step():
    supported = write_answer("my drink is coffee", "coffee")
    assert consistency(CHOICE, response(SEARCH, supported)) == 1
    search_with_answer = SEARCH.replace("look up", "coffee")
    unsupported = write_answer("unknown", "coffee")
    assert consistency(CHOICE, response(search_with_answer, unsupported)) == 0


def test_consistency_needs_an_answer_and_a_thought():
    assert consistency(CHOICE, response(SEARCH, unfinished=True)) == 0
    assert consistency(CHOICE, Response(None)) == 0
    assert consistency(CHOICE, response("<answer>coffee</answer>")) == 0


def test_grammar_accepts_searches_followed_by_an_answer():
    answer = write_answer("my drink is tea", "tea")
    assert grammar(response(answer)) == 1
    assert grammar(response(SEARCH, SEARCH, answer)) == 1
    assert grammar(response(SEARCH, unfinished=True)) == 0


def test_grammar_rejects_an_error_in_any_generation():
    answer = write_answer("my drink is tea", "tea")
    for bad in (
        "tea",
        "<answer>tea</answer>",
        answer + " and more",
        answer.replace("</answer>", ""),
        SEARCH + answer,
    ):
        assert grammar(response(bad)) == 0, bad
        assert grammar(response(SEARCH, bad)) == 0, bad
        assert grammar(response(bad, answer)) == 0, bad
