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
