"""What the results of a run can stand for: the sentences at the top of its report.

Every number is computed from the run, or read from `results/reference/history.json`.
"""

import json
from collections.abc import Iterable
from math import prod
from pathlib import Path

import pandas as pd
from safetensors import safe_open

from personavlm_lib.evaluation.claims import CLAIMS, Claim, Evidence
from personavlm_lib.study import tables
from personavlm_lib.study.profiles import PAPER_TABLES, stage_folder

HISTORY = PAPER_TABLES.parent / "reference" / "history.json"


def scope_sentences(run: str, about: dict, evidence: Evidence) -> list[str]:
    """One sentence for each limit of the run; a limit that is unknown is left out.

    `about` holds the run's profile and world seed.
    """
    sentences = [
        _users(evidence.records),
        _model_size(stage_folder(run, "00_backbone") / "model"),
        _wording(evidence.records),
        _replies(evidence.records),
        _training_seeds(evidence.records),
        _claims(CLAIMS),
        _judged_runs(run, about),
    ]
    return [sentence for sentence in sentences if sentence]


def _users(records: pd.DataFrame) -> str:
    if records.empty:
        return "The users are simulated."
    count = records["user"].nunique()
    return f"The users are simulated: {count} test users, whose words come from templates."


def count_parameters(folder: Path) -> int:
    """The number of weights stored in a folder; 0 if there are none."""
    total = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "numpy") as weights:
            for name in weights.keys():
                total += prod(weights.get_slice(name).get_shape())
    return total


def _model_size(folder: Path) -> str:
    millions = count_parameters(folder) / 1e6
    if millions == 0:
        return ""
    return f"The model has {millions:.1f} million parameters."


def _wording(records: pd.DataFrame) -> str:
    """How much of the accuracy survives other words."""
    if records.empty:
        return ""
    table = tables.condition_table(records).set_index("condition")
    if not {"rl_own", "rl_own_paraphrased"} <= set(table.index):
        return ""
    canonical = table.loc["rl_own"]
    paraphrased = table.loc["rl_own_paraphrased"]
    return (
        f"One wording: the agent answers {canonical['accuracy']:.1f}% of the questions right in "
        f"the templates' own wording, and {paraphrased['accuracy']:.1f}% when the same users speak "
        f"in paraphrases, where {paraphrased['unparsed']:.1f}% of its answers name no option."
    )


def _replies(records: pd.DataFrame) -> str:
    """How many questions got no reply, and how many replies did not stop by themselves."""
    if "stop" not in records:
        return ""
    unscored = int(records["correct"].isna().sum())
    counts = records["stop"].value_counts().drop(["stop", ""], errors="ignore")
    reasons = [f"{count} {reason}" for reason, count in counts.items()]
    if unscored:
        reasons.insert(0, f"{unscored} without a reply, which are not scored")
    if not reasons:
        return ""
    return f"Of {len(records)} replies, not all stopped by themselves: {', '.join(reasons)}."


def _training_seeds(records: pd.DataFrame) -> str:
    if records.empty:
        return ""
    seeds = sorted(records["seed"].unique())
    if len(seeds) > 1:
        return f"{len(seeds)} training seeds: {', '.join(map(str, seeds))}."
    return (
        f"One training seed ({seeds[0]}): the intervals cover the choice of users, not the "
        "randomness of training."
    )


def _claims(claims: Iterable[Claim]) -> str:
    ids: dict[str, list[str]] = {"paper": [], "ours": []}
    certain = []
    for claim in claims:
        ids[claim.origin].append(claim.id)
        if claim.by_construction:
            certain.append(claim.id)
    papers = ", ".join(ids["paper"])
    ours = ", ".join(ids["ours"])
    by_construction = ", ".join(certain)
    return (
        f"Of the claims, {papers} are the paper's; {ours} are ours, because the paper prints no "
        f"such comparison. {by_construction} hold by construction."
    )


def _judged_runs(run: str, about: dict) -> str:
    """How often the users of the reference run had been looked at; empty for other users."""
    history = json.loads(HISTORY.read_text(encoding="utf-8"))
    same_profile = about["profile"] == history["profile"]
    same_users = about["world_seed"] == history["world_seed"]
    if run not in history["runs"] or not same_profile or not same_users:
        return ""
    return (
        f"The test users are not fresh: {history['judged_runs']} runs up to commit "
        f"{history['commit']} were judged on them, so choices may have been fitted to them."
    )
