"""Caching: the key covers contents, settings and code, and only finished work is reused."""

import os

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


def test_only_finished_work_of_the_same_key_is_reused(tmp_path):
    folder = tmp_path / "user"
    assert not caching.reuse_or_clear(folder, "k")
    folder.mkdir()
    caching.mark_finished(folder, "k")
    assert caching.reuse_or_clear(folder, "k")
    assert not caching.reuse_or_clear(folder, "other")
    assert not folder.exists(), "work of another key is removed"
    folder.mkdir()
    assert not caching.reuse_or_clear(folder, "k")
    assert not folder.exists(), "unfinished work is removed"
