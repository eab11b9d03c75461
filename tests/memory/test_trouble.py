"""Full disks, folders that cannot be written, other processes, older schemas, bad input: a clear word, nothing lost."""

import resource
import subprocess
import sys
import textwrap
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from PIL import Image

from personavlm_lib.memory.records import (
    BigFive,
    CoreMemory,
    Episode,
    PersonalityState,
    ProceduralMemory,
    SemanticMemory,
    Turn,
)
from personavlm_lib.memory.search import Retriever
from personavlm_lib.memory.store import MemoryStore, StoreError

NOON = datetime(2024, 5, 3, 12)
ROOT = Path(__file__).parents[2]


def child(code: str, *arguments: object) -> subprocess.Popen:
    """A process of its own, whose code finds `folder`, MemoryStore, Turn and NOON."""
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
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    )


def test_two_processes_write_one_after_the_other_and_both_read(tmp_path, encoder):
    code = """
        with MemoryStore(folder, Encoder()) as store:
            for n in range(60):
                store.add_turn(Turn(NOON, f"{sys.argv[2]} {n}"))
            print(len(store.as_of().turns))
    """
    writers = [child(code, tmp_path, name) for name in "ab"]  # both find no database yet
    seen = [int(writer.communicate(timeout=60)[0]) for writer in writers]
    with MemoryStore(tmp_path, encoder) as store:
        turns = store.as_of().turns
        assert (
            [turn.index for turn in turns] == list(range(120))
            and max(seen) == 120
            and min(seen) >= 60
        )
        for name in "ab":
            mine = [turn.user for turn in turns if turn.user.startswith(name)]
            assert mine == [f"{name} {n}" for n in range(60)]


def test_who_waits_too_long_for_another_process_is_told(tmp_path, encoder):
    code = """
        store = MemoryStore(folder, Encoder())
        with store.transaction():
            store.add_turn(Turn(NOON, "theirs"))
            print("in it", flush=True)
            sys.stdin.readline()
    """
    other = child(code, tmp_path)
    assert other.stdout.readline() == "in it\n"
    with MemoryStore(tmp_path, encoder, wait=0.05) as store:
        with pytest.raises(
            StoreError, match="memory.db: database is locked; another process has been writing"
        ):
            store.add_turn(Turn(NOON, "mine"))
        assert store.as_of().turns == []  # reading waits for nobody
        other.communicate("\n", timeout=30)
        assert store.add_turn(Turn(NOON, "mine")).index == 1
        assert [turn.user for turn in store.as_of().turns] == ["theirs", "mine"]


def test_a_full_disk_takes_nothing_of_what_was_there(tmp_path, encoder):
    with MemoryStore(tmp_path, encoder) as store:
        written = [store.add_turn(Turn(NOON, "x" * 2000)) for _ in range(10)]
        store.sql(f"PRAGMA max_page_count = {store.sql('PRAGMA page_count')[0][0] + 3}")
        with pytest.raises(
            StoreError, match="memory.db: database or disk is full; the disk is full; nothing was"
        ):
            for _ in range(100):
                written.append(store.add_turn(Turn(NOON, "x" * 2000)))
        with pytest.raises(StoreError, match="full"), store.transaction():
            for _ in range(100):
                store.add_turn(Turn(NOON, "y" * 2000))
        assert len(written) > 10 and store.as_of().turns == written
        store.sql("PRAGMA max_page_count = 100000")
        assert store.add_turn(Turn(NOON, "room again")).index == len(written)
    with MemoryStore(tmp_path, encoder) as store:
        assert store.as_of().turns[:-1] == written


def test_a_file_that_may_not_grow_loses_no_turn_that_was_acknowledged(tmp_path, encoder):
    code = """
        import resource
        from pathlib import Path
        store = MemoryStore(folder, Encoder())
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
        done = 0
        try:
            for n in range(2000):
                store.add_turn(Turn(NOON, f"turn {n} <img>", "x" * 900, (sys.argv[3],) if n == 3 else ()))
                done += 1
        except (StoreError, OSError) as error:
            print(done, type(error).__name__, [path.name for path in (Path(folder) / "images").iterdir()])
    """
    picture = Image.effect_noise((400, 400), 90)
    picture.save(tmp_path / "noise.png")
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY
    for limit, kind in ((90_000, "OSError"), (300_000, "StoreError")):
        folder = tmp_path / kind
        done, error, images = (
            child(code, folder, limit, tmp_path / "noise.png")
            .communicate(timeout=60)[0]
            .split(" ", 2)
        )
        with MemoryStore(folder, encoder) as store:
            assert [turn.user for turn in store.as_of().turns] == [
                f"turn {n} <img>" for n in range(int(done))
            ]
            assert store.sql("PRAGMA integrity_check") == [("ok",)]
        assert error == kind, (done, error, images)
        assert images.strip() == ("[]" if kind == "OSError" else "['turn00003_0.png']")


