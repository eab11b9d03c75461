"""Sample personas and life plans, the ground truth of a simulated user (paper, section 4).

A plan is a list of life events in order of time, one per turn. It determines the gold memories,
the answers to all questions and the user's personality at every turn, whichever dialogue generator
writes the words.
"""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any, TypeVar

from personavlm_lib.memory.personality import BigFive
from personavlm_lib.simulation import traits
from personavlm_lib.simulation.lexicon import GOAL_ENDS, SMALL_TALK, WEEKDAYS, Pool
from personavlm_lib.simulation.lexicon import pool as pool_named
from personavlm_lib.simulation.scenes import COLORS, LOOSE, PICTURE_STYLES, Scene, sample_scene

EPOCH = datetime(2024, 3, 4)  # a Monday; lives begin within the three weeks after it
KEYED = ("core", "preference", "friend", "event")  # kinds whose key says what the talk is about
CHANGING = ("core", "preference", "relation", "skill")  # kinds of fact whose value may change
TURNS = 46  # average number of turns of a life of size 1
# Levels that a skill passes through. All occur equally often, so no answer is more likely.
GROWTH = ((0, 1, 2, 3), (0, 1), (2, 3))

# In the wide world, facts come in passing: this share of the turns states one, half of the others
# follow an earlier turn up, and half are small talk.
FACT_SHARE = 0.55
NANO = pool_named("nano")

T = TypeVar("T")
Group = list[dict[str, Any]]  # undated events in a fixed order: keyword arguments of LifeEvent


@dataclass(frozen=True)
class LifeEvent:
    """The content of one turn.

    `who` is "my" or a friend's name; `scores` is the turn's true p' (1-5 per trait).
    """

    time: datetime
    kind: str  # wording.py defines a sentence for each kind
    who: str = "my"
    key: str = ""
    value: str = ""
    was: str = ""  # the value that `value` replaces
    cause: str = ""
    friend: str = ""
    scene: Scene | None = None
    scores: tuple[int, ...] = (3, 3, 3, 3, 3)


@dataclass(frozen=True)
class Persona:
    """The simulated user.

    `role` is a line of PersonaHub or a sentence made from the other fields; `profile` is the first
    core memory.
    """

    name: str
    age: int
    gender: str
    role: str
    profile: dict[str, str]


@dataclass(frozen=True)
class LifePlan:
    """One simulated user: persona, friends (the closest first), personality and life events.

    The personality is `before` until the time `drift`, then `after`. `arguments` are the arguments
    of `sample_plan` that reproduce the plan.
    """

    user: str
    seed: int
    persona: Persona
    friends: tuple[str, ...]
    before: BigFive
    after: BigFive
    drift: datetime
    events: tuple[LifeEvent, ...] = ()
    arguments: dict[str, Any] = field(default_factory=dict)

    @property
    def pool(self) -> Pool:
        """The values that the plan draws from."""
        return pool_named(self.arguments.get("pool", "nano"))

    def personality_at(self, time: datetime) -> BigFive:
        """The user's true Big Five at `time` (a step at the drift)."""
        return self.after if time >= self.drift else self.before


def _persona(rng: random.Random, pool: Pool, name: str, description: str) -> Persona:
    """Sample a persona, with the job that `description` mentions if the pool has it."""
    profile = {"name": name}
    for key, values in pool.core.items():
        profile[key] = rng.choice(values)
    words = f" {' '.join(description.lower().split())} "
    mentioned = [job for job in pool.core["job"] if f" {job} " in words]
    if mentioned:
        profile["job"] = mentioned[0]
    age = rng.randint(18, 80)
    gender = rng.choice(("woman", "man", "nonbinary person"))
    role = description
    if not role:
        role = (
            f"A {age}-year-old {gender} of {profile['city']}, {profile['job']}, "
            f"who lives with a {profile['pet']}."
        )
    return Persona(name, age, gender, role, profile)


def pictured(rng: random.Random, who: str, thing: str, again: bool = False) -> Group:
    """Events that show a picture of a thing: one to four of it, or one beside another thing.

    With `again`, a second event shows it later, seen from its other side. A sign fills its picture
    and is never shown again.
    """
    color = _color(rng)
    wanted = [(thing, color)]
    event = dict(kind="image", who=who, key=thing, value=color)
    if thing == "sign":
        return [event | {"scene": sample_scene(rng, wanted)}]
    other_thing = rng.choice([kind for kind in LOOSE if kind != thing])
    other_color = _color(rng)
    if rng.random() < 0.5:
        things = wanted * rng.randint(1, 4)
    else:
        things = [*wanted, (other_thing, other_color)]
    shuffled = rng.sample(things, len(things))
    scene = sample_scene(rng, shuffled)
    # Sampled even without `again`, so that the rest of the life does not depend on it.
    later_scene = sample_scene(rng, wanted, turned=True)
    events = [event | {"scene": scene}]
    if again:
        events.append(event | {"scene": later_scene})
    return events


