"""Algorithm 1, lines 4-16: what the model sees, what it can retrieve, and when it must answer."""

import random
from datetime import datetime, timedelta

import pytest

from personavlm_lib.agent.prompt_sets import PromptSet
from personavlm_lib.agent.protocol_writer import write_answer, write_retrieve
from personavlm_lib.agent.respond import AgentSettings, respond, training_top_k
from personavlm_lib.memory.records import (
    Episode,
    ProceduralMemory,
    SemanticMemory,
    Turn,
    VisualConcept,
)
from personavlm_lib.memory.search import Retriever, TopK
from personavlm_lib.memory.store import MemoryStore
from personavlm_lib.models.chat import ChatReply, ContextOverflow
from personavlm_lib.models.engine import run_trajectories

NOW = datetime(2024, 4, 1, 7)
DRINKS = ("tea", "coffee", "cola", "milk")
ANSWER = write_answer("my drink is milk", "milk")


def look_up(keywords, start=None, end=None):
    return write_retrieve(f"look up {keywords}", keywords, start, end, quote=False)


def day(n):
    return datetime(2024, 3, n, 9)


@pytest.fixture
def store(tmp_path):
    """Four drinks on four days, a friend's music, and photos of two things.

    Each turn is a session of its own and has an episode.
    """
    store = MemoryStore.in_memory()
    texts = [f"my drink is {drink}" for drink in DRINKS] + ["alice music is jazz"]
    texts += ["look at my cup <img>", "look at my hat <img>"]
    for n, text in enumerate(texts):
        images = (f"photo{n}.png",) if "<img>" in text else ()
        turn = store.add_turn(Turn(day(n + 1), text, "noted", images))
        when = dict(happened_from=turn.time, happened_to=turn.time)
        content = text.replace("look at ", "").replace(" <img>", "")
        concept = VisualConcept(content, content.split()[-1], f"crop{n}.png") if images else None
        words = " ".join(content.split()[:2])
        store.add_semantic(
            SemanticMemory(
                content, words, known_from=turn.time, concept=concept, sources=(n,), **when
            )
        )
        store.add_episode(
            Episode(content, words, (n,), known_from=turn.time + timedelta(hours=1), **when)
        )
    store.set_procedural(ProceduralMemory({"yoga": "every monday i do yoga"}, day(2), (1,)))
    return store


def ask(store, script, lines, query="what is my drink now ?", images=(), **rest):
    model = script(lines)
    turn = Turn(NOW, query, images=images)
    return model, run_trajectories([respond(turn, store.as_of(NOW), Retriever(), **rest)], model)[0]


def test_agent_retrieves_and_then_answers(store, script):
    lines = [look_up("my drink milk"), look_up("alice music"), ANSWER]
    model, response = ask(store, script, lines)
    assert (response.answer, response.unfinished, response.raw) == ("milk", False, ANSWER)
    assert [ask.new_conversation for ask in model.asks] == [True, False, False]
    assert [step.retrieve.keywords for step in response.steps[:2]] == [
        "my drink milk",
        "alice music",
    ]
    assert (response.tokens_in, response.tokens_out) == (21, 9)
    found = response.retrieved[0]
    assert len(found.semantic) == 4 and len(found.episodic) == 2  # appendix A.2
    assert [m.happened_from for m in found.semantic] == sorted(
        m.happened_from for m in found.semantic
    )
    assert "my drink is milk" in model.asks[1].text and "alice music is jazz" in model.asks[2].text
    assert (
        "every monday i do yoga" in model.asks[1].text
        and "every monday i do yoga" not in model.asks[2].text
    )
    assert set(response.retrieved_turns) >= {0, 1, 2, 3, 4}


def test_no_memory_is_retrieved_twice_in_a_trajectory(store, script):
    _, response = ask(store, script, [look_up("my drink")] * 3 + [ANSWER])
    assert len(response.retrieved_ids) == len(set(response.retrieved_ids)) > 12
    assert response.retrieved[0].ids != response.retrieved[1].ids