def test_a_memory_that_may_not_be_written_is_still_read(tmp_path, encoder):
    with MemoryStore(tmp_path, encoder) as store:
        store.add_turn(Turn(NOON, "one"))
        store.sql(
            "PRAGMA query_only = ON"
        )  # SQLite's own refusal, as on a read-only disk; root may write anywhere
        with pytest.raises(
            StoreError,
            match="memory.db: attempt to write a readonly database; it may not be written",
        ):
            store.add_turn(Turn(NOON, "two"))
        assert [turn.user for turn in store.as_of().turns] == ["one"]


def test_a_folder_that_cannot_be_one_is_named(tmp_path, encoder):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "kai"):
        with pytest.raises(StoreError, match=f"{folder.name} cannot be the folder of a memory"):
            MemoryStore(folder, encoder)
    (tmp_path / "odd" / "memory.db").mkdir(parents=True)
    with pytest.raises(StoreError, match="odd/memory.db cannot be opened"):
        MemoryStore(tmp_path / "odd", encoder)
    if Path("/proc/self").exists():  # a file system that takes no folder from root either
        with pytest.raises(StoreError, match="/proc/kai cannot be the folder"):
            MemoryStore("/proc/kai", encoder)


def test_an_unknown_user_is_not_made_by_asking(tmp_path, encoder):
    with pytest.raises(StoreError, match="no user 'kia'"):
        MemoryStore(tmp_path / "kia", encoder, create=False)
    assert not (tmp_path / "kia").exists()
    MemoryStore(tmp_path / "kai", encoder).close()
    MemoryStore(tmp_path / "kai", encoder, create=False).close()


def test_an_image_that_is_none_leaves_nothing(tmp_path, encoder):
    (tmp_path / "note.png").write_text("just words")
    Image.new("RGB", (5, 5)).save(tmp_path / "ok.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "ok.png").read_bytes()[:40])
    with MemoryStore(tmp_path / "kai", encoder) as store:
        for bad, error in (
            ("note.png", ValueError),
            ("cut.png", ValueError),
            ("gone.png", ValueError),
        ):
            with pytest.raises(error, match=bad):
                store.add_turn(
                    Turn(
                        NOON, "<img> <img>", images=(str(tmp_path / "ok.png"), str(tmp_path / bad))
                    )
                )
            assert store.as_of().turns == [] and list(store.images.iterdir()) == []


@pytest.mark.parametrize("bad", ["2024-05-03", None, 7, NOON.replace(tzinfo=UTC)])
def test_a_time_that_is_none_is_refused(encoder, bad):
    with MemoryStore.in_memory(encoder) as store:
        store.add_turn(Turn(NOON, "one"))
        for write in (
            lambda: store.add_turn(Turn(bad, "x")),
            lambda: store.add_semantic(SemanticMemory("x", "", NOON, NOON, bad)),
            lambda: store.add_semantic(SemanticMemory("x", "", bad, NOON, NOON)),
            lambda: store.add_episode(Episode("x", "", (0,), NOON, bad, NOON)),
            lambda: store.set_core(CoreMemory({"a": "b"}, {}, bad)),
        ):
            with pytest.raises(ValueError, match="give a datetime without a time zone"):
                write()
        if not isinstance(bad, datetime | None):
            with pytest.raises(ValueError, match="as of"):
                store.as_of(bad)
        assert (
            len(store.as_of().turns) == 1 and not store.as_of().semantic and not store.as_of().core
        )


def test_an_end_before_its_start_is_refused(encoder):
    with MemoryStore.in_memory(encoder) as store:
        with pytest.raises(ValueError, match="ends before that"):
            store.add_semantic(SemanticMemory("x", "", NOON, NOON - timedelta(days=1), NOON))
        assert store.as_of().semantic == []


def test_a_memory_of_schema_1_is_brought_up_to_date(tmp_path, encoder, first_schema):
    first_schema(tmp_path)
    for _ in range(2):
        with MemoryStore(tmp_path, encoder) as store:
            view = store.as_of()
            assert [turn.user for turn in view.turns][:2] == ["turn 0", "turn 1 in Rome"] and len(
                view.semantic
            ) == 6
            assert (
                view.core.human == {"name": "Kai", "city": "Rome"} and view.core.written_by == "rl"
            )
            assert view.core.origins["human"] == {"name": (0, 1), "city": (1,)}
            assert [(edit.op, edit.key) for edit in view.procedural.edits] == [("add", "city")]
            assert view.personality == PersonalityState(BigFive.neutral(), None, 5, 1, NOON)
            assert view.rejected == view.receipts == store.pending() == []
            assert Retriever().retrieve(view, "fact 3").ids.count("semantic:3") == 1
            assert Retriever(ranking="bm25").rank_turns(view, "rome", 3) == [view.turns[1]]
            assert store._next_id("turns") == 6 and store._next_id("core") == 2
    with MemoryStore(tmp_path, encoder) as store:
        assert store.add_turn(Turn(NOON, "new")).index == 6
        assert store.set_procedural(ProceduralMemory({"name": "Kai"}, NOON)).edits[0].op == "remove"
