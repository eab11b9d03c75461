"""Our data in the forms of others: Hugging Face Parquet with images, a data card, and the authors' own files.

The authors' formats are their release's: `Persona-MME.json`, a folder per user, and SFT samples as conversations.
They have no place for the evidence of a question and for an alignment pair's own moment: both are written as further
keys, which their code does not read.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import islice, zip_longest
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features, Image, List, Value

from personavlm_lib.benchmark.conversations import read_conversations, write_user_data
from personavlm_lib.benchmark.lives import Life
from personavlm_lib.benchmark.questions import Question
from personavlm_lib.memory.records import Turn

TEXT, TEXTS, IMAGES = Value("string"), List(Value("string")), List(Image())
SFT = Features(
    {"purpose": TEXT, "messages": List({"role": TEXT, "content": TEXT}), "images": IMAGES}
)
TURN = {"time": TEXT, "user": TEXT, "assistant": TEXT, "images": IMAGES}
QUESTION = {
    "case": TEXT,
    "task": TEXT,
    "kind": TEXT,
    "time": TEXT,
    "text": TEXT,
    "options": TEXTS,
    "answer": TEXT,
}
LIVES = Features(
    {
        "user": TEXT,
        "turns": List(TURN),
        "questions": List(QUESTION | {"evidence": List(Value("int32"))}),
    }
)
FOLDER_SIZES = (50, 100, 200, 500)  # of the authors' folders: turns of a dialogue, at most


def write_parquet(path: Path, rows: Iterable[dict], features: Features, batch: int = 500) -> None:
    """Parquet that `datasets` reads as `features`, pictures in it; images in `rows` are paths seen from its folder.

    What `features` do not name is left out.
    """

    def filled(row: dict) -> dict:
        row = row | {key: [filled(one) for one in row[key]] for key in ("turns",) if key in row}
        pictures = [
            {"bytes": (path.parent / name).read_bytes(), "path": name}
            for name in row.get("images", ())
        ]
        return row | ({"images": pictures} if "images" in row else {})

    rows = map(filled, rows)
    with pq.ParquetWriter(path, features.arrow_schema) as writer:
        while chunk := list(islice(rows, batch)):
            writer.write_table(pa.Table.from_pylist(chunk, schema=features.arrow_schema))


def data_card(title: str, tables: dict[str, pd.DataFrame], files: Iterable[str]) -> str:
    """README.md of a data set: one configuration for each Parquet file, then the tables under their headings."""
    configs = [f"- config_name: {Path(name).stem}\n  data_files: {name}" for name in files]
    lines = [
        "---",
        "configs:",
        *configs,
        "---",
        f"# {title}",
        "",
        "The owners of the data choose its licence.",
    ]
    for heading, table in tables.items():
        cells = [
            list(table.columns),
            ["---"] * table.shape[1],
            *table.astype(object).values.tolist(),
        ]
        shown = [
            [f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in row]
            for row in cells
        ]
        lines += ["", f"## {heading}", "", *(f"| {' | '.join(row)} |" for row in shown)]
    return "\n".join(lines) + "\n"


# The authors' formats


@dataclass(frozen=True)
class PublicLife:
    """A life without its plan: what the authors' benchmark holds of a user."""

    user: str
    turns: tuple[Turn, ...]
    questions: tuple[Question, ...]


def public_life(life: Life) -> PublicLife:
    """What of a life the authors' format keeps: not how a question is reasoned out."""
    questions = (
        replace(question, case="", hops=(), thought="", history=()) for question in life.questions
    )
    return PublicLife(
        life.user, life.turns, tuple(sorted(questions, key=lambda q: (q.time, q.kind)))
    )


