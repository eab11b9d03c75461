"""Check whether the paper's printed numbers are consistent with each other.

The numbers are the tables in `results/paper/`. There are five kinds of check:

- `grim`: a percentage of n questions must be a multiple of 100/n (Brown and Heathers, 2017),
  rounded or truncated to the printed digits. n is printed in the paper or, for Persona-MME, is the
  only number that fits most rows of Tables 1 and 4 (see `fitting_counts`).
- `overall`: recompute the overall score from the aspects and their n.
- `change`: recompute the printed change under an ablation from the two scores.
- `statement`: recompute a number in the text from the table cells that it refers to, and
  propagate the rounding of these cells.
- `chance`: test whether a score on questions with two or four options is significantly below
  chance.
"""

from collections.abc import Iterable, Iterator
from math import floor
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import pandas as pd
from scipy.stats import binomtest

TABLES = ("table1", "table2", "table4", "table8", "table9", "table11")
ASPECTS = ["Memory", "Intent", "Preference", "Behavior", "Relationship", "Growth"]
ROW = ["source", "context", "setting", "model"]  # these columns name one row of a printed table
CELL = [*ROW, "column"]
ALL = "all"  # the set of all questions; every score is checked against it
Counts = dict[tuple[str, str], dict[str, int]]
OPERATIONS = {
    "difference": lambda a, b: a - b,
    "ratio": lambda a, b: a / b,
    "percent less": lambda a, b: 100 * (1 - a / b),
    "percent more": lambda a, b: 100 * (a / b - 1),
}


class Check(NamedTuple):
    """One check of one printed number: a row of `audit_tables`."""

    check: str
    table: str
    row: str
    column: str
    printed: str
    recomputed: str
    consistent: bool
    note: str


class Bounds(NamedTuple):
    """A printed value with the range of true values that round to it."""

    value: float
    low: float
    high: float


def read_paper(folder: Path) -> pd.DataFrame:
    """Read all printed cells as text: source, context, setting, model, column, value, change."""
    return pd.concat([_read(folder / f"{name}.csv") for name in TABLES], ignore_index=True)


def read_counts(folder: Path) -> Counts:
    """Read the numbers of questions by (set of questions, context) and column.

    The context is "" where a table has only one.
    """
    counts: Counts = {}
    table = _read(folder / "counts.csv")
    for row in table.itertuples():
        questions = (row.set, row.context)
        columns = counts.setdefault(questions, {})
        columns[row.column] = int(row.n)
    return counts


def _read(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, dtype=str, keep_default_na=False)


def digits(printed: str) -> int:
    """Number of printed decimals: `51.1` -> 1."""
    _, _, decimals = printed.partition(".")
    return len(decimals)


def _unit(printed: str) -> float:
    """The value of one step in the last printed digit: `51.1` -> 0.1."""
    return 10.0 ** -digits(printed)


def grim(printed: str, n: int, decimals: int = 2) -> str:
    """Determine how a percentage of `n` questions can be printed as `printed`.

    Returns "rounded", "cut" (truncated), or "" if no number of right answers gives this percentage.
    """
    value = float(printed)
    unit = 10.0**-decimals
    fewest_right = floor(value * n / 100)
    candidates = range(fewest_right, fewest_right + 3)
    shares = [100 * right / n for right in candidates if right <= n]
    tolerance = unit / 2 + 1e-9
    if any(abs(share - value) <= tolerance for share in shares):
        return "rounded"
    if any(0 <= share - value < unit for share in shares):
        return "cut"
    return ""


def fitting_counts(printed: Iterable[str], most: int, decimals: int = 2) -> list[int]:
    """List the numbers of questions up to `most` that can give every one of these percentages."""
    values = list(printed)
    fitting = []
    for n in range(2, most + 1):
        if all(grim(value, n, decimals) == "rounded" for value in values):
            fitting.append(n)
    return fitting


def audit_tables(folder: Path) -> pd.DataFrame:
    """Run every check on the printed numbers in `folder`: one row per check, as in `Check`."""
    cells = read_paper(folder)
    counts = read_counts(folder)
    statements = _read(folder / "statements.csv")
    checks: list[Check] = []
    checks += _grim_checks(cells, counts)
    checks += _overall_checks(cells, counts)
    checks += _change_checks(cells)
    checks += _chance_checks(cells, counts)
    checks += _statement_checks(cells, statements)
    return pd.DataFrame(checks, columns=list(Check._fields))


def audit_summary(checks: pd.DataFrame) -> pd.DataFrame:
    """Summarize the failed checks, one line per check and table row.

    Columns: check, table, row, checked (number of cells), failed (number of cells), cells, note.
    """
    lines = []
    for (check, table, row), group in checks.groupby(["check", "table", "row"], sort=False):
        failed = group[~group["consistent"]]
        if failed.empty:
            continue
        cells = "; ".join(_describe_failure(cell) for cell in failed.itertuples())
        note = failed["note"].iloc[0]
        lines.append((check, table, row, len(group), len(failed), cells, note))
    columns = ["check", "table", "row", "checked", "failed", "cells", "note"]
    return pd.DataFrame(lines, columns=columns)


