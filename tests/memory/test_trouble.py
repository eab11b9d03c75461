"""Full disks, read-only files, other processes, bad input: a clear error and nothing lost."""

import resource
import sqlite3
import subprocess
import sys
import textwrap
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from PIL import Image

from personavlm_lib.memory.archive import export_archive, import_archive
from personavlm_lib.memory.folders import user_folder
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
)
from personavlm_lib.memory.search import Retriever
from personavlm_lib.memory.store import MemoryStore, StoreError

NOON = datetime(2024, 5, 3, 12)
ROOT = Path(__file__).parents[2]


def child(code: str, *arguments: object) -> subprocess.Popen:
    """Start a process whose code can use `folder`, MemoryStore, StoreError, Turn and NOON."""
    start = """
        import sys
        from datetime import datetime, timedelta
        from personavlm_lib.memory.records import Turn
        from personavlm_lib.memory.store import MemoryStore, StoreError
        folder, NOON = sys.argv[1], datetime(2024, 5, 3, 12)
        class Encoder: name = "none"
    """
    program = textwrap.dedent(start) + textwrap.dedent(code)
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8", cwd=ROOT
    )


def test_two_processes_write_in_turn_and_both_read(tmp_path, encoder):
    code = """
        with MemoryStore(folder, Encoder()) as store:
            for n in range(60):
                store.add_turn(Turn(NOON, f"{sys.argv[2]} {n}"))
            print(len(store.as_of().turns))
    """
    writers = [child(code, tmp_path, name) for name in "ab"]  # neither finds a database yet
    counts = [int(writer.communicate(timeout=60)[0]) for writer in writers]
    assert max(counts) == 120
    assert min(counts) >= 60
    with MemoryStore(tmp_path, encoder) as store:
        turns = store.as_of().turns
    assert [turn.index for turn in turns] == list(range(120))
    for name in "ab":
        texts = [turn.user for turn in turns if turn.user.startswith(name)]
        assert texts == [f"{name} {n}" for n in range(60)]


def test_waiting_too_long_for_another_process_raises(tmp_path, encoder):
    code = """
        store = MemoryStore(folder, Encoder())
        with store.transaction():
            store.add_turn(Turn(NOON, "theirs"))
            print("in it", flush=True)
            sys.stdin.readline()
    """
    other = child(code, tmp_path)
    assert other.stdout.readline() == "in it\n"
    message = "memory.db: database is locked; another process held the write lock"
    with MemoryStore(tmp_path, encoder, wait=0.05) as store:
        with pytest.raises(StoreError, match=message):
            store.add_turn(Turn(NOON, "mine"))
        assert store.as_of().turns == []  # reading does not wait
        other.communicate("\n", timeout=30)
        assert store.add_turn(Turn(NOON, "mine")).index == 1
        assert [turn.user for turn in store.as_of().turns] == ["theirs", "mine"]


def test_a_full_disk_loses_nothing_that_was_written(tmp_path, encoder):
    message = "memory.db: database or disk is full; the disk is full; nothing was"
    with MemoryStore(tmp_path, encoder) as store:
        written = [store.add_turn(Turn(NOON, "x" * 2000)) for _ in range(10)]
        pages = store.sql("PRAGMA page_count")[0][0]
        store.sql(f"PRAGMA max_page_count = {pages + 3}")
        with pytest.raises(StoreError, match=message):
            for _ in range(100):
                written.append(store.add_turn(Turn(NOON, "x" * 2000)))
        with pytest.raises(StoreError, match="full"), store.transaction():
            for _ in range(100):
                store.add_turn(Turn(NOON, "y" * 2000))
        assert len(written) > 10
        assert store.as_of().turns == written
        store.sql("PRAGMA max_page_count = 100000")
        assert store.add_turn(Turn(NOON, "room again")).index == len(written)
    with MemoryStore(tmp_path, encoder) as store:
        assert store.as_of().turns[:-1] == written


