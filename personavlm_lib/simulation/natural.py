"""The natural wording of dialogues: life events as people talk about them, with replies.

The frames are data (`wide/*.txt`): sections of lines `user message || reply` with slots in braces,
written one by one. A sentence from `wide/personality.txt` shows each trait that a turn reveals.
"""

import random
from collections import defaultdict
from functools import cache

from personavlm_lib.memory.records import TRAITS
from personavlm_lib.simulation.lexicon import WIDE
from personavlm_lib.simulation.plan import LifeEvent, LifePlan

# Kind of event -> its section, where it has another name than the kind.
SECTIONS = {
    "small_talk": "chat", "relation": "role", "core": "{key}", "preference": "{key}",
    "event": "{key}", "friend": "{key}.friend", "value": "value.{value}", "goal_end": "goal.{key}",
}  # fmt: skip
TOPICS = {"relation": "role", "goal_end": "goal"}  # of follow-ups, where not the key itself
OPENING_SHARE = 0.2  # of the sentences that show a trait, those before the message


@cache
def frames() -> dict[str, list[str]]:
    """Section -> frames, of all files."""
    sections: dict[str, list[str]] = defaultdict(list)
    for path in sorted(WIDE.glob("*.txt")):
        section = ""
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith("["):
                section = line.strip("[]")
                if path.stem == "alignment":
                    section = f"alignment.{section}"
            elif line and not line.startswith("#"):
                sections[section].append(line)
    return dict(sections)


def with_article(noun: str) -> str:
    """`a nurse`, `an actuary`."""
    article = "an" if noun[0].lower() in "aeiou" else "a"
    return f"{article} {noun}"


class FrameDecks:
    """Draws frames; none of a section twice before all of them were drawn."""

    def __init__(self, rng: random.Random):
        self.rng = rng
        self.decks: dict[str, list[str]] = {}

    def draw(self, section: str) -> str:
        deck = self.decks.get(section)
        if not deck:
            all_frames = frames()[section]
            deck = self.decks[section] = self.rng.sample(all_frames, len(all_frames))
        return deck.pop()


class NaturalDialogue:
    """Phrases the turns of one plan; call `turn` for its events in order of time."""

    def __init__(self, plan: LifePlan):
        self.levels = plan.pool.levels
        self.rng = random.Random(f"natural {plan.seed}")
        self.decks = FrameDecks(self.rng)
        self.shown: set[tuple[str, str]] = set()

    def turn(self, event: LifeEvent) -> tuple[str, str]:
        """The user's message and the assistant's reply."""
        frame = self.decks.draw(self._section(event))
        user, _, reply = frame.partition(" || ")
        slots = frame_slots(event)
        message = user.format(**slots)
        for trait, score in zip(TRAITS, event.scores, strict=True):
            if score == 3:
                continue
            sentence = self.decks.draw(f"{trait}.{score}")
            parts = (message, sentence)
            if self.rng.random() < OPENING_SHARE and "<img>" not in message:
                parts = (sentence, message)
            message = " ".join(parts)
        return message, reply.format(**slots)

    def _section(self, event: LifeEvent) -> str:
        kind = event.kind
        section = SECTIONS.get(kind, kind).format(key=event.key, value=event.value)
        if kind in ("core", "preference", "relation"):
            return f"{section}.changed" if event.cause else f"{section}.new"
        if kind == "skill":
            return f"skill.{self.levels.index(event.value)}"
        if kind == "follow_up":
            return f"{TOPICS.get(event.key, event.key)}.follow"
        if kind == "image":
            return self._picture_section(event)
        return section

    def _picture_section(self, event: LifeEvent) -> str:
        if event.key == "sign":
            return "sign"
        thing = (event.who, event.key)
        if thing in self.shown:
            return "image.again"
        self.shown.add(thing)
        return "image.mine" if event.who == "my" else "image.friend"


def frame_slots(event: LifeEvent) -> dict[str, str]:
    """The fields of an event under the names that frames use; `Value` has a capital letter."""
    slots = {"value": event.value, "was": event.was, "cause": event.cause}
    slots["friend"] = event.friend or event.who
    slots["whose"] = "my" if event.who == "my" else f"{event.who}'s"
    slots["occasion"] = event.value
    slots["day"] = event.key.title()
    for name in ("item", "skill", "thing"):
        slots[name] = event.key
    capital = {}
    for name, text in slots.items():
        capital[name.title()] = text[:1].upper() + text[1:]
    for name in ("value", "was"):
        if slots[name]:
            slots[f"a_{name}"] = with_article(slots[name])
    return slots | capital
