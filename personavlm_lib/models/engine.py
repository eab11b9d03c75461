"""The engine that drives trajectories, and the recorder of what they said."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from personavlm_lib.models.chat import ChatModel, ChatReply, ChatRequest, Trajectory

T = TypeVar("T")


def run_trajectories(
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
    active: list[tuple[int, Trajectory[T], list, ChatRequest | tuple[ChatRequest, ...]]] = []

    def advance(
        index: int,
        trajectory: Trajectory[T],
        transcripts: list,
        reply: ChatReply | tuple[ChatReply, ...] | None,
    ):
        failed = [
            r for r in (reply if isinstance(reply, tuple) else [reply]) if isinstance(r, Exception)
        ]
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
            if several or asked.new_conversation or len(transcripts) != 1:
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

    def reply(self, asked: list[tuple[Any, ChatRequest]]) -> list[ChatReply | Exception]:
        replies = self.model.reply([(transcript, ask) for (transcript, _), ask in asked])
        for ((_, sample), ask), reply in zip(asked, replies, strict=True):
            if isinstance(reply, Exception):
                continue
            sample["purpose"] = sample["purpose"] or ask.purpose
            sample["messages"] += [
                {"role": "user", "content": ask.text},
                {"role": "assistant", "content": reply.text},
            ]
            sample["images"] += ask.images
        return replies
