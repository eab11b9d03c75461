"""The Response stage: Algorithm 1, lines 4-16, as a generator (paper, Section 3.1, Appendix A.2).

The paper leaves two points open. Here, the request after the last allowed retrieval tells the model
to answer, and a model that still asks for another retrieval ends the trajectory without an answer
(`Response.unfinished`).
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import timezone

from personavlm_lib.agent.prompt_sets import PromptSet
from personavlm_lib.agent.protocol import RetrieveArgs, Step, parse_step
from personavlm_lib.memory.images import turn_images
from personavlm_lib.memory.personality import summarize_profile, trait_levels
from personavlm_lib.memory.records import SESSION_GAP, BigFive, Period, SemanticMemory, Turn, in_utc
from personavlm_lib.memory.search import Retrieved, Retriever, TopK
from personavlm_lib.memory.store import MemoryView
from personavlm_lib.models.chat import ChatReply, ChatRequest, ContextOverflow, Trajectory

Recognize = Callable[[Turn, MemoryView], list[SemanticMemory]]


@dataclass(frozen=True)
class AgentSettings:
    """Settings of the agent; the defaults are the paper's, except for the prompt set.

    `max_retrievals` is N: the model generates at most N + 1 times. `top_k` is how many memories of
    each type a retrieval returns; None uses the retriever's default (see also `training_top_k`).
    `personality_as` is "text" (the paper), "numbers" (its Fig. 16) or "cut" (the released code).
    """

    prompts: PromptSet = PromptSet("nano")
    max_retrievals: int = 3
    top_k: TopK | None = None
    personality_as: str = "text"
    max_tokens: int = 256


@dataclass
class Response:
    """The result of one query: the answer, every step, and what each retrieval returned.

    `raw` is the text of the last generation and `stop` its stop reason. Token counts are totals
    over all steps. `cut` counts the turns left out because the context window was too small.
    `error` says why there is no reply at all; such a response must not be scored.
    """

    answer: str | None
    steps: list[Step] = field(default_factory=list)
    retrieved: list[Retrieved] = field(default_factory=list)
    unfinished: bool = False
    raw: str = ""
    tokens_in: int = 0
    tokens_out: int = 0
    stop: str = ""
    cut: int = 0
    error: str = ""

    def add_step(self, step: Step, reply: ChatReply) -> None:
        self.steps.append(step)
        self.raw = reply.text
        self.stop = reply.stop
        self.tokens_in += reply.tokens_in
        self.tokens_out += reply.tokens_out

    @property
    def retrieved_ids(self) -> list[str]:
        """Ids of all retrieved memories, in order of retrieval (see `Retrieved.ids`)."""
        ids: list[str] = []
        for results in self.retrieved:
            ids.extend(results.ids)
        return ids

    @property
    def retrieved_turns(self) -> list[int]:
        """Sorted indices of the source turns of all retrieved memories."""
        turns: set[int] = set()
        for results in self.retrieved:
            for memory in results.semantic:
                turns.update(memory.sources)
            for episode in results.episodic:
                turns.update(episode.turns)
        return sorted(turns)


def training_top_k(rng: random.Random) -> TopK:
    """Draw k for one training trajectory: semantic from [3, 6], episodic from [2, 5] (B.2)."""
    semantic = rng.randint(3, 6)
    episodic = rng.randint(2, 5)
    return TopK(procedural=2, semantic=semantic, episodic=episodic)


def respond(
    query: Turn,
    view: MemoryView,
    retriever: Retriever,
    settings: AgentSettings = AgentSettings(),
    recognize: Recognize | None = None,
    context: list[Turn] | None = None,
    found: Retrieved | None = None,
) -> Trajectory[Response]:
    """Answer `query` (its text, images and time) from `view`, the memory before the query.

    `recognize` finds known visual concepts in the query's images. `context` replaces the turns of
    the last 60 minutes (line 4); the full-context and RAG baselines use this. `found` replaces
    retrieval: its memories are part of the first request, and the model generates once
    ("w/o Reasoning" in Table 8). Yields one `ChatRequest` per reasoning step.

    If a request exceeds the context window of the model, the trajectory starts again without the
    oldest turns of its context; without any left, the model's ContextOverflow is raised.
    """
    # Line 4: C_m, the turns within the session threshold t_s.
    query = in_utc(query)
    if context is None:
        context = [turn for turn in view.turns if abs(query.time - turn.time) <= SESSION_GAP]
    # Appendix A.2: an image in the query triggers visual concept retrieval.
    concepts = recognize(query, view) if recognize and query.images else []
    left_out = 0
    while True:
        shown = context[left_out:]
        try:
            response = yield from _attempt(query, view, retriever, settings, shown, concepts, found)
        except ContextOverflow as overflow:
            if not shown:
                raise
            fitting = int(len(shown) * overflow.fits)
            left_out += max(1, len(shown) - fitting)
        else:
            response.cut = left_out
            return response


def _attempt(
    query: Turn,
    view: MemoryView,
    retriever: Retriever,
    settings: AgentSettings,
    context: list[Turn],
    concepts: list[SemanticMemory],
    found: Retrieved | None,
) -> Trajectory[Response]:
    """Answer `query` with this context."""
    context_turns = {turn.index for turn in context}
    seen = {f"semantic:{memory.id}" for memory in concepts}

    query_text = query.user.replace("<img>", " ")
    response = Response(answer=None)
    request = _first_request(query, view, settings, context, concepts)
    max_retrievals = settings.max_retrievals
    if found is not None:
        response.retrieved.append(found)
        request = _append_results(request, query, settings.prompts, found)
        max_retrievals = 0

    # Lines 5-16: reason and retrieve, at most N times, until the model answers.
    for retrievals in range(max_retrievals + 1):
        # Line 6: S_n <- pi(Q_m, C_m, P_{m-1}).
        reply = yield request
        assert not isinstance(reply, tuple)  # one request has one reply
        # Line 7: action, args <- Parse(S_n).
        step = parse_step(reply.text, is_cut=reply.is_cut)
        response.add_step(step, reply)

        # Lines 12-14: the action is an answer, or the reply contains no action at all.
        if step.retrieve is None:
            response.answer = step.answer
            return response
        if retrievals == max_retrievals:
            break

        # Lines 8-11: isolate the period, search all memory types by keywords, extend C_m.
        # No memory is retrieved twice, and none that the context already shows.
        results = retriever.retrieve(
            view,
            step.retrieve.keywords,
            _period_in_utc(step.retrieve, query),
            exclude=seen,
            context_turns=context_turns,
            top_k=settings.top_k,
            query=query_text,
        )
        seen.update(results.ids)
        response.retrieved.append(results)
        closing = retrievals + 1 == max_retrievals
        request = _next_request(request, query, settings.prompts, results, closing)

    response.unfinished = True
    return response


def _first_request(
    query: Turn,
    view: MemoryView,
    settings: AgentSettings,
    context: list[Turn],
    concepts: list[SemanticMemory],
) -> ChatRequest:
    """The prompt with the query Q_m, the context C_m and the user's profile P_{m-1}."""
    profile = view.personality.profile if view.personality else BigFive.neutral()
    return settings.prompts.request(
        "respond",
        images=(*turn_images(context), *query.images),
        max_tokens=settings.max_tokens,
        subject=query,
        query=query,
        context=context,
        concepts=concepts,
        core=view.core.attributes if view.core else {},
        levels=trait_levels(profile),
        personality=summarize_profile(profile, settings.personality_as),
        closing=settings.max_retrievals == 0,
    )


