"""How fast the memory is, beside what is physically possible and beside what people would use instead.

    pip install -e ".[speed]" && python speed/memory.py --json results/speed/memory.json --plot figures/speed_memory

Every system holds the same texts (twelve words of a Zipf-like vocabulary, so that very common words occur), the same
random unit vectors (384 wide) and the same times, one entry a minute. Each is written by one process and read by a
fresh one, on the same machine, one after another. Searches are timed without encoding, over windows of 1%, 10% and 100%
of the timeline. `limit` is FAISS's flat index over the rows of the window, and beside it the lexical query of SQLite's
FTS5 as it comes. Writes are durable: the disk has been waited for (SQLite's synchronous = FULL in ours), but for the
batches of Qdrant and mem0. Beside the clock stands the processor time, which is what remains comparable where other
work runs on the same machine.

`approximate` is ours with an approximate index. Random vectors are the worst case for every such index: all are nearly
equally far from each other, so that no cell holds the neighbours. With `--clusters 1000` the vectors lie around so many
random centres (cosine to the centre 0.7), as those of texts do that share their subjects.
"""

import argparse
import csv
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

import numpy as np
import psutil
from systems import SYSTEMS, WIDTH, Given, K

BATCH, ONE_BY_ONE = 1000, 200
WINDOWS = {"1%": 0.01, "10%": 0.1, "100%": 1.0}
SEARCHES = {
    "ours": 60,
    "limit": 60,
    "approximate": 60,
}  # a peer is asked 15 times: some take seconds
PACKAGES = dict(chroma="chromadb", qdrant="qdrant-client", lancedb="lancedb", mem0="mem0ai")


def clustered(vectors: np.ndarray) -> np.ndarray:
    """Unit vectors; with CLUSTERS in the environment each about as far from a centre as that is long."""
    centres = _unit(
        np.random.default_rng(2).normal(size=(int(os.environ.get("CLUSTERS", 0)), WIDTH))
    )
    if not len(centres):
        return _unit(vectors)
    chosen = np.random.default_rng(len(vectors)).integers(len(centres), size=len(vectors))
    return _unit(centres[chosen].astype(np.float32) + _unit(vectors))


def entries(n: int) -> tuple[list[str], np.ndarray]:
    """Texts, each with its number so that none is there twice, and unit vectors (n, WIDTH)."""
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(n, WIDTH)).astype(np.float32)
    chosen = _zipf(rng, (n, 12))
    return [f"{' '.join(f'w{w}' for w in row)} n{i}" for i, row in enumerate(chosen)], clustered(
        vectors
    )


def queries(n: int) -> tuple[list[str], np.ndarray]:
    """Five words each, drawn as those of the entries are: most queries hold a very common one."""
    rng = np.random.default_rng(1)
    vectors = clustered(rng.normal(size=(n, WIDTH)).astype(np.float32))
    return [" ".join(f"w{w}" for w in row) for row in _zipf(rng, (n, 5))], vectors


def _zipf(rng: np.random.Generator, shape: tuple[int, int], vocabulary: int = 20_000) -> np.ndarray:
    weights = 1 / np.arange(1, vocabulary + 1)
    return rng.choice(vocabulary, shape, p=weights / weights.sum())


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def write(system: str, n: int, folder: Path) -> dict:
    """Fills an empty folder with `n` entries, the last ones one by one: entries a second, in batches and singly."""
    texts, vectors = entries(n)
    target = SYSTEMS[system](folder, Given(texts, vectors))
    singly = min(ONE_BY_ONE, n // 10)
    start = time.perf_counter(), time.process_time()
    for i in range(0, n - singly, BATCH):
        stop = min(i + BATCH, n - singly)
        target.add(i, texts[i:stop], vectors[i:stop])
    middle = time.perf_counter(), time.process_time()
    for i in range(n - singly, n):
        target.add(i, texts[i : i + 1], vectors[i : i + 1])
    one = (time.perf_counter() - middle[0], time.process_time() - middle[1])
    last = time.perf_counter(), time.process_time()
    target.finish()
    batch = [
        m - s + time_() - e for m, s, e, time_ in zip(middle, start, last, CLOCKS, strict=True)
    ]
    return dict(
        batched_per_s=(n - singly) / batch[0],
        batched_per_cpu_s=(n - singly) / batch[1],
        singly_per_s=singly / one[0],
        singly_per_cpu_s=singly / one[1],
    )


CLOCKS = (time.perf_counter, time.process_time)


def read(system: str, n: int, folder: Path) -> list[dict]:
    """One row for each variant and window: milliseconds by the clock and of processor time, and recall@10."""
    asked, wanted = queries(SEARCHES.get(system, 15))
    encoder = Given(asked, wanted)
    _, vectors = entries(n)
    windows = {
        name: [
            (int((n - n * part) * i / len(asked)), max(1, int(n * part))) for i in range(len(asked))
        ]
        for name, part in WINDOWS.items()
    }
    exact = {
        name: [
            set((lo + np.argsort(-(vectors[lo : lo + size] @ q))[:K]).tolist())
            for (lo, size), q in pairs
        ]
        for name, spans in windows.items()
        for pairs in [list(zip(spans, wanted, strict=True))]
    }
    del vectors
    idle, start = psutil.Process().memory_info().rss, [clock() for clock in CLOCKS]
    target = SYSTEMS[system](folder, encoder)
    opened = [clock() - begun for clock, begun in zip(CLOCKS, start, strict=True)]
    rows = []
    for variant in target.variants:
        search = target.searcher(variant)
        search(asked[0], wanted[0], 0, n)
        for name, spans in windows.items():
            took, found = [], []
            for text, vector, (lo, size) in zip(asked, wanted, spans, strict=True):
                before = [clock() for clock in CLOCKS]
                found.append(set(search(text, vector, lo, lo + size)))
                took.append([1000 * (clock() - b) for clock, b in zip(CLOCKS, before, strict=True)])
            ms, cpu = np.array(took).T
            recall = np.mean([len(f & e) / len(e) for f, e in zip(found, exact[name], strict=True)])
            lexical = variant in ("bm25", "hybrid", "fts5")
            rows.append(
                dict(
                    system=system, variant=variant, n=n, window=name,
                    p50_ms=np.median(ms), p95_ms=np.quantile(ms, 0.95), best_ms=ms.min(), cpu_p50_ms=np.median(cpu),
                    recall=None if lexical else recall,
                )
            )  # fmt: skip
    held = psutil.Process().memory_info().rss - idle
    common = dict(open_s=opened[0], open_cpu_s=opened[1], memory_mib=held / 2**20)
    return [row | common for row in rows]


def measure(system: str, n: int, limit_s: int) -> list[dict]:
    """Both processes of one system; a row that says why where one fails."""
    with tempfile.TemporaryDirectory() as name:
        folder, parts = Path(name) / "memory", []
        for part in ("write", "read"):
            command = [sys.executable, __file__, "--part", part, system, str(n), str(folder)]
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=limit_s)
            except subprocess.TimeoutExpired:
                return [dict(system=system, n=n, failed=f"{part} took more than {limit_s} s")]
            if done.returncode:
                return [dict(system=system, n=n, failed=f"{part}: {why(done.stderr)}")]
            parts.append(json.loads(done.stdout.splitlines()[-1]))
        disk = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 2**20
    return [row | parts[0] | dict(disk_mib=disk) for row in parts[1]]


