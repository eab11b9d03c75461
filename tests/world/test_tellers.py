"""The template teller: a turn for each beat, in words of the lexicon, the same bytes each time."""

import hashlib
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest

from personavlm_lib.memory.records import TRAITS
from personavlm_lib.world.lexicon import MARKERS, words
from personavlm_lib.world.plan import sample_plan
from personavlm_lib.world.questions import Hop, Question
from personavlm_lib.world.tellers import last_step, sentence, tell

PLAN = sample_plan(5)


def digests(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_the_same_plan_is_told_in_the_same_words_and_the_same_pictures(tmp_path):
    one, other = tell(PLAN, tmp_path / "a"), tell(PLAN, tmp_path / "b")
    assert digests(tmp_path / "a") == digests(tmp_path / "b") and len(digests(tmp_path / "a")) >= 5
    strip = [
        [(t.time, t.user, t.assistant, t.index, [Path(i).name for i in t.images]) for t in ts] for ts in (one, other)
    ]
    assert strip[0] == strip[1]


def test_turns_say_what_their_beats_hold(tmp_path):
    turns = tell(PLAN, tmp_path, draw=False)
    assert [turn.time for turn in turns] == [beat.time for beat in PLAN.beats] and not list(tmp_path.iterdir())
    known = set(words())
    for index, (turn, beat) in enumerate(zip(turns, PLAN.beats, strict=True)):
        assert turn.index == index and turn.user.count("<img>") == len(turn.images) == (beat.scene is not None)
        assert sentence(beat) in turn.user and (not beat.cause or f"because {beat.cause}" in turn.user)
        assert set(turn.user.replace("<img>", "").split()) | set(turn.assistant.split()) <= known
        for trait, score in zip(TRAITS, beat.scores, strict=True):
            markers = set(MARKERS[trait].values()) & set(turn.user.split())
            assert markers == ({MARKERS[trait][score]} if score != 3 else set())


def test_a_picture_tells_the_colour_that_the_words_do_not(tmp_path):
    for beat in PLAN.beats:
        if beat.kind == "image":
            assert beat.value not in sentence(beat).split()
            assert (beat.key, beat.value) in [(thing.kind, thing.color) for thing in beat.scene.things]


def test_markers_are_words_of_their_own():
    """Else a fact could be taken for a mood."""
    markers = [word for trait in MARKERS.values() for word in trait.values()]
    assert len(markers) == len(set(markers)) == 20
    plain = {word for seed in range(40) for beat in sample_plan(seed).beats for word in sentence(beat).split()}
    assert not plain & set(markers)


def test_varied_wording_says_the_same_in_words_of_the_vocabulary(tmp_path):
    plan = sample_plan(2)
    plain, varied = tell(plan, tmp_path, draw=False), tell(plan, tmp_path, draw=False, wording="varied")
    assert tell(plan, tmp_path, draw=False, wording="varied") == varied
    told = [(beat, a.user, b.user) for beat, a, b in zip(plan.beats, plain, varied, strict=True)]
    assert sum(a == b for _, a, b in told) == sum(beat.kind == "small_talk" for beat in plan.beats)
    for beat, a, b in told:
        facts = {*beat.value.split(), beat.cause, beat.friend} - {""}
        if beat.kind == "goal_end" and "is that goal from" in b:  # then what became of it is told, and when it was set
            facts = {beat.key}
        assert beat.scene or facts <= set(b.split())
        assert a.count("<img>") == b.count("<img>") and set(b.split()) - {"<img>"} <= set(words())
    with pytest.raises(ValueError, match="choose canonical or varied"):
        tell(plan, tmp_path, draw=False, wording="poetic")


ASKED = Question("", "", "", "open", datetime(2024, 5, 1), "what is my sport now ?", (), "rugby", (0,))
TOLD = ("my sport is golf", "my sport from golf is judo because work", "my sport from judo is rugby because sleep")


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
    asked = replace(ASKED, thought=thought, told=TOLD, hops=(Hop("my sport now", TOLD[2]),))
    assert last_step(asked, " ".join(seen)) == step


def test_the_profile_knows_the_newest_and_raw_turns_must_be_followed():
    asked = replace(ASKED, thought="my sport is rugby", told=TOLD)
    assert last_step(asked, " ".join(("my sport is rugby", *TOLD))) == "my sport is rugby"
    assert last_step(asked, " ".join(TOLD)) == "my sport is golf from golf is judo from judo is rugby because sleep"
    assert last_step(replace(asked, told=()), "") == "my sport is rugby"
