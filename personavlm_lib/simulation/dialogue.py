"""The template dialogue generator: renders a life plan as turns, offline and instantly."""

import random
from collections.abc import Callable
from pathlib import Path

from personavlm_lib.agent.prompt_sets import periods
from personavlm_lib.memory.records import TRAITS, Turn
from personavlm_lib.simulation import lexicon
from personavlm_lib.simulation.natural import NaturalDialogue
from personavlm_lib.simulation.plan import LifeEvent, LifePlan
from personavlm_lib.simulation.scenes import render
from personavlm_lib.simulation.wording import FACTS, statement

WORDINGS = ("canonical", "paraphrased", "natural")


def user_message(event: LifeEvent, wording: Callable[[LifeEvent], str] | None = None) -> str:
    """The user's message of a turn: the event, its cause, and words that show the personality.

    `wording` phrases the event; by default in the canonical wording.
    """
    message = wording(event) if wording else _canonical(event)
    if event.cause and event.cause not in message.split():
        message += f" because {event.cause}"
    words = [message]
    for trait, score in zip(TRAITS, event.scores, strict=True):
        if score != 3:
            words.append(lexicon.MARKERS[trait][score])
    return " ".join(words)


def _canonical(event: LifeEvent) -> str:
    message = statement(event)
    if event.kind == "image":
        return f"look at {message} <img>"
    if event.kind == "style":
        return f"{message} <img>"
    return message


class _Paraphraser:
    """Phrases the events of one plan in other words."""

    def __init__(self, plan: LifePlan):
        self.rng = random.Random(f"wording {plan.seed}")
        self.goal_times = {e.value: e.time for e in plan.events if e.kind == "goal"}

    def __call__(self, event: LifeEvent) -> str:
        if event.kind == "goal_end" and self.rng.random() < 0.5:
            # The end of a recent goal may name the day of the goal instead of the goal.
            set_at = self.goal_times[event.value]
            for name, (start, end) in periods(event.time).items():
                if start <= set_at <= end:
                    return f"{event.key} is that goal from {name}"
        kind = event.kind
        if kind in FACTS and kind not in lexicon.PARAPHRASES:
            kind = "fact"
        if kind not in lexicon.PARAPHRASES:
            return statement(event)
        template = self.rng.choice(lexicon.PARAPHRASES[kind])
        return template.format(**vars(event))


def render_dialogue(
    plan: LifePlan, images: Path, draw: bool = True, wording: str = "canonical"
) -> list[Turn]:
    """The dialogue of a plan, one turn per life event.

    `draw` renders pictures into the folder `images`. `wording` is "canonical", which the nano model
    learns from, "paraphrased", the same facts in other words, or "natural", as people talk, for
    plans of the wide pool.
    """
    if wording not in WORDINGS:
        raise ValueError(f"wording is {wording!r}; choose one of {', '.join(WORDINGS)}")
    natural = NaturalDialogue(plan) if wording == "natural" else None
    paraphraser = _Paraphraser(plan) if wording == "paraphrased" else None
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
        if natural:
            message, reply = natural.turn(event)
        else:
            message = user_message(event, paraphraser)
            small_talk = event.kind == "small_talk"
            reply = rng.choice(lexicon.EMPTY_REPLIES if small_talk else lexicon.REPLIES)
        turns.append(Turn(event.time, message, reply, paths, index))
    return turns
