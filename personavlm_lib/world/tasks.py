"""Question makers: pure functions of the plan, each answerable from gold evidence turns (paper, Table 5).

Thirteen of the paper's fourteen tasks; Relationship Recognition, which is counting, is not among them. Personality
Alignment is yes or no to one reply, two items a case; all others have four options.
"""

import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime, time, timedelta

from personavlm_lib.memory.records import SESSION_GAP, TRAITS
from personavlm_lib.world import lexicon
from personavlm_lib.world.plan import Beat, LifePlan
from personavlm_lib.world.questions import Hop, Question
from personavlm_lib.world.scenes import COLORS
from personavlm_lib.world.tellers import fact, keywords, sentence

VALUES_OF = lexicon.CORE | lexicon.PREFERENCES  # every value that a key of these kinds can have
LASTING = ("core", "preference", "friend", "relation", "value", "skill", "intent", "habit")


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
    chosen = (rng.sample(plausible, len(plausible)) + rng.sample(others, len(others)))[:3]
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
                stated, answer = f"{stated} {answer} takes {known[answer]}", known[answer]
            # The profile holds the core facts, and shows them without what they came to change for.
            hops = () if beat.kind == "core" else (Hop(keywords(beat), sentence(beat)),)
            thought = stated if hops else fact(beat)
            yield _make(plan, rng, self.task, moment, self.text.format(**vars(beat)), answer, plausible=said, pool=pool,
                        evidence=(index,), hops=hops, thought=thought)  # fmt: skip


def visual_detail_recall(plan: LifePlan, rng: random.Random, moment: datetime) -> Iterator[Question]:
    for index, beat in enumerate(plan.beats):
        if beat.kind == "image" and beat.time + 2 * SESSION_GAP < moment:
            shown = [thing.color for b in plan.beats if b.scene for thing in b.scene.things]
            yield _make(
                plan, rng, "Visual Detail Recall", moment, f"what color is {beat.who} {beat.key} ?", beat.value,
                plausible=shown, pool=list(COLORS), evidence=(index,),
                hops=(Hop(sentence(beat), f"{sentence(beat)} <img>"),),
                thought=f"{sentence(beat)} is {beat.value}",
            )  # fmt: skip


def _event_hop(beat: Beat, moment: datetime) -> Hop:
    """Looks for an event by its verb, and by its day where the question names one."""
    day = datetime.combine(beat.time.date(), time())
    recent = timedelta(0) < datetime.combine(moment.date(), time()) - day < timedelta(days=7)
    if not recent:
        return Hop(keywords(beat), sentence(beat))
    return Hop(keywords(beat), sentence(beat), day, day + timedelta(hours=23, minutes=59))


def events_recall(plan: LifePlan, rng: random.Random, moment: datetime) -> Iterator[Question]:
    """Events by their day or companion, and the taste of a friend who is known by an event: two things to find."""
    task = "Semantic Information Recall"
    events = [(i, b) for i, b in enumerate(plan.beats) if b.kind == "event" and b.time + 2 * SESSION_GAP < moment]
    for index, beat in events:
        hop = _event_hop(beat, moment)
        alike = [b for _, b in events if b.key == beat.key and b is not beat]
        common = dict(plausible=[b.value for b in alike], pool=lexicon.EVENTS[beat.key], evidence=(index,))
        if hop.start and not any(b.time.date() == beat.time.date() for b in alike):
            day = lexicon.WEEKDAYS[beat.time.weekday()]
            text = f"what did i {beat.key} on {day} ?"
            yield _make(plan, rng, task, moment, text, beat.value, hops=(hop,), thought=sentence(beat), **common)
        if not alike:
            anywhen = Hop(keywords(beat), sentence(beat))
            text = f"who did i {beat.key} {beat.value} with ?"
            yield _make(plan, rng, task, moment, text, beat.friend, plausible=list(plan.friends),
                        pool=list(lexicon.NAMES), evidence=(index,), hops=(anywhen,),
                        thought=sentence(beat))  # fmt: skip
            for known, taste in _newest(plan, moment):
                if taste.kind == "friend" and taste.who == beat.friend:
                    text = f"what is the {taste.key} of who i {beat.key} {beat.value} with ?"
                    yield _make(plan, rng, task, moment, text, taste.value, plausible=_said(plan, taste.key),
                                pool=lexicon.PREFERENCES[taste.key], evidence=(index, known),
                                hops=(anywhen, Hop(keywords(taste), sentence(taste))),
                                thought=sentence(taste))  # fmt: skip


