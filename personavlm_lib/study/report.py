"""The report of a run: one page that opens offline, with its numbers as JSON beside it.

Reads the stages' output and the paper's printed numbers (`results/paper/`), writes
`runs/<run>/09_report/`. A missing file leaves its part of the page empty.
"""

import base64
import json
from math import isfinite
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from personavlm_lib.evaluation import audit, statistics
from personavlm_lib.evaluation.claims import (
    INITIAL_SCORE,
    ClaimResult,
    Evidence,
    evaluate_claims,
    last_profiles,
)
from personavlm_lib.evaluation.records import read_records
from personavlm_lib.study import dataset_figures, dataset_tables, figures, tables
from personavlm_lib.study.profiles import PAPER_TABLES, STAGES, run_folder, stage_folder
from personavlm_lib.study.scope import scope_sentences
from personavlm_lib.study.templates import render

UNITS = {"points": " points", "reward": "", "scale": ""}
CAPTIONS = tables.WORDS["captions"] | dataset_figures.CAPTIONS


def load_evidence(run: str) -> Evidence:
    """Everything that the report is computed from, read from the stage folders of `run`."""
    personality = stage_folder(run, "07_personality") / "personality.parquet"
    return Evidence(
        _answers(run),
        _metrics(run, "02_sft"),
        _metrics(run, "03_grpo"),
        pd.read_parquet(personality) if personality.is_file() else pd.DataFrame(),
        _finished_stages(run),
    )


def _answers(run: str) -> pd.DataFrame:
    """The answer records of both stages that write some; a condition of both counts once."""
    parts = []
    for stage in ("05_evaluate", "06_ablations"):
        path = stage_folder(run, stage) / "records.parquet"
        if path.is_file():
            parts.append(read_records(path))
    if not parts:
        return pd.DataFrame()
    records = pd.concat(parts, ignore_index=True)
    return records.drop_duplicates(["condition", "benchmark", "case", "kind", "seed"])


def _metrics(run: str, stage: str) -> pd.DataFrame:
    path = stage_folder(run, stage) / "metrics.jsonl"
    return pd.read_json(path, lines=True) if path.is_file() else pd.DataFrame()


def _finished_stages(run: str) -> pd.DataFrame:
    """The `run.json` of each finished stage, one row per stage."""
    records = []
    for stage in STAGES:
        path = stage_folder(run, stage) / "run.json"
        if path.is_file():
            records.append(json.loads(path.read_text(encoding="utf-8")))
    return pd.DataFrame(records)


def build_report(run: str) -> Path:
    """Write report.html, summary.json, claims.json and figures/; return the page's path.

    FileNotFoundError if the run has no finished stage.
    """
    evidence = load_evidence(run)
    if evidence.stages.empty:
        message = f"{run_folder(run)} holds no finished stage: run 'make reproduce' first"
        raise FileNotFoundError(message)
    folder = stage_folder(run, "09_report")
    results = evaluate_claims(evidence)
    _write_json(folder / "summary.json", summarize(run, evidence))
    _write_json(folder / "claims.json", [_claim_row(result) for result in results])
    images = {}
    for name, figure in draw(run, evidence).items():
        images[name] = figures.save(figure, folder / "figures", name)
    page = folder / "report.html"
    page.write_text(_render_page(run, evidence, results, images), encoding="utf-8")
    return page


def _render_page(
    run: str, evidence: Evidence, results: list[ClaimResult], images: dict[str, Path]
) -> str:
    about = _about(evidence.stages)
    claims = [_claim_row(result) | {"shown": show(result)} for result in results]
    pictures = [(name, CAPTIONS[name], _data_uri(path)) for name, path in images.items()]
    world = dataset_tables.read_world(_world_folder(run))
    checks = audit.audit_tables(PAPER_TABLES)
    tasks = None if evidence.records.empty else tables.task_table(evidence.records)
    return render(
        "report.html.j2",
        run=run,
        about=about,
        scope=scope_sentences(run, about, evidence),
        claims=claims,
        figures=pictures,
        tasks=tasks,
        label=tables.label,
        world=dataset_tables.tables(world),
        audit=audit.audit_summary(checks),
        checks=len(checks),
        stages=evidence.stages,
    )


