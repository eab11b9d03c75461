"""The searchable part of a table: times, vectors and words in order of time, and the rankings.

The rows of a period are one contiguous range, so the filter runs before the ranking and makes it
cheaper. There are three rankings:

- "dense", the paper's: exact cosine similarity, computed by FAISS.
- "bm25": BM25 over the words in SQLite's FTS5.
- "hybrid": the sum of both z-scores, where a raw turn is also found by the turns around it.

All statistics (mean, standard deviation, document frequency) are of the rows in the window that are
known, so a view as of a moment ranks exactly as the store of that moment would. Measured with
`python -m personavlm_lib locomo`.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise

import faiss
import numpy as np

from personavlm_lib.memory.ivf import IvfIndex
from personavlm_lib.memory.names import UNSPACED, fold
from personavlm_lib.memory.records import Episode, Period, SemanticMemory, Turn

Searchable = Turn | SemanticMemory | Episode
RANKINGS = ("dense", "bm25", "hybrid")
# BM25 with Anserini's parameters. The records are short, so a word counts once per record, however
# often it occurs there.
K1 = 0.9
B = 0.4
# Weights of a word or a similarity that is found one, two, three turns away. The optimum is flat:
# other decreasing weights, or stopping at the end of a session, change the recall on LoCoMo by
# about one point. Weights chosen on four of five conversations give the same recall on the fifth.
NEIGHBOR_WORDS = (0.75, 0.5, 0.25)
NEIGHBOR_COSINES = (0.5, 0.25)
STOP_WORDS = frozenset(
    """a about above after again all am an and any are as at be because been before being below
    between both but by can could d did do does doing down during each few for from further had
    has have having he her here hers herself him himself his how i if in into is it its itself just
    ll m me more most my myself no nor not now of off on once only or other our ours ourselves out
    over own re s same she should so some such t than that the their theirs them themselves then
    there these they this those through to too under until up ve very was we were what when where
    which while who whom why with would you your yours yourself yourselves""".split()
)

MARKS = "\u0300-\u036f\u0591-\u06ed\u0900-\u0dff"  # combining marks are parts of words
WORD = re.compile(rf"(?:{UNSPACED.pattern})+|(?:(?!{UNSPACED.pattern})[^\W_]|[{MARKS}])+")


def search_text(record: Searchable) -> str:
    """The searchable text of a record: content and keywords, or both sides of a turn."""
    if isinstance(record, Turn):
        user = record.user.replace("<img>", " ")
        text = f"{user} {record.assistant}"
    elif isinstance(record, Episode):
        text = f"{record.summary} {record.keywords}"
    else:
        text = f"{record.content} {record.keywords}"
    return text.strip()


def search_words(text: str) -> list[str]:
    """The distinct words of a query without stop words. FTS5 does the stemming.

    A script without spaces gives pairs of characters, which the index finds as phrases.
    """
    words: dict[str, None] = {}
    folded = re.sub(r"n['\u2019]t\b", "", fold(text))  # Don is a name, and don't is none
    for word in WORD.findall(folded):
        if UNSPACED.match(word) and len(word) > 1:  # all pairs of characters, as phrases
            words.update(dict.fromkeys(map(" ".join, pairwise(word))))
        elif word not in STOP_WORDS:
            words[word] = None
    return list(words)


def index_text(text: str) -> str:
    """The text as the lexical index holds it: in unspaced scripts, each character is a word."""
    if text.isascii():
        return text
    return UNSPACED.sub(r" \g<0> ", fold(text))


@dataclass(frozen=True)
class Query:
    """A prepared query.

    `vectors` (texts, width) are for a dense or hybrid `ranking`, `words` for a lexical or hybrid
    one. With `approximate`, a dense ranking may start with the results of an approximate index.
    """

    ranking: str
    words: list[str]
    vectors: np.ndarray | None = None
    approximate: bool = False


class Column:
    """An array that grows at its end.

    `rows` that were handed out do not change, even while another thread appends.
    """

    def __init__(self) -> None:
        self.rows = np.empty(0)
        self._buffer = np.empty(0)

    def extend(self, new: np.ndarray) -> None:
        start = len(self.rows)
        stop = start + len(new)
        if stop > len(self._buffer) or start == 0:
            capacity = max(stop, 2 * start)
            self._buffer = np.empty((capacity, *new.shape[1:]), new.dtype)
            if start > 0:
                self._buffer[:start] = self.rows
        self._buffer[start:stop] = new
        self.rows = self._buffer[:stop]


@dataclass(frozen=True)
class Window:
    """The rows [lo, hi) that a period can contain, and which of them are `visible`.

    A row is visible if it overlaps the period and is known at the time of the view.
    """

    lo: int
    hi: int
    visible: np.ndarray

    @property
    def size(self) -> int:
        return self.hi - self.lo


class Timeline:
    """Columns over the records of one kind in order of time, filled at the first search.

    One timeline serves a table and all tables that grow from it by appending: each search states
    which records are its own. `encode` turns records into vectors. `matches(word, after)` returns
    the ids above `after` of the rows that contain the word. `use_neighbors`: a hybrid ranking also
    considers the rows around each row. `lock` guards the growth of the columns.
    """

    def __init__(
        self,
        encode: Callable[[tuple], np.ndarray],
        matches: Callable[[str, int], np.ndarray],
        lock: AbstractContextManager,
        use_neighbors: bool = False,
    ) -> None:
        self._encode = encode
        self._matches = matches
        self._lock = lock
        self._use_neighbors = use_neighbors
        self._starts = Column()
        self._ends = Column()
        self._latest_end = Column()  # of all rows up to each row
        self._known = Column()
        self._ids = Column()
        self._lengths = Column()
        self._vectors = Column()
        self._ivf = IvfIndex()
        # word -> (number of rows searched, rows that contain it)
        self._postings: dict[str, tuple[int, np.ndarray]] = {}

    def rank(self, records: tuple, query: Query, period: Period, time: datetime) -> Iterator[int]:
        """Yield the rows of `records` that overlap the period and are known at `time`, best first.

        Periods are given to the minute (Appendix A.2), so the end includes its whole minute. Of
        rows with scores equal to six decimals, such as rows with the same words, the newer come
        first. "bm25" yields only rows that contain a word of the query. If most rows are visible,
        an approximate query first yields the results of its index, then all other rows in exact
        order; if few are visible, it is exact.
        """
        self._grow(records)
        window = self._window(len(records), period, time)
        visible = window.visible
        if query.approximate and 2 * np.count_nonzero(visible) > len(records):
            scores = self._approximate(records, query, window)
            scores[~visible] = -np.inf
            for row in _best_first(scores):
                yield window.lo + row
            visible &= np.isneginf(scores)
        if visible.any():
            scores = self._scores(records, query, window)
            if not visible.all():
                scores[~visible] = -np.inf
            for row in _best_first(scores):
                yield window.lo + row

    def _grow(self, records: tuple) -> None:
        with self._lock:
            new = records[len(self._ids.rows) :]
            if not new:
                return
            starts = _microseconds(record.happened_from for record in new)
            ends = _microseconds(record.happened_to for record in new)
            known = _microseconds(record.known_from for record in new)
            previous = self._latest_end.rows[-1:].astype(ends.dtype)
            latest_end = np.maximum.accumulate(np.append(previous, ends))
            lengths = [len(search_text(record)) for record in new]
            ids = [record.id for record in new]
            self._starts.extend(starts)
            self._known.extend(known)
            self._lengths.extend(np.array(lengths, np.float32))
            self._ends.extend(ends)
            self._latest_end.extend(latest_end[-len(new) :])
            self._ids.extend(np.array(ids))

    def _window(self, rows: int, period: Period, time: datetime) -> Window:
        start = period.start
        if start is None:
            start = datetime.min
        end = period.end
        if end is None:
            end = datetime.max
        else:
            end = end.replace(second=59, microsecond=999_999)
        first, last, now = _microseconds((start, end, time))
        starts = self._starts.rows[:rows]
        hi = int(starts.searchsorted(last, "right"))
        latest_end = self._latest_end.rows[:hi]
        lo = int(latest_end.searchsorted(first))
        visible = self._known.rows[lo:hi] <= now
        visible &= self._ends.rows[lo:hi] >= first
        return Window(lo, hi, visible)

    def _approximate(self, records: tuple, query: Query, window: Window) -> np.ndarray:
        """(window size,) cosines; -inf for rows that the index does not find."""
        assert query.vectors is not None
        with self._lock:
            vectors = self._all_vectors(records)
            return self._ivf.search(vectors, query.vectors, window.lo, window.hi)

    def _scores(self, records: tuple, query: Query, window: Window) -> np.ndarray:
        """(window size,) scores; -inf for rows that "bm25" does not find."""
        if query.ranking == "dense":
            return self._cosines(records, query, window)
        if query.ranking == "bm25":
            scores = self._bm25(query.words, window, ())
            return np.where(scores > 0, scores, -np.inf)
        visible = window.visible
        word_weights = NEIGHBOR_WORDS if self._use_neighbors else ()
        words = self._bm25(query.words, window, word_weights)
        cosines = self._cosines(records, query, window)
        cosines -= cosines.mean(where=visible)
        cosines[~visible] = 0  # hidden rows add nothing to their neighbors
        total = self._with_neighbors(cosines) if self._use_neighbors else cosines
        return _z_scores(total, visible) + _z_scores(words, visible)

    def _with_neighbors(self, cosines: np.ndarray) -> np.ndarray:
        total = cosines.copy()
        for distance, weight in enumerate(NEIGHBOR_COSINES, 1):
            total[distance:] += weight * cosines[:-distance]
            total[:-distance] += weight * cosines[distance:]
        return total

    def _cosines(self, records: tuple, query: Query, window: Window) -> np.ndarray:
        """(window size,) cosines to the nearest vector of the query, in whole millionths."""
        assert query.vectors is not None
        queries = np.ascontiguousarray(query.vectors, np.float32)
        with self._lock:
            vectors = self._all_vectors(records)[window.lo : window.hi]
        cosines = np.empty((len(queries), window.size), np.float32)
        width = vectors.shape[1]
        inner_products = faiss.fvec_inner_products_ny  # type: ignore[attr-defined]
        for vector, scores in zip(queries, cosines, strict=True):
            pointers = [faiss.swig_ptr(array) for array in (scores, vector, vectors)]
            inner_products(*pointers, width, window.size)
        nearest = cosines[0] if len(cosines) == 1 else cosines.max(0)
        nearest *= 1e6  # scaled and rounded in place, without a copy of the whole window
        return np.rint(nearest, out=nearest)

    def _all_vectors(self, records: tuple) -> np.ndarray:
        """(rows, width) vectors of at least `records`."""
        new = records[len(self._vectors.rows) :]
        if new:
            self._vectors.extend(self._encode(new))
        return self._vectors.rows

    def _bm25(
        self, words: list[str], window: Window, neighbor_weights: tuple[float, ...]
    ) -> np.ndarray:
        """(window size,) BM25; rows also get the weighted score of a word in a neighbor row."""
        total = np.zeros(window.size, np.float32)
        count = np.count_nonzero(window.visible)
        lengths = self._lengths.rows[window.lo : window.hi]
        mean_length = max(1.0, lengths[window.visible].mean())
        length_penalty = 1 - B + B * lengths / mean_length
        weights = (K1 + 1) / (1 + K1 * length_penalty)
        for word in words:
            rows = self._visible_rows(word, window)
            frequency = len(rows)
            if frequency == 0:
                continue
            idf = math.log(1 + (count - frequency + 0.5) / (frequency + 0.5))
            own = np.zeros(window.size, np.float32)
            own[rows] = weights[rows] * idf
            total += _best_of_neighbors(own, neighbor_weights)
        return total

    def _visible_rows(self, word: str, window: Window) -> np.ndarray:
        """The visible rows that contain the word, counted from the start of the window."""
        rows = self._rows(word)
        first = np.searchsorted(rows, window.lo)
        last = np.searchsorted(rows, window.hi)
        inside = rows[first:last] - window.lo
        visible = window.visible[inside]
        return inside[visible]

    def _rows(self, word: str) -> np.ndarray:
        """All rows that contain the word, in order.

        Cached, because queries repeat common words and those take long to read. The rows of all
        words together are no larger than the texts.
        """
        with self._lock:
            ids = self._ids.rows
            nothing = np.empty(0, np.int32)
            searched, rows = self._postings.get(word, (0, nothing))
            if searched < len(ids):
                last_id = int(ids[:searched].max(initial=-1))
                matching_ids = self._matches(word, last_id)
                matches = np.isin(ids[searched:], matching_ids)
                new_rows = searched + np.flatnonzero(matches)
                rows = np.append(rows, new_rows.astype(np.int32))
                self._postings[word] = (len(ids), rows)
            return rows


def _microseconds(times: Iterable[datetime]) -> np.ndarray:
    """Times as integers, which compare ten times as fast."""
    return np.array(list(times), "datetime64[us]").view(np.int64)


def _best_of_neighbors(own: np.ndarray, weights: tuple[float, ...]) -> np.ndarray:
    """The best of each row's own score and the weighted scores of the rows around it."""
    best = own.copy()
    for distance, weight in enumerate(weights, 1):
        following = best[distance:]
        preceding = best[:-distance]
        np.maximum(following, weight * own[:-distance], out=following)
        np.maximum(preceding, weight * own[distance:], out=preceding)
    return best


