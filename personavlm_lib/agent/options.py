"""Which of the options an answer names, by its label or by the option's words."""

import re
from collections.abc import Sequence

_LABEL = re.compile(r"\s*(?:[(（]\s*([A-Za-z])\s*[)）]|([A-Za-z])\s*[).:：](?=\s|$)|([A-Za-z])\s*$)")
_LATER_LABEL = re.compile(r"[(（]\s*([A-Za-z])\s*[)）]|\b(?:answer|option|choice)(?:\s+is|:)?\s+([A-Za-z])\W*$", re.I)


def match_option(answer: str, options: Sequence[str]) -> int | None:
    """Which of `options` the answer names, by label (`(c)`, `c`, `(c) Pink.`, `Pink (c)`) or by the option's words.

    Words are compared without case and punctuation: the whole answer first, then the label it begins with or else the
    only one in it, then an option found within the answer (of nested ones the longest), then an answer that is at
    least half of one option. None where it names none, several, or a label and the exact words of another option.
    """
    texts = [_words(re.sub(r"^\s*[(（]\s*[A-Za-z]\s*[)）]", "", option)) for option in options]
    words = _words(answer)
    exact = [i for i, text in enumerate(texts) if text and text == words]
    if len(exact) == 1:
        return exact[0]
    first = _LABEL.match(answer)
    labels = {_letter(mark) for mark in ([first] if first else _LATER_LABEL.finditer(answer))} & set(range(len(texts)))
    if labels:
        rest = _words(_LATER_LABEL.sub("", _LABEL.sub("", answer, count=1) if first else answer))
        disputed = len(labels) > 1 or any(text == rest and i not in labels for i, text in enumerate(texts) if rest)
        return None if disputed else labels.pop()
    inside = [i for i, text in enumerate(texts) if text and _within(text, words)]
    inside = [i for i in inside if not any(texts[i] != texts[j] and _within(texts[i], texts[j]) for j in inside)]
    if not inside and words:
        inside = [i for i, text in enumerate(texts) if _within(words, text) and 2 * len(words) >= len(text)]
    return inside[0] if len(inside) == 1 else None


def _letter(mark: re.Match) -> int:
    return ord(next(filter(None, mark.groups())).lower()) - ord("a")


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def _within(short: list[str], long: list[str]) -> bool:
    """Whether one run of words stands in the other, unbroken."""
    return any(long[i : i + len(short)] == short for i in range(len(long) - len(short) + 1))
