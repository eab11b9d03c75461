"""The command line without models, without a checkout, without a locale and without a home."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import nbformat
import pytest

from personavlm_lib.study.profiles import ROOT

HOSTILE = {
    "LC_ALL": "C",
    "PYTHONUTF8": "0",
    "PYTHONCOERCECLOCALE": "0",
    "PYTHONDONTWRITEBYTECODE": "1",
    "HOME": "/nonexistent/home",
}
HEAVY = (
    "accelerate cv2 datasets faiss ipykernel IPython matplotlib openai pandas papermill peft "
    "pyarrow scipy sentence_transformers sklearn snakemake statsmodels torch transformers "
    "trl"
)
BASE_INSTALL = """
import sys
for name in sys.argv.pop(1).split():
    sys.modules[name] = None  # an import raises ModuleNotFoundError, as if it were not installed
from personavlm_lib.__main__ import main
sys.exit(main())
"""
NOTEBOOK = """
import locale, os, sys, time
from pathlib import Path
import personavlm_lib
import matplotlib.pyplot
folder = Path(os.environ["PERSONAVLM_RUNS"]) / run
(folder / "package").write_text(personavlm_lib.__file__)
(folder / "written").write_text("café ✓")
if not (folder / "resumed").exists():
    (folder / "resumed").touch()
    time.sleep(300)
