"""The searchable side of a table: its times, vectors and words in order of time, and the rankings over a window of it.

The rows of a period are one contiguous range, so the filter comes before the ranking and makes it cheaper. Three
rankings: "dense", the paper's (cosine, exact, FAISS's kernel); "bm25", over the words in SQLite's FTS5; "hybrid", the
z-scores of both added, where a raw turn is also found by what the turns around it say. All statistics (mean, spread,
document frequency) are of the rows in the window that are known, so a view as of a moment ranks as the store of that
moment would. Measured with `python -m personavlm_lib locomo`.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime

import faiss
import numpy as np

from personavlm_lib.memory.ivf import IvfIndex
from personavlm_lib.memory.records import Episode, SemanticMemory, Turn

RANKINGS = ("dense", "bm25", "hybrid")
# Anserini's BM25. The records are short, so a word counts once in each, however often it stands there.
K1, B = 0.9, 0.4
# What a word or a likeness counts for a turn when it is found one, two, three turns away. A flat optimum: other falling
# weights, or a bound at the session's end, change the recall on LoCoMo by about a point; chosen on four conversations
# of five and measured on the fifth, it is the same.
NEAR_WORDS, NEAR_SENSE = (0.75, 0.5, 0.25), (0.5, 0.25)
STOP_WORDS = frozenset(
    """a about above after again all am an and any are as at be because been before being below between both but by can
    could d did do does doing don down during each few for from further had has have having he her here hers herself him
    himself his how i if in into is it its itself just ll m me more most my myself no nor not now of off on once only or
    other our ours ourselves out over own re s same she should so some such t than that the their theirs them themselves
    then there these they this those through to too under until up ve very was we were what when where which while who
    whom why will with would you your yours yourself yourselves""".split()
)


def search_text(record: Turn | SemanticMemory | Episode) -> str:
    """What of a record is searched: an entry with its keywords, a turn with both its sides."""
    if isinstance(record, Turn):
        return f"{record.user.replace('<img>', ' ')} {record.assistant}".strip()
    content = record.summary if isinstance(record, Episode) else record.content
    return f"{content} {record.keywords}".strip()


def search_words(text: str) -> list[str]:
    """The words of a query that say something, each once. Stems are FTS5's affair."""
    return [
        word
        for word in dict.fromkeys(re.findall(r"[^\W_]+", text.lower()))
        if word not in STOP_WORDS
    ]


@dataclass(frozen=True)
class Query:
    """What is looked for: `vectors` (texts, width) for a dense or hybrid `ranking`, `words` for a lexical or hybrid.

    `approximate`: a dense ranking may begin with what an approximate index finds.
    """

    ranking: str
    words: list[str]
    vectors: np.ndarray | None = None
    approximate: bool = False


class Column:
    """An array that grows at its end. What was handed out of it stays as it was, also while another thread appends."""

    def __init__(self) -> None:
        self.rows, self._buffer = np.empty(0), np.empty(0)

    def extend(self, new: np.ndarray) -> None:
        start, stop = len(self.rows), len(self.rows) + len(new)
        if stop > len(self._buffer) or not start:
            self._buffer = np.empty((max(stop, 2 * start), *new.shape[1:]), new.dtype)
            if start:
                self._buffer[:start] = self.rows
        self._buffer[start:stop] = new
        self.rows = self._buffer[:stop]


