"""Profiles (profiles/*.yaml), stage parameters and every path of the project.

A profile is YAML with four keys: `seed`, `offline`, `common` (parameters for every notebook that
takes them) and `stages` (the stages of the chain, each with its parameters). A stage that is not
listed is not part of the run. No other module spells out a path of the project.
"""

import ast
import difflib
import hashlib
import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from personavlm_lib.benchmark.seeds import WORLD_SEEDS
from personavlm_lib.caching import delete

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = ROOT / "notebooks"
PROFILES = ROOT / "profiles"
PAPER_TABLES = ROOT / "results" / "paper"  # the paper's printed numbers
BACKBONE = ROOT / "results" / "backbone"  # the bundled weights of the nano model
# The stages in the order of the chain, each with the stages whose output it reads.
NEEDED_STAGES: dict[str, list[str]] = yaml.safe_load(
    Path(__file__).with_name("stages.yaml").read_text(encoding="utf-8")
)
STAGES = tuple(NEEDED_STAGES)
PROFILE_KEYS = ("seed", "world_seed", "offline", "common", "stages")
YAML_TYPES = {  # annotation in a notebook -> types of a YAML value that fit it
    "int": ("int",),
    "float": ("float", "int"),
    "bool": ("bool",),
    "str": ("str",),
}
PLAIN_NAME = re.compile(r"(?!\.)[A-Za-z0-9._-]+")  # of a run, a writer or a user
ALLOWED_VALUES = {"recipe": ("bundled", "trial", "train", "external")}  # by parameter


class ProfileError(ValueError):
    """A wrong profile, parameter or run; the message names it, its value and a suggested fix."""


@dataclass(frozen=True)
class Profile:
    """The settings of a run; `stages` maps each stage, in chain order, to its parameters.

    `seed` drives training and sampling, `world_seed` selects the simulated users.
    """

    name: str
    seed: int
    world_seed: int
    stages: dict[str, dict]
    common: dict = field(default_factory=dict)
    offline: bool = True


def nearest(name: str, known: Iterable[str]) -> str:
    """ "(nearest known: 'x')" for a mistyped `name`, or "(it has none)" if nothing is known."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.0)
    return f"(nearest known: '{matches[0]}')" if matches else "(it has none)"


def load_profile(name: str, seed: int | None = None, world_seed: int | None = None) -> Profile:
    """Load `profiles/<name>.yaml`, or the YAML file at the path `name`.

    `seed` and `world_seed` replace those of the file; a file without a world seed has 0. Raises
    ProfileError for a missing file, for an unknown key or stage, naming the nearest known one, and
    for a world seed outside of WORLD_SEEDS.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else PROFILES / f"{name}.yaml"
    if not path.is_file():
        known = [profile.stem for profile in PROFILES.glob("*.yaml")]
        raise ProfileError(f"unknown profile {name!r} {nearest(name, known)}")
    content = _read_yaml(path)
    _check_profile(path, content)
    stages = {}
    for stage in STAGES:
        if stage in content["stages"]:
            stages[stage] = content["stages"][stage] or {}
    if world_seed is None:
        world_seed = content.get("world_seed", 0)
    if world_seed not in WORLD_SEEDS:
        raise ProfileError(
            f"the world seed is {world_seed!r}: choose one from 0 to {WORLD_SEEDS[-1]}"
        )
    return Profile(
        name=path.stem,
        seed=content["seed"] if seed is None else seed,
        world_seed=world_seed,
        stages=stages,
        common=content.get("common") or {},
        offline=content.get("offline", True),
    )


def _read_yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.MarkedYAMLError as error:
        assert error.problem_mark is not None
        line = error.problem_mark.line + 1
        raise ProfileError(f"{path} is not YAML (line {line}: {error.problem})") from None


def _check_profile(path: Path, content: Any) -> None:
    """Raise ProfileError unless the content has the keys of a profile and known stages."""
    if not isinstance(content, dict):
        raise ProfileError(f"{path} must be a mapping of {', '.join(PROFILE_KEYS)}")
    for key in content:
        if key not in PROFILE_KEYS:
            raise ProfileError(f"{path}: unknown key {key!r} {nearest(key, PROFILE_KEYS)}")
    for key in ("seed", "stages"):
        if key not in content:
            raise ProfileError(f"{path}: the key {key!r} is missing")
    for stage in content["stages"]:
        if stage not in STAGES:
            raise ProfileError(f"{path}: unknown stage {stage!r} {nearest(stage, STAGES)}")


def notebook(stage: str) -> Path:
    """The notebook of a stage, as committed to git (without outputs)."""
    return NOTEBOOKS / f"{stage}.ipynb"


def notebook_parameters(path: Path) -> dict[str, str]:
    """Map each name assigned in the notebook's cell tagged `parameters` to its annotation.

    Names are in the order of the cell, annotations as written. They are read with `ast`, because
    papermill's own inspection loses annotations such as `int | None`.
    Raises ProfileError unless exactly one cell has the tag.
    """
    cells = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if "parameters" in cell["metadata"].get("tags", []):
            cells.append(cell)
    if len(cells) != 1:
        raise ProfileError(
            f"{path}: {len(cells)} cells are tagged 'parameters', there must be exactly one"
        )
    annotations = {}
    for node in ast.parse("".join(cells[0]["source"])).body:
        if isinstance(node, ast.AnnAssign):
            annotations[ast.unparse(node.target)] = ast.unparse(node.annotation)
        elif isinstance(node, ast.Assign):
            annotations[ast.unparse(node.targets[0])] = ""
    return annotations


