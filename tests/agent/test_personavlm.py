"""The assistant answers at once and updates in the background; each update happens exactly once."""

import json
import zipfile
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from threading import Event

import pytest
from PIL import Image

from personavlm_lib.agent.personavlm import PersonaVLM
from personavlm_lib.agent.prompt_sets import PromptSet
from personavlm_lib.agent.update import replay_conversation
from personavlm_lib.memory.archive import export_archive, import_archive
from personavlm_lib.memory.forget import forget
from personavlm_lib.memory.records import SESSION_GAP, Turn
from personavlm_lib.memory.search import Retriever
from personavlm_lib.memory.store import MemoryStore
from personavlm_lib.models.chat import ChatReply, ContextOverflow, RequestFailure
from personavlm_lib.models.engine import run_trajectories

NANO = PromptSet("nano")
START = datetime(2024, 3, 4, 9)
MINUTES = (0, 5, 20, 200, 210, 500)
PERSONALITY = (
    '"openness": 4\n"conscientiousness": 4\n"extraversion": 4\n"agreeableness": 2\n"neuroticism": 3'
)
PARTS = ("turns", "semantic", "episodes", "core", "procedural", "personality_history", "rejected")


class LetterEncoder:
    """An encoder without a model: the similarity of texts is that of their letter counts."""

    name = "letters"

    def encode(self, texts):
        import numpy as np

        counts = (
            np.array([[text.count(chr(c)) for c in range(97, 123)] for text in texts], np.float32)
            + 1e-3
        )
        return counts / np.linalg.norm(counts, axis=1, keepdims=True)


@dataclass
class Model:
    """Deterministic replies by purpose; can be held up, and can fail."""

    holds: tuple[str, ...] = ()  # purposes that wait for `go`
    breaks: tuple[str, ...] = ()  # purposes that raise
    go: Event = field(default_factory=Event)
    reached: Event = field(default_factory=Event)
    asks: list = field(default_factory=list)

    def start(self):
        return None

    def reply(self, asked):
        return [ChatReply(self._reply(ask)) for _, ask in asked]

    def _reply(self, ask):
        self.asks.append(ask)
        if ask.purpose in self.breaks:
            raise ConnectionError("the model is unreachable")
        if ask.purpose in self.holds:
            self.reached.set()
            assert self.go.wait(10)
        subject = ask.subject[-1] if isinstance(ask.subject, list) else ask.subject
        return {
            "respond": f"<think>hm</think>\n<answer>yes, {subject.user}</answer>",
            "personality": PERSONALITY,
            "semantic": (
                f'"reason": new\n"decision": true\n"content": {subject.user}\n"keywords": words'
            ),
            "core": f'"name": Kai\n"last": {subject.user}',
            "procedural": f'"habit": says {subject.user}',
            "episodic": (
                f'"topic_summary": until {subject.user}\n"keywords": words\n'
                '"source_dialog_indices": 0, 1'
            ),
        }[ask.purpose]


def at(minutes):
    return START + timedelta(minutes=minutes)


def contents(store):
    view = store.as_of()
    return {part: getattr(view, part) for part in PARTS}


def replayed(minutes=MINUTES):
    """Memory after replaying the same conversation, with its last session still open."""
    store = MemoryStore.in_memory(LetterEncoder())
    turns = [Turn(at(m), f"turn {n}", f"yes, turn {n}") for n, m in enumerate(minutes)]
    run_trajectories(
        [replay_conversation(store, turns, NANO, written_by="m", until=at(minutes[-1]))], Model()
    )
    return contents(store)


@pytest.fixture
def store():
    with MemoryStore.in_memory(LetterEncoder()) as store:
        yield store


def test_chat_leaves_the_same_memory_as_replaying_the_conversation(store):
    with PersonaVLM(store, Model(), NANO, name="m") as assistant:
        replies = [assistant.chat(f"turn {n}", time=at(m)) for n, m in enumerate(MINUTES)]
        assert replies == [f"yes, turn {n}" for n in range(len(MINUTES))]
        assistant.flush()
        assert contents(store) == replayed() and len(store.as_of().episodes) == 2
        # The last session is still open.
        assert [job.work for job in store.pending()] == ["session"]
        assistant.flush(at(MINUTES[-1]) + SESSION_GAP)
        assert store.pending() == [] and [episode.turns for episode in assistant.memory.episodes][
            2:
        ] == [(5,)]


