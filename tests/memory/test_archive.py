"""An archive restores an equal memory or nothing at all."""

import hashlib
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
    """A record of every kind, line separators in a text, and gaps where turns were forgotten."""
    picture = str(tmp_path / "cat.png")
    Image.new("RGB", (9, 9), "red").save(picture)
    texts = ("look <img>", "secret", "a\u2028b\x85c\nd \U0001f408 \"q\" 'r'", "last")
    with MemoryStore(tmp_path / "kai", encoder) as store:
        for n, text in enumerate(texts):
            images = (picture,) if "<img>" in text else ()
            turn = Turn(NOON + timedelta(seconds=n), text, "ok", images)
            store.add_turn(turn, pending=n > 1)
        concept = VisualConcept("Rex", "dog", store.as_of().turns[0].images[0])
        memory = SemanticMemory("Rex", "dog", NOON, NOON, NOON, "concept", concept, (0,), "m/p-1")
        store.add_semantic(memory)
        store.add_episode(Episode("talk", "words", (0, 2), NOON, NOON, NOON))
        store.set_core(CoreMemory({"name": "Kai"}, {"job": "cook"}, NOON, (0,)))
        store.set_procedural(ProceduralMemory({"run": "at 7:30"}, NOON, (0,)))
        store.add_personality(PersonalityState(BigFive.neutral(), None, 0, 1, NOON))
        store.append("rejected", RejectedUpdate("core", "x", "no entry", NOON, (0,)))
        forget(store, "turn:1")
        forget(store, "turn:3")
        yield store


def contents(store):
    """All rows with paths relative to the folder, the images' bytes, pending updates, next ids."""
    folder = str(store.folder)
    rows = []
    for kind in KINDS:
        for row, record in store.rows(kind):
            text = repr(record).replace(folder, "")
            rows.append((kind, row, text))
    pixels = {path.name: path.read_bytes() for path in store.images.iterdir()}
    next_ids = [store.next_id(kind) for kind in KINDS]
    return rows, pixels, store.pending(), next_ids


def test_a_round_trip_restores_an_equal_memory(store, tmp_path, encoder):
    archive = export_archive(store, tmp_path / "kai.zip")
    with import_archive(archive, tmp_path / "new" / "kai", encoder) as copy:
        assert contents(copy) == contents(store)
        for same in (store, copy):
            ids = Retriever().retrieve(same.as_of(), "rex talk").ids
            assert ids == ["procedural:run", "semantic:0", "episode:0"]
        assert copy.add_turn(Turn(NOON + timedelta(days=1), "more")).index == 4
        assert b"secret" not in archive.read_bytes()
        second = export_archive(copy, tmp_path / "second.zip")
        with import_archive(second, tmp_path / "third", encoder) as third:
            assert contents(third) == contents(copy)
    assert not list(tmp_path.glob("**/*.partial"))


def damaged(whole: bytes, rng: random.Random, truncate: bool) -> bytes:
    """A truncated copy, or one with one bit flipped."""
    place = rng.randrange(len(whole))
    if truncate:
        return whole[:place]
    bit = rng.randrange(8)
    copy = bytearray(whole)
    copy[place] ^= 1 << bit
    return bytes(copy)


def test_an_archive_with_any_damage_is_rejected_as_a_whole(store, tmp_path, encoder):
    whole = export_archive(store, tmp_path / "kai.zip").read_bytes()
    rng = random.Random(0)
    rejected = 0
    for n in range(250):
        folder = tmp_path / f"new{n}"
        (tmp_path / "bad.zip").write_bytes(damaged(whole, rng, truncate=n % 5 == 0))
        try:
            copy = import_archive(tmp_path / "bad.zip", folder, encoder)
        except StoreError as error:
            rejected += 1
            assert "bad.zip" in str(error)
            assert not folder.exists()
            continue
        with copy:  # the flipped bit carries no content, for example one of a date
            assert contents(copy) == contents(store)
    assert rejected > 150
    assert not list(tmp_path.glob("*.partial"))


def change_archive(archive, change):
    """Write the archive again after `change` has edited its files."""
    with zipfile.ZipFile(archive) as old:
        files = {name: old.read(name) for name in old.namelist()}
    change(files)
    with zipfile.ZipFile(archive, "w") as new:
        for name, content in files.items():
            new.writestr(name, content)


def change_manifest(files, **changes):
    manifest = json.loads(files["manifest.json"])
    files["manifest.json"] = json.dumps(manifest | changes).encode()


MANIFEST_MISMATCHES = {
    "is missing": (
        lambda files: files.pop("turns.jsonl"),
        "turns.jsonl: does not match the manifest",
    ),
    "is added": (
        lambda files: files.update({"images/new.png": b"x"}),
        "images/new.png: does not match",
    ),
    "is changed": (lambda files: files.update({"core.jsonl": b""}), "core.jsonl: does not match"),
    "no manifest": (lambda files: files.pop("manifest.json"), "missing 'manifest.json'"),
    "newer": (
        lambda files: change_manifest(files, schema=99),
        "its schema is 99, this version reads up to",
    ),
    "another's": (lambda files: change_manifest(files, format="other"), "its format is 'other'"),
}


@pytest.mark.parametrize("case", MANIFEST_MISMATCHES)
def test_files_that_do_not_match_the_manifest_are_rejected(store, tmp_path, encoder, case):
    change, message = MANIFEST_MISMATCHES[case]
    archive = export_archive(store, tmp_path / "case.zip")
    change_archive(archive, change)
    with pytest.raises(StoreError, match=message):
        import_archive(archive, tmp_path / case, encoder)
    assert not (tmp_path / case).exists()


def as_schema_2(files):
    """Rename the rejected updates as schema 2 named them."""
    lines = files.pop("rejected.jsonl")
    files["refused.jsonl"] = lines
    manifest = json.loads(files["manifest.json"])
    last_ids = manifest["last_ids"]
    last_ids["refused"] = last_ids.pop("rejected")
    checksums = manifest["sha256"]
    checksums["refused.jsonl"] = checksums.pop("rejected.jsonl")
    assert checksums["refused.jsonl"] == hashlib.sha256(lines).hexdigest()
    change_manifest(files, schema=2, last_ids=last_ids, sha256=checksums)


def test_an_archive_of_schema_2_restores_rejected_updates(store, tmp_path, encoder):
    later = NOON + timedelta(hours=1)
    store.append("rejected", RejectedUpdate("core", "y", "too long", later, (2,)))
    archive = export_archive(store, tmp_path / "old.zip")
    change_archive(archive, as_schema_2)
    with import_archive(archive, tmp_path / "new", encoder) as copy:
        assert [update.raw for update in copy.as_of().rejected] == ["x", "y"]
        assert contents(copy) == contents(store)


def test_a_folder_with_content_is_left_alone(store, tmp_path, encoder):
    archive = export_archive(store, tmp_path / "kai.zip")
    before = contents(store)
    with pytest.raises(StoreError, match="kai is not empty"):
        import_archive(archive, tmp_path / "kai", encoder)
    assert contents(store) == before
    with pytest.raises(StoreError, match="nowhere.zip cannot be read"):
        import_archive(tmp_path / "nowhere.zip", tmp_path / "new", encoder)
