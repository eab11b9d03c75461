"""Records of one user's memory (Section 3, Appendix A.1), and their JSON form in the database.

Each record has two kinds of time. `happened_from` and `happened_to` say when something took place;
the period filter tests them by overlap. `known_from` is the time from which the agent knows it;
`MemoryStore.as_of` tests that. A record derived at the end of a session is known from the session's
last turn plus `SESSION_GAP`, no matter when it was computed.

Records are in the order of their ids, whatever clocks say. Times are stored in UTC without a time
zone. A time with a zone is converted wherever it is accepted; one without a zone counts as UTC.
"""

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import astuple, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any, TypeVar

TRAITS = ("openness", "conscientiousness", "extraversion", "agreeableness", "neuroticism")
SESSION_GAP = timedelta(minutes=60)  # t_s of Eq. (1)
SEMANTIC_KINDS = ("directive", "fact", "preference", "concept")  # Appendix A.1
OPTIONAL_FIELDS = ("utc_offset", "received", "image_at")  # not written if None
TIME_FIELDS = {"time", "happened_from", "happened_to", "known_from", "received"}
MAX_PROCEDURAL = 5  # Fig. 19: "must not exceed 5 entries"


@dataclass(frozen=True)
class BigFive:
    """Five trait scores from 1 to 5; 3 is neutral (A.1). Raises ValueError for others."""

    openness: float
    conscientiousness: float
    extraversion: float
    agreeableness: float
    neuroticism: float

    def __post_init__(self) -> None:
        for trait in TRAITS:
            score = getattr(self, trait)
            if not 1 <= score <= 5:
                raise ValueError(f"{trait} is {score}; a Big Five score lies between 1 and 5")

    @classmethod
    def neutral(cls) -> "BigFive":
        return cls(3.0, 3.0, 3.0, 3.0, 3.0)

    def as_tuple(self) -> tuple[float, ...]:
        """The five scores in the order of `TRAITS`."""
        return astuple(self)


@dataclass(frozen=True)
class Period:
    """A span of time from `start` to `end`, inclusive; None leaves that side open."""

    start: datetime | None = None
    end: datetime | None = None

    def __post_init__(self) -> None:
        for name in ("start", "end"):
            time = getattr(self, name)
            if time is not None:
                object.__setattr__(self, name, as_utc(time))


@dataclass(frozen=True)
class Turn:
    """One exchange.

    `images` are file paths. They stand where `image_at` says, as positions in `user`; without it,
    at the `<img>` marks of `user`, as in data sets, if there is one for each.

    `utc_offset` says how many minutes the user's clock is ahead of UTC, if known. `received` is the
    time from which the turn is known, if that is not its own time.
    """

    time: datetime
    user: str
    assistant: str = ""
    images: tuple[str, ...] = ()
    index: int = -1  # position in the user's history; assigned by the store
    utc_offset: int | None = None
    received: datetime | None = None
    image_at: tuple[int, ...] | None = None

    @property
    def pieces(self) -> list[str]:
        """The user's words before, between and behind the images."""
        marked = self.user.split("<img>")
        if self.image_at is None and len(marked) == len(self.images) + 1:
            return marked
        places = [0, *(self.image_at or [len(self.user)] * len(self.images)), len(self.user)]
        pieces = [self.user[start:end] for start, end in pairwise(places)]
        return [f"{piece} " for piece in pieces[:-1]] + pieces[-1:]

    # A turn is on the same timeline as the memories: it happens, and is known, at its time.
    @property
    def id(self) -> int:
        return self.index

    @property
    def sources(self) -> tuple[int, ...]:
        return (self.index,)

    @property
    def happened_from(self) -> datetime:
        return self.time

    @property
    def happened_to(self) -> datetime:
        return self.time

    @property
    def known_from(self) -> datetime:
        return self.received or self.time

    @property
    def local_time(self) -> datetime:
        """The time on the user's clock."""
        return self.time + timedelta(minutes=self.utc_offset or 0)


@dataclass(frozen=True)
class VisualConcept:
    """A thing shown by the user, "simple description <image>" in Appendix A.1.

    `description` is the user's name for it, `class_name` its class, `crop` the path of its image.
    """

    description: str
    class_name: str
    crop: str


