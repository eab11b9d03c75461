"""An approximate index over the vectors of a timeline, for who has so many that reading all of them takes too long."""

from math import isqrt

import faiss
import numpy as np

# Of 100k rows, 316 cells: a search reads a twentieth. At most so many are found; who asks further gets the exact order.
PROBES, FOUND = 16, 256


class IvfIndex:
    """Vectors in the cells of a k-means (FAISS's IVF); a search reads the cells nearest the query and no others.

    Holds a second copy of the vectors. The cells are found when first searched (100k rows: a second of processor time)
    and anew when the rows have doubled. Few rows are all read: then it is exact.
    """

    def __init__(self) -> None:
        self._index, self._trained_on = None, 0

    def search(self, vectors: np.ndarray, queries: np.ndarray, lo: int, hi: int) -> np.ndarray:
        """(hi - lo,) cosines of rows lo to hi, of several queries the nearest's; -inf for those that it did not find.

        `vectors` (rows, width) may only grow from one call to the next.
        """
        if len(vectors) > 2 * self._trained_on:
            cells = f"IVF{isqrt(len(vectors))},Flat"
            self._index = faiss.index_factory(vectors.shape[1], cells, faiss.METRIC_INNER_PRODUCT)
            self._index.cp.niter, self._index.cp.min_points_per_centroid = 10, 1
            self._index.cp.max_points_per_centroid = 64
            self._index.train(vectors)
            self._trained_on = len(vectors)
        if self._index.ntotal < len(vectors):
            self._index.add(vectors[self._index.ntotal :])
        window = faiss.SearchParametersIVF(nprobe=PROBES, sel=faiss.IDSelectorRange(lo, hi))
        likeness, rows = self._index.search(queries, min(FOUND, hi - lo), params=window)
        scores = np.full(hi - lo, -np.inf, np.float32)
        np.maximum.at(scores, rows[rows >= 0] - lo, likeness[rows >= 0])
        return scores.round(6)