def draw(run: str, evidence: Evidence) -> dict[str, Figure]:
    """Every figure that the evidence and the run's data set suffice for, by name."""
    drawn = {}
    records = evidence.records
    if not records.empty:
        drawn["accuracy_by_condition"] = figures.accuracy_by_condition(records)
        drawn["accuracy_by_task"] = figures.accuracy_by_task(records)
    sft, grpo = evidence.sft_metrics, evidence.grpo_metrics
    if not (sft.empty and grpo.empty):
        drawn["training_curves"] = figures.training_curves(sft, grpo)
    for source in ("own", "gold"):
        if source in set(evidence.personality.get("source", ())):
            name = f"figure_14_personality_{source}"
            drawn[name] = figures.figure_14_personality(evidence.personality, source=source)
    if not records.empty and not tables.ablation_table(records).empty:
        paper = audit.read_paper(PAPER_TABLES)
        drawn["table_8_ablations"] = figures.table_8_ablations(records, paper)
    if not records.empty and not tables.efficiency_table(records).empty:
        drawn["table_11_efficiency"] = figures.table_11_efficiency(records)
    return drawn | dataset_figures.draw(dataset_tables.read_world(_world_folder(run)))


def _world_folder(run: str) -> Path:
    return stage_folder(run, "01_synthesize") / "world"


def summarize(run: str, evidence: Evidence) -> dict:
    """The run in numbers.

    Accuracy and recall are shares from 0 to 1; `first` and `last` are means over a fifth of the
    training steps.
    """
    about = _about(evidence.stages)
    stages = evidence.stages.set_index("stage")
    conditions = _accuracies(evidence.records, "choice")
    summary: dict = {"run": run}
    for key in ("profile", "seed", "world_seed", "git_commit", "git_dirty"):
        summary[key] = about[key]
    summary["conditions"] = conditions
    summary["alignment"] = _accuracies(evidence.records, "alignment")
    summary["paired_with_rl_own"] = _differences_to_rl_own(evidence.records, conditions)
    summary["evidence_recall"] = _recalls(evidence.records)
    summary["reward"] = _first_and_last(evidence.grpo_metrics, "reward")
    summary["loss"] = _first_and_last(evidence.sft_metrics, "loss")
    summary["personality_error"] = _personality_errors(evidence.personality)
    summary["wall_seconds"] = stages["wall_seconds"].astype(float).to_dict()
    summary["peak_memory_gib"] = stages["peak_memory_gib"].astype(float).to_dict()
    summary["total_wall_seconds"] = about["minutes"] * 60
    summary["most_memory_gib"] = about["memory_gib"]
    return summary


def _accuracies(records: pd.DataFrame, kind: str) -> dict[str, dict]:
    """Condition -> n, unscored, accuracy, low, high and unparsed (shares), for one kind."""
    if records.empty or kind not in set(records["kind"]):
        return {}
    shares = {}
    for row in tables.condition_table(records, kind).to_dict("records"):
        share = {"n": row["n"], "unscored": row["unscored"]}
        for column in ("accuracy", "low", "high", "unparsed"):
            share[column] = row[column] / 100
        shares[row["condition"]] = share
    return shares


def _differences_to_rl_own(records: pd.DataFrame, conditions: dict[str, dict]) -> dict[str, dict]:
    if "rl_own" not in conditions:
        return {}
    choice = records[records["kind"] == "choice"].dropna(subset="correct")
    scored = set(choice["condition"])
    others = [name for name in conditions if name != "rl_own" and {name, "rl_own"} <= scored]
    return {name: vars(statistics.paired_difference(choice, name, "rl_own")) for name in others}