@dataclass(frozen=True)
class SemanticMemory:
    """One piece of event-independent knowledge.

    Raises ValueError if `kind` is not in `SEMANTIC_KINDS`.
    """

    content: str
    keywords: str
    happened_from: datetime
    happened_to: datetime
    known_from: datetime
    kind: str = "fact"
    concept: VisualConcept | None = None
    sources: tuple[int, ...] = ()  # indices of the turns it comes from
    written_by: str = ""  # model and prompt set
    id: int = -1  # assigned by the store

    def __post_init__(self) -> None:
        if self.kind not in SEMANTIC_KINDS:
            kinds = ", ".join(SEMANTIC_KINDS)
            raise ValueError(f"semantic memory of kind {self.kind!r}; choose from {kinds}")


@dataclass(frozen=True)
class Episode:
    """One topic of one session: its summary, its keywords and the indices of its turns."""

    summary: str
    keywords: str
    turns: tuple[int, ...]
    happened_from: datetime
    happened_to: datetime
    known_from: datetime
    written_by: str = ""
    id: int = -1

    @property
    def sources(self) -> tuple[int, ...]:
        return self.turns


@dataclass(frozen=True)
class Edit:
    """One operation that turns a version of core or procedural memory into the next."""

    op: str  # "add", "change" or "remove"
    block: str  # "human", "persona" or "entries"
    key: str
    value: str = ""  # empty for "remove"


# block -> key -> indices of the turns that the entry's present words come from
Origins = dict[str, dict[str, tuple[int, ...]]]


@dataclass(frozen=True)
class CoreMemory:
    """One version of the human and persona blocks. The store fills in `edits` and `origins`."""

    human: dict[str, str]
    persona: dict[str, str]
    known_from: datetime
    sources: tuple[int, ...] = ()  # indices of the turns that this version was written from
    written_by: str = ""
    edits: tuple[Edit, ...] = ()  # the difference from the previous version
    origins: Origins = field(default_factory=dict)

    @property
    def attributes(self) -> dict[str, str]:
        """The entries of both blocks, as prompts show them."""
        return {**self.human, **self.persona}


@dataclass(frozen=True)
class ProceduralMemory:
    """One version of the goals and habits, key -> sentence.

    Raises ValueError for more than `MAX_PROCEDURAL` entries.
    """

    entries: dict[str, str]
    known_from: datetime
    sources: tuple[int, ...] = ()
    written_by: str = ""
    edits: tuple[Edit, ...] = ()
    origins: Origins = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.entries) > MAX_PROCEDURAL:
            keys = ", ".join(self.entries)
            raise ValueError(
                f"procedural memory of {self.known_from} has {len(self.entries)} entries, "
                f"at most {MAX_PROCEDURAL} are kept (Fig. 19): merge or drop some of {keys}"
            )


@dataclass(frozen=True)
class PersonalityState:
    """The personality profile after a turn."""

    profile: BigFive  # p_m
    observed: BigFive | None  # p'_m, inferred from the turn; None if the reply was unreadable
    turn: int  # index of the turn
    m: int  # argument of the smoothing factor
    known_from: datetime
    written_by: str = ""

    @property
    def sources(self) -> tuple[int, ...]:
        return (self.turn,)


@dataclass(frozen=True)
class RejectedUpdate:
    """An update that a model proposed and that was not applied."""

    purpose: str  # of the request, such as "core"
    raw: str  # the model's reply
    reason: str
    known_from: datetime
    sources: tuple[int, ...] = ()
    written_by: str = ""


@dataclass(frozen=True)
class ForgetReceipt:
    """A receipt of one call of `forget`: numbers and ids of what it deleted, but no content."""

    asked: str  # the kind of selection, such as "turn" or "period"
    ids: dict[str, tuple[int, ...]]  # deleted rows of turns, semantic and episodic memory
    # Numbers of deleted rows, and of deleted entries and versions of core and procedural memory,
    # observed personalities, rejected updates, pending updates and image files.
    counts: dict[str, int]
    renewed: tuple[str, ...]  # recomputed from the remaining records
    known_from: datetime  # when it was deleted


Record = (
    Turn
    | SemanticMemory
    | Episode
    | CoreMemory
    | ProceduralMemory
    | PersonalityState
    | RejectedUpdate
    | ForgetReceipt
)
R = TypeVar("R", bound=Record)


