"""The scope of a run: its numbers come from the run and from the history file."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import save_file

from personavlm_lib.evaluation.claims import CLAIMS, Evidence
from personavlm_lib.study import scope
from personavlm_lib.study.profiles import BACKBONE, ROOT
from personavlm_lib.study.scope import HISTORY, count_parameters, scope_sentences

NOTHING = pd.DataFrame()
EVIDENCE = Evidence(NOTHING, NOTHING, NOTHING, NOTHING, NOTHING)
NANO = {"profile": "nano", "world_seed": 0}


def answers(seeds=(0,), **outcomes) -> pd.DataFrame:
    """Records of four users: per condition the answers, where None names no option."""
    rows = []
    for seed in seeds:
        for condition, results in outcomes.items():
            for case, result in enumerate(results):
                parsed = None if result is None else "word"
                row = (condition, f"u{case % 4}", "choice", seed, parsed, result is True)
                rows.append(row)
    return pd.DataFrame(rows, columns=["condition", "user", "kind", "seed", "parsed", "correct"])


@pytest.fixture(autouse=True)
def runs(tmp_path, monkeypatch):
    monkeypatch.setenv("PERSONAVLM_RUNS", str(tmp_path))
    return tmp_path


def sentences(run="mine", about=NANO, records=NOTHING) -> str:
    return "\n".join(scope_sentences(run, about, replace(EVIDENCE, records=records)))


def test_wording_compares_both_wordings_and_counts_unparsed_answers():
    right, wrong = [True] * 7 + [False], [True, False, False] + [None] * 5
    text = sentences(records=answers(rl_own=right, rl_own_paraphrased=wrong))
    assert "4 test users" in text
    assert "answers 87.5% of the questions right" in text
    assert "12.5% when the same users speak in paraphrases" in text
    assert "where 62.5% of its answers name no option" in text
    assert "paraphrases" not in sentences(records=answers(rl_own=right))


def test_training_seeds_are_those_of_the_records():
    assert "One training seed (3)" in sentences(records=answers((3,), rl_own=[True] * 8))
    several = sentences(records=answers((0, 1, 2), rl_own=[True] * 8))
    assert "3 training seeds: 0, 1, 2." in several and "One training seed" not in several


def test_model_size_is_counted_from_the_weights_and_left_out_without_them(runs):
    assert "million parameters" not in sentences()
    folder = runs / "mine" / "00_backbone" / "model"
    folder.mkdir(parents=True)
    weights = {"a": np.zeros((1000, 2000), np.float32), "b": np.zeros(500_000, np.float32)}
    save_file(weights, folder / "model.safetensors")
    assert "The model has 2.5 million parameters." in sentences()


def test_readme_gives_the_size_of_the_bundled_backbone():
    millions = count_parameters(BACKBONE) / 1e6
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"The model has {millions:.1f} million parameters" in readme


def test_every_claim_is_listed_once_as_the_papers_or_ours():
    (sentence,) = (line for line in sentences().splitlines() if line.startswith("Of the claims"))
    papers, rest = sentence.split(" are the paper's; ")
    ours, rest = rest.split(" are ours, ")
    listed = [*papers.removeprefix("Of the claims, ").split(", "), *ours.split(", ")]
    assert sorted(listed) == sorted(claim.id for claim in CLAIMS)
    assert "C7, C7g, C9 hold by construction" in rest


@pytest.mark.parametrize(
    ("run", "about"),
    [
        ("nano-1", NANO),
        ("nano", NANO | {"profile": "smoke"}),
        ("reference", NANO | {"world_seed": 1}),
    ],
)
def test_judged_runs_are_reported_for_the_reference_users_alone(run, about):
    assert "not fresh" not in sentences(run, about)


def test_judged_runs_come_from_the_history_file(tmp_path, monkeypatch):
    history = json.loads(HISTORY.read_text(encoding="utf-8"))
    for run in ("nano", "reference"):
        assert f"{history['judged_runs']} runs up to commit {history['commit']}" in sentences(run)
    monkeypatch.setattr(scope, "HISTORY", tmp_path / "history.json")
    scope.HISTORY.write_text(json.dumps(history | {"judged_runs": 31}), encoding="utf-8")
    assert "31 runs up to commit" in sentences("nano")


def test_scope_of_a_run_without_answers_is_short():
    assert sentences().startswith("The users are simulated.\nOf the claims, ")
