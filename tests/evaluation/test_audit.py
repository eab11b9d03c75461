"""The audit on hand-worked numbers and on the paper's tables."""

from pathlib import Path

import pandas as pd
import pytest

from personavlm_lib.evaluation import audit

PAPER = Path(__file__).resolve().parents[2] / "results" / "paper"
MODELS = ["Qwen2.5-VL-7B", "InternVL3-8B", "InternVL3-38B", "PersonaVLM-SFT", "PersonaVLM-RL"]


@pytest.fixture(scope="module")
def checks() -> pd.DataFrame:
    return audit.audit_tables(PAPER)


def failed(checks: pd.DataFrame, check: str, row: str, column: str = "") -> bool:
    rows = checks[(checks["check"] == check) & checks["row"].str.contains(row, regex=False)]
    rows = rows[rows["column"] == column] if column else rows
    assert len(rows)
    return not rows["consistent"].any()


def test_grim_by_hand():
    assert audit.grim("33.33", 3) == "rounded" and audit.grim("66.67", 3) == "rounded"
    assert audit.grim("66.66", 3) == "cut" and audit.grim("66.65", 3) == ""
    assert (
        audit.grim("50.00", 3) == ""
        and audit.grim("100.00", 7) == "rounded"
        and audit.grim("0.00", 7) == "rounded"
    )
    assert audit.fitting_counts(["33.33", "50.00"], most=20) == [6, 12, 18]


def test_numbers_of_questions_are_the_only_ones_that_fit():
    cells, counts = audit.read_paper(PAPER), audit.read_counts(PAPER)
    first = cells[(cells["source"] == "Table 1") & cells["model"].isin(MODELS)]
    for context, stated in (("32k", 1129), ("128k", 905)):
        for aspect in audit.ASPECTS:
            printed = first[(first["context"] == context) & (first["column"] == aspect)]["value"]
            assert audit.fitting_counts(printed, most=400)[0] == counts["all", context][aspect]
        assert sum(counts["all", context][aspect] for aspect in audit.ASPECTS) == stated
    assert 1129 + 905 == 2034 and 452 + 360 == 812  # both sums are printed in the paper
    models = [
        "Qwen2.5-VL-7B",
        "InternVL3-8B",
        "InternVL3-38B",
        "Qwen3-VL-8B",
        "Qwen3-30B-A3B",
        "PersonaVLM",
    ]
    for names, which in (
        (models, "all"),
        (["GPT-4o", "GPT-4o-mini"], "subset of the GPT-4o models"),
    ):
        rows = cells[(cells["source"] == "Table 4") & cells["model"].isin(names)]
        for task, printed in rows[~rows["column"].isin(["Overall"])].groupby("column")["value"]:
            assert counts[which, "128k"][task] in audit.fitting_counts(printed, most=400)


def test_rows_that_cannot_come_from_these_questions(checks):
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
    note = checks[(checks["row"] == "128k GPT-4o") & (checks["column"] == "VDR")]["note"].iloc[0]
    assert "subset of the GPT-4o models" in note


def test_sums_that_do_and_do_not_come_out(checks):
    assert checks[
        (checks["check"] == "overall") & checks["table"].isin(["Table 1", "Table 4", "Table 8"])
    ]["consistent"].all()
    style = checks[(checks["check"] == "change") & (checks["printed"] == "-9.2")].iloc[0]
    assert (style["recomputed"], style["consistent"]) == ("-5.70", False)
    assert failed(checks, "statement", "times faster without reasoning")
    assert failed(checks, "statement", "gain over the baseline on PERSONAMEM")
    assert failed(checks, "statement", "mean gain from SFT to RL")
    assert failed(checks, "statement", "gain over GPT-4o in Behavior, 128k")
    for row in (
        "gain over the baseline on Persona-MME",
        "gain over GPT-4o in Behavior, 32k",
        "percent slower",
    ):
        assert not failed(checks, "statement", row)


def test_below_chance(checks):
    assert failed(checks, "chance", "128k Full Qwen2.5-VL-7B") and not failed(
        checks, "chance", "128k RAG PersonaVLM-RL"
    )


def test_summary_tells_only_what_failed(checks):
    rows = audit.audit_summary(checks)
    assert (rows["failed"] > 0).all() and rows["failed"].sum() == (~checks["consistent"]).sum()
    assert "-9.2 (is -5.70)" in rows[rows["check"] == "change"]["cells"].iloc[0]
