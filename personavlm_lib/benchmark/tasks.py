"""Question makers: pure functions of the plan, each answerable from gold evidence turns (paper, Table 5).

Personality Alignment is yes or no to one reply, two items a case; the other thirteen tasks have four options. No option
is the likelier answer for what can be seen without the life: all four come from one list from which plans draw evenly,
and where the list is short (`EVEN`) the answer is drawn first, then a moment at which it is right.
"""

import itertools
import random
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime, time, timedelta
from functools import partial

from personavlm_lib.agent.prompt_sets import periods
from personavlm_lib.benchmark.questions import Hop, Question
from personavlm_lib.memory.records import SESSION_GAP, TRAITS
from personavlm_lib.simulation import lexicon
from personavlm_lib.simulation.plan import LifeEvent, LifePlan
from personavlm_lib.simulation.scenes import (
    COLORS,
    COUNTS,
    LOOSE,
    PICTURE_STYLES,
    SIGN_WORDS,
    listed,
)
from personavlm_lib.simulation.wording import bare_statement, search_keywords, statement

VALUES_OF = (
    lexicon.CORE | lexicon.PREFERENCES | {"style": PICTURE_STYLES}
)  # every value that a key of these kinds can have
DETAILS = ("color", "count", "side", "word")  # of pictures
LASTING = ("core", "preference", "friend", "relation", "value", "skill", "intent", "habit", "style")
# Tasks whose answers are few: each is drawn as often as the others.
EVEN = {
    "Long-term Goal Tracking": lexicon.GOAL_STATES,
    "Tiered Explanation Delivery": tuple(lexicon.KNOWLEDGE["level"].values()),
}


def _newest(plan: LifePlan, moment: datetime) -> list[tuple[int, LifeEvent]]:
    """The newest statement of each (kind, who, key), with its turn, made a session gap or more before `moment`."""
    newest = {}
    for index, event in enumerate(plan.events):
        if event.time + 2 * SESSION_GAP < moment and event.kind in LASTING:
            newest[event.kind, event.who, event.key] = index
    return [(index, plan.events[index]) for index in newest.values()]


def _options(
    rng: random.Random, answer: str, plausible: list[str], pool: list[str]
) -> tuple[str, ...]:
    """Four options: the answer, then what this user also said or knew, then other words of the same kind."""
    plausible = sorted(set(plausible) - {answer})
    others = sorted(set(pool) - set(plausible) - {answer})
    chosen = (
        rng.sample(plausible, min(3, len(plausible))) + rng.sample(others, min(3, len(others)))
    )[:3]
    return tuple(rng.sample([answer, *chosen], 4))


def _make(
    plan: LifePlan, rng: random.Random, task: str, moment: datetime, text: str, answer: str, **rest
) -> Question:
    plausible, pool = rest.pop("plausible", []), rest.pop("pool")
    return Question(
        "",
        plan.user,
        task,
        "choice",
        moment,
        text,
        _options(rng, answer, plausible, pool),
        answer,
        **rest,
    )


def _said(plan: LifePlan, key: str) -> list[str]:
    return [event.value for event in plan.events if event.key == key]


@dataclass(frozen=True)
class Lookup:
    """A maker of questions that one newest fact of a kind answers: as it stands, or by what is commonly known of it.

    `text` is filled from the beat. `knowledge` names the table that leads from the beat's value to the answer; without
    it the answer is the beat's `field`. `asks` says of which beats (given the moment) the question can be asked.
    """

    task: str
    kind: str
    text: str
    pool: Callable[[LifeEvent], Iterable[str]] = lambda event: ()
    knowledge: str = ""
    field: str = "value"
    asks: Callable[[LifeEvent, datetime], bool] = lambda event, moment: True

    def __call__(self, plan: LifePlan, rng: random.Random, moment: datetime) -> Iterator[Question]:
        known = lexicon.KNOWLEDGE.get(self.knowledge, {})
        for index, event in _newest(plan, moment):
            if event.kind != self.kind or not self.asks(event, moment):
                continue
            alike = [
                b for b in plan.events
                if b.key == event.key or b.kind == event.kind in ("habit", "intent") or self.field == "cause"
            ]  # fmt: skip
            said = [getattr(b, self.field) for b in alike if getattr(b, self.field)]
            stated, answer, pool = (
                statement(event),
                getattr(event, self.field),
                list(self.pool(event)),
            )
            if known:
                said, pool = (
                    [known[value] for value in said if value in known],
                    list(known.values()),
                )
                stated, answer = (
                    f"{stated.split(' because ')[0]} takes {known[answer]}",
                    known[answer],
                )
            # The profile holds the core facts, and shows them without what they came to change for.
            hops = () if event.kind == "core" else (Hop(search_keywords(event), statement(event)),)
            thought = stated if hops else bare_statement(event)
            about = (event.kind, event.who, event.key)
            told = tuple(
                statement(b) for b in plan.events[: index + 1] if (b.kind, b.who, b.key) == about
            )
            yield _make(plan, rng, self.task, moment, self.text.format(**vars(event)), answer, plausible=said, pool=pool,
                        evidence=(index,), hops=hops, thought=thought, history=told)  # fmt: skip


