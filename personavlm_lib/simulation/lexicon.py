"""The values of simulated lives: the pools `nano` and `wide`, and the words of the nano world.

The words of the nano world stand in `lexicon.yaml`. The nano model's tokenizer is built from
`vocabulary()`: after changing a word there, rebuild the backbone in the same commit. The values of
the wide pool stand in the folder `wide`, beside the sentence frames of the natural wording.
"""

import re
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from personavlm_lib.simulation.scenes import COLORS, COUNTS, PICTURE_STYLES, SIGN_WORDS, THINGS

WIDE = Path(__file__).with_name("wide")


def _read(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


_WORDS = _read(Path(__file__).with_name("lexicon.yaml"))
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
    words = {*GOAL_STATES, *WEEKDAYS, *COLORS, *THINGS, *COUNTS, *SIGN_WORDS, *PICTURE_STYLES}
    templates = re.sub(r"{\w+}|<\w+>", " ", str(list(PARAPHRASES.values())))
    others = [_WORDS[name] for name in _WORDS if name not in ("knowledge", "paraphrases")]
    texts = (templates, str(list(KNOWLEDGE.values())), str(others))
    for text in texts:
        words.update(re.findall(r"[a-z]+", text))
    return sorted(words)


@dataclass(frozen=True)
class Pool:
    """The values that plans draw from, by kind of fact; a setting of the plan, not of its wording.

    `causes` are the reasons of a change, by the key of the fact; `knowledge` is common knowledge:
    key of a fact -> {value of the fact: the value that it implies}.
    """

    names: list[str]
    core: Lists
    preferences: Lists
    causes: Lists
    events: Lists
    habits: list[str]
    goals: list[str]
    values: list[str]
    skills: list[str]
    levels: list[str]
    relations: list[str]
    items: list[str]
    occasions: list[str]
    knowledge: Tables


def _nano_pool() -> Pool:
    causes = dict.fromkeys((*CORE, *PREFERENCES, "relation"), CAUSES)
    named = {field.name: _WORDS[field.name] for field in fields(Pool)}
    return Pool(**named | {"causes": causes})


def _wide_pool() -> Pool:
    """The pool of the folder `wide`, where each file with a `noun` holds one kind of taste."""
    data = {path.stem: _read(path) for path in sorted(WIDE.glob("*.yaml"))}
    faker = data["from_faker"]
    home = data["home"]
    intent = data["intent"]
    growth = data["growth"]
    habits = data["habit"]["habits"]
    relations = data["people"]["roles"]
    preferences = {}
    causes = home["causes"] | {"relation": data["people"]["causes"]}
    for key, content in data.items():
        if "noun" in content:
            preferences[key] = content["values"]
            causes[key] = content["causes"]
    explanations = zip(growth["levels"], growth["explanations"], strict=True)
    knowledge = {"level": dict(explanations), "relation": relations, "habit": habits}
    knowledge["value"] = growth["scenarios"][0]
    knowledge["sport"] = data["sport"]["venues"]
    return Pool(
        names=faker["names"],
        core={"job": faker["jobs"], "city": faker["cities"], "pet": home["pet"]},
        preferences=preferences,
        causes=causes,
        events=data["outings"],
        habits=list(habits),
        goals=growth["goals"],
        values=list(growth["values"]),
        skills=growth["skills"],
        levels=growth["levels"],
        relations=list(relations),
        items=intent["items"],
        occasions=intent["occasions"],
        knowledge=knowledge,
    )


POOLS = {"nano": _nano_pool, "wide": _wide_pool}


@cache
def pool(name: str) -> Pool:
    """The pool `nano` or `wide`. Raises KeyError for another name."""
    return POOLS[name]()
