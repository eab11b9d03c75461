"""Prompt sets: folders of Jinja templates with the same slots and the same reply grammar.

`full` is written in natural language; `nano` is terse, for small models trained from scratch. What
users and memories say is data: it cannot pose as the format of a prompt.
"""

import hashlib
import re
from dataclasses import dataclass, replace
from datetime import datetime, time, timedelta
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from personavlm_lib.memory.records import SemanticMemory, Turn
from personavlm_lib.memory.search import Retrieved, RetrievedEpisode
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


TAG = re.compile(r"<(?=\s*/?\s*(think|answer|retrieve|img)\b)", re.IGNORECASE)
HEADING = re.compile(r"^#+", re.MULTILINE)
LABEL = re.compile(r"\s*(#|\[\d+\]|(time|user|assistant)\s*:)", re.IGNORECASE)
SPEAKER = re.compile(r"\b(user|assistant)\b", re.IGNORECASE)  # part of the format of nano's lines


@dataclass(frozen=True)
class _DataFiller:
    """Prepares data for the slots of a template, so that no text can pose as the prompt's format.

    Tags are escaped; lines that could be headings or the words of someone else are quoted. Texts
    of the canonical wording contain nothing of that kind. Times are as on the user's clock.
    """

    quotes_speakers: bool
    clock: timedelta

    def fill(self, value: Any) -> Any:
        """The value with the texts of all turns and memories in it escaped."""
        if isinstance(value, Turn):
            user = "<img>".join(self.text(piece) for piece in value.pieces)
            assistant = self.text(value.assistant)
            return replace(value, user=user, assistant=assistant, time=value.local_time)
        if isinstance(value, SemanticMemory):
            start = value.happened_from + self.clock
            end = value.happened_to + self.clock
            content = self.line(value.content)
            return replace(value, content=content, happened_from=start, happened_to=end)
        if isinstance(value, RetrievedEpisode):
            return replace(value, raw=self.fill(value.raw))
        if isinstance(value, Retrieved):
            procedural = [(self.line(key), self.line(text)) for key, text in value.procedural]
            semantic = self.fill(value.semantic)
            return Retrieved(procedural, semantic, self.fill(value.episodic))
        if isinstance(value, dict):
            return {self.line(key): self.line(text) for key, text in value.items()}
        if isinstance(value, list | tuple):
            return [self.fill(item) for item in value]
        return value

    def text(self, text: str) -> str:
        """What someone said: further lines are quoted, as mail programs do."""
        text = TAG.sub("&lt;", text)
        text = HEADING.sub(lambda marks: " ".join(marks[0]), text)
        if self.quotes_speakers:
            text = SPEAKER.sub(r"'\1'", text)
        if LABEL.match(text):
            text = f"> {text}"
        lines = text.splitlines()
        return "\n> ".join(lines) if len(lines) > 1 else text

    def line(self, text: str) -> str:
        """A memory: one line, without quotes that could end its value."""
        words = self.text(" ".join(text.splitlines()))
        return words.replace('"', "'")


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
        reader = slots.get("query")
        clock = reader.local_time - reader.time if isinstance(reader, Turn) else timedelta()
        filler = _DataFiller(quotes_speakers=not self.quote, clock=clock)
        data = {name: filler.fill(value) for name, value in slots.items()}
        return _environment(self.name).get_template(f"{template}.j2").render(**data).strip()

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
