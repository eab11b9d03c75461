"""What a question is: a moment, words, options, its evidence, and what a reasoner must find to answer it (Table 5)."""

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
    told: tuple[str, ...] = ()  # that fact as it was told from the first value on, where it may have changed

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
