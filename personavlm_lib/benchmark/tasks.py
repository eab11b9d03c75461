"""Question makers for the fourteen tasks: pure functions of the life plan (paper, Table 5).

Every question is answerable from its gold evidence turns. Personality Alignment asks yes or no
about one reply, two items per case; the other thirteen tasks have four options. Without the life
no option is more likely than another: all four come from one list from which plans draw uniformly.
Tasks with few answers (`EVEN`) first draw the answer, then a moment at which it is correct.
"""

import itertools
import random
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, time, timedelta
from functools import partial
from typing import NamedTuple

from personavlm_lib.agent.prompt_sets import periods
from personavlm_lib.benchmark.questions import Hop, Question
from personavlm_lib.memory.personality import NEUTRAL_SCORE
from personavlm_lib.memory.records import SESSION_GAP, TRAITS
from personavlm_lib.simulation import lexicon
from personavlm_lib.simulation.lexicon import Pool
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

Questions = Iterator[Question]
Maker = Callable[[LifePlan, random.Random, datetime], Questions]

DETAILS = ("color", "count", "side", "word")  # of pictures
LASTING = ("core", "preference", "friend", "relation", "value", "skill", "intent", "habit", "style")
# Tasks with few possible answers, and these answers: each is drawn equally often.
EVEN: dict[str, Callable[[Pool], Sequence[str]]] = {
    "Long-term Goal Tracking": lambda pool: lexicon.GOAL_STATES,
    "Tiered Explanation Delivery": lambda pool: list(pool.knowledge["level"].values()),
}
YES_NO = ("yes", "no")
NO_CASE = ""  # `make_questions` numbers the cases at the end


def _past_events(plan: LifePlan, moment: datetime, *kinds: str) -> list[tuple[int, LifeEvent]]:
    """Events more than two session gaps before `moment`, of these kinds or of any, with indices."""
    past = []
    for index, event in enumerate(plan.events):
        wanted = event.kind in kinds or not kinds
        if wanted and event.time + 2 * SESSION_GAP < moment:
            past.append((index, event))
    return past


def _newest_facts(plan: LifePlan, moment: datetime) -> list[tuple[int, LifeEvent]]:
    """The newest past event of each lasting fact (kind, who, key), with its turn index."""
    newest = {}
    for index, event in _past_events(plan, moment, *LASTING):
        newest[event.kind, event.who, event.key] = index
    return [(index, plan.events[index]) for index in newest.values()]


def _mentioned_values(plan: LifePlan, key: str) -> list[str]:
    return [event.value for event in plan.events if event.key == key]


def _draw_options(
    rng: random.Random, answer: str, plausible: Iterable[str], pool: Iterable[str]
) -> tuple[str, ...]:
    """The answer and three other options: `plausible` ones first, then others of `pool`."""
    plausible = sorted(set(plausible) - {answer})
    others = sorted(set(pool) - set(plausible) - {answer})
    distractors = rng.sample(plausible, min(3, len(plausible)))
    distractors += rng.sample(others, min(3, len(others)))
    options = [answer, *distractors[:3]]
    return tuple(rng.sample(options, 4))


class _Solution(NamedTuple):
    """The answer and how a reasoner reaches it: the last fields of `Question`."""

    answer: str
    evidence: tuple[int, ...]
    hops: tuple[Hop, ...]
    thought: str
    history: tuple[str, ...] = ()


