"""The Response stage: Algorithm 1, lines 4-16, as one generator (paper, section 3.1 and appendix A.2).

Deviations, each a setting or stated here: a generation that asks for a fourth retrieval ends the trajectory without an
answer and is counted (`Response.unfinished`); with the third retrieval's results the model is told to answer.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from personavlm_lib.agent.prompt_sets import PromptSet
from personavlm_lib.agent.protocol import Step, parse_step
from personavlm_lib.memory.personality import BigFive, summarize_profile, trait_levels
from personavlm_lib.memory.records import SESSION_GAP, Period, SemanticMemory, Turn
from personavlm_lib.memory.search import Retrieved, Retriever, TopK
from personavlm_lib.memory.store import MemoryView
from personavlm_lib.models.chat import Trajectory

Recognize = Callable[[Turn, MemoryView], list[SemanticMemory]]


@dataclass(frozen=True)
class AgentSettings:
    """How the agent behaves; the defaults are the paper's.

    `max_retrievals` N: the model generates at most N + 1 times. `random_top_k` draws k anew for each trajectory from
    the training ranges of appendix B.2. `personality_as` is text, numbers or cut (the paper's text, its Fig. 16, the
    released code).
    """

    prompts: PromptSet = PromptSet("nano")
    max_retrievals: int = 3
    random_top_k: bool = False
    personality_as: str = "text"
    max_tokens: int = 256


@dataclass
class Response:
    """What came of one query: the answer, and every step with the ids of what it brought back."""

    answer: str | None
    steps: list[Step] = field(default_factory=list)
    retrieved: list[Retrieved] = field(default_factory=list)
    unfinished: bool = False
    raw: str = ""
    tokens_in: int = 0
    tokens_out: int = 0

    @property
    def retrieved_ids(self) -> list[str]:
        return [i for found in self.retrieved for i in found.ids]

    @property
    def retrieved_turns(self) -> list[int]:
        """Indices of the raw turns behind everything that was retrieved."""
        semantic = [
            i for found in self.retrieved for memory in found.semantic for i in memory.sources
        ]
        return sorted(
            {*semantic, *(i for found in self.retrieved for e in found.episodic for i in e.turns)}
        )


def training_top_k(rng: random.Random) -> TopK:
    """Appendix B.2: episodic uniform in [2, 5], semantic in [3, 6]."""
    return TopK(procedural=2, semantic=rng.randint(3, 6), episodic=rng.randint(2, 5))


def _images(found: Retrieved) -> tuple[str, ...]:
    """The images of what was retrieved, in the order in which the prompt marks them."""
    crops = [memory.concept.crop for memory in found.semantic if memory.concept]
    return (
        *crops,
        *(image for episode in found.episodic for turn in episode.raw for image in turn.images),
    )


def respond(
    query: Turn,
    view: MemoryView,
    retriever: Retriever,
    settings: AgentSettings = AgentSettings(),
    recognize: Recognize | None = None,
    context: list[Turn] | None = None,
    found: Retrieved | None = None,
    rng: random.Random | None = None,
) -> Trajectory[Response]:
    """Answers `query` (its text, images and time) from `view`, the memory as it was before it.

    `recognise` finds visual concepts in the query's images. `context` replaces the turns of the last 60 minutes (line
    4): the full-context and RAG baselines hand in theirs. `found` replaces the searching: it is shown at once, and one
    generation must do (w/o Reasoning of Table 8). Yields one Ask per reasoning step; returns the Response.
    """
    # Line 4: short-term memory, the turns within the session threshold t_s.
    if context is None:
        context = [turn for turn in view.turns if query.time - turn.time <= SESSION_GAP]
    top_k = training_top_k(rng or random.Random(0)) if settings.random_top_k else None
    concepts = recognize(query, view) if recognize and query.images else []
    profile = view.personality.profile if view.personality else BigFive.neutral()
    images = (*(image for turn in context for image in turn.images), *query.images)
    ask = settings.prompts.ask(
        "respond", images, settings.max_tokens, query, query=query, context=context, concepts=concepts,
        core={**view.core.human, **view.core.persona} if view.core else {},
        levels=trait_levels(profile), personality=summarize_profile(profile, settings.personality_as),
        closing=settings.max_retrievals == 0,
    )  # fmt: skip
    response, seen = Response(None), {f"semantic:{memory.id}" for memory in concepts}
    if found:
        response.retrieved.append(found)
        more = settings.prompts("retrieved", query=query, found=found, closing=True)
        slots = {**ask.slots, "closing": True}
        ask = replace(
            ask, text=f"{ask.text}\n{more}", images=(*images, *_images(found)), slots=slots
        )
    max_retrievals = 0 if found else settings.max_retrievals
    # Lines 5-16: think, then retrieve by words and period, or answer.
    for n in range(max_retrievals + 1):
        reply = yield ask
        step = parse_step(reply.text)
        response.steps.append(step)
        response.raw, response.tokens_out = reply.text, response.tokens_out + reply.tokens_out
        response.tokens_in += reply.tokens_in
        if step.retrieve is None:  # lines 12-14
            response.answer = step.answer
            return response
        if n == max_retrievals:
            break
        # Lines 8-11: the period isolates first, then the search of all types; nothing comes back twice.
        found = retriever.retrieve(
            view, step.retrieve.keywords, Period(step.retrieve.start, step.retrieve.end),
            exclude=seen, context_turns={turn.index for turn in context}, top_k=top_k,
            query=query.user.replace("<img>", " "),
        )  # fmt: skip
        seen |= set(found.ids)
        response.retrieved.append(found)
        closing = n + 1 == max_retrievals
        text = settings.prompts("retrieved", query=query, found=found, closing=closing)
        slots = {**ask.slots, "found": found, "closing": closing}
        ask = replace(ask, text=text, images=_images(found), new_conversation=False, slots=slots)
    response.unfinished = True
    return response
