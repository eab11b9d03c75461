"""Gold memories and SFT samples: conversations of the agent whose prompts the oracle answers.

Gold memory is what the agent's own update stage writes when the oracle replies (Section 3.2,
Appendix B.2, C).
"""

import random
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

from personavlm_lib.agent.prompt_sets import NANO, PromptSet
from personavlm_lib.agent.respond import AgentSettings, respond, training_top_k
from personavlm_lib.agent.update import replay_conversation
from personavlm_lib.benchmark.lives import Life, as_query
from personavlm_lib.benchmark.oracle import Oracle
from personavlm_lib.benchmark.questions import Question
from personavlm_lib.memory.encoder import Encoder
from personavlm_lib.memory.records import Turn, split_sessions
from personavlm_lib.memory.search import PAPER_RETRIEVER
from personavlm_lib.memory.store import MemoryStore
from personavlm_lib.memory.vision import ConceptRecognizer
from personavlm_lib.models.engine import Recorder, run_trajectories


def gold_memory(
    life: Life,
    folder: Path | MemoryStore,
    recognizer: ConceptRecognizer | None,
    samples: list[dict] | None = None,
    prompts: PromptSet = NANO,
    encoder: Encoder | None = None,
) -> MemoryStore:
    """Write the gold memory of a life into a new `folder` or an empty store, and return the store.

    Appends the recorded conversations to `samples`.
    """
    if samples is None:
        samples = []
    if isinstance(folder, MemoryStore):
        store = folder
    else:
        store = MemoryStore(folder, encoder)
    if store.as_of().turns:
        raise ValueError(f"{store.folder} holds turns already: name a new folder")
    turns = list(life.turns)
    # One transaction per life, not per turn: an interrupted life is written again from the start.
    with store.transaction():
        replay = replay_conversation(store, turns, prompts, recognizer, written_by="oracle")
        run_trajectories([replay], Recorder(life.oracle, samples))
    return store


def answer_samples(
    life: Life,
    store: MemoryStore,
    rng: random.Random,
    without: float = 0.05,
    prompts: PromptSet = NANO,
) -> list[dict]:
    """Record the oracle as it answers this life's questions from its own retrievals.

    A quarter of the choice questions have no options. One question in eight follows its evidence
    within minutes, while the evidence is still in the context and needs no retrieval. In addition,
    each question is answered with the whole memory or with one of these restrictions:

    - no memory and no retrieval, for a fraction `without` of the questions, so that the model
      learns to say `unknown` and guess;
    - no profile but the usual retrieval, in twice that share; otherwise the model would learn
      that no facts are available when the profile is empty;
    - no episodes, in three times that share: they mostly repeat semantic memory, which the model
      would otherwise never learn to read.

    Returns the samples with the right answer, and all of those without memory.
    """
    samples: list[dict] = []
    retriever = PAPER_RETRIEVER
    trajectories = []
    golds = []
    questions = _vary_questions(life, rng)
    # One draw decides: no memory below the first bound, no profile below the second, and so on.
    no_profile_bound = 3 * without
    no_episodes_bound = 6 * without
    for question in questions:
        draw = rng.random()
        view = store.as_of(question.time)
        blind = draw < without and bool(question.options)
        if blind:
            view = view.without("core", "semantic", "episodic", "procedural")
        elif draw < no_profile_bound and question.hops:
            view = view.without("core")
        elif draw < no_episodes_bound and question.hops:
            view = view.without("episodic")
        top_k = training_top_k(random.Random(rng.random()))
        settings = AgentSettings(prompts, max_retrievals=0 if blind else 3, top_k=top_k)
        trajectories.append(respond(as_query(question), view, retriever, settings))
        golds.append(None if blind else question.answer)
    oracle = Oracle(life.plan, list(life.turns), questions)
    recorder = Recorder(oracle, samples)
    responses = run_trajectories(trajectories, recorder, width=1)
    accepted = []
    for sample, response, gold in zip(samples, responses, golds, strict=True):
        if gold is None or response.answer == gold:
            accepted.append(sample)
    return accepted


def _vary_questions(life: Life, rng: random.Random) -> list[Question]:
    """The life's questions, some without options and some asked right after their evidence."""
    questions = []
    for question in life.questions:
        if question.kind != "binary" and rng.random() <= 0.25:
            question = replace(question, kind="open", options=())
        questions.append(question)
    varied = []
    for question in questions:
        if rng.random() < 0.125:
            question = _ask_after_evidence(question, life)
        varied.append(question)
    return varied


def _ask_after_evidence(question: Question, life: Life) -> Question:
    """Move a question to five minutes after the session that holds its evidence.

    Questions with several hops, with a period, or without evidence keep their time.
    """
    if len(question.hops) != 1 or question.hops[0].start or not question.evidence:
        return question
    return replace(question, time=after_session(life.turns, question.evidence[-1]))


def after_session(turns: Sequence[Turn], index: int) -> datetime:
    """Five minutes after the session that holds the turn `index`."""
    for session in split_sessions(turns):
        if session[-1].index >= index:
            return session[-1].time + timedelta(minutes=5)
    raise ValueError(f"there is no turn {index}")
