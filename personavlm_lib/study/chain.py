"""Run the whole chain: Snakemake, with exclusive access to one run's folder.

`Snakefile` decides which stages are finished. This module adds a lock that disappears with its
holder (Snakemake's own lock survives a killed run, so it is off), a log file, one line for any
failure, and the end of every process that the chain started.
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
    Profile,
    ProfileError,
    check_run_version,
    load_profile,
    memory_folder,
    run_folder,
    stage_folder,
    stage_parameters,
)

LOCKED_FOLDER = "PERSONAVLM_HELD"  # environment variable: the run folder that a parent has locked
GRACE_SECONDS = 15.0  # for an interrupted chain to end its children itself


@contextmanager
def hold(run: str) -> Iterator[None]:
    """Lock `runs/<run>` against other processes, except those started inside of the context.

    Raises ProfileError if another process holds the lock. The operating system releases the lock
    when its holder ends, however that happens.
    """
    folder = run_folder(run)
    if os.environ.get(LOCKED_FOLDER) == str(folder):
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a+", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read()
            raise ProfileError(
                f"process {holder} is working on {folder}: "
                "wait for it, stop it, or choose another run with --run"
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        os.environ[LOCKED_FOLDER] = str(folder)
        try:
            yield
        finally:
            del os.environ[LOCKED_FOLDER]


def reproduce(name: str, run: str, stages: list[str], seed: int | None, force: bool) -> int:
    """Run the unfinished stages of a profile, or `stages` and what they need; return the exit code.

    `force` deletes the output of the named stages, or of all, and runs them again. Raises
    ProfileError before anything is touched.
    """
    profile = load_profile(name, seed)
    run = run or profile.name
    for stage in [*profile.stages, *stages]:
        stage_parameters(profile, stage, run)
    selected = stages or list(profile.stages)
    forced = selected if force else []
    if "01_synthesize" not in forced:
        check_run_version(run)
    command = _snakemake_command(stages, forced, name, run, seed)
    with hold(run):
        _delete_outputs(run, forced)
        times_before = _finish_times(profile, run)
        code = _run_snakemake(command, run_folder(run) / "chain.log")
    if code == 0:
        if _finish_times(profile, run) == times_before:
            print(f"Nothing to do: everything is already in {run_folder(run)}.")
        report = stage_folder(run, "09_report") / "report.html"
        if report.is_file():
            print(f"The report is {os.path.relpath(report)}")
    return code


def _snakemake_command(
    stages: list[str], forced: list[str], profile: str, run: str, seed: int | None
) -> list[str]:
    command = [sys.executable, "-m", "snakemake", "--cores", "all"]
    command += ["--rerun-incomplete", "--nolock"]
    command += stages
    if forced:
        command += ["--forcerun", *forced]
    command += ["--config", f"profile={profile}", f"run={run}"]
    if seed is not None:
        command.append(f"seed={seed}")
    return command


def _delete_outputs(run: str, stages: list[str]) -> None:
    """Delete the folders of stages; with 05_evaluate also the memories that it writes."""
    if "05_evaluate" in stages:
        shutil.rmtree(memory_folder(run, ""), ignore_errors=True)
    for stage in stages:
        shutil.rmtree(stage_folder(run, stage), ignore_errors=True)


def _finish_times(profile: Profile, run: str) -> list[float]:
    """When each finished stage of the profile ended, as the modification time of its record."""
    times = []
    for stage in profile.stages:
        record = stage_folder(run, stage) / "run.json"
        if record.is_file():
            times.append(record.stat().st_mtime)
    return times


def _run_snakemake(command: list[str], log: Path) -> int:
    """Run Snakemake in a session of its own and return its exit code, 130 after Ctrl-C.

    In its own session, Ctrl-C reaches only this process, and all of Snakemake's processes can be
    ended at once.
    """
    exit_with_parent()
    with log.open("w", encoding="utf-8") as log_file:
        process = subprocess.Popen(
            command, cwd=ROOT, stderr=log_file, stdin=subprocess.DEVNULL, start_new_session=True
        )
        try:
            code = process.wait()
        except KeyboardInterrupt:
            code = 130  # which the command line reports
        finally:
            _end_session(process)
    if code not in (0, 130):
        print(_failure_message(log), file=sys.stderr)
    return code


def _failure_message(log: Path) -> str:
    """The lines of the log that report failed stages, else its last line."""
    text = log.read_text(encoding="utf-8", errors="replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    failures = [line for line in lines if " failed: " in line]
    if failures:
        return "\n".join(failures)
    reason = lines[-1] if lines else "killed"
    return f"The chain failed: {reason} (log: {log})"


def _end_session(process: subprocess.Popen) -> None:
    """End Snakemake's whole session: first politely, so that a stage can end its kernel."""
    _signal_session(process, signal.SIGTERM, GRACE_SECONDS)
    _signal_session(process, signal.SIGKILL, None)


def _signal_session(process: subprocess.Popen, number: signal.Signals, wait: float | None) -> None:
    """Send a signal to the session and wait up to `wait` seconds (None: until it has ended)."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)
    with suppress(subprocess.TimeoutExpired):
        process.wait(wait)
