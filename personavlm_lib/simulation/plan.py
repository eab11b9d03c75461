"""Personas and life plans: the truth behind a simulated life, sampled by code from a seed (paper, section 4).

A plan is a list of beats in order of time, one per turn. Because it is known, so are the gold memories, the answers to
all questions, and the personality of every turn, whoever tells the story.
"""

import random
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from personavlm_lib.memory.personality import BigFive
from personavlm_lib.memory.records import TRAITS
from personavlm_lib.simulation import lexicon
from personavlm_lib.simulation.scenes import COLORS, LOOSE, PICTURE_STYLES, Scene, sample_scene

EPOCH = datetime(2024, 3, 4)  # a Monday: lives begin within the three weeks after it
REVEAL = 0.7  # chance that a trait shows in a turn's words
CHANGING = ("core", "preference", "relation", "skill")  # kinds of fact that may be replaced
TURNS = 46  # of a life of size 1, on average
# Skills grow by these steps: each level is passed as often as every other, so none is the likelier answer.
GROWTH = ((0, 1, 2, 3), (0, 1), (2, 3))


@dataclass(frozen=True)
class LifeEvent:
    """What one turn is about. `who` is "my" or a friend's name; `scores` is the turn's true p' (1-5 per trait)."""

    time: datetime
    kind: str  # of lexicon.py's lists, each with its sentence in tellers.py
    who: str = "my"
    key: str = ""
    value: str = ""
    was: str = ""  # the value that this one replaces
    cause: str = ""
    friend: str = ""
    scene: Scene | None = None
    scores: tuple[int, ...] = (3, 3, 3, 3, 3)


@dataclass(frozen=True)
class Persona:
    """Who a life is about: `role` is a line of PersonaHub or said of the rest; `profile` is the first core memory."""

    name: str
    age: int
    gender: str
    role: str
    profile: dict[str, str]


@dataclass(frozen=True)
class LifePlan:
    """One simulated user: persona, friends (the closest first), personality before and after a drift, and the beats.

    `given` holds the arguments of `sample_plan` that it comes from.
    """

    user: str
    seed: int
    persona: Persona
    friends: tuple[str, ...]
    before: BigFive
    after: BigFive
    drift: datetime
    events: tuple[LifeEvent, ...] = ()
    given: dict = field(default_factory=dict)

    def personality_at(self, time: datetime) -> BigFive:
        """The true Big Five of the user at `time` (a step at the drift)."""
        return self.after if time >= self.drift else self.before


def _personality(rng: random.Random) -> BigFive:
    return BigFive(*(rng.choice((1.5, 2.0, 3.0, 4.0, 4.5)) for _ in TRAITS))


def _drifted(rng: random.Random, before: BigFive) -> BigFive:
    scores = list(before.as_tuple())
    for trait in rng.sample(range(5), 2):
        scores[trait] = rng.choice(
            [s for s in (1.5, 2.0, 4.0, 4.5) if abs(s - scores[trait]) >= 1.0]
        )
    return BigFive(*scores)


def _scores(rng: random.Random, truth: BigFive) -> tuple[int, ...]:
    """The scores that one turn shows: the true value rounded at random to a neighbour, or neutral where hidden."""
    shown = (int(s) + (rng.random() < s - int(s)) for s in truth.as_tuple())
    return tuple(score if rng.random() < REVEAL else 3 for score in shown)


def _persona(rng: random.Random, name: str, line: str) -> Persona:
    """A persona, with the job that the `line` names if it names one of the world's."""
    profile = {"name": name} | {key: rng.choice(values) for key, values in lexicon.CORE.items()}
    named = [job for job in lexicon.CORE["job"] if job in line.lower().split()]
    profile |= {"job": named[0]} if named else {}
    age, gender = rng.randint(18, 80), rng.choice(("woman", "man", "nonbinary person"))
    role = "A {age}-year-old {gender} of {city}, {job}, who lives with a {pet}."
    return Persona(
        name, age, gender, line or role.format(age=age, gender=gender, **profile), profile
    )


