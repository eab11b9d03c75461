"""Intervals and paired tests over records.

Questions about one user share a life, so users, not questions, are resampled: a percentile bootstrap over clusters.
The paper prints single numbers without any interval; every interval here is ours.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import nan

import numpy as np
import pandas as pd
from scipy.stats import bootstrap
from statsmodels.stats.contingency_tables import mcnemar

from personavlm_lib.evaluation.records import QUESTION


@dataclass(frozen=True)
class Interval:
    """A mean with its 95% interval; `n` is the number of rows (or steps) behind it, `p` McNemar's where it applies.

    Fewer than two clusters give `low` and `high` of nan: there is nothing to resample.
    """

    mean: float
    low: float
    high: float
    n: int
    p: float = nan


def cluster_bootstrap(
    frame: pd.DataFrame, value: str = "correct", cluster: str = "user", n: int = 2000, seed: int = 0
) -> Interval:
    """Mean of `value` over rows, with a 95% interval from `n` resamples of whole clusters.

    ValueError on an empty frame.
    """
    if frame.empty:
        raise ValueError(f"no rows to take the mean of {value!r} from")
    groups = (
        frame.assign(_value=frame[value].astype(float))
        .groupby(cluster)["_value"]
        .agg(["sum", "count"])
    )
    sums, counts = groups["sum"].to_numpy(), groups["count"].to_numpy()
    mean = sums.sum() / counts.sum()
    if len(groups) < 2:
        return Interval(mean, nan, nan, len(frame))
    if (
        np.ptp(sums / counts) == 0
    ):  # all clusters alike: the interval is the point, and scipy would warn
        return Interval(mean, mean, mean, len(frame))
    found = bootstrap(
        (sums, counts),
        lambda s, c, axis: s.sum(axis=axis) / c.sum(axis=axis),
        paired=True,
        vectorized=True,
        n_resamples=n,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(mean, float(found.low), float(found.high), len(frame))


def paired_difference(
    frame: pd.DataFrame,
    a: str,
    b: str,
    value: str = "correct",
    cluster: str = "user",
    n: int = 2000,
    seed: int = 0,
) -> Interval:
    """Condition `a` minus condition `b` on the questions that both answered, users resampled.

    `p` is McNemar's exact test, which takes questions as independent; verdicts rest on the interval, not on it.

    ValueError if they share no question.
    """
    wide = frame[frame["condition"].isin([a, b])].pivot(
        index=[*QUESTION, cluster], columns="condition", values=value
    )
    if not {a, b} <= set(wide.columns) or (wide := wide.dropna()).empty:
        raise ValueError(f"conditions {a!r} and {b!r} share no question")
    first, second = wide[a].astype(float), wide[b].astype(float)
    found = cluster_bootstrap(
        (first - second).rename("difference").reset_index(), "difference", cluster, n, seed
    )
    table = [[0, int((first > second).sum())], [int((first < second).sum()), 0]]
    p = float(mcnemar(table, exact=True).pvalue) if sum(map(sum, table)) else 1.0
    return Interval(found.mean, found.low, found.high, found.n, p)


def difference_of_means(
    after: Sequence[float], before: Sequence[float], n: int = 2000, seed: int = 0
) -> Interval:
    """Mean of `after` minus mean of `before`, two independent samples, each resampled by itself."""
    after, before = np.asarray(after, dtype=float), np.asarray(before, dtype=float)
    mean, count = float(after.mean() - before.mean()), len(after) + len(before)
    if min(len(after), len(before)) < 2:
        return Interval(mean, nan, nan, count)
    if np.ptp(after) == np.ptp(before) == 0:
        return Interval(mean, mean, mean, count)
    found = bootstrap(
        (after, before),
        lambda x, y, axis: x.mean(axis=axis) - y.mean(axis=axis),
        vectorized=True,
        n_resamples=n,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(mean, float(found.low), float(found.high), count)


def accuracy_table(
    frame: pd.DataFrame, by: Sequence[str] = ("condition",), value: str = "correct"
) -> pd.DataFrame:
    """One row per group, in the order of first appearance: the columns of `by`, then n, accuracy, low, high (0..1)."""
    rows = []
    for names, group in frame.groupby(list(by), sort=False):
        found = cluster_bootstrap(group, value)
        rows.append((*names, found.n, found.mean, found.low, found.high))
    return pd.DataFrame(rows, columns=[*by, "n", "accuracy", "low", "high"])


def evidence_recall(frame: pd.DataFrame) -> pd.DataFrame:
    """Share of a question's evidence turns among the turns retrieved for it, per condition: condition, n, recall, ...

    Questions without evidence turns are left out. Columns condition, n, recall, low, high.
    """
    rows = frame[frame["evidence_turns"].map(len) > 0]
    found = [
        len(set(got) & set(want)) / len(set(want))
        for got, want in zip(rows["retrieved_turns"], rows["evidence_turns"], strict=True)
    ]
    return accuracy_table(rows.assign(recall=found), value="recall").rename(
        columns={"accuracy": "recall"}
    )


def mean_absolute_error_interval(
    frame: pd.DataFrame,
    estimated: str = "estimated",
    true: str = "true",
    cluster: str = "user",
    seed: int = 0,
) -> Interval:
    """Mean absolute error of `estimated` against `true` (same unit as both), users resampled."""
    return cluster_bootstrap(
        frame.assign(error=(frame[estimated] - frame[true]).abs()), "error", cluster, seed=seed
    )
