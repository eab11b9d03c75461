"""An approximate vector index, for timelines too long for a comparison with every vector."""

from math import isqrt
from typing import Any

import faiss
import numpy as np

PROBES = 16  # cells per search: of 100k rows in 316 cells, a twentieth is read
MAX_RESULTS = 256  # per search; the timeline ranks all further rows exactly


class IvfIndex:
    """FAISS's IVF: vectors in the cells of a k-means; a search reads only the nearest cells.

    Holds a second copy of the vectors. The cells are trained at the first search (100k rows: one
    second of processor time) and again whenever the number of rows has doubled. With few rows all
    cells are read and the result is exact.
    """

    def __init__(self) -> None:
        self._index: Any = None  # a faiss.IndexIVF; its type stubs lack most attributes
        self._trained_on = 0

    def search(self, vectors: np.ndarray, queries: np.ndarray, lo: int, hi: int) -> np.ndarray:
        """(hi - lo,) cosines of rows lo to hi to the nearest query; -inf for rows not found.

        `vectors` (rows, width) may only grow from one call to the next.
        """
        self._grow(vectors)
        selector = faiss.IDSelectorRange(lo, hi)
        window = faiss.SearchParametersIVF(nprobe=PROBES, sel=selector)  # type: ignore[call-arg]
        count = min(MAX_RESULTS, hi - lo)
        cosines, rows = self._index.search(queries, count, params=window)
        found = rows >= 0  # the index pads with -1
        places = rows[found] - lo
        scores = np.full(hi - lo, -np.inf, np.float32)
        np.maximum.at(scores, places, cosines[found])
        return scores.round(6)

    def _grow(self, vectors: np.ndarray) -> None:
        if len(vectors) > 2 * self._trained_on:
            self._index = _train(vectors)
            self._trained_on = len(vectors)
        indexed = self._index.ntotal
        if indexed < len(vectors):
            self._index.add(vectors[indexed:])


def _train(vectors: np.ndarray) -> Any:
    cells = f"IVF{isqrt(len(vectors))},Flat"
    index: Any = faiss.index_factory(vectors.shape[1], cells, faiss.METRIC_INNER_PRODUCT)
    index.cp.niter = 10
    index.cp.min_points_per_centroid = 1
    index.cp.max_points_per_centroid = 64
    index.train(vectors)
    return index