@pytest.mark.parametrize(
    "limit, error_name, images",
    [(90_000, "OSError", "[]"), (300_000, "StoreError", "['turn00003_0.png']")],
)
def test_a_file_size_limit_loses_no_acknowledged_turn(tmp_path, encoder, limit, error_name, images):
    code = """
        import resource
        from pathlib import Path
        store = MemoryStore(folder, Encoder())
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
        done = 0
        try:
            for n in range(2000):
                images = (sys.argv[3],) if n == 3 else ()
                store.add_turn(Turn(NOON, f"turn {n} <img>", "x" * 900, images))
                done += 1
        except (StoreError, OSError) as error:
            names = [path.name for path in (Path(folder) / "images").iterdir()]
            print(done, type(error).__name__, names)
    """
    picture = tmp_path / "noise.png"
    Image.effect_noise((400, 400), 90).save(picture)
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY
    writer = child(code, tmp_path / "kai", limit, picture)
    output = writer.communicate(timeout=60)[0]
    done, raised, remaining_images = output.strip().split(" ", 2)
    with MemoryStore(tmp_path / "kai", encoder) as store:
        texts = [turn.user for turn in store.as_of().turns]
        assert texts == [f"turn {n} <img>" for n in range(int(done))]
        assert store.sql("PRAGMA integrity_check") == [("ok",)]
    assert raised == error_name, output
    assert remaining_images == images


def test_a_read_only_memory_can_still_be_read(tmp_path, encoder):
    message = "memory.db: attempt to write a readonly database; the file is read-only"
    with MemoryStore(tmp_path, encoder) as store:
        store.add_turn(Turn(NOON, "one"))
        # gives the same error as a read-only disk; a test as root may write anywhere
        store.sql("PRAGMA query_only = ON")
        with pytest.raises(StoreError, match=message):
            store.add_turn(Turn(NOON, "two"))
        assert [turn.user for turn in store.as_of().turns] == ["one"]


def test_an_impossible_folder_is_named_in_the_error(tmp_path, encoder):
    file = tmp_path / "file"
    file.write_text("", encoding="utf-8")
    for folder in (file, file / "kai"):
        with pytest.raises(StoreError, match=f"cannot create the memory folder .*{folder.name}"):
            MemoryStore(folder, encoder)
    odd = tmp_path / "odd"
    (odd / "memory.db").mkdir(parents=True)
    with pytest.raises(StoreError, match="odd/memory.db cannot be opened"):
        MemoryStore(odd, encoder)
    if Path("/proc/self").exists():  # a file system in which even root cannot create folders
        with pytest.raises(StoreError, match="cannot create the memory folder /proc/kai"):
            MemoryStore("/proc/kai", encoder)


def test_create_false_does_not_create_an_unknown_user(tmp_path, encoder):
    unknown = tmp_path / "kia"
    known = tmp_path / "kai"
    with pytest.raises(StoreError, match="user 'kia' does not exist"):
        MemoryStore(unknown, encoder, create=False)
    assert not unknown.exists()
    with MemoryStore(known, encoder):
        pass
    with MemoryStore(known, encoder, create=False):
        pass


@pytest.mark.parametrize("bad", ["note.png", "cut.png", "gone.png"])
def test_an_unreadable_image_stores_nothing(tmp_path, encoder, bad):
    good = tmp_path / "ok.png"
    Image.new("RGB", (5, 5)).save(good)
    (tmp_path / "note.png").write_text("just words", encoding="utf-8")
    (tmp_path / "cut.png").write_bytes(good.read_bytes()[:40])
    with MemoryStore(tmp_path / "kai", encoder) as store:
        images = (str(good), str(tmp_path / bad))
        with pytest.raises(ValueError, match=bad):
            store.add_turn(Turn(NOON, "<img> <img>", images=images))
        assert store.as_of().turns == []
        assert list(store.images.iterdir()) == []


