"""Personas and life plans: the truth behind a simulated life, sampled by code from a seed (paper, section 4).

A plan is a list of beats in order of time, one per turn. Because it is known, so are the gold memories, the answers to
all questions, and the personality of every turn, whoever tells the story.
"""

import random
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from personavlm_lib.memory.personality import BigFive
from personavlm_lib.memory.records import TRAITS
from personavlm_lib.world import lexicon
from personavlm_lib.world.scenes import COLORS, THINGS, Scene, sample_scene

EPOCH = datetime(2024, 3, 4)  # a Monday: lives begin within the three weeks after it
REVEAL = 0.7  # chance that a trait shows in a turn's words


@dataclass(frozen=True)
class Beat:
    """What one turn is about. `who` is "my" or a friend's name; `scores` is the turn's true p' (1-5 per trait)."""

    time: datetime
    kind: str  # name core preference friend relation value skill intent event image habit goal goal_end small_talk
    who: str = "my"
    key: str = ""
    value: str = ""
    cause: str = ""
    friend: str = ""
    scene: Scene | None = None
    scores: tuple[int, ...] = (3, 3, 3, 3, 3)


@dataclass(frozen=True)
class LifePlan:
    """One simulated user: name, friends, personality before and after a drift, and the beats of the life."""

    user: str
    seed: int
    name: str
    friends: tuple[str, ...]
    before: BigFive
    after: BigFive
    drift: datetime
    beats: tuple[Beat, ...] = field(default=())

    def personality_at(self, time: datetime) -> BigFive:
        """The true Big Five of the user at `time` (a step at the drift)."""
        return self.after if time >= self.drift else self.before


def _personality(rng: random.Random) -> BigFive:
    return BigFive(*(rng.choice((1.5, 2.0, 3.0, 4.0, 4.5)) for _ in TRAITS))


def _drifted(rng: random.Random, before: BigFive) -> BigFive:
    scores = list(before.as_tuple())
    for trait in rng.sample(range(5), 2):
        scores[trait] = rng.choice([s for s in (1.5, 2.0, 4.0, 4.5) if abs(s - scores[trait]) >= 1.0])
    return BigFive(*scores)


def _scores(rng: random.Random, truth: BigFive) -> tuple[int, ...]:
    """The scores that one turn shows: the true value rounded at random to a neighbour, or neutral where hidden."""
    shown = (int(s) + (rng.random() < s - int(s)) for s in truth.as_tuple())
    return tuple(score if rng.random() < REVEAL else 3 for score in shown)


def _beats_without_time(rng: random.Random, name: str, friends: tuple[str, ...], size: float) -> list[list[dict]]:
    """Groups of beats; beats of a group happen in this order, groups mix freely. The first group opens the life."""

    def some(n: float) -> int:
        return max(1, round(n * size))

    opening = [{"kind": "name", "key": "name", "value": name}]
    opening += [{"kind": "core", "key": key, "value": rng.choice(values)} for key, values in lexicon.CORE.items()]
    groups = [opening]
    for key in rng.sample(list(lexicon.PREFERENCES), min(some(4), len(lexicon.PREFERENCES))):
        values = rng.sample(lexicon.PREFERENCES[key], 3)
        group = [{"kind": "preference", "key": key, "value": values[0]}]
        for value in values[1 : 1 + rng.choice((0, 1, 1, 2))]:
            group.append({"kind": "preference", "key": key, "value": value, "cause": rng.choice(lexicon.CAUSES)})
        groups.append(group)
    for key in rng.sample(list(lexicon.CORE), 1):  # a stable attribute changes, too: a move, a new job
        others = [v for v in lexicon.CORE[key] if v not in {b["value"] for b in opening}]
        groups.append([{"kind": "core", "key": key, "value": rng.choice(others), "cause": rng.choice(lexicon.CAUSES)}])
    for friend in rng.sample(friends, 2):
        values = rng.sample(lexicon.RELATIONS, rng.choice((1, 1, 2)))
        group = [{"kind": "relation", "who": friend, "key": "relation", "value": values[0]}]
        for value in values[1:]:
            group.append(group[0] | {"value": value, "cause": rng.choice(lexicon.CAUSES)})
        groups.append(group)
    skill, first = rng.choice(lexicon.SKILLS), rng.randrange(3)
    reached = lexicon.LEVELS[first : first + rng.choice((1, 2, 2, 3))]
    groups.append([{"kind": "skill", "key": skill, "value": level} for level in reached])
    groups.append([{"kind": "value", "key": "value", "value": rng.choice(lexicon.VALUES)}])
    for item in rng.sample(lexicon.ITEMS, some(2)):
        groups.append([{"kind": "intent", "key": item, "value": rng.choice(lexicon.OCCASIONS)}])
    told = rng.sample([(f, k) for f in friends for k in lexicon.PREFERENCES], some(3))
    groups += [[{"kind": "friend", "who": f, "key": k, "value": rng.choice(lexicon.PREFERENCES[k])}] for f, k in told]
    for key in rng.choices(list(lexicon.EVENTS), k=some(5)):
        value, friend = rng.choice(lexicon.EVENTS[key]), rng.choice(friends)
        groups.append([{"kind": "event", "key": key, "value": value, "friend": friend}])
    shown = rng.sample([(w, t) for w in ("my", *friends) for t in THINGS], some(7))
    for who, thing in shown:
        color = rng.choice(list(COLORS))
        other = (rng.choice([t for t in THINGS if t != thing]), rng.choice(list(COLORS)))
        wanted = [(thing, color)] + ([other] if rng.random() < 0.5 else [])
        scene = sample_scene(rng, wanted)
        groups.append([{"kind": "image", "who": who, "key": thing, "value": color, "scene": scene}])
    days = rng.sample(lexicon.WEEKDAYS, 2)
    groups += [[{"kind": "habit", "key": day, "value": rng.choice(lexicon.HABITS)}] for day in days]
    for goal in rng.sample(lexicon.GOALS, some(2)):
        ends = [{"kind": "goal_end", "key": rng.choice(lexicon.GOAL_ENDS), "value": goal}]
        groups.append([{"kind": "goal", "value": goal}] + (ends if rng.random() < 0.6 else []))
    groups += [[{"kind": "small_talk", "value": rng.choice(lexicon.SMALL_TALK)}] for _ in range(some(2))]
    return groups


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


def sample_plan(seed: int, days: int = 28, size: float = 1.0, user: str = "") -> LifePlan:
    """A life of about 40 x `size` turns within `days` days (paper: 20-100 turns, a month for training, appendix C)."""
    rng = random.Random(f"life {seed}")
    name, *friends = rng.sample(lexicon.NAMES, 4)
    beats = _shuffled(rng, _beats_without_time(rng, name, tuple(friends), size))
    times = _session_times(rng, len(beats), days)
    before = _personality(rng)
    drift = times[rng.randrange(len(times) // 3, 2 * len(times) // 3)]
    after = _drifted(rng, before)
    dated = tuple(
        Beat(time=time, scores=_scores(rng, after if time >= drift else before), **beat)
        for time, beat in zip(times, beats, strict=True)
    )
    return LifePlan(user or f"user_{seed:05d}", seed, name, tuple(friends), before, after, drift, dated)
