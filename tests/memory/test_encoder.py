"""Text encoders are optional: nothing imports a deep-learning library before it encodes."""

import subprocess
import sys

import pytest

from personavlm_lib.memory import encoder


def test_agent_and_memory_import_without_deep_learning_libraries():
    code = (
        "import sys, personavlm_lib.agent.personavlm, personavlm_lib.memory.forget\n"
        "libraries = {'torch', 'transformers', 'sentence_transformers', 'cv2'}\n"
        "assert not libraries & set(sys.modules), libraries & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_missing_package_is_reported_at_the_first_encode(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    encoder._load.cache_clear()
    text_encoder = encoder.TextEncoder()
    assert text_encoder.name == encoder.MINILM
    with pytest.raises(encoder.MissingExtraError, match=r"install personavlm\[dense\].*'bm25'"):
        text_encoder.encode(["tea"])
