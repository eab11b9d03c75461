"""What the house promises of itself: pins, import arrows, size, notebooks, and CI that does what the README says."""

import ast
import io
import json
import re
import statistics
import subprocess
import tokenize
import tomllib

import pytest
import yaml

from personavlm_lib.study.profiles import NOTEBOOKS, ROOT, STAGES

PACKAGE = ROOT / "personavlm_lib"
ORDER = ("memory", "models", "agent", "simulation", "benchmark", "evaluation", "training", "study")
SOURCES = sorted(PACKAGE.rglob("*.py"))


def imported_packages(source: str, module: tuple[str, ...]) -> set[str]:
    """First-level packages of personavlm_lib that a module's text imports; `module` is its dotted name, split."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(module[: -node.level]) + "." if node.level else ""
            names |= {
                f"{base}{node.module or ''}.{alias.name}".replace("..", ".") for alias in node.names
            }
    return {name.split(".")[1] for name in names if name.startswith("personavlm_lib.")} & set(ORDER)


def test_conda_users_get_the_same_pins():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = set(project["dependencies"]) | set(project["optional-dependencies"]["dev"])
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    pip = next(entry["pip"] for entry in conda if isinstance(entry, dict))
    assert set(pip) - {"--editable ."} == pins
    assert all("==" in pin for pin in pins)
    assert not any(pin.startswith("torchvision") for pin in pins)


def test_imported_packages_sees_absolute_and_relative_imports():
    module = ("personavlm_lib", "agent", "respond")
    assert imported_packages("from personavlm_lib.study import profiles", module) == {"study"}
    assert imported_packages("from ..memory.store import MemoryStore", module) == {"memory"}
    assert imported_packages("from .. import simulation\nimport personavlm_lib.models", module) == {
        "simulation",
        "models",
    }


@pytest.mark.parametrize(
    "path", [p for p in SOURCES if p.parent != PACKAGE], ids=lambda p: str(p.relative_to(PACKAGE))
)
def test_a_package_imports_only_what_stands_before_it(path):
    module = path.relative_to(ROOT).with_suffix("").parts
    allowed = ORDER[: ORDER.index(module[1]) + 1]
    assert imported_packages(path.read_text(), module) <= set(allowed)


def code_lines(source: str) -> int:
    """Lines that hold code: neither blank nor only a comment or docstring, which the house asks for."""
    silent = (
        tokenize.COMMENT,
        tokenize.NL,
        tokenize.NEWLINE,
        tokenize.INDENT,
        tokenize.DEDENT,
        tokenize.ENDMARKER,
    )
    tokens = [
        t for t in tokenize.generate_tokens(io.StringIO(source).readline) if t.type not in silent
    ]
    lines = {line for token in tokens for line in range(token.start[0], token.end[0] + 1)}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(
            node, clean=False
        ):
            lines -= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return len(lines)


def test_code_lines_are_those_of_code():
    code = ["x = 1  # why", "y = (", "    2,", ")", "def f():", "    return x"]
    rest = ['"""Says."""', "", "# why", '    """Is."""']
    assert code_lines(
        "\n".join([*rest[:2], code[0], rest[2], *code[1:5], rest[3], code[5]])
    ) == len(code)


def test_the_package_is_thin():
    assert sum(code_lines(path.read_text()) for path in SOURCES) <= 7_650


def test_no_bare_except():
    handlers = [
        (path.name, node.lineno)
        for path in [*SOURCES, *(ROOT / "tests").rglob("*.py")]
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ExceptHandler) and node.type is None
    ]
    assert handlers == []


def test_every_stage_is_a_notebook_and_every_notebook_a_stage():
    assert sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb")) == sorted(STAGES)


@pytest.mark.parametrize("stage", STAGES)
def test_notebook_keeps_to_the_skeleton(stage):
    book = json.loads((NOTEBOOKS / f"{stage}.ipynb").read_text())
    code = [cell for cell in book["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] or cell["execution_count"] is not None for cell in code)
    assert book["cells"][0]["cell_type"] == "markdown" and book["cells"][0]["source"][0].startswith(
        "# "
    )
    lines = [len("".join(cell["source"]).splitlines()) for cell in code]
    assert statistics.median(lines) <= 10 and max(lines) <= 40
    (parameters,) = (cell for cell in code if "parameters" in cell["metadata"].get("tags", []))
    source = "".join(parameters["source"])
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    commented = {token.start[0] for token in tokens if token.type == tokenize.COMMENT}
    for node in ast.parse(source).body:
        assert isinstance(node, ast.AnnAssign), f"{stage}: not annotated: {ast.unparse(node)}"
        assert node.end_lineno in commented, f"{stage}: not commented: {ast.unparse(node)}"


def test_every_key_of_a_profile_is_commented():
    for path in (ROOT / "profiles").glob("*.yaml"):
        for line in path.read_text().splitlines():
            if re.match(r"\s*\w+:\s*\S", line):
                assert re.search(r"\s# \S", line), (
                    f"{path.name}: no comment beside {line.strip()!r}"
                )


def test_no_large_file_in_git():
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    files = [ROOT / name for name in listed.stdout.split("\0") if name]
    assert [
        str(path) for path in files if path.is_file() and path.stat().st_size > 10 * 2**20
    ] == []


def test_the_ci_runs_the_command_of_the_readme():
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    commands = [line for line in lines if line and not line.startswith(("#", "set ", "cd "))]
    assert commands == ["make test"]
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert "make test" in [line for block in blocks for line in block.splitlines()]