def visual_detail_recall(
    plan: LifePlan, rng: random.Random, moment: datetime, details: Collection[str] = DETAILS
) -> Iterator[Question]:
    """What was to be seen, by `details`: a thing's colour, how many there were, what stood beside it, a sign's word."""
    told = [
        (i, b)
        for i, b in enumerate(plan.events)
        if b.kind == "image" and b.time + 2 * SESSION_GAP < moment
    ]
    for index, event in told:
        name = statement(event)
        seen = f"look at {name} {listed(event.scene)}"  # the picture is found, and all of it named, before one is chosen
        kinds = [thing.kind for thing in event.scene.things]
        alone = (
            sum((b.who, b.key) == (event.who, event.key) for _, b in told) == 1
        )  # seen again it may have come alone
        asked = {
            "color": (
                f"what color is {name} ?",
                f"{seen} {name} is {event.value}",
                event.value,
                COLORS,
            )
        }
        if event.scene.word:
            asked["word"] = (
                f"what is on {name} ?",
                f"{seen} {name} says {event.scene.word}",
                event.scene.word,
                SIGN_WORDS,
            )
        elif alone and len(set(kinds)) == 1:
            count = COUNTS[len(kinds) - 1]
            asked["count"] = f"how many of {name} ?", f"{seen} {count} {name}", count, COUNTS
        if len(set(kinds)) == 2 and alone:
            side = "left" if kinds[1] == event.key else "right"
            other = kinds[kinds[0] == event.key]
            asked["side"] = (f"what is {side} of {name} ?", f"{seen} {side} of {name} is {other}", other,
                             [kind for kind in LOOSE if kind != event.key])  # fmt: skip
        shown = [thing.color for b in plan.events if b.scene for thing in b.scene.things]
        for text, thought, answer, pool in (asked[detail] for detail in details if detail in asked):
            yield _make(
                plan, rng, "Visual Detail Recall", moment, text, answer, plausible=[c for c in shown if c in pool],
                pool=list(pool), evidence=(index,), hops=(Hop(name, f"{name} <img>"),), thought=thought,
            )  # fmt: skip


def _outings(plan: LifePlan, moment: datetime) -> Iterator[tuple[int, LifeEvent, list[LifeEvent]]]:
    """Every event that is over, with its turn and the others of its kind."""
    events = [
        (i, b)
        for i, b in enumerate(plan.events)
        if b.kind == "event" and b.time + 2 * SESSION_GAP < moment
    ]
    for index, event in events:
        yield index, event, [b for _, b in events if b.key == event.key and b is not event]


def recall_by_period(plan: LifePlan, rng: random.Random, moment: datetime) -> Iterator[Question]:
    """What happened this morning, yesterday, last sunday, two weeks ago: nothing else of its kind did then."""
    for index, event, alike in _outings(plan, moment):
        for period, (start, end) in periods(moment).items():
            if start <= event.time <= end and not any(start <= b.time <= end for b in alike):
                text, hop = (
                    f"what did i {event.key} {period} ?",
                    Hop(search_keywords(event), statement(event), start, end),
                )
                yield _make(plan, rng, "Semantic Information Recall", moment, text, event.value, hops=(hop,),
                            plausible=[b.value for b in alike], pool=lexicon.EVENTS[event.key], evidence=(index,),
                            thought=statement(event))  # fmt: skip


