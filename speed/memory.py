"""Measure the speed of the memory, of the physical limit, and of other memory systems.

    pip install -e ".[speed]"
    python speed/memory.py --json results/speed/memory.json --plot figures/speed_memory

All systems hold the same texts (twelve words of a Zipf-like vocabulary, so that very common words
occur), the same random unit vectors (384 wide) and the same times, one entry a minute. Each system
is written by one process and read by a fresh one, on the same machine, one system after another.
Searches are timed without encoding, over windows of 1%, 10% and 100% of the timeline. `limit` is
FAISS's flat index over the rows of the window, and the lexical query of SQLite's FTS5 without
changes. Writes are durable: they return when the data is on the disk (SQLite's synchronous = FULL
in ours), except for the batches of Qdrant and mem0. Processor time is given next to
wall-clock time, because it stays comparable when other work runs on the same machine.

`approximate` is our memory with an approximate index. Random vectors are the worst case for such an
index: all are almost equally far from each other, so that no cell holds the neighbors. With
`--clusters 1000`, the vectors are scattered around that many random centers (cosine to the center
0.7), as the vectors of texts with common subjects do.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import re
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from systems import SYSTEMS, WIDTH, K, LookupEncoder, Search

from results import write_results

BATCH = 1000
SINGLE_WRITES = 200
WINDOWS = {"1%": 0.01, "10%": 0.1, "100%": 1.0}
SEARCHES = {"ours": 60, "limit": 60, "approximate": 60}
OTHER_SEARCHES = 15  # some of the other systems take seconds
PACKAGES = dict(chroma="chromadb", qdrant="qdrant-client", lancedb="lancedb", mem0="mem0ai")
LEXICAL = ("bm25", "hybrid", "fts5")  # their results are not compared with exact vector search


def cluster(vectors: np.ndarray) -> np.ndarray:
    """Unit vectors, moved to random centers if there are CLUSTERS in the environment.

    A vector and its center have the same weight, so their cosine is about 0.7.
    """
    count = int(os.environ.get("CLUSTERS", 0))
    if count == 0:
        return _normalize(vectors)
    normal = np.random.default_rng(2).normal(size=(count, WIDTH))
    centers = _normalize(normal)
    n = len(vectors)
    chosen = np.random.default_rng(n).integers(count, size=n)
    chosen_centers = centers[chosen].astype(np.float32)
    offsets = _normalize(vectors)
    return _normalize(chosen_centers + offsets)


def generate_entries(n: int) -> tuple[list[str], np.ndarray]:
    """Texts, each unique by its number, and unit vectors (n, WIDTH)."""
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(n, WIDTH)).astype(np.float32)
    words = _zipf(rng, (n, 12))
    texts = []
    for i, row in enumerate(words):
        text = _text(row)
        texts.append(f"{text} n{i}")
    return texts, cluster(vectors)


def generate_queries(n: int) -> tuple[list[str], np.ndarray]:
    """Texts of five words from the entries' distribution: most hold a very common word."""
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(n, WIDTH)).astype(np.float32)
    words = _zipf(rng, (n, 5))
    texts = [_text(row) for row in words]
    return texts, cluster(vectors)


def _text(words: np.ndarray) -> str:
    return " ".join(f"w{word}" for word in words)


def _zipf(rng: np.random.Generator, shape: tuple[int, int], vocabulary: int = 20_000) -> np.ndarray:
    weights = 1 / np.arange(1, vocabulary + 1)
    return rng.choice(vocabulary, shape, p=weights / weights.sum())


