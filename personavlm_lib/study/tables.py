"""The tables of the report, each computed from answer records alone.

Accuracies are in percent, differences in percentage points.
"""

from pathlib import Path

import pandas as pd
import yaml

from personavlm_lib.evaluation.audit import ASPECTS
from personavlm_lib.evaluation.statistics import accuracy_table, paired_difference

WORDS = yaml.safe_load(Path(__file__).with_name("labels.yaml").read_text(encoding="utf-8"))
CONDITIONS: dict[str, str] = WORDS["conditions"]
FULL = "rl_gold"  # the full agent that each ablation removes a part from
ABLATIONS: dict[str, str] = WORDS["ablations"]
LABELS = CONDITIONS | ABLATIONS


def label(condition: str) -> str:
    """The label of a condition; its own name if it has none."""
    return LABELS.get(condition, condition.replace("_", " "))


def condition_order(records: pd.DataFrame, ablations: bool = False) -> list[str]:
    """The conditions in the records: floors first, ceilings last, unknown ones after them."""
    order = {condition: place for place, condition in enumerate(LABELS)}
    present = records["condition"].unique()
    if not ablations:
        present = [condition for condition in present if condition not in ABLATIONS]
    known = sorted((c for c in present if c in order), key=order.__getitem__)
    unknown = sorted(c for c in present if c not in order)
    return known + unknown


def condition_table(records: pd.DataFrame, kind: str = "choice") -> pd.DataFrame:
    """Condition, n, accuracy, low, high, unscored, unparsed for the questions of one kind.

    `unparsed` are the answers that name no option; they count as wrong. `unscored` is the number of
    questions that got no reply; they do not count. The others are in percent.
    """
    rows = records[records["kind"] == kind]
    order = condition_order(rows, ablations=True)
    table = accuracy_table(rows).set_index("condition").loc[order]
    scored = rows.dropna(subset="correct")
    unparsed = scored["parsed"].isna()
    table["unparsed"] = unparsed.groupby(scored["condition"]).mean()
    for column in ("accuracy", "low", "high", "unparsed"):
        table[column] = 100 * table[column]
    return table.reset_index()


def task_table(records: pd.DataFrame) -> pd.DataFrame:
    """The paper's Table 4, transposed: one row per (aspect, task), n, one column per condition."""
    order = condition_order(records)
    rows = records[records["condition"].isin(order)]
    keys = ["aspect", "task"]
    shares = rows.pivot_table(index=keys, columns="condition", values="correct", sort=False)
    table = 100 * shares.reindex(columns=order)
    questions = rows.groupby([*keys, "condition"]).size().groupby(keys).max()
    table.insert(0, "n", questions.reindex(table.index))
    aspects = [*ASPECTS, "Alignment"]

    def aspect_place(row: tuple[str, str]) -> int:
        return aspects.index(row[0]) if row[0] in aspects else len(aspects)

    return table.loc[sorted(table.index, key=aspect_place)]


def ablation_table(records: pd.DataFrame) -> pd.DataFrame:
    """Condition, removed part, n, and the change against the full agent with its interval.

    Multiple-choice questions; for PEM, which only alignment uses, the alignment questions.
    """
    rows = []
    for condition, removed in ABLATIONS.items():
        kind = "alignment" if condition.endswith("_pem") else "choice"
        questions = records[records["kind"] == kind].dropna(subset="correct")
        if not {condition, FULL} <= set(questions["condition"]):
            continue
        change = paired_difference(questions, condition, FULL)
        percent = [100 * value for value in (change.mean, change.low, change.high)]
        rows.append((condition, removed, change.n, *percent))
    return pd.DataFrame(rows, columns=["condition", "removed", "n", "change", "low", "high"])


def efficiency_table(records: pd.DataFrame) -> pd.DataFrame:
    """Means per answer and condition: tokens in and out, seconds, steps, retrievals (Table 11)."""
    columns = ["tokens_in", "tokens_out", "seconds", "steps", "retrievals"]
    order = condition_order(records, ablations=True)
    scored = records.dropna(subset="correct")
    means = scored.groupby("condition")[columns].mean().reindex(order)
    uses_model = means["tokens_in"] + means["tokens_out"] > 0
    return means[uses_model].reset_index()
