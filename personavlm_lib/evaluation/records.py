"""One row per answered question: the only thing that tables, figures and verdicts are made from.

The file is Parquet with a fixed schema taken from the dataclass, so that a run without, say, any retrieval
has the same columns and types as one with many.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

QUESTION = [
    "benchmark",
    "case",
    "kind",
    "seed",
]  # these four name one question; with `condition`, one row


@dataclass
class AnswerRecord:
    """What one condition answered to one question.

    `case` is unique per question within a benchmark: the two items of an alignment case carry two ids.
    `options` stand in the order shown; `gold` and `parsed` are options by their words, and `parsed` is None where no
    answer could be read. `*_turns` are indices of turns in the user's life; `seconds` is wall time.
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


_ARROW = {
    str: pa.string(),
    str | None: pa.string(),
    bool: pa.bool_(),
    int: pa.int64(),
    float: pa.float64(),
    list[str]: pa.list_(pa.string()),
    list[int]: pa.list_(pa.int64()),
}
SCHEMA = pa.schema([(column.name, _ARROW[column.type]) for column in fields(AnswerRecord)])


def write_records(path: Path, records: Iterable[AnswerRecord]) -> None:
    """Write the records as Parquet. ValueError if a condition answers one question twice: pairs would be lost."""
    table = pa.Table.from_pylist([asdict(record) for record in records], schema=SCHEMA)
    key = [*QUESTION, "condition"]
    twice = table.select(key).to_pandas().duplicated()
    if twice.any():
        example = table.select(key).to_pylist()[twice.argmax()]
        raise ValueError(
            f"{int(twice.sum())} questions answered twice by one condition, such as {example}"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)


def load_records(path: Path) -> list[AnswerRecord]:
    """The records of one file, as they were written."""
    return [AnswerRecord(**row) for row in pq.read_table(path).to_pylist()]


def read_records(path: Path) -> pd.DataFrame:
    """The rows of one file, columns as in `AnswerRecord`."""
    return pd.read_parquet(path)
