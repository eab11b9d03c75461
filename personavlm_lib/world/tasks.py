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

from personavlm_lib.agent.prompts import periods
from personavlm_lib.memory.records import SESSION_GAP, TRAITS
from personavlm_lib.world import lexicon
from personavlm_lib.world.plan import Beat, LifePlan
from personavlm_lib.world.questions import Hop, Question
from personavlm_lib.world.scenes import COLORS, COUNTS, LOOSE, SIGN_WORDS, STYLES, listed
from personavlm_lib.world.tellers import fact, keywords, sentence

VALUES_OF = lexicon.CORE | lexicon.PREFERENCES | {"style": STYLES}  # every value that a key of these kinds can have
DETAILS = ("color", "count", "side", "word")  # of pictures
LASTING = ("core", "preference", "friend", "relation", "value", "skill", "intent", "habit", "style")
# Tasks whose answers are few: each is drawn as often as the others.
EVEN = {
    "Long-term Goal Tracking": lexicon.GOAL_STATES,
    "Tiered Explanation Delivery": tuple(lexicon.KNOWLEDGE["level"].values()),
}


def _newest(plan: LifePlan, moment: datetime) -> list[tuple[int, Beat]]:
    """The newest statement of each (kind, who, key), with its turn, made a session gap or more before `moment`."""
    newest = {}
    for index, beat in enumerate(plan.beats):
        if beat.time + 2 * SESSION_GAP < moment and beat.kind in LASTING:
            newest[beat.kind, beat.who, beat.key] = index
    return [(index, plan.beats[index]) for index in newest.values()]


def _options(rng: random.Random, answer: str, plausible: list[str], pool: list[str]) -> tuple[str, ...]:
    """Four options: the answer, then what this user also said or knew, then other words of the same kind."""
    plausible = sorted(set(plausible) - {answer})
    others = sorted(set(pool) - set(plausible) - {answer})
    chosen = (rng.sample(plausible, min(3, len(plausible))) + rng.sample(others, min(3, len(others))))[:3]
    return tuple(rng.sample([answer, *chosen], 4))


def _make(plan: LifePlan, rng: random.Random, task: str, moment: datetime, text: str, answer: str, **rest) -> Question:
    plausible, pool = rest.pop("plausible", []), rest.pop("pool")
    return Question("", plan.user, task, "choice", moment, text, _options(rng, answer, plausible, pool), answer, **rest)


def _said(plan: LifePlan, key: str) -> list[str]:
    return [beat.value for beat in plan.beats if beat.key == key]


@dataclass(frozen=True)
class Lookup:
    """A maker of questions that one newest fact of a kind answers: as it stands, or by what is commonly known of it.

    `text` is filled from the beat. `knowledge` names the table that leads from the beat's value to the answer; without
    it the answer is the beat's `field`. `asks` says of which beats (given the moment) the question can be asked.
    """

    task: str
    kind: str
    text: str
    pool: Callable[[Beat], Iterable[str]] = lambda beat: ()
    knowledge: str = ""
    field: str = "value"
    asks: Callable[[Beat, datetime], bool] = lambda beat, moment: True

    def __call__(self, plan: LifePlan, rng: random.Random, moment: datetime) -> Iterator[Question]:
        known = lexicon.KNOWLEDGE.get(self.knowledge, {})
        for index, beat in _newest(plan, moment):
            if beat.kind != self.kind or not self.asks(beat, moment):
                continue
            alike = [
                b for b in plan.beats
                if b.key == beat.key or b.kind == beat.kind in ("habit", "intent") or self.field == "cause"
            ]  # fmt: skip
            said = [getattr(b, self.field) for b in alike if getattr(b, self.field)]
            stated, answer, pool = sentence(beat), getattr(beat, self.field), list(self.pool(beat))
            if known:
                said, pool = [known[value] for value in said if value in known], list(known.values())
                stated, answer = f"{stated.split(' because ')[0]} takes {known[answer]}", known[answer]
            # The profile holds the core facts, and shows them without what they came to change for.
            hops = () if beat.kind == "core" else (Hop(keywords(beat), sentence(beat)),)
            thought = stated if hops else fact(beat)
            about = (beat.kind, beat.who, beat.key)
            told = tuple(sentence(b) for b in plan.beats[: index + 1] if (b.kind, b.who, b.key) == about)
            yield _make(plan, rng, self.task, moment, self.text.format(**vars(beat)), answer, plausible=said, pool=pool,
                        evidence=(index,), hops=hops, thought=thought, told=told)  # fmt: skip


