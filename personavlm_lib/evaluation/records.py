"""Answer records: one row per answered question, the only source of tables, figures and verdicts.

The file is Parquet. Its schema is fixed by the dataclass, so that it does not depend on the data: a
run without any retrieval has the same columns and types as one with many.
"""

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
    the user's life. `seconds` is wall time.
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
    correct: bool
    retrieved_ids: list[str] = field(default_factory=list)
    retrieved_turns: list[int] = field(default_factory=list)
    evidence_turns: list[int] = field(default_factory=list)
    steps: int = 0
    retrievals: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    seconds: float = 0.0


_ARROW_TYPES: dict[Any, pa.DataType] = {
    str: pa.string(),
    str | None: pa.string(),
    bool: pa.bool_(),
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


def load_records(path: Path) -> list[AnswerRecord]:
    """Read the records of one file as dataclass instances."""
    return [AnswerRecord(**row) for row in pq.read_table(path).to_pylist()]


def read_records(path: Path) -> pd.DataFrame:
    """Read the records of one file as a frame, with the columns of `AnswerRecord`."""
    return pd.read_parquet(path)