"""


def environment(**changes):
    kept = {}
    for name, value in os.environ.items():
        if not name.startswith(("PERSONAVLM_", "PYTHON", "JUPYTER", "MPL", "HF_", "XDG_")):
            kept[name] = value
    return kept | changes


def run(command, cwd, **changes):
    """Run Python with the arguments `command`, without a terminal; return the process."""
    return subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=cwd,
        env=environment(**changes),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        timeout=600,
    )


def failure(process, code=1):
    """The only line that a failed process printed."""
    assert process.returncode == code, process.stderr
    (line,) = process.stderr.strip().splitlines()
    return line


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """A folder with the package alone, as an installation without a checkout has it."""
    folder = tmp_path_factory.mktemp("installed")
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "personavlm_lib", folder / "personavlm_lib", ignore=ignored)
    return folder


def base_install(command, cwd):
    words = command.split()
    return run(["-c", BASE_INSTALL, HEAVY, *words], cwd, PYTHONPATH=str(ROOT))


def test_help_works_in_a_base_install(tmp_path):
    process = base_install("--help", tmp_path)
    assert process.returncode == 0, process.stderr
    assert "synthesize" in process.stdout
    for command in ("reproduce", "skills", "chat"):
        assert base_install(f"{command} --help", tmp_path).returncode == 0


def test_base_install_names_the_extra_that_a_command_needs(tmp_path):
    file = tmp_path / "file.json"
    file.write_text("{}", encoding="utf-8")
    study = "is not installed: pip install 'personavlm[study]'"
    commands = (f"locomo {file}", f"shortcuts {file}", "synthesize --out new", "figures")
    commands += ("skills --model m", "run 08_audit", "reproduce 08_audit")
    for command in commands:
        assert failure(base_install(command, tmp_path)).endswith(study)
    training = "pip install 'personavlm[training]'"
    process = run(
        ["-c", BASE_INSTALL, "accelerate trl", "reproduce", "02_sft"],
        tmp_path,
        PYTHONPATH=str(ROOT),
        PERSONAVLM_RUNS=str(tmp_path / "runs"),
    )
    assert failure(process).endswith(training)
    assert list(tmp_path.iterdir()) == [file]


def test_package_without_a_checkout_or_a_locale_or_a_home(package, tmp_path):
    """Commands that write nothing into the package leave it unchanged."""
    before = sorted(package.rglob("*"))
    hostile = HOSTILE | {"PYTHONPATH": str(package)}

    def command(*words):
        return run(["-m", "personavlm_lib", *words], tmp_path, **hostile)

    assert "doctor" in command("--help").stdout
    for words in (["reproduce"], ["run", "08_audit"], ["figures"]):
        assert "need a checkout of the project" in failure(command(*words))
    line = failure(command("synthesize", "--out", "new"))
    assert "clip is missing: use a checkout" in line
    options = {f"({letter})": f"café {letter}" for letter in "abcd"}
    case = {"data_path": "kai/data", "question_type": "Préférence", "query": "✓ ?"}
    case |= {"choices": options, "answer": "(a)"}
    cases = tmp_path / "cases.json"
    cases.write_text(json.dumps([case], ensure_ascii=False), encoding="utf-8")
    process = command("shortcuts", cases)
    assert process.returncode == 0, process.stderr
    assert "Préférence: n = 1" in process.stdout
    talk = {"speaker": "Zoë", "dia_id": "D1:1", "text": "I drink tea"}
    day = {"session_1_date_time": "1:00 pm on 8 May, 2023", "session_1": [talk]}
    probe = {"question": "tea ?", "category": 4, "evidence": ["D1:1"]}
    sample = {"sample_id": "a", "conversation": day, "qa": [probe]}
    talks = tmp_path / "locomo.json"
    talks.write_text(json.dumps([sample], ensure_ascii=False), encoding="utf-8")
    process = command("locomo", talks, "--ranking", "bm25", "--json", tmp_path / "out.json")
    assert process.returncode == 0, process.stderr
    assert "single-hop" in process.stdout
    process = command("doctor")
    assert process.stderr == "" or "Traceback" not in process.stderr
    assert "bundled backbone" in process.stdout and "required" in process.stdout
    process = run(
        ["-c", "from personavlm_lib.memory.store import MemoryStore; print('ok')"],
        tmp_path,
        **hostile,
    )
    assert process.stdout == "ok\n", process.stderr
    assert sorted(package.rglob("*")) == before


def test_interrupted_stage_resumes_and_its_kernel_uses_its_own_checkout(package, tmp_path):
    """In a second checkout, without a locale and a home folder."""
    checkout = tmp_path / "checkout"
    shutil.copytree(package, checkout)
    shutil.copy(ROOT / "pyproject.toml", checkout)
    (checkout / "notebooks").mkdir()
    book = nbformat.v4.new_notebook(metadata={"language_info": {"name": "python"}})
    tags = {"tags": ["parameters"]}
    parameters = "run: str = ''\nseed: int = 0"
    book.cells = [nbformat.v4.new_code_cell(parameters, metadata=tags)]
    book.cells.append(nbformat.v4.new_code_cell(NOTEBOOK))
    nbformat.write(book, checkout / "notebooks" / "08_audit.ipynb")
    (checkout / "tiny.yaml").write_text("seed: 0\nstages: {08_audit: {}}", encoding="utf-8")
    runs = tmp_path / "runs"
    command = ["-m", "personavlm_lib", "run", "08_audit", "--profile", "tiny.yaml"]
    changes = HOSTILE | {"PERSONAVLM_RUNS": str(runs)}
    before = sorted(checkout.rglob("*"))

    first = subprocess.Popen(
        [sys.executable, *command],
        cwd=checkout,
        env=environment(**changes),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        # children inherit ignored signals, and a shell ignores Ctrl-C for background jobs
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 300
    while not (runs / "tiny" / "resumed").exists():
        assert first.poll() is None, first.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    first.send_signal(signal.SIGINT)
    _, errors = first.communicate(timeout=120)
    assert first.returncode == 130, errors
    assert errors.strip() == "Interrupted. Rerun the same command to resume."
    assert not (runs / "tiny" / "08_audit" / "run.json").exists()

    second = run(command, checkout, **changes)
    assert second.returncode == 0, second.stderr
    assert (runs / "tiny" / "08_audit" / "run.json").exists()
    imported = (runs / "tiny" / "package").read_text(encoding="utf-8")
    assert imported == str(checkout / "personavlm_lib" / "__init__.py")
    assert (runs / "tiny" / "written").read_text(encoding="utf-8") == "café ✓"
    assert sorted(checkout.rglob("*")) == before
