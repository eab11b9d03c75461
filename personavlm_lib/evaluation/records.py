"""Answer records: one row per answered question, the only source of tables, figures and verdicts.

The file is Parquet. Its schema is fixed by the dataclass, so that it does not depend on the data: a
run without any retrieval has the same columns and types as one with many.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

# These columns identify a question; together with `condition`, they identify a row.
QUESTION = ["benchmark", "case", "kind", "seed"]


@dataclass
class AnswerRecord:
    """The answer of one condition to one question.

    `case` is unique per question within a benchmark: the two items of an alignment case have two
    ids. `options` are in the order in which the model sees them. `gold` and `parsed` are the words
    of an option; `parsed` is None if no answer could be parsed. `*_turns` are indices of turns in
    the user's life. `seconds` is wall time. `correct` is None if there is no reply: `error` says
    why, and the question is not scored. `stop` is the stop reason of the last reply, `cut` the
    number of turns left out of the prompt because of a small context window.
    """

    run: str
    benchmark: str
    case: str
    user: str
    task: str
    aspect: str
    kind: str  # "choice" (four options) | "alignment" (yes or no to one response)
    condition: str
    model: str
    seed: int
    prompt_set_hash: str
    memory: str  # "gold" | "own" | "none" | "context"
    options: list[str]
    gold: str
    raw: str
    parsed: str | None
    correct: bool | None
    retrieved_ids: list[str] = field(default_factory=list)
    retrieved_turns: list[int] = field(default_factory=list)
    evidence_turns: list[int] = field(default_factory=list)
    steps: int = 0
    retrievals: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    seconds: float = 0.0
    stop: str = ""
    cut: int = 0
    error: str = ""


_ARROW_TYPES: dict[Any, pa.DataType] = {
    str: pa.string(),
    str | None: pa.string(),
    bool | None: pa.bool_(),
    int: pa.int64(),
    float: pa.float64(),
    list[str]: pa.list_(pa.string()),
    list[int]: pa.list_(pa.int64()),
}
SCHEMA = pa.schema([(column.name, _ARROW_TYPES[column.type]) for column in fields(AnswerRecord)])


def write_records(path: Path, records: Iterable[AnswerRecord]) -> None:
    """Write the records as Parquet.

    Raises ValueError if a condition answers a question twice: paired tests need unique answers.
    """
    rows = [asdict(record) for record in records]
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    keys = table.select([*QUESTION, "condition"])
    duplicated = keys.to_pandas().duplicated()
    if duplicated.any():
        count = int(duplicated.sum())
        example = keys.to_pylist()[duplicated.argmax()]
        raise ValueError(f"{count} questions answered twice by one condition, such as {example}")
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)


class AnswerLog:
    """The scored answers of an unfinished condition, in a file with one line each.

    Each answer is written when it is there, so that after a failure only the others are asked
    again. Answers that were made from other inputs (another `key`) are discarded.
    """

    def __init__(self, file: Path, key: str):
        self.file = file
        self.records: dict[str, AnswerRecord] = {}  # by case
        lines = file.read_text(encoding="utf-8").split("\n")[:-1] if file.is_file() else []
        if lines[:1] != [key]:
            lines = [key]
        for line in lines[1:]:
            record = AnswerRecord(**json.loads(line))
            self.records[record.case] = record
        file.parent.mkdir(parents=True, exist_ok=True)
        # Written again without a last line that a crash left incomplete.
        file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")

    def add(self, record: AnswerRecord) -> None:
        self.records[record.case] = record
        with open(self.file, "a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(record)) + "\n")


def load_records(path: Path) -> list[AnswerRecord]:
    """Read the records of one file as dataclass instances."""
    return [AnswerRecord(**row) for row in pq.read_table(path).to_pylist()]


def read_records(path: Path) -> pd.DataFrame:
    """Read the records of one file as a frame, with the columns of `AnswerRecord`.

    If questions are unscored, `correct` is 1, 0 or nan instead of a bool.
    """
    frame = pd.read_parquet(path)
    if frame["correct"].isna().any():
        frame["correct"] = frame["correct"].astype(float)
    return frame
