import pytest

from personavlm_lib.benchmark.questions import match_option

COLORS = ["Pink.", "Blue", "Sky blue", "Don't know"]


@pytest.mark.parametrize(
    ("answer", "index"),
    [
        ("(c)", 2), ("c", 2), ("C.", 2), ("(c) Sky blue.", 2), ("c) because I said so", 2), ("The answer is c.", 2),
        ("pink", 0), ("It is PINK!", 0), ("pink (a)", 0), ("sky   Blue", 2), ("blue", 1), ("it was sky blue", 2),
        ("dont know", None), ("don’t know", 3), ("pink or blue", None), ("(a) or (b)", 0), ("either (a) or (b)", None),
        ("pink (b)", None), ("(a) blue", None), ("(b) Blue, since you gave up pink", 1), ("sky", 2), ("(z)", None),
        ("a shade I forgot", None), ("", None), ("green", None),
    ],
)  # fmt: skip
def test_options(answer, index):
    assert match_option(answer, COLORS) == index
    assert (
        match_option(
            answer, [f"({letter}) {text}" for letter, text in zip("abcd", COLORS, strict=True)]
        )
        == index
    )


def test_yes_and_no_and_options_of_one_letter():
    assert (
        match_option("Yes.", ["yes", "no"]) == 0
        and match_option("No, it is not", ["yes", "no"]) == 1
    )
    assert match_option("b", ["b", "a"]) == 0  # its words before its label
    assert match_option("x", []) is None