def test_keywords_and_period_decide_what_is_retrieved(store, script):
    """Two trajectories that differ only in one sampled reply retrieve different memories."""

    def retrieve(*args):
        model, response = ask(store, script, [look_up(*args), ANSWER])
        return {m.content for m in response.retrieved[0].semantic}, model.asks[1].text

    drinks, drinks_prompt = retrieve("my drink")
    music, music_prompt = retrieve("alice music jazz")
    assert drinks != music and "alice music is jazz" in music and drinks_prompt != music_prompt
    early, early_prompt = retrieve("my drink", datetime(2024, 3, 1), datetime(2024, 3, 2, 23, 59))
    assert early == {"my drink is tea", "my drink is coffee"}
    assert "my drink is milk" not in early_prompt
    late, _ = retrieve("my drink", datetime(2024, 3, 4), None)
    assert "my drink is milk" in late and not late & early


def test_at_most_four_generations(store, script):
    lines = [
        look_up("my drink"),
        look_up("alice music"),
        look_up("my cup"),
        look_up("my hat"),
        ANSWER,
    ]
    model, response = ask(store, script, lines)
    assert (len(model.asks), len(response.steps), len(response.retrieved)) == (4, 4, 3)
    assert response.answer is None and response.unfinished
    assert ["answer now" in ask.text for ask in model.asks] == [False, False, False, True]
    model, response = ask(store, script, lines, settings=AgentSettings(max_retrievals=0))
    assert len(model.asks) == 1 and "answer now" in model.asks[0].text and response.retrieved == []


@pytest.mark.parametrize(
    "line", ["", "milk", "<think>hm</think>", "<retrieve>\n</retrieve>", "<answer>"]
)
def test_reply_without_an_action_ends_the_trajectory(store, script, line):
    model, response = ask(store, script, [line])
    assert len(model.asks) == 1 and response.retrieved == [] and not response.answer
    assert response.steps[0].errors


def test_query_image_is_recognized_before_the_first_request(store, script):
    events = []

    def recognize(query, view):
        events.append(query.images)
        return [memory for memory in view.semantic if memory.concept][:1]

    query = dict(query="what color is this ? <img>", images=("query.png",), recognize=recognize)
    model, response = ask(store, script, [look_up("my cup"), ANSWER], **query)
    assert events == [("query.png",)]
    assert "seen my cup" in model.asks[0].text and model.asks[0].images == ("query.png",)
    assert "semantic:5" not in response.retrieved_ids  # it is in the first request already
    model, _ = ask(store, script, [ANSWER], recognize=recognize)
    assert len(events) == 1 and "seen" not in model.asks[0].text


@pytest.mark.parametrize("name", ["nano", "full"])
def test_images_are_in_the_order_of_their_marks(store, script, name):
    store.add_turn(
        Turn(
            NOW - timedelta(minutes=10),
            "here is bob boat <img> and bob sofa <img>",
            images=("c0", "c1"),
        )
    )
    query = dict(query="and this ? <img>", images=("q",), settings=AgentSettings(PromptSet(name)))
    model, response = ask(store, script, [look_up("look at my cup and my hat"), ANSWER], **query)
    first, second = model.asks
    before = [part.split("\n")[-1] for part in first.text.split("<img>")[:-1]]
    assert first.images == ("c0", "c1", "q")
    assert [part.split()[-2] for part in before] == ["bob", "bob", "this"]
    # Crops belong to the facts, photos to the turns that showed them.
    lines = [part.split("\n")[-1] for part in second.text.split("<img>")[:-1]]
    number = {"cup": 5, "hat": 6}
    expected = [
        f"{'photo' if 'look at' in line else 'crop'}{number[line.split()[-1]]}.png"
        for line in lines
    ]
    assert list(second.images) == expected and len(set(expected)) == 4


def test_last_hour_is_in_the_context_and_not_retrieved(store, script):
    turn = store.add_turn(Turn(NOW - timedelta(minutes=30), "my drink is chai", "noted"))
    store.add_semantic(
        SemanticMemory(
            "my drink is chai", "", turn.time, turn.time, turn.time, sources=(turn.index,)
        )
    )
    model, response = ask(store, script, [look_up("my drink is chai"), ANSWER])
    assert "my drink is chai" in model.asks[0].text and "my drink is milk" not in model.asks[0].text
    assert "semantic:7" not in response.retrieved_ids
    model, _ = ask(store, script, [ANSWER], context=store.as_of(NOW).turns[:2])
    assert "coffee" in model.asks[0].text and "chai" not in model.asks[0].text


