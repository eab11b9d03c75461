"""Tellers turn a life plan into dialogues. The template teller is offline and instant."""

from collections.abc import Iterable

from personavlm_lib.simulation import lexicon
from personavlm_lib.simulation.plan import LifeEvent

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


def bare_statement(event: LifeEvent) -> str:
    """`bob drink is cola`: how everything that holds of somebody is said."""
    return FACT.format(**vars(event))


def statement(event: LifeEvent) -> str:
    """The sentence that states the beat: the words a memory keeps and a reasoning step restates."""
    said = (CHANGED if event.was else SAID[event.kind][0]).format(**vars(event))
    return f"{said} because {event.cause}" if event.cause else said


def search_keywords(event: LifeEvent) -> str:
    """What one would look the beat up by."""
    return SAID[event.kind][1].format(**vars(event))


def core_profile(told: Iterable[LifeEvent]) -> dict[str, str]:
    """All attributes stated so far, newest value each, in the order of first mention; those of the persona last."""
    stated = {event.key: event.value for event in told if event.kind in ("name", "core")}
    return {key: stated[key] for key in sorted(stated, key=lambda key: key in lexicon.PERSONA_KEYS)}