def _period_in_utc(search: RetrieveArgs, query: Turn) -> Period:
    """The period of a search; the model writes times as on the user's clock."""
    start, end = search.start, search.end
    zone = timezone(query.local_time - query.time)
    if start is not None and query.utc_offset:
        start = start.replace(tzinfo=zone)
    if end is not None and query.utc_offset:
        end = end.replace(tzinfo=zone)
    return Period(start, end)


def _append_results(
    request: ChatRequest, query: Turn, prompts: PromptSet, results: Retrieved
) -> ChatRequest:
    """The same request with retrieved memories below its text, asking for an answer."""
    text = prompts("retrieved", query=query, found=results, closing=True)
    return replace(
        request,
        text=f"{request.text}\n{text}",
        images=(*request.images, *_result_images(results)),
        slots={**request.slots, "closing": True},
    )


def _next_request(
    request: ChatRequest, query: Turn, prompts: PromptSet, results: Retrieved, closing: bool
) -> ChatRequest:
    """The next message of the conversation: the results; if `closing`, the model must answer."""
    return replace(
        request,
        text=prompts("retrieved", query=query, found=results, closing=closing),
        images=_result_images(results),
        new_conversation=False,
        slots={**request.slots, "found": results, "closing": closing},
    )


def _result_images(results: Retrieved) -> tuple[str, ...]:
    """Paths of the images of retrieved memories, in the order of the prompt's `<img>` marks."""
    paths = []
    for memory in results.semantic:
        if memory.concept:
            paths.append(memory.concept.crop)
    for episode in results.episodic:
        paths.extend(turn_images(episode.raw))
    return tuple(paths)
