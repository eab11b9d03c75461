"""Human review, the last stage of validation (paper, appendix C and D): accept, edit or drop, one key for each item.

Every verdict is a line of an append-only JSON Lines file as soon as it is given, so a review goes on where it stopped,
and several people may share one file: of each reviewer's verdicts on an item the last counts.
"""

import html
import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import ipywidgets
import pandas as pd
from sklearn.metrics import cohen_kappa_score

from personavlm_lib.benchmark.lives import Life
from personavlm_lib.benchmark.questions import Question
from personavlm_lib.study.explorer import thumbnail

KEYS = {"a": "accept", "e": "edit", "d": "drop"}


def record_decision(path: Path, reviewer: str, case: str, verdict: str, **changes: str) -> None:
    """Adds a verdict; of an edit, `changes` are the question's new `text` and `answer`."""
    if verdict not in KEYS.values() or not reviewer.strip():
        raise ValueError(
            f"{reviewer!r} says {verdict!r}: a named reviewer says {', '.join(KEYS.values())}"
        )
    with open(path, "a", encoding="utf-8") as file:
        file.write(
            json.dumps(dict(reviewer=reviewer.strip(), case=case, verdict=verdict, changes=changes))
            + "\n"
        )


def read_decisions(path: Path) -> pd.DataFrame:
    """The last verdict of each reviewer on each item: reviewer, case, verdict, changes; empty where none is given."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    found = pd.DataFrame(map(json.loads, lines), columns=["reviewer", "case", "verdict", "changes"])
    return found.drop_duplicates(["reviewer", "case"], keep="last", ignore_index=True)


def agreement(given: pd.DataFrame) -> pd.DataFrame:
    """For each two reviewers: items that both judged, percent judged alike, Cohen's kappa (nan: one verdict alone)."""
    wide, rows = given.pivot(index="case", columns="reviewer", values="verdict"), []
    for one, other in combinations(wide.columns, 2):
        both = wide[[one, other]].dropna()
        alike = 100 * (both[one] == both[other]).mean()
        kappa = (
            cohen_kappa_score(both[one], both[other])
            if both.stack().nunique() > 1
            else float("nan")
        )
        rows.append((one, other, len(both), alike, kappa))
    return pd.DataFrame(rows, columns=["reviewer", "other", "n", "percent", "kappa"])


def reviewed(lives: Iterable[Life], given: pd.DataFrame) -> list[Life]:
    """The lives with the edits, and without the questions that anyone dropped or two edited differently."""
    edits = given[given["verdict"] == "edit"].groupby("case")["changes"].agg(list)
    gone = {
        *given[given["verdict"] == "drop"]["case"],
        *(case for case, all_ in edits.items() if all_[1:] != all_[:-1]),
    }
    kept = lambda life: (
        replace(q, **edits.get(q.case, [{}])[0]) for q in life.questions if q.case not in gone
    )  # noqa: E731
    return [replace(life, questions=tuple(kept(life))) for life in lives]


def page(life: Life, question: Question) -> str:
    """One item as HTML: the question, its options with the right one in bold, and the evidence with its pictures."""
    named = ((html.escape(option), option == question.answer) for option in question.options)
    options = "".join(
        f"<li>{f'<b>{option}</b>' if right else option}</li>" for option, right in named
    )
    shown = "".join(_turn(life, index) for index in question.evidence)
    return f"<h4>{question.task}, {question.time}</h4><p>{html.escape(question.text)}</p><ol>{options}</ol>{shown}"


def _turn(life: Life, index: int) -> str:
    turn = life.turns[index]
    pictures = "".join(f'<img src="{thumbnail(path)}">' for path in turn.images)
    return f"<p>{turn.time} user: {html.escape(turn.user)} assistant: {html.escape(turn.assistant)}{pictures}</p>"


def review(path: Path, lives: list[Life], reviewer: str) -> ipywidgets.VBox:
    """Items that `reviewer` has not judged, one at a time: `a` accepts, `d` drops, `e` opens the question and its key,
    which are saved with Enter or the button."""
    given = read_decisions(path)
    judged = set(given[given["reviewer"] == reviewer]["case"])
    waiting: Iterator = (
        (life, q) for life in lives for q in life.questions if q.case not in judged
    )
    shown, key = (
        ipywidgets.HTML(),
        ipywidgets.Text(placeholder="a accept, e edit, d drop", continuous_update=True),
    )
    text, answer = ipywidgets.Text(description="text"), ipywidgets.Dropdown(description="key")
    save = ipywidgets.Button(description="save")
    fields, now = ipywidgets.HBox([text, answer, save]), {}

    def following() -> None:
        life, question = now["item"] = next(waiting, (None, None))
        shown.value = page(life, question) if question else "<b>All is reviewed.</b>"
        fields.layout.display = "none"

    def decide(verdict: str, **changes: str) -> None:
        record_decision(path, reviewer, now["item"][1].case, verdict, **changes)
        following()

    def pressed(change: dict) -> None:
        verdict, question = KEYS.get(change["new"]), now["item"][1]
        key.value = ""
        if question and verdict == "edit":
            text.value, answer.options, answer.value = (
                question.text,
                question.options,
                question.answer,
            )
            fields.layout.display = ""
        elif question and verdict:
            decide(verdict)

    key.observe(pressed, "value")
    save.on_click(lambda _: decide("edit", text=text.value, answer=answer.value))
    following()
    return ipywidgets.VBox([shown, key, fields])