@dataclass(frozen=True)
class Lookup:
    """A maker of questions that one current fact answers, directly or by common knowledge.

    `text` is a template over the event's fields. The answer is the event's `field`, or, if
    `knowledge` names a table of the pool's knowledge, the table's entry for it. `answers` lists the
    possible answers of a pool unless a table does. `applies` selects events that suit the moment.
    """

    task: str
    kind: str
    text: str
    answers: Callable[[Pool, LifeEvent], Iterable[str]] = lambda pool, event: ()
    knowledge: str = ""
    field: str = "value"
    applies: Callable[[LifeEvent, datetime], bool] = lambda event, moment: True

    def __call__(self, plan: LifePlan, rng: random.Random, moment: datetime) -> Questions:
        for index, event in _newest_facts(plan, moment):
            if event.kind == self.kind and self.applies(event, moment):
                yield self._make(plan, rng, moment, index)

    def _make(self, plan: LifePlan, rng: random.Random, moment: datetime, index: int) -> Question:
        event = plan.events[index]
        fact = statement(event)
        answer = getattr(event, self.field)
        plausible = self._comparable_values(plan, event)
        pool = self.answers(plan.pool, event)
        thought = fact
        if self.knowledge:
            inferred = plan.pool.knowledge[self.knowledge]
            answer = inferred[answer]
            plausible = [inferred[value] for value in plausible if value in inferred]
            pool = inferred.values()
            fact_alone = fact.split(" because ")[0]
            thought = f"{fact_alone} takes {answer}"
        hops: tuple[Hop, ...] = (Hop(search_keywords(event), fact),)
        if event.kind == "core":
            # The profile shows the core facts, without the cause of their last change.
            hops = ()
            thought = bare_statement(event)
        text = self.text.format(**vars(event))
        options = _draw_options(rng, answer, plausible, pool)
        solution = _Solution(answer, (index,), hops, thought, _fact_history(plan, index))
        return Question(NO_CASE, plan.user, self.task, "choice", moment, text, options, *solution)

    def _comparable_values(self, plan: LifePlan, event: LifeEvent) -> list[str]:
        """Values of `field` in this life that could be mistaken for that of `event`."""
        values = []
        for other in plan.events:
            same_key = other.key == event.key
            # Each habit and each intent has its own key; the causes of all changes are comparable.
            same_kind = other.kind == event.kind and event.kind in ("habit", "intent")
            value = getattr(other, self.field)
            if value and (same_key or same_kind or self.field == "cause"):
                values.append(value)
        return values


def _fact_history(plan: LifePlan, index: int) -> tuple[str, ...]:
    """All statements of the fact that event `index` states, oldest first, up to that event."""
    newest = plan.events[index]
    fact = (newest.kind, newest.who, newest.key)
    so_far = plan.events[: index + 1]
    return tuple(statement(e) for e in so_far if (e.kind, e.who, e.key) == fact)


class _PictureDetail(NamedTuple):
    """A question about a picture, the last reasoning step, the answer, and all possible answers."""

    text: str
    thought: str
    answer: str
    pool: Sequence[str]


def _picture_details(event: LifeEvent, shown_once: bool) -> dict[str, _PictureDetail]:
    """The possible questions about the picture of an event, by DETAILS.

    The second picture of a thing may have another count or no neighbor, so these two details are
    available only if the thing is `shown_once`.
    """
    assert event.scene is not None  # every image event has one
    name = statement(event)
    # A reasoner finds the picture and lists all of it before it picks one thing.
    look = f"look at {name} {listed(event.scene)}"
    text = f"what color is {name} ?"
    thought = f"{look} {name} is {event.value}"
    details = {"color": _PictureDetail(text, thought, event.value, list(COLORS))}
    word = event.scene.word
    kinds = [thing.kind for thing in event.scene.things]
    distinct = len(set(kinds))
    if word:
        text = f"what is on {name} ?"
        thought = f"{look} {name} says {word}"
        details["word"] = _PictureDetail(text, thought, word, SIGN_WORDS)
    elif shown_once and distinct == 1:
        count = COUNTS[len(kinds) - 1]
        text = f"how many of {name} ?"
        thought = f"{look} {count} {name}"
        details["count"] = _PictureDetail(text, thought, count, COUNTS)
    if shown_once and distinct == 2:
        left, right = kinds
        if right == event.key:
            side = "left"
            neighbor = left
        else:
            side = "right"
            neighbor = right
        text = f"what is {side} of {name} ?"
        thought = f"{look} {side} of {name} is {neighbor}"
        others = [kind for kind in LOOSE if kind != event.key]
        details["side"] = _PictureDetail(text, thought, neighbor, others)
    return details


def visual_detail_recall(
    plan: LifePlan, rng: random.Random, moment: datetime, details: Collection[str] = DETAILS
) -> Questions:
    """Questions about `details` of pictures: color, count, neighboring thing, word of a sign."""
    task = "Visual Detail Recall"
    pictures = _past_events(plan, moment, "image")
    showings = Counter((event.who, event.key) for _, event in pictures)
    colors = [thing.color for event in plan.events if event.scene for thing in event.scene.things]
    for index, event in pictures:
        name = statement(event)
        shown_once = showings[event.who, event.key] == 1
        available = _picture_details(event, shown_once)
        hop = Hop(name, f"{name} <img>")
        for detail in details:
            if detail not in available:
                continue
            text, thought, answer, pool = available[detail]
            plausible = [color for color in colors if color in pool]
            options = _draw_options(rng, answer, plausible, pool)
            solution = _Solution(answer, (index,), (hop,), thought)
            yield Question(NO_CASE, plan.user, task, "choice", moment, text, options, *solution)


