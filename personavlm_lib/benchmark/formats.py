"""Data sets in public formats: Hugging Face Parquet with images, data cards, the authors' files.

The authors' formats are those of their release: `Persona-MME.json`, a folder per user, and SFT
samples as conversations. They have no field for a question's evidence or for the time of an
alignment pair: both are written as additional keys, which the authors' code ignores.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features, Image, List, Value
from jinja2 import Template

from personavlm_lib.benchmark.conversations import parse_time, read_conversations, write_user_data
from personavlm_lib.benchmark.lives import Life
from personavlm_lib.benchmark.questions import Question
from personavlm_lib.memory.records import Turn

TEXT = Value("string")
TEXTS = List(Value("string"))
IMAGES = List(Image())
SFT = Features(
    {"purpose": TEXT, "messages": List({"role": TEXT, "content": TEXT}), "images": IMAGES}
)
TURN = {"time": TEXT, "user": TEXT, "assistant": TEXT, "images": IMAGES}
QUESTION = dict.fromkeys(("case", "task", "kind", "time", "text", "options", "answer"), TEXT)
QUESTION["options"] = TEXTS
LIVES = Features(
    {
        "user": TEXT,
        "turns": List(TURN),
        "questions": List(QUESTION | {"evidence": List(Value("int32"))}),
    }
)
FOLDER_SIZES = (50, 100, 200, 500)  # maximum turns of a dialogue in each of the authors' folders


def write_parquet(path: Path, rows: Iterable[dict], features: Features, batch: int = 500) -> None:
    """Write Parquet that `datasets` reads as `features`, with the pictures embedded.

    Images in `rows` are paths relative to the folder of `path`. Keys that `features` does not name
    are dropped.
    """
    loaded = (_with_picture_bytes(row, path.parent) for row in rows)
    schema = features.arrow_schema
    with pq.ParquetWriter(path, schema) as writer:
        while chunk := list(islice(loaded, batch)):
            table = pa.Table.from_pylist(chunk, schema=schema)
            writer.write_table(table)


def _with_picture_bytes(row: dict, folder: Path) -> dict:
    """A copy of a row, or of a turn in a row, with the contents of its pictures."""
    row = dict(row)
    if "turns" in row:
        row["turns"] = [_with_picture_bytes(turn, folder) for turn in row["turns"]]
    if "images" in row:
        pictures = []
        for name in row["images"]:
            pictures.append({"bytes": (folder / name).read_bytes(), "path": name})
        row["images"] = pictures
    return row


def data_card(title: str, tables: dict[str, pd.DataFrame], files: Iterable[str]) -> str:
    """The README.md of a data set: a configuration per Parquet file, then tables with headings."""
    template = Path(__file__).with_name("data_card.md.j2").read_text(encoding="utf-8")
    configurations = {Path(file).stem: file for file in files}
    card = Template(template, trim_blocks=True, keep_trailing_newline=True)
    return card.render(title=title, tables=tables, configurations=configurations)


# The authors' formats


@dataclass(frozen=True)
class PublicLife:
    """A user's turns and questions, as in the authors' benchmark: a life without its plan."""

    user: str
    turns: tuple[Turn, ...]
    questions: tuple[Question, ...]


def public_life(life: Life) -> PublicLife:
    """The part of a life that the authors' format holds, without the reasoning to an answer."""
    questions = []
    for question in life.questions:
        questions.append(replace(question, case="", hops=(), thought="", history=()))
    return PublicLife(life.user, life.turns, _sorted_questions(questions))


def _sorted_questions(questions: list[Question]) -> tuple[Question, ...]:
    return tuple(sorted(questions, key=lambda question: (question.time, question.kind)))


def export_persona_mme(folder: Path, lives: Iterable[PublicLife]) -> Path:
    """Write `Persona-MME.json` and `samples/<size>/<number>/user_data.json` with `imgs/`.

    Returns the path of `Persona-MME.json`. Raises ValueError for a life with more alignment pairs
    than choice questions, since each pair is stored with a choice question.
    """
    cases = []
    folder_counts = dict.fromkeys(FOLDER_SIZES, 0)
    for life in lives:
        size = _folder_size(len(life.turns))
        name = f"samples/{size}/{folder_counts[size]}/user_data.json"
        folder_counts[size] += 1
        (folder / name).parent.mkdir(parents=True)
        write_user_data(folder / name, life.turns, {"name": life.user})
        cases += _cases(life, f"./data/Persona-MME/{name}")
    path = folder / "Persona-MME.json"
    path.write_text(json.dumps(cases, ensure_ascii=False, indent=1), encoding="utf-8")
    return path


