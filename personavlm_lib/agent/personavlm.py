"""The assistant that a user talks to: it answers at once and updates its memory in the background.

    store = MemoryStore("memory/kai")
    with PersonaVLM(store, model, PromptSet("full"), recognizer=recognizer) as assistant:
        print(assistant.chat("My cat Miso is three today!"))

The prompt of a reply contains the raw turns of the last hour. Derived memory (semantic memory,
personality) is available as soon as a background worker has written it, at the latest after
`flush`. Only the first `chat` of a new session waits for the updates of the previous session
(Algorithm 1, lines 1-3), because those turns are no longer in the context. Pending updates are
stored in the database, written together with their turn and removed together with their results. A
crash therefore neither loses nor repeats an update, and the next PersonaVLM on the same memory
continues.
"""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import datetime
from threading import Event, Lock
from typing import TYPE_CHECKING, Any

from personavlm_lib.agent.prompt_sets import PromptSet
from personavlm_lib.agent.respond import AgentSettings, Response, respond
from personavlm_lib.agent.update import update_session, update_turn
from personavlm_lib.memory.images import read_image
from personavlm_lib.memory.records import SESSION_GAP, Turn, as_utc, in_utc, split_sessions
from personavlm_lib.memory.search import Retriever
from personavlm_lib.memory.store import MemoryStore, MemoryView
from personavlm_lib.models.chat import ChatModel, ChatReply, ChatRequest, Trajectory
from personavlm_lib.models.engine import run_trajectories

if TYPE_CHECKING:
    from personavlm_lib.memory.vision import ConceptRecognizer


@dataclass
class _SharedModel:
    """A model used by two threads, one generation at a time.

    A reply to the user waits for at most one generation of the worker, never for a whole update.
    """

    model: ChatModel
    lock: Lock = field(default_factory=Lock)

    def start(self) -> Any:
        return self.model.start()

    def reply(self, asked: list[tuple[Any, ChatRequest]]) -> list[ChatReply | Exception]:
        with self.lock:
            return self.model.reply(asked)


class PersonaVLM:
    """An assistant for the user whose memory is `store`.

    `name` is the model's name, recorded with each memory it writes. Close the assistant, or use it
    as a context manager. Times are those of the conversation (None: now, with the local time zone).
    A clock may go back: turns are in the order in which they are stored.
    """

    def __init__(
        self,
        store: MemoryStore,
        model: ChatModel,
        prompts: PromptSet,
        retriever: Retriever | None = None,
        recognizer: "ConceptRecognizer | None" = None,
        name: str = "",
    ) -> None:
        self.store = store
        self.retriever = retriever or Retriever()
        self.recognizer = recognizer
        self.name = name
        self.settings = AgentSettings(prompts)
        self._model = _SharedModel(model)
        self._closing = Event()
        turns = self.memory.turns
        self._now = turns[-1].time if turns else datetime.min
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="memory")
        self._last_run = self._start_worker()

    def __enter__(self) -> "PersonaVLM":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def memory(self) -> MemoryView:
        """Everything in memory so far."""
        return self.store.as_of()

    def chat(self, text: str, images: Sequence[str] = (), time: datetime | None = None) -> str:
        """Answer, store the exchange, and update the memory in the background.

        Returns "" if the model reached no answer. Raises ValueError, and stores nothing, if an
        image cannot be read or `time` is invalid.
        """
        query = self._as_query(text, images, time)
        starts_session = abs(query.time - self._now) >= SESSION_GAP
        if starts_session:
            self.flush(query.time)
        self._now = query.time
        response = self._respond(query)
        # A stored "<img>" would refer to an image that does not exist, wherever the turn is shown.
        answer = (response.answer or "").replace("<img>", "")
        self.store.add_turn(replace(query, assistant=answer), pending=True)
        self._last_run = self._start_worker()
        return answer

    def ask(self, text: str, images: Sequence[str] = (), time: datetime | None = None) -> Response:
        """Answer without storing anything. Returns the answer with its steps and retrievals."""
        return self._respond(self._as_query(text, images, time))

    def flush(self, now: datetime | None = None, timeout: float | None = None) -> None:
        """Wait until all due updates are done.

        Those are the updates of all turns and, if `now` is given, of all sessions that ended by
        then. Raises the worker's exception if it failed; its updates stay pending, and the next
        flush retries them. Raises TimeoutError after `timeout` seconds.
        """
        self._now = as_utc(now) if now else self._now
        self._last_run = self._start_worker()
        self._last_run.result(timeout)

    def close(self) -> None:
        """Stop the worker after its current update. Pending updates wait for the next start."""
        self._closing.set()
        self._pool.shutdown()

    def _as_query(self, text: str, images: Sequence[str], time: datetime | None) -> Turn:
        unplaced_images = len(images) - text.count("<img>")
        text += " <img>" * unplaced_images
        query = in_utc(Turn(time or datetime.now().astimezone(), text, images=tuple(images)))
        for path in images:
            read_image(path)
        return query

    def _respond(self, query: Turn) -> Response:
        recognize = self.recognizer.recognize if self.recognizer else None
        trajectory = respond(query, self.memory, self.retriever, self.settings, recognize)
        [response] = run_trajectories([trajectory], self._model)
        return response

    def _start_worker(self) -> "Future[None]":
        return self._pool.submit(self._run_updates)

    def _run_updates(self) -> None:
        while not self._closing.is_set():
            update = self._next_update()
            if update is None:
                return
            run_trajectories([update], self._model)

    def _next_update(self) -> Trajectory[None] | None:
        """Return the oldest pending update that is due, or None.

        A turn is due at once, a session once it has ended. This is the order of
        `replay_conversation`.
        """
        jobs = self.store.pending()
        view = self.memory
        turn_jobs = [job for job in jobs if job.work == "turn"]
        session_jobs = {job.turn: job for job in jobs if job.work == "session"}
        sessions = split_sessions(view.turn(index) for index in session_jobs)
        prompts = self.settings.prompts

        if sessions:
            session = sessions[0]
            last_turn = session[-1]
            ended = last_turn.time + SESSION_GAP <= self._now or len(sessions) > 1
            turns_done = not turn_jobs or turn_jobs[0].turn > last_turn.index
            if ended and turns_done:
                jobs = [session_jobs[turn.index] for turn in session]
                return update_session(self.store, session, prompts, self.name, jobs)
        if turn_jobs:
            turn = view.turn(turn_jobs[0].turn)
            jobs = turn_jobs[:1]
            return update_turn(self.store, turn, prompts, self.recognizer, self.name, jobs)
        return None
