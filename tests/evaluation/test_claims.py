"""Test that verdicts follow from the interval, and that missing results are not measured."""

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
def test_verdict_follows_from_the_interval(ours, expected):
    assert verdict(ours) == expected


def answers(kind: str, **outcomes: list[bool]) -> pd.DataFrame:
    """Records of questions of `kind`: for each condition, whether each answer is right."""
    rows = []
    for condition, hits in outcomes.items():
        for case, hit in enumerate(hits):
            rows.append(("world", f"{kind}{case}", kind, 0, f"u{case % 6}", condition, hit))
    columns = ["benchmark", "case", "kind", "seed", "user", "condition", "correct"]
    return pd.DataFrame(rows, columns=columns)


def verdicts(records=NOTHING, grpo=NOTHING, personality=NOTHING) -> dict[str, str]:
    evidence = Evidence(records, NOTHING, grpo, personality, NOTHING)
    return {result.claim.id: result.verdict for result in evaluate_claims(evidence)}


def test_an_empty_run_measures_nothing():
    assert set(verdicts().values()) == {"not measured"}


def test_claim_ids_are_unique():
    assert len(CLAIMS) == len({claim.id for claim in CLAIMS})


def test_every_claim_says_whose_it_is_and_whether_it_holds_by_construction():
    assert {claim.origin for claim in CLAIMS} == {"paper", "ours"}
    certain = {claim.id for claim in CLAIMS if claim.by_construction}
    assert certain == {"C7", "C7g", "C9"}
    for claim in CLAIMS:
        if claim.by_construction:
            assert claim.by_construction.startswith("By construction: ")


def test_accuracy_claims_follow_the_sign_of_the_difference():
    good = [True] * 25 + [False] * 5
    bad = [True] * 5 + [False] * 25
    records = answers(
        "choice", rl_own=good, no_memory=bad, sft_own=good, rl_gold=bad, rl_gold_wo_episodic=good
    )
    by_claim = verdicts(records)
    assert by_claim["C1"] == "agrees"
    assert by_claim["C2"] == "agrees"
    assert by_claim["C3"] == "undecided"
    assert by_claim["C6"] == "disagrees"
    assert by_claim["C4"] == "not measured"


def test_the_alignment_claim_uses_only_alignment_questions():
    good = [True] * 25 + [False] * 5
    bad = [True] * 5 + [False] * 25
    outcomes = {"rl_gold": good, "rl_gold_wo_pem": bad}
    assert verdicts(answers("alignment", **outcomes))["C9"] == "agrees"
    assert verdicts(answers("choice", **outcomes))["C9"] == "not measured"


def test_the_reward_claim_sorts_the_steps():
    steps = np.arange(50)
    metrics = pd.DataFrame({"step": steps, "reward": steps / 50})
    rising = metrics.sample(frac=1, random_state=0)
    assert verdicts(grpo=rising)["C5"] == "agrees"
    falling = rising.assign(reward=-rising["reward"])
    assert verdicts(grpo=falling)["C5"] == "disagrees"


def test_the_personality_claim_uses_the_last_turn():
    rows = []
    for user in range(8):
        rows.append((f"u{user}", 1, "openness", 4.5, 3.0, "own"))
        rows.append((f"u{user}", 9, "openness", 4.5, 4.2 + user / 50, "own"))
    columns = ["user", "turn", "trait", "true", "estimated", "source"]
    personality = pd.DataFrame(rows, columns=columns)
    by_claim = verdicts(personality=personality)
    assert by_claim["C7"] == "agrees"
    assert by_claim["C7g"] == "not measured"
    opposite = personality.assign(estimated=6 - personality["estimated"])
    assert verdicts(personality=opposite)["C7"] == "disagrees"
