"""The Update stage: Algorithm 1, lines 1-3 and 17-19, as generators (paper, Section 3.1, App. A).

Memory is built from the assistant replies in the conversation (teacher forcing), so every model is
judged on the same history. A proposed update that cannot be read or breaks a rule leaves the memory
unchanged and is stored as a `RejectedUpdate` with its text and the reason.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING

from personavlm_lib.agent.prompt_sets import PromptSet
from personavlm_lib.agent.protocol import (
    SemanticReply,
    image_object,
    parse_core,
    parse_episodes,
    parse_personality,
    parse_procedural,
    parse_semantic,
)
from personavlm_lib.memory.database import PendingUpdate
from personavlm_lib.memory.images import turn_images
from personavlm_lib.memory.personality import next_state
from personavlm_lib.memory.records import (
    SESSION_GAP,
    CoreMemory,
    Episode,
    ProceduralMemory,
    RejectedUpdate,
    SemanticMemory,
    Turn,
    VisualConcept,
    split_sessions,
)
from personavlm_lib.memory.store import MemoryStore, MemoryView
from personavlm_lib.models.chat import ChatReply, Trajectory

if TYPE_CHECKING:
    from personavlm_lib.memory.vision import ConceptRecognizer

FEW_ENTRIES = 3  # may always be left out of a new version of core or procedural memory
# Core memory keys that describe the user's identity and role, the persona block of A.1. All other
# keys go to the human block. The paper names no keys; this list is ours.
PERSONA_ATTRIBUTES = ("job", "occupation", "profession", "education", "role")


@dataclass(frozen=True)
class _Provenance:
    """The time from which an update is known, its source turns, and the model that wrote it."""

    known_from: datetime
    sources: tuple[int, ...]
    written_by: str


def update_turn(
    store: MemoryStore,
    turn: Turn,
    prompts: PromptSet,
    recognizer: "ConceptRecognizer | None" = None,
    written_by: str = "",
    jobs: Sequence[PendingUpdate] = (),
) -> Trajectory[None]:
    """Update the personality profile and the semantic memory after a turn (lines 17-19).

    One transaction writes all results and removes the pending `jobs` of the turn.
    Nothing is written if one of `jobs` is no longer pending.
    """
    known_from = _known_from(store, turn.known_from, "personality")
    view = store.as_of(known_from)
    context = []
    for other in view.turns:
        if abs(turn.time - other.time) <= SESSION_GAP and other.index < turn.index:
            context.append(other)
    if jobs:  # a failed update is tried again with half of the context
        context = context[len(context) - (len(context) >> jobs[0].attempts) :]
    images = turn.images
    if prompts.name != "nano":  # the nano prompts do not show the context
        images = (*turn_images(context), *turn.images)
    slots = {"turn": turn, "context": context, "core": _core_attributes(view)}
    replies = yield (
        prompts.request("personality", images, 64 * prompts.room, turn, **slots),
        prompts.request("semantic", images, 128 * prompts.room, turn, **slots),
    )
    assert isinstance(replies, tuple)
    personality_reply, semantic_reply = replies
    author = _author(written_by, prompts)
    provenance = _Provenance(known_from, (turn.index,), author)

    with _noting(replies), store.transaction():
        if not store.finish(jobs):
            return
        # Lines 17-18: infer the turn's p' and move the long-term profile p towards it.
        observed = parse_personality(personality_reply.text)
        state = next_state(view.personality, observed, turn.index, known_from)
        store.add_personality(replace(state, written_by=author))
        # Line 19: extract what is worth remembering.
        proposal = parse_semantic(_without_image_marks(semantic_reply))
        if observed is None:
            _store_rejected(
                store, "personality", personality_reply, "the reply cannot be read", provenance
            )
        if proposal is None:
            _store_rejected(
                store, "semantic", semantic_reply, "the reply cannot be read", provenance
            )
        elif proposal.decision and proposal.content.strip():
            memory = _semantic_memory(store, turn, proposal, recognizer)
            store.add_semantic(replace(memory, sources=(turn.index,), written_by=author))


def update_session(
    store: MemoryStore,
    session: list[Turn],
    prompts: PromptSet,
    written_by: str = "",
    jobs: Sequence[PendingUpdate] = (),
    max_removed: float = 1.0,
) -> Trajectory[None]:
    """Update core, procedural and episodic memory after a session (lines 1-3).

    As in `update_turn`, one transaction writes all results and removes the pending `jobs`. A
    rejected update is stored with the reason. The model replies with the whole new version of core
    and procedural memory: a reply that was cut, or that leaves out more than the share
    `max_removed` of the entries (and more than `FEW_ENTRIES`), is rejected.
    """
    ended = session[-1].known_from + SESSION_GAP
    known_from = _known_from(store, ended, "core", "procedural")
    view = store.as_of(known_from)
    core = _core_attributes(view)
    habits = view.procedural.entries if view.procedural else {}
    images = turn_images(session)
    slots = {"session": session, "core": core}
    limit = 128 * prompts.room
    core_limit = limit
    if prompts.quote:  # room for all of the profile; two characters are at most one token
        core_limit += len(str(core)) // 2
    replies = yield (
        prompts.request("core", images, core_limit, session, **slots),
        prompts.request("procedural", images, limit, session, procedural=habits, **slots),
        prompts.request("episodic", images, 2 * limit, session, **slots),
    )
    assert isinstance(replies, tuple)
    rewritten = {"core": core, "procedural": habits}
    sources = tuple(turn.index for turn in session)
    provenance = _Provenance(known_from, sources, _author(written_by, prompts))

    with _noting(replies), store.transaction():
        if not store.finish(jobs):
            return
        for (purpose, write), reply in zip(_SESSION_WRITERS.items(), replies, strict=True):
            try:
                if purpose in rewritten:
                    _check_rewrite(reply, rewritten[purpose], max_removed)
                write(store, session, reply, provenance)
            except ValueError as error:
                _store_rejected(store, purpose, reply, str(error), provenance)


def _check_rewrite(reply: ChatReply, entries: dict[str, str], max_removed: float) -> None:
    """Raise ValueError if the new version is incomplete or loses too many of the `entries`."""
    if reply.is_cut:
        raise ValueError("the reply was cut off, so entries may be missing")
    removed = entries.keys() - parse_core(reply.text).keys()
    if len(removed) > max(FEW_ENTRIES, max_removed * len(entries)):
        raise ValueError(f"the reply leaves out {len(removed)} of {len(entries)} entries")


@contextmanager
def _noting(replies: tuple[ChatReply, ...]) -> Iterator[None]:
    """Add the replies to an exception as notes, for the record of a failed update."""
    try:
        yield
    except Exception as error:
        for reply in replies:
            error.add_note(reply.text)
        raise


def replay_conversation(
    store: MemoryStore,
    turns: list[Turn],
    prompts: PromptSet,
    recognizer: "ConceptRecognizer | None" = None,
    written_by: str = "",
    until: datetime | None = None,
) -> Trajectory[MemoryStore]:
    """Run the Update stage over a whole conversation, turn by turn. Returns the store.

    `update_session` also runs for the last session, unless `until` is before its end plus the
    session gap.
    """
    for session in split_sessions(turns):
        stored_turns = []
        for turn in session:
            stored_turn = store.add_turn(replace(turn, index=-1))
            stored_turns.append(stored_turn)
            yield from update_turn(store, stored_turn, prompts, recognizer, written_by)
        end = session[-1].time + SESSION_GAP
        if until is None or end <= until:
            yield from update_session(store, stored_turns, prompts, written_by)
    return store


def _semantic_memory(
    store: MemoryStore, turn: Turn, proposal: SemanticReply, recognizer: "ConceptRecognizer | None"
) -> SemanticMemory:
    """The proposed memory; one that names an image object becomes a visual concept with its crop.

    Appendix C: the class name that the model wrote selects the crop. Without a recognizer, the
    whole image is the crop. A concept whose object is not found is stored as text only.
    """
    content = proposal.content.strip()
    kind = "fact"
    concept = None
    named_object = image_object(content)
    is_lost = store.folder is not None and not all(map(os.path.isfile, turn.images))
    if named_object and turn.images and not is_lost:
        content, class_name = named_object
        kind = "concept"
        crop: str | None = turn.images[0]
        if recognizer:
            crop = recognizer.crop(turn.images[0], class_name, store.images)
        if crop:
            concept = VisualConcept(content, class_name, crop)
    return SemanticMemory(
        content=content,
        keywords=proposal.keywords,
        happened_from=turn.time,
        happened_to=turn.time,
        known_from=turn.known_from,
        kind=kind,
        concept=concept,
    )


def _write_core(
    store: MemoryStore, _: list[Turn], reply: ChatReply, provenance: _Provenance
) -> None:
    entries = parse_core(_without_image_marks(reply))
    if not entries:
        raise ValueError("the reply contains no entry")
    human = {}
    persona = {}
    for key, value in entries.items():
        if key.lower() in PERSONA_ATTRIBUTES:
            persona[key] = value
        else:
            human[key] = value
    store.set_core(CoreMemory(human, persona, **vars(provenance)))


def _write_procedural(
    store: MemoryStore, _: list[Turn], reply: ChatReply, provenance: _Provenance
) -> None:
    entries = parse_procedural(_without_image_marks(reply))
    if not entries and reply.text.strip():  # an empty reply means that there are no habits
        raise ValueError("the reply contains no entry")
    store.set_procedural(ProceduralMemory(entries, **vars(provenance)))


def _write_episodes(
    store: MemoryStore, session: list[Turn], reply: ChatReply, provenance: _Provenance
) -> None:
    """Store each topic that names a turn of the session. Raises ValueError if none does."""
    stored = False
    for topic in parse_episodes(reply.text):
        turns = [session[index] for index in topic.indices if index < len(session)]
        if not turns:
            continue
        episode = Episode(
            summary=topic.topic_summary,
            keywords=topic.keywords,
            turns=tuple(turn.index for turn in turns),
            happened_from=min(turn.time for turn in turns),
            happened_to=max(turn.time for turn in turns),
            known_from=provenance.known_from,
            written_by=provenance.written_by,
        )
        store.add_episode(episode)
        stored = True
    if not stored:
        raise ValueError("the reply contains no topic with a turn of the session")


# Purpose of the request -> the function that writes its reply, in the order of the requests.
_SESSION_WRITERS = {
    "core": _write_core,
    "procedural": _write_procedural,
    "episodic": _write_episodes,
}


def _known_from(store: MemoryStore, time: datetime, *kinds: str) -> datetime:
    """`time`, or that of the newest version if it is later: a late update builds on it."""
    view = store.as_of()
    newest = [view.table(kind).records[-1:] for kind in kinds]
    times = [version.known_from for versions in newest for version in versions]
    return max([time, *times])


def _store_rejected(
    store: MemoryStore, purpose: str, reply: ChatReply, reason: str, provenance: _Provenance
) -> None:
    store.append("rejected", RejectedUpdate(purpose, reply.text, reason, **vars(provenance)))


def _core_attributes(view: MemoryView) -> dict[str, str]:
    return view.core.attributes if view.core else {}


def _without_image_marks(reply: ChatReply) -> str:
    """The reply's text without `<img>` marks, which would refer to no image later."""
    return reply.text.replace("<img>", "")


def _author(written_by: str, prompts: PromptSet) -> str:
    """Model and prompt set, such as `rl/nano-1a2b3c`."""
    return f"{written_by}/{prompts.label}".lstrip("/")