def why(stderr: str) -> str:
    """The first error's line: others may follow while the interpreter is taken down."""
    lines = stderr.strip().splitlines()
    return next((line for line in lines if re.match(r"[\w.]*Error\b", line)), lines[-1])


def plot(rows: list[dict], stem: Path) -> None:
    """Median processor time of a search against the number of entries, one panel for each window."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(
        1, len(WINDOWS), figsize=(11, 3.6), sharey=True, layout="constrained"
    )
    series = dict.fromkeys((row["system"], row["variant"]) for row in rows if "variant" in row)
    for axis, window in zip(axes, WINDOWS, strict=True):
        for system, variant in series:
            mine = [
                r
                for r in rows
                if (r["system"], r.get("variant"), r.get("window")) == (system, variant, window)
            ]
            style = {"ours": "-", "approximate": "-.", "limit": "--"}.get(system, ":")
            axis.loglog(
                [r["n"] for r in mine],
                [r["cpu_p50_ms"] for r in mine],
                style,
                marker="o",
                label=f"{system} {variant}",
            )
        axis.set(title=f"{window} of the timeline", xlabel="entries")
    axes[0].set_ylabel("a search, median (ms of processor time)")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", frameon=False)
    for suffix, metadata in (("png", {"Software": None}), ("pdf", {"CreationDate": None})):
        figure.savefig(f"{stem}.{suffix}", dpi=150, metadata=metadata)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--systems", nargs="+", default=list(SYSTEMS), choices=SYSTEMS)
    parser.add_argument("--json", type=Path, help="where the rows go, and as CSV beside it")
    parser.add_argument("--plot", type=Path, help="the figure's path without its ending")
    parser.add_argument(
        "--limit",
        type=int,
        default=1800,
        help="seconds that a system may take to be filled or read",
    )
    parser.add_argument(
        "--clusters",
        type=int,
        default=0,
        help="around how many centres the vectors lie; 0: anywhere",
    )
    parser.add_argument(
        "--part", nargs=4, help=argparse.SUPPRESS
    )  # what runs in a process of its own
    given = parser.parse_args()
    if given.part:
        part, system, n, folder = given.part
        print(
            json.dumps(dict(write=write, read=read)[part](system, int(n), Path(folder))), flush=True
        )
        os._exit(0)  # some of them fail while the interpreter is taken down, when all is done
    os.environ["CLUSTERS"] = str(given.clusters)  # for the processes of the parts
    rows, versions = [], {}
    for name in ("numpy", "faiss-cpu", *PACKAGES.values()):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    about = dict(
        machine=f"{psutil.cpu_count()} x {platform.processor() or platform.machine()}, {platform.system()}",
        load=os.getloadavg(), python=platform.python_version(), sqlite=sqlite3.sqlite_version, versions=versions,
        threads=os.environ.get("OMP_NUM_THREADS"), k=K, width=WIDTH, clusters=given.clusters,
    )  # fmt: skip
    for n in given.sizes:
        for system in given.systems:
            for row in measure(system, n, given.limit):
                row = {key: round(v, 4) if isinstance(v, float) else v for key, v in row.items()}
                print(row, flush=True)
                rows.append(row)
            if given.json:  # after each: the largest may take long
                given.json.write_text(json.dumps(dict(about=about, rows=rows), indent=1) + "\n")
                with given.json.with_suffix(".csv").open("w", newline="") as file:
                    table = csv.DictWriter(file, dict.fromkeys(key for row in rows for key in row))
                    table.writeheader()
                    table.writerows(rows)
    if given.plot:
        plot(rows, given.plot)


if __name__ == "__main__":
    main()
