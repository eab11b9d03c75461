"""Prompt sets as Jinja files: `full` reads naturally, `nano` is built for induction; same slots, same grammar."""

import hashlib
from dataclasses import dataclass
from datetime import datetime, time, timedelta
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from personavlm_lib.models.chat import ChatRequest

FOLDER = Path(__file__).parent / "prompts"


def periods(now: datetime) -> dict[str, tuple[datetime, datetime]]:
    """What a user may call a time at `now`, with its first and its last minute: the calendar that nano is shown."""
    days = [datetime.combine(now.date() - timedelta(days=n), time()) for n in range(15)]
    whole, half = timedelta(hours=23, minutes=59), timedelta(hours=11, minutes=59)
    named = {"this morning": (days[0], days[0] + half), "yesterday": (days[1], days[1] + whole)}
    named |= {f"last {day:%A}".lower(): (day, day + whole) for day in days[2:7]}
    return named | {"two weeks ago": (days[14], days[14] + whole)}


@cache
def _environment(name: str) -> Environment:
    environment = Environment(
        loader=FileSystemLoader(FOLDER / name),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["periods"] = periods
    return environment


@cache
def _label(prompts: "PromptSet") -> str:
    return f"{prompts.name}-{prompts.hash()[:6]}"


@dataclass(frozen=True)
class PromptSet:
    """The templates of one folder. `nano` replies write values bare, one pair a line; `full` replies quote them."""

    name: str

    @property
    def quote(self) -> bool:
        return self.name != "nano"

    @property
    def room(self) -> int:
        """How many times as long as nano's the replies to the update prompts may be."""
        return 4 if self.quote else 1

    @property
    def label(self) -> str:
        """Name and hash in one word, such as `nano-1a2b3c`: what a memory says it was asked for with."""
        return _label(self)

    def __call__(self, template: str, **slots) -> str:
        """The template with its slots filled. Raises jinja2.UndefinedError naming a slot that is missing."""
        return _environment(self.name).get_template(f"{template}.j2").render(**slots).strip()

    def ask(
        self, template: str, images: tuple[str, ...], max_tokens: int, about: Any, **slots
    ) -> ChatRequest:
        """The template with its slots filled, as the Ask that opens a conversation and carries the slots along."""
        shown = slots | {"quote": self.quote}
        return ChatRequest(
            self(template, **slots), images, max_tokens, True, template, about, shown
        )

    def hash(self) -> str:
        """Twelve hexadecimal digits over all files of the set: what a record says it was asked with."""
        digest = hashlib.sha256()
        for path in sorted((FOLDER / self.name).glob("*.j2")):
            digest.update(path.name.encode() + path.read_bytes())
        return digest.hexdigest()[:12]


NANO = PromptSet("nano")