def test_reply_sees_recent_turns_without_waiting_for_updates(store):
    model = Model(holds=("personality",))
    with PersonaVLM(store, model, NANO) as assistant:
        assistant.chat("my cat is Miso", time=at(0))
        assert model.reached.wait(10)
        # The worker holds the model's lock: the next reply waits for that one generation only.
        model.holds = ()
        model.go.set()
        assert assistant.chat("what is my cat?", time=at(3)) == "yes, what is my cat?"
        requests = [ask.text for ask in model.asks if ask.purpose == "respond"]
        assert "my cat is Miso" in requests[-1]
        assistant.flush()
        assert [memory.content for memory in store.as_of().semantic] == [
            "my cat is Miso",
            "what is my cat?",
        ]


def test_new_session_waits_for_the_updates_of_the_previous_one(store):
    model = Model()
    with PersonaVLM(store, model, NANO) as assistant:
        for n, minutes in enumerate((0, 10, 71)):
            assistant.chat(f"turn {n}", time=at(minutes))
        purposes = [ask.purpose for ask in model.asks]
        assert purposes.index("episodic") < [i for i, p in enumerate(purposes) if p == "respond"][2]


def test_ask_stores_nothing(store):
    with PersonaVLM(store, Model(), NANO) as assistant:
        assistant.chat("hello", time=at(0))
        assistant.flush()
        before = contents(store)
        assert assistant.ask("who am I?", time=at(1)).answer == "yes, who am I?"
        assert contents(store) == before and len(store.pending()) == 1


@pytest.mark.parametrize("broken", ["personality", "semantic", "core", "procedural", "episodic"])
def test_failed_update_is_raised_and_neither_lost_nor_repeated(tmp_path, broken):
    with (
        MemoryStore(tmp_path, LetterEncoder()) as store,
        PersonaVLM(store, Model(breaks=(broken,)), NANO, name="m") as first,
    ):
        for n, minutes in enumerate(MINUTES[:3]):
            first.chat(f"turn {n}", time=at(minutes))
        with pytest.raises(ConnectionError, match="unreachable"):
            first.flush(at(200))
        assert store.pending()
    with (
        MemoryStore(tmp_path, LetterEncoder()) as store,
        PersonaVLM(store, Model(), NANO, name="m") as second,
    ):
        for n, minutes in enumerate(MINUTES[3:], 3):
            second.chat(f"turn {n}", time=at(minutes))
        second.flush()
        assert contents(store) == replayed()


def test_opening_continues_pending_updates(tmp_path):
    with MemoryStore(tmp_path, LetterEncoder()) as store:
        for n, minutes in enumerate(MINUTES):  # a conversation recorded elsewhere
            store.add_turn(Turn(at(minutes), f"turn {n}", f"yes, turn {n}"), pending=True)
    with (
        MemoryStore(tmp_path, LetterEncoder()) as store,
        PersonaVLM(store, Model(), NANO, name="m") as assistant,
    ):
        assistant.flush()
        assert contents(store) == replayed()


def test_two_assistants_on_one_memory_do_not_repeat_updates(tmp_path):
    model = Model(holds=("semantic",))
    with (
        MemoryStore(tmp_path, LetterEncoder()) as one,
        MemoryStore(tmp_path, LetterEncoder()) as other,
    ):
        with PersonaVLM(one, model, NANO, name="m") as first:
            first.chat("turn 0", time=at(0))
            assert model.reached.wait(10)
            # The second assistant sees the same pending updates.
            with PersonaVLM(other, Model(), NANO, name="m") as second:
                second.flush()
            model.go.set()
            first.flush()
        assert (
            len(one.as_of().semantic) == len(one.as_of().personality_history) == 1
            and len(one.pending()) == 1
        )


def test_update_of_a_turn_forgotten_meanwhile_is_not_written(store):
    model = Model(holds=("semantic",))
    with PersonaVLM(store, model, NANO) as assistant:
        store.add_turn(Turn(at(0), "keep this", "ok"))
        assistant.chat("forget this", time=at(1))
        assert model.reached.wait(10)
        forget(store, "turn:1")
        model.go.set()
        assistant.flush()
        assert store.as_of().semantic == [] and store.pending() == []
        assert [turn.user for turn in store.as_of().turns] == ["keep this"]


def test_valid_images_are_stored_and_invalid_ones_store_nothing(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "cat.png")
    (tmp_path / "note.png").write_text("no image", encoding="utf-8")
    with (
        MemoryStore(tmp_path / "kai", LetterEncoder()) as store,
        PersonaVLM(store, Model(), NANO) as assistant,
    ):
        assistant.chat("look <img>", [str(tmp_path / "cat.png")], at(0))
        for images, error in ((["note.png"], ValueError), (["gone.png"], ValueError)):
            with pytest.raises(error, match=images[0]):
                assistant.chat("and <img>", [str(tmp_path / images[0])], at(1))
        assistant.flush()
        assistant.chat("and this", [str(tmp_path / "cat.png")], at(2))
        turn, later = store.as_of().turns
        assert (later.user, later.image_at) == ("and this", (8,))
        assert turn.images == (str(tmp_path / "kai" / "images" / "turn00000_0.png"),)


