"""The vocabulary of the simulated world, in the canonical wording that the nano model learns from.

The words stand in `lexicon.yaml`. The nano model's tokenizer is built from `vocabulary()`: after
changing a word there, rebuild the backbone in the same commit.
"""

import re
from pathlib import Path
from typing import Any

import yaml

from personavlm_lib.simulation.scenes import COLORS, COUNTS, PICTURE_STYLES, SIGN_WORDS, THINGS

_WORDS: dict[str, Any] = yaml.safe_load(
    Path(__file__).with_name("lexicon.yaml").read_text(encoding="utf-8")
)
Lists = dict[str, list[str]]
Tables = dict[str, dict[Any, str]]

NAMES: list[str] = _WORDS["names"]
CORE: Lists = _WORDS["core"]
PERSONA_KEYS = ("job",)
PREFERENCES: Lists = _WORDS["preferences"]
CAUSES: list[str] = _WORDS["causes"]
EVENTS: Lists = _WORDS["events"]
HABITS: list[str] = _WORDS["habits"]
GOALS: list[str] = _WORDS["goals"]
GOAL_ENDS = ("reached", "dropped")
GOAL_STATES = (*GOAL_ENDS, "open", "unknown")
WEEKDAYS = "monday tuesday wednesday thursday friday saturday sunday".split()
VALUES: list[str] = _WORDS["values"]
SKILLS: list[str] = _WORDS["skills"]
LEVELS: list[str] = _WORDS["levels"]
RELATIONS: list[str] = _WORDS["relations"]
ITEMS: list[str] = _WORDS["items"]
OCCASIONS: list[str] = _WORDS["occasions"]
KNOWLEDGE: Tables = _WORDS["knowledge"]
MARKERS: Tables = _WORDS["markers"]
REPLY_STYLES: Tables = _WORDS["reply_styles"]
SMALL_TALK: list[str] = _WORDS["small_talk"]
REPLIES: list[str] = _WORDS["replies"]
EMPTY_REPLIES: list[str] = _WORDS["empty_replies"]
PARAPHRASES: Lists = _WORDS["paraphrases"]
FRAME: list[str] = _WORDS["frame"].split()


def vocabulary() -> list[str]:
    """Every word of the canonical wording, sorted, without repetition."""
    words: set[str] = set()
    facts = (CAUSES, HABITS, GOALS, GOAL_STATES, VALUES, SKILLS, LEVELS, RELATIONS)
    intents = (ITEMS, OCCASIONS)
    pictures = (COLORS, THINGS, COUNTS, SIGN_WORDS, PICTURE_STYLES)
    for word_list in (NAMES, WEEKDAYS, FRAME, *facts, *intents, *pictures):
        words.update(word_list)
    for values_by_key in (CORE, PREFERENCES, EVENTS):
        words.update(values_by_key)
        for values in values_by_key.values():
            words.update(values)
    tables: list[dict] = [*KNOWLEDGE.values(), *MARKERS.values(), *REPLY_STYLES.values()]
    for table in tables:
        words.update(table.values())
    for templates in PARAPHRASES.values():
        for template in templates:
            words.update(re.findall(r"(?<![{<])\b[a-z]+\b(?![}>])", template))
    for sentence in (*SMALL_TALK, *REPLIES, *EMPTY_REPLIES):
        words.update(sentence.split())
    return sorted(words)
