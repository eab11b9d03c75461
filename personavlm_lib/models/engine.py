"""The engine that runs trajectories against a model, and a recorder of their conversations."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from personavlm_lib.models.chat import ChatModel, ChatReply, ChatRequest, Trajectory

T = TypeVar("T")


@dataclass
class _Active(Generic[T]):
    """A trajectory that waits for a reply."""

    index: int  # position of its result
    trajectory: Trajectory[T]
    transcripts: list[Any]
    pending: ChatRequest | tuple[ChatRequest, ...]


def run_trajectories(
    trajectories: Iterable[Trajectory[T]],
    model: ChatModel,
    width: int = 48,
    on_error: Callable[[Exception, list], T] | None = None,
) -> list[T]:
    """Run trajectories to their ends, up to `width` at a time; return the results in input order.

    Works in rounds: the pending requests of all active trajectories form one batch, and the places
    of finished trajectories are filled before the next round. The exception of a failed request is
    thrown into its trajectory. An exception that a trajectory raises is raised here, or, with
    `on_error`, ends only that trajectory: its result is `on_error(exception, open transcripts)`.
    """
    results: dict[int, T] = {}
    waiting = enumerate(trajectories)
    active: list[_Active[T]] = []

    def advance(index: int, trajectory: Trajectory[T], transcripts: list, reply: Any) -> None:
        """Resume a trajectory; store its result if it ends, else add it to the active ones."""
        try:
            pending = _resume(trajectory, reply)
        except StopIteration as end:
            results[index] = end.value
        except Exception as error:
            if on_error is None:
                raise
            results[index] = on_error(error, transcripts)
        else:
            transcripts = _open_transcripts(model, transcripts, pending)
            active.append(_Active(index, trajectory, transcripts, pending))

    while True:
        while len(active) < width:
            fresh = next(waiting, None)
            if fresh is None:
                break
            index, trajectory = fresh
            advance(index, trajectory, [], None)
        if not active:
            return [results[i] for i in range(len(results))]
        current = active.copy()
        active.clear()
        replies = _request_replies(model, current)
        for item, reply in zip(current, replies, strict=True):
            advance(item.index, item.trajectory, item.transcripts, reply)


def _resume(trajectory: Trajectory[T], reply: Any) -> ChatRequest | tuple[ChatRequest, ...]:
    """Send a reply (None to start), or throw the first exception in it; return the next request."""
    for part in _as_tuple(reply):
        if isinstance(part, Exception):
            return trajectory.throw(part)
    return trajectory.send(reply)


def _open_transcripts(
    model: ChatModel, current: list, pending: ChatRequest | tuple[ChatRequest, ...]
) -> list:
    """The transcripts for pending requests: the current one, unless they start conversations."""
    if isinstance(pending, tuple):
        return [model.start() for _ in pending]
    if pending.new_conversation or len(current) != 1:
        return [model.start()]
    return current


def _request_replies(model: ChatModel, active: Sequence[_Active]) -> list[Any]:
    """Send all pending requests as one batch; return one reply or tuple per trajectory."""
    asked: list[tuple[Any, ChatRequest]] = []
    for item in active:
        asked += zip(item.transcripts, _as_tuple(item.pending), strict=True)
    replies = iter(model.reply(asked))
    result: list[Any] = []
    for item in active:
        if isinstance(item.pending, tuple):
            result.append(tuple(next(replies) for _ in item.pending))
        else:
            result.append(next(replies))
    return result


def _as_tuple(value: Any) -> tuple:
    return value if isinstance(value, tuple) else (value,)


@dataclass
class Recorder:
    """A ChatModel that wraps another and records each conversation as chat messages.

    SFT samples are made from `samples`: one dict with "purpose", "messages" and "images" for each
    conversation.
    """

    model: ChatModel
    samples: list[dict]

    def start(self) -> tuple[Any, dict]:
        sample: dict[str, Any] = {"purpose": "", "messages": [], "images": []}
        self.samples.append(sample)
        return self.model.start(), sample

    def reply(self, asked: list[tuple[Any, ChatRequest]]) -> list[ChatReply | Exception]:
        inner = [(transcript, request) for (transcript, _), request in asked]
        replies = self.model.reply(inner)
        for (transcript, request), reply in zip(asked, replies, strict=True):
            if isinstance(reply, Exception):
                continue
            _, sample = transcript
            if not sample["purpose"]:
                sample["purpose"] = request.purpose
            user = {"role": "user", "content": request.text}
            assistant = {"role": "assistant", "content": reply.text}
            sample["messages"] += [user, assistant]
            sample["images"] += request.images
        return replies
