"""The Update stage: Algorithm 1, lines 1-3 and 17-19 (paper, section 3.1 and appendix A), as generators.

Memory is built with the replies that the conversation holds (teacher forcing), so that every model is judged on the
same history. What a model proposes and cannot be read leaves the memory as it was.
"""

from dataclasses import replace
from datetime import datetime

from personavlm_lib.agent.prompts import PromptSet
from personavlm_lib.agent.protocol import (
    image_object,
    parse_core,
    parse_episodes,
    parse_personality,
    parse_procedural,
    parse_semantic,
)
from personavlm_lib.memory.personality import advance
from personavlm_lib.memory.records import (
    SESSION_GAP,
    CoreMemory,
    Episode,
    ProceduralMemory,
    SemanticMemory,
    Turn,
    VisualConcept,
    split_sessions,
)
from personavlm_lib.memory.store import MemoryStore, MemoryView
from personavlm_lib.memory.vision import Eyes
from personavlm_lib.models import Reply, Trajectory

PERSONA_KEYS = ("job", "occupation", "profession", "education", "role")


def _profile(view: MemoryView) -> dict[str, str]:
    return {**view.core.human, **view.core.persona} if view.core else {}


def _without_marks(reply: Reply) -> str:
    """What the model wrote, less `<img>` marks: where memories are shown, each mark promises an image."""
    return reply.text.replace("<img>", "")


def _images(turns: list[Turn]) -> tuple[str, ...]:
    return tuple(image for turn in turns for image in turn.images)


def update_turn(
    store: MemoryStore, turn: Turn, prompts: PromptSet, eyes: Eyes | None = None, written_by: str = ""
) -> Trajectory[None]:
    """Lines 17-19 after one turn: the personality profile evolves, semantic memory grows where that is worth it."""
    view = store.as_of(turn.time)
    context = [t for t in view.turns if turn.time - t.time <= SESSION_GAP and t.index != turn.index]
    slots = dict(turn=turn, context=context, core=_profile(view))
    images = turn.images if prompts.name == "nano" else (*_images(context), *turn.images)
    # Lines 17-18: the turn's p' and the momentum update of p.
    reply = yield prompts.ask("personality", images, 64 * prompts.room, turn, **slots)
    store.add_personality(advance(view.personality, parse_personality(reply.text), turn.index, turn.time))
    # Line 19: does this turn hold something worth keeping?
    reply = yield prompts.ask("semantic", images, 128 * prompts.room, turn, **slots)
    proposed = parse_semantic(_without_marks(reply))
    if proposed is None or not proposed.decision or not proposed.content.strip():
        return
    content, concept, kind = proposed.content.strip(), None, "fact"
    named = image_object(content)
    if named and turn.images:
        # Appendix C: the class name that the model wrote drives the crop.
        content, kind = named[0], "concept"
        crop = eyes.crop(turn.images[0], named[1], store.images) if eyes else turn.images[0]
        concept = VisualConcept(content, named[1], crop) if crop else None
    store.add_semantic(
        SemanticMemory(
            content, proposed.keywords, turn.time, turn.time, turn.time, kind, concept, (turn.index,), written_by
        )
    )


def update_session(
    store: MemoryStore, session: list[Turn], prompts: PromptSet, written_by: str = ""
) -> Trajectory[None]:
    """Lines 1-3 at a session's end: core and procedural memory are renewed, the session becomes episodes by topic."""
    known_from = session[-1].time + SESSION_GAP
    view = store.as_of(known_from)
    slots = dict(session=session, core=_profile(view))
    images, sources = _images(session), tuple(turn.index for turn in session)

    reply = yield prompts.ask("core", images, 128 * prompts.room, session, **slots)
    if core := parse_core(_without_marks(reply)):
        human = {key: value for key, value in core.items() if key.lower() not in PERSONA_KEYS}
        persona = {key: value for key, value in core.items() if key.lower() in PERSONA_KEYS}
        store.set_core(CoreMemory(human, persona, known_from, sources, written_by))

    current = view.procedural.entries if view.procedural else {}
    reply = yield prompts.ask("procedural", images, 128 * prompts.room, session, procedural=current, **slots)
    entries = parse_procedural(_without_marks(reply))
    # An empty reply says that there is nothing to keep; a text that holds no entry says nothing.
    if entries != current and (entries or not reply.text.strip()):
        store.set_procedural(ProceduralMemory(entries, known_from, sources, written_by))

    reply = yield prompts.ask("episodic", images, 256 * prompts.room, session, **slots)
    for topic in parse_episodes(reply.text):
        turns = [session[i] for i in topic.indices if i < len(session)]
        if turns:
            store.add_episode(
                Episode(
                    topic.topic_summary,
                    topic.keywords,
                    tuple(t.index for t in turns),
                    turns[0].time,
                    turns[-1].time,
                    known_from,
                    written_by,
                )  # fmt: skip
            )


def live(
    store: MemoryStore,
    turns: list[Turn],
    prompts: PromptSet,
    eyes: Eyes | None = None,
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
            yield from update_turn(store, kept[-1], prompts, eyes, written_by)
        if until is None or session[-1].time + SESSION_GAP <= until:
            yield from update_session(store, kept, prompts, written_by)
    return store
