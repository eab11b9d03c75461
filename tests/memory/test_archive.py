"""An archive gives back an equal memory, or nothing at all."""

import json
import random
import zipfile
from datetime import datetime, timedelta

import pytest
from PIL import Image

from personavlm_lib.memory.archive import export_archive, import_archive
from personavlm_lib.memory.forget import forget
from personavlm_lib.memory.records import (
    BigFive,
    CoreMemory,
    Episode,
    PersonalityState,
    ProceduralMemory,
    RejectedUpdate,
    SemanticMemory,
    Turn,
    VisualConcept,
)
from personavlm_lib.memory.search import Retriever
from personavlm_lib.memory.store import KINDS, MemoryStore, StoreError

NOON = datetime(2024, 5, 3, 12)


@pytest.fixture
def store(tmp_path, encoder):
    """Something of every kind, with characters at which lines could be split, and a gap where a turn was forgotten."""
    Image.new("RGB", (9, 9), "red").save(tmp_path / "cat.png")
    with MemoryStore(tmp_path / "kai", encoder) as store:
        for n, text in enumerate(
            ("look <img>", "secret", "a\u2028b\x85c\nd \U0001f408 \"q\" 'r'", "last")
        ):
            images = (str(tmp_path / "cat.png"),) if "<img>" in text else ()
            store.add_turn(Turn(NOON + timedelta(seconds=n), text, "ok", images), pending=n > 1)
        concept = VisualConcept("Rex", "dog", store.as_of().turns[0].images[0])
        store.add_semantic(
            SemanticMemory("Rex", "dog", NOON, NOON, NOON, "concept", concept, (0,), "m/p-1")
        )
        store.add_episode(Episode("talk", "words", (0, 2), NOON, NOON, NOON))
        store.set_core(CoreMemory({"name": "Kai"}, {"job": "cook"}, NOON, (0,)))
        store.set_procedural(ProceduralMemory({"run": "at 7:30"}, NOON, (0,)))
        store.add_personality(PersonalityState(BigFive.neutral(), None, 0, 1, NOON))
        store.append("rejected", RejectedUpdate("core", "x", "no entry", NOON, (0,)))
        forget(store, "turn:1")
        forget(store, "turn:3")
        yield store


def contents(store):
    """Every row of every kind, with the images' bytes in place of their paths, pending work, and the next ids."""
    rows = {}
    for kind in KINDS:
        rows[kind] = [
            (row, repr(record).replace(str(store.folder), "")) for row, record in store.rows(kind)
        ]
    pixels = {path.name: path.read_bytes() for path in store.images.iterdir()}
    return rows, pixels, store.pending(), [store._next_id(kind) for kind in KINDS]


def test_a_round_trip_is_equal(store, tmp_path, encoder):
    archive = export_archive(store, tmp_path / "kai.zip")
    with import_archive(archive, tmp_path / "new" / "kai", encoder) as copy:
        assert contents(copy) == contents(store)
        found = [Retriever().retrieve(s.as_of(), "rex talk").ids for s in (store, copy)]
        assert found[0] == found[1] == ["procedural:run", "semantic:0", "episode:0"]
        assert copy.add_turn(Turn(NOON + timedelta(days=1), "more")).index == 4
        assert b"secret" not in archive.read_bytes()
        again = export_archive(copy, tmp_path / "again.zip")
        with import_archive(again, tmp_path / "third", encoder) as third:
            assert contents(third) == contents(copy)
    assert not list(tmp_path.glob("**/*.partial"))


def test_an_archive_that_is_damaged_anywhere_is_refused_whole(store, tmp_path, encoder):
    whole = export_archive(store, tmp_path / "kai.zip").read_bytes()
    rng, refused = random.Random(0), 0
    for n in range(250):
        damaged = bytearray(whole)
        if n % 5 == 0:
            damaged = damaged[: rng.randrange(len(whole))]
        else:
            damaged[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        (tmp_path / "bad.zip").write_bytes(damaged)
        try:
            with import_archive(tmp_path / "bad.zip", tmp_path / f"new{n}", encoder) as copy:
                assert contents(copy) == contents(
                    store
                )  # a bit that says nothing, such as of a date
        except StoreError as error:
            refused += 1
            assert "bad.zip" in str(error) and not (tmp_path / f"new{n}").exists()
    assert refused > 150 and not list(tmp_path.glob("*.partial"))


def rewritten(archive, change):
    """The archive with its files changed by `change`."""
    with zipfile.ZipFile(archive) as old:
        files = {name: old.read(name) for name in old.namelist()}
    change(files)
    with zipfile.ZipFile(archive, "w") as new:
        for name, content in files.items():
            new.writestr(name, content)


def test_what_does_not_fit_its_manifest_is_refused(store, tmp_path, encoder):
    def manifest(**changed):
        return lambda files: files.update(
            {"manifest.json": json.dumps(json.loads(files["manifest.json"]) | changed).encode()}
        )

    cases = {
        "is missing": (lambda f: f.pop("turns.jsonl"), "turns.jsonl: not as the manifest says"),
        "is added": (lambda f: f.update({"images/new.png": b"x"}), "images/new.png: not as"),
        "is changed": (lambda f: f.update({"core.jsonl": b""}), "core.jsonl: not as"),
        "no manifest": (lambda f: f.pop("manifest.json"), "no 'manifest.json'"),
        "newer": (manifest(schema=99), "its schema is 99, this version reads up to"),
        "another's": (manifest(format="other"), "its format is 'other'"),
    }
    for name, (change, message) in cases.items():
        archive = export_archive(store, tmp_path / "case.zip")
        rewritten(archive, change)
        with pytest.raises(StoreError, match=message):
            import_archive(archive, tmp_path / name, encoder)
        assert not (tmp_path / name).exists()


def test_a_folder_that_holds_something_is_left_alone(store, tmp_path, encoder):
    archive = export_archive(store, tmp_path / "kai.zip")
    before = contents(store)
    with pytest.raises(StoreError, match="kai is not empty"):
        import_archive(archive, tmp_path / "kai", encoder)
    assert contents(store) == before
    with pytest.raises(StoreError, match="nowhere.zip cannot be read"):
        import_archive(tmp_path / "nowhere.zip", tmp_path / "new", encoder)
