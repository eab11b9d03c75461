"""Conditions: which model answers, from which memory, with what taken away. All of them ask the same agent."""

import random
import shutil
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from personavlm_lib.agent.prompt_sets import NANO, PromptSet
from personavlm_lib.agent.respond import AgentSettings, Response, respond
from personavlm_lib.agent.update import replay_conversation
from personavlm_lib.benchmark.lives import Life, as_query
from personavlm_lib.benchmark.questions import Question
from personavlm_lib.caching import cache_key, mark_finished, reuse_or_clear
from personavlm_lib.evaluation.judges import accuracy
from personavlm_lib.evaluation.records import AnswerRecord, load_records, write_records
from personavlm_lib.memory.encoder import Encoder
from personavlm_lib.memory.records import Turn
from personavlm_lib.memory.search import PAPER_RETRIEVER
from personavlm_lib.memory.store import MemoryStore, MemoryView
from personavlm_lib.memory.vision import ConceptRecognizer
from personavlm_lib.models.chat import ChatModel
from personavlm_lib.models.engine import run_trajectories

ALL_TYPES = ("core", "semantic", "episodic", "procedural")


@dataclass(frozen=True)
class Condition:
    """`model` is a name in the models at hand, "oracle" or "chance". `memory` is "gold", "own", "none" (an empty
    memory, no retrieval) or "context" (raw turns before the model's eyes, chosen by `context`: "evidence", "rag5",
    "bm25" or "full", no retrieval). `without` names memory types that are taken away, or "reasoning": then memories
    are found by the question's own words, once. `wording` is that of the dialogues (see `world/tellers.py`)."""

    name: str
    model: str
    memory: str
    context: str = ""
    without: tuple[str, ...] = ()
    wording: str = "canonical"

    @property
    def writer(self) -> str:
        """Whose memory is read, as a folder's name: "gold" or the model's, for other dialogues with their wording."""
        name = self.model if self.memory == "own" else "gold"
        return name if self.wording == "canonical" else f"{name}_{self.wording}"


CONDITIONS = {
    c.name: c
    for c in (
        Condition("chance", "chance", "none"),
        Condition("no_memory", "rl", "none"),
        Condition("backbone_rag5", "backbone", "context", "rag5"),
        Condition("backbone_bm25", "backbone", "context", "bm25"),
        Condition("backbone_full", "backbone", "context", "full"),
        Condition("gold_evidence", "backbone", "context", "evidence"),
        Condition("sft_gold", "sft", "gold"),
        Condition("sft_own", "sft", "own"),
        Condition("rl_gold", "rl", "gold"),
        Condition("rl_own", "rl", "own"),
        Condition("rl_own_paraphrased", "rl", "own", wording="paraphrased"),
        Condition(
            "backbone_rag5_paraphrased", "backbone", "context", "rag5", wording="paraphrased"
        ),
        Condition("oracle", "oracle", "gold"),
        *(Condition(f"rl_gold_wo_{kind}", "rl", "gold", without=(kind,)) for kind in ALL_TYPES),
        Condition("rl_gold_wo_reasoning", "rl", "gold", without=("reasoning",)),
        Condition("rl_gold_wo_pem", "rl", "gold", without=("personality",)),
    )
}


def write_memories(
    lives: list[Life],
    folder: Path,
    model: ChatModel,
    name: str,
    recognizer: ConceptRecognizer | None,
    width: int,
    key: str,
    prompts: PromptSet = NANO,
    encoder: Encoder | None = None,
) -> None:
    """Every user's memory as `model` writes it, `width` users side by side, in `folder`/<user>.

    Those that are there, whole and of the same `key`, are kept. Who were side by side stay so: what a model writes
    depends, in its last digits, on what shares its batch.
    """
    for group in (lives[start : start + width] for start in range(0, len(lives), width)):
        if all([reuse_or_clear(folder / life.user, key) for life in group]):
            continue
        for life in group:
            shutil.rmtree(folder / life.user, ignore_errors=True)
        stores = [MemoryStore(folder / life.user, encoder) for life in group]
        pairs = zip(stores, group, strict=True)
        trajectories = [
            replay_conversation(store, list(life.turns), prompts, recognizer, name)
            for store, life in pairs
        ]
        with ExitStack() as whole:  # one transaction a user, not one a turn
            for store in stores:
                whole.enter_context(store.transaction())
            run_trajectories(trajectories, model, width)
        for store in stores:
            store.close()
            mark_finished(store.folder, key)


