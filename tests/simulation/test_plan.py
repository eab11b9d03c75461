"""Sampled life plans: reproducible, in order of time, and with all that the study needs."""

import itertools
from datetime import timedelta

import pytest

from personavlm_lib.memory.records import SESSION_GAP, split_sessions
from personavlm_lib.simulation import lexicon
from personavlm_lib.simulation.dialogue import render_dialogue
from personavlm_lib.simulation.plan import CHANGING, sample_plan

SIZES = ((28, 1.0), (70, 1.2))  # days and size of training lives and of test lives


@pytest.mark.parametrize("size", SIZES)
def test_equal_seeds_give_equal_lives_and_other_seeds_others(size):
    assert sample_plan(7, *size) == sample_plan(7, *size) != sample_plan(8, *size)
    assert sample_plan(7, *size, user="anna").user == "anna"
    assert sample_plan(7, *size).user == "user_00007"


@pytest.mark.parametrize(("days", "size"), SIZES)
def test_turns_sessions_and_days_stay_within_their_limits(days, size, tmp_path):
    for seed in range(30):
        plan = sample_plan(seed, days, size)
        times = [event.time for event in plan.events]
        assert times == sorted(set(times)) and times[-1] - times[0] < timedelta(days=days + 1)
        assert 20 <= len(times) <= 100  # Appendix C
        sessions = split_sessions(render_dialogue(plan, tmp_path, draw=False))
        assert len(sessions) > len(times) / 5 - 1 and max(map(len, sessions)) <= 5
        for session, following in itertools.pairwise(sessions):
            assert following[0].time - session[-1].time > SESSION_GAP


@pytest.mark.parametrize("size", SIZES)
def test_more_than_fifteen_percent_of_the_turns_have_a_picture(size):
    events = [event for seed in range(50) for event in sample_plan(seed, *size).events]
    assert sum(event.scene is not None for event in events) / len(events) > 0.15  # section 4


@pytest.fixture(scope="module")
def plans():
    return [sample_plan(seed, *SIZES[0]) for seed in range(60)]


def test_life_opens_with_the_profile(plans):
    for plan in plans:
        opening = plan.events[: len(lexicon.CORE) + 1]
        assert [event.key for event in opening] == ["name", *lexicon.CORE]
        assert plan.persona.profile == {event.key: event.value for event in opening}
        assert len({plan.persona.name, *plan.friends}) == 5


def test_drift_changes_two_traits_in_the_middle_of_the_life(plans):
    for plan in plans:
        assert plan.events[0].time < plan.drift < plan.events[-1].time
        scores = zip(plan.before.as_tuple(), plan.after.as_tuple(), strict=True)
        changes = [abs(before - after) for before, after in scores]
        assert sum(change >= 1 for change in changes) == 2 and sum(map(bool, changes)) == 2
        just_before = plan.personality_at(plan.drift - timedelta(minutes=1))
        assert plan.personality_at(plan.drift) == plan.after != just_before


def test_lives_contain_every_kind_of_event(plans):
    kinds = {event.kind for plan in plans for event in plan.events}
    expected = (
        "name core preference friend relation value skill intent "
        "event image style habit goal goal_end small_talk"
    )
    assert kinds == set(expected.split())


def test_skills_only_grow(plans):
    for plan in plans:
        skills = {}
        for event in plan.events:
            if event.kind == "skill":
                level = lexicon.LEVELS.index(event.value)
                skills.setdefault(event.key, []).append(level)
        for levels in skills.values():
            assert levels == sorted(set(levels)) and len(levels) > 1


def test_preferences_shift_for_a_cause_and_to_new_values(plans):
    for plan in plans:
        preferences = {}
        for event in plan.events:
            if event.kind == "preference":
                preferences.setdefault(event.key, []).append(event)
        for first, *later in preferences.values():
            assert not first.cause
            assert all(event.cause in lexicon.CAUSES for event in later)
            assert len({first.value, *(event.value for event in later)}) == 1 + len(later)
    with_shifts = [
        plan for plan in plans if any(e.cause and e.kind == "preference" for e in plan.events)
    ]
    assert len(with_shifts) > 50


def test_only_stated_goals_end(plans):
    for plan in plans:
        goals = {event.value for event in plan.events if event.kind == "goal"}
        assert {event.value for event in plan.events if event.kind == "goal_end"} <= goals


def test_scores_of_turns_lie_around_the_true_personality():
    error = 0.0
    error_of_other_period = 0.0
    for seed in range(100):
        plan = sample_plan(seed)
        for event in plan.events:
            current = plan.personality_at(event.time).as_tuple()
            other = (plan.after if event.time < plan.drift else plan.before).as_tuple()
            for score, true, wrong in zip(event.scores, current, other, strict=True):
                if score != 3:
                    assert abs(score - true) < 1 or true == 3
                    error += abs(score - true)
                    error_of_other_period += abs(score - wrong)
    assert error < 0.6 * error_of_other_period


@pytest.mark.parametrize("turns", [20, 57, 100, 231, 500])
def test_life_has_the_requested_turns_and_little_small_talk(turns):
    plans = [sample_plan(seed, 90, turns=turns) for seed in range(8)]
    assert {len(plan.events) for plan in plans} == {turns}
    events = [event for plan in plans for event in plan.events]
    assert sum(event.kind == "small_talk" for event in events) / len(events) < 0.3
    assert sum(event.scene is not None for event in events) / len(events) > 0.1
    for plan in plans:
        assert plan.events[-1].time - plan.events[0].time < timedelta(days=91)
        assert len({event.time for event in plan.events}) == turns


def test_description_becomes_the_role_and_sets_the_job_it_mentions():
    description = "A retired pilot who restores old radios"
    plan = sample_plan(4, persona=description)
    assert plan.persona.role == description
    assert plan.persona.profile["job"] == "pilot" == plan.events[1].value
    other = sample_plan(4)
    assert str(other.persona.age) in other.persona.role and plan.friends == other.friends


def test_one_thing_is_shown_twice_and_one_friend_is_met_most():
    plans = [sample_plan(seed) for seed in range(60)]
    for plan in plans:
        pictures = [event for event in plan.events if event.kind == "image"]
        things = [(event.who, event.key) for event in pictures]
        (repeated,) = {thing for thing in things if things.count(thing) > 1}
        first, second = (event for event in pictures if (event.who, event.key) == repeated)
        assert first.value == second.value and second.scene.things[0].turned
    outings_with_closest = 0
    for plan in plans:
        companions = [event.friend for event in plan.events if event.kind == "event"]
        outings_with_closest += companions.count(plan.friends[0])
    # Of six outings; four friends met equally often would have 1.5 each.
    assert outings_with_closest / 60 > 2.4


def test_changed_fact_names_the_value_it_replaces():
    changes = 0
    for seed in range(20):
        newest = {}
        for event in sample_plan(seed).events:
            if event.kind not in CHANGING:
                assert not event.was
                continue
            fact = (event.kind, event.who, event.key)
            assert event.was == newest.get(fact, "") != event.value
            newest[fact] = event.value
            changes += bool(event.was)
    assert changes > 100


def test_a_persona_has_the_job_that_its_description_names_as_a_word():
    named = sample_plan(1, persona="A retired baker who collects stamps").persona.profile["job"]
    assert named == "baker"
    # "tailored" names no tailor, so the job is drawn
    plans = [sample_plan(seed, persona="Loves tailored suits") for seed in range(30)]
    assert len({plan.persona.profile["job"] for plan in plans}) > 1
