"""One row per dialogue and per question of a data set (Fig. 8, Table 6)."""

import pandas as pd

from personavlm_lib.benchmark.lives import Life
from personavlm_lib.benchmark.questions import Question
from personavlm_lib.memory.records import split_sessions


def dialogue_table(groups: dict[str, list[Life]]) -> pd.DataFrame:
    """One row per dialogue (Fig. 8).

    Columns: group, user, turns, pictured (turns with a picture), sessions, days (spanned).
    """
    rows = []
    for group, lives in groups.items():
        for life in lives:
            turns = life.turns
            pictured = sum(bool(turn.images) for turn in turns)
            sessions = len(split_sessions(turns))
            first_day = turns[0].time.date()
            last_day = turns[-1].time.date()
            days = (last_day - first_day).days + 1
            rows.append((group, life.user, len(turns), pictured, sessions, days))
    return pd.DataFrame(rows, columns=["group", "user", "turns", "pictured", "sessions", "days"])


def needed_picture(life: Life, question: Question) -> str:
    """The first picture in the gold evidence, without which there is no answer; "" if none.

    Questions about the personality need no picture: the wording of the turns shows it.
    """
    if question.kind == "binary":
        return ""
    for index in question.evidence:
        for picture in life.turns[index].images:
            return picture
    return ""


def question_table(lives: list[Life]) -> pd.DataFrame:
    """One row per question.

    Columns: user, task, aspect, kind, question_words (without the options), answer_words,
    needs_picture.
    """
    rows = []
    for life in lives:
        for question in life.questions:
            question_words = len(question.text.split())
            answer_words = len(question.answer.split())
            needs_picture = bool(needed_picture(life, question))
            labels = (question.user, question.task, question.aspect, question.kind)
            rows.append((*labels, question_words, answer_words, needs_picture))
    columns = "user task aspect kind question_words answer_words needs_picture".split()
    return pd.DataFrame(rows, columns=columns)
