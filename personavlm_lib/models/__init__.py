"""How a model is asked. A trajectory is a generator that yields `Ask`s and is sent `Reply`s; it holds no model.

The driver `run` owns nothing but the order of things; the model owns the transcript, in the form its back-end needs.
"""

from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Ask:
    """A request for one generation: only what is new since the trajectory's last ask.

    `text` is the new user message; each `<img>` mark in it stands for the next of `images` (file paths). `fresh` starts
    a new conversation. `purpose` and `about` say what is asked and about what (a turn, a query), `shown` what the text
    was made from (the slots of the prompt): for logs and for the oracle; no language model sees them.
    """

    text: str
    images: tuple[str, ...] = ()
    max_tokens: int = 256
    fresh: bool = False
    purpose: str = ""
    about: Any = None
    shown: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        if self.text.count("<img>") != len(self.images):
            raise ValueError(
                f"{self.purpose or 'ask'}: {self.text.count('<img>')} <img> marks, {len(self.images)} images"
            )


@dataclass(frozen=True)
class Reply:
    """One generation: its text, and how many tokens went in and came out."""

    text: str
    tokens_in: int = 0
    tokens_out: int = 0


# A trajectory may also yield several asks at once, each of a new conversation, and is then sent as many replies.
Trajectory = Generator[Ask | tuple[Ask, ...], Reply | tuple[Reply, ...], T]


class ChatModel(Protocol):
    """Anything that answers asks. `start` opens a transcript; `reply` answers one ask per transcript, in order.

    What an ask alone fails with stands in its reply's place (a context that is too long, an image that is none).
    """

    def start(self) -> Any: ...

    def reply(self, asked: list[tuple[Any, Ask]]) -> list[Reply | Exception]: ...


def run(
    trajectories: Iterable[Trajectory[T]], model: ChatModel, width: int = 48,
    on_error: Callable[[Exception, list], T] | None = None,
) -> list[T]:  # fmt: skip
    """Drives trajectories to their ends, up to `width` side by side; results in the order given.

    In rounds: the pending asks form one batch; a finished trajectory's place is taken in the next round. A failed ask
    is thrown into its trajectory. What a trajectory then raises is raised here, or with `on_error` ends that one alone:
    its result is what `on_error` makes of the error and the transcripts that were open.
    """
    results: dict[int, T] = {}
    waiting = enumerate(trajectories)
    active: list[tuple[int, Trajectory[T], list, Ask | tuple[Ask, ...]]] = []

    def advance(index: int, trajectory: Trajectory[T], transcripts: list, reply: Reply | tuple[Reply, ...] | None):
        failed = [r for r in (reply if isinstance(reply, tuple) else [reply]) if isinstance(r, Exception)]
        try:
            asked = trajectory.throw(failed[0]) if failed else trajectory.send(reply)
        except StopIteration as end:
            results[index] = end.value
        except Exception as error:
            if on_error is None:
                raise
            results[index] = on_error(error, transcripts)
        else:
            several = isinstance(asked, tuple)
            if several or asked.fresh or len(transcripts) != 1:
                transcripts = [model.start() for _ in (asked if several else [asked])]
            active.append((index, trajectory, transcripts, asked))

    while True:
        while len(active) < width and (fresh := next(waiting, None)) is not None:
            advance(*fresh, [], None)
        if not active:
            return [results[i] for i in range(len(results))]
        round_, active = active, []
        pairs = [
            pair for *_, transcripts, asked in round_
            for pair in zip(transcripts, asked if isinstance(asked, tuple) else [asked], strict=True)
        ]  # fmt: skip
        replies = iter(model.reply(pairs))
        for index, trajectory, transcripts, asked in round_:
            several = isinstance(asked, tuple)
            reply = tuple(next(replies) for _ in asked) if several else next(replies)
            advance(index, trajectory, transcripts, reply)


@dataclass
class Recorder:
    """A ChatModel that passes asks on and keeps every conversation as chat messages: what SFT samples are made of."""

    model: ChatModel
    samples: list[dict]

    def start(self) -> tuple[Any, dict]:
        sample = {"purpose": "", "messages": [], "images": []}
        self.samples.append(sample)
        return self.model.start(), sample

    def reply(self, asked: list[tuple[Any, Ask]]) -> list[Reply | Exception]:
        replies = self.model.reply([(transcript, ask) for (transcript, _), ask in asked])
        for ((_, sample), ask), reply in zip(asked, replies, strict=True):
            if isinstance(reply, Exception):
                continue
            sample["purpose"] = sample["purpose"] or ask.purpose
            sample["messages"] += [{"role": "user", "content": ask.text}, {"role": "assistant", "content": reply.text}]
            sample["images"] += ask.images
        return replies