class Timeline:
    """Columns over the records of one type in order of time, filled when first searched.

    One timeline serves a table and all that grow from it by appending: each search says which records are its own.
    `encode`: records to vectors. `matches(word, after)`: ids, above `after`, of the rows that hold the word. `near`:
    whether neighbours say something about each other. `lock` guards the columns' growth.
    """

    def __init__(
        self,
        encode: Callable[[tuple], np.ndarray],
        matches: Callable[[str, int], np.ndarray],
        lock: AbstractContextManager,
        near: bool = False,
    ) -> None:
        self._encode, self._matches, self._lock, self._near = encode, matches, lock, near
        self._starts, self._ends, self._latest_end, self._known = (
            Column(),
            Column(),
            Column(),
            Column(),
        )
        self._ids, self._lengths, self._vectors, self._cells = (
            Column(),
            Column(),
            Column(),
            IvfIndex(),
        )
        self._postings: dict[
            str, tuple[int, np.ndarray]
        ] = {}  # word -> rows looked through, rows that hold it

    def rank(
        self,
        records: tuple,
        query: Query,
        start: datetime | None,
        end: datetime | None,
        time: datetime,
    ) -> Iterator[int]:
        """Rows of `records` that overlap the period and are known at `time`, best first, for as long as one asks.

        None leaves a side open. Periods are written to the minute (Appendix A.2), so `end` includes its whole minute.
        Of rows that score alike (to six places: the same words told twice) the newer come first. "bm25" gives only
        rows that hold a word of the query. Where most rows are visible, an approximate query first gives what its index
        finds, then the others in their exact order; where few are, it is exact.
        """
        self._grow(records)
        lo, hi, visible = self._window(len(records), start, end, time)
        if query.approximate and 2 * np.count_nonzero(visible) > len(records):
            with self._lock:
                scores = self._cells.search(self._all_vectors(records), query.vectors, lo, hi)
            scores[~visible] = -np.inf
            yield from (lo + row for row in _best_first(scores))
            visible &= np.isneginf(scores)
        if visible.any():
            scores = self._scores(records, query, lo, hi, visible)
            if not visible.all():
                scores[~visible] = -np.inf
            yield from (lo + row for row in _best_first(scores))

    def _grow(self, records: tuple) -> None:
        with self._lock:
            if not (new := records[len(self._ids.rows) :]):
                return
            ends = _micros(record.happened_to for record in new)
            latest = np.maximum.accumulate(
                np.append(self._latest_end.rows[-1:].astype(ends.dtype), ends)
            )[-len(new) :]
            self._starts.extend(_micros(record.happened_from for record in new))
            self._known.extend(_micros(record.known_from for record in new))
            self._lengths.extend(np.array([len(search_text(record)) for record in new], np.float32))
            self._ends.extend(ends)
            self._latest_end.extend(latest)
            self._ids.extend(np.array([record.id for record in new]))

    def _window(
        self, n: int, start: datetime | None, end: datetime | None, time: datetime
    ) -> tuple[int, int, np.ndarray]:
        """The range [lo, hi) that the period can reach, and which rows of it are known and overlap the period."""
        end = end and end.replace(second=59, microsecond=999_999)
        first, last, now = _micros((start or datetime.min, end or datetime.max, time))
        hi = int(self._starts.rows[:n].searchsorted(last, "right"))
        lo = int(self._latest_end.rows[:hi].searchsorted(first))
        visible = self._known.rows[lo:hi] <= now
        visible &= self._ends.rows[lo:hi] >= first
        return lo, hi, visible

    def _scores(
        self, records: tuple, query: Query, lo: int, hi: int, visible: np.ndarray
    ) -> np.ndarray:
        if query.ranking == "dense":
            return self._dense(records, query.vectors, lo, hi)
        near = NEAR_WORDS if self._near and query.ranking == "hybrid" else ()
        words = self._lexical(query.words, lo, hi, visible, near)
        if query.ranking == "bm25":
            return np.where(words > 0, words, -np.inf)
        sense = self._dense(records, query.vectors, lo, hi)
        sense -= sense.mean(where=visible)
        sense[~visible] = 0  # what is outside lends nothing to its neighbours
        around = sense.copy()
        for distance, weight in enumerate(NEAR_SENSE if self._near else (), 1):
            around[distance:] += weight * sense[:-distance]
            around[:-distance] += weight * sense[distance:]
        return _standardised(around, visible) + _standardised(words, visible)

    def _dense(self, records: tuple, queries: np.ndarray, lo: int, hi: int) -> np.ndarray:
        """(hi - lo,) cosines in whole millionths, of several queries the nearest's."""
        with self._lock:
            vectors = self._all_vectors(records)[lo:hi]
        found = np.empty((len(queries), hi - lo), np.float32)
        for query, scores in zip(np.ascontiguousarray(queries, np.float32), found, strict=True):
            pointers = (faiss.swig_ptr(array) for array in (scores, query, vectors))
            faiss.fvec_inner_products_ny(*pointers, vectors.shape[1], hi - lo)
        scores = found[0] if len(found) == 1 else found.max(0)
        scores *= 1e6  # in place, and rounded there: no copy of the whole window
        return np.rint(scores, out=scores)

    def _all_vectors(self, records: tuple) -> np.ndarray:
        """(rows, width) of at least `records`."""
        if new := records[len(self._vectors.rows) :]:
            self._vectors.extend(self._encode(new))
        return self._vectors.rows

    def _lexical(
        self, words: list[str], lo: int, hi: int, visible: np.ndarray, near: tuple[float, ...]
    ) -> np.ndarray:
        """(hi - lo,) BM25; with `near` a word also counts, for less, where only a neighbour says it."""
        total, count = np.zeros(hi - lo, np.float32), np.count_nonzero(visible)
        lengths = self._lengths.rows[lo:hi]
        weights = (K1 + 1) / (1 + K1 * (1 - B + B * lengths / max(1.0, lengths[visible].mean())))
        for word in words:
            rows = self._rows(word)
            rows = rows[np.searchsorted(rows, lo) : np.searchsorted(rows, hi)] - lo
            rows = rows[visible[rows]]
            if not len(rows):
                continue
            said = np.zeros(hi - lo, np.float32)
            said[rows] = weights[rows] * math.log(1 + (count - len(rows) + 0.5) / (len(rows) + 0.5))
            heard = said.copy()
            for distance, weight in enumerate(near, 1):
                np.maximum(heard[distance:], weight * said[:-distance], out=heard[distance:])
                np.maximum(heard[:-distance], weight * said[distance:], out=heard[:-distance])
            total += heard
        return total

    def _rows(self, word: str) -> np.ndarray:
        """All rows that hold the word, in order. Kept, because common words are asked for again and take long to read;
        all words' rows together are no larger than the texts."""
        with self._lock:
            seen, rows = self._postings.get(word, (0, np.empty(0, np.int32)))
            if seen < len(ids := self._ids.rows):
                found = self._matches(word, int(ids[:seen].max(initial=-1)))
                here = np.flatnonzero(np.isin(ids[seen:], found))
                rows = np.append(rows, (seen + here).astype(np.int32))
                self._postings[word] = len(ids), rows
            return rows


