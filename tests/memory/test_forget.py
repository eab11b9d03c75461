"""Forgotten content leaves no trace: not in views, searches or any byte of the folder."""

import sqlite3
from datetime import datetime, timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from personavlm_lib.memory.forget import forget, preview_forget
from personavlm_lib.memory.names import name_finder
from personavlm_lib.memory.personality import next_state, smoothing
from personavlm_lib.memory.records import (
    SESSION_GAP,
    BigFive,
    CoreMemory,
    Episode,
    ProceduralMemory,
    RejectedUpdate,
    SemanticMemory,
    Turn,
    VisualConcept,
)
from personavlm_lib.memory.search import Retriever
from personavlm_lib.memory.store import MemoryStore, StoreError

START = datetime(2024, 5, 1, 9)
PARTS = ("turns", "semantic", "episodes", "core", "procedural", "personality_history", "rejected")


def secret(n: int) -> str:
    """A word that identifies turn n and occurs nowhere else."""
    return f"zq{n:03d}xw"


def picture(folder, n: int) -> str:
    path = folder / f"p{n}.png"
    image = Image.new("RGB", (8, 8), (n, 2 * n, 3 * n))
    image.putpixel((n % 8, 0), (255, 255, n))
    image.save(path)
    return str(path)


def add_history(store, until: int, pictures=None, gap_after: int = 3):
    """Add turns 0 to `until` in sessions of `gap_after`, each with all kinds of derived records.

    The records of a turn contain its secret word.
    """
    session: list[Turn] = []
    for n in range(until):
        time = START + timedelta(hours=3 * (n // gap_after), minutes=n)
        images = (picture(pictures, n),) if pictures and n % 2 else ()
        turn = store.add_turn(
            Turn(time, f"I said {secret(n)}{' <img>' * len(images)}", f"noted {secret(n)}", images),
            pending=n % 2 == 0,
        )
        session.append(turn)
        concept = VisualConcept(f"thing {secret(n)}", secret(n), turn.images[0]) if images else None
        about = f"fact {secret(n)}"
        store.add_semantic(
            SemanticMemory(about, secret(n), time, time, time, "fact", concept, (n,), "m/p-1")
        )
        observed = BigFive(1 + n % 5, 3, 5 - n % 5, 3, 4)
        view = store.as_of()
        store.add_personality(next_state(view.personality, observed, n, time))
        store.append("rejected", RejectedUpdate("core", f"raw {secret(n)}", "bad", time, (n,)))
        if len(session) == gap_after:
            known, sources = time + SESSION_GAP, tuple(t.index for t in session)
            words = " ".join(secret(t.index) for t in session)
            store.add_episode(
                Episode(f"we spoke of {words}", words, sources, session[0].time, time, known)
            )
            core = store.as_of().core
            human = (
                {"name": "Kai"}
                | (core.human if core else {})
                | {f"k{n % 4}": secret(n), f"l{n % 4}": secret(n - 1)}
            )
            store.set_core(CoreMemory(human, {}, known, sources))
            store.set_procedural(
                ProceduralMemory({f"habit {secret(n)}": f"does {secret(n)}"}, known, sources)
            )
            session = []


def filled(folder, tmp_path, encoder, until=9):
    store = MemoryStore(folder, encoder)
    with store.transaction():
        add_history(store, until, tmp_path)
    Retriever().retrieve(store.as_of(), "fact")  # encodes the vectors
    return store


def bytes_of(folder) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


def visible(store) -> str:
    view = store.as_of()
    found = Retriever().retrieve(view, "fact zq004xw said")
    return (
        repr([getattr(view, part) for part in PARTS])
        + repr(found)
        + repr(store.pending())
        + repr(view.receipts)
    )


SELECTORS = {
    "turn": (dict(what="turn:4"), {4}),
    "session": (dict(what="session:4"), {3, 4, 5}),
    "semantic": (dict(what="semantic:4"), {4}),
    "episode": (dict(what="episode:1"), {3, 4, 5}),
    "core": (dict(what="core:k1"), {3, 4, 5}),
    "procedural": (dict(what=f"procedural:habit {secret(5)}"), {3, 4, 5}),
    "name": (dict(what=f"name:{secret(4).upper()}"), {3, 4, 5}),
    "period": (
        dict(start=START + timedelta(hours=3), end=START + timedelta(hours=3, minutes=4)),
        {3, 4},
    ),
    "open start": (dict(end=START + timedelta(hours=2)), {0, 1, 2}),
    "everything": (dict(what="everything"), set(range(9))),
}


@pytest.mark.parametrize("selector", SELECTORS)
def test_no_forgotten_byte_is_left(tmp_path, encoder, selector):
    named, gone = SELECTORS[selector]
    with filled(tmp_path / "kai", tmp_path, encoder) as store:
        images = {turn.index: turn.images for turn in store.as_of().turns}
        pixels = {n: open(path, "rb").read() for n, paths in images.items() for path in paths}
        assert all(secret(n).encode() in bytes_of(tmp_path / "kai") for n in range(9))
        receipt = forget(store, **named)
        for n in range(9):
            raw = bytes_of(tmp_path / "kai")
            assert (secret(n).encode() in raw) == (n not in gone), n
            assert (secret(n) in visible(store)) == (n not in gone)
            assert n not in pixels or (pixels[n] in raw) == (n not in gone)
        assert receipt.ids["turns"] == tuple(sorted(gone)) and receipt.asked in (selector, "period")
        assert not any(f"zq{n:03d}" in repr(receipt) for n in range(9))
        assert receipt.counts["turns"] == len(gone) and receipt.counts.get("images", 0) == len(
            gone & pixels.keys()
        )
        receipts = repr(store.as_of().receipts)
        assert {job.turn for job in store.pending()} == {0, 2, 4, 6, 8} - gone
    with MemoryStore(tmp_path / "kai", encoder) as store:
        assert repr(store.as_of().receipts) == receipts
        new_turn = store.add_turn(Turn(START + timedelta(days=9), "again"))
        assert new_turn.index == 9  # ids are not reused
        derived = [
            *store.as_of().semantic,
            *store.as_of().episodes,
            *store.as_of().personality_history,
        ]
        assert not gone & {source for record in derived for source in record.sources}
        versions = [v for kind in ("core", "procedural") for v in store.as_of().table(kind).records]
        origins = [
            t
            for v in versions
            for keys in v.origins.values()
            for turns in keys.values()
            for t in turns
        ]
        assert not gone & {
            *origins,
            *(source for version in versions for source in version.sources),
        }


def test_lexical_index_forgets_words(tmp_path, encoder):
    with filled(tmp_path / "kai", tmp_path, encoder) as store:
        found = "SELECT rowid FROM semantic_text WHERE semantic_text MATCH ?"
        assert store.sql(found, secret(4)) == [(4,)]
        forget(store, "turn:4")
        assert store.sql(found, secret(4)) == [] and store.sql(found, secret(5)) == [(5,)]
        # FTS5 omits the prefix that a word shares with the previous one: look for the end.
        assert secret(4).encode() not in bytes_of(tmp_path / "kai") and b"4xw" not in bytes_of(
            tmp_path / "kai"
        )


def test_versions_lose_entries_of_the_turn_and_keep_the_rest(tmp_path, encoder):
    with filled(tmp_path / "kai", tmp_path, encoder) as store:
        before = store.as_of().core.human
        assert before == {
            "name": "Kai",
            **{f"{k}{n % 4}": secret(n - (k == "l")) for n in (2, 5, 8) for k in "kl"},
        }
        receipt = forget(store, "turn:5")
        assert store.as_of().core.human == {
            key: value for key, value in before.items() if key not in ("k1", "l1")
        }
        assert receipt.counts["core entries"] == 4  # both entries were in two versions
        habits = [list(version.entries) for version in store.as_of().table("procedural").records]
        assert habits == [[f"habit {secret(2)}"], [], [f"habit {secret(8)}"]]
        assert store.as_of().procedural.edits[0].op == "add"


def test_personality_is_recomputed_from_remaining_observations(tmp_path, encoder):
    with filled(tmp_path / "kai", tmp_path, encoder) as store:
        states = store.as_of().personality_history
        receipt = forget(store, "turn:4")
        profile = states[3].profile
        for state in states[5:]:
            weight = smoothing(state.m)
            pairs = zip(profile.as_tuple(), state.observed.as_tuple(), strict=True)
            profile = BigFive(*(weight * old + (1 - weight) * new for old, new in pairs))
        left = store.as_of().personality_history
        assert left[:4] == states[:4] and left[-1].profile.as_tuple() == pytest.approx(
            profile.as_tuple()
        )
        assert left[-1].profile != states[-1].profile and receipt.renewed == ("personality",)


def test_next_opening_completes_an_interrupted_forget(tmp_path, encoder, monkeypatch):
    store = filled(tmp_path / "kai", tmp_path, encoder)
    monkeypatch.setattr(store, "erase", lambda: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        forget(store, "turn:3")
    # An open connection keeps the WAL from being merged at closing.
    raw = sqlite3.connect(tmp_path / "kai" / "memory.db")
    store.close()
    with MemoryStore(tmp_path / "kai", encoder) as store:
        assert secret(3).encode() not in bytes_of(tmp_path / "kai") and not store.meta("scrub")
        assert [turn.index for turn in store.as_of().turns] == [0, 1, 2, 4, 5, 6, 7, 8]
        with pytest.raises(LookupError, match="turn 3 does not exist"):
            store.as_of().turn(3)
        assert store.as_of().turn(4).index == 4
    raw.close()


NFD_JOSE = "Jose\u0301"
SEEN = [
    ("Jos\u00e9", [NFD_JOSE, "JOS\u00c9", "Jos\u00e9's dog", "(Jos\u00e9)", "Jo\u00adse\u0301"]),
    (NFD_JOSE, ["Jos\u00e9"]),
    ("Mary Ann", ["Mary  Ann", "mary\nann", "Mary\u00a0Ann", "Mary\u200b Ann"]),
    ("Mary\u3000Ann", ["Mary Ann"]),
    ("Ann-Marie", ["Ann-Marie", "ann-marie", "Ann\u2011Marie"]),
    ("Wei\u00df", ["WEISS KAM", "weiss", "Wei\u00df"]),
    ("\u039c\u03af\u03ba\u03b7\u03c2", ["\u039c\u0399\u0301\u039a\u0397\u03a3"]),
    ("\u0639\u0644\u064a", ["\u0639\u064e\u0644\u0650\u064a \u0623\u062e\u064a"]),
    ("\u05d3\u05d5\u05d3", ["\u05d3\u05b8\u05bc\u05d5\u05b4\u05d3"]),
    ("Anna", ["Annas Katze", "Anna-style", "\uff21nna", "Anna\u2019s"]),
    ("\u0130rem", ["irem", "\u0130REM"]),
    ("\u0930\u093e\u092e", ["\u0930\u093e\u092e \u0928\u0947"]),
    ("\u7530\u4e2d", ["\u7530\u4e2d\u3055\u3093"]),
    ("\u0e2a\u0e21", ["\u0e09\u0e31\u0e19\u0e2a\u0e21\u0e43\u0e08"]),
]
NOT_SEEN = [
    ("\u0930\u093e\u092e", "\u0930\u093e\u092e\u093e\u092f\u0923 \u092a\u0922\u093c\u0940"),
    ("Ann", "Ann-Marie is my boss"),
    ("Ann", "Lou-Ann and planned annex ann_1"),
    ("Ros", "Ross came"),
    ("Mary Ann", "Mary and Ann"),
    ("Jose", "Jos\u00e9"),
    ("a.b", "axb"),
    ("\u0438\u0432\u0430\u043d", "\u0438\u0432\u0430\u043d\u043e\u0432"),
]


def test_a_name_is_found_where_a_reader_sees_it():
    for name, texts in SEEN:
        for text in texts:
            assert name_finder(name)(f"{text} x"), (name, text)
            assert name_finder(name)(f"x {text}"), (name, text)
    for name, text in NOT_SEEN:
        assert not name_finder(name)(text), (name, text)


def test_a_preview_tells_what_would_go_and_deletes_nothing(tmp_path, encoder):
    with filled(tmp_path / "kai", tmp_path, encoder) as store:
        before = visible(store)
        preview = preview_forget(store, f"name:{secret(4)}")
        assert visible(store) == before
        store._drop_loaded()
        assert visible(store) == before
        receipt = forget(store, f"name:{secret(4)}")
        counts = {name: count for name, count in receipt.counts.items() if name != "images"}
        assert (preview.ids, preview.counts) == (receipt.ids, counts)
        with pytest.raises(LookupError):
            preview_forget(store, f"name:{secret(4)}")


def test_the_reason_of_a_rejected_update_is_searched_for_a_name(tmp_path, encoder):
    with MemoryStore(tmp_path, encoder) as store:
        store.append("rejected", RejectedUpdate("core", "raw", "'Miso' is too long", START))
        assert forget(store, "name:miso").counts["rejected"] == 1


def test_name_matches_whole_words_or_any_part_of_unspaced_script(tmp_path, encoder):
    with MemoryStore(tmp_path, encoder) as store:
        for n, text in enumerate(
            ("Ann called", "I planned it", "我的猫咪很好", "ann's hat", "猫 only", "annex")
        ):
            store.add_turn(Turn(START + timedelta(minutes=n), text))
        assert forget(store, "name:Ann").ids["turns"] == (0, 3)
        assert forget(store, "name:猫咪").ids["turns"] == (2,)


@pytest.mark.parametrize(
    "named, error, message",
    [
        ({}, ValueError, "name what to forget, or a period"),
        (dict(what="turn:1", start=START), ValueError, "got 'turn:1' and 2024"),
        (dict(what="turn:77"), LookupError, "'turn:77' does not exist"),
        (dict(what="session:-1"), LookupError, "'session:-1' does not exist"),
        (dict(what="semantic:99"), LookupError, "'semantic:99' does not exist"),
        (dict(what="core:nothing"), LookupError, "'core:nothing' does not exist"),
        (dict(what="turns"), LookupError, "name a turn, session"),
        (dict(what="name:  "), LookupError, "name a turn, session"),
        (dict(what="name:Nobdy"), LookupError, "'name:Nobdy' does not exist"),
        (dict(start=START, end=START - timedelta(days=1)), ValueError, "before it starts"),
    ],
)
def test_missing_or_ambiguous_selection_is_rejected(tmp_path, encoder, named, error, message):
    with filled(tmp_path / "kai", tmp_path, encoder, 4) as store:
        before = visible(store)
        with pytest.raises(error, match=message):
            forget(store, **named)
        assert visible(store) == before


@given(st.integers(3, 12), st.sets(st.integers(0, 11), min_size=1, max_size=3), st.integers(0, 20))
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_past_view_after_forget_equals_a_store_filled_up_to_then(encoder, until, turns, hours):
    """The past view of a full store equals a store filled up to then, after the same forgets."""
    moment = START + timedelta(hours=hours)
    whole, partial = MemoryStore.in_memory(encoder), MemoryStore.in_memory(encoder)
    add_history(whole, until)
    known = sum(turn.time <= moment for turn in whole.as_of().turns)
    add_history(partial, known)
    for turn in sorted(turns):
        for store, there in ((whole, until), (partial, known)):
            if turn < there:
                forget(store, f"turn:{turn}")
    for part in PARTS:
        mine = getattr(whole.as_of(moment), part)
        others = getattr(partial.as_of(moment), part)
        assert mine == others, part
    assert not turns & {turn.index for turn in whole.as_of().turns}
    retrieved = Retriever().retrieve(whole.as_of(moment), "fact said")
    assert retrieved == Retriever().retrieve(partial.as_of(moment), "fact said")
    whole.close(), partial.close()


def test_scrub_waits_for_readers_and_warns(tmp_path, encoder):
    filled(tmp_path / "kai", tmp_path, encoder).close()
    other = sqlite3.connect(tmp_path / "kai" / "memory.db", isolation_level=None)
    other.execute("BEGIN")
    other.execute("SELECT count(*) FROM turns").fetchone()
    with MemoryStore(tmp_path / "kai", encoder, wait=0.05) as store:
        with pytest.raises(StoreError, match=r"forgotten, but .* \(another process has"):
            forget(store, "turn:4")
        assert secret(4) not in visible(store) and store.as_of().receipts[-1].ids["turns"] == (4,)
    with (
        pytest.warns(UserWarning, match="has the database open"),
        MemoryStore(tmp_path / "kai", encoder, wait=0.05) as store,
    ):
        assert secret(4) not in visible(store)
    other.close()
    with MemoryStore(tmp_path / "kai", encoder) as store:
        assert secret(4).encode() not in bytes_of(tmp_path / "kai") and secret(4) not in visible(
            store
        )
