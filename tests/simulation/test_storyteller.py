"""A model as dialogue generator, over real HTTP.

Good stories are stored; bad ones are rejected, counted and requested again; stories from before a
crash are reused.
"""

import json
import random
import re
from dataclasses import replace
from datetime import datetime

import pytest

from personavlm_lib.models.endpoint import EndpointModel
from personavlm_lib.models.local import LocalModel
from personavlm_lib.simulation.dialogue import render_dialogue
from personavlm_lib.simulation.plan import LifeEvent, sample_plan
from personavlm_lib.simulation.scenes import sample_scene
from personavlm_lib.simulation.storyteller import (
    PICTURE,
    StorytellerSettings,
    StorytellingResult,
    generate_dialogues,
    sessions,
)
from personavlm_lib.study.profiles import BACKBONE

EXCHANGE = re.compile(
    r'^(\d+)\. (\d\d:\d\d) "(.*)"$\n(?:   Words.*\n)?(   With a picture of (.*)\. The)?',
    re.MULTILINE,
)


def good(body):
    """A story that states each event of the prompt, with the date and time in every message."""
    prompt = body["messages"][0]["content"]
    date = re.search(r"on \w+ ([\d-]+)\.", prompt)[1]
    turns = []
    for number, time, fact, picture, _ in EXCHANGE.findall(prompt):
        user = f"On {date} at {time} I tell you {fact} {PICTURE if picture else ''}"
        turns.append(dict(user=user, assistant=f"Noted {number}."))
    return "<think>{easy}</think>" + json.dumps({"turns": turns})


def spoiled(change):
    """`good` with its last turn (or the whole reply) changed."""

    def bad(body):
        story = good(body).partition("</think>")[2]
        turns = json.loads(story)["turns"]
        *_, pictured = EXCHANGE.findall(body["messages"][0]["content"])[-1]
        changed = change(turns, pictured)
        return changed if isinstance(changed, str) else json.dumps({"turns": turns})

    return bad


def user(words):
    return lambda turns, pictured: turns[-1].update(user=words.format(**turns[-1]))


