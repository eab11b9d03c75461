"""The claims that a run can test, the paper's and ours, each with our number and a verdict.

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

import pandas as pd

from personavlm_lib.evaluation.statistics import (
    Interval,
    cluster_bootstrap,
    difference_of_means,
    paired_difference,
)

# Every personality starts at the middle of the 1..5 scale; the paper does not give p_0.
INITIAL_SCORE = 3.0
VERDICTS = ("agrees", "disagrees", "undecided", "not measured")


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
    """One of `VERDICTS`, from the interval alone."""
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


def _gain(a: str, b: str, kind: str = "choice") -> Measure:
    """Measure by how much condition `a` answers better than condition `b`."""
    return partial(_accuracy_gain, a=a, b=b, kind=kind)


_NO_FLOOR = "no floor without memory printed; PersonaVLM {} against 25.0 by chance (Tables 1 and 4)"
_PULL_FROM_NEUTRAL = (
    "By construction: most true traits are drawn away from the neutral start, so nearly any "
    "profile that follows the readings ends closer than one that is never updated."
)

CLAIMS = (
    Claim(
        "C1",
        "ours",
        "PersonaVLM after RL, on the memory it wrote itself, answers better than without memory.",
        _NO_FLOOR.format("71.48 (32k), 71.05 (128k)"),
        "points",
        _gain("rl_own", "no_memory"),
    ),
    Claim(
        "C2",
        "ours",
        "PersonaVLM after SFT, on the memory it wrote itself, answers better than without memory.",
        _NO_FLOOR.format("(SFT) 64.84 (32k), 67.18 (128k)"),
        "points",
        _gain("sft_own", "no_memory"),
    ),
    Claim(
        "C2g",
        "ours",
        "PersonaVLM after SFT, on gold memory, answers better than without memory.",
        "the same numbers; gold memory is not in the paper",
        "points",
        _gain("sft_gold", "no_memory"),
    ),
    Claim(
        "C3",
        "paper",
        "RL improves on SFT when each reads the memory it wrote itself.",
        "+6.64 (32k), +3.87 (128k) (Table 1)",
        "points",
        _gain("rl_own", "sft_own"),
    ),
    Claim(
        "C4",
        "ours",
        "RL improves on SFT when both read gold memory.",
        "+6.64 (32k), +3.87 (128k) on own memory (Table 1)",
        "points",
        _gain("rl_gold", "sft_gold"),
    ),
    Claim(
        "C5",
        "ours",
        "GRPO ends with a higher mean reward than it starts with "
        "(last fifth of the steps against the first).",
        "no reward printed (Section 3.2, Eq. 3)",
        "reward",
        _reward_gain,
    ),
    # C6 and its variants: the gain of the full agent over the agent without one part (Table 8).
    Claim(
        "C6",
        "paper",
        "Without episodic memory the answers are worse.",
        "+12.41 (32k), +5.19 (128k) with it (Table 8)",
        "points",
        _gain("rl_gold", "rl_gold_wo_episodic"),
    ),
    Claim(
        "C6c",
        "paper",
        "Without core memory the answers are worse.",
        "+1.68 (32k), +0.66 (128k) with it (Table 8)",
        "points",
        _gain("rl_gold", "rl_gold_wo_core"),
    ),
    Claim(
        "C6p",
        "paper",
        "Without procedural memory the answers are worse.",
        "+1.15 (32k), +1.66 (128k) with it (Table 8)",
        "points",
        _gain("rl_gold", "rl_gold_wo_procedural"),
    ),
    Claim(
        "C6s",
        "paper",
        "Without semantic memory the answers are worse.",
        "+1.77 (32k), +1.11 (128k) with it (Table 8)",
        "points",
        _gain("rl_gold", "rl_gold_wo_semantic"),
    ),
    Claim(
        "C6r",
        "paper",
        "Without reasoning over several rounds the answers are worse.",
        "+2.75 (32k), +3.73 (128k) with it (Table 8)",
        "points",
        _gain("rl_gold", "rl_gold_wo_reasoning"),
    ),
    Claim(
        "C7",
        "ours",
        "PEM, on the model's own readings, ends closer to the true personality "
        "than the neutral start.",
        "curves only, ten users (Fig. 14)",
        "scale",
        partial(_error_reduction, source="own"),
        _PULL_FROM_NEUTRAL,
    ),
    Claim(
        "C7g",
        "ours",
        "PEM, on the true reading of each turn, ends closer to the true personality "
        "than the neutral start.",
        "curves only, ten users (Fig. 14)",
        "scale",
        partial(_error_reduction, source="gold"),
        _PULL_FROM_NEUTRAL,
    ),
    Claim(
        "C8",
        "paper",
        "PersonaVLM beats the backbone that sees the five most similar turns.",
        "+10.28 (32k), +12.04 (128k) (Table 1)",
        "points",
        _gain("rl_own", "backbone_rag5"),
    ),
    Claim(
        "C8f",
        "paper",
        "PersonaVLM beats the backbone that sees all turns.",
        "+6.64 (32k), +16.57 (128k) (from Table 1)",
        "points",
        _gain("rl_own", "backbone_full"),
    ),
    Claim(
        "C9",
        "paper",
        "Alignment is judged better with the personality profile than without it.",
        "+4.0 on P-SOUPS (Table 9)",
        "points",
        _gain("rl_gold", "rl_gold_wo_pem", kind="alignment"),
        "By construction: the user's traits alone decide the right answer, and the profile states "
        "them.",
    ),
)


def evaluate_claims(evidence: Evidence, claims: tuple[Claim, ...] = CLAIMS) -> list[ClaimResult]:
    """Measure every claim."""
    return [ClaimResult(claim, claim.measure(evidence)) for claim in claims]
