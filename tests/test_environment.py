"""Streams use UTF-8, and caches move to a temporary folder when the home folder is unusable."""

import io
import os
import sys

import pytest

from personavlm_lib import environment


@pytest.fixture
def variables(monkeypatch):
    for name in environment.CACHES:
        monkeypatch.setenv(name, "")  # so that it is restored after the test
        monkeypatch.delenv(name)
    monkeypatch.setattr(environment.atexit, "register", lambda *arguments, **options: None)
    return monkeypatch


def test_streams_and_children_use_utf_8(monkeypatch):
    buffer = io.BytesIO()
    stream = io.TextIOWrapper(buffer, encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setenv("PYTHONUTF8", "0")
    environment.use_utf_8()
    print("café ✓ \udcff", flush=True)
    assert buffer.getvalue() == "café ✓ \\udcff\n".encode()
    assert os.environ["PYTHONUTF8"] == "1"


def test_writable_home_changes_nothing(variables, tmp_path):
    variables.setenv("HOME", str(tmp_path))
    environment.use_writable_caches()
    assert not set(environment.CACHES) & set(os.environ)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("home", ["/proc", "/nonexistent", "relative"])
def test_unwritable_or_missing_home_moves_the_caches(variables, tmp_path, home):
    variables.setenv("HOME", home)
    variables.setattr(environment.tempfile, "mkdtemp", lambda prefix: str(tmp_path))
    variables.setenv("MPLCONFIGDIR", "/chosen")
    environment.use_writable_caches()
    assert os.environ["MPLCONFIGDIR"] == "/chosen"
    assert os.environ["IPYTHONDIR"] == str(tmp_path / "ipython")
    assert os.environ["HF_HOME"] == str(tmp_path / "huggingface")
    assert os.environ["HOME"] == ("/proc" if home == "/proc" else str(tmp_path))


def test_downloaded_models_in_an_unwritable_home_are_still_used(variables, tmp_path):
    downloads = tmp_path / ".cache" / "huggingface"
    downloads.mkdir(parents=True)
    variables.setenv("HOME", str(tmp_path))
    variables.setattr(environment, "_is_writable", lambda folder: False)
    environment.use_writable_caches()
    assert os.environ["HF_HOME"] == str(downloads)
    assert os.environ["XDG_CACHE_HOME"] != str(tmp_path / ".cache")