def visual_detail_recall(
    plan: LifePlan, rng: random.Random, moment: datetime, details: Collection[str] = DETAILS
) -> Iterator[Question]:
    """What was to be seen, by `details`: a thing's colour, how many there were, what stood beside it, a sign's word."""
    told = [(i, b) for i, b in enumerate(plan.beats) if b.kind == "image" and b.time + 2 * SESSION_GAP < moment]
    for index, beat in told:
        name = sentence(beat)
        seen = f"look at {name} {listed(beat.scene)}"  # the picture is found, and all of it named, before one is chosen
        kinds = [thing.kind for thing in beat.scene.things]
        alone = sum((b.who, b.key) == (beat.who, beat.key) for _, b in told) == 1  # seen again it may have come alone
        asked = {"color": (f"what color is {name} ?", f"{seen} {name} is {beat.value}", beat.value, COLORS)}
        if beat.scene.word:
            asked["word"] = f"what is on {name} ?", f"{seen} {name} says {beat.scene.word}", beat.scene.word, SIGN_WORDS
        elif alone and len(set(kinds)) == 1:
            count = COUNTS[len(kinds) - 1]
            asked["count"] = f"how many of {name} ?", f"{seen} {count} {name}", count, COUNTS
        if len(set(kinds)) == 2 and alone:
            side = "left" if kinds[1] == beat.key else "right"
            other = kinds[kinds[0] == beat.key]
            asked["side"] = (f"what is {side} of {name} ?", f"{seen} {side} of {name} is {other}", other,
                             [kind for kind in LOOSE if kind != beat.key])  # fmt: skip
        shown = [thing.color for b in plan.beats if b.scene for thing in b.scene.things]
        for text, thought, answer, pool in (asked[detail] for detail in details if detail in asked):
            yield _make(
                plan, rng, "Visual Detail Recall", moment, text, answer, plausible=[c for c in shown if c in pool],
                pool=list(pool), evidence=(index,), hops=(Hop(name, f"{name} <img>"),), thought=thought,
            )  # fmt: skip


def _events(plan: LifePlan, moment: datetime) -> Iterator[tuple[int, Beat, list[Beat]]]:
    """Every event that is over, with its turn and the others of its kind."""
    events = [(i, b) for i, b in enumerate(plan.beats) if b.kind == "event" and b.time + 2 * SESSION_GAP < moment]
    for index, beat in events:
        yield index, beat, [b for _, b in events if b.key == beat.key and b is not beat]


def recall_by_period(plan: LifePlan, rng: random.Random, moment: datetime) -> Iterator[Question]:
    """What happened this morning, yesterday, last sunday, two weeks ago: nothing else of its kind did then."""
    for index, beat, alike in _events(plan, moment):
        for period, (start, end) in periods(moment).items():
            if start <= beat.time <= end and not any(start <= b.time <= end for b in alike):
                text, hop = f"what did i {beat.key} {period} ?", Hop(keywords(beat), sentence(beat), start, end)
                yield _make(plan, rng, "Semantic Information Recall", moment, text, beat.value, hops=(hop,),
                            plausible=[b.value for b in alike], pool=lexicon.EVENTS[beat.key], evidence=(index,),
                            thought=sentence(beat))  # fmt: skip


