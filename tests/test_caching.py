"""Caching: the key covers contents, settings and code, and only finished work is reused."""

import os

import pytest

from personavlm_lib import caching


def test_key_depends_on_contents_settings_and_code(tmp_path, monkeypatch):
    for name in ("a", "b"):
        (tmp_path / name / "deep").mkdir(parents=True)
        (tmp_path / name / "deep" / "weights").write_text("1", encoding="utf-8")
    os.utime(tmp_path / "b" / "deep" / "weights", (0, 0))
    first = caching.cache_key(model=tmp_path / "a", rate=1e-3)
    assert caching.cache_key(rate=1e-3, model=tmp_path / "b") == first
    assert caching.cache_key(rate=1e-4, model=tmp_path / "a") != first
    (tmp_path / "b" / "deep" / "weights").write_text("2", encoding="utf-8")
    assert caching.cache_key(model=tmp_path / "b", rate=1e-3) != first
    monkeypatch.setattr(caching, "code_fingerprint", lambda: "changed")
    assert caching.cache_key(model=tmp_path / "a", rate=1e-3) != first


@pytest.mark.parametrize("name", ["module.py", "table.yaml", "prompt.j2"])
def test_code_tables_and_prompts_change_every_key(name, tmp_path, monkeypatch):
    (tmp_path / "evaluation").mkdir()
    monkeypatch.setattr(caching, "PACKAGE", tmp_path)
    first = caching.code_fingerprint.__wrapped__()
    (tmp_path / "evaluation" / name).write_text("1", encoding="utf-8")
    assert caching.code_fingerprint.__wrapped__() != first


def test_only_finished_work_of_the_same_key_is_reused(tmp_path):
    folder = tmp_path / "user"
    assert not caching.reuse_or_clear(folder, "k", tmp_path)
    folder.mkdir()
    caching.mark_finished(folder, "k")
    assert caching.reuse_or_clear(folder, "k", tmp_path)
    assert not caching.reuse_or_clear(folder, "other", tmp_path)
    assert not folder.exists(), "work of another key is removed"
    folder.mkdir()
    assert not caching.reuse_or_clear(folder, "k", tmp_path)
    assert not folder.exists(), "unfinished work is removed"


@pytest.fixture
def root(tmp_path):
    """A folder with a file `inside/file`, beside a folder `beside` with a file."""
    for folder in (tmp_path / "root" / "inside", tmp_path / "beside"):
        folder.mkdir(parents=True)
        (folder / "file").write_text("content", encoding="utf-8")
    return tmp_path / "root"


def test_files_and_folders_inside_the_root_are_deleted(root):
    caching.delete(root / "missing", root)
    caching.delete(root / "inside" / "file", root)
    assert list((root / "inside").iterdir()) == []
    caching.delete(root / "inside", root)
    assert list(root.iterdir()) == []


@pytest.mark.parametrize("place", ["", ".", "..", "../beside", "inside/../../beside/file"])
def test_nothing_outside_the_root_is_deleted(root, place):
    with pytest.raises(ValueError, match="is not deleted: it does not lie inside of"):
        caching.delete(root / place, root)
    with pytest.raises(ValueError, match="is not deleted"):
        caching.reuse_or_clear(root / place, "k", root)
    assert (root / "inside" / "file").exists()
    assert (root.parent / "beside" / "file").exists()


def test_links_are_followed_to_decide_what_lies_inside(root):
    beside = root.parent / "beside"
    (root / "away").symlink_to(beside)
    for path in (root / "away", root / "away" / "file"):
        with pytest.raises(ValueError, match="is not deleted"):
            caching.delete(path, root)
    assert (beside / "file").exists()
    (root / "link").symlink_to(root / "inside")
    caching.delete(root / "link", root)
    assert (root / "inside" / "file").exists(), "a link goes without its target"
    linked_root = root.parent / "linked_root"
    linked_root.symlink_to(root)
    caching.delete(linked_root / "inside", linked_root)
    assert not (root / "inside").exists(), "the root itself may be a link"