def test_a_time_that_is_none_is_rejected(store):
    with PersonaVLM(store, Model(), NANO, Retriever()) as assistant:
        assistant.chat("hello", time=at(10))
        with pytest.raises(ValueError, match="'tomorrow': give a datetime"):
            assistant.chat("hello", time="tomorrow")
        assert len(store.as_of().turns) == 1


@pytest.mark.parametrize("minutes", [54, 90, 60 * 24 * 365 * 70])
def test_a_clock_that_goes_back_refuses_nobody_and_loses_nothing(store, minutes):
    with PersonaVLM(store, Model(), NANO, name="m") as assistant:
        assistant.chat("turn 0", time=at(minutes))
        for n, minute in enumerate((0, 5, 200), 1):
            assistant.chat(f"turn {n}", time=at(minute))
        assistant.flush(at(400))
        view = assistant.memory
        assert [turn.user for turn in view.turns] == [f"turn {n}" for n in range(4)]
        assert [memory.content for memory in view.semantic] == [
            turn.user for turn in sorted(view.turns, key=lambda turn: turn.time)
        ]
        assert view.personality.turn == 3
        assert view.personality.m == 4
        assert view.core.human == {"name": "Kai", "last": "turn 3"}
        assert {turn for episode in view.episodes for turn in episode.turns} >= {0, 1, 3}
        assert store.pending() == []


class Fussy(Model):
    """A model that fails where `fails(request)`, with the exception that this returns."""

    def __init__(self, fails):
        super().__init__()
        self.fails = fails

    def reply(self, asked):
        return [self.fails(ask) or ChatReply(self._reply(ask)) for _, ask in asked]


def all_failed(store):
    return [r for r in store.as_of().rejected if r.purpose in ("turn", "session")]


def test_an_update_that_cannot_succeed_becomes_visible_and_blocks_nothing(store, caplog):
    def fails(ask):
        if ask.purpose == "semantic" and ask.subject.user == "turn 1":
            return ValueError("unanswerable")
        return None

    with PersonaVLM(store, Fussy(fails), NANO, name="m") as assistant:
        for n, minutes in enumerate(MINUTES):
            assert assistant.chat(f"turn {n}", time=at(minutes)) == f"yes, turn {n}"
        while not all_failed(store):
            with pytest.raises(ValueError, match="unanswerable"):
                assistant.flush(at(700))
        assistant.flush(at(700))
        [failed] = all_failed(store)
        assert (failed.purpose, failed.sources) == ("turn", (1,))
        assert failed.reason == "failed 3 times: ValueError('unanswerable')"
        assert "turns (1,) failed" in caplog.text
        assert store.pending() == []
        assert [memory.sources[0] for memory in assistant.memory.semantic] == [0, 2, 3, 4, 5]
        assert {turn for episode in assistant.memory.episodes for turn in episode.turns} >= {0, 3}
        forget(store, "turn:1")
        assert all_failed(store) == []


def test_a_reply_that_cannot_be_stored_is_kept_with_the_failed_update(store, monkeypatch):
    monkeypatch.setattr(MemoryStore, "add_semantic", lambda *_: 1 / 0)
    with PersonaVLM(store, Model(), NANO) as assistant:
        assistant.chat("hello", time=at(0))
        while not all_failed(store):
            with pytest.raises(ZeroDivisionError):
                assistant.flush()
        [failed] = all_failed(store)
        assert '"content": hello' in failed.raw
        assert [job.work for job in store.pending()] == ["session"]


def test_a_session_too_long_for_the_model_is_split_by_turns(store):
    def fails(ask):
        too_long = isinstance(ask.subject, list) and len(ask.subject) > 2
        return ContextOverflow("8192 tokens at most") if too_long else None

    with PersonaVLM(store, Fussy(fails), NANO, name="m") as assistant:
        for n in range(9):
            assistant.chat(f"turn {n}", time=at(n))
        assistant.flush(at(200))
        view = assistant.memory
        assert store.pending() == view.rejected == []
        turns = {turn for episode in view.episodes for turn in episode.turns}
        assert turns == set(range(9))
        assert view.core.human["last"] == "turn 8"


