"""The template teller: a turn for each beat, in words of the lexicon, the same bytes each time."""

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


def test_the_same_plan_is_told_in_the_same_words_and_the_same_pictures(tmp_path):
    one, other = render_dialogue(PLAN, tmp_path / "a"), render_dialogue(PLAN, tmp_path / "b")
    assert digests(tmp_path / "a") == digests(tmp_path / "b") and len(digests(tmp_path / "a")) >= 5
    strip = [
        [(t.time, t.user, t.assistant, t.index, [Path(i).name for i in t.images]) for t in ts]
        for ts in (one, other)
    ]
    assert strip[0] == strip[1]


def test_turns_say_what_their_beats_hold(tmp_path):
    turns = render_dialogue(PLAN, tmp_path, draw=False)
    assert [turn.time for turn in turns] == [event.time for event in PLAN.events] and not list(
        tmp_path.iterdir()
    )
    known = set(vocabulary())
    for index, (turn, event) in enumerate(zip(turns, PLAN.events, strict=True)):
        assert turn.index == index and turn.user.count("<img>") == len(turn.images) == (
            event.scene is not None
        )
        assert statement(event) in turn.user and (
            not event.cause or f"because {event.cause}" in turn.user
        )
        assert set(turn.user.replace("<img>", "").split()) | set(turn.assistant.split()) <= known
        for trait, score in zip(TRAITS, event.scores, strict=True):
            markers = set(MARKERS[trait].values()) & set(turn.user.split())
            assert markers == ({MARKERS[trait][score]} if score != 3 else set())


def test_a_picture_tells_the_colour_that_the_words_do_not(tmp_path):
    for event in PLAN.events:
        if event.kind == "image":
            assert event.value not in statement(event).split()
            assert (event.key, event.value) in [
                (thing.kind, thing.color) for thing in event.scene.things
            ]


def test_markers_are_words_of_their_own():
    """Else a fact could be taken for a mood."""
    markers = [word for trait in MARKERS.values() for word in trait.values()]
    assert len(markers) == len(set(markers)) == 20
    plain = {
        word
        for seed in range(40)
        for event in sample_plan(seed).events
        for word in statement(event).split()
    }
    assert not plain & set(markers)


def test_varied_wording_says_the_same_in_words_of_the_vocabulary(tmp_path):
    plan = sample_plan(2)
    plain, varied = (
        render_dialogue(plan, tmp_path, draw=False),
        render_dialogue(plan, tmp_path, draw=False, wording="paraphrased"),
    )
    assert render_dialogue(plan, tmp_path, draw=False, wording="paraphrased") == varied
    told = [(event, a.user, b.user) for event, a, b in zip(plan.events, plain, varied, strict=True)]
    assert sum(a == b for _, a, b in told) == sum(
        event.kind == "small_talk" for event in plan.events
    )
    for event, a, b in told:
        facts = {*event.value.split(), event.cause, event.friend} - {""}
        if (
            event.kind == "goal_end" and "is that goal from" in b
        ):  # then what became of it is told, and when it was set
            facts = {event.key}
        assert event.scene or facts <= set(b.split())
        assert a.count("<img>") == b.count("<img>") and set(b.split()) - {"<img>"} <= set(
            vocabulary()
        )
    with pytest.raises(ValueError, match="choose canonical or paraphrased"):
        render_dialogue(plan, tmp_path, draw=False, wording="poetic")


ASKED = Question(
    "", "", "", "open", datetime(2024, 5, 1), "what is my sport now ?", (), "rugby", (0,)
)
TOLD = (
    "my sport is golf",
    "my sport from golf is judo because work",
    "my sport from judo is rugby because sleep",
)


@pytest.mark.parametrize(
    ("thought", "seen", "step"),
    [
        (TOLD[2], TOLD, "my sport is golf from golf is judo from judo is rugby because sleep"),
        (TOLD[2], TOLD[1:], "my sport from golf is judo from judo is rugby because sleep"),
        (TOLD[2], TOLD[::2], TOLD[2]),  # what came between was not found, so nothing leads there
        ("my sport from judo is rugby takes pitch", TOLD[1:],
         "my sport from golf is judo from judo is rugby takes pitch"),
    ],
)  # fmt: skip
def test_a_fact_that_changed_is_followed_from_value_to_value(thought, seen, step):
    asked = replace(ASKED, thought=thought, history=TOLD, hops=(Hop("my sport now", TOLD[2]),))
    assert final_thought(asked, " ".join(seen)) == step


def test_the_profile_knows_the_newest_and_raw_turns_must_be_followed():
    asked = replace(ASKED, thought="my sport is rugby", history=TOLD)
    assert final_thought(asked, " ".join(("my sport is rugby", *TOLD))) == "my sport is rugby"
    assert (
        final_thought(asked, " ".join(TOLD))
        == "my sport is golf from golf is judo from judo is rugby because sleep"
    )
    assert final_thought(replace(asked, history=()), "") == "my sport is rugby"
