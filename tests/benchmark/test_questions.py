"""Matching of free answers to the options of a question."""

import pytest

from personavlm_lib.benchmark.questions import match_option

COLORS = ["Pink.", "Blue", "Sky blue", "Don't know"]


@pytest.mark.parametrize(
    ("answer", "index"),
    [
        ("(c)", 2),
        ("c", 2),
        ("C.", 2),
        ("(c) Sky blue.", 2),
        ("c) because I said so", 2),
        ("The answer is c.", 2),
        ("pink", 0),
        ("It is PINK!", 0),
        ("pink (a)", 0),
        ("sky   Blue", 2),
        ("blue", 1),
        ("it was sky blue", 2),
        ("dont know", None),
        ("don’t know", 3),
        ("pink or blue", None),
        ("(a) or (b)", 0),
        ("either (a) or (b)", None),
        ("pink (b)", None),
        ("(a) blue", None),
        ("(b) Blue, since you gave up pink", 1),
        ("sky", 2),
        ("(z)", None),
        ("a shade I forgot", None),
        ("", None),
        ("green", None),
    ],
)
def test_answer_matches_an_option_by_label_or_words(answer, index):
    labeled = [f"({letter}) {text}" for letter, text in zip("abcd", COLORS, strict=True)]
    assert match_option(answer, COLORS) == index
    assert match_option(answer, labeled) == index


def test_yes_and_no_match_at_the_beginning_of_an_answer():
    assert match_option("Yes.", ["yes", "no"]) == 0
    assert match_option("No, it is not", ["yes", "no"]) == 1


def test_words_of_an_option_take_precedence_over_labels():
    assert match_option("b", ["b", "a"]) == 0


def test_no_options_match_nothing():
    assert match_option("x", []) is None
