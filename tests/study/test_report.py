"""The report on synthetic files with known results, in a temporary runs folder."""

import json
from datetime import datetime, timedelta

import numpy as np
import pandas as pd
import pytest
from matplotlib.container import BarContainer

from personavlm_lib.evaluation.claims import CLAIMS
from personavlm_lib.evaluation.records import AnswerRecord, load_records, write_records
from personavlm_lib.study import figures, tables
from personavlm_lib.study.report import build_report

SKILL = {
    "chance": 0.25,
    "no_memory": 0.27,
    "backbone_rag5": 0.55,
    "backbone_full": 0.5,
    "sft_own": 0.6,
    "sft_gold": 0.65,
    "rl_own": 0.62,
    "rl_gold": 0.9,
    "gold_evidence": 0.97,
}
TASKS = {
    "Visual Detail Recall": "Memory", "Semantic Information Recall": "Memory",
    "Latest Preference Recognition": "Preference", "Personality Alignment": "Alignment",
}  # fmt: skip
TRAITS = ("openness", "conscientiousness", "extraversion", "agreeableness", "neuroticism")


def answers(skill: dict[str, float], users: int, rng: np.random.Generator) -> list[AnswerRecord]:
    """Four questions per task, user and condition, correct with the condition's probability."""
    records = []
    for condition, probability in skill.items():
        for user in range(users):
            for task, aspect in TASKS.items():
                for number in range(4):
                    correct = bool(rng.random() < probability)
                    case = f"{user}-{task}-{number}"
                    records.append(answer(condition, f"user {user}", task, aspect, case, correct))
    return records


def answer(
    condition: str, user: str, task: str, aspect: str, case: str, correct: bool
) -> AnswerRecord:
    asks_model = condition != "chance"
    return AnswerRecord(
        run="made",
        benchmark="world",
        case=case,
        user=user,
        task=task,
        aspect=aspect,
        kind="alignment" if aspect == "Alignment" else "choice",
        condition=condition,
        model="nano",
        seed=0,
        prompt_set_hash="0",
        memory="gold",
        options=["a", "b", "c", "d"],
        gold="a",
        raw="a",
        parsed="a",
        correct=correct,
        retrieved_turns=[1, 2],
        evidence_turns=[2, 3],
        steps=2,
        retrievals=1,
        tokens_in=400 if asks_model else 0,
        tokens_out=40 if asks_model else 0,
        seconds=0.1,
    )


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.setenv("PERSONAVLM_RUNS", str(tmp_path))
    return tmp_path


def record_stage(runs, stage: str) -> None:
    (runs / "made" / stage).mkdir(parents=True, exist_ok=True)
    hardware = {"cpu": "a processor", "cores": 2, "memory_gib": 8.0, "gpus": []}
    record = {
        "stage": stage,
        "profile": "nano",
        "run": "made",
        "seed": 0,
        "world_seed": 4,
        "git_commit": "0123abc",
        "git_dirty": True,
    }
    record |= {"hardware": hardware, "wall_seconds": 90.0, "peak_memory_gib": 1.5}
    (runs / "made" / stage / "run.json").write_text(json.dumps(record), encoding="utf-8")


@pytest.fixture
def made(runs):
    rng = np.random.default_rng(0)
    for stage in ("02_sft", "03_grpo", "05_evaluate", "06_ablations", "07_personality"):
        record_stage(runs, stage)
    run = runs / "made"
    write_records(run / "05_evaluate" / "records.parquet", answers(SKILL, 20, rng))
    ablations = {"rl_gold_wo_episodic": 0.5, "rl_gold_wo_semantic": 0.8, "rl_gold_wo_pem": 0.5}
    write_records(run / "06_ablations" / "records.parquet", answers(ablations, 20, rng))
    steps = np.arange(100)
    pd.DataFrame({"step": steps, "loss": 3 * np.exp(-steps / 30) + rng.random(100) / 5}).to_json(
        run / "02_sft" / "metrics.jsonl", orient="records", lines=True
    )
    grpo = {
        name: rng.random(100) + steps / 200
        for name in ("reward", "reward_accuracy", "reward_format", "retrievals")
    }
    grpo |= {"entropy": 2 - steps / 80, "zero_spread": rng.random(100)}
    pd.DataFrame({"step": steps} | grpo).to_json(
        run / "03_grpo" / "metrics.jsonl", orient="records", lines=True
    )
    rows = []
    for user in range(6):
        for trait in TRAITS:
            start, drift = rng.uniform(1.5, 4.5), rng.uniform(-0.5, 0.5)
            for turn in range(0, 40, 2):
                true = start + drift * (turn > 20)
                estimate = true + (3 - true) * np.exp(-turn / 8) + rng.normal(0, 0.1)
                for source in ("gold", "own"):
                    time = datetime(2025, 1, 1) + timedelta(hours=turn)
                    rows.append((f"user {user}", turn, time, trait, true, estimate, source))
    columns = ["user", "turn", "time", "trait", "true", "estimated", "source"]
    pd.DataFrame(rows, columns=columns).to_parquet(run / "07_personality" / "personality.parquet")
    return run


