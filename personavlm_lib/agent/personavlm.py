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

An update that fails never blocks the others. It is retried with growing delays, a session with ever
fewer of its turns. After `MAX_ATTEMPTS` it is stored as a `RejectedUpdate` of purpose "turn" or
"session"; only a model or a disk that is out of reach is waited for without a limit.
"""

import logging
import re
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from threading import Event, Lock
from typing import TYPE_CHECKING, Any, NamedTuple

from personavlm_lib.agent.prompt_sets import PromptSet
from personavlm_lib.agent.respond import AgentSettings, Response, respond
from personavlm_lib.agent.update import update_session, update_turn
from personavlm_lib.memory.database import PendingUpdate, StoreError
from personavlm_lib.memory.forget import forget, preview_forget
from personavlm_lib.memory.images import read_image
from personavlm_lib.memory.records import (
    SESSION_GAP,
    ForgetReceipt,
    RejectedUpdate,
    Turn,
    as_utc,
    clean_text,
    in_utc,
    split_sessions,
)
from personavlm_lib.memory.search import Retriever
from personavlm_lib.memory.store import MemoryStore, MemoryView
from personavlm_lib.models.chat import ChatModel, ChatReply, ChatRequest, RequestFailure, Trajectory
from personavlm_lib.models.engine import run_trajectories

if TYPE_CHECKING:
    from personavlm_lib.memory.vision import ConceptRecognizer

FORGET_REQUEST = re.compile(
    r"(?:please\s+)?forget\s+(?:(?:everything|all|what i (?:said|told you))\s+)?(?:about\s+)?"
    r"(.+?)[\s.!]*",
    re.IGNORECASE,
)
NO_NAMES = "it that this him her them me you us".split()
LOG = logging.getLogger(__name__)
MAX_REMOVED = 0.3  # share of entries that a new version of core or procedural memory may lose
MAX_ATTEMPTS = 3  # of an update that fails although the model is there
FIRST_DELAY = 1.0  # seconds until a failed update is tried again; doubled each time
SHORT_DELAY = 60.0  # as long as this, the other updates wait
LONGEST_DELAY = 3600.0


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
        readable = [(transcript, _without_lost_images(request)) for transcript, request in asked]
        with self.lock:
            return self.model.reply(readable)


def _without_lost_images(request: ChatRequest) -> ChatRequest:
    """The request with words in place of each image whose file is gone."""
    text, *pieces = request.text.split("<img>")
    images = []
    for path, piece in zip(request.images, pieces, strict=True):
        if Path(path).is_file():
            images.append(path)
            text += f"<img>{piece}"
        else:
            LOG.warning("%s is lost", path)
            text += f"(lost picture){piece}"
    return replace(request, text=text, images=tuple(images))


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
        self._to_forget = ""  # what a preview has named and the user may confirm
        self._errors: dict[tuple[int, ...], Exception] = {}  # since the last flush, by job ids
        turns = self.memory.turns
        self._now = turns[-1].time if turns else datetime.min
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="memory")
        self._start_worker()

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

        The images, file paths, stand behind the text, in which nothing stands for an image.
        Returns "" if the model reached no answer. Raises ValueError, and stores nothing, if an
        image cannot be read or `time` is invalid.

        "Please forget Miso" is answered with what would go, and an explicit "yes" to that forgets
        it. Neither is stored.
        """
        query = self._as_query(text, images, time)
        reply = self._talk_of_forgetting(query.user)
        if reply:
            return reply
        if abs(query.time - self._now) >= SESSION_GAP:
            # the session is over, even if the clock went back
            self._now = max(query.time, self._now + SESSION_GAP)
            self._start_worker().result()
        self._now = query.time
        response = self._respond(query)
        answer = response.answer or ""
        self.store.add_turn(replace(query, assistant=answer), pending=True)
        self._start_worker()
        return answer

    def ask(self, text: str, images: Sequence[str] = (), time: datetime | None = None) -> Response:
        """Answer without storing anything. Returns the answer with its steps and retrievals."""
        return self._respond(self._as_query(text, images, time))

    def flush(self, now: datetime | None = None, timeout: float | None = None) -> None:
        """Wait until all due updates are done.

        Those are the updates of all turns and, if `now` is given, of all sessions that ended by
        then, including those that failed before. Raises the exception of the first update that
        failed since the last flush and is not made; the others are made nevertheless. Raises
        TimeoutError after `timeout` seconds.
        """
        self._now = as_utc(now) if now else self._now
        self._start_worker(patient=False).result(timeout)
        errors = list(self._errors.values())
        self._errors.clear()
        if errors:
            raise errors[0]

    def close(self) -> None:
        """Stop the worker after its current update. Pending updates wait for the next start."""
        self._closing.set()
        self._pool.shutdown()

    def _talk_of_forgetting(self, text: str) -> str | None:
        """The reply to a request to forget, or to the confirmation of one; None for other texts."""
        to_confirm, self._to_forget = self._to_forget, ""
        if to_confirm and text.strip(" .!\n").casefold() == "yes":
            receipt = forget(self.store, to_confirm)
            return f"I have forgotten {_counted(receipt)}."
        request = FORGET_REQUEST.fullmatch(text.strip())
        if request is None or request[1].casefold() in NO_NAMES:
            return None
        what = f"name:{request[1]}"
        if request[1].casefold() == "everything":
            what = "everything"
        try:
            preview = preview_forget(self.store, what)
        except LookupError:  # nothing of that name: the model may answer
            return None
        self._to_forget = what
        return f"I would forget {_counted(preview)}, for good. Say yes to confirm."

    def _as_query(self, text: str, images: Sequence[str], time: datetime | None) -> Turn:
        text = clean_text(text)
        places = (len(text),) * len(images) if images else None
        now = time or datetime.now().astimezone()
        query = in_utc(Turn(now, text, images=tuple(images), image_at=places))
        for path in images:
            read_image(path)
        return query

    def _respond(self, query: Turn) -> Response:
        recognize = self.recognizer.recognize if self.recognizer else None
        trajectory = respond(query, self.memory, self.retriever, self.settings, recognize)
        [response] = run_trajectories([trajectory], self._model)
        return response

    def _start_worker(self, patient: bool = True) -> "Future[None]":
        return self._pool.submit(self._run_updates, patient)

    def _run_updates(self, patient: bool) -> None:
        """Make all updates that are due, and note the errors for `flush`.

        A `patient` run leaves failed updates until it is time to retry them. A run ends when the
        model or the disk is out of reach, since all other updates would fail as well.
        """
        tried: set[tuple[int, ...]] = set()
        try:
            while not self._closing.is_set():
                update = self._next_update(patient, tried)
                if update is None:
                    break
                tried.add(update.key)
                error = self._make_update(update)
                if error and _may_succeed_later(error):
                    break
        except Exception as error:  # such as a full disk while a failure is stored
            LOG.exception("updates stopped")
            self._errors[()] = error

    def _make_update(self, update: "_Update") -> Exception | None:
        try:
            run_trajectories([update.trajectory(self)], self._model)
        except Exception as error:
            LOG.warning("update of turns %s failed: %r", update.turn_ids, error)
            self._store_failure(update, error)
            return error
        self._errors.pop(update.key, None)
        LOG.debug("turns %s are updated", update.turn_ids)
        return None

    def _store_failure(self, update: "_Update", error: Exception) -> None:
        """Note when to retry an update, or that it failed for good."""
        first = update.jobs[0]
        temporary = _may_succeed_later(error)
        attempts = first.attempts + (not temporary)
        can_be_split = len(update.turns) > 1 and not temporary
        delay = min(2 * first.delay or FIRST_DELAY, LONGEST_DELAY)
        if can_be_split:  # the next attempt is another one: with half of the turns
            delay = 0.0
        else:
            self._errors[update.key] = error
        if temporary or can_be_split or attempts < MAX_ATTEMPTS:
            retry_at = time.time() + delay
            failed = [
                job._replace(attempts=attempts, delay=delay, retry_at=retry_at)
                for job in update.jobs
            ]
            self.store.database.postpone(failed)
            return
        rejected = RejectedUpdate(
            purpose=first.work,
            raw="\n".join(getattr(error, "__notes__", ())),
            reason=f"failed {attempts} times: {error!r}",
            known_from=update.turns[-1].known_from,
            sources=update.turn_ids,
            written_by=self.name,
        )
        with self.store.transaction():
            if self.store.finish(update.jobs):
                self.store.append("rejected", rejected)

    def _next_update(self, patient: bool, tried: set[tuple[int, ...]]) -> "_Update | None":
        """Return the oldest pending update that is due and not yet `tried`, or None.

        The others wait for one that is soon to be retried, so that the order is kept.

        A turn is due at once, a session once it has ended and its turns are updated. This is the
        order of `replay_conversation`, as long as no update fails.
        """
        jobs = self.store.pending()
        view = self.memory
        turn_jobs = [job for job in jobs if job.work == "turn"]
        session_jobs = {job.turn: job for job in jobs if job.work == "session"}
        sessions = split_sessions(view.turn(index) for index in session_jobs)
        updates = []
        for number, session in enumerate(sessions):
            last_turn = session[-1]
            followed = number + 1 < len(sessions)
            ended = last_turn.time + SESSION_GAP <= self._now or followed
            turns_done = not turn_jobs or turn_jobs[0].turn > last_turn.index
            if ended and turns_done:
                attempts = session_jobs[session[0].index].attempts
                part = session[: max(1, len(session) >> attempts)]
                updates.append(_Update(part, [session_jobs[turn.index] for turn in part]))
        updates += [_Update([view.turn(job.turn)], [job]) for job in turn_jobs]
        for update in updates:
            if update.key in tried:
                continue
            first = update.jobs[0]
            if not patient or first.retry_at <= time.time():
                return update
            if first.delay <= SHORT_DELAY:
                return None
        return None


class _Update(NamedTuple):
    """The pending updates of a turn, or of the turns of a session."""

    turns: list[Turn]
    jobs: list[PendingUpdate]

    @property
    def turn_ids(self) -> tuple[int, ...]:
        return tuple(turn.index for turn in self.turns)

    @property
    def key(self) -> tuple[int, ...]:
        return tuple(job.id for job in self.jobs)

    def trajectory(self, assistant: PersonaVLM) -> Trajectory[None]:
        store, prompts, name = assistant.store, assistant.settings.prompts, assistant.name
        if self.jobs[0].work == "session":
            return update_session(store, self.turns, prompts, name, self.jobs, MAX_REMOVED)
        [turn] = self.turns
        return update_turn(store, turn, prompts, assistant.recognizer, name, self.jobs)


def _counted(receipt: ForgetReceipt) -> str:
    counts = [f"{count} {kind}" for kind, count in receipt.counts.items() if count]
    return ", ".join(counts)


def _may_succeed_later(error: Exception) -> bool:
    """Whether the model, or the disk, was out of reach, which says nothing about the update."""
    if isinstance(error, RequestFailure):
        return error.kind not in ("overflow", "request refused")
    return isinstance(error, ConnectionError | TimeoutError | StoreError)
