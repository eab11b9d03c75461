"""`personavlm doctor` reports what is installed, and suggests a fix for what is missing."""

import json

from personavlm_lib.study import doctor, profiles


def test_missing_items_have_a_suggested_fix(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PERSONAVLM_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("PERSONAVLM_DATA", str(tmp_path / "nowhere"))
    (tmp_path / "runs" / "nano" / "01_synthesize").mkdir(parents=True)
    (tmp_path / "runs" / "nano" / "01_synthesize" / "run.json").write_text(
        json.dumps({}), encoding="utf-8"
    )
    (tmp_path / "pyproject.toml").write_text(
        '[project]\ndependencies = ["numpy==0.1", "no-such-thing==2.0"]', encoding="utf-8"
    )
    monkeypatch.setattr(doctor, "ROOT", tmp_path)
    monkeypatch.setattr(doctor, "BACKBONE", tmp_path)
    assert doctor.run_checks() == 1
    printed = capsys.readouterr().out
    assert "MISSING  no-such-thing: not installed  -> pip install no-such-thing==2.0" in printed
    assert "-> pip install numpy==0.1" in printed
    assert "ok       all-MiniLM-L6-v2: 384 dimensions" in printed
    assert f"MISSING  bundled backbone: {tmp_path / 'model.safetensors'}" in printed
    assert "nowhere  -> set it to a folder that contains files" in printed
    assert "1 finished stages, the last is 01_synthesize" in printed
    assert printed.splitlines()[-1] == "5 required items are missing." or "torchvision" in printed


def test_exit_code_is_1_only_if_something_is_missing(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PERSONAVLM_RUNS", str(tmp_path))
    monkeypatch.delenv("PERSONAVLM_DATA", raising=False)
    code = doctor.run_checks()
    lines = capsys.readouterr().out.splitlines()
    assert code == any(line.startswith("MISSING") for line in lines)
    assert len(lines) > len(profiles.STAGES) + 20


def test_requirements_are_those_of_the_whole_study():
    requirements = doctor.direct_requirements()
    assert {"numpy", "faiss-cpu", "torch", "papermill", "trl"} <= requirements.keys()
    assert requirements["torch"].startswith("==") and requirements["numpy"].startswith(">=")
    assert not {"personavlm", "pytest", "chromadb"} & requirements.keys()


def test_version_inside_its_range_is_no_finding(tmp_path, monkeypatch):
    (tmp_path / "pyproject.toml").write_text(
        '[project]\ndependencies = ["numpy>=1,<99"]', encoding="utf-8"
    )
    monkeypatch.setattr(doctor, "ROOT", tmp_path)
    (result,) = doctor._packages()
    assert (result.ok, result.name) == (True, "numpy")


def test_versions_are_compared_with_ranges_as_numbers():
    assert doctor._fits("2.13.0+cpu", "torch==2.13.0")
    assert doctor._fits("5.10", "psutil>=5.9,<8")
    assert not doctor._fits("5.8.9", "psutil>=5.9,<8")
    assert not doctor._fits("8.0", "psutil<8,>=5.9")
    assert not doctor._fits("2.13.1", "torch==2.13.0")


def test_extras_are_optional_without_a_checkout(tmp_path, monkeypatch):
    lines = ["numpy>=1,<99", 'no-such-thing==2.0; extra == "study"', 'ruff>=99; extra == "dev"']
    monkeypatch.setattr(doctor.importlib.metadata, "requires", lambda name: lines)
    monkeypatch.setattr(doctor, "ROOT", tmp_path)
    numpy, extra = doctor._packages()
    assert numpy.ok
    assert extra.ok is None
    assert "personavlm[study]" in extra.finding
