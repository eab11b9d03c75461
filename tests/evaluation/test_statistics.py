"""Test that intervals cover a known truth, and paired tests on hand-computed pairs."""

from math import isnan

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest

from personavlm_lib.evaluation import statistics


def clustered_answers(rng, users: int, questions: int, mean: float) -> pd.DataFrame:
    """Answers of users whose own accuracy is mean +- 0.3, so that a user's answers correlate."""
    accuracies = mean + rng.choice([-0.3, 0.3], users)
    user = np.repeat(np.arange(users), questions)
    correct = rng.random(users * questions) < np.repeat(accuracies, questions)
    return pd.DataFrame({"user": user, "correct": correct})


def test_interval_covers_the_truth_only_if_it_resamples_users():
    rng = np.random.default_rng(1)
    covered = {"user": 0, "row": 0}
    for _ in range(60):
        frame = clustered_answers(rng, users=30, questions=20, mean=0.6)
        frame = frame.assign(row=range(600))
        for cluster in covered:
            interval = statistics.cluster_bootstrap(frame, cluster=cluster, n=300)
            covered[cluster] += interval.low <= 0.6 <= interval.high
    assert covered["user"] >= 52  # 95% of 60 is 57
    assert covered["row"] <= 45  # resampling questions gives intervals that are too narrow


def test_cluster_bootstrap_on_small_frames():
    frame = pd.DataFrame({"user": ["a", "a", "b"], "correct": [True, False, True]})
    interval = statistics.cluster_bootstrap(frame)
    assert interval.mean == pytest.approx(2 / 3)
    assert interval.n == 3
    assert interval.low <= 2 / 3 <= interval.high
    assert interval == statistics.cluster_bootstrap(frame)
    one_user = statistics.cluster_bootstrap(frame[:2])
    assert isnan(one_user.low)
    all_right = statistics.cluster_bootstrap(frame.assign(correct=True))
    assert all_right.low == 1.0
    with pytest.raises(ValueError, match="no rows"):
        statistics.cluster_bootstrap(frame[:0])


def paired_answers(a_only: int, b_only: int, both: int) -> pd.DataFrame:
    """Records of conditions a and b: how many questions only a, only b or both answer right."""
    outcomes = [(True, False)] * a_only + [(False, True)] * b_only + [(True, True)] * both
    rows = []
    for case, (a_right, b_right) in enumerate(outcomes):
        question = ("world", str(case), "choice", 0, f"u{case % 8}")
        rows.append((*question, "a", a_right))
        rows.append((*question, "b", b_right))
    columns = ["benchmark", "case", "kind", "seed", "user", "condition", "correct"]
    return pd.DataFrame(rows, columns=columns)


def test_paired_difference_and_mcnemar_on_hand_computed_pairs():
    frame = paired_answers(a_only=16, b_only=4, both=20)
    difference = statistics.paired_difference(frame, "a", "b")
    assert difference.mean == pytest.approx(0.3)
    assert difference.n == 40
    assert difference.low > 0
    assert difference.p == pytest.approx(binomtest(4, 20).pvalue)
    reverse = statistics.paired_difference(frame, "b", "a")
    assert reverse.mean == -difference.mean
    assert reverse.high < 0


def test_paired_difference_uses_only_shared_questions():
    frame = paired_answers(a_only=16, b_only=4, both=20)
    case = frame["case"].astype(int)
    partly_shared = frame[(frame["condition"] == "a") | (case < 16)]
    assert statistics.paired_difference(partly_shared, "a", "b").n == 16
    with pytest.raises(ValueError, match="share no question"):
        statistics.paired_difference(frame, "a", "c")


def test_difference_of_means():
    rng = np.random.default_rng(0)
    after = rng.normal(1.0, 0.1, 40)
    before = rng.normal(0.5, 0.1, 40)
    difference = statistics.difference_of_means(after, before)
    assert 0.4 < difference.low < difference.mean < difference.high < 0.6
    single = statistics.difference_of_means([1.0], [0.0])
    assert isnan(single.low)


def test_evidence_recall_leaves_out_questions_without_evidence():
    frame = pd.DataFrame(
        {
            "condition": ["a", "a", "a"],
            "user": ["u", "v", "w"],
            "retrieved_turns": [[1, 2], [], [5]],
            "evidence_turns": [[2, 3], [1], []],
        }
    )
    table = statistics.evidence_recall(frame)
    assert table.loc[0, "recall"] == 0.25
    assert table.loc[0, "n"] == 2


def test_mean_absolute_error():
    frame = pd.DataFrame({"user": ["u", "v"], "true": [3.0, 2.0], "estimated": [4.0, 1.5]})
    assert statistics.mean_absolute_error_interval(frame).mean == 0.75
