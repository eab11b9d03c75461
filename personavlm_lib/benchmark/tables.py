"""One row per dialogue and per question of a data set (Fig. 8, Table 6)."""

import pandas as pd

from personavlm_lib.benchmark.lives import Life
from personavlm_lib.benchmark.questions import Question
from personavlm_lib.memory.records import split_sessions


def dialogue_table(groups: dict[str, list[Life]]) -> pd.DataFrame:
    """One row per dialogue (Fig. 8): group, user, turns, pictured (turns with a picture), sessions, days spanned."""
    rows = [
        (group, life.user, len(turns := life.turns), sum(bool(turn.images) for turn in turns),
         len(split_sessions(turns)), (turns[-1].time.date() - turns[0].time.date()).days + 1)
        for group, lives in groups.items() for life in lives
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=["group", "user", "turns", "pictured", "sessions", "days"])


def needed_picture(life: Life, question: Question) -> str:
    """The first picture among the gold evidence, without which there is no answer.

    None for the personality, which shows in how the turns are worded.
    """
    pictures = [path for i in question.evidence for path in life.turns[i].images]
    return pictures[0] if pictures and question.kind != "binary" else ""


def question_table(lives: list[Life]) -> pd.DataFrame:
    """One row per question: user, task, aspect, kind, its words and its answer's (options aside), needs_picture."""
    rows = [
        (q.user, q.task, q.aspect, q.kind, len(q.text.split()), len(q.answer.split()), bool(needed_picture(life, q)))
        for life in lives for q in life.questions
    ]  # fmt: skip
    return pd.DataFrame(
        rows, columns="user task aspect kind question_words answer_words needs_picture".split()
    )
