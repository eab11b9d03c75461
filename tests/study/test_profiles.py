"""Profiles: every wrong name is an error, and the shipped profiles fit their notebooks."""

import json

import pytest

from personavlm_lib.study import profiles
from personavlm_lib.study.profiles import (
    PROFILES,
    ProfileError,
    delete_in_run,
    load_profile,
    memory_folder,
    notebook,
    notebook_parameters,
    require,
    run_folder,
    stage_folder,
    stage_parameters,
)

SHIPPED = sorted(path.stem for path in PROFILES.glob("*.yaml"))


def write_notebook(path, source):
    cell = {"cell_type": "code", "metadata": {"tags": ["parameters"]}, "source": source}
    path.write_text(json.dumps({"cells": [cell]}), encoding="utf-8")


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """Make 02_sft a stage with three parameters; return a function that loads a profile's text."""
    write_notebook(
        tmp_path / "02_sft.ipynb",
        "run: str = ''\nsteps: int | None = 1\nlearning_rate: float = 0.1\n",
    )
    monkeypatch.setattr(profiles, "NOTEBOOKS", tmp_path)

    def load(text):
        path = tmp_path / "tiny.yaml"
        path.write_text(text, encoding="utf-8")
        return load_profile(str(path))

    return load


def test_stage_parameters_override_common_ones(tiny):
    profile = tiny("seed: 3\ncommon: {steps: 5, users: 9}\nstages: {02_sft: {learning_rate: 1}}")
    assert stage_parameters(profile, "02_sft", "r") == {"run": "r", "steps": 5, "learning_rate": 1}
    assert stage_parameters(profile, "02_sft", "r", {"steps": 7})["steps"] == 7


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: 0\nstage: {}\nstages: {}", "'stage' (nearest known: 'stages')"),
        ("seed: 0\nstages: {02_stf: {}}", "'02_stf' (nearest known: '02_sft')"),
        ("stages: {}", "'seed' is missing"),
    ],
)
def test_profile_with_a_wrong_key_is_an_error(tiny, text, message):
    with pytest.raises(ProfileError) as error:
        tiny(text)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (
            "{steps: 1, learning_rte: 0.1}",
            "no parameter 'learning_rte' (nearest known: 'learning_rate')",
        ),
        ("{steps: 1}", "needs the parameter 'learning_rate'"),
        ("{steps: 1, learning_rate: 2e-5}", "'2e-5', the notebook takes float"),
        ("{steps: 1, learning_rate: 0.1, run: x}", "no parameter 'run'"),
    ],
)
def test_parameters_must_match_the_notebook(tiny, parameters, message):
    profile = tiny(f"seed: 0\nstages: {{02_sft: {parameters}}}")
    with pytest.raises(ProfileError) as error:
        stage_parameters(profile, "02_sft", "r")
    assert message in str(error.value)


def test_world_seed_selects_the_users_apart_from_the_training_seed():
    profile = load_profile("smoke", seed=3, world_seed=7)
    assert (profile.seed, profile.world_seed) == (3, 7)
    synthesis = stage_parameters(profile, "01_synthesize", "r")
    assert (synthesis["seed"], synthesis["world_seed"]) == (3, 7)
    sft = stage_parameters(profile, "02_sft", "r")
    assert sft["seed"] == 3 and "world_seed" not in sft


def test_world_seed_of_a_profile_is_zero_unless_it_says_otherwise(tiny):
    assert tiny("seed: 5\nstages: {}").world_seed == 0
    assert tiny("seed: 5\nworld_seed: 2\nstages: {}").world_seed == 2


@pytest.mark.parametrize("world_seed", [-1, 100, "x"])
def test_world_seed_without_users_is_an_error(tiny, world_seed):
    with pytest.raises(ProfileError, match="choose one from 0 to 99"):
        tiny(f"seed: 0\nworld_seed: {world_seed}\nstages: {{}}")


def test_unknown_name_error_suggests_the_nearest(tiny):
    with pytest.raises(ProfileError, match="nearest known: 'nano'"):
        load_profile("nanoo")
    with pytest.raises(ProfileError, match="nearest known: '03_grpo'"):
        stage_folder("r", "03_grop")
    with pytest.raises(ProfileError, match="has no stage '03_grpo'"):
        stage_parameters(tiny("seed: 0\nstages: {02_sft: {}}"), "03_grpo", "r")