def _micros(times: Iterable[datetime]) -> np.ndarray:
    """As whole numbers, which are compared ten times as fast as times are."""
    return np.array(list(times), "datetime64[us]").view(np.int64)


def _standardised(scores: np.ndarray, visible: np.ndarray) -> np.ndarray:
    known = scores if visible.all() else scores[visible]  # a copy is what takes the time here
    return (scores - known.mean()) / (known.std() or 1)


def _best_first(scores: np.ndarray, fetch: int = 32) -> Iterator[int]:
    """Row numbers by falling score, the later of equals first, without -inf; sorted in parts, as far as one asks."""
    done = 0
    while True:
        fetch = min(fetch, len(scores))
        # at least `fetch` rows reach what `fetch` of the columns reach: nearly as good a bound, and far sooner found
        width = min(8 * fetch, len(scores))
        tops = scores[: len(scores) // width * width].reshape(-1, width).max(0)
        least = np.partition(tops, -fetch)[-fetch]
        candidates = np.flatnonzero(scores >= least if least > -np.inf else scores > least)
        best = candidates[np.lexsort((candidates, scores[candidates]))[::-1]]
        yield from best[done:].tolist()
        if fetch == len(scores) or np.isneginf(least):
            return
        done, fetch = len(best), 8 * fetch
