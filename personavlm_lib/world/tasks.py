"""Question makers: pure functions of the plan, each answerable from gold evidence turns (paper, Table 5).

First cut: Visual Detail Recall, Semantic Information Recall, Latest Preference Recognition, Behavioral Pattern
Recognition and Personality Alignment (yes or no to one reply, two items a case).
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime, time, timedelta

from personavlm_lib.memory.records import SESSION_GAP, TRAITS
from personavlm_lib.world import lexicon
from personavlm_lib.world.plan import Beat, LifePlan
from personavlm_lib.world.scenes import COLORS
from personavlm_lib.world.tellers import sentence

ASPECTS = {
    "Visual Detail Recall": "Memory",
    "Semantic Information Recall": "Memory",
    "Latest Preference Recognition": "Preference",
    "Behavioral Pattern Recognition": "Behavior",
    "Personality Alignment": "Alignment",
}


@dataclass(frozen=True)
class Hop:
    """One thing to find out: where to look, and the sentence that settles it once it has been seen."""

    keywords: str
    sentence: str
    start: datetime | None = None
    end: datetime | None = None


@dataclass(frozen=True)
class Question:
    """An in-situ question. `hops` are what a reasoner must find, in order; empty where the profile suffices.

    `kind` is choice (four options), binary (yes or no) or open (no options); `answer` is the right option's words.
    """

    case: str
    user: str
    task: str
    kind: str
    time: datetime
    text: str
    options: tuple[str, ...]
    answer: str
    evidence: tuple[int, ...]
    hops: tuple[Hop, ...] = ()
    thought: str = ""  # the last reasoning step, which restates the fact that holds the answer

    @property
    def aspect(self) -> str:
        return ASPECTS[self.task]

    @property
    def query(self) -> str:
        """The question as it is put to a model: its text and, where there are any, its lettered options."""
        if not self.options:
            return self.text
        letters = " ".join(f"({'abcd'[i]}) {option}" for i, option in enumerate(self.options))
        return f"{self.text} options {letters}"


def _newest(plan: LifePlan, moment: datetime) -> dict[tuple[str, str, str], int]:
    """Turn index of the newest statement of each (kind, who, key) made a session gap or more before `moment`."""
    newest = {}
    for index, beat in enumerate(plan.beats):
        if beat.time + 2 * SESSION_GAP < moment and beat.kind in ("core", "preference", "friend", "habit"):
            newest[beat.kind, beat.who, beat.key] = index
    return newest


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
        return Hop(f"i {beat.key}", sentence(beat))
    return Hop(f"i {beat.key}", sentence(beat), day, day + timedelta(hours=23, minutes=59))


def semantic_information_recall(plan: LifePlan, rng: random.Random, moment: datetime) -> Iterator[Question]:
    """Friends' tastes and one's own attributes; events by their day or companion; a friend's taste via an event."""
    task = "Semantic Information Recall"
    newest = _newest(plan, moment)
    for (kind, who, key), index in newest.items():
        beat = plan.beats[index]
        if kind == "friend" or kind == "core":
            pool = (lexicon.CORE | lexicon.PREFERENCES)[key]
            hops = (Hop(f"{who} {key}", sentence(beat)),) if kind == "friend" else ()
            yield _make(plan, rng, task, moment, f"what is {who} {key} ?", beat.value, plausible=_said(plan, key),
                        pool=pool, evidence=(index,), hops=hops, thought=sentence(beat))  # fmt: skip
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
            anywhen = Hop(f"i {beat.key}", sentence(beat))
            text = f"who did i {beat.key} {beat.value} with ?"
            yield _make(plan, rng, task, moment, text, beat.friend, plausible=list(plan.friends),
                        pool=list(lexicon.NAMES), evidence=(index,), hops=(anywhen,),
                        thought=sentence(beat))  # fmt: skip
            for (kind, who, key), known in newest.items():
                if kind == "friend" and who == beat.friend:
                    fact = plan.beats[known]
                    text = f"what is the {key} of who i {beat.key} {beat.value} with ?"
                    yield _make(plan, rng, task, moment, text, fact.value, plausible=_said(plan, key),
                                pool=lexicon.PREFERENCES[key], evidence=(index, known),
                                hops=(anywhen, Hop(f"{who} {key}", sentence(fact))),
                                thought=sentence(fact))  # fmt: skip


def latest_preference_recognition(plan: LifePlan, rng: random.Random, moment: datetime) -> Iterator[Question]:
    for (kind, who, key), index in _newest(plan, moment).items():
        beat = plan.beats[index]
        earlier = [b for b in plan.beats[:index] if b.key == key and b.who == who]
        if kind == "preference" or (kind == "core" and earlier):
            hops = (Hop(f"{who} {key}", sentence(beat)),) if kind == "preference" else ()
            yield _make(plan, rng, "Latest Preference Recognition", moment, f"what is {who} {key} now ?", beat.value,
                        plausible=_said(plan, key), pool=(lexicon.CORE | lexicon.PREFERENCES)[key],
                        evidence=(index,), hops=hops, thought=sentence(beat))  # fmt: skip


def behavioral_pattern_recognition(plan: LifePlan, rng: random.Random, moment: datetime) -> Iterator[Question]:
    for (kind, _, day), index in _newest(plan, moment).items():
        if kind == "habit":
            beat = plan.beats[index]
            others = [b.value for b in plan.beats if b.kind == "habit"]
            yield _make(plan, rng, "Behavioral Pattern Recognition", moment, f"what do i do every {day} ?", beat.value,
                        plausible=others, pool=lexicon.HABITS, evidence=(index,),
                        hops=(Hop(f"every {day} i do", sentence(beat)),), thought=sentence(beat))  # fmt: skip


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
                thought=f"{word} is {trait} {pole} my {trait} {mine}",
            )  # fmt: skip


MAKERS = (
    visual_detail_recall,
    semantic_information_recall,
    latest_preference_recognition,
    behavioral_pattern_recognition,
    personality_alignment,
)


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
