"""Intervals that cover a known truth, and tests on hand-worked pairs."""

from math import isnan

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest

from personavlm_lib.evaluation import statistics


def clustered(rng, users: int, each: int, mean: float) -> pd.DataFrame:
    """Users who differ: a user's own rate is mean +- 0.3, so that questions of one user are alike."""
    rates = mean + rng.choice([-0.3, 0.3], users)
    return pd.DataFrame(
        {
            "user": np.repeat(np.arange(users), each),
            "correct": rng.random(users * each) < np.repeat(rates, each),
        }
    )


def test_interval_covers_the_truth_because_it_resamples_users():
    rng = np.random.default_rng(1)
    covered = {"user": 0, "row": 0}
    for _ in range(60):
        frame = clustered(rng, users=30, each=20, mean=0.6).assign(row=range(600))
        for cluster in covered:
            found = statistics.cluster_bootstrap(frame, cluster=cluster, n=300)
            covered[cluster] += found.low <= 0.6 <= found.high
    assert covered["user"] >= 52  # 95% of 60 is 57
    assert covered["row"] <= 45  # resampling questions would promise too much


def test_small_cases():
    frame = pd.DataFrame({"user": ["a", "a", "b"], "correct": [True, False, True]})
    found = statistics.cluster_bootstrap(frame)
    assert (found.mean, found.n) == (pytest.approx(2 / 3), 3) and found.low <= 2 / 3 <= found.high
    assert found == statistics.cluster_bootstrap(frame)
    assert isnan(statistics.cluster_bootstrap(frame[:2]).low)  # one user: no interval
    assert statistics.cluster_bootstrap(frame.assign(correct=True)).low == 1.0
    with pytest.raises(ValueError, match="no rows"):
        statistics.cluster_bootstrap(frame[:0])


def pairs(a_only: int, b_only: int, both: int) -> pd.DataFrame:
    outcomes = [(True, False)] * a_only + [(False, True)] * b_only + [(True, True)] * both
    rows = [
        ("world", str(case), "choice", 0, f"u{case % 8}", condition, right)
        for case, pair in enumerate(outcomes)
        for condition, right in zip("ab", pair, strict=True)
    ]
    return pd.DataFrame(
        rows, columns=["benchmark", "case", "kind", "seed", "user", "condition", "correct"]
    )


def test_paired_difference_and_mcnemar():
    frame = pairs(a_only=16, b_only=4, both=20)
    found = statistics.paired_difference(frame, "a", "b")
    assert found.mean == pytest.approx(0.3) and found.n == 40 and found.low > 0
    assert found.p == pytest.approx(binomtest(4, 20).pvalue)
    turned = statistics.paired_difference(frame, "b", "a")
    assert turned.mean == -found.mean and turned.high < 0
    only_shared = frame[(frame["condition"] == "a") | (frame["case"].astype(int) < 16)]
    assert statistics.paired_difference(only_shared, "a", "b").n == 16
    with pytest.raises(ValueError, match="share no question"):
        statistics.paired_difference(frame, "a", "c")


def test_difference_of_means():
    rng = np.random.default_rng(0)
    found = statistics.difference_of_means(rng.normal(1.0, 0.1, 40), rng.normal(0.5, 0.1, 40))
    assert 0.4 < found.low < found.mean < found.high < 0.6
    assert isnan(statistics.difference_of_means([1.0], [0.0]).low)


def test_evidence_recall_leaves_out_questions_without_evidence():
    frame = pd.DataFrame(
        {
            "condition": ["a", "a", "a"],
            "user": ["u", "v", "w"],
            "retrieved_turns": [[1, 2], [], [5]],
            "evidence_turns": [[2, 3], [1], []],
        }
    )
    found = statistics.evidence_recall(frame)
    assert found.loc[0, "recall"] == 0.25 and found.loc[0, "n"] == 2


def test_mean_absolute_error():
    frame = pd.DataFrame({"user": ["u", "v"], "true": [3.0, 2.0], "estimated": [4.0, 1.5]})
    assert statistics.mean_absolute_error_interval(frame).mean == 0.75