def _z_scores(scores: np.ndarray, visible: np.ndarray) -> np.ndarray:
    """Standardized scores; mean and standard deviation are those of the visible rows."""
    known = scores if visible.all() else scores[visible]  # the copy is the slow part
    return (scores - known.mean()) / (known.std() or 1)


def _best_first(scores: np.ndarray, fetch: int = 32) -> Iterator[int]:
    """Yield row numbers by decreasing score, later ones first among equals, without -inf.

    Sorts only as far as the caller iterates: the best `fetch` rows, then eight times as many.
    """
    done = 0
    while True:
        fetch = min(fetch, len(scores))
        # Of 8 * fetch columns of rows, the maxima of `fetch` columns reach the bound, so at least
        # `fetch` rows do. It is nearly as tight as the bound over all rows and found much faster.
        columns = min(8 * fetch, len(scores))
        whole = len(scores) // columns * columns
        maxima = scores[:whole].reshape(-1, columns).max(0)
        bound = np.partition(maxima, -fetch)[-fetch]
        if bound > -np.inf:
            candidates = np.flatnonzero(scores >= bound)
        else:
            candidates = np.flatnonzero(scores > bound)
        ascending = np.lexsort((candidates, scores[candidates]))
        best = candidates[ascending[::-1]]
        yield from best[done:].tolist()
        if fetch == len(scores) or np.isneginf(bound):
            return
        done = len(best)
        fetch = 8 * fetch