def code_hash(path: Path) -> str:
    """Hash the source of a notebook's code cells: without text, outputs and execution counts."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    return hashlib.sha256(json.dumps(sources).encode()).hexdigest()


def stage_parameters(profile: Profile, stage: str, run: str, changes: dict | None = None) -> dict:
    """Return every parameter of the stage's notebook with its value.

    Values come from the profile; `changes` (from --set) override them. `run`, `seed` and
    `world_seed` are set for the notebooks that take them. Raises ProfileError for a parameter that
    the notebook does not have, for a parameter of the notebook without a value (each with the
    nearest known name), for a plain type that does not fit the notebook's annotation (YAML reads
    `2e-5`, without a dot, as text), and for a value outside of ALLOWED_VALUES.
    """
    if stage not in profile.stages:
        raise ProfileError(
            f"profile '{profile.name}' has no stage {stage!r} {nearest(stage, profile.stages)}"
        )
    annotations = notebook_parameters(notebook(stage))
    own = {**profile.stages[stage], **(changes or {})}
    for name in own:
        if name not in annotations or name == "run":
            known = annotations.keys() - {"run"}
            raise ProfileError(f"{stage} has no parameter {name!r} {nearest(name, known)}")
    seeds = {"seed": profile.seed, "world_seed": profile.world_seed}
    available = {**seeds, **profile.common, **own, "run": run}
    parameters = {}
    for name, annotation in annotations.items():
        if name not in available:
            lack = f"{stage} needs the parameter {name!r}, which profile '{profile.name}' lacks"
            raise ProfileError(f"{lack} {nearest(name, available)}")
        _check_value(stage, name, available[name], annotation)
        parameters[name] = available[name]
    return parameters


def _check_value(stage: str, name: str, value: Any, annotation: str) -> None:
    """Raise ProfileError for a value of the wrong type, or one that is not allowed."""
    type_name = type(value).__name__
    if type_name not in YAML_TYPES.get(annotation, (type_name,)):
        raise ProfileError(
            f"{stage}: the parameter {name!r} is {value!r}, the notebook takes {annotation}"
        )
    allowed = ALLOWED_VALUES.get(name)
    if allowed and value not in allowed:
        raise ProfileError(
            f"{stage}: the parameter {name!r} is {value!r}; choose one of {', '.join(allowed)}"
        )


def plain_name(name: str, kind: str) -> str:
    """Return `name` if it is safe as one component of a path, else raise ProfileError.

    `kind` says in the message what is named: a run, a writer or a user.
    """
    if not PLAIN_NAME.fullmatch(name):
        raise ProfileError(
            f"the name of a {kind} is {name!r}: use letters, digits, '.', '_' and '-', "
            "and do not start with '.' (PERSONAVLM_RUNS moves all runs to another folder)"
        )
    return name


def runs_folder() -> Path:
    """The folder of all runs: `runs`, or the one that PERSONAVLM_RUNS names.

    A relative path in PERSONAVLM_RUNS counts from the project's folder, wherever a command starts.
    """
    return ROOT / (os.environ.get("PERSONAVLM_RUNS") or "runs")


def run_folder(run: str) -> Path:
    """`runs/<run>`; creates nothing. Raises ProfileError unless `run` is a plain name."""
    return runs_folder() / plain_name(run, "run")


def stage_folder(run: str, stage: str) -> Path:
    """`runs/<run>/<stage>`; creates nothing. Raises ProfileError for an unknown stage."""
    if stage not in STAGES:
        raise ProfileError(f"unknown stage {stage!r} {nearest(stage, STAGES)}")
    return run_folder(run) / stage


def memories_folder(run: str) -> Path:
    """`runs/<run>/memory`: one folder per writer, and one per user in each of them."""
    return run_folder(run) / "memory"


def memory_folder(run: str, writer: str, user: str | None = None) -> Path:
    """`runs/<run>/memory/<writer>`, one folder per user; with `user`, that user's folder.

    `writer` is "gold" (the oracle) or the name of a model of the run. Raises ProfileError unless
    all names are plain.
    """
    folder = memories_folder(run) / plain_name(writer, "writer")
    if user is None:
        return folder
    return folder / plain_name(user, "user")


def delete_in_run(run: str, path: Path) -> None:
    """Delete a file or folder of a run, if it exists.

    Raises ValueError, and deletes nothing, if `path` lies outside of `runs/<run>` or is that folder
    itself. Symbolic links are followed to decide where it lies.
    """
    delete(path, run_folder(run))


def require(run: str, stage: str) -> Path:
    """Return the folder of a finished stage (its `run.json` exists).

    Raises FileNotFoundError that says how to run it, and ProfileError for the run of an older
    version.
    """
    folder = stage_folder(run, stage)
    check_run_version(run)
    if not (folder / "run.json").is_file():
        state = "unfinished" if folder.exists() else "missing"
        raise FileNotFoundError(f"{folder} is {state}: run 'make reproduce' first")
    return folder


def check_run_version(run: str) -> None:
    """Raise ProfileError for a run whose data set has the file names of an older version."""
    dataset = stage_folder(run, "01_synthesize")
    old_file = dataset / "test_varied.jsonl"
    new_file = dataset / "test_paraphrased.jsonl"
    if old_file.is_file() and not new_file.is_file():
        raise ProfileError(
            f"{run_folder(run)} was made by an older version: "
            "rerun all of it with --force, or choose another run with --run"
        )