def test_later_memories_are_invisible(store, script):
    store.add_turn(Turn(NOW + timedelta(days=1), "my drink is sprite"))
    after = NOW + timedelta(days=1)
    store.add_semantic(SemanticMemory("my drink is sprite", "", after, after, after, sources=(7,)))
    model, response = ask(store, script, [look_up("my drink is sprite")] * 3 + [ANSWER])
    assert (
        not any("sprite" in ask.text for ask in model.asks)
        and "semantic:7" not in response.retrieved_ids
    )


def test_training_top_k_covers_the_ranges_of_the_paper(store, script):
    draws = {training_top_k(random.Random(n)) for n in range(200)}
    assert draws == {TopK(2, s, e) for s in (3, 4, 5, 6) for e in (2, 3, 4, 5)}
    sizes = set()
    for n in range(12):
        settings = AgentSettings(top_k=training_top_k(random.Random(n)))
        _, response = ask(store, script, [look_up("my drink"), ANSWER], settings=settings)
        sizes.add((len(response.retrieved[0].semantic), len(response.retrieved[0].episodic)))
    assert len(sizes) > 4


def test_without_reasoning_the_model_generates_once(store, script):
    """w/o Reasoning (Table 8): the first request has the results of one search by the question."""
    found = Retriever().retrieve(store.as_of(NOW), "my drink is milk")
    model, response = ask(store, script, [look_up("alice music")], found=found)
    assert len(model.asks) == 1 and response.unfinished and response.retrieved == [found]
    assert model.asks[0].text.startswith("respond") and model.asks[0].text.endswith("answer now")
    assert "my drink is milk" in model.asks[0].text.split("\nfound\n")[1]


class SmallWindow:
    """Refuses prompts of more than `limit` characters; answers the others."""

    def __init__(self, limit, fits=0.75, lines=(ANSWER,)):
        self.limit = limit
        self.fits = fits
        self.lines = list(lines)
        self.accepted = []
        self.refused = 0

    def start(self):
        return []

    def reply(self, asked):
        replies = []
        for transcript, request in asked:
            length = len(request.text) + sum(len(text) for text in transcript)
            if length > self.limit:
                self.refused += 1
                replies.append(ContextOverflow("too long", self.fits))
                continue
            transcript.append(request.text)
            self.accepted.append(request.text)
            replies.append(ChatReply(self.lines[min(len(transcript), len(self.lines)) - 1]))
        return replies


def many_turns(count):
    return [
        Turn(day(1) + timedelta(minutes=n), f"fact {n:03d}", "noted", index=n) for n in range(count)
    ]


@pytest.mark.parametrize("fits", [0.1, 0.75, 0.99])
def test_prompt_over_the_window_loses_its_oldest_turns(store, fits):
    model = SmallWindow(1500, fits)
    view = store.as_of(NOW)
    trajectory = respond(Turn(NOW, "what ?"), view, Retriever(), context=many_turns(80))
    [response] = run_trajectories([trajectory], model)
    assert response.answer == "milk"
    [text] = model.accepted
    kept = [n for n in range(80) if f"fact {n:03d}" in text]
    assert kept == list(range(response.cut, 80))
    assert 0 < response.cut < 80
    if fits > 0.9:
        assert len(text) > 1300  # little more is left out than necessary


def test_results_that_overflow_cost_context_and_nothing_fits_at_last(store):
    lines = [look_up("my drink"), ANSWER]
    view = store.as_of(NOW)

    def answer(limit):
        model = SmallWindow(limit, lines=lines)
        query = Turn(NOW, "what ?")
        trajectory = respond(query, view, Retriever(ranking="bm25"), context=many_turns(10))
        [result] = run_trajectories([trajectory], model, on_error=lambda error, _: error)
        return result, sum(len(text) for text in model.accepted)

    response, whole = answer(10_000)
    assert response.cut == 0
    response, _ = answer(whole - 40)
    assert 0 < response.cut <= 10 and response.answer == "milk" and len(response.steps) == 2
    assert isinstance(answer(100)[0], ContextOverflow)
