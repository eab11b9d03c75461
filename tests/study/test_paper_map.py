"""PAPER_MAP.md names existing code, prompts, notebooks and output files, and true defaults."""

import ast
import re

import pytest

from personavlm_lib.study.profiles import NOTEBOOKS, ROOT, STAGES

PACKAGE = ROOT / "personavlm_lib"
TEXT = (ROOT / "PAPER_MAP.md").read_text(encoding="utf-8")
CODE = re.compile(r"([a-z_]+(?:/\w+)*/\w+\.py):([\w.]+)")
NAMED = sorted(set(CODE.findall(TEXT)))
SOURCES = "".join(
    path.read_text(encoding="utf-8")
    for path in [*PACKAGE.rglob("*.py"), *NOTEBOOKS.glob("*.ipynb")]
)


def find(path: str, name: str) -> ast.AST:
    """The definition of a dotted name (class, function, method, field or parameter) in a file.

    LookupError if it is not defined there.
    """
    node = ast.parse((PACKAGE / path).read_text(encoding="utf-8"))
    for part in name.split("."):
        node = members(node)[part]
    return node


def members(node: ast.AST) -> dict[str, ast.AST]:
    """Names defined in a module, class or function; a parameter or field maps to its default."""
    found: dict[str, ast.AST] = {}
    for inner in getattr(node, "body", []):
        if isinstance(inner, ast.FunctionDef | ast.ClassDef):
            found[inner.name] = inner
        elif isinstance(inner, ast.AnnAssign | ast.Assign):
            target = inner.target if isinstance(inner, ast.AnnAssign) else inner.targets[0]
            if isinstance(target, ast.Name):
                found[target.id] = inner.value or inner
    if isinstance(node, ast.FunctionDef):
        names = [*node.args.posonlyargs, *node.args.args]
        found |= {name.arg: name for name in [*names, *node.args.kwonlyargs]}
        found |= {
            n.arg: d for n, d in zip(reversed(names), reversed(node.args.defaults), strict=False)
        }
        found |= {
            n.arg: d for n, d in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True) if d
        }
    return found


def test_find_raises_for_undefined_names():
    assert find("memory/store.py", "MemoryStore.as_of").name == "as_of"
    for name in ("MemoryStore.as_off", "nothing", "MemoryStore.as_of.tim"):
        with pytest.raises(LookupError):
            find("memory/store.py", name)


@pytest.mark.parametrize("path, name", NAMED, ids=lambda part: part)
def test_named_code_exists(path, name):
    find(path, name)


def test_map_covers_all_differences():
    assert len(NAMED) > 60 and set(re.findall(r"\b(?:D\d+)\b", TEXT)) == {
        f"D{n}" for n in range(1, 16)
    }


def test_named_prompts_exist():
    prompts = re.findall(r"`(agent/prompts/\S+?\.j2)`", TEXT)
    assert len(prompts) == 8 and [name for name in prompts if not (PACKAGE / name).is_file()] == []


def test_stages_and_output_files_exist():
    assert set(re.findall(r"`(\d\d_\w+|explore_memories)`", TEXT)) == set(STAGES)
    left = re.findall(r"`((?:\d\d_\w+|explore_memories|memory)/[^`:]+)`", TEXT)
    assert len(left) > 25
    for path in left:
        stage, name = path.split("/")[0], path.split("/")[-1]
        assert stage in (*STAGES, "memory") and f"{name}" in SOURCES, path


def test_stated_defaults_are_those_of_the_code():
    rows = re.findall(
        rf"^\| (?:D\d+|open) \|[^|]*\| `{CODE.pattern}` \| `([^`]+)` \|", TEXT, re.MULTILINE
    )
    assert len(rows) >= 9
    for path, name, default in rows:
        assert ast.literal_eval(find(path, name)) == ast.literal_eval(default), f"{path}:{name}"


def test_named_profile_keys_are_notebook_parameters():
    source = (NOTEBOOKS / "03_grpo.ipynb").read_text(encoding="utf-8")
    assert all(f'"{key}: ' in source for key in ("beta", "epsilon", "group", "groups"))
