"""It answers at once and remembers when idle; whatever stops it, each update is done once, and none is lost."""

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
PARTS = ("turns", "semantic", "episodes", "core", "procedural", "personality_history", "rejected")


class Words:
    """An encoder without a model: texts are alike by their letters."""

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
    """Answers by purpose, always the same to the same; can be held up, and can break down."""

    holds: tuple[str, ...] = ()  # purposes that wait for `go`
    breaks: tuple[str, ...] = ()
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
            raise ConnectionError("the model is not there")
        if ask.purpose in self.holds:
            self.reached.set()
            assert self.go.wait(10)
        about = ask.subject[-1] if isinstance(ask.subject, list) else ask.subject
        return {
            "respond": f"<think>hm</think>\n<answer>yes, {about.user}</answer>",
            "personality": "\n".join(
                f'"{t}": {4}' for t in ("openness", "conscientiousness", "extraversion")
            )
            + '\n"agreeableness": 2\n"neuroticism": 3',
            "semantic": f'"reason": new\n"decision": true\n"content": {about.user}\n"keywords": words',
            "core": f'"name": Kai\n"last": {about.user}',
            "procedural": f'"habit": says {about.user}',
            "episodic": f'"topic_summary": until {about.user}\n"keywords": words\n"source_dialog_indices": 0, 1',
        }[ask.purpose]


def at(minutes):
    return START + timedelta(minutes=minutes)


def contents(store):
    view = store.as_of()
    return {part: getattr(view, part) for part in PARTS}


def lived(minutes=MINUTES):
    """What `live` makes of the same conversation, its last session not over yet."""
    store = MemoryStore.in_memory(Words())
    turns = [Turn(at(m), f"turn {n}", f"yes, turn {n}") for n, m in enumerate(minutes)]
    run_trajectories(
        [replay_conversation(store, turns, NANO, written_by="m", until=at(minutes[-1]))], Model()
    )
    return contents(store)


@pytest.fixture
def store():
    with MemoryStore.in_memory(Words()) as store:
        yield store


def test_chatting_leaves_what_living_through_the_conversation_does(store):
    with PersonaVLM(store, Model(), NANO, name="m") as assistant:
        replies = [assistant.chat(f"turn {n}", time=at(m)) for n, m in enumerate(MINUTES)]
        assert replies == [f"yes, turn {n}" for n in range(len(MINUTES))]
        assistant.flush()
        assert contents(store) == lived() and len(store.as_of().episodes) == 2
        assert [job.work for job in store.pending()] == ["session"]  # the last is not over
        assistant.flush(at(MINUTES[-1]) + SESSION_GAP)
        assert store.pending() == [] and [episode.turns for episode in assistant.memory.episodes][
            2:
        ] == [(5,)]


def test_a_reply_does_not_wait_and_has_the_last_turns_before_its_eyes(store):
    model = Model(holds=("personality",))
    with PersonaVLM(store, model, NANO) as assistant:
        assistant.chat("my cat is Miso", time=at(0))
        assert model.reached.wait(10)
        # the worker holds the model's lock now; the next reply waits for that one generation alone
        model.holds = ()
        model.go.set()
        assert assistant.chat("what is my cat?", time=at(3)) == "yes, what is my cat?"
        shown = [ask.text for ask in model.asks if ask.purpose == "respond"][-1]
        assert "my cat is Miso" in shown
        assistant.flush()
        assert [memory.content for memory in store.as_of().semantic] == [
            "my cat is Miso",
            "what is my cat?",
        ]


def test_a_new_session_begins_with_the_last_one_remembered(store):
    model = Model()
    with PersonaVLM(store, model, NANO) as assistant:
        for n, minutes in enumerate((0, 10, 71)):
            assistant.chat(f"turn {n}", time=at(minutes))
        purposes = [ask.purpose for ask in model.asks]
        assert purposes.index("episodic") < [i for i, p in enumerate(purposes) if p == "respond"][2]


def test_asking_leaves_nothing(store):
    with PersonaVLM(store, Model(), NANO) as assistant:
        assistant.chat("hello", time=at(0))
        assistant.flush()
        before = contents(store)
        assert assistant.ask("who am I?", time=at(1)).answer == "yes, who am I?"
        assert contents(store) == before and len(store.pending()) == 1


@pytest.mark.parametrize("broken", ["personality", "semantic", "core", "procedural", "episodic"])
def test_what_stops_the_worker_is_told_and_nothing_is_lost_or_doubled(tmp_path, broken):
    with (
        MemoryStore(tmp_path, Words()) as store,
        PersonaVLM(store, Model(breaks=(broken,)), NANO, name="m") as first,
    ):
        for n, minutes in enumerate(MINUTES[:3]):
            first.chat(f"turn {n}", time=at(minutes))
        with pytest.raises(ConnectionError, match="not there"):
            first.flush(at(200))
        assert store.pending()
    with (
        MemoryStore(tmp_path, Words()) as store,
        PersonaVLM(store, Model(), NANO, name="m") as second,
    ):
        for n, minutes in enumerate(MINUTES[3:], 3):
            second.chat(f"turn {n}", time=at(minutes))
        second.flush()
        assert contents(store) == lived()


def test_opening_goes_on_with_what_is_pending(tmp_path):
    with MemoryStore(tmp_path, Words()) as store:
        for n, minutes in enumerate(MINUTES):  # a conversation that was had elsewhere
            store.add_turn(Turn(at(minutes), f"turn {n}", f"yes, turn {n}"), pending=True)
    with (
        MemoryStore(tmp_path, Words()) as store,
        PersonaVLM(store, Model(), NANO, name="m") as assistant,
    ):
        assistant.flush()
        assert contents(store) == lived()


def test_two_on_one_memory_double_nothing(tmp_path):
    model = Model(holds=("semantic",))
    with MemoryStore(tmp_path, Words()) as one, MemoryStore(tmp_path, Words()) as other:
        with PersonaVLM(one, model, NANO, name="m") as first:
            first.chat("turn 0", time=at(0))
            assert model.reached.wait(10)
            with PersonaVLM(other, Model(), NANO, name="m") as second:  # sees the same pending work
                second.flush()
            model.go.set()
            first.flush()
        assert (
            len(one.as_of().semantic) == len(one.as_of().personality_history) == 1
            and len(one.pending()) == 1
        )


def test_what_is_forgotten_while_a_model_writes_about_it_is_not_written(store):
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


def test_images_are_kept_and_bad_ones_refused_before_anything_is_remembered(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "cat.png")
    (tmp_path / "note.png").write_text("no image")
    with (
        MemoryStore(tmp_path / "kai", Words()) as store,
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


def test_a_time_that_is_none_or_runs_backwards_is_refused(store):
    with PersonaVLM(store, Model(), NANO, Retriever()) as assistant:
        assistant.chat("hello", time=at(10))
        with pytest.raises(ValueError, match="'tomorrow': give a datetime"):
            assistant.chat("hello", time="tomorrow")
        with pytest.raises(ValueError, match="must not go backwards"):
            assistant.ask("hello", time=at(9))
        assert len(store.as_of().turns) == 1
