"""Run one stage: execute its notebook under papermill and record its parameters and cost.

    personavlm run 02_sft --profile nano [--run RUN] [--set steps=20 --set ...]

writes to `runs/<run>/<stage>/`: `notebook.ipynb` (executed, also after a failure), `params.yaml`,
`notebook.log` (what the cells printed) and, last and only after success, `run.json`.
"""

import importlib.metadata
import json
import logging
import os
import platform
import re
import shutil
import subprocess
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

import papermill
import psutil
import yaml
from ipykernel.kernelspec import write_kernel_spec

from personavlm_lib.study import profiles
from personavlm_lib.study.chain import in_chain, restore_time
from personavlm_lib.study.doctor import direct_requirements
from personavlm_lib.study.profiles import ROOT, Profile, stage_folder

# A dead kernel raises an error, which the command line reports; papermill would print it as well.
logging.getLogger("papermill").addHandler(logging.NullHandler())


class ProcessTree(threading.Thread):
    """Context that watches this process and its descendants.

    `peak_gib` is the largest sum of resident memory measured; pages that processes share count for
    each of them. At exit, descendants that still run are killed: a training must not outlive the
    notebook that started it.
    """

    def __init__(self, seconds: float = 0.5):
        super().__init__(daemon=True)
        self.seconds = seconds
        self.peak_gib = 0.0
        self._descendants: set[psutil.Process] = set()
        self._exiting = threading.Event()

    def run(self) -> None:
        while True:
            self.sample()
            if self._exiting.wait(self.seconds):
                return

    def sample(self) -> None:
        """Take one measurement of all processes of the tree."""
        root = psutil.Process()
        total = 0
        for process in [root, *root.children(recursive=True)]:
            try:
                total += process.memory_info().rss
            except psutil.NoSuchProcess:
                continue
            if process != root:
                self._descendants.add(process)
        self.peak_gib = max(self.peak_gib, total / 2**30)

    def __enter__(self) -> "ProcessTree":
        self.start()
        return self

    def __exit__(self, *error) -> None:
        self._exiting.set()
        self.join()
        # is_running() compares start times, so a process that reuses an id is not killed
        remaining = [process for process in self._descendants if process.is_running()]
        for process in remaining:
            process.kill()
        psutil.wait_procs(remaining, timeout=3)


def output_of(*command: str) -> str | None:
    """Return what a command prints, stripped; None if it is not installed or fails."""
    if shutil.which(command[0]) is None:
        return None
    process = subprocess.run(
        command, cwd=ROOT, capture_output=True, encoding="utf-8", errors="replace"
    )
    return process.stdout.strip() if process.returncode == 0 else None


def environment() -> dict:
    """Describe the code, the packages and the machine as plain values for `run.json`."""
    changed_files = output_of("git", "status", "--porcelain")
    return {
        "git_commit": output_of("git", "rev-parse", "HEAD"),
        "git_dirty": None if changed_files is None else bool(changed_files),
        "python": platform.python_version(),
        "packages": _package_versions(),
        "hardware": _hardware(),
    }


def _package_versions() -> dict[str, str]:
    """Installed versions of the study's direct dependencies."""
    versions = {}
    for name in direct_requirements():
        with suppress(importlib.metadata.PackageNotFoundError):  # an extra that is not installed
            versions[name] = importlib.metadata.version(name)
    return versions


def _hardware() -> dict:
    memory_bytes = psutil.virtual_memory().total
    gpus = output_of("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader")
    return {
        "system": platform.platform(),
        "cpu": _cpu_model(),
        "cores": psutil.cpu_count(),
        "memory_gib": round(memory_bytes / 2**30, 1),
        "gpus": gpus.splitlines() if gpus else [],
    }


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        model = re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text(encoding="utf-8"))
        if model:
            return model[1].strip()
    return platform.processor()


@dataclass
class ProgressTee:
    """A log file for the output of cells that also prints the lines starting with `prefix`.

    Those lines report progress: the helpers start them with the name of the stage.
    """

    log: TextIO
    prefix: str

    def write(self, text: str) -> None:
        self.log.write(text)
        for line in text.splitlines():
            if line.startswith(self.prefix):
                print(line, flush=True)

    def flush(self) -> None:
        self.log.flush()


