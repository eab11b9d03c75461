"""Lives sampled from a seed: the same each time, in order, with what the study needs in them."""

import itertools
from datetime import timedelta

import pytest

from personavlm_lib.memory.records import SESSION_GAP, split_sessions
from personavlm_lib.simulation import lexicon
from personavlm_lib.simulation.dialogue import render_dialogue
from personavlm_lib.simulation.plan import CHANGING, sample_plan

SIZES = ((28, 1.0), (70, 1.2))  # of the lives to train on and to test on


@pytest.mark.parametrize("size", SIZES)
def test_the_same_seed_is_the_same_life_and_another_is_another(size):
    assert sample_plan(7, *size) == sample_plan(7, *size) != sample_plan(8, *size)
    assert (
        sample_plan(7, *size, user="anna").user == "anna"
        and sample_plan(7, *size).user == "user_00007"
    )


@pytest.mark.parametrize(("days", "size"), SIZES)
def test_turns_sessions_and_days(days, size, tmp_path):
    for seed in range(30):
        plan = sample_plan(seed, days, size)
        times = [event.time for event in plan.events]
        assert times == sorted(set(times)) and times[-1] - times[0] < timedelta(days=days + 1)
        assert 20 <= len(times) <= 100  # Appendix C
        sessions = split_sessions(render_dialogue(plan, tmp_path, draw=False))
        assert len(sessions) > len(times) / 5 - 1 and max(map(len, sessions)) <= 5
        for one, other in itertools.pairwise(sessions):
            assert other[0].time - one[-1].time > SESSION_GAP


@pytest.mark.parametrize("size", SIZES)
def test_more_than_fifteen_percent_of_the_turns_show_an_image(size):
    events = [event for seed in range(50) for event in sample_plan(seed, *size).events]
    assert sum(event.scene is not None for event in events) / len(events) > 0.15  # section 4


def test_what_a_life_holds():
    plans = [sample_plan(seed, *SIZES[0]) for seed in range(60)]
    for plan in plans:
        assert [event.key for event in plan.events[: len(lexicon.CORE) + 1]] == [
            "name",
            *lexicon.CORE,
        ]
        assert len({plan.persona.name, *plan.friends}) == 5
        assert plan.persona.profile == {
            event.key: event.value for event in plan.events[: len(lexicon.CORE) + 1]
        }
        assert plan.events[0].time < plan.drift < plan.events[-1].time
        changes = [
            abs(a - b) for a, b in zip(plan.before.as_tuple(), plan.after.as_tuple(), strict=True)
        ]
        assert sum(change >= 1 for change in changes) == 2 and sum(map(bool, changes)) == 2
        assert (
            plan.personality_at(plan.drift)
            == plan.after
            != plan.personality_at(plan.drift - timedelta(minutes=1))
        )
    kinds = {event.kind for plan in plans for event in plan.events}
    wanted = "name core preference friend relation value skill intent event image style habit goal goal_end small_talk"
    assert kinds == set(wanted.split())
    for plan in plans:
        skills = {event.key: [] for event in plan.events if event.kind == "skill"}
        for event in (event for event in plan.events if event.kind == "skill"):
            skills[event.key].append(lexicon.LEVELS.index(event.value))
        assert all(
            levels == sorted(set(levels)) and len(levels) > 1 for levels in skills.values()
        )  # skills grow
    for plan in plans:
        told: dict[tuple[str, str], list] = {}
        for event in plan.events:
            told.setdefault((event.kind, event.key), []).append(event)
        shifts = [events for (kind, _), events in told.items() if kind == "preference"]
        for first, *later in shifts:
            assert not first.cause and all(
                event.cause in lexicon.CAUSES for event in later
            )  # a shift has its cause
            assert len({first.value, *(event.value for event in later)}) == 1 + len(later)
        goals = [event.value for event in plan.events if event.kind == "goal"]
        assert {event.value for event in plan.events if event.kind == "goal_end"} <= set(goals)
    assert sum(any(b.cause and b.kind == "preference" for b in plan.events) for plan in plans) > 50


def test_the_scores_of_turns_lie_around_the_true_personality():
    errors = {True: [], False: []}
    for seed in range(100):
        plan = sample_plan(seed)
        for event in plan.events:
            now, other = (
                plan.personality_at(event.time),
                plan.after if event.time < plan.drift else plan.before,
            )
            for shown, true, else_ in zip(
                event.scores, now.as_tuple(), other.as_tuple(), strict=True
            ):
                if shown != 3:
                    assert abs(shown - true) < 1 or true == 3
                    errors[True].append(abs(shown - true))
                    errors[False].append(abs(shown - else_))
    assert sum(errors[True]) < 0.6 * sum(errors[False])


@pytest.mark.parametrize("turns", [20, 57, 100, 231, 500])
def test_as_many_turns_as_wanted_and_the_longest_lives_are_not_small_talk(turns):
    plans = [sample_plan(seed, 90, turns=turns) for seed in range(8)]
    assert {len(plan.events) for plan in plans} == {turns}
    events = [event for plan in plans for event in plan.events]
    assert sum(event.kind == "small_talk" for event in events) / len(events) < 0.3
    assert sum(event.scene is not None for event in events) / len(events) > 0.1
    for plan in plans:
        assert plan.events[-1].time - plan.events[0].time < timedelta(days=91)
        assert len({event.time for event in plan.events}) == turns


def test_a_line_of_personahub_becomes_the_role_and_the_job_that_it_names():
    line = "A retired pilot who restores old radios"
    plan = sample_plan(4, persona=line)
    assert (
        plan.persona.role == line and plan.persona.profile["job"] == "pilot" == plan.events[1].value
    )
    other = sample_plan(4)
    assert str(other.persona.age) in other.persona.role and plan.friends == other.friends


def test_things_are_seen_again_and_one_friend_comes_up_most():
    plans = [sample_plan(seed) for seed in range(60)]
    for plan in plans:
        shown = [(event.who, event.key) for event in plan.events if event.kind == "image"]
        (again,) = {pair for pair in shown if shown.count(pair) > 1}
        first, second = (
            event
            for event in plan.events
            if event.kind == "image" and (event.who, event.key) == again
        )
        assert first.value == second.value and second.scene.things[0].turned
    met = [
        [b.friend for b in plan.events if b.kind == "event"].count(plan.friends[0])
        for plan in plans
    ]
    assert sum(met) / 60 > 2.4  # of six, where four friends met alike would have 1.5


def test_what_replaces_a_value_names_it():
    changed = 0
    for seed in range(20):
        newest = {}
        for event in sample_plan(seed).events:
            if event.kind in CHANGING:
                assert (
                    event.was == newest.get((event.kind, event.who, event.key), "") != event.value
                )
                newest[event.kind, event.who, event.key], changed = (
                    event.value,
                    changed + bool(event.was),
                )
            else:
                assert not event.was
    assert changed > 100