def _outings(plan: LifePlan, moment: datetime) -> Iterator[tuple[int, LifeEvent, list[LifeEvent]]]:
    """Every past outing with a friend: its turn index, the event, and others of the same key."""
    outings = _past_events(plan, moment, "event")
    for index, event in outings:
        others = [other for _, other in outings if other.key == event.key and other is not event]
        yield index, event, others


def recall_by_period(plan: LifePlan, rng: random.Random, moment: datetime) -> Questions:
    """Questions about the only outing of its kind in a named period, such as last sunday."""
    task = "Semantic Information Recall"
    for index, event, others in _outings(plan, moment):
        for period, (start, end) in periods(moment).items():
            if not start <= event.time <= end:
                continue
            if any(start <= other.time <= end for other in others):
                continue
            plausible = [other.value for other in others]
            fact = statement(event)
            hop = Hop(search_keywords(event), fact, start, end)
            solution = _Solution(event.value, (index,), (hop,), fact)
            text = f"what did i {event.key} {period} ?"
            options = _draw_options(rng, event.value, plausible, plan.pool.events[event.key])
            yield Question(NO_CASE, plan.user, task, "choice", moment, text, options, *solution)


def outing_recall(plan: LifePlan, rng: random.Random, moment: datetime) -> Questions:
    """Questions about an outing's companion, and two-hop ones about that companion's tastes."""
    task = "Semantic Information Recall"
    tastes = [(i, fact) for i, fact in _newest_facts(plan, moment) if fact.kind == "friend"]
    for index, event, others in _outings(plan, moment):
        if any(other.value == event.value for other in others):
            continue
        outing = f"i {event.key} {event.value}"
        friend = event.friend
        fact = statement(event)
        outing_hop = Hop(f"{search_keywords(event)} {event.value}", fact)
        solution = _Solution(friend, (index,), (outing_hop,), fact)
        text = f"who did {outing} with ?"
        options = _draw_options(rng, friend, plan.friends, plan.pool.names)
        yield Question(NO_CASE, plan.user, task, "choice", moment, text, options, *solution)
        for taste_index, taste in tastes:
            if taste.who != friend:
                continue
            plausible = _mentioned_values(plan, taste.key)
            pool = plan.pool.preferences[taste.key]
            fact = statement(taste)
            taste_hop = Hop(search_keywords(taste), fact)
            hops = (outing_hop, taste_hop)
            solution = _Solution(taste.value, (index, taste_index), hops, fact)
            text = f"what is the {taste.key} of who {outing} with ?"
            options = _draw_options(rng, taste.value, plausible, pool)
            yield Question(NO_CASE, plan.user, task, "choice", moment, text, options, *solution)


def relationship_recognition(plan: LifePlan, rng: random.Random, moment: datetime) -> Questions:
    """The question which friend the user meets most, if one leads clearly; it needs a count."""
    task = "Relationship Recognition"
    outings = _past_events(plan, moment, "event")
    if len(outings) < 3:
        return
    ranking = Counter(event.friend for _, event in outings).most_common()
    closest, meetings = ranking[0]
    if len(ranking) > 1:
        _, runner_up_meetings = ranking[1]
        lead = meetings - runner_up_meetings
        if lead < 1 + len(outings) // 8:
            return
    keywords = " ".join([*plan.pool.events, "with"])
    evidence = []
    hops = []
    for index, event in outings:
        evidence.append(index)
        hops.append(Hop(keywords, statement(event), note=f"with {event.friend}"))
    thought = " ".join(hop.note for hop in hops)
    solution = _Solution(closest, tuple(evidence), tuple(hops), thought)
    text = "who do i meet most ?"
    options = _draw_options(rng, closest, plan.friends, plan.pool.names)
    yield Question(NO_CASE, plan.user, task, "choice", moment, text, options, *solution)


def _possible_values(pool: Pool, event: LifeEvent) -> Iterable[str]:
    values = pool.core | pool.preferences | {"style": list(PICTURE_STYLES)}
    return values[event.key]


