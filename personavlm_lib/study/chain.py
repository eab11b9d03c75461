"""Run the whole chain: Snakemake, with exclusive access to one run's folder.

`Snakefile` decides which stages are finished. This module adds a lock that disappears with its
holder (Snakemake's own lock survives a killed run, so it is off), a log file, one line for any
failure, and the end of every process that the chain started. Notebooks that are executed by hand
take the same lock.
"""

import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path

from personavlm_lib.evaluation.failures import UNFINISHED
from personavlm_lib.processes import exit_with_parent
from personavlm_lib.study import profiles
from personavlm_lib.study.profiles import Profile, ProfileError, run_folder, stage_folder

LOCKED_FOLDER = "PERSONAVLM_HELD"  # environment variable: the run folder that a parent has locked
CHAIN_STAGE = "PERSONAVLM_STAGE"  # environment variable: the folder that the runner works on
GRACE_SECONDS = 15.0  # for an interrupted chain to end its children itself

_LOCKS: dict[str, ExitStack] = {}  # of this kernel's runs, by folder; they end with the process


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
            os.environ.pop(LOCKED_FOLDER, None)


@contextmanager
def in_chain(folder: Path) -> Iterator[None]:
    """Mark that the runner executes the notebook of the stage `folder` inside of the context."""
    os.environ[CHAIN_STAGE] = str(folder)
    try:
        yield
    finally:
        del os.environ[CHAIN_STAGE]


def is_in_chain(run: str, stage: str) -> bool:
    """Whether the runner executes this stage of this run; False for a notebook run by hand."""
    return os.environ.get(CHAIN_STAGE) == str(stage_folder(run, stage))


def open_stage(run: str, stage: str) -> Path:
    """Return the folder that the notebook of `stage` writes to; it exists.

    The runner has prepared it already. A notebook that is executed by hand (Run All, plain
    papermill) locks the run until its kernel ends, and leaves the stage unfinished: only the runner
    writes `run.json`. Raises ProfileError if the stage of this run is finished, or if another
    process is working on the run; nothing is changed then.
    """
    folder = stage_folder(run, stage)
    if is_in_chain(run, stage):
        return folder
    _check_unfinished(run, stage)
    if str(folder.parent) not in _LOCKS:
        with ExitStack() as lock:
            lock.enter_context(hold(run))
            _check_unfinished(run, stage)  # another process may have just finished it
            _LOCKS[str(folder.parent)] = lock.pop_all()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _check_unfinished(run: str, stage: str) -> None:
    if (stage_folder(run, stage) / "run.json").exists():
        raise ProfileError(
            f"{stage} of the run {run!r} is finished and is not overwritten by hand: "
            f"rerun it with 'personavlm run {stage} --run {run}', or set `run` to another name"
        )


def restore_time(record: Path) -> None:
    """Set a stage record's modification time to the end that it states, if it states one.

    Snakemake compares modification times, which a copy of a run need not keep.
    """
    ended = json.loads(record.read_text(encoding="utf-8")).get("ended")
    if ended:
        seconds = datetime.fromisoformat(ended).timestamp()
        os.utime(record, (seconds, seconds))


def needed_stages(profile: Profile, stage: str) -> list[str]:
    """The stages of the profile whose output `stage` reads, without what those need in turn."""
    return [name for name in profiles.NEEDED_STAGES[stage] if name in profile.stages]


def _with_needed_stages(profile: Profile, stages: list[str]) -> set[str]:
    """The stages and all that they need, directly or not."""
    wanted: set[str] = set()
    waiting = list(stages)
    while waiting:
        stage = waiting.pop()
        if stage not in wanted:
            wanted.add(stage)
            waiting += needed_stages(profile, stage)
    return wanted


