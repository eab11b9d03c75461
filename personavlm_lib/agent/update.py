"""The Update stage: Algorithm 1, lines 1-3 and 17-19 (paper, section 3.1 and appendix A), as generators.

Memory is built with the replies that the conversation holds (teacher forcing), so that every model is judged on the
same history. What a model proposes and cannot be read, or is not allowed, leaves the memory as it was and is kept, with
its words and the reason, among what was refused.
"""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

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
from personavlm_lib.memory.vision import ConceptRecognizer
from personavlm_lib.models.chat import ChatReply, Trajectory

PERSONA_ATTRIBUTES = ("job", "occupation", "profession", "education", "role")


def _profile(view: MemoryView) -> dict[str, str]:
    return {**view.core.human, **view.core.persona} if view.core else {}


def _without_marks(reply: ChatReply) -> str:
    """What the model wrote, less `<img>` marks: where memories are shown, each mark promises an image."""
    return reply.text.replace("<img>", "")


def _images(turns: list[Turn]) -> tuple[str, ...]:
    return tuple(image for turn in turns for image in turn.images)


def _author(written_by: str, prompts: PromptSet) -> str:
    """Model and prompt set, such as `rl/nano-1a2b3c`."""
    return f"{written_by}/{prompts.label}".lstrip("/")


def update_turn(
    store: MemoryStore,
    turn: Turn,
    prompts: PromptSet,
    recognizer: ConceptRecognizer | None = None,
    written_by: str = "",
    jobs: Sequence[PendingUpdate] = (),
) -> Trajectory[None]:
    """Lines 17-19 after one turn: the personality profile evolves, semantic memory grows where that is worth it.

    All is written in one transaction, with which the pending `jobs` that asked for it are finished; nothing is written
    if they are no longer pending.
    """
    view = store.as_of(turn.time)
    context = [t for t in view.turns if turn.time - t.time <= SESSION_GAP and t.index != turn.index]
    slots = dict(turn=turn, context=context, core=_profile(view))
    images = turn.images if prompts.name == "nano" else (*_images(context), *turn.images)
    traits, reply = yield (
        # Lines 17-18: the turn's p' and the momentum update of p.
        prompts.ask("personality", images, 64 * prompts.room, turn, **slots),
        # Line 19: does this turn hold something worth keeping?
        prompts.ask("semantic", images, 128 * prompts.room, turn, **slots),
    )
    author = _author(written_by, prompts)
    with store.transaction():
        if not store.finish(jobs):
            return
        observed, proposed = parse_personality(traits.text), parse_semantic(_without_marks(reply))
        state = next_state(view.personality, observed, turn.index, turn.time)
        store.add_personality(replace(state, written_by=author))
        readings = (("personality", traits, observed), ("semantic", reply, proposed))
        for purpose, unread in (
            (purpose, reply.text) for purpose, reply, reading in readings if reading is None
        ):
            store.append(
                "rejected",
                RejectedUpdate(purpose, unread, "cannot be read", turn.time, (turn.index,), author),
            )
        if proposed and proposed.decision and proposed.content.strip():
            kept = _semantic(store, turn, proposed, recognizer)
            store.add_semantic(replace(kept, sources=(turn.index,), written_by=author))


def _semantic(
    store: MemoryStore, turn: Turn, proposed: SemanticReply, recognizer: ConceptRecognizer | None
) -> SemanticMemory:
    content, concept, kind = proposed.content.strip(), None, "fact"
    named = image_object(content)
    if named and turn.images:
        # Appendix C: the class name that the model wrote drives the crop.
        content, kind = named[0], "concept"
        crop = (
            recognizer.crop(turn.images[0], named[1], store.images)
            if recognizer
            else turn.images[0]
        )
        concept = VisualConcept(content, named[1], crop) if crop else None
    return SemanticMemory(
        content, proposed.keywords, turn.time, turn.time, turn.time, kind, concept
    )


def update_session(
    store: MemoryStore,
    session: list[Turn],
    prompts: PromptSet,
    written_by: str = "",
    jobs: Sequence[PendingUpdate] = (),
) -> Trajectory[None]:
    """Lines 1-3 at a session's end: core and procedural memory are renewed, the session becomes episodes by topic.

    Written at once, and with `jobs`, as by `update_turn`. What the store refuses is kept there with the reason.
    """
    known_from = session[-1].time + SESSION_GAP
    view = store.as_of(known_from)
    slots = dict(session=session, core=_profile(view))
    images, current = _images(session), view.procedural.entries if view.procedural else {}
    told = (known_from, tuple(turn.index for turn in session), _author(written_by, prompts))
    replies = yield (
        prompts.ask("core", images, 128 * prompts.room, session, **slots),
        prompts.ask("procedural", images, 128 * prompts.room, session, procedural=current, **slots),
        prompts.ask("episodic", images, 256 * prompts.room, session, **slots),
    )
    with store.transaction():
        if not store.finish(jobs):
            return
        for (purpose, write), reply in zip(_WRITERS.items(), replies, strict=True):
            try:
                write(store, session, reply, *told)
            except ValueError as error:
                store.append("rejected", RejectedUpdate(purpose, reply.text, str(error), *told))


def _core(store: MemoryStore, _: list[Turn], reply: ChatReply, *told) -> None:
    entries = parse_core(_without_marks(reply))
    if not entries:
        raise ValueError("holds no entry")
    human = {key: value for key, value in entries.items() if key.lower() not in PERSONA_ATTRIBUTES}
    persona = {key: value for key, value in entries.items() if key.lower() in PERSONA_ATTRIBUTES}
    store.set_core(CoreMemory(human, persona, *told))


def _procedural(store: MemoryStore, _: list[Turn], reply: ChatReply, *told) -> None:
    entries = parse_procedural(_without_marks(reply))
    if not entries and reply.text.strip():  # an empty reply says that there is nothing to keep
        raise ValueError("holds no entry")
    store.set_procedural(ProceduralMemory(entries, *told))


def _episodes(
    store: MemoryStore, session: list[Turn], reply: ChatReply, known_from: datetime, _, author: str
) -> None:
    topics = [
        (topic, [session[i] for i in topic.indices if i < len(session)])
        for topic in parse_episodes(reply.text)
    ]
    for topic, turns in topics:
        if turns:
            span = (tuple(turn.index for turn in turns), turns[0].time, turns[-1].time)
            store.add_episode(
                Episode(topic.topic_summary, topic.keywords, *span, known_from, author)
            )
    if not any(turns for _, turns in topics):
        raise ValueError("holds no topic with a turn of the session")


_WRITERS = {"core": _core, "procedural": _procedural, "episodic": _episodes}


def replay_conversation(
    store: MemoryStore,
    turns: list[Turn],
    prompts: PromptSet,
    recognizer: ConceptRecognizer | None = None,
    written_by: str = "",
    until: datetime | None = None,
) -> Trajectory[MemoryStore]:
    """A whole conversation, lived through turn by turn: what Algorithm 1 leaves in memory. Returns the store.

    The last session is consolidated too, unless `until` comes before its end plus the session gap.
    """
    for session in split_sessions(turns):
        kept = []
        for turn in session:
            kept.append(store.add_turn(replace(turn, index=-1)))
            yield from update_turn(store, kept[-1], prompts, recognizer, written_by)
        if until is None or session[-1].time + SESSION_GAP <= until:
            yield from update_session(store, kept, prompts, written_by)
    return store
