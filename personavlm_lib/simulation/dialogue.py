"""The template dialogue generator: renders a life plan as turns, offline and instantly."""

import random
from collections.abc import Callable
from pathlib import Path

from personavlm_lib.agent.prompt_sets import periods
from personavlm_lib.memory.records import TRAITS, Turn
from personavlm_lib.simulation import lexicon
from personavlm_lib.simulation.plan import LifeEvent, LifePlan
from personavlm_lib.simulation.scenes import render
from personavlm_lib.simulation.wording import FACTS, statement


def user_message(event: LifeEvent, wording: Callable[[LifeEvent], str] | None = None) -> str:
    """What the user says in this turn: the fact, its cause, and the words in which the personality shows."""
    said = f"look at {statement(event)} <img>" if event.kind == "image" else statement(event)
    if event.kind == "style":
        said += " <img>"
    if wording:
        said = wording(event)
    if event.cause and event.cause not in said.split():
        said += f" because {event.cause}"
    shown = [
        lexicon.MARKERS[trait][score]
        for trait, score in zip(TRAITS, event.scores, strict=True)
        if score != 3
    ]
    return " ".join([said, *shown])


def _paraphraser(plan: LifePlan) -> Callable[[LifeEvent], str]:
    """The beats in other words; what became of a goal of the last days may leave its name out."""
    rng = random.Random(f"wording {plan.seed}")
    goals = {event.value: event.time for event in plan.events if event.kind == "goal"}

    def said(event: LifeEvent) -> str:
        if event.kind == "goal_end" and rng.random() < 0.5:
            for name, (start, end) in periods(event.time).items():
                if start <= goals[event.value] <= end:
                    return f"{event.key} is that goal from {name}"
        told = lexicon.PARAPHRASES.get(event.kind) or (
            lexicon.PARAPHRASES["fact"] if event.kind in FACTS else None
        )
        return rng.choice(told).format(**vars(event)) if told else statement(event)

    return said


def render_dialogue(
    plan: LifePlan, images: Path, draw: bool = True, wording: str = "canonical"
) -> list[Turn]:
    """The dialogue of a plan, one turn per beat; pictures are rendered into the folder `images` if `draw`.

    `wording`: "canonical", which the nano model learns from, or "paraphrased", the same facts in other words.
    """
    if wording not in ("canonical", "paraphrased"):
        raise ValueError(f"wording is {wording!r}; choose canonical or paraphrased")
    words = _paraphraser(plan) if wording == "paraphrased" else None
    rng = random.Random(f"teller {plan.seed}")
    turns = []
    for index, event in enumerate(plan.events):
        paths: tuple[str, ...] = ()
        if event.scene is not None:
            path = images / f"{plan.user}_{index:03d}.png"
            if draw and not path.exists():
                images.mkdir(parents=True, exist_ok=True)
                render(event.scene).save(path)
            paths = (str(path),)
        replies = lexicon.EMPTY_REPLIES if event.kind == "small_talk" else lexicon.REPLIES
        turns.append(
            Turn(event.time, user_message(event, words), rng.choice(replies), paths, index)
        )
    return turns