def outing_recall(plan: LifePlan, rng: random.Random, moment: datetime) -> Iterator[Question]:
    """Events by their companion, and the taste of a friend who is known by an event: two things to find."""
    task, newest = "Semantic Information Recall", _newest(plan, moment)
    for index, event, alike in _outings(plan, moment):
        if all(b.value != event.value for b in alike):
            hop = Hop(f"{search_keywords(event)} {event.value}", statement(event))
            text = f"who did i {event.key} {event.value} with ?"
            yield _make(plan, rng, task, moment, text, event.friend, plausible=list(plan.friends),
                        pool=list(lexicon.NAMES), evidence=(index,), hops=(hop,), thought=statement(event))  # fmt: skip
            for known, taste in newest:
                if taste.kind == "friend" and taste.who == event.friend:
                    text = f"what is the {taste.key} of who i {event.key} {event.value} with ?"
                    yield _make(plan, rng, task, moment, text, taste.value, plausible=_said(plan, taste.key),
                                pool=lexicon.PREFERENCES[taste.key], evidence=(index, known),
                                hops=(hop, Hop(search_keywords(taste), statement(taste))),
                                thought=statement(taste))  # fmt: skip


def relationship_recognition(
    plan: LifePlan, rng: random.Random, moment: datetime
) -> Iterator[Question]:
    """The friend who comes up most: all that happened with friends is to be counted."""
    told = [
        (i, b)
        for i, b in enumerate(plan.events)
        if b.kind == "event" and b.time + 2 * SESSION_GAP < moment
    ]
    met = Counter(event.friend for _, event in told).most_common()
    if len(told) < 3 or len(met) > 1 and met[0][1] < met[1][1] + 1 + len(told) // 8:
        return
    words = f"{' '.join(lexicon.EVENTS)} with"  # of all that one does with friends
    hops = tuple(Hop(words, statement(event), note=f"with {event.friend}") for _, event in told)
    yield _make(plan, rng, "Relationship Recognition", moment, "who do i meet most ?", met[0][0],
                plausible=list(plan.friends), pool=list(lexicon.NAMES), evidence=tuple(i for i, _ in told), hops=hops,
                thought=" ".join(hop.note for hop in hops))  # fmt: skip


def semantic_information_recall(
    plan: LifePlan, rng: random.Random, moment: datetime
) -> Iterator[Question]:
    for kind in ("friend", "core", "style"):
        yield from Lookup(
            "Semantic Information Recall",
            kind,
            "what is {who} {key} ?",
            lambda event: VALUES_OF[event.key],
        )(plan, rng, moment)
    yield from outing_recall(plan, rng, moment)


def latest_preference_recognition(
    plan: LifePlan, rng: random.Random, moment: datetime
) -> Iterator[Question]:
    for kind in ("preference", "core"):  # of the core facts only those that have changed
        yield from Lookup(
            "Latest Preference Recognition", kind, "what is {who} {key} now ?", lambda event: VALUES_OF[event.key],
            asks=lambda event, _: event.kind == "preference" or bool(event.cause),
        )(plan, rng, moment)  # fmt: skip


def long_term_goal_tracking(
    plan: LifePlan, rng: random.Random, moment: datetime
) -> Iterator[Question]:
    """What became of a goal: reached, dropped, still open, or unknown because it was never heard of."""
    told = [
        (i, b)
        for i, b in enumerate(plan.events)
        if b.kind in ("goal", "goal_end") and b.time < moment
    ]
    last = {
        event.value: (index, event)
        for index, event in told
        if event.time + 2 * SESSION_GAP < moment
    }
    never = rng.choice([goal for goal in lexicon.GOALS if goal not in _said(plan, "")])
    for goal in [*last, never]:
        index, event = last.get(goal, (None, LifeEvent(moment, "goal", value=goal)))
        state = "unknown" if index is None else event.key or "open"
        thought = f"{search_keywords(event)} is unknown" if index is None else statement(event)
        yield _make(plan, rng, "Long-term Goal Tracking", moment, f"what became of my goal {goal} ?", state,
                    pool=lexicon.GOAL_STATES, evidence=tuple(i for i, b in told if b.value == goal),
                    hops=(Hop(search_keywords(event), statement(event)),), thought=thought)  # fmt: skip