def test_report_shows_every_claim_with_its_numbers(made):
    page = build_report("made")
    text = page.read_text(encoding="utf-8")
    assert page == made / "09_report" / "report.html"
    assert all(claim.sentence.split(",")[0] in text.replace("&#39;", "'") for claim in CLAIMS)
    assert (
        "http" not in text.replace("http://www.w3.org", "") and "<script" not in text
    )  # nothing from outside
    claims = {
        row["id"]: row
        for row in json.loads((page.parent / "claims.json").read_text(encoding="utf-8"))
    }
    assert {"claim", "paper", "ours", "low", "high", "verdict"} <= set(claims["C1"])
    assert (claims["C1"]["origin"], claims["C3"]["origin"]) == ("ours", "paper")
    assert claims["C9"]["by_construction"] and not claims["C1"]["by_construction"]
    shown = text.replace("&#39;", "'")
    assert all(claim.by_construction in shown for claim in CLAIMS)
    assert shown.index('id="scope"') < shown.index("<h2>Claims</h2>")
    assert "The users are simulated: 20 test users" in shown
    assert [claims[name]["verdict"] for name in ("C1", "C2", "C4", "C5", "C6", "C7", "C9")] == [
        "agrees"
    ] * 7
    assert claims["C3"]["verdict"] == "undecided" and "an interval that contains zero" in text
    summary = json.loads((page.parent / "summary.json").read_text(encoding="utf-8"))
    assert (summary["seed"], summary["world_seed"]) == (0, 4)
    assert "seed 0, world seed 4" in text
    assert summary["conditions"]["rl_gold"]["n"] == 240
    assert summary["conditions"]["rl_gold"]["unparsed"] == 0
    assert summary["conditions"]["rl_gold"]["low"] < 0.9 < summary["conditions"]["rl_gold"]["high"]
    assert (
        summary["reward"]["first"] < summary["reward"]["last"]
        and summary["loss"]["first"] > summary["loss"]["last"]
    )
    assert summary["evidence_recall"]["rl_gold"]["recall"] == 0.5
    own = summary["personality_error"]["own"]
    assert own["final"]["mean"] < own["neutral"]["mean"]
    assert summary["wall_seconds"]["02_sft"] == 90 and summary["most_memory_gib"] == 1.5
    names = {path.name for path in (page.parent / "figures").iterdir()}
    assert {
        "accuracy_by_condition.png",
        "table_8_ablations.pdf",
        "figure_14_personality_own.png",
    } <= names


def test_report_counts_unscored_questions_and_measures_nothing_from_them(made):
    """One condition without any reply, another without some, and replies that were cut."""
    path = made / "05_evaluate" / "records.parquet"
    records = load_records(path)
    for n, record in enumerate(records):
        if record.condition == "sft_own" or (record.condition == "rl_own" and n % 2):
            record.correct, record.parsed, record.error = None, None, "server down"
        elif record.condition == "no_memory" and n % 4 == 0:
            record.stop = "length"
        else:
            record.stop = "stop"
    write_records(path, records)
    page = build_report("made")
    claims = json.loads((page.parent / "claims.json").read_text(encoding="utf-8"))
    verdicts = {row["id"]: row["verdict"] for row in claims}
    assert (verdicts["C2"], verdicts["C1"]) == ("not measured", "agrees")
    summary = json.loads((page.parent / "summary.json").read_text(encoding="utf-8"))
    counts = {name: (row["n"], row["unscored"]) for name, row in summary["conditions"].items()}
    assert (counts["sft_own"], counts["rl_own"]) == ((0, 240), (120, 120))
    assert counts["rl_gold"] == (240, 0)
    assert "480 without a reply, which are not scored, 80 length." in page.read_text(
        encoding="utf-8"
    )


def test_report_of_a_run_with_one_finished_stage(runs):
    with pytest.raises(FileNotFoundError, match="no finished stage"):
        build_report("made")
    record_stage(runs, "00_backbone")
    page = build_report("made")
    assert all(
        row["verdict"] == "not measured"
        for row in json.loads((page.parent / "claims.json").read_text(encoding="utf-8"))
    )
    assert "Not measured" in page.read_text(encoding="utf-8")


def unparsed_answers() -> pd.DataFrame:
    """Ten answers of two conditions: 5 right and 3 that name no option, then 9 right and none."""
    rows = []
    outcomes = {"rl_own": [True] * 5 + [None] * 3 + [False] * 2, "oracle": [True] * 9 + [False]}
    for condition, answers in outcomes.items():
        for case, answer in enumerate(answers):
            parsed = None if answer is None else "word"
            rows.append((condition, f"u{case % 5}", "choice", parsed, answer is True))
    return pd.DataFrame(rows, columns=["condition", "user", "kind", "parsed", "correct"])


def test_condition_table_counts_unparsed_answers_apart():
    table = tables.condition_table(unparsed_answers()).set_index("condition")
    assert table["accuracy"].to_dict() == {"rl_own": 50, "oracle": 90}
    assert table["unparsed"].to_dict() == {"rl_own": 30, "oracle": 0}


def test_unparsed_answers_are_stacked_on_the_correct_ones():
    figure = figures.accuracy_by_condition(unparsed_answers())
    bars = [part for part in figure.axes[0].containers if isinstance(part, BarContainer)]
    correct, unparsed = bars
    assert [bar.get_width() for bar in correct] == [50, 90]
    assert [(bar.get_x(), bar.get_width()) for bar in unparsed] == [(50, 30), (90, 0)]
    assert all(bar.get_hatch() for bar in unparsed) and not any(bar.get_hatch() for bar in correct)
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "names no option" in labels
    figure.canvas.draw()
    numbers = [text.get_window_extent() for text in figure.axes[0].texts]
    drawn = [bar.get_window_extent() for bar in [*correct, *unparsed]]
    assert not [1 for number in numbers for bar in drawn if number.overlaps(bar)]


def test_figures_are_byte_reproducible(tmp_path):
    grpo = pd.DataFrame({"step": [1, 2, 3], "reward": [0.1, 0.4, 0.6]})
    for folder in ("one", "two"):
        figures.save(figures.training_curves(pd.DataFrame(), grpo), tmp_path / folder, "curves")
    for name in ("curves.png", "curves.pdf"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
