"""Can the paper's printed numbers be true together? Pure functions of the tables under `results/paper/`.

Five kinds of check. `grim`: a percentage of n questions is a multiple of 100/n (Brown and Heathers, 2017), rounded or
cut to the printed digits; the n are printed or, for Persona-MME, the only ones that most rows of Tables 1 and 4 share
(`fitting_counts`). `overall`: the overall score from the aspects and their n. `change`: the printed change under an
ablation from the two scores. `statement`: a number said in the text from the cells it is about, with the rounding
of these cells carried through. `chance`: is a score of two or four options significantly below guessing?
"""

from collections.abc import Iterable
from itertools import product
from math import floor
from pathlib import Path
from statistics import mean

import pandas as pd
from scipy.stats import binomtest

TABLES = ("table1", "table2", "table4", "table8", "table9", "table11")
ASPECTS = ["Memory", "Intent", "Preference", "Behavior", "Relationship", "Growth"]
CELL = ["source", "context", "setting", "model", "column"]
COLUMNS = ["check", "table", "row", "column", "printed", "recomputed", "consistent", "note"]
ALL = "all"  # the set of all questions, against which every score is held
Counts = dict[tuple[str, str], dict[str, int]]
OPERATIONS = {
    "difference": lambda a, b: a - b,
    "ratio": lambda a, b: a / b,
    "percent less": lambda a, b: 100 * (1 - a / b),
    "percent more": lambda a, b: 100 * (a / b - 1),
}


def read_paper(folder: Path) -> pd.DataFrame:
    """All printed cells: source, context, setting, model, column, value, change, each as the printed text."""
    return pd.concat([_read(folder / f"{name}.csv") for name in TABLES], ignore_index=True)


def _read(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, dtype=str, keep_default_na=False)


def digits(printed: str) -> int:
    """Decimals that stand printed: `51.1` -> 1."""
    return len(printed.partition(".")[2])


def grim(printed: str, n: int, decimals: int = 2) -> str:
    """How a percentage of `n` questions comes to be printed so: "rounded", "cut" (truncated), or "" if it cannot."""
    value, unit = float(printed), 10.0**-decimals
    shares = [
        100 * k / n for k in range(floor(value * n / 100), floor(value * n / 100) + 3) if k <= n
    ]
    if any(abs(share - value) <= unit / 2 + 1e-9 for share in shares):
        return "rounded"
    return "cut" if any(0 <= share - value < unit for share in shares) else ""


def fitting_counts(printed: Iterable[str], most: int, decimals: int = 2) -> list[int]:
    """The numbers of questions up to `most` from which every one of these percentages can come, rounded."""
    values = list(printed)
    return [
        n
        for n in range(2, most + 1)
        if all(grim(value, n, decimals) == "rounded" for value in values)
    ]


def audit_tables(folder: Path) -> pd.DataFrame:
    """Every check of the printed numbers in `folder`, a row each; columns as in `COLUMNS`."""
    cells, counts = read_paper(folder), read_counts(folder)
    rows = [
        *_grim_rows(cells, counts),
        *_overalls(cells, counts),
        *_changes(cells),
        *_chance(cells, counts),
    ]
    return pd.DataFrame(
        rows + list(_statements(cells, _read(folder / "statements.csv"))), columns=COLUMNS
    )


def audit_summary(checks: pd.DataFrame) -> pd.DataFrame:
    """What did not come out, one line per check and row of a table: cells checked, cells failed, which, why."""
    rows = []
    for (check, table, row), group in checks.groupby(["check", "table", "row"], sort=False):
        failed = group[~group["consistent"]]
        if len(failed):
            cells = [
                f"{r.column} {r.printed}" + (f" (is {r.recomputed})" if r.recomputed else "")
                for r in failed.itertuples()
            ]
            rows.append(
                (
                    check,
                    table,
                    row,
                    len(group),
                    len(failed),
                    "; ".join(cells),
                    failed["note"].iloc[0],
                )
            )
    return pd.DataFrame(
        rows, columns=["check", "table", "row", "checked", "failed", "cells", "note"]
    )


def _check(check: str, cell, printed: str, recomputed: str, consistent: bool, note: str) -> tuple:
    """A row, as in `COLUMNS`, about a printed cell."""
    name = " ".join(part for part in (cell.context, cell.setting, cell.model) if part)
    return check, cell.source, name, cell.column, printed, recomputed, bool(consistent), note


def read_counts(folder: Path) -> Counts:
    """Numbers of questions by (set of questions, context) and column; context "" stands where there is but one."""
    counts = {}
    for row in _read(folder / "counts.csv").itertuples():
        counts.setdefault((row[1], row.context), {})[row.column] = int(row.n)
    return counts


def _question_count(cell, counts: Counts, questions: str = ALL) -> int | None:
    name = "PA" if cell.column == "Persona-MME alignment" else cell.column
    name = "Overall with PA" if (cell.source, name) == ("Table 4", "Overall") else name
    return counts.get((questions, cell.context), {}).get(name)