def _color(rng: random.Random) -> str:
    return rng.choice(list(COLORS))


def _count(expected: float, most: int = 1000) -> int:
    """`expected` as a whole number from 1 to `most`."""
    return min(most, max(1, round(expected)))


def _sample_about(rng: random.Random, choices: Sequence[T], expected: float) -> list[T]:
    """About `expected` different `choices`, at least one."""
    count = _count(expected, len(choices))
    return rng.sample(choices, count)


def _changing_fact(
    rng: random.Random, pool: Pool, fact: dict[str, str], values: list[str]
) -> Group:
    """A fact with its values in order; each value after the first has a cause."""
    group = [fact | {"value": values[0]}]
    for value in values[1:]:
        cause = rng.choice(pool.causes[fact["key"]])
        group.append(fact | {"value": value, "cause": cause})
    return group


def _opening(profile: dict[str, str]) -> Group:
    """The user's introduction: name and core attributes."""
    group = []
    for key, value in profile.items():
        kind = "name" if key == "name" else "core"
        group.append(dict(kind=kind, key=key, value=value))
    return group


def _preferences(rng: random.Random, pool: Pool, size: float) -> list[Group]:
    groups = []
    for key in _sample_about(rng, list(pool.preferences), 4 * size):
        choices = pool.preferences[key]
        shifts = rng.choice((0, 1, 1, 2)) + round(size / 3)
        values = rng.sample(choices, min(1 + shifts, len(choices)))
        fact = dict(kind="preference", key=key)
        groups.append(_changing_fact(rng, pool, fact, values))
    return groups


def _core_changes(
    rng: random.Random, pool: Pool, profile: dict[str, str], size: float
) -> list[Group]:
    """Changes of otherwise stable attributes, such as a move."""
    groups = []
    for key in _sample_about(rng, list(pool.core), size):
        others = [value for value in pool.core[key] if value != profile[key]]
        value = rng.choice(others)
        cause = rng.choice(pool.causes[key])
        groups.append([dict(kind="core", key=key, value=value, cause=cause)])
    return groups


def _relations(rng: random.Random, pool: Pool, friends: Sequence[str], size: float) -> list[Group]:
    groups = []
    for friend in _sample_about(rng, friends, 2 * size):
        stages = rng.choice((1, 1, 2))
        values = rng.sample(pool.relations, stages)
        fact = dict(kind="relation", who=friend, key="relation")
        groups.append(_changing_fact(rng, pool, fact, values))
    return groups


def _skills(rng: random.Random, pool: Pool, size: float) -> list[Group]:
    groups = []
    for skill in _sample_about(rng, pool.skills, size):
        levels = [pool.levels[index] for index in rng.choice(GROWTH)]
        groups.append([dict(kind="skill", key=skill, value=level) for level in levels])
    return groups


def _intents(rng: random.Random, pool: Pool, size: float) -> list[Group]:
    groups = []
    for item in _sample_about(rng, pool.items, 2 * size):
        occasion = rng.choice(pool.occasions)
        groups.append([dict(kind="intent", key=item, value=occasion)])
    return groups


def _friends_tastes(
    rng: random.Random, pool: Pool, friends: Sequence[str], size: float
) -> list[Group]:
    groups = []
    tastes = [(friend, key) for friend in friends for key in pool.preferences]
    for friend, key in _sample_about(rng, tastes, 3 * size):
        value = rng.choice(pool.preferences[key])
        groups.append([dict(kind="friend", who=friend, key=key, value=value)])
    return groups


def _outings(rng: random.Random, pool: Pool, friends: Sequence[str], size: float) -> list[Group]:
    """Things done with a friend, most often with the closest one."""
    activities = []
    for key, values in pool.events.items():
        activities += [(key, value) for value in values]
    rng.shuffle(activities)
    repeated = 3 * activities
    closest = friends[0]
    groups = []
    for key, value in repeated[: _count(6 * size)]:
        friend = rng.choice((closest, *friends, closest))
        groups.append([dict(kind="event", key=key, value=value, friend=friend)])
    return groups


