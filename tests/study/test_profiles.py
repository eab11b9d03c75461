"""Profiles: every wrong name is an error, and the shipped profiles fit their notebooks."""

import json

import pytest

from personavlm_lib.study import profiles
from personavlm_lib.study.profiles import (
    PROFILES,
    ProfileError,
    load_profile,
    notebook,
    notebook_parameters,
    require,
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
            "rerun it with --force, or choose another run with --run"
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