def _describe_failure(cell: Any) -> str:
    text = f"{cell.column} {cell.printed}"
    if cell.recomputed:
        text += f" (is {cell.recomputed})"
    return text


def _check(
    kind: str, cell: Any, printed: str, recomputed: str, consistent: bool, note: str
) -> Check:
    """A check of kind `kind` on a printed cell (a row tuple of `read_paper`)."""
    parts = (cell.context, cell.setting, cell.model)
    row = " ".join(part for part in parts if part)
    column = cell.column
    return Check(kind, cell.source, row, column, printed, recomputed, bool(consistent), note)


def _question_count(cell: Any, counts: Counts, questions: str = ALL) -> int | None:
    """Number of questions that a cell refers to, or None if it is not known."""
    column = cell.column
    if column == "Persona-MME alignment":
        column = "PA"
    if cell.source == "Table 4" and column == "Overall":
        column = "Overall with PA"
    columns = counts.get((questions, cell.context), {})
    return columns.get(column)


def _fit(cell: Any, counts: Counts, questions: str) -> str | None:
    """The `grim` result of a cell against a set of questions, or None if its size is not known."""
    n = _question_count(cell, counts, questions)
    if not n:
        return None
    return grim(cell.value, n)


def _grim_checks(cells: pd.DataFrame, counts: Counts) -> Iterator[Check]:
    in_tables = cells["source"].isin(["Table 1", "Table 2", "Table 4", "Table 8"])
    scores = cells[in_tables & (cells["model"] != "Random")]
    question_sets = list(dict.fromkeys(questions for questions, _ in counts))
    for _, row in scores.groupby(ROW, sort=False):
        row_cells = list(row.itertuples())
        fits = {}
        for questions in question_sets:
            fits[questions] = [_fit(cell, counts, questions) for cell in row_cells]
        fitting_sets = [questions for questions in question_sets if _row_fits(fits[questions])]
        for cell, fit in zip(row_cells, fits[ALL], strict=True):
            if fit is None:
                continue
            note = _grim_note(cell, fit, fitting_sets)
            n = _question_count(cell, counts)
            full_note = f"n = {n}; {note}" if note else f"n = {n}"
            yield _check("grim", cell, cell.value, "", fit != "", full_note)


def _row_fits(fits: list[str | None]) -> bool:
    """Whether a row has checked cells and all of them fit."""
    checked = [fit for fit in fits if fit is not None]
    return bool(checked) and "" not in checked


def _grim_note(cell: Any, fit: str, fitting_sets: list[str]) -> str:
    if fit == "rounded":
        return ""
    if fit == "cut":
        return "cut, not rounded"
    if fitting_sets and cell.column != "PERSONAMEM":
        return f"fits the {fitting_sets[0]}"
    return "no share of these questions"


def _overall_checks(cells: pd.DataFrame, counts: Counts) -> Iterator[Check]:
    """Recompute overall scores from their parts.

    Rows with a part that is not a share of the known number of questions are left out.
    """
    for (source, context, *_), row in cells.groupby(ROW, sort=False):
        row_cells = {cell.column: cell for cell in row.itertuples()}
        if source in ("Table 1", "Table 4", "Table 8"):
            parts = ASPECTS
            if source == "Table 4":
                parts = [column for column in row_cells if column != "Overall"]
            values = {part: row_cells[part].value for part in parts}
            total = _pooled_score(values, counts[ALL, context])
            if total is None:
                continue
            cell = row_cells["Overall"]
            good = abs(total - float(cell.value)) < 0.01
            note = "right answers of all parts added"
            yield _check("overall", cell, cell.value, f"{total:.2f}", good, note)
        elif "P-SOUPS Overall" in row_cells:
            yield _psoups_check(row_cells)


def _pooled_score(values: dict[str, str], sizes: dict[str, int]) -> float | None:
    """Percentage of right answers over all parts; None if a part cannot come from its questions."""
    right = 0
    questions = 0
    for part, value in values.items():
        size = sizes[part]
        if not grim(value, size):
            return None
        right += round(float(value) * size / 100)
        questions += size
    return 100 * right / questions


def _psoups_check(row_cells: dict[str, Any]) -> Check:
    columns = ("P-SOUPS Expertise", "P-SOUPS Informativeness", "P-SOUPS Style")
    average = mean(float(row_cells[column].value) for column in columns)
    cell = row_cells["P-SOUPS Overall"]
    error = abs(average - float(cell.value))
    good = error < 1.5 * _unit(cell.value)
    note = "mean of three equal parts"
    return _check("overall", cell, cell.value, f"{average:.2f}", good, note)