def _normalize(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def clocks() -> np.ndarray:
    """Wall-clock time and processor time, in seconds."""
    return np.array([time.perf_counter(), time.process_time()])


def write(system: str, n: int, folder: Path) -> dict:
    """Fill an empty folder with `n` entries; return entries per second, in batches and singly."""
    texts, vectors = generate_entries(n)
    target = SYSTEMS[system](folder, LookupEncoder(texts, vectors))
    single = min(SINGLE_WRITES, n // 10)
    batched = n - single
    start = clocks()
    for i in range(0, batched, BATCH):
        stop = min(i + BATCH, batched)
        target.add(i, texts[i:stop], vectors[i:stop])
    batches_done = clocks()
    for i in range(batched, n):
        target.add(i, texts[i : i + 1], vectors[i : i + 1])
    singles_done = clocks()
    target.finish()
    finished = clocks()
    # The time of pending work at the end is part of the time of the batches.
    batched_s = (batches_done - start) + (finished - singles_done)
    single_s = singles_done - batches_done
    return dict(
        batched_per_s=batched / batched_s[0],
        batched_per_cpu_s=batched / batched_s[1],
        singly_per_s=single / single_s[0],
        singly_per_cpu_s=single / single_s[1],
    )


def window_spans(n: int, part: float, count: int) -> list[tuple[int, int]]:
    """`count` windows, (first row, size), of that part of the timeline, evenly distributed."""
    length = n * part
    size = max(1, int(length))
    spans = []
    for i in range(count):
        first = int((n - length) * i / count)
        spans.append((first, size))
    return spans


def exact_results(
    vectors: np.ndarray, queries: np.ndarray, spans: list[tuple[int, int]]
) -> list[set[int]]:
    """The K rows with the highest inner product in each query's window."""
    results = []
    for (first, size), query in zip(spans, queries, strict=True):
        window = vectors[first : first + size]
        scores = window @ query
        best = np.argsort(-scores)[:K]
        rows = first + best
        results.append(set(rows.tolist()))
    return results


def read(system: str, n: int, folder: Path) -> list[dict]:
    """One row per variant and window: wall-clock and processor time, and recall@10."""
    texts, queries = generate_queries(SEARCHES.get(system, OTHER_SEARCHES))
    encoder = LookupEncoder(texts, queries)
    _, vectors = generate_entries(n)
    windows = {name: window_spans(n, part, len(texts)) for name, part in WINDOWS.items()}
    exact = {name: exact_results(vectors, queries, spans) for name, spans in windows.items()}
    del vectors  # so that it does not count as the system's memory
    memory_before = psutil.Process().memory_info().rss
    start = clocks()
    target = SYSTEMS[system](folder, encoder)
    open_s, open_cpu_s = clocks() - start
    rows = []
    for variant in target.variants:
        search = target.searcher(variant)
        search(texts[0], queries[0], 0, n)  # warm up
        for name, spans in windows.items():
            milliseconds, found = time_searches(search, texts, queries, spans)
            row = dict(system=system, variant=variant, n=n, window=name)
            row |= summarize_times(milliseconds)
            row["recall"] = None if variant in LEXICAL else mean_recall(found, exact[name])
            rows.append(row)
    held = psutil.Process().memory_info().rss - memory_before
    common = dict(open_s=open_s, open_cpu_s=open_cpu_s, memory_mib=held / 2**20)
    return [row | common for row in rows]


def time_searches(
    search: Search, texts: list[str], queries: np.ndarray, spans: list[tuple[int, int]]
) -> tuple[np.ndarray, list[set[int]]]:
    """(searches, 2) milliseconds of wall-clock and processor time, and the rows found."""
    milliseconds = []
    found = []
    for text, query, (first, size) in zip(texts, queries, spans, strict=True):
        stop = first + size
        start = clocks()
        rows = search(text, query, first, stop)
        elapsed = clocks() - start
        milliseconds.append(1000 * elapsed)
        found.append(set(rows))
    return np.array(milliseconds), found


def summarize_times(milliseconds: np.ndarray) -> dict[str, Any]:
    wall, processor = milliseconds.T
    return dict(
        p50_ms=np.median(wall),
        p95_ms=np.quantile(wall, 0.95),
        best_ms=wall.min(),
        cpu_p50_ms=np.median(processor),
    )


def mean_recall(found: list[set[int]], exact: list[set[int]]) -> float:
    recalls = []
    for rows, exact_rows in zip(found, exact, strict=True):
        common = rows & exact_rows
        recalls.append(len(common) / len(exact_rows))
    return np.mean(recalls)


def measure(system: str, n: int, limit_s: int) -> list[dict]:
    """Run both processes of a system; if one fails, return a single row with the reason."""
    with tempfile.TemporaryDirectory() as path:
        folder = Path(path) / "memory"
        results = []
        for part in ("write", "read"):
            command = [sys.executable, __file__, "--part", part, system, str(n), str(folder)]
            try:
                done = subprocess.run(
                    command, capture_output=True, encoding="utf-8", timeout=limit_s
                )
            except subprocess.TimeoutExpired:
                reason = f"{part} took more than {limit_s} s"
                return [dict(system=system, n=n, failed=reason)]
            if done.returncode:
                reason = f"{part}: {first_error(done.stderr)}"
                return [dict(system=system, n=n, failed=reason)]
            last_line = done.stdout.splitlines()[-1]
            results.append(json.loads(last_line))
        files = [file for file in folder.rglob("*") if file.is_file()]
        disk_mib = sum(file.stat().st_size for file in files) / 2**20
    write_speeds, rows = results
    return [row | write_speeds | dict(disk_mib=disk_mib) for row in rows]


def first_error(stderr: str) -> str:
    """The line of the first error; others may follow during the interpreter's shutdown."""
    lines = stderr.strip().splitlines()
    for line in lines:
        if re.match(r"[\w.]*Error\b", line):
            return line
    return lines[-1]


def plot(rows: list[dict], stem: Path) -> None:
    """Plot the median processor time of a search against the number of entries, by window."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(
        1, len(WINDOWS), figsize=(11, 3.6), sharey=True, layout="constrained"
    )
    measured = [row for row in rows if "variant" in row]
    series = dict.fromkeys((row["system"], row["variant"]) for row in measured)
    styles = {"ours": "-", "approximate": "-.", "limit": "--"}
    for axis, window in zip(axes, WINDOWS, strict=True):
        for system, variant in series:
            sizes = []
            medians = []
            for row in measured:
                if (row["system"], row["variant"], row["window"]) == (system, variant, window):
                    sizes.append(row["n"])
                    medians.append(row["cpu_p50_ms"])
            style = styles.get(system, ":")
            axis.loglog(sizes, medians, style, marker="o", label=f"{system} {variant}")
        axis.set(title=f"{window} of the timeline", xlabel="entries")
    axes[0].set_ylabel("median search time (ms of processor time)")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False)
    # Without the metadata that would differ in each run.
    figure.savefig(f"{stem}.png", dpi=150, metadata={"Software": None})
    figure.savefig(f"{stem}.pdf", dpi=150, metadata={"CreationDate": None})


def run_part(part: str, system: str, n: str, folder: str) -> None:
    """Run one part in this process, print its result as JSON, and exit."""
    run = write if part == "write" else read
    result = run(system, int(n), Path(folder))
    print(json.dumps(result), flush=True)
    os._exit(0)  # some systems fail during the interpreter's shutdown, when all is done


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[1_000, 10_000, 100_000], help="entries per memory"
    )
    parser.add_argument(
        "--systems", nargs="+", default=list(SYSTEMS), choices=SYSTEMS, help="systems to measure"
    )
    parser.add_argument("--json", type=Path, help="output file; a CSV is written next to it")
    parser.add_argument("--plot", type=Path, help="path of the figure without its suffix")
    parser.add_argument(
        "--limit", type=int, default=1800, help="time limit of writing and of reading, in seconds"
    )
    parser.add_argument(
        "--clusters", type=int, default=0, help="number of centers of the vectors; 0: no clusters"
    )
    # Internal: the part that runs in a process of its own.
    parser.add_argument("--part", nargs=4, help=argparse.SUPPRESS)
    return parser.parse_args()


def describe_setup(clusters: int) -> dict:
    versions: dict[str, str | None] = {}
    for name in ("numpy", "faiss-cpu", *PACKAGES.values()):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    cores = psutil.cpu_count()
    processor = platform.processor() or platform.machine()
    threads = os.environ.get("OMP_NUM_THREADS")
    return dict(
        machine=f"{cores} x {processor}, {platform.system()}",
        load=os.getloadavg(),
        python=platform.python_version(),
        sqlite=sqlite3.sqlite_version,
        versions=versions,
        threads=threads,
        k=K,
        width=WIDTH,
        clusters=clusters,
    )


def main() -> None:
    arguments = parse_arguments()
    if arguments.part:
        run_part(*arguments.part)
    os.environ["CLUSTERS"] = str(arguments.clusters)  # read by the processes of the parts
    about = describe_setup(arguments.clusters)
    rows = []
    for n in arguments.sizes:
        for system in arguments.systems:
            for row in measure(system, n, arguments.limit):
                for key, value in row.items():
                    if isinstance(value, float):
                        row[key] = round(value, 4)
                print(row, flush=True)
                rows.append(row)
            if arguments.json:  # after each system, because the largest may take long
                write_results(arguments.json, about, rows)
    if arguments.plot:
        plot(rows, arguments.plot)


if __name__ == "__main__":
    main()
