"""PersonaVLM as a person uses it: it answers at once, and remembers when idle (Algorithm 1).

    with PersonaVLM(MemoryStore("memory/kai"), model, PromptSet("full"), eyes=eyes) as assistant:
        print(assistant.chat("My cat Miso is three today!"))

What a reply knows: the raw turns of the last hour, at once; everything derived (semantic memory, personality) from the
moment a background worker has it, after `flush` in any case. Only where a new session begins does `chat` wait for the
updates of the one before (lines 1-3), since its turns are in the context no longer. What is pending stands in the
database, written together with its turn and taken off together with what it led to: a crash loses nothing and doubles
nothing, and the next PersonaVLM on that memory goes on.
"""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import datetime
from threading import Event, Lock
from typing import Any

from personavlm_lib.agent.prompt_sets import PromptSet
from personavlm_lib.agent.respond import AgentSettings, Response, respond
from personavlm_lib.agent.update import update_session, update_turn
from personavlm_lib.memory.images import read_image
from personavlm_lib.memory.records import SESSION_GAP, Turn, check_times, split_sessions
from personavlm_lib.memory.search import Retriever
from personavlm_lib.memory.store import MemoryStore, MemoryView
from personavlm_lib.memory.vision import ConceptRecognizer
from personavlm_lib.models.chat import ChatModel, ChatReply, ChatRequest, Trajectory
from personavlm_lib.models.engine import run_trajectories


@dataclass
class _Shared:
    """A model that two threads ask in turns, generation by generation: a reply waits for no whole update."""

    model: ChatModel
    lock: Lock = field(default_factory=Lock)

    def start(self) -> Any:
        return self.model.start()

    def reply(self, asked: list[tuple[Any, ChatRequest]]) -> list[ChatReply]:
        with self.lock:
            return self.model.reply(asked)


class PersonaVLM:
    """An assistant for the user whose memory is `store`; `name` says of the memories which model wrote them.

    Close it, or use it as a context manager. Times are the conversation's own (None: now) and never run backwards.
    """

    def __init__(
        self,
        store: MemoryStore,
        model: ChatModel,
        prompts: PromptSet,
        retriever: Retriever | None = None,
        recognizer: ConceptRecognizer | None = None,
        name: str = "",
    ) -> None:
        self.store, self.retriever, self.recognizer, self.name = (
            store,
            retriever or Retriever(),
            recognizer,
            name,
        )
        self.settings = AgentSettings(prompts)
        self._model, self._closing = _Shared(model), Event()
        self._now = max((turn.time for turn in store.as_of().turns[-1:]), default=datetime.min)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="memory")
        self._last = self._wake()

    def __enter__(self) -> "PersonaVLM":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def memory(self) -> MemoryView:
        """All that is known by now."""
        return self.store.as_of()

    def chat(self, text: str, images: Sequence[str] = (), time: datetime | None = None) -> str:
        """Answers, keeps the exchange and has the memory updated in the background; "" if no answer was reached.

        FileNotFoundError or ValueError, and nothing kept, for an image that is none and a time that is none.
        """
        query = self._query(text, images, time)
        if query.time - self._now >= SESSION_GAP:
            self.flush(query.time)
        self._now = query.time
        answer = (self._respond(query).answer or "").replace(
            "<img>", ""
        )  # where it is shown, a mark promises an image
        self.store.add_turn(replace(query, assistant=answer), pending=True)
        self._last = self._wake()
        return answer

    def ask(self, text: str, images: Sequence[str] = (), time: datetime | None = None) -> Response:
        """Answers without keeping anything: the answer with its steps and what they retrieved."""
        return self._respond(self._query(text, images, time))

    def flush(self, now: datetime | None = None, timeout: float | None = None) -> None:
        """Waits until nothing is pending: with `now`, nor of the sessions that are over by then.

        Raises what stopped the worker, if anything did; the work stays pending, and the next flush tries again.
        TimeoutError after `timeout` seconds.
        """
        self._now = max(now or self._now, self._now)
        self._last = self._wake()
        self._last.result(timeout)

    def close(self) -> None:
        """Ends the worker after what it is at. What is pending stays so, until the memory is opened again."""
        self._closing.set()
        self._pool.shutdown()

    def _query(self, text: str, images: Sequence[str], time: datetime | None) -> Turn:
        text += " <img>" * (
            len(images) - text.count("<img>")
        )  # images that the text does not place come last
        query = Turn(time or datetime.now(), text, images=tuple(images))
        check_times(query)
        for path in images:
            read_image(path)
        if query.time < self._now:
            raise ValueError(f"times do not run backwards: {query.time} after {self._now}")
        return query

    def _respond(self, query: Turn) -> Response:
        recognize = self.recognizer.recognize if self.recognizer else None
        (response,) = run_trajectories(
            [respond(query, self.memory, self.retriever, self.settings, recognize)], self._model
        )
        return response

    def _wake(self) -> "Future[None]":
        return self._pool.submit(self._work)

    def _work(self) -> None:
        while not self._closing.is_set() and (work := self._next()):
            run_trajectories([work], self._model)

    def _next(self) -> Trajectory[None] | None:
        """The oldest work that is due, in the order of `live`: each turn, then its session once that is over."""
        jobs, view = self.store.pending(), self.memory
        turns = [job for job in jobs if job.work == "turn"]
        waiting = {job.turn: job for job in jobs if job.work == "session"}
        first = next(iter(split_sessions(view.turn(index) for index in waiting)), [])
        over = bool(first) and first[-1].time + SESSION_GAP <= self._now
        prompts = self.settings.prompts
        if over and not (turns and turns[0].turn <= first[-1].index):
            return update_session(
                self.store, first, prompts, self.name, [waiting[turn.index] for turn in first]
            )
        if turns:
            return update_turn(
                self.store, view.turn(turns[0].turn), prompts, self.recognizer, self.name, turns[:1]
            )
        return None