def test_an_unreachable_model_is_retried_for_ever_and_in_order(store):
    down = [True]

    def fails(ask):
        unreachable = down[0] and ask.purpose != "respond"
        return RequestFailure("unreachable", "no server") if unreachable else None

    model = Fussy(fails)
    with PersonaVLM(store, model, NANO, name="m") as assistant:
        for n, minutes in enumerate(MINUTES):
            assistant.chat(f"turn {n}", time=at(minutes))
        for _ in range(5):
            with pytest.raises(RequestFailure):
                assistant.flush()
        job = store.pending()[0]
        assert job.attempts == 0
        assert job.delay >= 16
        tried = len(model.asks)
        assistant.chat("turn 6", time=at(501))  # within the delay: nothing is tried
        assistant._start_worker().result()
        assert len(model.asks) == tried + 1
        down[0] = False
        assistant.flush()
        assert [memory.sources for memory in assistant.memory.semantic] == [(n,) for n in range(7)]


def test_texts_are_cleaned_where_they_enter(store):
    said = "A\ud83d\ude00 b\x00c \ud83d d\x1b[1m \\u0001 line\n\ttab"
    clean = "A\U0001f600 bc \ufffd d[1m \\u0001 line\n\ttab"
    with PersonaVLM(store, Model(), NANO) as assistant:
        assert assistant.chat(said, time=at(0)) == f"yes, {clean}"
        assistant.flush()
        view = store.as_of()
        assert view.turns[0].user == clean
        assert view.semantic[0].content.startswith("A\U0001f600 bc \ufffd d[1m")
    turn = Turn(at(1), said, "x\x07\\\x08")
    assert store.add_turn(turn).assistant == "x\\"
    store._drop_loaded()
    assert [turn.user for turn in store.as_of().turns] == [clean, clean]
    assert len(Retriever().rank_turns(store.as_of(), "tab \ud800", 3)) == 2


def test_a_lost_picture_is_a_gap_in_one_turn_and_a_warning(tmp_path, caplog):
    for name in ("cat", "dog"):
        Image.new("RGB", (4, 4), "red").save(tmp_path / f"{name}.png")
    model = Model()
    with (
        MemoryStore(tmp_path / "kai", LetterEncoder()) as store,
        PersonaVLM(store, model, NANO) as assistant,
    ):
        pictures = [str(tmp_path / "cat.png"), str(tmp_path / "dog.png")]
        assistant.chat("look", pictures, at(0))
        assistant.flush()
        lost, kept = store.as_of().turns[0].images
        Path(lost).unlink()
        assistant.chat("hello", time=at(5))
        assistant.flush(at(200))
        assert store.pending() == []
        for ask in model.asks[-4:]:
            if "look" in ask.text:
                assert "look (lost picture) <img>" in ask.text.replace("  ", " ")
                assert ask.images == (kept,)
        assert f"{lost} is lost" in caplog.text
        with pytest.warns(UserWarning, match="lacks images: turn00000_0.png"):
            export_archive(store, tmp_path / "kai.zip")
    with zipfile.ZipFile(tmp_path / "kai.zip") as archive:
        assert json.loads(archive.read("manifest.json"))["lost_images"] == ["turn00000_0.png"]
    assert len(import_archive(tmp_path / "kai.zip", tmp_path / "copy").as_of().turns) == 2


def test_a_request_to_forget_is_previewed_and_carried_out_after_a_yes(store):
    model = Model()
    with PersonaVLM(store, model, NANO) as assistant:
        assistant.chat("my cat is Miso", time=at(0))
        assistant.chat("I like tea", time=at(1))
        assistant.flush()
        before = contents(store)
        for reply in ("no", "yes, but later"):
            preview = assistant.chat("Please forget everything about miso.", time=at(2))
            assert preview.startswith("I would forget 1 turns, 1 semantic")
            assert contents(store) == before
            assert assistant.chat(reply, time=at(3)) == f"yes, {reply}"
            assert assistant.chat("yes", time=at(3)) == "yes, yes"  # nothing is left to confirm
            assistant.flush()
            for _ in range(2):
                forget(store, f"turn:{store.as_of().turns[-1].index}")
            assert contents(store)["turns"] == before["turns"]
        assistant.chat("forget Miso", time=at(2))
        assert assistant.chat("Yes!", time=at(4)).startswith("I have forgotten 1 turns")
        assert [turn.user for turn in store.as_of().turns] == ["I like tea"]
        for text in ("forget it", "Don't forget Miso", "please forget Bobby", "I forget things"):
            assert assistant.chat(text, time=at(5)) == f"yes, {text}"
        assert len(assistant.memory.turns) == 5
        assert assistant.chat("Forget Everything", time=at(6)).startswith("I would forget 5 turns")
        assistant.chat("yes", time=at(6))
        assert assistant.memory.turns == []


def test_a_replayed_conversation_forgets_nothing(store):
    turns = [Turn(at(n), text, "ok") for n, text in enumerate(("Miso", "forget Miso", "yes"))]
    run_trajectories([replay_conversation(store, turns, NANO)], Model())
    assert len(store.as_of().turns) == 3