def pictured(rng: random.Random, who: str, thing: str, again: bool = False) -> list[dict]:
    """Something shown, one to four of it at once or beside something else; `again`: later, too, from its other side.

    A sign stands alone, and is not shown again.
    """
    color = rng.choice(list(COLORS))
    event = {"kind": "image", "who": who, "key": thing, "value": color}
    if thing == "sign":
        return [event | {"scene": sample_scene(rng, [(thing, color)])}]
    other = (rng.choice([t for t in LOOSE if t != thing]), rng.choice(list(COLORS)))
    wanted = [(thing, color)] * rng.randint(1, 4) if rng.random() < 0.5 else [(thing, color), other]
    first = event | {"scene": sample_scene(rng, rng.sample(wanted, len(wanted)))}
    return [first] + [event | {"scene": sample_scene(rng, [(thing, color)], turned=True)}] * again


def _undated_events(
    rng: random.Random, persona: Persona, friends: tuple[str, ...], size: float
) -> list[list[dict]]:
    """Groups of beats; beats of a group happen in this order, groups mix freely. The first group opens the life."""

    def some(n: float, most: int = 1000) -> int:
        return min(most, max(1, round(n * size)))

    told = persona.profile
    opening = [
        {"kind": "name" if key == "name" else "core", "key": key, "value": told[key]}
        for key in told
    ]
    groups = [opening]
    for key in rng.sample(list(lexicon.PREFERENCES), some(4, len(lexicon.PREFERENCES))):
        shifts = rng.choice((0, 1, 1, 2)) + round(size / 3)
        first, *later = rng.sample(
            lexicon.PREFERENCES[key], min(1 + shifts, len(lexicon.PREFERENCES[key]))
        )
        event = {"kind": "preference", "key": key, "value": first}
        groups.append(
            [event, *(event | {"value": v, "cause": rng.choice(lexicon.CAUSES)} for v in later)]
        )
    for key in rng.sample(
        list(lexicon.CORE), some(1, len(lexicon.CORE))
    ):  # a stable attribute changes, too: a move
        value = rng.choice([v for v in lexicon.CORE[key] if v != told[key]])
        groups.append(
            [{"kind": "core", "key": key, "value": value, "cause": rng.choice(lexicon.CAUSES)}]
        )
    for friend in rng.sample(friends, some(2, len(friends))):
        first, *later = rng.sample(lexicon.RELATIONS, rng.choice((1, 1, 2)))
        event = {"kind": "relation", "who": friend, "key": "relation", "value": first}
        groups.append(
            [event, *(event | {"value": v, "cause": rng.choice(lexicon.CAUSES)} for v in later)]
        )
    for skill in rng.sample(lexicon.SKILLS, some(1, len(lexicon.SKILLS))):
        steps = rng.choice(GROWTH)
        groups.append(
            [{"kind": "skill", "key": skill, "value": lexicon.LEVELS[level]} for level in steps]
        )
    groups.append([{"kind": "value", "key": "value", "value": rng.choice(lexicon.VALUES)}])
    for item in rng.sample(lexicon.ITEMS, some(2, len(lexicon.ITEMS))):
        groups.append([{"kind": "intent", "key": item, "value": rng.choice(lexicon.OCCASIONS)}])
    tastes = [(f, k) for f in friends for k in lexicon.PREFERENCES]
    for friend, key in rng.sample(tastes, some(3, len(tastes))):
        groups.append(
            [
                {
                    "kind": "friend",
                    "who": friend,
                    "key": key,
                    "value": rng.choice(lexicon.PREFERENCES[key]),
                }
            ]
        )
    happenings = [(key, value) for key, values in lexicon.EVENTS.items() for value in values]
    rng.shuffle(happenings)
    for key, value in (3 * happenings)[: some(6)]:
        friend = rng.choice((friends[0], *friends, friends[0]))  # the closest comes up most
        groups.append([{"kind": "event", "key": key, "value": value, "friend": friend}])
    shown = [(who, thing) for who in ("my", *friends) for thing in LOOSE]
    for i, (who, thing) in enumerate(rng.sample(shown, some(5, len(shown)))):
        groups.append(pictured(rng, who, thing, again=i % 5 == 0))
    groups += [
        pictured(rng, who, "sign") for who in rng.sample(("my", *friends), some(1, len(friends)))
    ]
    style = rng.choice(PICTURE_STYLES)
    liked = sample_scene(rng, [(rng.choice(LOOSE), rng.choice(list(COLORS)))], style)
    groups.append([{"kind": "style", "key": "style", "value": style, "scene": liked}])
    for day in rng.sample(lexicon.WEEKDAYS, some(2, 7)):
        groups.append([{"kind": "habit", "key": day, "value": rng.choice(lexicon.HABITS)}])
    ends = rng.sample((*lexicon.GOAL_ENDS, ""), 3)
    for i, goal in enumerate(rng.sample(lexicon.GOALS, some(3, 9))):
        end = ends[i % 3]
        groups.append(
            [{"kind": "goal", "value": goal}]
            + [{"kind": "goal_end", "key": end, "value": goal}] * bool(end)
        )
    groups += [[_small_talk(rng)] for _ in range(some(2))]
    return groups


