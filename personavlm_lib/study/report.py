"""The report of a run: one page that works offline, and its numbers as JSON beside it.

Reads what the stages left (a missing file gives an empty part, never an invented number) and the paper's printed
numbers from `results/paper/`; writes `runs/<run>/09_report/`.
"""

import base64
import json
from math import isfinite
from pathlib import Path

import pandas as pd
from jinja2 import Environment, PackageLoader
from matplotlib.figure import Figure

from personavlm_lib.evaluation import audit
from personavlm_lib.evaluation.claims import (
    INITIAL_SCORE,
    ClaimResult,
    Evidence,
    evaluate_claims,
    last_profiles,
)
from personavlm_lib.evaluation.records import read_records
from personavlm_lib.evaluation.statistics import (
    Interval,
    evidence_recall,
    mean_absolute_error_interval,
    paired_difference,
)
from personavlm_lib.study import dataset_figures, dataset_tables, figures, tables
from personavlm_lib.study.profiles import PAPER_TABLES, STAGES, run_folder, stage_folder

UNITS = {"points": " points", "reward": "", "scale": ""}
CAPTIONS = {
    "accuracy_by_condition": "Right answers to multiple-choice questions, with 95% intervals over users. Grey: floors. "
    "Green: ceilings.",
    "accuracy_by_task": "Right answers by task, in percent (the paper's Table 4, turned); in brackets: questions.",
    "figure_14_personality_own": "Personality of some users, true and as PEM estimates it from what the model reads in "
    "each turn (the paper's Fig. 14).",
    "figure_14_personality_gold": "The same when PEM is given the true reading of each turn: the mechanism alone.",
    "training_curves": "Training: thin lines are single steps, bold ones a running mean over a tenth of them.",
    "table_8_ablations": "What taking one part away costs: our change with interval, and the paper's (Tables 8, 9).",
    "table_11_efficiency": "What an answer costs: tokens and time, means (the paper's Table 11).",
} | dataset_figures.CAPTIONS


def load_evidence(run: str) -> Evidence:
    """Everything the report is made from, read from the stages' folders of `run`."""

    def metrics(stage: str) -> pd.DataFrame:
        path = stage_folder(run, stage) / "metrics.jsonl"
        return pd.read_json(path, lines=True) if path.is_file() else pd.DataFrame()

    answers = [
        stage_folder(run, stage) / "records.parquet" for stage in ("05_evaluate", "06_ablations")
    ]
    answers = [read_records(path) for path in answers if path.is_file()]
    records = pd.concat(answers, ignore_index=True) if answers else pd.DataFrame()
    personality = stage_folder(run, "07_personality") / "personality.parquet"
    return Evidence(
        records.drop_duplicates(["condition", "benchmark", "case", "kind", "seed"])
        if answers
        else records,
        metrics("02_sft"),
        metrics("03_grpo"),
        pd.read_parquet(personality) if personality.is_file() else pd.DataFrame(),
        pd.DataFrame(
            json.loads(p.read_text())
            for s in STAGES
            if (p := stage_folder(run, s) / "run.json").is_file()
        ),
    )


def build_report(run: str) -> Path:
    """Write report.html, summary.json, claims.json and figures/ under `runs/<run>/09_report/`; return the page's path.

    FileNotFoundError if no stage of the run has finished.
    """
    evidence = load_evidence(run)
    if evidence.stages.empty:
        raise FileNotFoundError(
            f"{run_folder(run)} holds no finished stage: run 'make reproduce' first"
        )
    folder, world = stage_folder(run, "09_report"), stage_folder(run, "01_synthesize") / "world"
    drawn = {
        name: figures.save(figure, folder / "figures", name)
        for name, figure in draw(run, evidence).items()
    }
    found = evaluate_claims(evidence)
    _write_json(folder / "summary.json", summarize(run, evidence))
    _write_json(folder / "claims.json", [_claim_row(finding) for finding in found])
    page = Environment(
        loader=PackageLoader("personavlm_lib.study", "."), autoescape=True, trim_blocks=True
    )
    page = page.get_template("report.html.j2").render(
        run=run,
        about=_about(evidence.stages),
        claims=[_claim_row(finding) | {"shown": show(finding)} for finding in found],
        figures=[(name, CAPTIONS[name], _data_uri(path)) for name, path in drawn.items()],
        tasks=tables.task_table(evidence.records) if len(evidence.records) else None,
        label=tables.label,
        world=dataset_tables.tables(dataset_tables.read_world(world)),
        audit=audit.audit_summary(checks := audit.audit_tables(PAPER_TABLES)),
        checks=len(checks),
        stages=evidence.stages,
    )
    (folder / "report.html").write_text(page)
    return folder / "report.html"


def draw(run: str, evidence: Evidence) -> dict[str, Figure]:
    """The figures that the evidence, and the tables of the run's world, suffice for, by name."""
    records, drawn = evidence.records, {}
    if len(records):
        drawn["accuracy_by_condition"] = figures.accuracy_by_condition(records)
        drawn["accuracy_by_task"] = figures.accuracy_by_task(records)
    if len(evidence.sft_metrics) or len(evidence.grpo_metrics):
        drawn["training_curves"] = figures.training_curves(
            evidence.sft_metrics, evidence.grpo_metrics
        )
    for source in ("own", "gold"):
        if source in set(evidence.personality.get("source", ())):
            name = f"figure_14_personality_{source}"
            drawn[name] = figures.figure_14_personality(evidence.personality, source=source)
    if len(records) and len(tables.ablation_table(records)):
        drawn["table_8_ablations"] = figures.table_8_ablations(
            records, audit.read_paper(PAPER_TABLES)
        )
    if len(records) and len(tables.efficiency_table(records)):
        drawn["table_11_efficiency"] = figures.table_11_efficiency(records)
    return drawn | dataset_figures.draw(
        dataset_tables.read_world(stage_folder(run, "01_synthesize") / "world")
    )


