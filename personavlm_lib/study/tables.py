"""The tables of the report, each a DataFrame made from records alone. Accuracies and differences are in percent."""

import pandas as pd

from personavlm_lib.evaluation.audit import ASPECTS
from personavlm_lib.evaluation.statistics import accuracy_table, paired_difference

CONDITIONS = {
    "chance": "chance",
    "no_memory": "no memory",
    "backbone_rag5": "backbone, 5 nearest turns",
    "backbone_rag5_paraphrased": "the same, other words",
    "backbone_bm25": "backbone, 5 turns by BM25",
    "backbone_full": "backbone, all turns",
    "sft_own": "SFT, own memory",
    "sft_gold": "SFT, gold memory",
    "rl_own": "RL, own memory",
    "rl_own_paraphrased": "the same, other words",
    "rl_gold": "RL, gold memory",
    "gold_evidence": "gold evidence shown",
    "oracle": "oracle, gold memory",
}
FULL = "rl_gold"  # what the ablations take a part away from
ABLATIONS = {
    f"{FULL}_wo_core": "w/o Core",
    f"{FULL}_wo_procedural": "w/o Procedural",
    f"{FULL}_wo_semantic": "w/o Semantic",
    f"{FULL}_wo_episodic": "w/o Episodic",
    f"{FULL}_wo_reasoning": "w/o Reasoning",
    f"{FULL}_wo_pem": "w/o PEM",
}
SHOWN_BY_TASK = (
    "no_memory",
    "backbone_rag5",
    "backbone_full",
    "sft_own",
    "rl_own",
    "rl_gold",
    "gold_evidence",
)
LABELS = CONDITIONS | ABLATIONS


def label(condition: str) -> str:
    """A condition in words; one that is not known is shown by its name."""
    return LABELS.get(condition, condition.replace("_", " "))


def condition_order(records: pd.DataFrame, ablations: bool = False) -> list[str]:
    """The conditions there are, floors first and ceilings last, unknown ones after them."""
    there = [c for c in records["condition"].unique() if ablations or c not in ABLATIONS]
    order = list(LABELS)
    return sorted(there, key=lambda c: (order.index(c) if c in order else len(order), c))


def condition_table(records: pd.DataFrame, kind: str = "choice") -> pd.DataFrame:
    """Condition, n, accuracy, low, high (percent), in `condition_order`; questions of one kind."""
    rows = records[records["kind"] == kind]
    table = (
        accuracy_table(rows)
        .set_index("condition")
        .loc[condition_order(rows, ablations=True)]
        .reset_index()
    )
    return table.assign(**{c: 100 * table[c] for c in ("accuracy", "low", "high")})


def task_table(records: pd.DataFrame) -> pd.DataFrame:
    """As the paper's Table 4, turned: a row per (aspect, task), the number of questions, a column per condition."""
    rows = records[records["condition"].isin(condition_order(records))]
    table = 100 * rows.pivot_table(
        index=["aspect", "task"], columns="condition", values="correct", sort=False
    )
    asked = rows.groupby(["aspect", "task", "condition"]).size().groupby(["aspect", "task"]).max()
    table = table[condition_order(rows)]
    table.insert(0, "n", asked.reindex(table.index))
    order = [*ASPECTS, "Alignment"]
    return table.loc[
        sorted(table.index, key=lambda row: order.index(row[0]) if row[0] in order else len(order))
    ]


def ablation_table(records: pd.DataFrame) -> pd.DataFrame:
    """Condition, what is removed, n and the change against the full agent with its interval (percentage points).

    Multiple-choice questions; for PEM, which nothing but alignment uses, the alignment questions.
    """
    rows = []
    for condition in [c for c in ABLATIONS if c in set(records["condition"])]:
        asked = records[
            records["kind"] == ("alignment" if condition.endswith("_pem") else "choice")
        ]
        if {condition, FULL} <= set(asked["condition"]):
            found = paired_difference(asked, condition, FULL)
            rows.append(
                (
                    condition,
                    ABLATIONS[condition],
                    found.n,
                    100 * found.mean,
                    100 * found.low,
                    100 * found.high,
                )
            )
    return pd.DataFrame(rows, columns=["condition", "removed", "n", "change", "low", "high"])


def efficiency_table(records: pd.DataFrame) -> pd.DataFrame:
    """Means per answer and condition: tokens read, tokens written, seconds, steps, retrievals."""
    columns = ["tokens_in", "tokens_out", "seconds", "steps", "retrievals"]
    means = (
        records.groupby("condition")[columns].mean().loc[condition_order(records, ablations=True)]
    )
    return means[means["tokens_in"] + means["tokens_out"] > 0].reset_index()
