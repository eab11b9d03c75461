"""The teller that is a model, over real HTTP: good stories are kept, bad ones caught, counted and told anew, what was
told before a crash is not told again."""

import json
import random
import re
import threading
from dataclasses import replace
from datetime import datetime

import pytest

from personavlm_lib.models.endpoint import EndpointModel
from personavlm_lib.models.local import LocalModel
from personavlm_lib.models.serve import ChatServer
from personavlm_lib.simulation.dialogue import render_dialogue
from personavlm_lib.simulation.plan import LifeEvent, sample_plan
from personavlm_lib.simulation.scenes import sample_scene
from personavlm_lib.simulation.storyteller import (
    PICTURE,
    StorytellingResult,
    generate_dialogues,
    sessions,
)
from personavlm_lib.study.profiles import BACKBONE

BEAT = re.compile(
    r'^(\d+)\. (\d\d:\d\d) "(.*)"$\n(?:   Words.*\n)?(   With a picture of (.*)\. The)?',
    re.MULTILINE,
)


def good(body):
    """A story of what the conversation's first message says, each message with the moment it is from."""
    prompt = body["messages"][0]["content"]
    date = re.search(r"on \w+ ([\d-]+)\.", prompt)[1]
    turns = [
        dict(
            user=f"On {date} at {time} I tell you {fact} {PICTURE if picture else ''}",
            assistant=f"Noted {n}.",
        )
        for n, time, fact, picture, _ in BEAT.findall(prompt)
    ]
    return "<think>{easy}</think>" + json.dumps({"turns": turns})


def spoiled(change):
    """`good` with its last turn (or all of the reply) changed."""

    def bad(body):
        turns = json.loads(good(body).partition("</think>")[2])["turns"]
        seen = BEAT.findall(body["messages"][0]["content"])[-1][4]
        changed = change(turns, seen)
        return changed if isinstance(changed, str) else json.dumps({"turns": turns})

    return bad


def user(words):
    return lambda turns, seen: turns[-1].update(user=words.format(**turns[-1]))


BAD = {  # kind of problem -> how a story comes to have it
    "no JSON": [
        lambda t, s: "sorry",
        lambda t, s: '{"turns": [1]}',
        lambda t, s: '{"turns":' + "[" * 9999 + "}",
    ],
    "number of turns": [lambda t, s: t.pop(), lambda t, s: t.append(t[0])],
    "fact missing": [user("Hello, today is a day."), user("ha ha [picture]")],
    "picture marks": [
        user("{user} [picture]"),
        lambda t, s: t[-1].update(assistant="[picture] yes"),
    ],
    "leak": [
        user("{user} gollum"),
        lambda t, s: t[-1].update(assistant=f"I see {s or 'gollum'} there"),
    ],
    "repetition": [
        user("{user} and so and so and so"),
        lambda t, s: t[0].update(user=t[-1]["user"]),
    ],
    "markup": [
        user("{user} <img>"),
        user("**{user}**"),
        user("{user}\n- next"),
        user("{user} \ud800"),
    ],
    "length": [user(""), user("{user}" + " a b c" * 200), lambda t, s: t[-1].update(assistant=" ")],
}


@pytest.fixture(scope="module")
def plans():
    """A life of three sessions, whose first ends with a picture, and one of two."""

    def at(day, minute):
        return datetime(2024, 3, day, 9, minute)

    scene = sample_scene(random.Random(0), [("cup", "red"), ("ball", "blue")])
    first = (
        LifeEvent(at(4, 0), "name", key="name", value="alice"), LifeEvent(at(4, 5), "preference", key="drink", value="tea"),
        LifeEvent(at(4, 10), "image", who="bob", key="cup", value="red", scene=scene),
        LifeEvent(at(6, 0), "preference", key="drink", value="mate", cause="stress"),
        LifeEvent(at(6, 5), "event", key="visited", value="museum", friend="bob"),
        LifeEvent(at(9, 0), "small_talk", value="how are you today"), LifeEvent(at(9, 5), "core", key="pet", value="gollum"),
    )  # fmt: skip
    second = (
        LifeEvent(at(5, 0), "habit", key="monday", value="yoga"),
        LifeEvent(at(7, 0), "goal", value="novel"),
    )
    return [replace(sample_plan(seed), events=events) for seed, events in ((1, first), (2, second))]


