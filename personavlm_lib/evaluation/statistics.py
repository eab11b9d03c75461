"""Intervals and paired tests over records.

Answers about one user are not independent, because they are about the same simulated life. The
percentile bootstrap therefore resamples users, not questions. The paper prints no intervals; every
interval here is ours.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import nan

import numpy as np
import pandas as pd
from scipy.stats import bootstrap
from statsmodels.stats.contingency_tables import mcnemar

from personavlm_lib.evaluation.records import QUESTION


@dataclass(frozen=True)
class Interval:
    """A mean with its 95% interval.

    `n` is the number of rows or steps in the mean, `p` the p-value of McNemar's test (nan if it
    does not apply). With fewer than two clusters there is nothing to resample: `low` and `high` are
    nan.
    """

    mean: float
    low: float
    high: float
    n: int
    p: float = nan


def cluster_bootstrap(
    frame: pd.DataFrame, value: str = "correct", cluster: str = "user", n: int = 2000, seed: int = 0
) -> Interval:
    """Mean of column `value`, with a 95% interval from `n` resamples of whole clusters.

    Rows without a value (nan: unscored) do not count. Raises ValueError if there are no others.
    """
    frame = frame.dropna(subset=value)
    if frame.empty:
        raise ValueError(f"cannot take the mean of {value!r}: the frame has no rows")
    rows = len(frame)
    values = frame.assign(_value=frame[value].astype(float))
    clusters = values.groupby(cluster)["_value"].agg(["sum", "count"])
    sums = clusters["sum"].to_numpy()
    counts = clusters["count"].to_numpy()
    mean = sums.sum() / counts.sum()
    if len(clusters) < 2:
        return Interval(mean, nan, nan, rows)
    if np.ptp(sums / counts) == 0:  # all clusters are equal: scipy would warn
        return Interval(mean, mean, mean, rows)

    def resampled_mean(sums: np.ndarray, counts: np.ndarray, axis: int) -> np.ndarray:
        return sums.sum(axis=axis) / counts.sum(axis=axis)

    low, high = _percentiles((sums, counts), resampled_mean, n, seed, paired=True)
    return Interval(mean, low, high, rows)


def _percentiles(
    samples: tuple[np.ndarray, ...],
    statistic: Callable,
    n: int = 2000,
    seed: int = 0,
    paired: bool = False,
) -> tuple[float, float]:
    """The 95% percentile interval of a statistic of the samples over `n` resamples."""
    result = bootstrap(
        samples,
        statistic,
        paired=paired,
        vectorized=True,
        n_resamples=n,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    interval = result.confidence_interval
    return float(interval.low), float(interval.high)


def paired_difference(frame: pd.DataFrame, a: str, b: str) -> Interval:
    """Condition `a` minus condition `b` on the questions that both answered; users are resampled.

    `p` is the p-value of McNemar's exact test, which treats questions as independent. Verdicts use
    the interval, not `p`. Raises ValueError if the conditions share no question.
    """
    records = frame[frame["condition"].isin([a, b])]
    answers = records.pivot(index=[*QUESTION, "user"], columns="condition", values="correct")
    shared = answers.reindex(columns=[a, b]).dropna()
    if shared.empty:
        raise ValueError(f"conditions {a!r} and {b!r} share no question")
    first = shared[a].astype(float)
    second = shared[b].astype(float)
    difference = (first - second).rename("difference").reset_index()
    interval = cluster_bootstrap(difference, "difference")
    return replace(interval, p=_mcnemar(first, second))


def _mcnemar(first: pd.Series, second: pd.Series) -> float:
    """p-value of McNemar's exact test; 1 if the two never differ."""
    only_first = int((first > second).sum())
    only_second = int((first < second).sum())
    if only_first + only_second == 0:
        return 1.0
    table = [[0, only_first], [only_second, 0]]
    return float(mcnemar(table, exact=True).pvalue)


def difference_of_means(
    after: Sequence[float] | np.ndarray, before: Sequence[float] | np.ndarray
) -> Interval:
    """Mean of `after` minus mean of `before`: two independent samples, resampled separately."""
    late = np.asarray(after, dtype=float)
    early = np.asarray(before, dtype=float)
    difference = float(late.mean() - early.mean())
    count = len(late) + len(early)
    if min(len(late), len(early)) < 2:
        return Interval(difference, nan, nan, count)
    if np.ptp(late) == np.ptp(early) == 0:
        return Interval(difference, difference, difference, count)

    def resampled_difference(late: np.ndarray, early: np.ndarray, axis: int) -> np.ndarray:
        return late.mean(axis=axis) - early.mean(axis=axis)

    low, high = _percentiles((late, early), resampled_difference)
    return Interval(difference, low, high, count)


def accuracy_table(
    frame: pd.DataFrame, by: Sequence[str] = ("condition",), value: str = "correct"
) -> pd.DataFrame:
    """One row per group, in order of first appearance.

    Columns: those of `by`, then n, accuracy, low, high (shares, 0..1), unscored. `unscored` rows
    got no reply and are not among the n.
    """
    rows = []
    for names, group in frame.groupby(list(by), sort=False):
        unscored = int(group[value].isna().sum())
        share = Interval(nan, nan, nan, 0)
        if unscored < len(group):
            share = cluster_bootstrap(group, value)
        rows.append((*names, share.n, share.mean, share.low, share.high, unscored))
    return pd.DataFrame(rows, columns=[*by, "n", "accuracy", "low", "high", "unscored"])


def evidence_recall(frame: pd.DataFrame) -> pd.DataFrame:
    """Share of a question's evidence turns among the turns retrieved for it, per condition.

    Questions without evidence turns are left out. Columns: condition, n, recall, low, high.
    """
    if "correct" in frame:
        frame = frame.dropna(subset="correct")
    rows = frame[frame["evidence_turns"].map(len) > 0]
    recalls = []
    for retrieved, evidence in zip(rows["retrieved_turns"], rows["evidence_turns"], strict=True):
        wanted = set(evidence)
        hits = wanted.intersection(retrieved)
        recalls.append(len(hits) / len(wanted))
    table = accuracy_table(rows.assign(recall=recalls), value="recall")
    return table.rename(columns={"accuracy": "recall"}).drop(columns="unscored")


def mean_absolute_error_interval(
    frame: pd.DataFrame, estimated: str = "estimated", true: str = "true"
) -> Interval:
    """Mean absolute error of column `estimated` against `true`, in their unit; users resampled."""
    error = (frame[estimated] - frame[true]).abs()
    return cluster_bootstrap(frame.assign(error=error), "error")
