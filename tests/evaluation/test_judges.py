"""The three terms of the reward (Eq. 3), case by case."""

from dataclasses import replace
from datetime import datetime

import pytest

from personavlm_lib.agent.protocol import parse_step
from personavlm_lib.agent.protocol_writer import write_answer, write_retrieve
from personavlm_lib.agent.respond import Response
from personavlm_lib.benchmark.questions import Question
from personavlm_lib.evaluation.judges import accuracy, consistency, grammar

OPTIONS = ("tea", "coffee", "cola", "milk")
CHOICE = Question("c0", "u", "Latest Preference Recognition", "choice", datetime(2024, 4, 1), "what is my drink now ?",
                  OPTIONS, "coffee", (0,), thought="my drink is coffee")  # fmt: skip
OPEN = replace(CHOICE, kind="open", options=())
HIGH, LOW = "my agreeableness high takes warm", "my agreeableness low takes direct"
BINARY = replace(CHOICE, task="Personality Alignment", kind="binary", options=("yes", "no"), answer="yes",
                 text="does a warm reply suit me ?")  # fmt: skip


def response(*texts, unfinished=False):
    steps = [parse_step(text) for text in texts]
    return Response(steps[-1].answer if steps else None, steps, unfinished=unfinished)


@pytest.mark.parametrize(("question", "answer", "right"), [
    (CHOICE, "coffee", 1), (CHOICE, "(b)", 1), (CHOICE, "b", 1), (CHOICE, "(b) coffee", 1), (CHOICE, "Coffee.", 1),
    (CHOICE, "tea", 0), (CHOICE, "(a)", 0), (CHOICE, "(a) coffee", 0), (CHOICE, "tea or coffee", 0), (CHOICE, "", 0),
    (CHOICE, None, 0), (CHOICE, "unknown", 0), (OPEN, "coffee", 1), (OPEN, "Coffee .", 1), (OPEN, "tea", 0),
    (OPEN, "", 0), (OPEN, "(b)", 0), (OPEN, "coffee tea", 0), (BINARY, "yes", 1), (BINARY, "Yes.", 1),
    (BINARY, "no", 0),
])  # fmt: skip
def test_accuracy(question, answer, right):
    assert accuracy(question, answer) == right


@pytest.mark.parametrize(("question", "think", "answer", "borne_out"), [
    (CHOICE, "my drink is coffee", "coffee", 1), (CHOICE, "my drink is coffee", "(b)", 1),
    (CHOICE, "my drink is coffee", "tea", 0), (CHOICE, "my drink is coffee", "(a)", 0), 
    (CHOICE, "unknown", "coffee", 0),
    (CHOICE, "my drink is tea", "tea", 1),  # consistent though wrong
    (OPEN, "my drink is coffee", "coffee", 1), (OPEN, "my drink is coffee", "tea", 0),
    (OPEN, "my drink is coffee", "", 0),
    (BINARY, f"{HIGH} asked warm", "yes", 1), (BINARY, f"{HIGH} asked warm", "no", 0),
    (BINARY, f"{LOW} asked warm", "no", 1), (BINARY, f"{LOW} asked warm", "yes", 0),
    (BINARY, "warm suits me", "yes", 0), (BINARY, "warm suits me", "no", 0),
])  # fmt: skip
def test_consistency(question, think, answer, borne_out):
    assert consistency(question, response(write_answer(think, answer))) == borne_out


def test_consistency_reads_the_last_step_and_needs_an_answer():
    search = write_retrieve("look up my drink", "my drink", quote=False)
    assert consistency(CHOICE, response(search, write_answer("my drink is coffee", "coffee"))) == 1
    assert (
        consistency(
            CHOICE, response(search.replace("look up", "coffee"), write_answer("unknown", "coffee"))
        )
        == 0
    )
    assert consistency(CHOICE, response(search, unfinished=True)) == 0
    assert consistency(CHOICE, Response(None)) == 0
    assert consistency(CHOICE, response("<answer>coffee</answer>")) == 0


def test_grammar():
    search, answer = (
        write_retrieve("look", "my drink", quote=False),
        write_answer("my drink is tea", "tea"),
    )
    assert grammar(response(answer)) == grammar(response(search, search, answer)) == 1
    assert grammar(response(search, unfinished=True)) == 0
    for bad in (
        "tea",
        "<answer>tea</answer>",
        answer + " and more",
        answer.replace("</answer>", ""),
        search + answer,
    ):
        assert grammar(response(bad)) == grammar(response(search, bad)) == 0, bad
    assert grammar(response(bad, answer)) == 0  # a slip in any generation counts
