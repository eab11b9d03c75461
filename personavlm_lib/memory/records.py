"""The records of a remembered life (Section 3 and Appendix A.1), and how they are written to a row.

Two clocks. `happened_from` and `happened_to` say when the thing took place: the period filter tests them, by overlap.
`known_from` says since when the agent knows it: `MemoryStore.as_of` tests it. What is derived at a session's end is
known from the session's last turn plus `SESSION_GAP`, whenever it was computed. Times carry no zone.
"""

import json
from collections.abc import Iterable
from dataclasses import astuple, dataclass, field
from datetime import datetime, timedelta
from typing import TypeVar

TRAITS = ("openness", "conscientiousness", "extraversion", "agreeableness", "neuroticism")
SESSION_GAP = timedelta(minutes=60)  # t_s of Eq. (1)
SEMANTIC_KINDS = ("directive", "fact", "preference", "concept")  # Appendix A.1
MAX_PROCEDURAL = 5  # Fig. 19: "must not exceed 5 entries"


@dataclass(frozen=True)
class BigFive:
    """The five traits, each a score from 1 to 5 with 3 as neutral (Appendix A.1). ValueError outside of that."""

    openness: float
    conscientiousness: float
    extraversion: float
    agreeableness: float
    neuroticism: float

    def __post_init__(self) -> None:
        for trait in TRAITS:
            if not 1 <= getattr(self, trait) <= 5:
                raise ValueError(
                    f"{trait} is {getattr(self, trait)}; a Big Five score lies between 1 and 5"
                )

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


@dataclass(frozen=True)
class Turn:
    """One exchange. `images` are paths, in the order of the `<img>` marks in `user`."""

    time: datetime
    user: str
    assistant: str = ""
    images: tuple[str, ...] = ()
    index: int = -1  # position in this user's life; given by the store

    # A turn is on the same timeline as the memories: it takes place, and is known, at its time.
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
        return self.time


@dataclass(frozen=True)
class VisualConcept:
    """ "simple description <image>" (Appendix A.1): what the user calls it, its class, the path of its crop."""

    description: str
    class_name: str
    crop: str


@dataclass(frozen=True)
class SemanticMemory:
    """One piece of event-independent knowledge. ValueError for a `kind` that is none of `SEMANTIC_KINDS`."""

    content: str
    keywords: str
    happened_from: datetime
    happened_to: datetime
    known_from: datetime
    kind: str = "fact"
    concept: VisualConcept | None = None
    sources: tuple[int, ...] = ()  # indices of the turns it comes from
    written_by: str = ""
    id: int = -1

    def __post_init__(self) -> None:
        if self.kind not in SEMANTIC_KINDS:
            raise ValueError(
                f"semantic memory of kind {self.kind!r}; choose from {', '.join(SEMANTIC_KINDS)}"
            )


@dataclass(frozen=True)
class Episode:
    """One topic of one session: its summary, keywords and the indices of its turns."""

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
    """One operation on a version: `op` is add, change or remove; `block` is human, persona or entries."""

    op: str
    block: str
    key: str
    value: str = ""  # empty where it removes


Origins = dict[
    str, dict[str, tuple[int, ...]]
]  # block -> key -> the turns that its present words come from


@dataclass(frozen=True)
class CoreMemory:
    """One version of the human and persona blocks. `edits` and `origins` are filled in by the store."""

    human: dict[str, str]
    persona: dict[str, str]
    known_from: datetime
    sources: tuple[int, ...] = ()  # what the edits were made from
    written_by: str = ""
    edits: tuple[Edit, ...] = ()  # what turned the version before into this one
    origins: Origins = field(default_factory=dict)


