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
    """One generation: its text, the numbers of input and output tokens, and why it stopped.

    `stop` is "stop", "length" (cut at the token limit), "overflow" (cut at the end of the context
    window), "refusal", "filter", "tool call", or the server's own words. Reasoning that a server
    returns apart stands before the text, as `<think>...</think>`.
    """

    text: str
    tokens_in: int = 0
    tokens_out: int = 0
    stop: str = "stop"

    @property
    def is_cut(self) -> bool:
        return self.stop in ("length", "overflow")


class RequestFailure(ValueError):
    """A request without a reply. It says nothing about the model, so nothing is scored.

    `kind` is a short reason that can be counted, such as "timeout". A reply that cannot be parsed
    is no failure: it is the model's, and scored. `pause` is None unless the same request may
    succeed after that many seconds (0: the server does not say how many).
    """

    pause: float | None = None

    def __init__(self, kind: str, message: str):
        super().__init__(message)
        self.kind = kind


class ContextOverflow(RequestFailure):
    """The prompt and the room for the reply exceed the context window.

    `fits` is the share of the prompt that would fit, if known. A shorter prompt may be sent.
    """

    def __init__(self, message: str, fits: float = 0.75):
        super().__init__("overflow", message)
        self.fits = fits


# A trajectory yields one request and is sent one ChatReply, or yields a tuple of requests, each in
# a new conversation, and is sent a tuple of ChatReplies. The send type is Any because it depends on
# what was yielded, which the type system cannot express.
Trajectory = Generator[ChatRequest | tuple[ChatRequest, ...], Any, T]


class ChatModel(Protocol):
    """A model that answers requests.

    A model whose requests are independent of each other, such as a server, also has an attribute
    `connections`: how many of them it answers at a time, each in a call of `reply` of its own and
    in any thread.
    """

    def start(self) -> Any:
        """Open a transcript."""

    def reply(self, asked: list[tuple[Any, ChatRequest]]) -> list[ChatReply | Exception]:
        """Answer one request per transcript, in order.

        If a single request fails (its context is too long, an image is unreadable), its exception,
        a RequestFailure or a ValueError, takes the place of its reply.
        """
        ...
