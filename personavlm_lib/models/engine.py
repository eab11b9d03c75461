"""The engine that runs trajectories against a model, and a recorder of their conversations."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

from personavlm_lib.models.chat import ChatModel, ChatReply, ChatRequest, Trajectory

T = TypeVar("T")


@dataclass(eq=False)
class _Active(Generic[T]):
    """A trajectory that waits for replies; `replies` holds those that have arrived, by position."""

    index: int  # position of its result
    trajectory: Trajectory[T]
    transcripts: list[Any]
    pending: ChatRequest | tuple[ChatRequest, ...]
    replies: dict[int, Any] = field(default_factory=dict)

    def asked(self) -> list[tuple[Any, ChatRequest]]:
        return list(zip(self.transcripts, _as_tuple(self.pending), strict=True))

    def reply(self) -> Any:
        """The reply, or a tuple of replies if the trajectory yielded a tuple."""
        if isinstance(self.pending, tuple):
            return tuple(self.replies[n] for n in range(len(self.pending)))
        return self.replies[0]


def run_trajectories(
    trajectories: Iterable[Trajectory[T]],
    model: ChatModel,
    width: int = 48,
    on_error: Callable[[Exception, list], T] | None = None,
    on_result: Callable[[int, T], None] | None = None,
) -> list[T]:
    """Run trajectories to their ends, several at a time; return the results in input order.

    The model decides the order of requests. By default they go out in rounds: the pending requests
    of up to `width` active trajectories form one batch, and the places of finished trajectories are
    filled before the next round. With a model that has `connections`, each trajectory goes on as
    soon as its own replies arrive, and up to `connections` requests are under way.

    The exception of a failed request is thrown into its trajectory. An exception that a trajectory
    raises is raised here, or, with `on_error`, ends only that trajectory: its result is
    `on_error(exception, open transcripts)`. `on_result` is called with the position and the result
    of each other trajectory when it ends.
    """
    run = _Run(enumerate(trajectories), model, on_error, on_result)
    connections = getattr(model, "connections", 0)
    if connections:
        run.as_replies_arrive(connections)
    else:
        run.in_rounds(width)
    return [run.results[i] for i in range(len(run.results))]


@dataclass
class _Run(Generic[T]):
    """One call of `run_trajectories`; `waiting` are the trajectories that have not started."""

    waiting: Iterator[tuple[int, Trajectory[T]]]
    model: ChatModel
    on_error: Callable[[Exception, list], T] | None
    on_result: Callable[[int, T], None] | None
    results: dict[int, T] = field(default_factory=dict)

    def next_active(self) -> _Active[T] | None:
        """Start waiting trajectories until one of them makes a request; None if none is left."""
        for index, trajectory in self.waiting:
            item = self.advance(index, trajectory, [], None)
            if item:
                return item
        return None

    def advance(
        self, index: int, trajectory: Trajectory[T], transcripts: list, reply: Any
    ) -> _Active[T] | None:
        """Resume a trajectory; store its result if it ends, else return it as active."""
        try:
            pending = _resume(trajectory, reply)
        except StopIteration as end:
            self.results[index] = end.value
            if self.on_result:
                self.on_result(index, end.value)
        except Exception as error:
            if self.on_error is None:
                raise
            self.results[index] = self.on_error(error, transcripts)
        else:
            transcripts = _open_transcripts(self.model, transcripts, pending)
            return _Active(index, trajectory, transcripts, pending)
        return None

    def resume(self, item: _Active[T]) -> _Active[T] | None:
        """Advance a trajectory whose replies have all arrived."""
        return self.advance(item.index, item.trajectory, item.transcripts, item.reply())

    def in_rounds(self, width: int) -> None:
        """Send all pending requests as one batch, again and again."""
        active: list[_Active[T]] = []
        while True:
            while len(active) < width:
                fresh = self.next_active()
                if fresh is None:
                    break
                active.append(fresh)
            if not active:
                return
            asked = [pair for item in active for pair in item.asked()]
            replies = iter(self.model.reply(asked))
            for item in active:
                item.replies = dict(enumerate(islice(replies, len(item.transcripts))))
            resumed = [self.resume(item) for item in active]
            active = [item for item in resumed if item]

    def as_replies_arrive(self, connections: int) -> None:
        """Send each request at once, and resume each trajectory when its replies are complete."""
        arrived: SimpleQueue[Future] = SimpleQueue()
        origins: dict[Future, tuple[_Active[T], int]] = {}
        pool = ThreadPoolExecutor(connections)

        def send(item: _Active[T]) -> None:
            for n, pair in enumerate(item.asked()):
                future = pool.submit(self.model.reply, [pair])
                origins[future] = item, n
                future.add_done_callback(arrived.put)

        def start(item: _Active[T] | None) -> None:
            """Send the requests of a trajectory, or of the next one if it has ended."""
            item = item or self.next_active()
            if item:
                send(item)

        try:
            for _ in range(connections):
                start(None)
            while origins:
                future = arrived.get()
                item, n = origins.pop(future)
                [item.replies[n]] = future.result()
                if len(item.replies) == len(item.transcripts):
                    start(self.resume(item))
        finally:  # after Ctrl-C, do not wait for the server
            pool.shutdown(wait=False, cancel_futures=True)


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