def _has_cause(event: LifeEvent, moment: datetime) -> bool:
    return bool(event.cause)


def semantic_information_recall(plan: LifePlan, rng: random.Random, moment: datetime) -> Questions:
    """Questions about friends' tastes, core facts, the preferred picture style, and outings."""
    task = "Semantic Information Recall"
    for kind in ("friend", "core", "style"):
        lookup = Lookup(task, kind, "what is {who} {key} ?", _possible_values)
        yield from lookup(plan, rng, moment)
    yield from outing_recall(plan, rng, moment)


def latest_preference_recognition(
    plan: LifePlan, rng: random.Random, moment: datetime
) -> Questions:
    """Questions about the current value of each preference, and of each core fact that changed."""
    task = "Latest Preference Recognition"
    text = "what is {who} {key} now ?"
    preferences = Lookup(task, "preference", text, _possible_values)
    changed_facts = Lookup(task, "core", text, _possible_values, applies=_has_cause)
    yield from preferences(plan, rng, moment)
    yield from changed_facts(plan, rng, moment)


def long_term_goal_tracking(plan: LifePlan, rng: random.Random, moment: datetime) -> Questions:
    """The state of each goal: reached, dropped, open, or unknown if it was never mentioned."""
    task = "Long-term Goal Tracking"
    kinds = ("goal", "goal_end")
    last_mention = {event.value: event for _, event in _past_events(plan, moment, *kinds)}
    mentioned = _mentioned_values(plan, "")
    never_mentioned = rng.choice([goal for goal in plan.pool.goals if goal not in mentioned])
    for goal in [*last_mention, never_mentioned]:
        if goal in last_mention:
            event = last_mention[goal]
            state = event.key or "open"
            thought = statement(event)
        else:
            event = LifeEvent(moment, "goal", value=goal)
            state = "unknown"
            thought = f"{search_keywords(event)} is unknown"
        evidence = []
        for index, other in enumerate(plan.events):
            about_goal = other.kind in kinds and other.value == goal
            if about_goal and other.time < moment:
                evidence.append(index)
        hop = Hop(search_keywords(event), statement(event))
        solution = _Solution(state, tuple(evidence), (hop,), thought)
        text = f"what became of my goal {goal} ?"
        options = _draw_options(rng, state, [], lexicon.GOAL_STATES)
        yield Question(NO_CASE, plan.user, task, "choice", moment, text, options, *solution)


def personality_alignment(plan: LifePlan, rng: random.Random, moment: datetime) -> Questions:
    """Pairs of items: one reply style that suits the user and its opposite, one word apart.

    An item asks about a trait only if its score is at least one point from neutral, four or more
    past turns show it, and the personality has not drifted within the last five days.
    """
    task = "Personality Alignment"
    no_drift_yet = plan.before == plan.after or moment < plan.drift
    settled = no_drift_yet or moment - plan.drift > timedelta(days=5)
    if not settled:
        return
    scores = plan.personality_at(moment).as_tuple()
    for position, trait in enumerate(TRAITS):
        deviation = scores[position] - NEUTRAL_SCORE
        evidence = []
        for index, event in _past_events(plan, moment):
            if (event.scores[position] - NEUTRAL_SCORE) * deviation > 0:
                evidence.append(index)
        if abs(deviation) < 1 or len(evidence) < 4:
            continue
        level = "high" if deviation > 0 else "low"
        suitable = lexicon.REPLY_STYLES[trait][level]
        for pole in ("low", "high"):
            style = lexicon.REPLY_STYLES[trait][pole]
            text = f"does a {style} reply suit me ?"
            answer = "yes" if pole == level else "no"
            thought = f"my {trait} {level} takes {suitable} asked {style}"
            solution = _Solution(answer, tuple(evidence), (), thought)
            yield Question(NO_CASE, plan.user, task, "binary", moment, text, YES_NO, *solution)


def _is_habit_of_the_day(event: LifeEvent, moment: datetime) -> bool:
    return event.key == lexicon.WEEKDAYS[moment.weekday()]