def events_recall(plan: LifePlan, rng: random.Random, moment: datetime) -> Iterator[Question]:
    """Events by their companion, and the taste of a friend who is known by an event: two things to find."""
    task, newest = "Semantic Information Recall", _newest(plan, moment)
    for index, beat, alike in _events(plan, moment):
        if all(b.value != beat.value for b in alike):
            hop = Hop(f"{keywords(beat)} {beat.value}", sentence(beat))
            text = f"who did i {beat.key} {beat.value} with ?"
            yield _make(plan, rng, task, moment, text, beat.friend, plausible=list(plan.friends),
                        pool=list(lexicon.NAMES), evidence=(index,), hops=(hop,), thought=sentence(beat))  # fmt: skip
            for known, taste in newest:
                if taste.kind == "friend" and taste.who == beat.friend:
                    text = f"what is the {taste.key} of who i {beat.key} {beat.value} with ?"
                    yield _make(plan, rng, task, moment, text, taste.value, plausible=_said(plan, taste.key),
                                pool=lexicon.PREFERENCES[taste.key], evidence=(index, known),
                                hops=(hop, Hop(keywords(taste), sentence(taste))),
                                thought=sentence(taste))  # fmt: skip


def relationship_recognition(plan: LifePlan, rng: random.Random, moment: datetime) -> Iterator[Question]:
    """The friend who comes up most: all that happened with friends is to be counted."""
    told = [(i, b) for i, b in enumerate(plan.beats) if b.kind == "event" and b.time + 2 * SESSION_GAP < moment]
    met = Counter(beat.friend for _, beat in told).most_common()
    if len(told) < 3 or len(met) > 1 and met[0][1] < met[1][1] + 1 + len(told) // 8:
        return
    words = f"{' '.join(lexicon.EVENTS)} with"  # of all that one does with friends
    hops = tuple(Hop(words, sentence(beat), note=f"with {beat.friend}") for _, beat in told)
    yield _make(plan, rng, "Relationship Recognition", moment, "who do i meet most ?", met[0][0],
                plausible=list(plan.friends), pool=list(lexicon.NAMES), evidence=tuple(i for i, _ in told), hops=hops,
                thought=" ".join(hop.note for hop in hops))  # fmt: skip


def semantic_information_recall(plan: LifePlan, rng: random.Random, moment: datetime) -> Iterator[Question]:
    for kind in ("friend", "core", "style"):
        yield from Lookup(
            "Semantic Information Recall", kind, "what is {who} {key} ?", lambda beat: VALUES_OF[beat.key]
        )(plan, rng, moment)
    yield from events_recall(plan, rng, moment)


def latest_preference_recognition(plan: LifePlan, rng: random.Random, moment: datetime) -> Iterator[Question]:
    for kind in ("preference", "core"):  # of the core facts only those that have changed
        yield from Lookup(
            "Latest Preference Recognition", kind, "what is {who} {key} now ?", lambda beat: VALUES_OF[beat.key],
            asks=lambda beat, _: beat.kind == "preference" or bool(beat.cause),
        )(plan, rng, moment)  # fmt: skip


def long_term_goal_tracking(plan: LifePlan, rng: random.Random, moment: datetime) -> Iterator[Question]:
    """What became of a goal: reached, dropped, still open, or unknown because it was never heard of."""
    told = [(i, b) for i, b in enumerate(plan.beats) if b.kind in ("goal", "goal_end") and b.time < moment]
    last = {beat.value: (index, beat) for index, beat in told if beat.time + 2 * SESSION_GAP < moment}
    never = rng.choice([goal for goal in lexicon.GOALS if goal not in _said(plan, "")])
    for goal in [*last, never]:
        index, beat = last.get(goal, (None, Beat(moment, "goal", value=goal)))
        state = "unknown" if index is None else beat.key or "open"
        thought = f"{keywords(beat)} is unknown" if index is None else sentence(beat)
        yield _make(plan, rng, "Long-term Goal Tracking", moment, f"what became of my goal {goal} ?", state,
                    pool=lexicon.GOAL_STATES, evidence=tuple(i for i, b in told if b.value == goal),
                    hops=(Hop(keywords(beat), sentence(beat)),), thought=thought)  # fmt: skip