@dataclass(frozen=True)
class ProceduralMemory:
    """One version of the goals and habits: key -> sentence. ValueError with more than `MAX_PROCEDURAL`."""

    entries: dict[str, str]
    known_from: datetime
    sources: tuple[int, ...] = ()
    written_by: str = ""
    edits: tuple[Edit, ...] = ()
    origins: Origins = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.entries) > MAX_PROCEDURAL:
            raise ValueError(
                f"procedural memory of {self.known_from} has {len(self.entries)} entries, at most {MAX_PROCEDURAL} "
                f"are kept (Fig. 19): merge or drop some of {', '.join(self.entries)}"
            )


@dataclass(frozen=True)
class PersonalityState:
    """The profile p_m after a turn, and what was observed in it (p'_m; None if the model gave nothing readable)."""

    profile: BigFive
    observed: BigFive | None
    turn: int  # the turn's index
    m: int  # the count that the smoothing factor was asked for
    known_from: datetime
    written_by: str = ""

    @property
    def sources(self) -> tuple[int, ...]:
        return (self.turn,)


@dataclass(frozen=True)
class RejectedUpdate:
    """What a model proposed and was not taken over: for what, its raw words, and why not."""

    purpose: str
    raw: str
    reason: str
    known_from: datetime
    sources: tuple[int, ...] = ()
    written_by: str = ""


@dataclass(frozen=True)
class ForgetReceipt:
    """What a forgetting took: numbers and ids, and nothing of what was said. `known_from` is when it was done.

    `ids` names rows (turns, semantic, episodic); `counts` all else too: entries and versions of core and procedural
    memory, observed personalities, refusals, pending work, image files. `renewed` was derived anew from what is left.
    """

    asked: str
    ids: dict[str, tuple[int, ...]]
    counts: dict[str, int]
    renewed: tuple[str, ...]
    known_from: datetime


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
    """Cut turns, given in order of time, wherever a gap of at least `gap` lies between two (Algorithm 1, line 1)."""
    sessions: list[list[Turn]] = []
    for turn in turns:
        if not sessions or turn.time - sessions[-1][-1].time >= gap:
            sessions.append([])
        sessions[-1].append(turn)
    return sessions


def check_times(record: Record) -> None:
    """ValueError if a time of the record is none, carries a zone, or if it ends before it starts."""
    for name in ("time", "happened_from", "happened_to", "known_from"):
        value = getattr(record, name, datetime.min)
        if not isinstance(value, datetime) or value.tzinfo:
            raise ValueError(
                f"{name} of a {type(record).__name__} is {value!r}: give a datetime without a time zone"
            )
    if getattr(record, "happened_to", datetime.max) < getattr(
        record, "happened_from", datetime.min
    ):
        raise ValueError(
            f"a {type(record).__name__} of {record.happened_from} ends before that: {record.happened_to}"
        )


_REBUILD = {
    **dict.fromkeys(("time", "happened_from", "happened_to", "known_from"), datetime.fromisoformat),
    **dict.fromkeys(("images", "sources", "turns", "renewed"), tuple),
    **dict.fromkeys(("profile", "observed"), lambda scores: BigFive(**scores)),
    "concept": lambda fields: VisualConcept(**fields),
    "edits": lambda edits: tuple(Edit(**edit) for edit in edits),
    "ids": lambda ids: {kind: tuple(rows) for kind, rows in ids.items()},
    "origins": lambda blocks: {
        b: {k: tuple(turns) for k, turns in keys.items()} for b, keys in blocks.items()
    },
}


def to_json(record: Record) -> str:
    """A record as one line of JSON, times in ISO format; `from_json` gives back an equal record."""
    return json.dumps(vars(record), default=_plain, ensure_ascii=False)


def _plain(value: object) -> object:
    return value.isoformat() if isinstance(value, datetime) else vars(value)


def from_json(kind: type[R], text: str) -> R:
    """The record of that kind. ValueError, KeyError or TypeError if the text is not one."""
    fields = json.loads(text)
    return kind(
        **{k: _REBUILD[k](v) if k in _REBUILD and v is not None else v for k, v in fields.items()}
    )
