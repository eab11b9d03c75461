"""Kill chains at random moments, resume them, and compare the results with an uninterrupted run.

    PERSONAVLM_RUNS=/tmp/kills python tests/study/kill_chain.py [RUNS] [KILLS] [SEED]

Each of RUNS runs is killed KILLS times (SIGKILL to its process group) and resumed each time. The
moments are drawn uniformly, so that kills fall all over the run. Too slow for the unit tests; its
profile, kill.yaml, has every stage.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pandas as pd

from personavlm_lib.caching import fingerprint
from personavlm_lib.study.profiles import STAGES, run_folder, stage_folder

PROFILE = Path(__file__).with_name("kill.yaml")
TIME_COLUMNS = {"run", "seconds", "step_time"}
IGNORED_KEYS = {
    "run",
    "git_commit",
    "git_dirty",
    "wall_seconds",
    "peak_memory_gib",
    "total_wall_seconds",
}


def start(run: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "personavlm_lib", "reproduce"]
    command += ["--profile", str(PROFILE), "--run", run]
    return subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL)


def tables(run: str) -> dict[str, str]:
    """All output that must not depend on whether a run was killed, as text by file name."""
    contents = {}
    for path in sorted(run_folder(run).glob("0*/*")):
        content = comparable_content(path)
        if content is not None:
            contents[f"{path.parent.name}/{path.name}"] = content
    return contents


def comparable_content(path: Path) -> str | None:
    """The content of a file without times and other values that may differ; None: not compared."""
    if path.suffix == ".parquet" and path.name != "sft.parquet":
        frame = pd.read_parquet(path)
        return frame.drop(columns=TIME_COLUMNS & set(frame)).to_csv()
    if path.name == "metrics.jsonl":
        rows = []
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            rows.append({key: value for key, value in row.items() if key not in TIME_COLUMNS})
        return json.dumps(rows, sort_keys=True)
    if path.name == "summary.json":
        summary = {}
        for key, value in json.loads(path.read_text(encoding="utf-8")).items():
            if key not in IGNORED_KEYS and not key.startswith("most_"):
                summary[key] = value
        return json.dumps(summary)
    if path.suffix in (".csv", ".jsonl") or path.name == "claims.json":
        return path.read_text(encoding="utf-8")
    if path.name == "adapter":
        return fingerprint(path / "adapter_model.safetensors")
    return None


def kill_after(run: str, seconds: float) -> bool:
    """Start or resume a run and kill it after `seconds`; return False if it ended before."""
    process = start(run)
    with suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
        return False
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    finished = []
    unfinished = []
    for stage in STAGES:
        folder = stage_folder(run, stage)
        if (folder / "run.json").is_file():
            finished.append(stage)
        elif folder.exists():
            unfinished.append(stage)
    place = unfinished or "no stage"
    print(f"{run}: killed after {seconds:.0f} s in {place}, {len(finished)} finished", flush=True)
    return True


def differing_files(one: dict[str, str], other: dict[str, str]) -> list[str]:
    names = one.keys() | other.keys()
    return sorted(name for name in names if one.get(name) != other.get(name))


def main(runs: int = 10, kills: int = 1, seed: int = 0) -> int:
    rng = random.Random(seed)
    uninterrupted = tables("whole") if start("whole").wait() == 0 else {}
    seconds = 0.0
    for stage in STAGES:
        record = json.loads((stage_folder("whole", stage) / "run.json").read_text(encoding="utf-8"))
        seconds += record["wall_seconds"]
    print(f"uninterrupted: {seconds:.0f} s, {len(uninterrupted)} tables", flush=True)
    failures = 0
    for n in range(runs):
        run = f"kill-{seed}-{n}"
        begin = time.monotonic()
        for _ in range(kills):
            if not kill_after(run, rng.uniform(0, 2 * seconds / (kills + 1))):
                break
        code = start(run).wait()
        wrong = differing_files(uninterrupted, tables(run))
        if wrong or code:
            failures += 1
        spent = time.monotonic() - begin
        print(
            f"{run}: ended after {spent:.0f} s, exit code {code}, differing: {wrong or 'nothing'}",
            flush=True,
        )
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