def _grim_rows(cells: pd.DataFrame, counts: Counts) -> Iterable[tuple]:
    scores = cells[
        cells["source"].isin(["Table 1", "Table 2", "Table 4", "Table 8"])
        & (cells["model"] != "Random")
    ]
    for _, row in scores.groupby(["source", "context", "setting", "model"], sort=False):
        fits = {}
        for questions in {name: None for name, _ in counts}:
            sizes = [_question_count(cell, counts, questions) for cell in row.itertuples()]
            fits[questions] = [
                grim(v, n) if n else None for v, n in zip(row["value"], sizes, strict=True)
            ]
        others = [
            name
            for name, found in fits.items()
            if any(found) and all(f != "" for f in found if f is not None)
        ]
        for cell, fit in zip(row.itertuples(), fits[ALL], strict=True):
            if fit is None:
                continue
            n = _question_count(cell, counts)
            why = (
                f"fits the {others[0]}"
                if others and cell.column != "PERSONAMEM"
                else "no share of these questions"
            )
            note = {"rounded": "", "cut": "cut, not rounded", "": why}[fit]
            note = f"n = {n}; {note}" if note else f"n = {n}"
            yield _check("grim", cell, cell.value, "", fit, note)


def _overalls(cells: pd.DataFrame, counts: Counts) -> Iterable[tuple]:
    """Overall scores again, from their parts; only where each part is a share of the known number of questions."""
    for (source, context, *_), row in cells.groupby(
        ["source", "context", "setting", "model"], sort=False
    ):
        printed, cells_of = (
            row.set_index("column")["value"],
            {cell.column: cell for cell in row.itertuples()},
        )
        if source in ("Table 1", "Table 8", "Table 4"):
            parts = ASPECTS if source != "Table 4" else [c for c in printed.index if c != "Overall"]
            sizes = counts[ALL, context]
            if not all(grim(printed[part], sizes[part]) for part in parts):
                continue
            right = [round(float(printed[part]) * sizes[part] / 100) for part in parts]
            total, cell = 100 * sum(right) / sum(sizes[part] for part in parts), cells_of["Overall"]
            good = abs(total - float(cell.value)) < 0.01
            yield _check(
                "overall",
                cell,
                cell.value,
                f"{total:.2f}",
                good,
                "right answers of all parts added",
            )
        elif "P-SOUPS Overall" in printed:
            parts = [
                float(printed[c])
                for c in ("P-SOUPS Expertise", "P-SOUPS Informativeness", "P-SOUPS Style")
            ]
            cell = cells_of["P-SOUPS Overall"]
            good = abs(mean(parts) - float(cell.value)) < 1.5 * 10.0 ** -digits(cell.value)
            yield _check(
                "overall", cell, cell.value, f"{mean(parts):.2f}", good, "mean of three equal parts"
            )


def _changes(cells: pd.DataFrame) -> Iterable[tuple]:
    """Changes printed beside a score: against the full model (Tables 8, 9) or the baseline with RAG (Table 1)."""
    for cell in cells[cells["change"] != ""].itertuples():
        base = cells[
            (
                cells[["source", "context", "column"]] == [cell.source, cell.context, cell.column]
            ).all(axis=1)
        ]
        rag = (base["setting"] == "RAG") & (base["model"] == "Qwen2.5-VL-7B")
        base = float(
            base[rag if cell.source == "Table 1" else base["setting"] == "full"]["value"].iloc[0]
        )
        found = float(cell.value) - base
        good = abs(found - float(cell.change)) < 1.5 * 10.0 ** -digits(cell.value)
        yield _check("change", cell, cell.change, f"{found:+.2f}", good, f"{cell.value} - {base:g}")


def _chance(cells: pd.DataFrame, counts: Counts) -> Iterable[tuple]:
    """Scores against guessing among two (P-SOUPS, alignment) or four options (PERSONAMEM), exact one-sided binomial."""
    for cell in cells.itertuples():
        n = _question_count(cell, counts)
        two = cell.column.startswith(("P-SOUPS", "Persona-MME al")) or cell.column == "PA"
        asked = cell.source in ("Table 1", "Table 2", "Table 4") and (
            two or cell.column == "PERSONAMEM"
        )
        if n and asked and cell.model != "Random":
            chance = 0.5 if two else 0.25
            p = binomtest(round(float(cell.value) * n / 100), n, chance, alternative="less").pvalue
            note = f"chance is {100 * chance:.0f}" + (
                f"; below it with p = {p:.1g}" if p < 0.01 else ""
            )
            yield _check("chance", cell, cell.value, "", p >= 0.01, note)


def _statements(cells: pd.DataFrame, statements: pd.DataFrame) -> Iterable[tuple]:
    """Numbers said in the text; each cell may be off by half its last digit, and so may the statement's own."""
    values = dict(zip(cells[CELL].agg("|".join, axis=1), cells["value"], strict=True))
    places = cells.groupby(["source", "column"])["value"].agg(lambda v: max(map(digits, v)))

    def bounds(names: str) -> tuple[float, float, float]:
        found = [
            (float(values[name]), 0.5 * 10.0 ** -places[tuple(name.split("|")[::4])])
            for name in names.split(";")
        ]
        return (
            mean(v for v, _ in found),
            mean(v - e for v, e in found),
            mean(v + e for v, e in found),
        )

    for said in statements.itertuples():
        operation, a, b = OPERATIONS[said.operation], bounds(said.a), bounds(said.b)
        corners = [operation(x, y) for x, y in product(a[1:], b[1:])]
        printed, half = float(said.printed), 0.5 * 10.0 ** -digits(said.printed)
        good = {
            "=": min(corners) <= printed + half + 1e-9 and max(corners) >= printed - half - 1e-9,
            ">": max(corners) > printed,
            "<": min(corners) < printed,
            "cf.": True,
        }[said.relation]
        note = "not claimed; for comparison" if said.relation == "cf." else ""
        sign = said.relation if said.relation in "<>" else ""
        found = f"{operation(a[0], b[0]):.2f}"
        yield "statement", said.source, said.statement, "", sign + said.printed, found, good, note