def execute(source: Path, target: Path, parameters: dict, log: Path) -> None:
    """Execute a notebook with this Python interpreter, saving the copy `target` after each cell.

    Raises PapermillExecutionError when a cell fails; the copy exists all the same.
    """
    with tempfile.TemporaryDirectory() as folder, log.open("w", encoding="utf-8") as log_file:
        kernel = Path(folder) / "kernels" / "python3"
        write_kernel_spec(kernel, extra_arguments=["--log-level=CRITICAL"])
        # Jupyter searches JUPYTER_PATH first, so no `python3` kernel of another environment is used
        _search_first("JUPYTER_PATH", folder)
        # The kernel imports this package, not one of another checkout that is installed
        _search_first("PYTHONPATH", str(ROOT))
        papermill.execute_notebook(
            str(source),
            str(target),
            parameters,
            kernel_name="python3",
            cwd=str(ROOT),
            progress_bar=False,
            stdout_file=ProgressTee(log_file, source.stem),
            stderr_file=log_file,
        )


def _search_first(variable: str, folder: str) -> None:
    """Put a folder first in the environment variable of a search path."""
    others = os.environ.get(variable, "").split(os.pathsep)
    kept = [other for other in others if other not in ("", folder)]
    os.environ[variable] = os.pathsep.join([folder, *kept])


def run_stage(stage: str, profile: Profile, run: str, changes: dict | None = None) -> Path:
    """Run one stage of a profile and return its folder under `runs/<run>/`.

    Raises ProfileError before anything is touched when the parameters are not exactly the
    notebook's.
    """
    parameters = profiles.stage_parameters(profile, stage, run, changes)
    folder = stage_folder(run, stage)
    folder.mkdir(parents=True, exist_ok=True)
    profiles.delete_in_run(run, folder / "run.json")
    parameters_text = yaml.safe_dump(parameters, sort_keys=False, allow_unicode=True)
    (folder / "params.yaml").write_text(parameters_text, encoding="utf-8")
    _set_kernel_environment(profile.offline)
    number = list(profile.stages).index(stage) + 1
    title = f"[{number}/{len(profile.stages)}] {stage}"
    print(f"{title} ...", flush=True)
    source = profiles.notebook(stage)
    record = {
        "stage": stage,
        "profile": profile.name,
        "run": run,
        "seed": parameters.get("seed", profile.seed),
        "world_seed": parameters.get("world_seed", profile.world_seed),
        "parameters": parameters,
        "changed": sorted(changes or {}),
        "code": profiles.code_hash(source),
        "started": datetime.now(UTC).isoformat(),
        **environment(),
    }
    start = time.monotonic()
    with ProcessTree() as tree, in_chain(folder):
        execute(source, folder / "notebook.ipynb", parameters, folder / "notebook.log")
    record["ended"] = datetime.now(UTC).isoformat()
    record["wall_seconds"] = round(time.monotonic() - start, 1)
    record["peak_memory_gib"] = round(tree.peak_gib, 3)
    print(
        f"{title} done in {record['wall_seconds']:.0f} s, peak memory {tree.peak_gib:.1f} GiB",
        flush=True,
    )
    _write_record(folder / "run.json", record)
    return folder


def _write_record(path: Path, record: dict) -> None:
    """Write `run.json` in one step, so that a killed process leaves all of it or nothing."""
    partial = path.with_name("run.json.part")
    partial.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    restore_time(partial)
    partial.replace(path)


def _set_kernel_environment(offline: bool) -> None:
    """Set the environment variables that notebook kernels inherit from this process."""
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"
        os.environ["TRANSFORMERS_OFFLINE"] = "1"
    # Spinning threads lose most of their time where cores are shared: beside one other busy
    # process, training rose from 700 to 4,000 tokens per second without spinning.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Otherwise the kernel's debugger warns about frozen modules
    os.environ["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"
    # An executed notebook shows a progress bar as a widget that never moves
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    # peft reads an attribute that transformers has renamed
    os.environ.setdefault("PYTHONWARNINGS", "ignore::FutureWarning:transformers.modeling_utils")
