"""What a question is: a moment, words, options, its evidence, and what a reasoner must find to answer it (Table 5)."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

ASPECTS = {
    "Visual Detail Recall": "Memory",
    "Semantic Information Recall": "Memory",
    "Explicit Intent Inference": "Intent",
    "Implicit Intent Recognition": "Intent",
    "Latest Preference Recognition": "Preference",
    "Interest Evolution Analysis": "Preference",
    "Implicit Preference Recommendation": "Preference",
    "Behavioral Pattern Recognition": "Behavior",
    "Long-term Goal Tracking": "Behavior",
    "Relationship Recognition": "Relationship",
    "Relationship Dynamics Comprehension": "Relationship",
    "Tiered Explanation Delivery": "Growth",
    "Generalizing to New Scenarios": "Growth",
    "Personality Alignment": "Alignment",
}


@dataclass(frozen=True)
class Hop:
    """One thing to find out: where to look, and the sentence that settles it once it has been seen.

    `note` marks one of several that are to be counted: what the reasoner notes of each, its last word what counts.
    """

    keywords: str
    sentence: str
    start: datetime | None = None
    end: datetime | None = None
    note: str = ""


@dataclass(frozen=True)
class Question:
    """An in-situ question. `hops` are what a reasoner must find, in order; empty where the profile suffices.

    `kind` is choice (four options), binary (yes or no) or open (no options); `answer` is the right option's words.
    """

    case: str
    user: str
    task: str
    kind: str
    time: datetime
    text: str
    options: tuple[str, ...]
    answer: str
    evidence: tuple[int, ...]
    hops: tuple[Hop, ...] = ()
    thought: str = ""  # the last reasoning step, which restates the fact that holds the answer
    history: tuple[
        str, ...
    ] = ()  # that fact as it was told from the first value on, where it may have changed

    @property
    def aspect(self) -> str:
        return ASPECTS[self.task]

    @property
    def query(self) -> str:
        """The question as it is put to a model: its text and, where there are any, its lettered options."""
        if not self.options:
            return self.text
        letters = " ".join(f"({'abcd'[i]}) {option}" for i, option in enumerate(self.options))
        return f"{self.text} options {letters}"


_LABEL = re.compile(
    r"\s*(?:[(（]\s*([A-Za-z])\s*[)）]|([A-Za-z])\s*[).:：](?=\s|$)|([A-Za-z])\s*$)"
)


_LATER_LABEL = re.compile(
    r"[(（]\s*([A-Za-z])\s*[)）]|\b(?:answer|option|choice)(?:\s+is|:)?\s+([A-Za-z])\W*$", re.I
)


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
    labels = {
        _letter(mark) for mark in ([first] if first else _LATER_LABEL.finditer(answer))
    } & set(range(len(texts)))
    if labels:
        rest = _words(_LATER_LABEL.sub("", _LABEL.sub("", answer, count=1) if first else answer))
        disputed = len(labels) > 1 or any(
            text == rest and i not in labels for i, text in enumerate(texts) if rest
        )
        return None if disputed else labels.pop()
    inside = [i for i, text in enumerate(texts) if text and _within(text, words)]
    inside = [
        i
        for i in inside
        if not any(texts[i] != texts[j] and _within(texts[i], texts[j]) for j in inside)
    ]
    if not inside and words:
        inside = [
            i
            for i, text in enumerate(texts)
            if _within(words, text) and 2 * len(words) >= len(text)
        ]
    return inside[0] if len(inside) == 1 else None


def _letter(mark: re.Match) -> int:
    return ord(next(filter(None, mark.groups())).lower()) - ord("a")


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def _within(short: list[str], long: list[str]) -> bool:
    """Whether one run of words stands in the other, unbroken."""
    return any(long[i : i + len(short)] == short for i in range(len(long) - len(short) + 1))
