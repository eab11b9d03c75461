"""How a model is asked. A trajectory is a generator that yields `Ask`s and is sent `Reply`s; it holds no model.

The driver `run` owns nothing but the order of things; the model owns the transcript, in the form its back-end needs.
"""

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class ChatRequest:
    """A request for one generation: only what is new since the trajectory's last ask.

    `text` is the new user message; each `<img>` mark in it stands for the next of `images` (file paths). `new_conversation` starts
    a new conversation. `purpose` and `subject` say what is asked and about what (a turn, a query), `slots` what the text
    was made from (the slots of the prompt): for logs and for the oracle; no language model sees them.
    """

    text: str
    images: tuple[str, ...] = ()
    max_tokens: int = 256
    new_conversation: bool = False
    purpose: str = ""
    subject: Any = None
    slots: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        if self.text.count("<img>") != len(self.images):
            raise ValueError(
                f"{self.purpose or 'ask'}: {self.text.count('<img>')} <img> marks, {len(self.images)} images"
            )


@dataclass(frozen=True)
class ChatReply:
    """One generation: its text, and how many tokens went in and came out."""

    text: str
    tokens_in: int = 0
    tokens_out: int = 0


# A trajectory may also yield several asks at once, each of a new conversation, and is then sent as many replies.
Trajectory = Generator[ChatRequest | tuple[ChatRequest, ...], ChatReply | tuple[ChatReply, ...], T]


class ChatModel(Protocol):
    """Anything that answers asks. `start` opens a transcript; `reply` answers one ask per transcript, in order.

    What an ask alone fails with stands in its reply's place (a context that is too long, an image that is none).
    """

    def start(self) -> Any: ...

    def reply(self, asked: list[tuple[Any, ChatRequest]]) -> list[ChatReply | Exception]: ...