def export_persona_mme(folder: Path, lives: Iterable[PublicLife]) -> Path:
    """`Persona-MME.json` and `samples/<size>/<number>/user_data.json` with `imgs/`: the path of the first.

    ValueError for a life with more alignment pairs than choice questions: each pair is asked along with one.
    """
    cases, numbers = [], dict.fromkeys(FOLDER_SIZES, 0)
    for life in lives:
        size = next((size for size in FOLDER_SIZES if len(life.turns) <= size), FOLDER_SIZES[-1])
        name, numbers[size] = f"samples/{size}/{numbers[size]}/user_data.json", numbers[size] + 1
        (folder / name).parent.mkdir(parents=True)
        write_user_data(folder / name, life.turns, {"name": life.user})
        binary = [question for question in life.questions if question.kind == "binary"]
        choices = [question for question in life.questions if question.kind == "choice"]
        if len(binary) > 2 * len(choices):
            raise ValueError(
                f"{life.user}: {len(binary) // 2} alignment pairs, {len(choices)} choice questions"
            )
        for asked, first, second in zip_longest(choices, binary[::2], binary[1::2]):
            case = _case(asked) | {"data_path": f"./data/Persona-MME/{name}"}
            if first:
                pair = {
                    "chosen" if q.answer == "yes" else "rejected": q.text for q in (first, second)
                }
                case["alignment"] = pair | {
                    "time": f"{first.time:%Y-%m-%d %H:%M}",
                    "evidence": first.evidence,
                }
            cases.append(case)
    path = folder / "Persona-MME.json"
    path.write_text(json.dumps(cases, ensure_ascii=False, indent=1), encoding="utf-8")
    return path


def _case(question: Question) -> dict:
    choices = {
        f"({letter})": option for letter, option in zip("abcd", question.options, strict=False)
    }
    return {
        "type": question.aspect, "question_type": question.task, "time": f"{question.time:%Y-%m-%d %H:%M}",
        "query": question.text, "choices": choices, "answer": f"({'abcd'[question.options.index(question.answer)]})",
        "evidence": question.evidence,
    }  # fmt: skip


def import_persona_mme(path: Path) -> list[PublicLife]:
    """The users of a `Persona-MME.json` with the questions about them, `samples/` beside it. ValueError, KeyError or
    FileNotFoundError for what is not of the format."""
    asked: dict[str, list[Question]] = {}
    for case in json.loads(path.read_text(encoding="utf-8")):
        name = case["data_path"][case["data_path"].index("samples/") :]
        asked.setdefault(name, []).extend(_questions(case, name))
    lives = []
    for name, questions in asked.items():
        (conversation,) = read_conversations(path.parent / name)
        questions = [replace(question, user=conversation.user) for question in questions]
        questions.sort(key=lambda q: (q.time, q.kind))
        lives.append(PublicLife(conversation.user, tuple(conversation.turns), tuple(questions)))
    return lives


def _questions(case: dict, user: str) -> Iterator[Question]:
    def moment(text: str) -> datetime:
        return datetime.fromisoformat(text.split("(")[0].strip())

    options, time, evidence = (
        tuple(case["choices"].values()),
        moment(case["time"]),
        tuple(case.get("evidence", ())),
    )
    right = case["choices"][case["answer"]]
    yield Question(
        "", user, case["question_type"], "choice", time, case["query"], options, right, evidence
    )
    pair = case.get("alignment") or {}
    for which in filter(("chosen", "rejected").__contains__, pair):
        time, evidence = moment(pair.get("time", case["time"])), tuple(pair.get("evidence", ()))
        fits = "yes" if which == "chosen" else "no"
        text = pair[which]
        yield Question(
            "", user, "Personality Alignment", "binary", time, text, ("yes", "no"), fits, evidence
        )


def as_conversation(sample: dict) -> dict:
    """A recording as the authors' SFT sample; its purpose as a further key."""
    speaker = {"user": "human", "assistant": "gpt"}
    said = [
        {"from": speaker[m["role"]], "value": m["content"].replace("<img>", "<image>")}
        for m in sample["messages"]
    ]
    return {"conversations": said, "image": list(sample["images"]), "purpose": sample["purpose"]}


def from_conversation(sample: dict) -> dict:
    """The authors' SFT sample as a recording."""
    role = {"human": "user", "gpt": "assistant"}
    said = [
        {"role": role[m["from"]], "content": m["value"].replace("<image>", "<img>")}
        for m in sample["conversations"]
    ]
    return {
        "purpose": sample.get("purpose", ""),
        "messages": said,
        "images": list(sample.get("image", [])),
    }
