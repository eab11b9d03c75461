"""Test the audit on hand-computed numbers and on the paper's tables."""

from pathlib import Path

import pandas as pd
import pytest

from personavlm_lib.evaluation import audit

PAPER = Path(__file__).resolve().parents[2] / "results" / "paper"
TABLE_1_MODELS = [
    "Qwen2.5-VL-7B",
    "InternVL3-8B",
    "InternVL3-38B",
    "PersonaVLM-SFT",
    "PersonaVLM-RL",
]
TABLE_4_MODELS = [
    "Qwen2.5-VL-7B",
    "InternVL3-8B",
    "InternVL3-38B",
    "Qwen3-VL-8B",
    "Qwen3-30B-A3B",
    "PersonaVLM",
]


@pytest.fixture(scope="module")
def checks() -> pd.DataFrame:
    return audit.audit_tables(PAPER)


def failed(checks: pd.DataFrame, check: str, row: str, column: str = "") -> bool:
    """Whether every check of this kind on this row failed."""
    of_kind = checks[checks["check"] == check]
    rows = of_kind[of_kind["row"].str.contains(row, regex=False)]
    if column:
        rows = rows[rows["column"] == column]
    assert len(rows)
    return not rows["consistent"].any()


def test_grim_on_hand_computed_percentages():
    assert audit.grim("33.33", 3) == "rounded"
    assert audit.grim("66.67", 3) == "rounded"
    assert audit.grim("66.66", 3) == "cut"
    assert audit.grim("66.65", 3) == ""
    assert audit.grim("50.00", 3) == ""
    assert audit.grim("100.00", 7) == "rounded"
    assert audit.grim("0.00", 7) == "rounded"
    assert audit.fitting_counts(["33.33", "50.00"], most=20) == [6, 12, 18]


@pytest.mark.parametrize("context, stated", [("32k", 1129), ("128k", 905)])
def test_table_1_question_counts_are_the_smallest_that_fit(context, stated):
    cells = audit.read_paper(PAPER)
    counts = audit.read_counts(PAPER)["all", context]
    table = cells[(cells["source"] == "Table 1") & cells["model"].isin(TABLE_1_MODELS)]
    for aspect in audit.ASPECTS:
        in_column = (table["context"] == context) & (table["column"] == aspect)
        printed = table[in_column]["value"]
        assert audit.fitting_counts(printed, most=400)[0] == counts[aspect]
    assert sum(counts[aspect] for aspect in audit.ASPECTS) == stated


def test_stated_question_counts_add_up():
    assert 1129 + 905 == 2034 and 452 + 360 == 812  # both sums are printed in the paper


@pytest.mark.parametrize(
    "models, questions",
    [(TABLE_4_MODELS, "all"), (["GPT-4o", "GPT-4o-mini"], "subset of the GPT-4o models")],
)
def test_table_4_question_counts_fit(models, questions):
    cells = audit.read_paper(PAPER)
    counts = audit.read_counts(PAPER)[questions, "128k"]
    rows = cells[(cells["source"] == "Table 4") & cells["model"].isin(models)]
    tasks = rows[rows["column"] != "Overall"]
    for task, printed in tasks.groupby("column")["value"]:
        assert counts[task] in audit.fitting_counts(printed, most=400)


def test_grim_finds_rows_that_cannot_come_from_these_questions(checks):
    for row in (
        "32k w/o Episodic",
        "32k w/o Reasoning",
        "128k w/o Reasoning",
        "32k Full GPT-4o",
        "128k Full OneVision",
    ):
        assert failed(checks, "grim", row, "Memory"), row
    for row in ("128k w/o Episodic", "32k RAG PersonaVLM-RL", "128k w/o Core"):
        assert not failed(checks, "grim", row, "Memory"), row
    subset_row = checks[(checks["row"] == "128k GPT-4o") & (checks["column"] == "VDR")]
    assert "subset of the GPT-4o models" in subset_row["note"].iloc[0]


def test_sums_and_statements_that_are_and_are_not_consistent(checks):
    overall = checks[checks["check"] == "overall"]
    pooled = overall[overall["table"].isin(["Table 1", "Table 4", "Table 8"])]
    assert pooled["consistent"].all()
    style = checks[(checks["check"] == "change") & (checks["printed"] == "-9.2")].iloc[0]
    assert (style["recomputed"], style["consistent"]) == ("-5.70", False)
    for row in (
        "times faster without reasoning",
        "gain over the baseline on PERSONAMEM",
        "mean gain from SFT to RL",
        "gain over GPT-4o in Behavior, 128k",
    ):
        assert failed(checks, "statement", row), row
    for row in (
        "gain over the baseline on Persona-MME",
        "gain over GPT-4o in Behavior, 32k",
        "percent slower",
    ):
        assert not failed(checks, "statement", row), row


def test_scores_below_chance_fail(checks):
    assert failed(checks, "chance", "128k Full Qwen2.5-VL-7B")
    assert not failed(checks, "chance", "128k RAG PersonaVLM-RL")


def test_summary_lists_only_failed_checks(checks):
    summary = audit.audit_summary(checks)
    assert (summary["failed"] > 0).all()
    assert summary["failed"].sum() == (~checks["consistent"]).sum()
    changes = summary[summary["check"] == "change"]
    assert "-9.2 (is -5.70)" in changes["cells"].iloc[0]
