"""Human review, the last stage of validation (paper, appendices C and D).

A reviewer accepts, edits or drops each item with one key. Every decision is appended at once to a
JSON Lines file, so that an interrupted review can be resumed, and several reviewers may share one
file. The last decision of each reviewer on an item counts.
"""

import json
from collections.abc import Iterable
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import ipywidgets
import pandas as pd
from sklearn.metrics import cohen_kappa_score

from personavlm_lib.benchmark.lives import Life
from personavlm_lib.benchmark.questions import Question
from personavlm_lib.study.explorer import thumbnail
from personavlm_lib.study.templates import render

DECISIONS = {"a": "accept", "e": "edit", "d": "drop"}  # by key


def record_decision(path: Path, reviewer: str, case: str, decision: str, **changes: str) -> None:
    """Append a decision; for an edit, `changes` are the question's new `text` and `answer`.

    Raises ValueError for an unknown decision or a reviewer without a name.
    """
    if not reviewer.strip():
        raise ValueError(f"the reviewer is {reviewer!r}: pass a name")
    if decision not in DECISIONS.values():
        choices = ", ".join(DECISIONS.values())
        raise ValueError(f"{reviewer!r} decided {decision!r}; choose one of {choices}")
    # the file calls a decision `verdict`, so that reviews of earlier versions can be read
    row = dict(reviewer=reviewer.strip(), case=case, verdict=decision, changes=changes)
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def read_decisions(path: Path) -> pd.DataFrame:
    """Read the last decision of each reviewer on each item: reviewer, case, decision, changes.

    The frame is empty if the file does not exist.
    """
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    rows = [json.loads(line) for line in lines]
    decisions = pd.DataFrame(rows, columns=["reviewer", "case", "verdict", "changes"])
    decisions = decisions.rename(columns={"verdict": "decision"})
    return decisions.drop_duplicates(["reviewer", "case"], keep="last", ignore_index=True)


def agreement(decisions: pd.DataFrame) -> pd.DataFrame:
    """Agreement of each two reviewers: items that both decided, percent agreed, Cohen's kappa.

    Kappa is nan where only one decision occurs.
    """
    wide = decisions.pivot(index="case", columns="reviewer", values="decision")
    rows = []
    for reviewer, other in combinations(wide.columns, 2):
        both = wide[[reviewer, other]].dropna()
        first = both[reviewer]
        second = both[other]
        percent = 100 * (first == second).mean()
        kappa = float("nan")
        if both.stack().nunique() > 1:
            kappa = cohen_kappa_score(first, second)
        rows.append((reviewer, other, len(both), percent, kappa))
    return pd.DataFrame(rows, columns=["reviewer", "other", "n", "percent", "kappa"])


def apply_decisions(lives: Iterable[Life], decisions: pd.DataFrame) -> list[Life]:
    """Return the lives with all edits applied and the rejected questions removed.

    A question is rejected if a reviewer dropped it, or if two edited it differently.
    """
    edits: dict[str, dict] = {}
    rejected: set[str] = set()
    for row in decisions.itertuples():
        if row.decision == "drop":
            rejected.add(row.case)
        elif row.decision == "edit":
            if edits.setdefault(row.case, row.changes) != row.changes:
                rejected.add(row.case)
    return [_apply_to_life(life, edits, rejected) for life in lives]


def _apply_to_life(life: Life, edits: dict[str, dict], rejected: set[str]) -> Life:
    questions = []
    for question in life.questions:
        if question.case not in rejected:
            changes = edits.get(question.case, {})
            questions.append(replace(question, **changes))
    return replace(life, questions=tuple(questions))


def item_html(life: Life, question: Question) -> str:
    """One item as HTML: the question, its options, the correct one in bold, and its evidence."""
    return render("review.html.j2", life=life, question=question, thumbnail=thumbnail)


def review(path: Path, lives: list[Life], reviewer: str) -> ipywidgets.VBox:
    """A widget that shows one by one the items without a decision of `reviewer`.

    Key `a` accepts and `d` drops an item; `e` opens its text and correct answer for editing, saved
    with the button.
    """
    return _ReviewWidget(path, lives, reviewer).box


class _ReviewWidget:
    """The widgets of a review and the item that they show."""

    def __init__(self, path: Path, lives: list[Life], reviewer: str):
        self.path = path
        self.reviewer = reviewer
        decisions = read_decisions(path)
        decided = set(decisions[decisions["reviewer"] == reviewer]["case"])
        pending = []
        for life in lives:
            for question in life.questions:
                if question.case not in decided:
                    pending.append((life, question))
        self.pending = iter(pending)
        self.question: Question | None = None

        self.display = ipywidgets.HTML()
        self.key = ipywidgets.Text(placeholder="a accept, e edit, d drop", continuous_update=True)
        self.text = ipywidgets.Text(description="text")
        self.answer = ipywidgets.Dropdown(description="answer")
        save = ipywidgets.Button(description="save")
        self.fields = ipywidgets.HBox([self.text, self.answer, save])
        self.box = ipywidgets.VBox([self.display, self.key, self.fields])
        self.key.observe(self._on_key, "value")
        save.on_click(self._on_save)
        self._show_next()

    def _show_next(self) -> None:
        self.fields.layout.display = "none"
        item = next(self.pending, None)
        if item is None:
            self.question = None
            self.display.value = "<b>All items are reviewed.</b>"
        else:
            life, self.question = item
            self.display.value = item_html(life, self.question)

    def _on_key(self, change: dict) -> None:
        decision = DECISIONS.get(change["new"])
        self.key.value = ""
        if self.question is None or decision is None:
            return
        if decision == "edit":
            self._open_fields(self.question)
        else:
            self._decide(decision)

    def _open_fields(self, question: Question) -> None:
        self.text.value = question.text
        self.answer.options = question.options
        self.answer.value = question.answer
        self.fields.layout.display = ""

    def _on_save(self, _: ipywidgets.Button) -> None:
        self._decide("edit", text=self.text.value, answer=self.answer.value)

    def _decide(self, decision: str, **changes: str) -> None:
        assert self.question is not None
        record_decision(self.path, self.reviewer, self.question.case, decision, **changes)
        self._show_next()