def _pictures(rng: random.Random, friends: Sequence[str], size: float) -> list[Group]:
    """Pictures of things, every fifth thing shown twice, and of signs."""
    groups = []
    owners = ("my", *friends)
    things = [(who, thing) for who in owners for thing in LOOSE]
    for index, (who, thing) in enumerate(_sample_about(rng, things, 5 * size)):
        groups.append(pictured(rng, who, thing, again=index % 5 == 0))
    sign_count = _count(size, len(friends))
    for who in rng.sample(owners, sign_count):
        groups.append(pictured(rng, who, "sign"))
    return groups


def _picture_style(rng: random.Random) -> Group:
    """The style of pictures that the user likes, with an example."""
    style = rng.choice(PICTURE_STYLES)
    thing = rng.choice(LOOSE)
    color = _color(rng)
    example = sample_scene(rng, [(thing, color)], style)
    return [dict(kind="style", key="style", value=style, scene=example)]


def _habits(rng: random.Random, pool: Pool, size: float) -> list[Group]:
    groups = []
    for day in _sample_about(rng, WEEKDAYS, 2 * size):
        habit = rng.choice(pool.habits)
        groups.append([dict(kind="habit", key=day, value=habit)])
    return groups


def _goals(rng: random.Random, pool: Pool, size: float) -> list[Group]:
    """Goals; of each three, one is reached, one is dropped and one stays open."""
    groups = []
    ends = rng.sample((*GOAL_ENDS, ""), 3)
    goals = rng.sample(pool.goals, _count(3 * size, 9))
    for index, goal in enumerate(goals):
        group = [dict(kind="goal", value=goal)]
        end = ends[index % 3]
        if end:
            group.append(dict(kind="goal_end", key=end, value=goal))
        groups.append(group)
    return groups


def _small_talk(rng: random.Random) -> Group:
    return [dict(kind="small_talk", value=rng.choice(SMALL_TALK))]


def _undated_events(
    rng: random.Random, pool: Pool, persona: Persona, friends: Sequence[str], size: float
) -> list[Group]:
    """Groups of undated events. Each group keeps its order; groups interleave freely.

    The first group opens the life.
    """
    groups = [_opening(persona.profile)]
    groups += _preferences(rng, pool, size)
    groups += _core_changes(rng, pool, persona.profile, size)
    groups += _relations(rng, pool, friends, size)
    groups += _skills(rng, pool, size)
    value = rng.choice(pool.values)
    groups.append([dict(kind="value", key="value", value=value)])
    groups += _intents(rng, pool, size)
    groups += _friends_tastes(rng, pool, friends, size)
    groups += _outings(rng, pool, friends, size)
    groups += _pictures(rng, friends, size)
    if pool is NANO:
        groups.append(_picture_style(rng))
    groups += _habits(rng, pool, size)
    groups += _goals(rng, pool, size)
    for _ in range(_count(2 * size)):
        groups.append(_small_talk(rng))
    return groups


def _fit_to_turns(rng: random.Random, groups: list[Group], turns: int) -> None:
    """Remove random groups, or add small talk, until `groups` hold exactly `turns` events."""
    events = sum(map(len, groups))
    surplus = events - turns
    while surplus > 0:
        removable = [group for group in groups[1:] if len(group) <= surplus]
        removed = rng.choice(removable)
        groups.remove(removed)
        surplus -= len(removed)
    for _ in range(-surplus):
        groups.append(_small_talk(rng))


def _interleave(rng: random.Random, groups: list[Group]) -> Group:
    """All events in one random order that keeps each group's own order and the opening first."""
    opening, *others = groups
    turns = []
    for index, group in enumerate(others):
        turns += [index] * len(group)
    rng.shuffle(turns)
    queues = [iter(group) for group in others]
    return opening + [next(queues[index]) for index in turns]


def _session_times(rng: random.Random, turns: int, days: int) -> list[datetime]:
    """One time per turn.

    Sessions have 2-5 turns, five minutes apart, and begin on different days and hours.
    """
    sizes: list[int] = []
    remaining = turns
    while remaining > 0:
        size = min(rng.choice((2, 3, 3, 4, 4, 5)), remaining)
        sizes.append(size)
        remaining -= size
    if len(sizes) > days:
        sizes = _even_sizes(turns, days)
    start = EPOCH + timedelta(days=rng.randrange(21))
    later_days = range(1, max(days, len(sizes) + 1))
    session_days = [0, *sorted(rng.sample(later_days, len(sizes) - 1))]
    times = []
    for day, size in zip(session_days, sizes, strict=True):
        hour = rng.randint(8, 20)
        minute = 5 * rng.randrange(12)
        first = start + timedelta(days=day, hours=hour, minutes=minute)
        times += [first + timedelta(minutes=5 * turn) for turn in range(size)]
    return times