def test_require_raises_unless_the_stage_is_finished(tmp_path, monkeypatch):
    monkeypatch.setenv("PERSONAVLM_RUNS", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="02_sft is missing: run 'make reproduce' first"):
        require("r", "02_sft")
    stage_folder("r", "02_sft").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="unfinished"):
        require("r", "02_sft")
    (tmp_path / "r" / "02_sft" / "run.json").write_text("{}", encoding="utf-8")
    assert require("r", "02_sft") == tmp_path / "r" / "02_sft"


UNSAFE_NAMES = ["", ".", "..", ".hidden", "a/b", "/tmp/a", "../runs2", "a\\b", "a b", "a\n", "é"]


@pytest.mark.parametrize("name", UNSAFE_NAMES)
def test_names_that_are_not_plain_are_errors(name):
    for function in (run_folder, lambda run: stage_folder(run, "02_sft")):
        with pytest.raises(ProfileError) as error:
            function(name)
        assert f"the name of a run is {name!r}: use letters, digits" in str(error.value)
        assert "PERSONAVLM_RUNS" in str(error.value)
    with pytest.raises(ProfileError, match="the name of a writer is"):
        memory_folder("r", name)
    with pytest.raises(ProfileError, match="the name of a user is"):
        memory_folder("r", "rl", name)


def test_runs_lie_where_the_environment_says(tmp_path, monkeypatch):
    monkeypatch.delenv("PERSONAVLM_RUNS", raising=False)
    assert run_folder("nano-1_a.b") == profiles.ROOT / "runs" / "nano-1_a.b"
    monkeypatch.setenv("PERSONAVLM_RUNS", "elsewhere")
    assert run_folder("r") == profiles.ROOT / "elsewhere" / "r"
    monkeypatch.setenv("PERSONAVLM_RUNS", str(tmp_path))
    assert memory_folder("r", "gold", "user_1") == tmp_path / "r" / "memory" / "gold" / "user_1"


def test_deletion_is_confined_to_the_run(tmp_path, monkeypatch):
    monkeypatch.setenv("PERSONAVLM_RUNS", str(tmp_path))
    for run in ("r", "other"):
        stage_folder(run, "02_sft").mkdir(parents=True)
    for path in (tmp_path, run_folder("r"), run_folder("other"), stage_folder("other", "02_sft")):
        with pytest.raises(ValueError, match="does not lie inside of"):
            delete_in_run("r", path)
    delete_in_run("r", stage_folder("r", "02_sft"))
    assert run_folder("r").exists() and not stage_folder("r", "02_sft").exists()
    assert stage_folder("other", "02_sft").exists()


@pytest.mark.parametrize("recipe", ["kept", "given", "scratch"])
def test_unknown_recipe_error_lists_the_four_recipes(recipe):
    profile = load_profile("nano")
    with pytest.raises(ProfileError) as error:
        stage_parameters(profile, "00_backbone", "r", {"recipe": recipe})
    assert str(error.value) == (
        f"00_backbone: the parameter 'recipe' is '{recipe}'; "
        "choose one of bundled, trial, train, external"
    )


def test_run_of_an_older_version_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setenv("PERSONAVLM_RUNS", str(tmp_path))
    for stage in ("01_synthesize", "03_grpo"):
        stage_folder("r", stage).mkdir(parents=True)
        (stage_folder("r", stage) / "run.json").write_text("{}", encoding="utf-8")
    (tmp_path / "r" / "01_synthesize" / "test_varied.jsonl").touch()
    for stage in ("01_synthesize", "03_grpo"):
        with pytest.raises(ProfileError) as error:
            require("r", stage)
        assert str(error.value) == (
            f"{tmp_path / 'r'} was made by an older version: "
            "rerun all of it with --force, or choose another run with --run"
        )
    (tmp_path / "r" / "01_synthesize" / "test_paraphrased.jsonl").touch()
    assert require("r", "01_synthesize") == tmp_path / "r" / "01_synthesize"


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_profiles_fit_their_notebooks(name):
    profile = load_profile(name)
    taken = set()
    for stage in profile.stages:
        stage_parameters(profile, stage, name)
        taken |= notebook_parameters(notebook(stage)).keys()
    assert profile.common.keys() <= taken, "no notebook takes these keys of `common`"