def test_good_stories_are_the_same_life_in_other_words(served, plans, tmp_path):
    with served(good) as (source, asked):
        told = generate_dialogues(
            plans, tmp_path, EndpointModel(source), price_in=1.0, price_out=10.0
        )
    assert (
        set(told.lives) == {plan.user for plan in plans} and not told.failures and not told.refusals
    )
    count = sum(len(sessions(plan)) for plan in plans)
    assert len(asked) == count and (told.tokens_in, told.tokens_out) == (7 * count, 3 * count)
    assert told.cost == pytest.approx(37 * count / 1e6)
    for plan in plans:
        for turn, plain in zip(
            told.lives[plan.user],
            render_dialogue(plan, tmp_path / "images", draw=False),
            strict=True,
        ):
            assert (turn.time, turn.images, turn.index) == (plain.time, plain.images, plain.index)
            assert turn.user.count("<img>") == len(turn.images) and PICTURE not in turn.user
            assert turn.user.startswith(f"On {turn.time:%Y-%m-%d at %H:%M} I tell you ")
    assert (tmp_path / "images").is_dir()


@pytest.mark.parametrize("kind, n", [(kind, n) for kind in BAD for n in range(len(BAD[kind]))])
def test_bad_stories_are_caught_counted_and_not_kept(served, plans, tmp_path, kind, n):
    plan = replace(
        plans[0],
        events=sum((tuple(part.events) for part in sessions(plans[0])[:1]), ())
        + plans[0].events[-1:],
    )
    wrong = spoiled(BAD[kind][n])
    first = sessions(plan)[0]
    with served(lambda b: wrong(b) if first.prompt == b["messages"][0]["content"] else good(b)) as (
        source,
        asked,
    ):
        told = generate_dialogues(plans[:1], tmp_path, EndpointModel(source), tries=2)
    assert told.lives == {} and told.failures.total() == 1 and told.refusals[kind] == 2
    assert len((tmp_path / "stories.jsonl").read_text().splitlines()) == 2 and "1 left out" in str(
        told
    )
    again = next(b["messages"] for b in asked if len(b["messages"]) == 3)
    assert (
        again[1]["content"] and "This cannot be used:\n- " in again[2]["content"]
    )  # it is told why


def test_a_story_that_is_put_right_is_kept(served, plans, tmp_path):
    wrong = spoiled(BAD["leak"][0])
    with served(lambda body: wrong(body) if len(body["messages"]) == 1 else good(body)) as (
        source,
        _,
    ):
        told = generate_dialogues(plans[:1], tmp_path, EndpointModel(source))
    assert len(told.lives) == 1 and set(told.refusals) == {"leak"} and not told.failures


def test_a_server_that_dies_half_way_is_left_alone_and_gone_on_with(served, plans, tmp_path):
    done = []

    def dying(body):
        done.append(body)
        return good(body) if len(done) <= 2 else None

    with served(dying) as (source, asked):
        broken = generate_dialogues(plans, tmp_path, EndpointModel(source, retries=0), width=1)
    left = sum(len(sessions(plan)) for plan in plans) - 2
    assert (
        left > 1
        and broken.failures.total() == 2 - len(broken.lives)
        and set(broken.failures) == {"unreachable"}
    )
    assert (
        len(asked) == 3
    )  # after the first silence nothing more is asked, as many are allowed as are side by side
    file = tmp_path / "stories.jsonl"
    assert len(kept := file.read_text().splitlines(True)) == 2
    file.write_text(
        "".join(kept) + kept[0][:40]
    )  # and the computer with it, in the middle of a line
    with served(good) as (source, asked):
        whole = generate_dialogues(plans, tmp_path, EndpointModel(source))
        assert len(asked) == left and len(whole.lives) == 2 and not whole.failures
        assert (
            generate_dialogues(plans, tmp_path, EndpointModel(source)).lives == whole.lives
            and len(asked) == left
        )
        generate_dialogues(plans, tmp_path, EndpointModel(source), "another")
        assert len(asked) == 2 * left + 2
    assert [json.loads(line) for line in file.read_text().splitlines()][:2] == [
        json.loads(line) for line in kept
    ]


@pytest.mark.parametrize(
    "said, kind", [(b"<html>", "invalid response"), (1.5, "timeout"), (500, "request refused")]
)
def test_a_server_that_fails_is_reported_with_counts(served, plans, tmp_path, said, kind):
    with served(lambda body: said) as (source, _):
        told = generate_dialogues(plans, tmp_path, EndpointModel(source, retries=0, timeout=1.0))
    assert told.lives == {} and told.failures == {kind: 2} and f"2 left out (2 {kind}" in str(told)
    assert (tmp_path / "stories.jsonl").read_text() == ""


def test_the_nano_model_tells_nonsense_and_all_of_it_is_caught(plans, tmp_path):
    plan = plans[1]
    with ChatServer(LocalModel(BACKBONE, name="nano"), port=0) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        told = generate_dialogues(
            [plan], tmp_path, EndpointModel(server.source, timeout=600), tries=1
        )
        server.shutdown()
        thread.join()
    assert told.lives == {} and told.failures.total() == 1 and told.refusals.total() >= 2
    assert told.tokens_out > 0 and (tmp_path / "stories.jsonl").read_text() == ""


def test_nothing_to_tell(tmp_path):
    assert generate_dialogues([], tmp_path, None) == StorytellingResult()