def _folder_size(turns: int) -> int:
    for size in FOLDER_SIZES:
        if turns <= size:
            return size
    return FOLDER_SIZES[-1]


def _cases(life: PublicLife, data_path: str) -> list[dict]:
    """One case per choice question; the first cases also hold one alignment pair each."""
    choices = [question for question in life.questions if question.kind == "choice"]
    binary = [question for question in life.questions if question.kind == "binary"]
    pairs = list(zip(binary[::2], binary[1::2], strict=True))
    if len(pairs) > len(choices):
        raise ValueError(
            f"{life.user}: {len(pairs)} alignment pairs, {len(choices)} choice questions"
        )
    cases = []
    for question in choices:
        case = _case(question)
        case["data_path"] = data_path
        cases.append(case)
    for case, (first, second) in zip(cases, pairs, strict=False):
        case["alignment"] = _alignment(first, second)
    return cases


def _case(question: Question) -> dict:
    choices = {}
    for letter, option in zip("abcd", question.options, strict=False):
        choices[f"({letter})"] = option
    right = "abcd"[question.options.index(question.answer)]
    return {
        "type": question.aspect,
        "question_type": question.task,
        "time": f"{question.time:%Y-%m-%d %H:%M}",
        "query": question.text,
        "choices": choices,
        "answer": f"({right})",
        "evidence": question.evidence,
    }


def _alignment(first: Question, second: Question) -> dict:
    """The two binary questions of a pair: the style that suits the user, and the opposite style."""
    pair = {}
    for question in (first, second):
        role = "chosen" if question.answer == "yes" else "rejected"
        pair[role] = question.text
    return pair | {"time": f"{first.time:%Y-%m-%d %H:%M}", "evidence": first.evidence}


def import_persona_mme(path: Path) -> list[PublicLife]:
    """Read the users and questions of a `Persona-MME.json` with `samples/` beside it.

    Raises ValueError, KeyError or FileNotFoundError if the files do not have this format.
    """
    by_file: dict[str, list[Question]] = {}
    for case in json.loads(path.read_text(encoding="utf-8")):
        data_path = case["data_path"]
        name = data_path[data_path.index("samples/") :]
        questions = by_file.setdefault(name, [])
        questions += _questions(case)
    lives = []
    for name, questions in by_file.items():
        (conversation,) = read_conversations(path.parent / name)
        user = conversation.user
        questions = [replace(question, user=user) for question in questions]
        lives.append(PublicLife(user, tuple(conversation.turns), _sorted_questions(questions)))
    return lives


def _questions(case: dict) -> list[Question]:
    """The choice question of a case, then the binary questions of its alignment pair, if any."""
    questions = [_choice_question(case)]
    for role in case.get("alignment") or {}:
        if role in ("chosen", "rejected"):
            questions.append(_binary_question(case, role))
    return questions


def _choice_question(case: dict) -> Question:
    choices = case["choices"]
    return Question(
        case="",
        user="",
        task=case["question_type"],
        kind="choice",
        time=parse_time(case["time"]),
        text=case["query"],
        options=tuple(choices.values()),
        answer=choices[case["answer"]],
        evidence=tuple(case.get("evidence", ())),
    )


def _binary_question(case: dict, role: str) -> Question:
    pair = case["alignment"]
    return Question(
        case="",
        user="",
        task="Personality Alignment",
        kind="binary",
        time=parse_time(pair.get("time", case["time"])),
        text=pair[role],
        options=("yes", "no"),
        answer="yes" if role == "chosen" else "no",
        evidence=tuple(pair.get("evidence", ())),
    )


def as_conversation(sample: dict) -> dict:
    """Convert a recording to the authors' SFT format, with its purpose as an additional key."""
    speakers = {"user": "human", "assistant": "gpt"}
    conversation = []
    for message in sample["messages"]:
        text = message["content"].replace("<img>", "<image>")
        conversation.append({"from": speakers[message["role"]], "value": text})
    return {
        "conversations": conversation,
        "image": list(sample["images"]),
        "purpose": sample["purpose"],
    }


def from_conversation(sample: dict) -> dict:
    """Convert a sample in the authors' SFT format to a recording."""
    roles = {"human": "user", "gpt": "assistant"}
    messages = []
    for message in sample["conversations"]:
        text = message["value"].replace("<image>", "<img>")
        messages.append({"role": roles[message["from"]], "content": text})
    return {
        "purpose": sample.get("purpose", ""),
        "messages": messages,
        "images": list(sample.get("image", [])),
    }
