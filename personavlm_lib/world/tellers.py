"""Tellers turn a life plan into dialogues. The template teller is offline and instant."""

import itertools
import random
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from personavlm_lib.agent.prompts import periods
from personavlm_lib.memory.records import TRAITS, Turn
from personavlm_lib.world import lexicon
from personavlm_lib.world.plan import Beat, LifePlan
from personavlm_lib.world.questions import Question
from personavlm_lib.world.scenes import render

FACTS = ("core", "preference", "friend", "relation", "value", "skill", "style")  # who key is value
FACT = "{who} {key} is {value}"
CHANGED = "{who} {key} from {was} is {value}"
# How a beat of each kind is said, and what one would look it up by: the beginning, which does not give the end away.
SAID = {
    **dict.fromkeys(("name", *FACTS), (FACT, "{who} {key}")),
    "preference": (FACT, "{who} {key} now"),  # what it has become, rather than what it was
    "event": ("i {key} {value} with {friend}", "i {key}"),
    "image": ("{who} {key}", "{who} {key}"),
    "habit": ("every {key} i do {value}", "every {key} i do"),
    "intent": ("i need {key} for {value}", "i need {key}"),
    "goal": ("my goal {value} is open", "my goal {value}"),
    "goal_end": ("my goal {value} is {key}", "my goal {value}"),
    "small_talk": ("{value}", "{who} {key}"),
}


def fact(beat: Beat) -> str:
    """`bob drink is cola`: how everything that holds of somebody is said."""
    return FACT.format(**vars(beat))


def sentence(beat: Beat) -> str:
    """The sentence that states the beat: the words a memory keeps and a reasoning step restates."""
    said = (CHANGED if beat.was else SAID[beat.kind][0]).format(**vars(beat))
    return f"{said} because {beat.cause}" if beat.cause else said


def keywords(beat: Beat) -> str:
    """What one would look the beat up by."""
    return SAID[beat.kind][1].format(**vars(beat))


def followed(told: Sequence[str]) -> str:
    """The sentences of a fact that changed as one, from value to value and with the last one's cause or what follows.

    `my drink is cola from cola is tea because stress`: each step is one look-up. Of several sentences that begin alike
    it would have to be known which is the newest before its value is said.
    """
    *before, last = told
    steps = [sentence.split(" because ")[0] for sentence in before] + [last]
    return " ".join([steps[0], *(f"from {step.split(' from ')[1]}" for step in steps[1:])])


def last_step(question: Question, seen: str) -> str:
    """The last reasoning step: the thought, with how the fact came to be what it is as far as that stands in `seen`."""
    if not question.told or not question.hops and question.thought in seen:  # the second: the profile, which is newest
        return question.thought
    *before, last = question.told
    before = list(itertools.takewhile(lambda sentence: sentence in seen, reversed(before)))[::-1]
    return followed([*before, question.thought if question.hops else last])


def profile(told: Iterable[Beat]) -> dict[str, str]:
    """All attributes stated so far, newest value each, in the order of first mention; those of the persona last."""
    stated = {beat.key: beat.value for beat in told if beat.kind in ("name", "core")}
    return {key: stated[key] for key in sorted(stated, key=lambda key: key in lexicon.PERSONA_KEYS)}


def user_words(beat: Beat, wording: Callable[[Beat], str] | None = None) -> str:
    """What the user says in this turn: the fact, its cause, and the words in which the personality shows."""
    said = f"look at {sentence(beat)} <img>" if beat.kind == "image" else sentence(beat)
    if beat.kind == "style":
        said += " <img>"
    if wording:
        said = wording(beat)
    if beat.cause and beat.cause not in said.split():
        said += f" because {beat.cause}"
    shown = [lexicon.MARKERS[trait][score] for trait, score in zip(TRAITS, beat.scores, strict=True) if score != 3]
    return " ".join([said, *shown])


def _varied(plan: LifePlan) -> Callable[[Beat], str]:
    """The beats in other words; what became of a goal of the last days may leave its name out."""
    rng = random.Random(f"wording {plan.seed}")
    goals = {beat.value: beat.time for beat in plan.beats if beat.kind == "goal"}

    def said(beat: Beat) -> str:
        if beat.kind == "goal_end" and rng.random() < 0.5:
            for name, (start, end) in periods(beat.time).items():
                if start <= goals[beat.value] <= end:
                    return f"{beat.key} is that goal from {name}"
        told = lexicon.VARIED.get(beat.kind) or (lexicon.VARIED["fact"] if beat.kind in FACTS else None)
        return rng.choice(told).format(**vars(beat)) if told else sentence(beat)

    return said


def tell(plan: LifePlan, images: Path, draw: bool = True, wording: str = "canonical") -> list[Turn]:
    """The dialogue of a plan, one turn per beat; pictures are rendered into the folder `images` if `draw`.

    `wording`: "canonical", which the nano model learns from, or "varied", the same facts in other words.
    """
    if wording not in ("canonical", "varied"):
        raise ValueError(f"wording is {wording!r}; choose canonical or varied")
    words = _varied(plan) if wording == "varied" else None
    rng = random.Random(f"teller {plan.seed}")
    turns = []
    for index, beat in enumerate(plan.beats):
        paths: tuple[str, ...] = ()
        if beat.scene is not None:
            path = images / f"{plan.user}_{index:03d}.png"
            if draw and not path.exists():
                images.mkdir(parents=True, exist_ok=True)
                render(beat.scene).save(path)
            paths = (str(path),)
        replies = lexicon.EMPTY_REPLIES if beat.kind == "small_talk" else lexicon.REPLIES
        turns.append(Turn(beat.time, user_words(beat, words), rng.choice(replies), paths, index))
    return turns
