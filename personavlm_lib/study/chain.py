"""The whole chain on one run: Snakemake, alone in that run's folder, and stopped with all that it started.

`Snakefile` says what is done and what is not. Here is what it leaves open: a lock that is gone with its holder (in
place of Snakemake's own, which outlives a killed run), a log, and one line for whatever ends the chain early.
"""

import fcntl
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from personavlm_lib.processes import exit_with_parent
from personavlm_lib.study.profiles import (
    ROOT,
    ProfileError,
    load_profile,
    memory_folder,
    run_folder,
    stage_folder,
    stage_parameters,
)

HELD = "PERSONAVLM_HELD"  # environment variable: the run's folder that a process before this one has locked
STOPPING = 15.0  # seconds that a stopped chain has to end its children itself


@contextmanager
def hold(run: str) -> Iterator[None]:
    """Nobody else works on `runs/<run>` while this is open, but for processes started inside.

    ProfileError if another process does. The lock is the system's: it goes with its holder, however that ends.
    """
    folder = run_folder(run)
    if os.environ.get(HELD) == str(folder):
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            holder = f"process {lock.read()} works on {folder}"
            raise ProfileError(
                f"{holder}: wait for it, stop it, or name another run with --run"
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        os.environ[HELD] = str(folder)
        try:
            yield
        finally:
            del os.environ[HELD]


def reproduce(name: str, run: str, stages: list[str], seed: int | None, force: bool) -> int:
    """Runs what is not done of a profile's chain, or of `stages` and what they need; the exit code.

    `force` reruns the named stages, or all, again, and uses nothing that they kept. Raises ProfileError before anything is
    touched.
    """
    profile = load_profile(name, seed)
    run = run or profile.name
    for stage in [*profile.stages, *stages]:
        stage_parameters(profile, stage, run)
    chosen, folders = (
        stages or list(profile.stages),
        [stage_folder(run, stage) for stage in profile.stages],
    )
    command = [
        sys.executable,
        "-m",
        "snakemake",
        "--cores",
        "all",
        "--rerun-incomplete",
        "--nolock",
    ]
    command += [
        *stages,
        *(["--forcerun", *chosen] if force else []),
        "--config",
        f"profile={name}",
        f"run={run}",
    ]
    command += [] if seed is None else [f"seed={seed}"]
    with hold(run):
        if force:
            kept = [memory_folder(run, "")] if "05_evaluate" in chosen else []
            for folder in kept + [stage_folder(run, stage) for stage in chosen]:
                shutil.rmtree(folder, ignore_errors=True)
        before = _times(folders)
        code = _snakemake(command, run_folder(run) / "chain.log")
    if code == 0 and _times(folders) == before:
        print(f"Nothing to do: all of it is in {run_folder(run)}.")
    report = stage_folder(run, "09_report") / "report.html"
    if code == 0 and report.is_file():
        print(f"The report is {os.path.relpath(report)}")
    return code


def _times(folders: list[Path]) -> list[float]:
    """When the finished ones of these stages ended."""
    return [path.stat().st_mtime for folder in folders if (path := folder / "run.json").is_file()]


def _snakemake(command: list[str], log: Path) -> int:
    """Snakemake in a session of its own, so that Ctrl-C reaches us alone and all of it can be ended at once."""
    exit_with_parent()
    with log.open("w") as said:
        process = subprocess.Popen(
            command, cwd=ROOT, stderr=said, stdin=subprocess.DEVNULL, start_new_session=True
        )
        try:
            code = process.wait()
        except KeyboardInterrupt:
            print("\nStopped. The same command goes on from here.", file=sys.stderr)
            code = 130
        finally:
            _end(process)
    if code not in (0, 130):
        lines = [line.strip() for line in log.read_text().splitlines() if line.strip()]
        failed = [line for line in lines if " failed: " in line]
        print(
            *failed or [f"The chain stopped: {lines[-1] if lines else 'killed'} ({log})"],
            sep="\n",
            file=sys.stderr,
        )
    return code


def _end(process: subprocess.Popen) -> None:
    """Ends Snakemake's whole session: asked first, so that a stage can end its kernel, then killed."""
    for number, seconds in ((signal.SIGTERM, STOPPING), (signal.SIGKILL, None)):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
