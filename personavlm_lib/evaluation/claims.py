"""The paper's claims that a run can test, each with the number that tests it and a verdict from its interval alone.

Every claim is turned so that a positive difference is the paper's side. `agrees`: the 95% interval lies above zero;
`disagrees`: it lies below; `undecided`: it holds zero, or there are too few users to say. A claim whose conditions are
not in the run is `not measured`; nothing is guessed for it. Claims on understanding count multiple-choice questions, as
the overall score of Tables 1 and 8 does; alignment questions have their own claim.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import isnan

import pandas as pd

from personavlm_lib.evaluation.statistics import (
    Interval,
    cluster_bootstrap,
    difference_of_means,
    paired_difference,
)

NEUTRAL = (
    3.0  # the middle of the 1..5 scale: where a personality starts (the paper leaves p0 unsaid)
)
VERDICTS = ("agrees", "disagrees", "undecided", "not measured")


@dataclass(frozen=True)
class Evidence:
    """What a run left on disk; an empty frame where a file is missing.

    records: as `AnswerRecord`, of 05_evaluate and 06_ablations together. sft_metrics, grpo_metrics: a row per logged
    step. personality: user, turn, time, trait, true, estimated, source ("gold" | "own"). stages: stage,
    wall_seconds, peak_memory_gib.
    """

    records: pd.DataFrame
    sft_metrics: pd.DataFrame
    grpo_metrics: pd.DataFrame
    personality: pd.DataFrame
    stages: pd.DataFrame


@dataclass(frozen=True)
class Claim:
    """One claim: `measure` returns our difference in `unit`, or None where the run holds nothing to measure it with."""

    id: str
    sentence: str
    paper: str
    unit: str  # "points" (of accuracy, in percent) | "reward" | "scale" (of the 1..5 personality scale)
    measure: Callable[[Evidence], Interval | None]


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
    return "agrees" if ours.low > 0 else "disagrees"


def _points(a: str, b: str, kind: str = "choice") -> Callable[[Evidence], Interval | None]:
    """Accuracy of condition `a` minus that of `b` on the same questions, in percentage points."""

    def measure(evidence: Evidence) -> Interval | None:
        records = evidence.records
        if records.empty:
            return None
        records = records[records["kind"] == kind]
        if not {a, b} <= set(records["condition"]):
            return None
        found = paired_difference(records, a, b)
        return Interval(100 * found.mean, 100 * found.low, 100 * found.high, found.n, found.p)

    return measure


def _reward_gain(evidence: Evidence) -> Interval | None:
    """Mean reward over the last fifth of the logged GRPO steps minus that over the first."""
    if "reward" not in evidence.grpo_metrics:
        return None
    rewards = evidence.grpo_metrics.sort_values("step")["reward"].dropna().to_numpy()
    fifth = max(1, len(rewards) // 5)
    return difference_of_means(rewards[-fifth:], rewards[:fifth]) if len(rewards) >= 2 else None


def last_profiles(personality: pd.DataFrame) -> pd.DataFrame:
    """The rows of each user's last turn, per source: the profile that PEM ends with."""
    last = personality.groupby(["source", "user"])["turn"].transform("max")
    return personality[personality["turn"] == last]


def _nearer(source: str) -> Callable[[Evidence], Interval | None]:
    """How much nearer to the true traits the last profile is than the neutral one: error saved, mean over traits."""

    def measure(evidence: Evidence) -> Interval | None:
        if evidence.personality.empty:
            return None
        last = last_profiles(evidence.personality)
        last = last[last["source"] == source]
        if last.empty:
            return None
        saved = (last["true"] - NEUTRAL).abs() - (last["estimated"] - last["true"]).abs()
        return cluster_bootstrap(last.assign(saved=saved), "saved")

    return measure


PARTS = {  # what is taken away -> what the paper's full agent gains over that (Table 8)
    "core": "+1.68 (32k), +0.66 (128k)",
    "procedural": "+1.15 (32k), +1.66 (128k)",
    "semantic": "+1.77 (32k), +1.11 (128k)",
    "reasoning": "+2.75 (32k), +3.73 (128k)",
}
_NO_FLOOR = "no floor without memory printed; PersonaVLM {} against 25.0 by chance (Tables 1 and 4)"

CLAIMS = (
    Claim(
        "C1",
        "PersonaVLM after RL, on the memory it wrote itself, answers better than without memory.",
        _NO_FLOOR.format("71.48 (32k), 71.05 (128k)"),
        "points",
        _points("rl_own", "no_memory"),
    ),
    Claim(
        "C2",
        "PersonaVLM after SFT, on the memory it wrote itself, answers better than without memory.",
        _NO_FLOOR.format("(SFT) 64.84 (32k), 67.18 (128k)"),
        "points",
        _points("sft_own", "no_memory"),
    ),
    Claim(
        "C2g",
        "PersonaVLM after SFT, on gold memory, answers better than without memory.",
        "the same numbers; gold memory is not in the paper",
        "points",
        _points("sft_gold", "no_memory"),
    ),
    Claim(
        "C3",
        "RL improves on SFT, both on the memory they wrote themselves.",
        "+6.64 (32k), +3.87 (128k) (Table 1)",
        "points",
        _points("rl_own", "sft_own"),
    ),
    Claim(
        "C4",
        "RL improves on SFT when both read gold memory.",
        "+6.64 (32k), +3.87 (128k) on own memory (Table 1)",
        "points",
        _points("rl_gold", "sft_gold"),
    ),
    Claim(
        "C5",
        "GRPO ends with a higher mean reward than it starts with (last fifth of the steps against the first).",
        "no reward printed (Section 3.2, Eq. 3)",
        "reward",
        _reward_gain,
    ),
    Claim(
        "C6",
        "Without episodic memory the answers are worse.",
        "+12.41 (32k), +5.19 (128k) with it (Table 8)",
        "points",
        _points("rl_gold", "rl_gold_wo_episodic"),
    ),
    *(
        Claim(
            f"C6{kind[0]}",
            f"Without {kind} {'memory' if kind != 'reasoning' else 'over several rounds'} the answers are worse.",
            f"{paper} with it (Table 8)",
            "points",
            _points("rl_gold", f"rl_gold_wo_{kind}"),
        )
        for kind, paper in PARTS.items()
    ),
    Claim(
        "C7",
        "PEM, on the model's own readings, ends nearer to the true personality than the neutral start.",
        "curves only, ten users (Fig. 14)",
        "scale",
        _nearer("own"),
    ),
    Claim(
        "C7g",
        "PEM, on the true reading of each turn, ends nearer to the true personality than the neutral start.",
        "curves only, ten users (Fig. 14)",
        "scale",
        _nearer("gold"),
    ),
    Claim(
        "C8",
        "PersonaVLM beats the backbone that sees the five most similar turns.",
        "+10.28 (32k), +12.04 (128k) (Table 1)",
        "points",
        _points("rl_own", "backbone_rag5"),
    ),
    Claim(
        "C8f",
        "PersonaVLM beats the backbone that sees all turns.",
        "+6.64 (32k), +16.57 (128k) (from Table 1)",
        "points",
        _points("rl_own", "backbone_full"),
    ),
    Claim(
        "C9",
        "With the personality profile, alignment is judged better than without.",
        "+4.0 on P-SOUPS (Table 9)",
        "points",
        _points("rl_gold", "rl_gold_wo_pem", kind="alignment"),
    ),
)


def evaluate_claims(evidence: Evidence, claims: tuple[Claim, ...] = CLAIMS) -> list[ClaimResult]:
    """Our number for every claim."""
    return [ClaimResult(claim, claim.measure(evidence)) for claim in claims]
