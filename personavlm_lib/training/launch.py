"""Starts a training in a process of its own, and is its command line there: on a CPU, on one GPU, and on many.

A process of its own gives back all its memory when it ends, and takes the configuration from a file, so that what ran
can be run again by hand: `python -m personavlm_lib.training.sft --config runs/nano/02_sft/config.yaml`.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import yaml

from personavlm_lib.caching import reuse_or_clear
from personavlm_lib.processes import exit_with_parent
from personavlm_lib.progress import progress_line

ONE_MACHINE = [
    "--multi_gpu",
    "--num_machines",
    "1",
    "--mixed_precision",
    "no",
    "--dynamo_backend",
    "no",
]


def plain(config: dict) -> dict:
    """The configuration in the types of YAML and JSON: paths become text, tuples become lists."""
    return json.loads(json.dumps(config, default=str))


def prepare_checkpoint_folder(stage_folder: Path, key: str) -> Path:
    """`<stage folder>/checkpoints/<key>`; those of other keys are removed, because nobody may go on from them."""
    for other in (stage_folder / "checkpoints").glob("*"):
        if other.name != key:
            shutil.rmtree(other, ignore_errors=True)
    return stage_folder / "checkpoints" / key


def keep_last_checkpoint(folder: Path, key: str) -> Path | None:
    """The newest whole checkpoint of a trainer in `folder`; those that were cut short are removed."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    return next(reversed([path for path in found if reuse_or_clear(path, key)]), None)


def last_lines(log: Path, count: int) -> list[str]:
    """The last `count` lines of a log that are not empty; a progress bar's rewrites count as lines."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 20_000))
        text = file.read().decode(errors="replace")
    return [line.rstrip() for line in text.replace("\r", "\n").splitlines() if line.strip()][
        -count:
    ]


def launch(
    module: str, config: dict, folder: Path, processes: int = 1, accelerate_config: Path | None = None,
    every: float = 20.0, name: str = "",
) -> None:  # fmt: skip
    """Writes `folder/config.yaml`, runs `python -m module --config` it, and waits.

    With several `processes`, or an `accelerate_config` (DeepSpeed, FSDP, several machines), `accelerate launch` starts
    the module; one process needs no launcher. All output goes to `folder/log.txt`. Every `every` seconds a line under
    the stage's `name` (the folder's, if not given) says how far `folder/metrics.jsonl` has come. Raises RuntimeError
    with the log's last 20 lines if the process fails.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    settings, log, metrics = folder / "config.yaml", folder / "log.txt", folder / "metrics.jsonl"
    metrics.write_text("")  # of an earlier training
    settings.write_text(yaml.safe_dump(plain(config), sort_keys=False, allow_unicode=True))
    command = [sys.executable]
    if processes > 1 or accelerate_config:
        command += ["-m", "accelerate.commands.launch", "--num_processes", str(processes)]
        command += ["--config_file", str(accelerate_config)] if accelerate_config else ONE_MACHINE
        command += ["--module", module]
    else:
        command += ["-m", module]
    shown, first = time.monotonic(), None
    with log.open("w") as output:
        process = subprocess.Popen(
            [*command, "--config", str(settings)],
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )
        try:
            while process.poll() is None:
                time.sleep(min(0.2, every))
                if (now := time.monotonic()) - shown >= every:
                    shown, rows = now, last_lines(metrics, 1)
                    step = json.loads(rows[0])["step"] if rows else 0
                    first = first or (
                        rows and (step, now)
                    )  # the rate is that of the steps made since
                    rate = (step - first[0]) / (now - first[1]) if first and now > first[1] else 0.0
                    print(
                        progress_line(name or folder.name, "step", step, config["steps"], rate),
                        flush=True,
                    )
        finally:
            if process.poll() is None:  # the notebook was interrupted
                process.terminate()
                process.wait()
    if process.returncode != 0:
        tail = last_lines(log, 20)
        reason = tail[-1] if tail else "it printed nothing"
        raise RuntimeError(
            f"{module} ended with exit code {process.returncode}: {reason} ({log})\n"
            + "\n".join(tail)
        )


def main(train: Callable[[dict, Path], None]) -> None:
    """The other side: `--config FILE`, and `train` is given what is in the file and the folder that it lies in."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", required=True, type=Path)
    path = parser.parse_args().config
    exit_with_parent()
    train(yaml.safe_load(path.read_text()), path.parent)