def _small_talk(rng: random.Random) -> dict:
    return {"kind": "small_talk", "value": rng.choice(lexicon.SMALL_TALK)}


def _shuffled(rng: random.Random, groups: list[list[dict]]) -> list[dict]:
    """One order of all beats that keeps each group's own order and the opening first."""
    opening, rest = groups[0], groups[1:]
    tickets = [i for i, group in enumerate(rest) for _ in group]
    rng.shuffle(tickets)
    queues = [iter(group) for group in rest]
    return opening + [next(queues[i]) for i in tickets]


def _session_times(rng: random.Random, turns: int, days: int) -> list[datetime]:
    """One time per turn: sessions of 2-5 turns on different days and hours, five minutes between turns."""
    sizes = []
    while sum(sizes) < turns:
        sizes.append(min(rng.choice((2, 3, 3, 4, 4, 5)), turns - sum(sizes)))
    sizes = sizes[: max(1, days)] if len(sizes) <= days else [len(c) for c in _chunks(turns, days)]
    start = EPOCH + timedelta(days=rng.randrange(21))
    chosen = sorted(rng.sample(range(1, max(days, len(sizes) + 1)), len(sizes) - 1))
    times = []
    for day, size in zip([0, *chosen], sizes, strict=True):
        first = start + timedelta(days=day, hours=rng.randint(8, 20), minutes=5 * rng.randrange(12))
        times += [first + timedelta(minutes=5 * i) for i in range(size)]
    return times


def _chunks(turns: int, parts: int) -> list[range]:
    """`turns` split into `parts` runs of nearly equal length."""
    bounds = [turns * i // parts for i in range(parts + 1)]
    return [range(a, b) for a, b in zip(bounds, bounds[1:], strict=False)]


def sample_plan(
    seed: int,
    days: int = 28,
    size: float = 1.0,
    user: str = "",
    persona: str = "",
    turns: int | None = None,
) -> LifePlan:
    """A life of about TURNS x `size` turns, or of exactly `turns` >= 20, within `days` days.

    The paper's have 20-100 turns within a month for training, and up to 500 within three for the test (appendix C).
    `persona` is a description to keep as the role, such as a line of PersonaHub.
    """
    given = dict(seed=seed, days=days, size=size, user=user, persona=persona, turns=turns)
    rng = random.Random(f"life {seed}")
    if turns:
        size = max(turns / TURNS, (turns / TURNS) ** 1.25)  # some lists end: the others give more
    name, *friends = rng.sample(lexicon.NAMES, 1 + min(8, 3 + max(1, round(size))))
    about = _persona(rng, name, persona)
    groups = _undated_events(rng, about, tuple(friends), size)
    if turns:  # small talk fills up, and what stands for itself is left out, until it fits
        while (over := sum(map(len, groups)) - turns) > 0:
            groups.remove(rng.choice([g for g in groups[1:] if len(g) <= over]))
        groups += [[_small_talk(rng)] for _ in range(-over)]
    events = _shuffled(rng, groups)
    times = _session_times(rng, len(events), days)
    before = _personality(rng)
    drift = times[rng.randrange(len(times) // 3, 2 * len(times) // 3)]
    after = _drifted(rng, before)
    newest: dict[tuple[str, str, str], str] = {}
    for event in (event for event in events if event["kind"] in CHANGING):
        about_what = event["kind"], event.get("who", "my"), event["key"]
        event["was"], newest[about_what] = newest.get(about_what, ""), event["value"]
    dated = tuple(
        LifeEvent(time=time, scores=_scores(rng, after if time >= drift else before), **event)
        for time, event in zip(times, events, strict=True)
    )
    return LifePlan(
        user or f"user_{seed:05d}", seed, about, tuple(friends), before, after, drift, dated, given
    )