def _change_checks(cells: pd.DataFrame) -> Iterator[Check]:
    """Recompute the changes printed beside a score."""
    for cell in cells[cells["change"] != ""].itertuples():
        base = _reference_score(cells, cell)
        change = float(cell.value) - base
        error = abs(change - float(cell.change))
        good = error < 1.5 * _unit(cell.value)
        note = f"{cell.value} - {base:g}"
        yield _check("change", cell, cell.change, f"{change:+.2f}", good, note)


def _reference_score(cells: pd.DataFrame, cell: Any) -> float:
    """The score that a change refers to.

    Tables 8 and 9 compare with the full model, Table 1 with the baseline with RAG.
    """
    same_table = cells[cells["source"] == cell.source]
    same_context = same_table[same_table["context"] == cell.context]
    scores = same_context[same_context["column"] == cell.column]
    if cell.source == "Table 1":
        with_rag = scores[scores["setting"] == "RAG"]
        reference = with_rag[with_rag["model"] == "Qwen2.5-VL-7B"]
    else:
        reference = scores[scores["setting"] == "full"]
    return float(reference["value"].iloc[0])


def _chance_checks(cells: pd.DataFrame, counts: Counts) -> Iterator[Check]:
    """Test scores against chance with an exact one-sided binomial test."""
    for cell in cells.itertuples():
        n = _question_count(cell, counts)
        chance = _chance(cell)
        if not n or chance is None:
            continue
        right = round(float(cell.value) * n / 100)
        p = binomtest(right, n, chance, alternative="less").pvalue
        note = f"chance is {100 * chance:.0f}"
        if p < 0.01:
            note += f"; below it with p = {p:.1g}"
        yield _check("chance", cell, cell.value, "", p >= 0.01, note)


def _chance(cell: Any) -> float | None:
    """Accuracy of guessing: two options (P-SOUPS, alignment) or four (PERSONAMEM); else None."""
    if cell.source not in ("Table 1", "Table 2", "Table 4") or cell.model == "Random":
        return None
    if cell.column == "PA" or cell.column.startswith(("P-SOUPS", "Persona-MME al")):
        return 0.5
    if cell.column == "PERSONAMEM":
        return 0.25
    return None


def _statement_checks(cells: pd.DataFrame, statements: pd.DataFrame) -> Iterator[Check]:
    """Recompute numbers in the text from the table cells that they refer to.

    Each cell may be off by half its last digit, and so may the number in the text.
    """
    names = cells[CELL].agg("|".join, axis=1)
    values = dict(zip(names, cells["value"], strict=True))
    decimals = _column_decimals(cells)
    for statement in statements.itertuples():
        operation = OPERATIONS[statement.operation]
        a = _mean_bounds(statement.a, values, decimals)
        b = _mean_bounds(statement.b, values, decimals)
        corners = [operation(x, y) for x in (a.low, a.high) for y in (b.low, b.high)]
        result = Bounds(operation(a.value, b.value), min(corners), max(corners))
        relation = statement.relation
        printed = statement.printed
        good = _statement_holds(relation, result, printed)
        sign = relation if relation in "<>" else ""
        note = "not claimed; for comparison" if relation == "cf." else ""
        yield Check(
            check="statement",
            table=statement.source,
            row=statement.statement,
            column="",
            printed=sign + printed,
            recomputed=f"{result.value:.2f}",
            consistent=good,
            note=note,
        )


def _column_decimals(cells: pd.DataFrame) -> dict[tuple[str, str], int]:
    """Most decimals printed in each column, by (table, column)."""
    decimals: dict[tuple[str, str], int] = {}
    for cell in cells.itertuples():
        column = (cell.source, cell.column)
        most = decimals.get(column, 0)
        decimals[column] = max(most, digits(cell.value))
    return decimals


def _mean_bounds(
    names: str, values: dict[str, str], decimals: dict[tuple[str, str], int]
) -> Bounds:
    """Mean of the cells in `names` (separated by `;`), with its bounds under rounding."""
    printed = []
    lows = []
    highs = []
    for name in names.split(";"):
        source, _, _, _, column = name.split("|")
        value = float(values[name])
        half_unit = 0.5 * 10.0 ** -decimals[source, column]
        printed.append(value)
        lows.append(value - half_unit)
        highs.append(value + half_unit)
    return Bounds(mean(printed), mean(lows), mean(highs))


def _statement_holds(relation: str, result: Bounds, printed: str) -> bool:
    stated = float(printed)
    if relation == "=":
        half_unit = 0.5 * _unit(printed)
        least = stated - half_unit - 1e-9
        most = stated + half_unit + 1e-9
        return result.low <= most and result.high >= least
    if relation == ">":
        return result.high > stated
    if relation == "<":
        return result.low < stated
    if relation == "cf.":
        return True
    raise ValueError(f"unknown relation {relation!r} in statements.csv: use =, >, < or cf.")
