"""Run a training in its own process, on a CPU, on one GPU or on several.

A separate process frees all its memory when it ends. It reads its configuration from a file, so
that the same training can be rerun by hand:
`python -m personavlm_lib.training.sft --config runs/nano/02_sft/config.yaml`.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import yaml

from personavlm_lib.caching import delete, reuse_or_clear
from personavlm_lib.processes import exit_with_parent
from personavlm_lib.progress import progress_line

ONE_MACHINE = "--multi_gpu --num_machines 1 --mixed_precision no --dynamo_backend no".split()


def plain(config: dict) -> dict:
    """Convert a configuration to YAML and JSON types: paths become text, tuples become lists."""
    return json.loads(json.dumps(config, default=str))


def prepare_checkpoint_folder(stage_folder: Path, key: str) -> Path:
    """Delete the checkpoints of other keys and return `<stage_folder>/checkpoints/<key>`.

    A training with other settings, inputs or code can never resume from the deleted ones.
    """
    checkpoints = stage_folder / "checkpoints"
    for folder in checkpoints.glob("*"):
        if folder.name != key:
            delete(folder, stage_folder)
    return checkpoints / key


def prune_checkpoints(stage_folder: Path, key: str) -> Path | None:
    """Delete the incomplete checkpoints of `key`; return the newest complete one, or None."""
    folder = stage_folder / "checkpoints" / key
    newest = None
    for checkpoint in sorted(folder.glob("checkpoint-*"), key=_step_of):
        if reuse_or_clear(checkpoint, key, stage_folder):
            newest = checkpoint
    return newest


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def last_lines(log: Path, count: int) -> list[str]:
    """Return the last `count` non-empty lines of a log; each rewrite of a progress bar is one."""
    with log.open("rb") as file:
        size = log.stat().st_size
        file.seek(max(0, size - 20_000))
        text = file.read().decode(errors="replace")
    rewrites_as_lines = text.replace("\r", "\n")
    lines = []
    for line in rewrites_as_lines.splitlines():
        if line.strip():
            lines.append(line.rstrip())
    return lines[-count:]


def launch(
    module: str,
    config: dict,
    folder: Path,
    processes: int = 1,
    accelerate_config: Path | None = None,
    every: float = 20.0,
    name: str = "",
) -> None:
    """Write `folder/config.yaml`, run `python -m module --config` on it, and wait.

    With several `processes`, or an `accelerate_config` (DeepSpeed, FSDP, several machines),
    `accelerate launch` starts the module; a single process needs no launcher. All output goes to
    `folder/log.txt`. Every `every` seconds a progress line, read from `folder/metrics.jsonl`, is
    printed under the stage's `name` (default: the folder's name). Raises RuntimeError with the
    log's last 20 lines if the process fails.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    metrics = folder / "metrics.jsonl"
    metrics.write_text("", encoding="utf-8")  # discard the metrics of an earlier training
    settings = folder / "config.yaml"
    settings_text = yaml.safe_dump(plain(config), sort_keys=False, allow_unicode=True)
    settings.write_text(settings_text, encoding="utf-8")
    command = _command(module, processes, accelerate_config)
    log = folder / "log.txt"
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(
            [*command, "--config", str(settings)],
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )
        try:
            _print_progress(process, metrics, name or folder.name, config["steps"], every)
        finally:
            if process.poll() is None:  # the notebook was interrupted
                process.terminate()
                process.wait()
    if process.returncode != 0:
        tail = last_lines(log, 20)
        reason = tail[-1] if tail else "no output"
        summary = f"{module} failed with exit code {process.returncode}: {reason} (log: {log})"
        raise RuntimeError("\n".join([summary, *tail]))


def _command(module: str, processes: int, accelerate_config: Path | None) -> list[str]:
    """The command line that runs the module, without the module's own options."""
    if processes <= 1 and not accelerate_config:
        return [sys.executable, "-m", module]
    command = [sys.executable, "-m", "accelerate.commands.launch"]
    command += ["--num_processes", str(processes)]
    if accelerate_config:
        command += ["--config_file", str(accelerate_config)]
    else:
        command += ONE_MACHINE
    return [*command, "--module", module]


def _print_progress(
    process: subprocess.Popen, metrics: Path, name: str, steps: int, every: float
) -> None:
    """Print a progress line every `every` seconds until the process ends."""
    last_print = time.monotonic()
    first_step = None  # the rate counts from the first logged step, so that start-up is left out
    first_time = 0.0
    while process.poll() is None:
        time.sleep(min(0.2, every))
        now = time.monotonic()
        if now - last_print < every:
            continue
        last_print = now
        step = 0
        newest_row = last_lines(metrics, 1)
        if newest_row:
            step = json.loads(newest_row[0])["step"]
            if first_step is None:
                first_step = step
                first_time = now
        rate = 0.0
        if first_step is not None and now > first_time:
            rate = (step - first_step) / (now - first_time)
        print(progress_line(name, "step", step, steps, rate), flush=True)


def main(train: Callable[[dict, Path], None]) -> None:
    """Run as the launched module: read `--config FILE` and call `train` with it and its folder."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", required=True, type=Path)
    path = parser.parse_args().config
    exit_with_parent()
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    train(config, path.parent)
