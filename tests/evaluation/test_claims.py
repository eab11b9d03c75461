"""Verdicts follow the interval and its side, and what a run lacks is not guessed."""

from math import nan

import numpy as np
import pandas as pd
import pytest

from personavlm_lib.evaluation.claims import CLAIMS, Evidence, evaluate_claims, verdict
from personavlm_lib.evaluation.statistics import Interval

NOTHING = pd.DataFrame()


@pytest.mark.parametrize(
    "ours, expected",
    [
        (Interval(0.2, 0.1, 0.3, 9), "agrees"),
        (Interval(-0.2, -0.3, -0.1, 9), "disagrees"),
        (Interval(0.2, -0.1, 0.5, 9), "undecided"),
        (Interval(0.0, 0.0, 0.0, 9), "undecided"),
        (Interval(0.5, nan, nan, 9), "undecided"),
        (None, "not measured"),
    ],
)
def test_verdict(ours, expected):
    assert verdict(ours) == expected


def answers(kind: str, **right: list[bool]) -> pd.DataFrame:
    rows = [
        ("world", f"{kind}{case}", kind, 0, f"u{case % 6}", condition, hit)
        for condition, hits in right.items()
        for case, hit in enumerate(hits)
    ]
    return pd.DataFrame(
        rows, columns=["benchmark", "case", "kind", "seed", "user", "condition", "correct"]
    )


def verdicts(records=NOTHING, grpo=NOTHING, personality=NOTHING) -> dict[str, str]:
    evidence = Evidence(records, NOTHING, grpo, personality, NOTHING)
    return {finding.claim.id: finding.verdict for finding in evaluate_claims(evidence)}


def test_nothing_is_not_measured():
    assert set(verdicts().values()) == {"not measured"} and len(CLAIMS) == len(
        {claim.id for claim in CLAIMS}
    )


def test_accuracy_claims_flip_with_the_sign():
    good, bad = [True] * 25 + [False] * 5, [True] * 5 + [False] * 25
    found = verdicts(
        answers(
            "choice",
            rl_own=good,
            no_memory=bad,
            sft_own=good,
            rl_gold=bad,
            rl_gold_wo_episodic=good,
        )
    )
    assert [found[name] for name in ("C1", "C2", "C3", "C6", "C4")] == [
        "agrees", "agrees", "undecided", "disagrees", "not measured",
    ]  # fmt: skip
    alignment = {"rl_gold": good, "rl_gold_wo_pem": bad}
    assert verdicts(answers("alignment", **alignment))["C9"] == "agrees"
    assert (
        verdicts(answers("choice", **alignment))["C9"] == "not measured"
    )  # other questions do not count


def test_reward_claim_reads_the_steps_in_order():
    steps = np.arange(50)
    rising = pd.DataFrame({"step": steps, "reward": steps / 50}).sample(frac=1, random_state=0)
    assert verdicts(grpo=rising)["C5"] == "agrees"
    assert verdicts(grpo=rising.assign(reward=-rising["reward"]))["C5"] == "disagrees"


def test_personality_claim_takes_the_last_turn():
    rows = [
        (f"u{user}", turn, "openness", 4.5, estimate, "own")
        for user in range(8)
        for turn, estimate in ((1, 3.0), (9, 4.2 + user / 50))
    ]
    personality = pd.DataFrame(
        rows, columns=["user", "turn", "trait", "true", "estimated", "source"]
    )
    found = verdicts(personality=personality)
    assert found["C7"] == "agrees" and found["C7g"] == "not measured"
    assert (
        verdicts(personality=personality.assign(estimated=lambda p: 6 - p["estimated"]))["C7"]
        == "disagrees"
    )
