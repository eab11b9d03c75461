"""Kills whole chains at random moments, and compares what the same command then ends with to an unbroken run.

    PERSONAVLM_RUNS=/tmp/kills python tests/study/kill_chain.py [RUNS] [KILLS] [SEED]

Each of RUNS runs is killed KILLS times (SIGKILL to its process group), after times drawn evenly so that the kills fall
all over it, and resumed each time. Too long for the unit tests; its own profile, kill.yaml, has every stage.
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
TIMES = {"run", "seconds", "step_time"}  # columns
NOT_COMPARED = {
    "run",
    "git_commit",
    "git_dirty",
    "wall_seconds",
    "peak_memory_gib",
    "total_wall_seconds",
}


def start(run: str) -> subprocess.Popen:
    command = [
        sys.executable,
        "-m",
        "personavlm_lib",
        "reproduce",
        "--profile",
        str(PROFILE),
        "--run",
        run,
    ]
    return subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL)


def tables(run: str) -> dict[str, str]:
    """Everything that must not depend on whether a run was killed, as text."""
    found = {}
    for path in sorted(run_folder(run).glob("0*/*")):
        name = f"{path.parent.name}/{path.name}"
        if path.suffix == ".parquet" and path.name != "sft.parquet":
            frame = pd.read_parquet(path)
            found[name] = frame.drop(columns=TIMES & set(frame)).to_csv()
        elif path.name == "metrics.jsonl":
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            found[name] = json.dumps(
                [{k: v for k, v in row.items() if k not in TIMES} for row in rows], sort_keys=True
            )
        elif path.name == "summary.json":
            summary = json.loads(path.read_text())
            kept = {
                k: v
                for k, v in summary.items()
                if k not in NOT_COMPARED and not k.startswith("most_")
            }
            found[name] = json.dumps(kept)
        elif path.suffix in (".csv", ".jsonl") or path.name == "claims.json":
            found[name] = path.read_text()
        elif path.name == "adapter":
            found[name] = fingerprint(path / "adapter_model.safetensors")
    return found


def main(runs: int = 10, kills: int = 1, seed: int = 0) -> int:
    rng, whole, differing = (
        random.Random(seed),
        tables("whole") if start("whole").wait() == 0 else {},
        0,
    )
    stages = [
        json.loads((stage_folder("whole", stage) / "run.json").read_text()) for stage in STAGES
    ]
    seconds = sum(stage["wall_seconds"] for stage in stages)
    print(f"unbroken: {seconds:.0f} s, {len(whole)} tables", flush=True)
    for n in range(runs):
        run, begin = f"kill-{seed}-{n}", time.monotonic()
        for _ in range(kills):
            process, moment = start(run), rng.uniform(0, 2 * seconds / (kills + 1))
            with suppress(subprocess.TimeoutExpired):
                process.wait(moment)
                break  # it ended before
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            done = [stage for stage in STAGES if (stage_folder(run, stage) / "run.json").is_file()]
            at = [
                stage for stage in STAGES if stage not in done and stage_folder(run, stage).exists()
            ]
            print(
                f"{run}: killed after {moment:.0f} s in {at or 'no stage'}, {len(done)} done",
                flush=True,
            )
        code, found = start(run).wait(), tables(run)
        wrong = sorted(
            name for name in whole.keys() | found.keys() if whole.get(name) != found.get(name)
        )
        differing += bool(wrong or code)
        spent = time.monotonic() - begin
        print(
            f"{run}: ended after {spent:.0f} s, exit code {code}, differing: {wrong or 'nothing'}",
            flush=True,
        )
    return int(differing > 0)


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