def _context(condition: Condition, question: Question, view: MemoryView) -> list[Turn] | None:
    """The raw turns that a condition puts before the model; None leaves it to the agent (the last 60 minutes)."""
    if condition.context == "evidence":
        return [view.turn(index) for index in question.evidence][-8:]
    if condition.context in ("rag5", "bm25"):
        retriever = (
            replace(PAPER_RETRIEVER, ranking="bm25")
            if condition.context == "bm25"
            else PAPER_RETRIEVER
        )
        return retriever.rank_turns(view, question.text, 5)
    return list(view.turns) if condition.context == "full" else None


def answer_questions(
    condition: Condition,
    lives: list[Life],
    memory: Callable[[Condition, Life], MemoryStore],
    models: Callable[[str], ChatModel],
    labels: dict,
    width: int = 48,
    max_tokens: int = 256,
    prompts: PromptSet = NANO,
) -> list[AnswerRecord]:
    """One record per question of `lives` under `condition`.

    `memory` gives a user's store, `models` a ChatModel by name. `labels` are the fields of every record that are the
    same for all (run, benchmark, seed, prompt_set_hash).
    """
    pairs = [(life, question) for life in lives for question in life.questions]
    if condition.model == "chance":
        picks = [random.Random(f"{labels['seed']} {q.case}").choice(q.options) for _, q in pairs]
        return [_record(condition, life, q, Response(pick, raw=pick), labels, 0.0)
                for (life, q), pick in zip(pairs, picks, strict=True)]  # fmt: skip
    blind = condition.memory in ("none", "context")
    settings = AgentSettings(prompts, max_retrievals=0 if blind else 3, max_tokens=max_tokens)
    trajectories = []
    for life, question in pairs:
        view = memory(condition, life).as_of(question.time)
        context = _context(condition, question, view)
        taken = set(condition.without) - {"reasoning"}
        view = view.without(*taken, *(ALL_TYPES if condition.memory == "none" else ()))
        found = (
            PAPER_RETRIEVER.retrieve(view, question.text)
            if "reasoning" in condition.without
            else None
        )
        trajectories.append(
            respond(
                as_query(question), view, PAPER_RETRIEVER, settings, context=context, found=found
            )
        )
    start = time.monotonic()
    if condition.model == "oracle":  # it knows one life at a time
        responses = [
            run_trajectories([t], life.oracle)[0]
            for (life, _), t in zip(pairs, trajectories, strict=True)
        ]
    else:
        # A question whose trajectory fails counts as wrong, and its record says why.
        responses = run_trajectories(
            trajectories, models(condition.model), width, lambda e, _: Response(None, raw=repr(e))
        )
    seconds = (time.monotonic() - start) / max(1, len(pairs))
    return [
        _record(condition, *pair, response, labels, seconds)
        for pair, response in zip(pairs, responses, strict=True)
    ]


def cached_answers(
    name: str,
    folder: Path,
    made_from: dict,
    lives: list[Life],
    *given,
    labels: dict,
    width: int,
    max_tokens: int,
    prompts: PromptSet = NANO,
) -> list[AnswerRecord]:
    """`answer` to one condition, kept in `folder`/<name>, and taken from there if it was made from the same.

    `made_from` holds the fingerprints of all inputs, under "weights" those of the models by name. A stopped evaluation
    so loses the condition that it was at, and no other.
    """
    condition, kept = CONDITIONS[name], folder / name
    weights = made_from["weights"].get(condition.model)
    made = cache_key(
        **made_from
        | labels
        | dict(weights=weights, condition=asdict(condition), size=(width, max_tokens))
    )
    if not reuse_or_clear(kept, made):
        write_records(
            kept / "records.parquet",
            answer_questions(condition, lives, *given, labels, width, max_tokens, prompts),
        )
        mark_finished(kept, made)
    return load_records(kept / "records.parquet")


def _record(
    condition: Condition,
    life: Life,
    question: Question,
    response: Response,
    labels: dict,
    seconds: float,
) -> AnswerRecord:
    chosen = question.matching_option(response.answer) if response.answer else None
    return AnswerRecord(
        **labels, case=question.case, user=life.user, task=question.task, aspect=question.aspect,
        kind="alignment" if question.kind == "binary" else "choice", condition=condition.name, model=condition.model,
        memory=condition.memory, options=list(question.options), gold=question.answer, raw=response.raw,
        parsed=None if chosen is None else question.options[chosen],
        correct=bool(accuracy(question, response.answer)), retrieved_ids=response.retrieved_ids,
        retrieved_turns=response.retrieved_turns, evidence_turns=list(question.evidence), steps=len(response.steps),
        retrievals=len(response.retrieved), tokens_in=response.tokens_in, tokens_out=response.tokens_out,
        seconds=seconds,
    )  # fmt: skip
