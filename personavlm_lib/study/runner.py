"""Runs one stage: its notebook under papermill, strictly, with everything it was given and cost on record.

    python -m personavlm_lib run 02_sft --profile nano [--run RUN] [--set steps=20 --set ...]

leaves in `runs/<run>/<stage>/`: `notebook.ipynb` (executed, also after a failure), `params.yaml`, `notebook.log`
(what the cells printed) and, last and only after success, `run.json`.
"""

import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import tempfile
import threading
import time
import tomllib
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

import papermill
import psutil
import yaml
from ipykernel.kernelspec import write_kernel_spec

from personavlm_lib.study import profiles
from personavlm_lib.study.profiles import ROOT, Profile, stage_folder, stage_parameters


class ProcessTree(threading.Thread):
    """Watches this process and all it starts, as a context: `peak_gib` is the largest sum of resident memory seen.

    Pages that processes share are counted for each of them. On leaving, children that still run are ended: a training
    must not outlive the notebook that started it.
    """

    def __init__(self, seconds: float = 0.5):
        super().__init__(daemon=True)
        self.seconds, self.peak_gib, self._seen, self._over = seconds, 0.0, set(), threading.Event()

    def run(self) -> None:
        while True:
            self.sample()
            if self._over.wait(self.seconds):
                return

    def sample(self) -> None:
        """Takes one measurement of all processes of the tree."""
        me, total = psutil.Process(), 0
        for process in [me, *me.children(recursive=True)]:
            try:
                total += process.memory_info().rss
            except psutil.NoSuchProcess:
                continue
            if process != me:
                self._seen.add(process)
        self.peak_gib = max(self.peak_gib, total / 2**30)

    def __enter__(self) -> "ProcessTree":
        self.start()
        return self

    def __exit__(self, *error) -> None:
        self._over.set()
        self.join()
        left = [
            process for process in self._seen if process.is_running()
        ]  # a reused process id is not taken for it
        for process in left:
            process.kill()
        psutil.wait_procs(left, timeout=3)


def output_of(*command: str) -> str | None:
    """What a command prints, stripped; None if it is not installed or fails."""
    if shutil.which(command[0]) is None:
        return None
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else None


def environment() -> dict:
    """The code, the packages and the machine of this run, as plain values for `run.json`."""
    changed = output_of("git", "status", "--porcelain")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = [re.split(r"[=<>~\[ ]", requirement)[0] for requirement in project["dependencies"]]
    cpuinfo = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text()) if cpuinfo.exists() else None
    gpus = output_of("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader")
    return {
        "git_commit": output_of("git", "rev-parse", "HEAD"),
        "git_dirty": None if changed is None else bool(changed),
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in names},
        "hardware": {
            "system": platform.platform(),
            "cpu": model[1].strip() if model else platform.processor(),
            "cores": psutil.cpu_count(),
            "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
            "gpus": gpus.splitlines() if gpus else [],
        },
    }


@dataclass
class ProgressTee:
    """A log of what cells print, of which the lines that begin with `name` (those on progress) are printed here too."""

    log: TextIO
    name: str

    def write(self, text: str) -> None:
        self.log.write(text)
        for line in text.splitlines():
            if line.startswith(self.name):
                print(line, flush=True)

    def flush(self) -> None:
        self.log.flush()


def execute(source: Path, target: Path, parameters: dict, log: Path) -> None:
    """Executes a notebook in a kernel of this very interpreter and writes the copy after each cell.

    Raises PapermillExecutionError when a cell fails; the copy is there all the same.
    """
    with tempfile.TemporaryDirectory() as folder, log.open("w") as printed:
        # JUPYTER_PATH comes first in Jupyter's search, so that no kernel named python3 of another environment is taken
        write_kernel_spec(
            Path(folder) / "kernels" / "python3", extra_arguments=["--log-level=CRITICAL"]
        )
        os.environ["JUPYTER_PATH"] = os.pathsep.join(
            filter(None, [folder, os.environ.get("JUPYTER_PATH")])
        )
        settings = {"kernel_name": "python3", "cwd": str(ROOT), "progress_bar": False}
        settings |= {"stdout_file": ProgressTee(printed, source.stem), "stderr_file": printed}
        papermill.execute_notebook(str(source), str(target), parameters, **settings)


def run_stage(stage: str, profile: Profile, run: str, changes: dict | None = None) -> Path:
    """Runs one stage of a profile and returns its folder under `runs/<run>/`.

    Raises ProfileError before anything is touched when the parameters are not exactly the notebook's.
    """
    parameters = stage_parameters(profile, stage, run, changes)
    folder = stage_folder(run, stage)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").unlink(missing_ok=True)
    (folder / "params.yaml").write_text(
        yaml.safe_dump(parameters, sort_keys=False, allow_unicode=True)
    )
    if profile.offline:
        os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    # Threads that spin while they wait for each other lose most of the time where the cores are shared: measured here
    # beside one other busy process, training went from 700 to 4,000 tokens a second.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ["PYDEVD_DISABLE_FILE_VALIDATION"] = (
        "1"  # the kernel's debugger warns about frozen modules otherwise
    )
    place = f"[{list(profile.stages).index(stage) + 1}/{len(profile.stages)}] {stage}"
    print(f"{place} ...", flush=True)
    record = {
        "stage": stage,
        "profile": profile.name,
        "run": run,
        "seed": parameters.get("seed", profile.seed),
    }
    record |= {
        "parameters": parameters,
        "changed": sorted(changes or {}),
        "started": datetime.now(UTC).isoformat(),
    }
    record |= environment()
    begin = time.monotonic()
    with ProcessTree() as tree:
        execute(
            profiles.notebook(stage), folder / "notebook.ipynb", parameters, folder / "notebook.log"
        )
    record |= {
        "wall_seconds": round(time.monotonic() - begin, 1),
        "peak_memory_gib": round(tree.peak_gib, 3),
    }
    print(
        f"{place} done in {record['wall_seconds']:.0f} s, peak memory {tree.peak_gib:.1f} GiB",
        flush=True,
    )
    (folder / "run.json").write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    return folder
