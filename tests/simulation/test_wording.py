"""The template dialogue generator: one turn per life event, in words of the lexicon."""

import hashlib
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest

from personavlm_lib.benchmark.oracle import final_thought
from personavlm_lib.benchmark.questions import Hop, Question
from personavlm_lib.memory.records import TRAITS
from personavlm_lib.simulation.dialogue import render_dialogue
from personavlm_lib.simulation.lexicon import MARKERS, vocabulary
from personavlm_lib.simulation.plan import sample_plan
from personavlm_lib.simulation.wording import statement

PLAN = sample_plan(5)


def digests(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_rendering_a_plan_twice_gives_equal_words_and_pictures(tmp_path):
    first = render_dialogue(PLAN, tmp_path / "a")
    second = render_dialogue(PLAN, tmp_path / "b")
    assert digests(tmp_path / "a") == digests(tmp_path / "b") and len(digests(tmp_path / "a")) >= 5

    def without_folders(turns):
        return [replace(t, images=tuple(Path(image).name for image in t.images)) for t in turns]

    assert without_folders(first) == without_folders(second)


def test_turns_state_their_events_and_show_the_personality(tmp_path):
    turns = render_dialogue(PLAN, tmp_path, draw=False)
    assert [turn.time for turn in turns] == [event.time for event in PLAN.events]
    assert not list(tmp_path.iterdir())
    known_words = set(vocabulary())
    for index, (turn, event) in enumerate(zip(turns, PLAN.events, strict=True)):
        words = set(turn.user.replace("<img>", "").split())
        pictures = 0 if event.scene is None else 1
        assert turn.index == index
        assert turn.user.count("<img>") == len(turn.images) == pictures
        assert statement(event) in turn.user
        assert not event.cause or f"because {event.cause}" in turn.user
        assert words | set(turn.assistant.split()) <= known_words
        for trait, score in zip(TRAITS, event.scores, strict=True):
            markers = set(MARKERS[trait].values()) & set(turn.user.split())
            assert markers == ({MARKERS[trait][score]} if score != 3 else set())


def test_color_of_a_thing_is_in_the_picture_and_not_in_the_words():
    for event in PLAN.events:
        if event.kind == "image":
            things = [(thing.kind, thing.color) for thing in event.scene.things]
            assert event.value not in statement(event).split()
            assert (event.key, event.value) in things


def test_markers_of_personality_appear_in_no_fact():
    markers = [word for trait in MARKERS.values() for word in trait.values()]
    assert len(markers) == len(set(markers)) == 20
    fact_words = set()
    for seed in range(40):
        for event in sample_plan(seed).events:
            fact_words.update(statement(event).split())
    assert not fact_words & set(markers)


def test_paraphrases_state_the_same_facts_in_words_of_the_vocabulary(tmp_path):
    plan = sample_plan(2)
    canonical = render_dialogue(plan, tmp_path, draw=False)
    paraphrased = render_dialogue(plan, tmp_path, draw=False, wording="paraphrased")
    assert render_dialogue(plan, tmp_path, draw=False, wording="paraphrased") == paraphrased
    unchanged = 0
    for event, plain, other in zip(plan.events, canonical, paraphrased, strict=True):
        unchanged += plain.user == other.user
        words = set(other.user.split())
        facts = {*event.value.split(), event.cause, event.friend} - {""}
        if event.kind == "goal_end" and "is that goal from" in other.user:
            facts = {event.key}  # names the day of the goal instead of the goal
        assert event.scene or facts <= words
        assert plain.user.count("<img>") == other.user.count("<img>")
        assert words - {"<img>"} <= set(vocabulary())
    assert unchanged == sum(event.kind == "small_talk" for event in plan.events)


def test_unknown_wording_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="choose one of canonical, paraphrased, natural"):
        render_dialogue(sample_plan(2), tmp_path, draw=False, wording="poetic")


QUESTION = Question(
    "", "", "", "open", datetime(2024, 5, 1), "what is my sport now ?", (), "rugby", (0,)
)
HISTORY = (
    "my sport is golf",
    "my sport from golf is judo because work",
    "my sport from judo is rugby because sleep",
)


@pytest.mark.parametrize(
    ("thought", "retrieved", "step"),
    [
        (
            HISTORY[2],
            HISTORY,
            "my sport is golf from golf is judo from judo is rugby because sleep",
        ),
        (HISTORY[2], HISTORY[1:], "my sport from golf is judo from judo is rugby because sleep"),
        (HISTORY[2], HISTORY[::2], HISTORY[2]),  # without the middle value there is no chain
        (
            "my sport from judo is rugby takes pitch",
            HISTORY[1:],
            "my sport from golf is judo from judo is rugby takes pitch",
        ),
    ],
)
def test_last_step_follows_a_changed_fact_from_value_to_value(thought, retrieved, step):
    hops = (Hop("my sport now", HISTORY[2]),)
    question = replace(QUESTION, thought=thought, history=HISTORY, hops=hops)
    assert final_thought(question, " ".join(retrieved)) == step


def test_last_step_takes_the_profile_as_it_is_and_follows_raw_turns():
    question = replace(QUESTION, thought="my sport is rugby", history=HISTORY)
    with_profile = " ".join(("my sport is rugby", *HISTORY))
    assert final_thought(question, with_profile) == "my sport is rugby"
    assert (
        final_thought(question, " ".join(HISTORY))
        == "my sport is golf from golf is judo from judo is rugby because sleep"
    )
    assert final_thought(replace(question, history=()), "") == "my sport is rugby"
