"""The canonical sentence of each life event, and the keywords that a search for it uses."""

from collections.abc import Iterable

from personavlm_lib.simulation import lexicon
from personavlm_lib.simulation.plan import LifeEvent

FACTS = ("core", "preference", "friend", "relation", "value", "skill", "style")  # kinds using FACT
FACT = "{who} {key} is {value}"
CHANGED = "{who} {key} from {was} is {value}"
# Kind of event -> (sentence, search keywords). The keywords begin like the sentence, but do not
# contain what a question about the event asks for.
TEMPLATES = {
    **dict.fromkeys(("name", *FACTS), (FACT, "{who} {key}")),
    "preference": (FACT, "{who} {key} now"),  # `now`: the current value, not an earlier one
    "event": ("i {key} {value} with {friend}", "i {key}"),
    "image": ("{who} {key}", "{who} {key}"),
    "habit": ("every {key} i do {value}", "every {key} i do"),
    "intent": ("i need {key} for {value}", "i need {key}"),
    "goal": ("my goal {value} is open", "my goal {value}"),
    "goal_end": ("my goal {value} is {key}", "my goal {value}"),
    "small_talk": ("{value}", "{who} {key}"),
    "follow_up": ("{value}", "{key}"),
}


def bare_statement(event: LifeEvent) -> str:
    """A fact without its history or cause: `bob drink is cola`."""
    return FACT.format(**vars(event))


def statement(event: LifeEvent) -> str:
    """The sentence that states the event, as memories store it and reasoning steps repeat it."""
    template, _ = TEMPLATES[event.kind]
    if event.was:
        template = CHANGED
    sentence = template.format(**vars(event))
    if event.cause:
        sentence += f" because {event.cause}"
    return sentence


def search_keywords(event: LifeEvent) -> str:
    """The keywords to search for the event."""
    _, keywords = TEMPLATES[event.kind]
    return keywords.format(**vars(event))


def core_profile(events: Iterable[LifeEvent]) -> dict[str, str]:
    """The newest value of each core attribute in `events`, in the order of first mention.

    Attributes of the persona come last.
    """
    profile: dict[str, str] = {}
    for event in events:
        if event.kind in ("name", "core"):
            profile[event.key] = event.value
    ordered = sorted(profile, key=lambda key: key in lexicon.PERSONA_KEYS)
    return {key: profile[key] for key in ordered}