def semantic_information_recall(plan: LifePlan, rng: random.Random, moment: datetime) -> Iterator[Question]:
    for kind in ("friend", "core"):
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
        thought = "unknown" if index is None else sentence(beat) + ("" if beat.key else " open")
        yield _make(plan, rng, "Long-term Goal Tracking", moment, f"what became of my goal {goal} ?", state,
                    pool=lexicon.GOAL_STATES, evidence=() if index is None else (index,),
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
                thought=f"my {trait} {mine} takes {lexicon.STYLES[trait][mine]}",
            )  # fmt: skip


MAKERS = (
    visual_detail_recall,
    semantic_information_recall,
    Lookup("Explicit Intent Inference", "intent", "why do i need {key} ?", lambda _: lexicon.OCCASIONS),
    Lookup("Implicit Intent Recognition", "habit", "what should i pack today ?", knowledge="habit",
           asks=lambda beat, moment: beat.key == lexicon.WEEKDAYS[moment.weekday()]),
    latest_preference_recognition,
    Lookup("Interest Evolution Analysis", "preference", "why did {who} {key} change ?", lambda _: lexicon.CAUSES,
           field="cause", asks=lambda beat, _: bool(beat.cause)),
    Lookup("Implicit Preference Recommendation", "value", "which vehicle suits me ?", knowledge="value"),
    Lookup("Behavioral Pattern Recognition", "habit", "what do i do every {key} ?", lambda _: lexicon.HABITS),
    long_term_goal_tracking,
    Lookup("Relationship Dynamics Comprehension", "relation", "how should i write to {who} ?", knowledge="relation"),
    Lookup("Tiered Explanation Delivery", "skill", "how should {key} be explained to me ?", knowledge="level"),
    Lookup("Generalizing to New Scenarios", "preference", "where should i go first in a new town ?",
           knowledge="sport", asks=lambda beat, _: beat.key == "sport"),
    personality_alignment,
)  # fmt: skip


def ask(plan: LifePlan, n: int, alignment: int, seed: int = 0) -> list[Question]:
    """`n` questions of the choice tasks, spread over tasks and moments, and `alignment` pairs of alignment items."""
    rng = random.Random(f"questions {plan.seed} {seed}")
    days = [beat.time.date() + timedelta(days=1) for beat in (plan.beats[-1], *plan.beats[8:])]
    taken = {(b.time.date(), b.time.hour) for b in plan.beats}
    chosen: list[Question] = []
    seen: set[tuple[str, str]] = set()
    pairs = 0
    for attempt in range(40 * (n + alignment)):
        day = rng.choice(days)
        moment = datetime.combine(day, time(7))
        if (day, 7) in taken:
            continue
        maker = MAKERS[attempt % len(MAKERS)]
        made = [q for q in maker(plan, rng, moment) if (q.text, q.answer) not in seen]
        if not made:
            continue
        if maker is personality_alignment:
            if pairs < alignment:
                first = 2 * rng.randrange(len(made) // 2) if len(made) > 1 else 0
                chosen += made[first : first + 2]
                seen |= {(q.text, q.answer) for q in made[first : first + 2]}
                pairs += 1
        elif len(chosen) - 2 * pairs < n:
            chosen.append(rng.choice(made))
            seen.add((chosen[-1].text, chosen[-1].answer))
        if pairs == alignment and len(chosen) - 2 * pairs == n:
            break
    chosen.sort(key=lambda q: q.time)
    return [replace(q, case=f"{plan.user}_{i:03d}") for i, q in enumerate(chosen)]
