"""Prompt sets: folders of Jinja templates with the same slots and the same reply grammar.

`full` is written in natural language; `nano` is terse, for small models trained from scratch.
"""

import hashlib
import re
from dataclasses import dataclass
from datetime import datetime, time, timedelta
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from personavlm_lib.models.chat import ChatRequest

FOLDER = Path(__file__).parent / "prompts"
WHOLE_DAY = timedelta(hours=23, minutes=59)
MORNING = timedelta(hours=11, minutes=59)


def periods(now: datetime) -> dict[str, tuple[datetime, datetime]]:
    """Phrases for past periods at `now`, such as "last friday", with their first and last minute.

    The nano prompts show these periods as a calendar.
    """

    def midnight(days_ago: int) -> datetime:
        return datetime.combine(now.date() - timedelta(days=days_ago), time())

    named = {}
    today = midnight(0)
    named["this morning"] = (today, today + MORNING)
    yesterday = midnight(1)
    named["yesterday"] = (yesterday, yesterday + WHOLE_DAY)
    for days_ago in range(2, 7):
        day = midnight(days_ago)
        named[f"last {day:%A}".lower()] = (day, day + WHOLE_DAY)
    two_weeks_ago = midnight(14)
    named["two weeks ago"] = (two_weeks_ago, two_weeks_ago + WHOLE_DAY)
    return named


def one_line(text: str) -> str:
    """The text of a memory in one line, so that it is shown as one memory and no more."""
    return " ".join(text.split())


def quoted(text: str) -> str:
    """What a user said, with later lines indented and no headings, as no part of the prompt."""
    lines = [re.sub("^ *(#+)", _spaced, line) for line in text.splitlines()]
    return "\n  ".join(lines)


def _spaced(heading: re.Match[str]) -> str:
    return " ".join(heading[1])


@cache
def _environment(name: str) -> Environment:
    environment = Environment(
        loader=FileSystemLoader(FOLDER / name),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["periods"] = periods
    environment.filters["one_line"] = one_line
    environment.filters["quoted"] = quoted
    return environment


@cache
def _label(prompts: "PromptSet") -> str:
    return f"{prompts.name}-{prompts.hash()[:6]}"


@dataclass(frozen=True)
class PromptSet:
    """The templates of one folder.

    Call it with a template's name and slots to fill that template.
    """

    name: str

    @property
    def quote(self) -> bool:
        """Whether replies quote their values. `nano` replies write them bare, one pair per line."""
        return self.name != "nano"

    @property
    def room(self) -> int:
        """Token limit of replies to the update prompts, as a multiple of nano's limit."""
        return 4 if self.quote else 1

    @property
    def label(self) -> str:
        """Name and short hash, such as `nano-1a2b3c`; memories store it as their origin."""
        return _label(self)

    def __call__(self, template: str, **slots: Any) -> str:
        """Fill a template. Raises jinja2.UndefinedError, naming the slot, if one is missing."""
        return _environment(self.name).get_template(f"{template}.j2").render(**slots).strip()

    def request(
        self, template: str, images: tuple[str, ...], max_tokens: int, subject: Any, **slots: Any
    ) -> ChatRequest:
        """Fill a template as a `ChatRequest` that opens a conversation and records its slots."""
        return ChatRequest(
            text=self(template, **slots),
            images=images,
            max_tokens=max_tokens,
            new_conversation=True,
            purpose=template,
            subject=subject,
            slots={**slots, "quote": self.quote},
        )

    def hash(self) -> str:
        """SHA-256 over all template files of the set, cut to 12 hexadecimal digits."""
        digest = hashlib.sha256()
        for path in sorted((FOLDER / self.name).glob("*.j2")):
            digest.update(path.name.encode())
            digest.update(path.read_bytes())
        return digest.hexdigest()[:12]


NANO = PromptSet("nano")