def split_sessions(turns: Iterable[Turn], gap: timedelta = SESSION_GAP) -> list[list[Turn]]:
    """Split turns, in order of index, at each pause of at least `gap` (Algorithm 1, line 1).

    A clock that goes back by less than `gap` ends no session.
    """
    sessions: list[list[Turn]] = []
    for turn in turns:
        if not sessions or abs(turn.time - sessions[-1][-1].time) >= gap:
            sessions.append([])
        sessions[-1].append(turn)
    return sessions


def as_utc(time: datetime) -> datetime:
    """The time in UTC, without a zone. Raises ValueError for anything but a datetime."""
    if not isinstance(time, datetime):
        raise ValueError(f"{time!r} is no time: give a datetime")
    if time.tzinfo is None:
        return time
    return time.astimezone(UTC).replace(tzinfo=None)


def in_utc(record: R) -> R:
    """The record with all times in UTC; a turn's zone becomes its `utc_offset`.

    Raises ValueError if a time is not a datetime, or the record ends before it starts.
    """
    changed: dict[str, Any] = {}
    fields = vars(record)
    for name in fields.keys() & TIME_FIELDS:
        value = fields[name]
        if value is None and name == "received":
            continue
        if not isinstance(value, datetime):
            kind = type(record).__name__
            raise ValueError(f"{name} of a {kind} is {value!r}: give a datetime")
        if value.tzinfo:
            changed[name] = as_utc(value)
            if name == "time":
                changed["utc_offset"] = (value.utcoffset() or timedelta()) // timedelta(minutes=1)
    if changed:
        record = replace(record, **changed)
    if isinstance(record, SemanticMemory | Episode) and record.happened_to < record.happened_from:
        raise ValueError(
            f"a {type(record).__name__} of {record.happened_from} ends before that: "
            f"{record.happened_to}"
        )
    return record


def to_json(record: Record) -> str:
    """A record as one line of JSON, with times in ISO format; `from_json` is the inverse."""
    fields = {
        name: value
        for name, value in vars(record).items()
        if value is not None or name not in OPTIONAL_FIELDS
    }
    return json.dumps(fields, default=_json_value, ensure_ascii=False)


def _json_value(value: object) -> object:
    if isinstance(value, datetime):
        return value.isoformat()
    return vars(value)


# Controls except tab and line breaks, as they are and as JSON writes them
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f]")
_CONTROL_IN_JSON = re.compile(r"(?<!\\)((?:\\\\)*)\\(?:u00(?:0[0-8bcef]|1[0-9a-f])|[bf])")


def clean_text(text: str) -> str:
    """The text without control characters, and with lone surrogates replaced."""
    if not text.isascii():
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return _CONTROL.sub("", text)


def clean_json(text: str) -> str:
    """A record's JSON with all of its texts cleaned as by `clean_text`."""
    if text.isascii() and text.isprintable() and "\\" not in text:
        return text
    return _CONTROL_IN_JSON.sub(r"\1", clean_text(text))


def from_json(kind: type[R], text: str) -> R:
    """Read a record of class `kind`. Raises ValueError, KeyError or TypeError for other text."""
    fields = json.loads(text)
    for name, value in fields.items():
        if name in _FIELD_READERS and value is not None:
            fields[name] = _FIELD_READERS[name](value)
    return kind(**fields)


def _read_scores(scores: dict[str, float]) -> BigFive:
    return BigFive(**scores)


def _read_concept(concept: dict[str, str]) -> VisualConcept:
    return VisualConcept(**concept)


def _read_edits(edits: list[dict[str, str]]) -> tuple[Edit, ...]:
    return tuple(Edit(**edit) for edit in edits)


def _read_ids(ids: dict[str, list[int]]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(indices) for name, indices in ids.items()}


def _read_origins(origins: dict[str, dict[str, list[int]]]) -> Origins:
    return {block: _read_ids(keys) for block, keys in origins.items()}


# Field name -> the function that converts its JSON value to the field's type, if one is needed.
_TIMES = ("time", "happened_from", "happened_to", "known_from", "received")
_TUPLES = ("images", "image_at", "sources", "turns", "renewed")
_FIELD_READERS: dict[str, Callable[[Any], Any]] = {
    **dict.fromkeys(_TIMES, datetime.fromisoformat),
    **dict.fromkeys(_TUPLES, tuple),
    **dict.fromkeys(("profile", "observed"), _read_scores),
    "concept": _read_concept,
    "edits": _read_edits,
    "ids": _read_ids,
    "origins": _read_origins,
}
