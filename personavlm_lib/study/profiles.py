"""What a run is given (profiles/*.yaml) and where everything lies. The only place where a path of the project is said.

A profile is YAML with four keys: `seed`, `offline`, `common` (parameters for every notebook that takes them) and
`stages` (the stages of the chain, each with its parameters). A stage that is not listed is not part of the run.
"""

import ast
import difflib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = ROOT / "notebooks"
PROFILES = ROOT / "profiles"
PAPER_TABLES = ROOT / "results" / "paper"  # the paper's printed numbers
BACKBONE = ROOT / "results" / "backbone"  # the kept weights of the nano model
STAGES = (
    "00_backbone",
    "01_synthesize",
    "02_sft",
    "03_grpo",
    "04_agent_demo",
    "05_evaluate",
    "06_ablations",
    "07_personality",
    "08_audit",
    "explore_memories",
    "09_report",
)

FITTING = {
    "int": ("int",),
    "float": ("float", "int"),
    "bool": ("bool",),
    "str": ("str",),
}  # annotation: types of YAML


class ProfileError(ValueError):
    """What a run was given cannot be right; the message names the thing, its value and the mend."""


@dataclass(frozen=True)
class Profile:
    """What a run is given; `stages` is in the order of the chain, each stage's parameters by name."""

    name: str
    seed: int
    stages: dict[str, dict]
    common: dict = field(default_factory=dict)
    offline: bool = True


def nearest(name: str, known: Iterable[str]) -> str:
    """ "(nearest known: 'x')" for a mistyped `name`, or "(nothing is known here)"."""
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.0)
    return f"(nearest known: '{found[0]}')" if found else "(nothing is known here)"


def load_profile(name: str, seed: int | None = None) -> Profile:
    """The profile `profiles/<name>.yaml`, or the YAML file that `name` is the path of; `seed` in place of its own.

    Raises ProfileError for a missing file, an unknown key or an unknown stage, naming the nearest known one.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else PROFILES / f"{name}.yaml"
    if not path.is_file():
        raise ProfileError(
            f"profile {name!r} is not known {nearest(name, [p.stem for p in PROFILES.glob('*.yaml')])}"
        )
    try:
        given = yaml.safe_load(path.read_text()) or {}
    except yaml.MarkedYAMLError as error:
        raise ProfileError(
            f"{path} is not YAML (line {error.problem_mark.line + 1}: {error.problem})"
        ) from None
    if not isinstance(given, dict):
        raise ProfileError(f"{path} must be a mapping of seed, offline, common, stages")
    for key in given.keys() - {"seed", "offline", "common", "stages"}:
        raise ProfileError(
            f"{path}: unknown key {key!r} {nearest(key, ('seed', 'offline', 'common', 'stages'))}"
        )
    for key in {"seed", "stages"} - given.keys():
        raise ProfileError(f"{path}: the key {key!r} is missing")
    for stage in given["stages"]:
        if stage not in STAGES:
            raise ProfileError(f"{path}: unknown stage {stage!r} {nearest(stage, STAGES)}")
    stages = {stage: given["stages"][stage] or {} for stage in STAGES if stage in given["stages"]}
    return Profile(
        path.stem,
        given["seed"] if seed is None else seed,
        stages,
        given.get("common") or {},
        given.get("offline", True),
    )


def notebook(stage: str) -> Path:
    """The notebook of a stage, as kept in git (without outputs)."""
    return NOTEBOOKS / f"{stage}.ipynb"


def notebook_parameters(path: Path) -> dict[str, str]:
    """The names assigned in the notebook's one cell tagged `parameters`, in order, each with its annotation as written.

    Read with `ast`, because papermill's own inspection loses annotations such as `int | None`.
    Raises ProfileError unless there is exactly one such cell.
    """
    cells = [
        cell
        for cell in json.loads(path.read_text())["cells"]
        if "parameters" in cell["metadata"].get("tags", [])
    ]
    if len(cells) != 1:
        raise ProfileError(
            f"{path}: {len(cells)} cells are tagged 'parameters', there must be exactly one"
        )
    names = {}
    for node in ast.parse("".join(cells[0]["source"])).body:
        if isinstance(node, ast.AnnAssign):
            names[node.target.id] = ast.unparse(node.annotation)
        elif isinstance(node, ast.Assign):
            names[node.targets[0].id] = ""
    return names


def stage_parameters(profile: Profile, stage: str, run: str, changes: dict | None = None) -> dict:
    """Every parameter of the stage's notebook with its value: the profile's, over them `changes` (from --set).

    `run` and `seed` are given to the notebooks that take them. Raises ProfileError for a parameter that the notebook
    does not have, for one of its own that nothing gives (each with the nearest known name), and for a plain type that
    does not fit the notebook's annotation (YAML reads `2e-5`, without a dot, as text).
    """
    if stage not in profile.stages:
        raise ProfileError(
            f"profile '{profile.name}' has no stage {stage!r} {nearest(stage, profile.stages)}"
        )
    names = notebook_parameters(notebook(stage))
    own = {**profile.stages[stage], **(changes or {})}
    for name in own:
        if name not in names or name == "run":
            raise ProfileError(
                f"{stage} has no parameter {name!r} {nearest(name, names.keys() - {'run'})}"
            )
    given = {"seed": profile.seed, **profile.common, **own, "run": run}
    for name, annotation in names.items():
        if name not in given:
            lack = f"{stage} needs the parameter {name!r}, which profile '{profile.name}' does not give"
            raise ProfileError(f"{lack} {nearest(name, given)}")
        if type(given[name]).__name__ not in FITTING.get(annotation, (type(given[name]).__name__,)):
            raise ProfileError(
                f"{stage}: the parameter {name!r} is {given[name]!r}, the notebook takes {annotation}"
            )
    return {name: given[name] for name in names}


def run_folder(run: str) -> Path:
    """`runs/<run>`; the environment variable PERSONAVLM_RUNS moves `runs`. Creates nothing."""
    return Path(os.environ.get("PERSONAVLM_RUNS", ROOT / "runs")) / run


def stage_folder(run: str, stage: str) -> Path:
    """`runs/<run>/<stage>`; creates nothing. Raises ProfileError for an unknown stage."""
    if stage not in STAGES:
        raise ProfileError(f"unknown stage {stage!r} {nearest(stage, STAGES)}")
    return run_folder(run) / stage


def memory_folder(run: str, writer: str) -> Path:
    """`runs/<run>/memory/<writer>`: one folder per user, written by "gold" (the oracle) or a model of the run."""
    return run_folder(run) / "memory" / writer


def require(run: str, stage: str) -> Path:
    """The folder of a stage that has been run to its end (its `run.json` is there).

    Raises FileNotFoundError that says how to run it.
    """
    folder = stage_folder(run, stage)
    if not (folder / "run.json").is_file():
        state = "unfinished" if folder.exists() else "missing"
        raise FileNotFoundError(f"{folder} is {state}: run 'make reproduce' first")
    return folder