BAD = {  # kind of problem -> changes that cause it
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
    """A life of three sessions, the first ending with a picture, and a life of two sessions."""

    def at(day, minute):
        return datetime(2024, 3, day, 9, minute)

    scene = sample_scene(random.Random(0), [("cup", "red"), ("ball", "blue")])
    first = (
        LifeEvent(at(4, 0), "name", key="name", value="alice"),
        LifeEvent(at(4, 5), "preference", key="drink", value="tea"),
        LifeEvent(at(4, 10), "image", who="bob", key="cup", value="red", scene=scene),
        LifeEvent(at(6, 0), "preference", key="drink", value="mate", cause="stress"),
        LifeEvent(at(6, 5), "event", key="visited", value="museum", friend="bob"),
        LifeEvent(at(9, 0), "small_talk", value="how are you today"),
        LifeEvent(at(9, 5), "core", key="pet", value="gollum"),
    )
    second = (
        LifeEvent(at(5, 0), "habit", key="monday", value="yoga"),
        LifeEvent(at(7, 0), "goal", value="novel"),
    )
    return [replace(sample_plan(seed), events=events) for seed, events in ((1, first), (2, second))]


def test_good_stories_render_the_same_events_in_other_words(served, plans, tmp_path):
    settings = StorytellerSettings(price_in=1.0, price_out=10.0)
    with served(good) as (source, requests):
        result = generate_dialogues(plans, tmp_path, EndpointModel(source), settings)
    assert set(result.lives) == {plan.user for plan in plans}
    assert not result.failures and not result.rejections
    count = sum(len(sessions(plan)) for plan in plans)
    assert len(requests) == count
    assert (result.tokens_in, result.tokens_out) == (7 * count, 3 * count)
    assert result.cost == pytest.approx(37 * count / 1e6)
    for plan in plans:
        template_turns = render_dialogue(plan, tmp_path / "images", draw=False)
        for turn, plain in zip(result.lives[plan.user], template_turns, strict=True):
            assert (turn.time, turn.images, turn.index) == (plain.time, plain.images, plain.index)
            assert turn.user.count("<img>") == len(turn.images) and PICTURE not in turn.user
            assert turn.user.startswith(f"On {turn.time:%Y-%m-%d at %H:%M} I tell you ")
    assert (tmp_path / "images").is_dir()


@pytest.mark.parametrize("kind, n", [(kind, n) for kind in BAD for n in range(len(BAD[kind]))])
def test_bad_stories_are_rejected_counted_and_not_stored(served, plans, tmp_path, kind, n):
    wrong = spoiled(BAD[kind][n])
    first = sessions(plans[0])[0]

    def reply(body):
        return wrong(body) if body["messages"][0]["content"] == first.prompt else good(body)

    with served(reply) as (source, requests):
        settings = StorytellerSettings(tries=2)
        result = generate_dialogues(plans[:1], tmp_path, EndpointModel(source), settings)
    assert result.lives == {} and result.failures.total() == 1 and result.rejections[kind] == 2
    assert len((tmp_path / "stories.jsonl").read_text(encoding="utf-8").splitlines()) == 2
    assert "1 left out" in str(result)
    retry = next(body["messages"] for body in requests if len(body["messages"]) == 3)
    _, rejected, reasons = retry
    assert rejected["content"] and "This reply cannot be used:\n- " in reasons["content"]


def test_story_that_the_model_fixes_is_stored(served, plans, tmp_path):
    wrong = spoiled(BAD["leak"][0])

    def reply(body):
        return wrong(body) if len(body["messages"]) == 1 else good(body)

    with served(reply) as (source, _):
        result = generate_dialogues(plans[:1], tmp_path, EndpointModel(source))
    assert len(result.lives) == 1 and set(result.rejections) == {"leak"} and not result.failures


def test_rerun_resumes_after_the_server_and_the_computer_died(served, plans, tmp_path):
    answered = []

    def dying(body):
        answered.append(body)
        return good(body) if len(answered) <= 2 else None

    with served(dying) as (source, requests):
        model = EndpointModel(source, retries=0, connections=1)
        broken = generate_dialogues(plans, tmp_path, model, StorytellerSettings(width=1))
    left = sum(len(sessions(plan)) for plan in plans) - 2
    assert left > 1
    assert broken.failures.total() == 2 - len(broken.lives)
    assert set(broken.failures) == {"unreachable"}
    # With one connection, the first request without an answer is the last request.
    assert len(requests) == 3
    file = tmp_path / "stories.jsonl"
    stored = file.read_text(encoding="utf-8").splitlines(True)
    assert len(stored) == 2
    file.write_text(
        "".join(stored) + stored[0][:40], encoding="utf-8"
    )  # a crash in the middle of a line
    with served(good) as (source, requests):
        whole = generate_dialogues(plans, tmp_path, EndpointModel(source))
        assert len(requests) == left and len(whole.lives) == 2 and not whole.failures
        repeated = generate_dialogues(plans, tmp_path, EndpointModel(source))
        assert repeated.lives == whole.lives and len(requests) == left
        other_model = StorytellerSettings(name="another")
        generate_dialogues(plans, tmp_path, EndpointModel(source), other_model)
        assert len(requests) == 2 * left + 2
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert rows[:2] == [json.loads(line) for line in stored]


@pytest.mark.parametrize(
    "answer, kind", [(b"<html>", "invalid response"), (1.5, "timeout"), (500, "server error")]
)
def test_failing_server_is_reported_with_counts(served, plans, tmp_path, answer, kind):
    with served(lambda body: answer) as (source, _):
        model = EndpointModel(source, retries=0, time_limit=1.0)
        result = generate_dialogues(plans, tmp_path, model)
    assert result.lives == {} and result.failures == {kind: 2}
    assert f"2 left out (2 {kind}" in str(result)
    assert (tmp_path / "stories.jsonl").read_text(encoding="utf-8") == ""


def test_all_stories_of_the_nano_model_are_rejected(plans, tmp_path):
    plan = plans[1]
    model = LocalModel(BACKBONE, name="nano")
    result = generate_dialogues([plan], tmp_path, model, StorytellerSettings(tries=1))
    assert result.lives == {} and result.failures.total() == 1 and result.rejections.total() >= 2
    assert result.tokens_out > 0 and (tmp_path / "stories.jsonl").read_text(encoding="utf-8") == ""


def test_no_plans_give_an_empty_result(tmp_path):
    assert generate_dialogues([], tmp_path, None) == StorytellingResult()