def reproduce(
    name: str,
    run: str,
    stages: list[str],
    force: bool,
    seed: int | None = None,
    world_seed: int | None = None,
) -> int:
    """Run the unfinished stages of a profile, or `stages` and what they need; return the exit code.

    `force` deletes the output of the named stages, or of all, and runs them again. `seed` and
    `world_seed` replace those of the profile. Raises ProfileError before anything is touched.
    """
    profile = profiles.load_profile(name, seed, world_seed)
    run = run or profile.name
    for stage in [*profile.stages, *stages]:
        profiles.stage_parameters(profile, stage, run)
    selected = stages or list(profile.stages)
    forced = selected if force else []
    if "01_synthesize" not in forced:
        profiles.check_run_version(run)
    # Otherwise Snakemake reads a run's name such as 007 or 1e5 as a number.
    config = {"profile": name, "run": f"!!str {run}"}
    if seed is not None:
        config["seed"] = str(seed)
    if world_seed is not None:
        config["world_seed"] = str(world_seed)
    with hold(run):
        _delete_outputs(run, forced)
        for record in run_folder(run).glob("*/run.json"):
            restore_time(record)
        # Only of wanted stages: Snakemake runs every rule that it is forced to rerun.
        wanted = _with_needed_stages(profile, selected)
        outdated = _outdated_stages(profile, run)
        rerun = forced + [stage for stage in outdated if stage in wanted]
        command = _snakemake_command(stages, rerun, config)
        times_before = _finish_times(profile, run)
        code = _run_snakemake(command, run_folder(run) / "chain.log")
    if code == 0:
        if _finish_times(profile, run) == times_before:
            print(f"Nothing to do: everything is already in {run_folder(run)}.")
        report = stage_folder(run, "09_report") / "report.html"
        if report.is_file():
            print(f"The report is {os.path.relpath(report)}")
    return code


def _snakemake_command(stages: list[str], rerun: list[str], config: dict[str, str]) -> list[str]:
    command = [sys.executable, "-m", "snakemake", "--cores", "all"]
    command += ["--rerun-incomplete", "--nolock"]
    command += stages
    if rerun:
        command += ["--forcerun", *rerun]
    command.append("--config")
    command += [f"{key}={value}" for key, value in config.items()]
    return command


def _delete_outputs(run: str, stages: list[str]) -> None:
    """Delete the folders of stages; with 05_evaluate also the memories that it writes."""
    if "05_evaluate" in stages:
        profiles.delete_in_run(run, profiles.memories_folder(run))
    for stage in stages:
        profiles.delete_in_run(run, stage_folder(run, stage))


def _outdated_stages(profile: Profile, run: str) -> list[str]:
    """The finished stages whose record states other code cells or parameters than the present ones.

    Snakemake compares them too, but in a fresh checkout it knows nothing about a copied run. A
    stage that was run with --set keeps its parameters. Stages with unscored questions count too.
    """
    outdated = []
    for stage in profile.stages:
        path = stage_folder(run, stage) / "run.json"
        if not path.is_file():
            continue
        record = json.loads(path.read_text(encoding="utf-8"))
        if "code" not in record:  # of an older version
            continue
        present = profiles.stage_parameters(profile, stage, run)
        parameters_changed = not record["changed"] and record["parameters"] != present
        unscored = any((path.parent / "answers").glob(f"*{UNFINISHED}"))
        code = profiles.code_hash(profiles.notebook(stage))
        if unscored or parameters_changed or record["code"] != code:
            outdated.append(stage)
    return outdated


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
            command,
            cwd=profiles.ROOT,
            stderr=log_file,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
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
    """End Snakemake's whole session: SIGTERM first, so that a stage can end its kernel."""
    _signal_session(process, signal.SIGTERM, GRACE_SECONDS)
    _signal_session(process, signal.SIGKILL, None)


def _signal_session(process: subprocess.Popen, number: signal.Signals, wait: float | None) -> None:
    """Send a signal to the session and wait up to `wait` seconds (None: until it has ended)."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)
    with suppress(subprocess.TimeoutExpired):
        process.wait(wait)
