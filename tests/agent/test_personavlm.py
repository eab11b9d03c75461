"""The assistant answers at once and updates in the background; each update happens exactly once."""

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from threading import Event

import pytest
from PIL import Image

from personavlm_lib.agent.personavlm import PersonaVLM
from personavlm_lib.agent.prompt_sets import PromptSet
from personavlm_lib.agent.update import replay_conversation
from personavlm_lib.memory.forget import forget
from personavlm_lib.memory.records import SESSION_GAP, Turn
from personavlm_lib.memory.search import Retriever
from personavlm_lib.memory.store import MemoryStore
from personavlm_lib.models.chat import ChatReply
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
        assert later.user == "and this <img>" and "<img>" not in later.assistant
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
