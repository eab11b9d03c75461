"""Check the options of the command line, before a command imports a model or creates a folder.

Each check is a callback of an option: it returns the value, or raises `typer.BadParameter`, which
names the option. The message names the allowed values.
"""

import math
import os
import re
from collections.abc import Callable
from pathlib import Path

import typer

from personavlm_lib.study import profiles
from personavlm_lib.study.profiles import PROFILES, STAGES, ProfileError, nearest

SIZES = ("nano", "short", "long", "paper")  # the keys of benchmark.sizes.DATASET_SIZES
WORDINGS = ("canonical", "paraphrased", "natural")
RANKINGS = ("dense", "bm25", "hybrid")  # as in memory.timeline
PROMPT_SETS = ("nano", "full")
LARGEST_SEED = 2**32 - 1  # that numpy accepts


def require_checkout() -> None:
    """Raise ProfileError if the package was installed without the notebooks of the project."""
    if not profiles.NOTEBOOKS.is_dir():
        raise ProfileError(
            "reproduce, run and figures need a checkout of the project (its notebooks/, profiles/ "
            "and results/): clone the repository and run the command in it"
        )


def one_of(choices: tuple[str, ...]) -> Callable[[str], str]:
    """A check that the value is one of the choices."""

    def check(value: str) -> str:
        if value not in choices:
            raise typer.BadParameter(f"{value!r} is unknown; choose one of {', '.join(choices)}")
        return value

    return check


def check_stages(stages: list[str] | None) -> list[str]:
    """Check that all stages exist."""
    return [one_of(STAGES)(stage) for stage in stages or []]


def check_profile(name: str) -> str:
    """Check that the profile, or the file at this path, exists; reading it comes later."""
    require_checkout()
    path = Path(name) if name.endswith((".yaml", ".yml")) else PROFILES / f"{name}.yaml"
    if not path.is_file():
        known = sorted(profile.stem for profile in PROFILES.glob("*.yaml"))
        raise typer.BadParameter(
            f"unknown profile {name!r} {nearest(name, known)}; "
            f"choose one of {', '.join(known)}, or the path of a YAML file"
        )
    return name


def check_run(name: str) -> str:
    """Check that a run's name is the name of one folder ("" for the default)."""
    if name and not re.fullmatch(r"(?!\.)[A-Za-z0-9._-]+", name):
        raise typer.BadParameter(
            f"{name!r} cannot name a run: use letters, digits, '.', '_' and '-', "
            "and do not start with '.'"
        )
    return name


def check_model(name: str) -> str:
    """Check a folder or the form of a server's address; hub ids are not looked up."""
    if name.startswith(("http://", "https://")):
        return check_server(name)
    path = Path(name)
    is_path = name.startswith((".", "/", "~")) or name.count("/") > 1
    is_stage = path.name in STAGES  # of a run, which is looked up later
    missing = is_path and not is_stage and not path.is_dir()
    if missing or not name:
        raise typer.BadParameter(f"no folder {name!r}; name a folder with a model, or a hub id")
    return name


def check_optional_model(name: str) -> str:
    """Check a model with `check_model` ("" for none)."""
    return check_model(name) if name else name


def check_models(names: list[str]) -> list[str]:
    """Check each model with `check_model`."""
    return [check_model(name) for name in names]


def check_server(address: str) -> str:
    """Check the form of a model's address on a server ("" for no server)."""
    if address and not re.fullmatch(r"https?://[^/@#\s]+(/[^@#\s]*)?#\S+", address):
        raise typer.BadParameter(
            f"{address!r} is not a model on a server: write it as http://host:port/v1#model, "
            "without a user name or a password"
        )
    return address


def check_prices(prices: tuple[float, float]) -> tuple[float, float]:
    """Check that prices are finite and not negative."""
    for price in prices:
        if not math.isfinite(price) or price < 0:
            raise typer.BadParameter(f"{price:g} is no price: both must be numbers from 0 on")
    return prices


def check_new_folder(folder: Path) -> Path:
    """Check that a folder does not exist and can be created."""
    if folder.exists():
        raise typer.BadParameter(
            f"{folder} already exists: choose a new folder, or remove it first"
        )
    check_folder(folder.parent)
    return folder


def check_folder(folder: Path | None) -> Path | None:
    """Check that a folder is writable, or can be created."""
    if folder is None:
        return None
    existing = folder.absolute()
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir():
        raise typer.BadParameter(f"{existing} is a file, not a folder")
    if not os.access(existing, os.W_OK):
        raise typer.BadParameter(f"no permission to write to {existing}: choose another folder")
    return folder


def check_new_file(file: Path | None) -> Path | None:
    """Check that a file can be written: its folder exists."""
    if file is None:
        return None
    if file.is_dir():
        raise typer.BadParameter(f"{file} is a folder: name a file")
    if not file.parent.is_dir():
        raise typer.BadParameter(f"the folder {file.parent} does not exist: create it first")
    if not os.access(file if file.exists() else file.parent, os.W_OK):
        raise typer.BadParameter(f"no permission to write {file}: choose another file")
    return file
