"""The policy for samples that get no reply: they are not scored, and many in a row stop a stage.

A failure of the server, the key, the network or a picture says nothing about the model. Its sample
stays unscored, is counted, and is tried again when the stage runs again. A reply that cannot be
parsed is the model's own and is scored.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from personavlm_lib.models.chat import RequestFailure

UNFINISHED = ".unfinished.jsonl"  # ends the name of a file of answers that lack some
FAILURES_IN_A_ROW = 16  # after which a stage stops


class StageStopped(RuntimeError):
    """Too many samples in a row failed; what was finished before is kept."""


class UnfinishedMemory(RequestFailure):
    """The memory of a user is not complete, so that nothing can be asked about it."""

    def __init__(self, user: str):
        super().__init__("unfinished memory", f"the memory of {user} is unfinished")


class NoReply(str):
    """Stands where a text or the `answer` of a Response is missing; `error` says why."""

    answer = None
    error: str

    def __new__(cls, error: Exception) -> "NoReply":
        reply = super().__new__(cls)
        reply.error = str(error)
        return reply


@dataclass
class FailurePolicy:
    """The `on_error` and `on_result` of `run_trajectories`, for one batch of samples.

    `failed` makes the result of a failed sample, `keep` receives the position and the result of
    each other sample when it is there. Raises StageStopped after `limit` failures in a row, and any
    exception that is no failed request.
    """

    failed: Callable[[Exception], Any]
    keep: Callable[[int, Any], None] | None = None
    limit: int = FAILURES_IN_A_ROW
    in_a_row: int = 0

    def on_result(self, index: int, result: Any) -> None:
        self.in_a_row = 0
        if self.keep:
            self.keep(index, result)

    def on_error(self, error: Exception, _: list) -> Any:
        if not isinstance(error, ValueError):  # of which RequestFailure is a kind
            raise error
        if not isinstance(error, UnfinishedMemory):
            self.in_a_row += 1
        if self.in_a_row >= self.limit:
            raise StageStopped(
                f"stopped after {self.in_a_row} failures in a row; what was finished is kept, so "
                f"run the stage again once this is solved: {error}"
            ) from error
        return self.failed(error)
