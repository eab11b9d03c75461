"""The doctor finds what is there, and names the mend of what is not."""

import json

from personavlm_lib.study import doctor, profiles


def test_what_is_missing_has_a_mend(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PERSONAVLM_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("PERSONAVLM_DATA", str(tmp_path / "nowhere"))
    (tmp_path / "runs" / "nano" / "01_synthesize").mkdir(parents=True)
    (tmp_path / "runs" / "nano" / "01_synthesize" / "run.json").write_text(json.dumps({}))
    (tmp_path / "pyproject.toml").write_text(
        '[project]\ndependencies = ["numpy==0.1", "no-such-thing==2.0"]'
    )
    monkeypatch.setattr(doctor, "ROOT", tmp_path)
    monkeypatch.setattr(doctor, "BACKBONE", tmp_path)
    assert doctor.run_checks() == 1
    said = capsys.readouterr().out
    assert "MISSING  no-such-thing: not installed  -> pip install no-such-thing==2.0" in said
    assert "-> pip install numpy==0.1" in said and "ok       all-MiniLM-L6-v2: 384 wide" in said
    assert f"MISSING  kept backbone: {tmp_path / 'model.safetensors'}" in said
    assert (
        "nowhere  -> name a folder with files" in said
        and "1 stages are done, the last 01_synthesize" in said
    )
    assert said.splitlines()[-1] == "5 needed things are missing." or "torchvision" in said


def test_nothing_is_missing_where_the_tests_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PERSONAVLM_RUNS", str(tmp_path))
    monkeypatch.delenv("PERSONAVLM_DATA", raising=False)
    found = doctor.run_checks()
    lines = capsys.readouterr().out.splitlines()
    assert found == any(line.startswith("MISSING") for line in lines)
    assert len(lines) > len(profiles.STAGES) + 20