def personality_alignment(plan: LifePlan, rng: random.Random, moment: datetime) -> Iterator[Question]:
    """Pairs of items, one reply that suits the user and one that does not; they differ in one style word only."""
    truth = plan.personality_at(moment)
    for trait, score in zip(TRAITS, truth.as_tuple(), strict=True):
        shown = [
            i for i, b in enumerate(plan.beats)
            if b.time + 2 * SESSION_GAP < moment and (b.scores[TRAITS.index(trait)] - 3) * (score - 3) > 0
        ]  # fmt: skip
        settled = moment - plan.drift > timedelta(days=5) or plan.before == plan.after or moment < plan.drift
        if abs(score - 3) < 1 or len(shown) < 4 or not settled:
            continue
        mine = "high" if score > 3 else "low"
        for pole in ("low", "high"):
            word = lexicon.STYLES[trait][pole]
            yield Question(
                "", plan.user, "Personality Alignment", "binary", moment, f"does a {word} reply suit me ?",
                ("yes", "no"), "yes" if pole == mine else "no", tuple(shown),
                thought=f"my {trait} {mine} takes {lexicon.STYLES[trait][mine]} asked {word}",
            )  # fmt: skip


MAKERS = (  # each detail counts for one: in the paper a third of the questions need a picture (Table 6)
    *(partial(visual_detail_recall, details=(detail,)) for detail in DETAILS),
    semantic_information_recall,
    recall_by_period,
    Lookup("Explicit Intent Inference", "intent", "why do i need {key} ?", lambda _: lexicon.OCCASIONS),
    Lookup("Implicit Intent Recognition", "habit", "what should i pack today ?", knowledge="habit",
           asks=lambda beat, moment: beat.key == lexicon.WEEKDAYS[moment.weekday()]),
    latest_preference_recognition,
    Lookup("Interest Evolution Analysis", "preference", "why did {who} {key} change ?", lambda _: lexicon.CAUSES,
           field="cause", asks=lambda beat, _: bool(beat.cause)),
    Lookup("Implicit Preference Recommendation", "value", "which vehicle suits me ?", knowledge="value"),
    Lookup("Behavioral Pattern Recognition", "habit", "what do i do every {key} ?", lambda _: lexicon.HABITS),
    long_term_goal_tracking,
    relationship_recognition,
    Lookup("Relationship Dynamics Comprehension", "relation", "how should i write to {who} ?", knowledge="relation"),
    Lookup("Tiered Explanation Delivery", "skill", "how should {key} be explained to me ?", knowledge="level"),
    Lookup("Generalizing to New Scenarios", "preference", "where should i go first in a new town ?",
           knowledge="sport", asks=lambda beat, _: beat.key == "sport"),
    personality_alignment,
)  # fmt: skip


def ask(plan: LifePlan, n: int, alignment: int, seed: int = 0) -> list[Question]:
    """`n` questions of the choice tasks, spread evenly over tasks and at moments of their own, and `alignment` pairs of
    alignment items; fewer where the life is too short for more."""
    rng = random.Random(f"questions {plan.seed} {seed}")
    dates = sorted({beat.time.date() for beat in plan.beats[8:]})
    moments = [datetime.combine(d + timedelta(days=i), time(h)) for d in dates for i, h in ((0, 23), (1, 7), (14, 7))]
    moments = [m for m in moments if all(abs(beat.time - m) > 2 * SESSION_GAP for beat in plan.beats)]
    moments = rng.sample(moments, min(max(16, n), len(moments)))
    others = [list(_chosen(maker, plan, rng, moments, 1 + n // 10)) for maker in MAKERS[:-1]]
    pairs = list(_chosen(personality_alignment, plan, rng, moments, alignment))
    rng.shuffle(others)
    chosen = [question for row in itertools.zip_longest(*others) for question in row if question][:n]
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