def _recalls(records: pd.DataFrame) -> dict[str, dict]:
    if records.empty:
        return {}
    recall = statistics.evidence_recall(records)
    return recall.set_index("condition").to_dict("index") if len(recall) else {}


def _personality_errors(personality: pd.DataFrame) -> dict[str, dict]:
    """Source -> mean absolute error of the last profile, and of staying at the neutral one."""
    if personality.empty:
        return {}
    errors: dict[str, dict] = {}
    for source, rows in last_profiles(personality).groupby("source"):
        unchanged = rows.assign(estimated=INITIAL_SCORE)
        errors[str(source)] = {
            "final": _interval_row(statistics.mean_absolute_error_interval(rows)),
            "neutral": _interval_row(statistics.mean_absolute_error_interval(unchanged)),
        }
    return errors


def _interval_row(interval: statistics.Interval) -> dict:
    return {name: getattr(interval, name) for name in ("n", "mean", "low", "high")}


def show(result: ClaimResult) -> str:
    """Our number with its interval as text: `+3.1 points (+0.4 to +5.8)`."""
    ours = result.ours
    if ours is None:
        return "not measured"
    unit = result.claim.unit
    places = 1 if unit == "points" else 2
    bounds = "(no interval)"
    if isfinite(ours.low):
        bounds = f"({ours.low:+.{places}f} to {ours.high:+.{places}f})"
    return f"{ours.mean:+.{places}f}{UNITS[unit]} {bounds}".replace("-", "−")


def explain(result: ClaimResult) -> str:
    """One sentence on a claim that does not agree with the paper; empty if it agrees."""
    if result.verdict == "not measured":
        return "Not measured: this run has no answers or readings to test it."
    if result.verdict == "disagrees":
        return f"The effect has the opposite sign: {show(result)}."
    if result.verdict == "undecided":
        if result.ours is None or not isfinite(result.ours.low):
            return "Undecided: too few observations for an interval."
        return f"Undecided at this scale: {show(result)}, an interval that contains zero."
    return ""


def _claim_row(result: ClaimResult) -> dict:
    missing = float("nan")
    ours = result.ours or statistics.Interval(missing, missing, missing, n=0)
    return {
        "id": result.claim.id,
        "origin": result.claim.origin,
        "claim": result.claim.sentence,
        "by_construction": result.claim.by_construction,
        "paper": result.claim.paper,
        "unit": result.claim.unit,
        "ours": ours.mean,
        "low": ours.low,
        "high": ours.high,
        "n": ours.n,
        "p_mcnemar": ours.p,
        "verdict": result.verdict,
        "explanation": explain(result),
    }


def _about(stages: pd.DataFrame) -> dict:
    """Code and machine of the newest finished stage; total time and largest memory of all."""
    newest = stages.iloc[-1].dropna().to_dict()
    keys = ("profile", "seed", "git_commit", "git_dirty", "python", "packages", "hardware")
    about = {key: newest.get(key) for key in keys}
    # In runs of an older version, one seed drove both training and users.
    about["world_seed"] = int(newest.get("world_seed", newest["seed"]))
    about["commits"] = []
    if "git_commit" in stages:
        about["commits"] = list(stages["git_commit"].dropna().unique())
    about["minutes"] = float(stages["wall_seconds"].sum()) / 60
    about["memory_gib"] = float(stages["peak_memory_gib"].max())
    return about


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
    """Write JSON with five decimals, and null for NaN."""
    path.parent.mkdir(parents=True, exist_ok=True)
    series = pd.Series(value, dtype=object)
    orient = "index" if isinstance(value, dict) else "records"
    text = series.to_json(orient=orient, double_precision=5, indent=2, force_ascii=False)
    path.write_text(text.replace("\\/", "/") + "\n", encoding="utf-8")