def personality_alignment(
    plan: LifePlan, rng: random.Random, moment: datetime
) -> Iterator[Question]:
    """Pairs of items, one reply that suits the user and one that does not; they differ in one style word only."""
    truth = plan.personality_at(moment)
    for trait, score in zip(TRAITS, truth.as_tuple(), strict=True):
        shown = [
            i for i, b in enumerate(plan.events)
            if b.time + 2 * SESSION_GAP < moment and (b.scores[TRAITS.index(trait)] - 3) * (score - 3) > 0
        ]  # fmt: skip
        settled = (
            moment - plan.drift > timedelta(days=5)
            or plan.before == plan.after
            or moment < plan.drift
        )
        if abs(score - 3) < 1 or len(shown) < 4 or not settled:
            continue
        mine = "high" if score > 3 else "low"
        for pole in ("low", "high"):
            word = lexicon.REPLY_STYLES[trait][pole]
            yield Question(
                "", plan.user, "Personality Alignment", "binary", moment, f"does a {word} reply suit me ?",
                ("yes", "no"), "yes" if pole == mine else "no", tuple(shown),
                thought=f"my {trait} {mine} takes {lexicon.REPLY_STYLES[trait][mine]} asked {word}",
            )  # fmt: skip


MAKERS = (  # each detail counts for one: in the paper a third of the questions need a picture (Table 6)
    *(partial(visual_detail_recall, details=(detail,)) for detail in DETAILS),
    semantic_information_recall,
    recall_by_period,
    Lookup("Explicit Intent Inference", "intent", "why do i need {key} ?", lambda _: lexicon.OCCASIONS),
    Lookup("Implicit Intent Recognition", "habit", "what should i pack today ?", knowledge="habit",
           asks=lambda event, moment: event.key == lexicon.WEEKDAYS[moment.weekday()]),
    latest_preference_recognition,
    Lookup("Interest Evolution Analysis", "preference", "why did {who} {key} change ?", lambda _: lexicon.CAUSES,
           field="cause", asks=lambda event, _: bool(event.cause)),
    Lookup("Implicit Preference Recommendation", "value", "which vehicle suits me ?", knowledge="value"),
    Lookup("Behavioral Pattern Recognition", "habit", "what do i do every {key} ?", lambda _: lexicon.HABITS),
    long_term_goal_tracking,
    relationship_recognition,
    Lookup("Relationship Dynamics Comprehension", "relation", "how should i write to {who} ?", knowledge="relation"),
    Lookup("Tiered Explanation Delivery", "skill", "how should {key} be explained to me ?", knowledge="level"),
    Lookup("Generalizing to New Scenarios", "preference", "where should i go first in a new town ?",
           knowledge="sport", asks=lambda event, _: event.key == "sport"),
    personality_alignment,
)  # fmt: skip


def make_questions(plan: LifePlan, n: int, alignment: int, seed: int = 0) -> list[Question]:
    """`n` questions of the choice tasks, spread evenly over tasks and at moments of their own, and `alignment` pairs of
    alignment items; fewer where the life is too short for more."""
    rng = random.Random(f"questions {plan.seed} {seed}")
    dates = sorted({event.time.date() for event in plan.events[8:]})
    moments = [
        datetime.combine(d + timedelta(days=i), time(h))
        for d in dates
        for i, h in ((0, 23), (1, 7), (14, 7))
    ]
    moments = [
        m for m in moments if all(abs(event.time - m) > 2 * SESSION_GAP for event in plan.events)
    ]
    moments = rng.sample(moments, min(max(16, n), len(moments)))
    others = [list(_chosen(maker, plan, rng, moments, 1 + n // 10)) for maker in MAKERS[:-1]]
    pairs = list(_chosen(personality_alignment, plan, rng, moments, alignment))
    rng.shuffle(others)
    chosen = [question for row in itertools.zip_longest(*others) for question in row if question][
        :n
    ]
    chosen = sorted([*chosen, *pairs], key=lambda q: q.time)
    return [replace(q, case=f"{plan.user}_{i:03d}") for i, q in enumerate(chosen)]


def _chosen(
    maker: Callable, plan: LifePlan, rng: random.Random, moments: list[datetime], wanted: int
) -> Iterator[Question]:
    """Up to `wanted` questions of one maker, none twice with the same answer; of a pair of items both."""
    made: dict[tuple[str, str], list[list[Question]]] = {}
    for moment in moments:
        questions = list(maker(plan, rng, moment))
        step = 2 if maker is personality_alignment else 1
        for group in (questions[i : i + step] for i in range(0, len(questions), step)):
            made.setdefault((group[0].text, group[0].answer), []).append(group)
    even = EVEN.get(next(iter(made.values()))[0][0].task) if made else None
    for turn in range(wanted):
        keys = [key for key in made if not even or key[1] == even[(turn + plan.seed) % len(even)]]
        if keys:
            yield from rng.choice(made.pop(rng.choice(keys)))
