"""Tellers turn a life plan into dialogues. The template teller is offline and instant, in canonical wording."""

import random
from pathlib import Path

from personavlm_lib.memory.records import TRAITS, Turn
from personavlm_lib.world import lexicon
from personavlm_lib.world.plan import Beat, LifePlan
from personavlm_lib.world.scenes import render


def sentence(beat: Beat) -> str:
    """The sentence that states the beat's fact: the words a memory keeps and a reasoning step restates."""
    if beat.kind in ("name", "core", "preference", "friend"):
        return f"{beat.who} {beat.key} is {beat.value}"
    if beat.kind == "event":
        return f"i {beat.key} {beat.value} with {beat.friend}"
    if beat.kind == "image":
        return f"{beat.who} {beat.key}"
    if beat.kind == "habit":
        return f"every {beat.key} i do {beat.value}"
    if beat.kind == "goal":
        return f"my goal is {beat.value}"
    if beat.kind == "goal_end":
        return f"i {beat.key} my goal {beat.value}"
    return beat.value


def user_words(beat: Beat) -> str:
    """What the user says in this turn: the fact, its cause, and the words in which the personality shows."""
    said = {"image": f"look at {sentence(beat)} <img>"}.get(beat.kind, sentence(beat))
    if beat.cause:
        said += f" now because of {beat.cause}"
    shown = [lexicon.MARKERS[trait][score] for trait, score in zip(TRAITS, beat.scores, strict=True) if score != 3]
    return " ".join([said, *shown])


def tell(plan: LifePlan, images: Path, draw: bool = True) -> list[Turn]:
    """The dialogue of a plan, one turn per beat; pictures are rendered into the folder `images` if `draw`."""
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
        turns.append(Turn(beat.time, user_words(beat), rng.choice(replies), paths, index))
    return turns
