"""Options of the command line are checked before a command imports a model or creates a folder."""

import sys

import pytest

from personavlm_lib.__main__ import main
from personavlm_lib.agent import prompt_sets
from personavlm_lib.benchmark.sizes import DATASET_SIZES
from personavlm_lib.memory import timeline
from personavlm_lib.study import options

WRONG = {
    "synthesize --out NEW --size huge": "'--size': 'huge' is unknown; choose one of nano, short",
    "synthesize --out NEW --wording free": "'--wording': 'free' is unknown; choose one of canon",
    "synthesize --out NEW --wording natural --generator http://host/v1#m": "'--wording': choose",
    "synthesize --out NEW --workers -1": "'--workers'",
    "synthesize --out NEW --seed -1": "'--seed'",
    "synthesize --out NEW --seed x": "'--seed'",
    "synthesize --out NEW --prices -1 0": "'--prices': -1 is no price",
    "synthesize --out NEW --prices 0 nan": "'--prices': nan is no price",
    "synthesize --out NEW --personas MISSING": "'--personas'",
    "synthesize --out NEW --personas FOLDER": "'--personas'",
    "synthesize --out NEW --generator gpt": "'--generator': 'gpt' is not a model on a server",
    "synthesize --out NEW --generator http://host/v1": "write it as http://host:port/v1#model",
    "synthesize --out NEW --generator http://me:word@host/v1#m": "'--generator'",
    "synthesize --out FOLDER": "'--out': FOLDER already exists",
    "synthesize --out FILE/new": "'--out': FILE is a file, not a folder",
    "synthesize": "Missing option '--out'",
    "locomo MISSING": "'file'",
    "locomo FILE --ranking best": "'--ranking': 'best' is unknown; choose one of dense, bm25, hyb",
    "locomo FILE --json MISSING/numbers.json": "'--json': the folder MISSING does not exist",
    "locomo FILE --json FOLDER": "'--json': FOLDER is a folder",
    "shortcuts MISSING": "'file'",
    "shortcuts FOLDER": "'file'",
    "naturalness MISSING --data FOLDER": "'lives'",
    "naturalness FILE --data MISSING": "'--data'",
    "naturalness FILE --data FOLDER --messages 0": "'--messages'",
    "skills --model m --questions 0": "'--questions'",
    "skills --model m --questions -3": "'--questions'",
    "skills --model m --prompts tiny": "'--prompts': 'tiny' is unknown; choose one of nano, full",
    "skills --model m --plot FILE": "'--plot': FILE is a file",
    "skills --model /no/folder": "'--model': no folder '/no/folder'",
    "skills --model http://host": "'--model': 'http://host' is not a model on a server",
    "chat --run ../other": "'--run': '../other' cannot name a run",
    "chat --memory FILE": "'--memory': FILE is a file",
    "chat --model ./nowhere": "'--model': no folder './nowhere'",
    "chat --picture nowhere.png": "'--picture'",
    "reproduce 02_stf": "'stages': '02_stf' is unknown; choose one of 00_backbone",
    "reproduce --profile nanoo": "'--profile': unknown profile 'nanoo' (nearest known: 'nano')",
    "reproduce --seed -1": "'--seed'",
    "reproduce --run a/b": "'--run'",
    "run 02_stf": "'stage': '02_stf' is unknown",
    "run 08_audit --set steps": "'--set': 'steps' is not KEY=VALUE",
    "run 08_audit --set steps=[": "'--set': '[' is not YAML",
    "run 08_audit --unknown": "No such option",
}


@pytest.mark.parametrize("command", WRONG)
def test_wrong_option_is_one_line_with_exit_code_2(command, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "folder"
    folder.mkdir()
    file = tmp_path / "file"
    file.write_text("{}", encoding="utf-8")
    paths = {"NEW": tmp_path / "new", "MISSING": tmp_path / "missing"}
    paths |= {"FOLDER": folder, "FILE": file}
    expected = WRONG[command]
    for name, path in paths.items():
        command = command.replace(name, str(path))
        expected = expected.replace(name, str(path))
    monkeypatch.setenv("PERSONAVLM_RUNS", str(tmp_path / "runs"))
    before = sorted(tmp_path.rglob("*"))
    # an import of the models, or of what computes, would fail
    blocked = ["personavlm_lib.models", "personavlm_lib.evaluation", "personavlm_lib.benchmark"]
    for name in blocked if "--set" not in command else []:
        monkeypatch.setitem(sys.modules, name, None)
    assert main(command.split()) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert expected in line
    assert sorted(tmp_path.rglob("*")) == before


def test_listed_choices_are_those_of_the_code():
    assert options.SIZES == tuple(DATASET_SIZES)
    assert options.RANKINGS == timeline.RANKINGS
    folders = {path.name for path in prompt_sets.FOLDER.iterdir() if path.is_dir()}
    assert set(options.PROMPT_SETS) == folders - {"story"}


def test_correct_values_are_returned_unchanged(tmp_path):
    server = "http://127.0.0.1:8000/v1#model"
    assert options.check_server(server) == server
    assert options.check_server("https://host#org/model:7b") == "https://host#org/model:7b"
    assert options.check_server("") == ""
    for name in (server, "org/model", "nano/02_sft", str(tmp_path), "../runs/nano/03_grpo"):
        assert options.check_model(name) == name
    assert options.check_run("nano-1") == "nano-1"
    assert options.check_prices((0.0, 2.5)) == (0.0, 2.5)
    new = tmp_path / "a" / "b"
    assert options.check_new_folder(new) == new
    assert options.check_new_file(tmp_path / "new.json") == tmp_path / "new.json"


def test_file_without_questions_fails_with_exit_code_1(tmp_path, capsys):
    file = tmp_path / "file.json"
    file.write_text("{", encoding="utf-8")
    for command in ("locomo", "shortcuts"):
        assert main([command, str(file)]) == 1
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert "expected" in line
