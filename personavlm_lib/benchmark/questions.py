"""Questions about a user: time, text, options, evidence and the facts to find (Table 5)."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import yaml

_TASKS = yaml.safe_load(Path(__file__).with_name("aspects.yaml").read_text(encoding="utf-8"))
ASPECTS: dict[str, str] = {task: aspect for aspect, tasks in _TASKS.items() for task in tasks}


@dataclass(frozen=True)
class Hop:
    """One fact to find: keywords and period of the search, and the sentence that states the fact.

    `note` is set for facts that the reasoner must count: it writes the note of each fact, and
    counts the last words of the notes.
    """

    keywords: str
    sentence: str
    start: datetime | None = None
    end: datetime | None = None
    note: str = ""


@dataclass(frozen=True)
class Question:
    """A question that the user asks at one moment of the conversation ("in-situ" in the paper).

    `kind` is choice (four options), binary (yes or no) or open (no options); `answer` is the text
    of the right option. `evidence` holds the indices of the turns that the answer follows from.
    `hops` are the facts that a reasoner must find, in order; empty if the profile suffices.
    `thought` is the last reasoning step, which restates the fact that holds the answer. `history`
    holds all statements of that fact from its first value on, if it may have changed.
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
    thought: str = ""
    history: tuple[str, ...] = ()

    @property
    def aspect(self) -> str:
        return ASPECTS[self.task]

    @property
    def query(self) -> str:
        """The text for a model: the question and its lettered options, if any."""
        if not self.options:
            return self.text
        parts = [self.text, "options"]
        for index, option in enumerate(self.options):
            parts.append(f"({'abcd'[index]}) {option}")
        return " ".join(parts)

    def matching_option(self, answer: str) -> int | None:
        """The index of the option that the answer names; see `match_option`."""
        return match_option(answer, self.options)


_LABEL = re.compile(
    r"\s*(?:[(（]\s*([A-Za-z])\s*[)）]|([A-Za-z])\s*[).:：](?=\s|$)|([A-Za-z])\s*$)"
)
_LATER_LABEL = re.compile(
    r"[(（]\s*([A-Za-z])\s*[)）]|\b(?:answer|option|choice)(?:\s+is|:)?\s+([A-Za-z])\W*$", re.I
)
_OPTION_LABEL = re.compile(r"^\s*[(（]\s*[A-Za-z]\s*[)）]")


def match_option(answer: str, options: Sequence[str]) -> int | None:
    """The index of the option that the answer names, by label or by the option's words.

    Labels are `(c)`, `c`, `(c) Pink.` and `Pink (c)`. Words are compared without case and
    punctuation. The first rule that applies decides: the whole answer is one option; it begins with
    a label, or else contains only one; it contains an option (the longest of nested ones); it is at
    least half of one option. None if the answer names no option or several, or a label and the
    exact words of another option.
    """
    texts = [_words(_OPTION_LABEL.sub("", option)) for option in options]
    words = _words(answer)
    exact = [index for index, text in enumerate(texts) if text and text == words]
    if len(exact) == 1:
        return exact[0]
    labels, rest = _labels(answer)
    labels &= set(range(len(texts)))
    if labels:
        rest_words = _words(rest)
        named = {index for index, text in enumerate(texts) if text and text == rest_words}
        disputed = len(labels) > 1 or named - labels
        return None if disputed else labels.pop()
    candidates = _options_within(words, texts)
    if not candidates and words:
        candidates = _options_around(words, texts)
    return candidates[0] if len(candidates) == 1 else None


def _labels(answer: str) -> tuple[set[int], str]:
    """The options whose labels the answer contains, and the answer without these labels.

    If the answer begins with a label, all later labels are ignored.
    """
    first = _LABEL.match(answer)
    if first:
        marks = [first]
        rest = _LABEL.sub("", answer, count=1)
    else:
        marks = list(_LATER_LABEL.finditer(answer))
        rest = answer
    return {_letter_index(mark) for mark in marks}, _LATER_LABEL.sub("", rest)


def _letter_index(mark: re.Match) -> int:
    """0 for a label of the letter a or A."""
    letter = next(filter(None, mark.groups()))
    return ord(letter.lower()) - ord("a")


def _options_within(words: list[str], texts: list[list[str]]) -> list[int]:
    """The options that the answer contains, except those within another one of them."""
    inside = [index for index, text in enumerate(texts) if text and _contains(words, text)]
    longest = []
    for index in inside:
        text = texts[index]
        others = [texts[other] for other in inside if texts[other] != text]
        if not any(_contains(other, text) for other in others):
            longest.append(index)
    return longest


def _options_around(words: list[str], texts: list[list[str]]) -> list[int]:
    """The options that contain the answer as at least half of their words."""
    around = []
    for index, text in enumerate(texts):
        if _contains(text, words) and 2 * len(words) >= len(text):
            around.append(index)
    return around


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def _contains(words: list[str], part: list[str]) -> bool:
    """Whether `part` appears in `words` as an unbroken run."""
    last_start = len(words) - len(part)
    return any(words[i : i + len(part)] == part for i in range(last_start + 1))
