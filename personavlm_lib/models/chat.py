"""The interface between the agent and a model: requests, replies, trajectories and ChatModel.

A trajectory is a generator that yields `ChatRequest`s and is sent `ChatReply`s; it holds no model.
`engine.run_trajectories` only decides the order of requests. The model owns the transcript, in the
form that its back end needs.
"""

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class ChatRequest:
    """A request for one generation, without the text of the trajectory's earlier requests.

    `text` is the new user message; each `<img>` mark in it refers to the next of `images` (file
    paths). `new_conversation` starts a new conversation. `purpose`, `subject` and `slots` are for
    logs and for the oracle (`benchmark/oracle.py`), and no language model reads them: the kind of
    request, its subject (a turn, a query), and the values that fill the prompt's slots. Raises
    ValueError if the numbers of marks and images differ.
    """

    text: str
    images: tuple[str, ...] = ()
    max_tokens: int = 256
    new_conversation: bool = False
    purpose: str = ""
    subject: Any = None
    slots: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        marks = self.text.count("<img>")
        images = len(self.images)
        if marks != images:
            name = self.purpose or "request"
            raise ValueError(f"{name}: {marks} <img> marks, {images} images")


@dataclass(frozen=True)
class ChatReply:
    """One generation: its text, and the numbers of input and output tokens."""

    text: str
    tokens_in: int = 0
    tokens_out: int = 0


# A trajectory yields one request and is sent one ChatReply, or yields a tuple of requests, each in
# a new conversation, and is sent a tuple of ChatReplies. The send type is Any because it depends on
# what was yielded, which the type system cannot express.
Trajectory = Generator[ChatRequest | tuple[ChatRequest, ...], Any, T]


class ChatModel(Protocol):
    """A model that answers requests."""

    def start(self) -> Any:
        """Open a transcript."""

    def reply(self, asked: list[tuple[Any, ChatRequest]]) -> list[ChatReply | Exception]:
        """Answer one request per transcript, in order.

        If a single request fails (its context is too long, an image is unreadable), its exception
        takes the place of its reply.
        """
        ...