@pytest.mark.parametrize("bad", ["2024-05-03", None, 7])
def test_an_invalid_time_is_rejected(encoder, bad):
    with MemoryStore.in_memory(encoder) as store:
        store.add_turn(Turn(NOON, "one"))
        writes = [
            lambda: store.add_turn(Turn(bad, "x")),
            lambda: store.add_semantic(SemanticMemory("x", "", NOON, NOON, bad)),
            lambda: store.add_semantic(SemanticMemory("x", "", bad, NOON, NOON)),
            lambda: store.add_episode(Episode("x", "", (0,), NOON, bad, NOON)),
            lambda: store.set_core(CoreMemory({"a": "b"}, {}, bad)),
        ]
        for write in writes:
            with pytest.raises(ValueError, match="give a datetime"):
                write()
        if not isinstance(bad, datetime | None):
            with pytest.raises(ValueError, match="give a datetime"):
                store.as_of(bad)
        view = store.as_of()
        assert len(view.turns) == 1
        assert not view.semantic
        assert not view.core


def test_an_end_before_its_start_is_rejected(encoder):
    before = NOON - timedelta(days=1)
    memory = SemanticMemory("x", "", NOON, before, NOON)
    with MemoryStore.in_memory(encoder) as store:
        with pytest.raises(ValueError, match="ends before"):
            store.add_semantic(memory)
        assert store.as_of().semantic == []


def test_a_memory_of_schema_1_is_migrated(tmp_path, encoder, first_schema):
    first_schema(tmp_path)
    for _ in range(2):
        with MemoryStore(tmp_path, encoder) as store:
            assert store.sql("PRAGMA user_version") == [(4,)]
            view = store.as_of()
            assert [turn.user for turn in view.turns][:2] == ["turn 0", "turn 1 in Rome"]
            assert len(view.semantic) == 6
            assert view.core.human == {"name": "Kai", "city": "Rome"}
            assert view.core.written_by == "rl"
            assert view.core.origins["human"] == {"name": (0, 1), "city": (1, 2)}
            assert [(edit.op, edit.key) for edit in view.procedural.edits] == [("add", "city")]
            assert view.personality == PersonalityState(BigFive.neutral(), None, 5, 1, NOON)
            assert view.rejected == view.receipts == store.pending() == []
            assert Retriever().retrieve(view, "fact 3").ids.count("semantic:3") == 1
            assert Retriever(ranking="bm25").rank_turns(view, "rome", 3) == [view.turns[1]]
            assert store.next_id("turns") == 6
            assert store.next_id("core") == 2
    with MemoryStore(tmp_path, encoder) as store:
        assert store.add_turn(Turn(NOON, "new")).index == 6
        version = store.set_procedural(ProceduralMemory({"name": "Kai"}, NOON))
        assert version.edits[0].op == "remove"


def test_a_memory_of_schema_2_is_migrated(tmp_path, encoder, second_schema):
    second_schema(tmp_path)
    for _ in range(2):
        with MemoryStore(tmp_path, encoder) as store:
            assert store.sql("PRAGMA user_version") == [(4,)]
            view = store.as_of()
            expected = [RejectedUpdate("core", f"raw {n}", "bad", NOON, (0,), "rl") for n in (0, 2)]
            assert view.rejected == expected
            assert store.next_id("rejected") == 3
            assert [(job.work, job.turn) for job in store.pending()] == [("session", 0)]
            assert Retriever(ranking="bm25").rank_turns(view, "rome", 3) == view.turns
            assert store.sql("SELECT name FROM sqlite_sequence WHERE name = 'refused'") == []
    with MemoryStore(tmp_path, encoder) as store:
        store.append("rejected", RejectedUpdate("core", "raw 3", "bad", NOON, (0,), "rl"))
        assert [row for row, _ in store.rows("rejected")] == [0, 2, 3]


def test_a_memory_of_schema_3_gets_attempts(tmp_path, encoder, second_schema):
    second_schema(tmp_path)
    db = sqlite3.connect(tmp_path / "memory.db", isolation_level=None)
    db.execute("ALTER TABLE refused RENAME TO rejected")
    db.execute("PRAGMA user_version = 3")
    db.close()
    with MemoryStore(tmp_path, encoder) as store:
        [job] = store.pending()
        assert job[1:] == ("session", 0, 0, 0.0, 0.0)
        store.database.postpone([job._replace(attempts=2, delay=4.0, retry_at=5.5)])
    with MemoryStore(tmp_path, encoder) as store:
        assert store.pending()[0][1:] == ("session", 0, 2, 4.0, 5.5)
        store.database.drop_pending([7])
        assert store.pending()[0][1:] == ("session", 0, 2, 4.0, 5.5)


