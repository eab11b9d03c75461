"""The claims that a run can test, read from `claims.yaml`, each with our number and a verdict.

Every claim is stated so that a positive difference supports the paper. The verdict follows from the
95% interval alone:

- `agrees`: the interval lies above zero.
- `disagrees`: the interval lies below zero.
- `undecided`: the interval contains zero, or there are too few users for an interval.
- `not measured`: the run lacks the conditions that the claim compares.

Claims on understanding use multiple-choice questions, like the overall score of Tables 1 and 8.
Alignment questions have their own claim.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import isnan
from pathlib import Path

import pandas as pd
import yaml

from personavlm_lib.evaluation.statistics import (
    Interval,
    cluster_bootstrap,
    difference_of_means,
    paired_difference,
)

# Every personality starts at the middle of the 1..5 scale; the paper does not give p_0.
INITIAL_SCORE = 3.0


@dataclass(frozen=True)
class Evidence:
    """The results of a run; an empty frame stands for a missing file.

    records: the rows of 05_evaluate and 06_ablations, columns as in `AnswerRecord`.
    sft_metrics, grpo_metrics: one row per logged step.
    personality: user, turn, time, trait, true, estimated, source ("gold" | "own").
    stages: stage, wall_seconds, peak_memory_gib.
    """

    records: pd.DataFrame
    sft_metrics: pd.DataFrame
    grpo_metrics: pd.DataFrame
    personality: pd.DataFrame
    stages: pd.DataFrame


Measure = Callable[[Evidence], Interval | None]


@dataclass(frozen=True)
class Claim:
    """One claim about the method.

    `origin` is "paper" if the paper compares the same two systems in numbers, and "ours" if the
    comparison is an addition. `measure` returns our difference in `unit`, or None if the run has no
    data for it. `by_construction` says why the claim can hardly fail with simulated users,
    else it is empty.
    """

    id: str
    origin: str  # "paper" | "ours"
    sentence: str
    paper: str
    unit: str  # "points" (percentage points) | "reward" | "scale" (1..5, of the personality)
    measure: Measure
    by_construction: str = ""


@dataclass(frozen=True)
class ClaimResult:
    """A claim with our number."""

    claim: Claim
    ours: Interval | None

    @property
    def verdict(self) -> str:
        return verdict(self.ours)


def verdict(ours: Interval | None) -> str:
    """The verdict on an interval, as the module's docstring defines it."""
    if ours is None:
        return "not measured"
    if isnan(ours.low) or ours.low <= 0 <= ours.high:
        return "undecided"
    if ours.low > 0:
        return "agrees"
    return "disagrees"


def _accuracy_gain(evidence: Evidence, a: str, b: str, kind: str = "choice") -> Interval | None:
    """Accuracy of condition `a` minus condition `b` on the same questions, in percentage points."""
    records = evidence.records
    if records.empty:
        return None
    records = records[records["kind"] == kind].dropna(subset="correct")
    measured = set(records["condition"])
    if a not in measured or b not in measured:
        return None
    share = paired_difference(records, a, b)
    return Interval(100 * share.mean, 100 * share.low, 100 * share.high, share.n, share.p)


def _reward_gain(evidence: Evidence) -> Interval | None:
    """Mean reward over the last fifth of the logged GRPO steps minus the first fifth."""
    if "reward" not in evidence.grpo_metrics:
        return None
    steps = evidence.grpo_metrics.sort_values("step")
    rewards = steps["reward"].dropna().to_numpy()
    if len(rewards) < 2:
        return None
    fifth = max(1, len(rewards) // 5)
    return difference_of_means(rewards[-fifth:], rewards[:fifth])


def last_profiles(personality: pd.DataFrame) -> pd.DataFrame:
    """The final profile: the rows of each user's last turn, per source."""
    turns = personality.groupby(["source", "user"])["turn"]
    last_turn = turns.transform("max")
    return personality[personality["turn"] == last_turn]


def _error_reduction(evidence: Evidence, source: str) -> Interval | None:
    """Absolute error of the initial profile minus that of the final one, mean over traits."""
    if evidence.personality.empty:
        return None
    last = last_profiles(evidence.personality)
    last = last[last["source"] == source]
    if last.empty:
        return None
    initial_error = (last["true"] - INITIAL_SCORE).abs()
    final_error = (last["estimated"] - last["true"]).abs()
    return cluster_bootstrap(last.assign(saved=initial_error - final_error), "saved")


# By the name that claims.yaml gives them.
MEASURES: dict[str, Callable[..., Interval | None]] = {
    "accuracy_gain": _accuracy_gain,
    "reward_gain": _reward_gain,
    "error_reduction": _error_reduction,
}


def read_claims(path: Path) -> tuple[Claim, ...]:
    """Read the claims of a file such as `claims.yaml`, which explains its keys.

    Raises KeyError for an unknown measure, and TypeError for another unknown or missing key.
    """
    claims = []
    for entry in yaml.safe_load(path.read_text(encoding="utf-8")):
        measure = partial(MEASURES[entry.pop("measure")], **entry.pop("with", {}))
        claims.append(Claim(**entry, measure=measure))
    return tuple(claims)


CLAIMS = read_claims(Path(__file__).with_name("claims.yaml"))


def evaluate_claims(evidence: Evidence, claims: tuple[Claim, ...] = CLAIMS) -> list[ClaimResult]:
    """Measure every claim."""
    return [ClaimResult(claim, claim.measure(evidence)) for claim in claims]
