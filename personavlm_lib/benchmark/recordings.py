"""Gold memories and SFT samples, recorded while the oracle drives the agent (Section 3.2, Appendix B.2, C)."""

import random
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

from personavlm_lib.agent.prompt_sets import NANO, PromptSet
from personavlm_lib.agent.respond import AgentSettings, respond, training_top_k
from personavlm_lib.agent.update import replay_conversation
from personavlm_lib.benchmark.lives import Life, as_query
from personavlm_lib.benchmark.oracle import Oracle
from personavlm_lib.benchmark.questions import Question
from personavlm_lib.memory.encoder import Encoder
from personavlm_lib.memory.records import split_sessions
from personavlm_lib.memory.search import PAPER_RETRIEVER
from personavlm_lib.memory.store import MemoryStore
from personavlm_lib.memory.vision import ConceptRecognizer
from personavlm_lib.models.engine import Recorder, run_trajectories


def gold_memory(
    life: Life, folder: Path | MemoryStore, recognizer: ConceptRecognizer | None, samples: list[dict] | None = None,
    prompts: PromptSet = NANO, encoder: Encoder | None = None,
) -> MemoryStore:  # fmt: skip
    """The memory that the update stage writes into the new `folder` (or empty store) when the oracle speaks;
    conversations are appended to `samples`."""
    store = folder if isinstance(folder, MemoryStore) else MemoryStore(folder, encoder)
    recorder = Recorder(life.oracle, [] if samples is None else samples)
    with store.transaction():  # one for the life, not one a turn: what is cut short is made anew
        run_trajectories(
            [
                replay_conversation(
                    store, list(life.turns), prompts, recognizer, written_by="oracle"
                )
            ],
            recorder,
        )
    return store


def answer_samples(
    life: Life,
    store: MemoryStore,
    rng: random.Random,
    without: float = 0.05,
    prompts: PromptSet = NANO,
) -> list[dict]:
    """Recordings of the oracle answering this life's questions, each given only what its own retrievals brought.

    A quarter of the choice questions comes without its options. A share `without` is asked with no memory and no
    retrieval: there the sample teaches to say that it is unknown, and to guess. Twice that share has no profile, and
    retrieval all the same: else an empty profile alone would come to mean that nothing is known. Three times that share
    has no episodes, which mostly hold what semantic memory does: else that would never be read. And one in eight is
    asked just after the evidence was told, when it still stands in the context and nothing is to be retrieved.
    """
    samples: list[dict] = []
    retriever = PAPER_RETRIEVER
    trajectories, golds = [], []
    questions = [
        q if q.kind == "binary" or rng.random() > 0.25 else replace(q, kind="open", options=())
        for q in life.questions
    ]
    questions = [_at_once(q, life) if rng.random() < 0.125 else q for q in questions]
    for question in questions:
        draw, view = rng.random(), store.as_of(question.time)
        blind = draw < without and question.options
        if blind:
            view = view.without("core", "semantic", "episodic", "procedural")
        elif draw < 3 * without and question.hops:
            view = view.without("core")
        elif draw < 6 * without and question.hops:
            view = view.without("episodic")
        top_k = training_top_k(random.Random(rng.random()))
        settings = AgentSettings(prompts, max_retrievals=0 if blind else 3, top_k=top_k)
        trajectories.append(respond(as_query(question), view, retriever, settings))
        golds.append(None if blind else question.answer)
    recorder = Recorder(Oracle(life.plan, list(life.turns), questions), samples)
    answers = [response.answer for response in run_trajectories(trajectories, recorder, width=1)]
    kept = zip(samples, answers, golds, strict=True)
    return [sample for sample, answer, gold in kept if gold is None or answer == gold]


def _at_once(question: Question, life: Life) -> Question:
    """The question as it is asked five minutes after the session in which its one piece of evidence was told."""
    if len(question.hops) != 1 or question.hops[0].start or not question.evidence:
        return question
    told = life.turns[question.evidence[-1]]
    end = next(session[-1].time for session in split_sessions(life.turns) if told in session)
    return replace(question, time=end + timedelta(minutes=5))