def _even_sizes(total: int, parts: int) -> list[int]:
    """`total` split into `parts` nearly equal whole numbers."""
    bounds = [total * part // parts for part in range(parts + 1)]
    return [end - start for start, end in pairwise(bounds)]


def _with_talk(rng: random.Random, events: Group, extra: int) -> Group:
    """Add `extra` turns without facts: half follow an event up, half are small talk.

    An event is followed up at most once, in the turn after it; the introduction is left together.
    """
    first = 1 + len(NANO.core)  # after the introduction
    topics = [
        index
        for index in range(first, len(events))
        if events[index]["kind"] not in ("small_talk", "value")
    ]
    followed = set(rng.sample(topics, min(extra // 2, len(topics))))
    talk = extra - len(followed)
    before = Counter(rng.randrange(first, len(events)) for _ in range(talk))
    joined: Group = []
    for index, event in enumerate(events):
        joined += [dict(kind="small_talk", value="small talk")] * before[index]
        joined.append(event)
        if index in followed:
            topic = event["key"] if event["kind"] in KEYED else event["kind"]
            joined.append(dict(kind="follow_up", key=topic, value="more about it"))
    return joined


def _record_replaced_values(events: Group) -> None:
    """Set `was` of each changing fact to the value that it replaces."""
    newest: dict[tuple[str, str, str], str] = {}
    for event in events:
        kind = event["kind"]
        if kind in CHANGING:
            who = event.get("who", "my")
            fact = (kind, who, event["key"])
            event["was"] = newest.get(fact, "")
            newest[fact] = event["value"]


def sample_plan(
    seed: int,
    days: int = 28,
    size: float = 1.0,
    user: str = "",
    persona: str = "",
    turns: int | None = None,
    pool: str = "nano",
) -> LifePlan:
    """Sample a life of about TURNS x `size` turns, or exactly `turns` >= 20, within `days` days.

    The paper's lives have 20-100 turns within a month for training, and up to 500 within three
    months for the test (appendix C). `persona` is a description to use as the role, such as a line
    of PersonaHub. `pool` names the pool of values (see `lexicon.Pool`).
    """
    arguments = dict(seed=seed, days=days, size=size, user=user, persona=persona, turns=turns)
    if pool != "nano":
        arguments["pool"] = pool
    values = pool_named(pool)
    rng = random.Random(f"life {seed}")
    if turns:
        # Some lists of the lexicon run out in a long life; the others make up for them.
        ratio = turns / TURNS
        size = max(ratio, ratio**1.25)
    share = 1.0 if values is NANO else FACT_SHARE
    size *= share
    friend_count = min(8, 3 + max(1, round(size)))
    name, *others = rng.sample(values.names, 1 + friend_count)
    friends = tuple(others)
    user_persona = _persona(rng, values, name, persona)
    groups = _undated_events(rng, values, user_persona, friends, size)
    if turns:
        _fit_to_turns(rng, groups, round(share * turns))
    undated = _interleave(rng, groups)
    _record_replaced_values(undated)
    if values is not NANO:
        facts = len(undated)
        total = turns or round(facts / share)
        undated = _with_talk(rng, undated, total - facts)
    times = _session_times(rng, len(undated), days)
    before = traits.sample_personality(rng) if values is NANO else traits.distinct_personality(rng)
    turn_count = len(times)
    drift_turn = rng.randrange(turn_count // 3, 2 * turn_count // 3)
    drift = times[drift_turn]
    after = traits.drifted(rng, before) if values is NANO else traits.distinct_drift(rng, before)
    reveal = traits.REVEAL if values is NANO else traits.WIDE_REVEAL
    events = []
    for time, event in zip(times, undated, strict=True):
        personality = after if time >= drift else before
        scores = traits.turn_scores(rng, personality, reveal)
        events.append(LifeEvent(time=time, scores=scores, **event))
    return LifePlan(
        user=user or f"user_{seed:05d}",
        seed=seed,
        persona=user_persona,
        friends=friends,
        before=before,
        after=after,
        drift=drift,
        events=tuple(events),
        arguments=arguments,
    )