def summarize(run: str, evidence: Evidence) -> dict:
    """The run in numbers. Accuracy and recall are shares (0..1), `first` and `last` means over a fifth of the steps."""
    about, records, stages = _about(evidence.stages), evidence.records, evidence.stages
    summary = {"run": run} | {
        key: about[key] for key in ("profile", "seed", "git_commit", "git_dirty")
    }
    for name, kind in (("conditions", "choice"), ("alignment", "alignment")):
        rows = records[records["kind"] == kind] if len(records) else records
        shares = {}
        for row in tables.condition_table(rows, kind).itertuples() if len(rows) else ():
            shares[row.condition] = {"n": row.n} | {
                c: getattr(row, c) / 100 for c in ("accuracy", "low", "high")
            }
        summary[name] = shares
    choice = records[records["kind"] == "choice"] if len(records) else records
    summary["paired_with_rl_own"] = {
        name: vars(paired_difference(choice, name, "rl_own"))
        for name in summary["conditions"] if {name, "rl_own"} <= set(summary["conditions"]) and name != "rl_own"
    }  # fmt: skip
    recall = evidence_recall(records) if len(records) else pd.DataFrame()
    summary["evidence_recall"] = (
        recall.set_index("condition").to_dict("index") if len(recall) else {}
    )
    summary["reward"] = _first_and_last(evidence.grpo_metrics, "reward")
    summary["loss"] = _first_and_last(evidence.sft_metrics, "loss")
    summary["personality_error"] = {}
    for source, rows in (
        last_profiles(evidence.personality).groupby("source") if len(evidence.personality) else ()
    ):
        errors = {"final": rows, "neutral": rows.assign(estimated=INITIAL_SCORE)}
        errors = {name: mean_absolute_error_interval(frame) for name, frame in errors.items()}
        summary["personality_error"][source] = {
            name: {"n": e.n, "mean": e.mean, "low": e.low, "high": e.high}
            for name, e in errors.items()
        }
    summary["wall_seconds"] = dict(
        zip(stages["stage"], stages["wall_seconds"].astype(float), strict=True)
    )
    summary["peak_memory_gib"] = dict(
        zip(stages["stage"], stages["peak_memory_gib"].astype(float), strict=True)
    )
    return summary | {
        "total_wall_seconds": about["minutes"] * 60,
        "most_memory_gib": about["memory_gib"],
    }


def show(finding: ClaimResult) -> str:
    """Our number with its interval, as text: `+3.1 points (+0.4 to +5.8)`."""
    ours, unit = finding.ours, finding.claim.unit
    if ours is None:
        return "not measured"
    places = 1 if unit == "points" else 2
    bounds = (
        f"({ours.low:+.{places}f} to {ours.high:+.{places}f})"
        if isfinite(ours.low)
        else "(no interval)"
    )
    return f"{ours.mean:+.{places}f}{UNITS[unit]} {bounds}".replace("-", "−")


def say(finding: ClaimResult) -> str:
    """A plain sentence on a claim that did not come out as in the paper; empty for one that did."""
    if finding.verdict == "not measured":
        return "Not measured: this run has no answers or readings to test it with."
    if finding.verdict == "disagrees":
        return f"It came out the other way round: {show(finding)}."
    if finding.verdict == "undecided":
        if not isfinite(finding.ours.low):
            return "Undecided: there is too little to take an interval from."
        return f"Undecided at this scale: {show(finding)}, an interval that holds zero."
    return ""


def _claim_row(finding: ClaimResult) -> dict:
    claim, ours = finding.claim, finding.ours or Interval(*[float("nan")] * 3, n=0)
    return {
        "id": claim.id,
        "claim": claim.sentence,
        "paper": claim.paper,
        "unit": claim.unit,
        "ours": ours.mean,
        "low": ours.low,
        "high": ours.high,
        "n": ours.n,
        "p_mcnemar": ours.p,
        "verdict": finding.verdict,
        "said": say(finding),
    }


def _about(stages: pd.DataFrame) -> dict:
    """What was run, on what, for how long: from the newest finished stage, times and memory from all of them."""
    newest = stages.iloc[-1].dropna().to_dict()
    keys = ("profile", "seed", "git_commit", "git_dirty", "python", "packages", "hardware")
    commits = stages["git_commit"].dropna().unique() if "git_commit" in stages else []
    return {key: newest.get(key) for key in keys} | {
        "commits": list(commits),
        "minutes": float(stages["wall_seconds"].sum()) / 60,
        "memory_gib": float(stages["peak_memory_gib"].max()),
    }


def _first_and_last(metrics: pd.DataFrame, column: str) -> dict:
    """Means over the first and the last fifth of the logged steps."""
    if column not in metrics:
        return {}
    values = metrics.sort_values("step")[column].dropna()
    fifth = max(1, len(values) // 5)
    return {
        "first": values.head(fifth).mean(),
        "last": values.tail(fifth).mean(),
        "steps": int(metrics["step"].max()),
    }


def _data_uri(png: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(png.read_bytes()).decode()


def _write_json(path: Path, value: dict | list) -> None:
    """JSON with five decimals, and null for what is not a number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    orient = "index" if isinstance(value, dict) else "records"
    text = pd.Series(value, dtype=object).to_json(
        orient=orient, double_precision=5, indent=2, force_ascii=False
    )
    path.write_text(text.replace("\\/", "/") + "\n")