def test_files_that_the_store_did_not_write_are_left_alone(tmp_path, encoder):
    folder = tmp_path / "kai"
    Image.new("RGB", (2, 2)).save(tmp_path / "cat.png")
    with MemoryStore(folder, encoder) as store:
        mine = store.images / "my notes.txt"
        mine.write_text("mine", encoding="utf-8")
        foreign_image = store.images / "holiday.png"
        Image.new("RGB", (3, 3)).save(foreign_image)
        (store.images / "@eaDir").mkdir()
        (store.images / "turn00007_0.png").mkdir()
        pictures = (str(tmp_path / "cat.png"), str(foreign_image))
        turn = store.add_turn(Turn(NOON, "Miso <img> <img>", images=pictures))
        names = [Path(path).name for path in turn.images]
        assert names == ["turn00000_0.png", "turn00000_1.png"]
        export_archive(store, tmp_path / "kai.zip")
        receipt = forget(store, "name:Miso")
        assert receipt.counts["images"] == 2
    with MemoryStore(folder, encoder) as store:
        left = {path.name for path in store.images.iterdir()}
        assert left == {"my notes.txt", "holiday.png", "@eaDir", "turn00007_0.png"}
    copy = import_archive(tmp_path / "kai.zip", tmp_path / "copy", encoder)
    assert sorted(path.name for path in copy.images.iterdir()) == names


def test_clean_up_that_fails_at_opening_only_warns(tmp_path, encoder, monkeypatch):
    with MemoryStore(tmp_path, encoder) as store:
        store.add_turn(Turn(NOON, "one"))
        store.database.set_meta("scrub", "due")
    monkeypatch.setattr(MemoryStore, "scrub", lambda _: Path("/nowhere").rmdir())
    with pytest.warns(UserWarning, match="nowhere"), MemoryStore(tmp_path, encoder) as store:
        assert len(store.as_of().turns) == 1


def test_a_read_only_folder_is_read_and_refuses_writes(
    tmp_path, encoder, monkeypatch, first_schema
):
    first_schema(tmp_path)
    before = (tmp_path / "memory.db").read_bytes()
    monkeypatch.setattr("os.access", lambda path, mode: False)  # root may write anywhere
    with MemoryStore(tmp_path, encoder) as store:
        view = store.as_of()
        assert len(view.turns) == 6
        assert Retriever().retrieve(view, "fact 3").semantic
        with pytest.raises(StoreError, match="is read-only; nothing was written"):
            store.add_turn(Turn(NOON, "two"))
        with pytest.raises(StoreError, match="is read-only"):
            forget(store, "turn:1")
    assert (tmp_path / "memory.db").read_bytes() == before
    assert not (tmp_path / "images").exists()


def test_the_working_directory_may_change(tmp_path, encoder, monkeypatch):
    Image.new("RGB", (2, 2)).save(tmp_path / "cat.png")
    monkeypatch.chdir(tmp_path)
    with MemoryStore("kai", encoder) as store:
        monkeypatch.chdir("/")
        turn = store.add_turn(Turn(NOON, "<img>", images=(str(tmp_path / "cat.png"),)))
        assert turn.images == (str(tmp_path / "kai" / "images" / "turn00000_0.png"),)


def test_a_users_folder_stays_below_the_root_and_is_theirs_alone(tmp_path):
    names = [
        "kai",
        "Kai",
        "KAI",
        "..",
        "../kai",
        "/etc",
        "",
        ".",
        "a/b",
        "a\\b",
        "a b",
        "Jos\u00e9",
    ]
    names += ["x" * 300, "\x00", "con.", "\ud800", user_folder("", "Kai").name]
    folders = [user_folder(tmp_path, name) for name in names]
    assert len({folder.name.casefold() for folder in folders}) == len(names)
    for folder in folders:
        assert folder.resolve().parent == tmp_path.resolve()
        folder.mkdir()
    assert user_folder(tmp_path, "Jose\u0301") == user_folder(tmp_path, "Jos\u00e9")
    assert user_folder(tmp_path, "kai") == tmp_path / "kai"