MAKERS: tuple[Maker, ...] = (
    # One maker per picture detail: a third of the paper's questions need a picture (Table 6).
    *(partial(visual_detail_recall, details=(detail,)) for detail in DETAILS),
    semantic_information_recall,
    recall_by_period,
    Lookup("Explicit Intent Inference", "intent", "why do i need {key} ?",
           lambda pool, _: pool.occasions),
    Lookup("Implicit Intent Recognition", "habit", "what should i pack today ?", knowledge="habit",
           applies=_is_habit_of_the_day),
    latest_preference_recognition,
    Lookup("Interest Evolution Analysis", "preference", "why did {who} {key} change ?",
           lambda pool, event: pool.causes[event.key], field="cause", applies=_has_cause),
    Lookup("Implicit Preference Recommendation", "value", "which vehicle suits me ?",
           knowledge="value"),
    Lookup("Behavioral Pattern Recognition", "habit", "what do i do every {key} ?",
           lambda pool, _: pool.habits),
    long_term_goal_tracking,
    relationship_recognition,
    Lookup("Relationship Dynamics Comprehension", "relation", "how should i write to {who} ?",
           knowledge="relation"),
    Lookup("Tiered Explanation Delivery", "skill", "how should {key} be explained to me ?",
           knowledge="level"),
    Lookup("Generalizing to New Scenarios", "preference", "where should i go first in a new town ?",
           knowledge="sport", applies=lambda event, _: event.key == "sport"),
    personality_alignment,  # last: callers that want choice questions only use MAKERS[:-1]
)  # fmt: skip


def make_questions(plan: LifePlan, n: int, alignment: int, seed: int = 0) -> list[Question]:
    """`n` choice questions, spread evenly over tasks and moments, and `alignment` pairs of items.

    They are sorted by time and numbered. A life that is too short yields fewer.
    """
    rng = random.Random(f"questions {plan.seed} {seed}")
    moments = _quiet_moments(plan)
    moments = rng.sample(moments, min(max(16, n), len(moments)))
    per_maker = 1 + n // 10
    by_maker = [_choose(maker, plan, rng, moments, per_maker) for maker in MAKERS[:-1]]
    pairs = _choose(personality_alignment, plan, rng, moments, alignment)
    rng.shuffle(by_maker)
    choices = []
    for round_ in itertools.zip_longest(*by_maker):
        choices += [question for question in round_ if question]
    questions = sorted([*choices[:n], *pairs], key=lambda q: q.time)
    return [replace(q, case=f"{plan.user}_{i:03d}") for i, q in enumerate(questions)]


def _quiet_moments(plan: LifePlan) -> list[datetime]:
    """Moments far from any event: late on days with events, the next morning, two weeks later."""
    dates = sorted({event.time.date() for event in plan.events[8:]})
    moments = []
    for date in dates:
        for days, hour in ((0, 23), (1, 7), (14, 7)):
            moment = datetime.combine(date + timedelta(days=days), time(hour))
            distances = [abs(event.time - moment) for event in plan.events]
            if min(distances) > 2 * SESSION_GAP:
                moments.append(moment)
    return moments


def _choose(
    maker: Maker, plan: LifePlan, rng: random.Random, moments: list[datetime], wanted: int
) -> list[Question]:
    """Up to `wanted` questions or pairs of one maker, no two with the same text and answer."""
    candidates = _candidates(maker, plan, rng, moments)
    if not candidates:
        return []
    first_group = next(iter(candidates.values()))[0]
    even_answers = EVEN.get(first_group[0].task, lambda pool: ())(plan.pool)
    chosen = []
    for turn in range(wanted):
        keys = list(candidates)
        if even_answers:
            due_answer = even_answers[(turn + plan.seed) % len(even_answers)]
            keys = [(text, answer) for text, answer in keys if answer == due_answer]
        if keys:
            groups = candidates.pop(rng.choice(keys))
            chosen += rng.choice(groups)
    return chosen


def _candidates(
    maker: Maker, plan: LifePlan, rng: random.Random, moments: list[datetime]
) -> dict[tuple[str, str], list[list[Question]]]:
    """(text, answer) -> groups of questions, one group per moment: single questions, or pairs."""
    group_size = 2 if maker is personality_alignment else 1
    candidates: dict[tuple[str, str], list[list[Question]]] = {}
    for moment in moments:
        questions = list(maker(plan, rng, moment))
        for start in range(0, len(questions), group_size):
            group = questions[start : start + group_size]
            key = (group[0].text, group[0].answer)
            candidates.setdefault(key, []).append(group)
    return candidates
