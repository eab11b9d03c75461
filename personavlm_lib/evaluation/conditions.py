"""Conditions: which model answers, from which memory, and with which parts taken away.

Every condition runs the same agent.
"""

import random
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from personavlm_lib.agent.prompt_sets import NANO, PromptSet
from personavlm_lib.agent.respond import AgentSettings, Response, respond
from personavlm_lib.benchmark.lives import Life, as_query
from personavlm_lib.benchmark.questions import Question
from personavlm_lib.caching import cache_key, mark_finished, reuse_or_clear
from personavlm_lib.evaluation.failures import FAILURES_IN_A_ROW, UNFINISHED, FailurePolicy
from personavlm_lib.evaluation.judges import accuracy
from personavlm_lib.evaluation.records import AnswerLog, AnswerRecord, load_records, write_records
from personavlm_lib.memory.encoder import Encoder
from personavlm_lib.memory.records import Turn
from personavlm_lib.memory.search import PAPER_RETRIEVER
from personavlm_lib.memory.store import MemoryStore, MemoryView
from personavlm_lib.memory.vision import ConceptRecognizer
from personavlm_lib.models.chat import ChatModel, Trajectory
from personavlm_lib.models.engine import run_trajectories

ALL_TYPES = ("core", "semantic", "episodic", "procedural")
# Fields that a record takes over from the response.
KEPT_OF_RESPONSES = (
    "raw", "retrieved_ids", "retrieved_turns", "tokens_in", "tokens_out", "stop", "cut", "error",
)  # fmt: skip
MAX_EVIDENCE_TURNS = 8  # turns that the condition `gold_evidence` shows at most


@dataclass(frozen=True)
class Condition:
    """A way to answer the questions.

    model: a name in the models of the run, "oracle" or "chance".
    memory: "gold", "own", "none" (an empty memory, no retrieval) or "context" (raw turns in the
        prompt, no retrieval).
    context: which raw turns "context" shows: "evidence", "rag5", "bm25" or "full".
    without: memory types to remove. "reasoning" stands for a single retrieval by the words of the
        question.
    wording: the wording of the dialogues (see `simulation/dialogue.py`).
    """

    name: str
    model: str
    memory: str
    context: str = ""
    without: tuple[str, ...] = ()
    wording: str = "canonical"

    @property
    def writer(self) -> str:
        """Folder name of the memory that is read.

        It is "gold" or the name of the model, followed by the wording if that is not canonical.
        """
        writer = self.model if self.memory == "own" else "gold"
        if self.wording == "canonical":
            return writer
        return f"{writer}_{self.wording}"


def _read_conditions(path: Path) -> dict[str, Condition]:
    """The conditions of a file such as `conditions.yaml`, by name."""
    conditions = {}
    for name, fields in yaml.safe_load(path.read_text(encoding="utf-8")).items():
        without = tuple(fields.pop("without", ()))
        conditions[name] = Condition(name, without=without, **fields)
    return conditions


CONDITIONS = _read_conditions(Path(__file__).with_name("conditions.yaml"))


@dataclass(frozen=True)
class EvaluationSettings:
    """What all conditions of an evaluation share.

    labels: the record fields that are equal for all answers (run, benchmark, seed,
        prompt_set_hash).
    encoder: of memories; None for the default of `MemoryStore`.
    recognizer: crops visual concepts when memories are written; None keeps whole images.
    width: number of trajectories that run side by side.
    max_tokens: upper limit of one generation.
    failures: failed requests in a row that stop the evaluation.
    """

    labels: dict[str, Any]
    prompts: PromptSet = NANO
    encoder: Encoder | None = None
    recognizer: ConceptRecognizer | None = None
    width: int = 48
    max_tokens: int = 256
    failures: int = FAILURES_IN_A_ROW


def answer_questions(
    condition: Condition,
    lives: list[Life],
    memory: Callable[[Condition, Life], MemoryStore],
    models: Callable[[str], ChatModel],
    settings: EvaluationSettings,
    log: AnswerLog | None = None,
) -> list[AnswerRecord]:
    """Answer every question of `lives` under `condition`: one record per question.

    `memory` returns the store of a user, `models` the model of a name. A record's `seconds` is the
    mean wall time per question. A question that gets no reply has a record with `error`. `log`
    holds the answers of an earlier attempt and gets the new ones; only a model that answers each
    question independently of the others uses it. Raises StageStopped (see `FailurePolicy`).
    """
    pairs = [(life, question) for life in lives for question in life.questions]
    answered = log.records.copy() if log else {}
    pairs = [(life, question) for life, question in pairs if question.case not in answered]
    if condition.model == "chance":
        seed = settings.labels["seed"]
        responses = [_random_response(question, seed) for _, question in pairs]
        seconds = 0.0
    else:
        trajectories = []
        for life, question in pairs:
            trajectories.append(_answer(condition, life, question, memory, settings))
        start = time.monotonic()
        if condition.model == "oracle":
            responses = _oracle_responses(pairs, trajectories)
        else:
            model = models(condition.model)
            is_server = bool(getattr(model, "connections", 0))

            def keep(index: int, response: Response) -> None:
                if log and is_server:
                    log.add(_record(condition, *pairs[index], response, settings.labels))

            policy = FailurePolicy(_failed_response, keep, settings.failures)
            responses = run_trajectories(
                trajectories, model, settings.width, policy.on_error, policy.on_result
            )
        seconds = (time.monotonic() - start) / max(1, len(pairs))
    for (life, question), response in zip(pairs, responses, strict=True):
        record = _record(condition, life, question, response, settings.labels, seconds)
        answered[question.case] = record
    return [answered[question.case] for life in lives for question in life.questions]


def _answer(
    condition: Condition,
    life: Life,
    question: Question,
    memory: Callable[[Condition, Life], MemoryStore],
    settings: EvaluationSettings,
) -> Trajectory[Response]:
    """The agent's trajectory for one question, on the memory at its time.

    Raises UnfinishedMemory.
    """
    view = memory(condition, life).as_of(question.time)
    context = _context(condition, question, view)
    removed = set(condition.without) - {"reasoning"}
    if condition.memory == "none":
        removed.update(ALL_TYPES)
    view = view.without(*removed)
    retrieved = None
    if "reasoning" in condition.without:
        retrieved = PAPER_RETRIEVER.retrieve(view, question.text)
    may_retrieve = condition.memory in ("gold", "own")
    agent_settings = AgentSettings(
        settings.prompts, max_retrievals=3 if may_retrieve else 0, max_tokens=settings.max_tokens
    )
    query = as_query(question)
    trajectory = respond(
        query, view, PAPER_RETRIEVER, agent_settings, context=context, found=retrieved
    )
    return (yield from trajectory)


def _context(condition: Condition, question: Question, view: MemoryView) -> list[Turn] | None:
    """The raw turns that a condition shows; None leaves them to the agent (the last 60 minutes)."""
    if condition.context == "evidence":
        evidence = [view.turn(index) for index in question.evidence]
        return evidence[-MAX_EVIDENCE_TURNS:]
    if condition.context == "rag5":
        return PAPER_RETRIEVER.rank_turns(view, question.text, 5)
    if condition.context == "bm25":
        retriever = replace(PAPER_RETRIEVER, ranking="bm25")
        return retriever.rank_turns(view, question.text, 5)
    if condition.context == "full":
        return list(view.turns)
    return None


def _random_response(question: Question, seed: int) -> Response:
    """A random option, the same for every call with the same seed."""
    rng = random.Random(f"{seed} {question.case}")
    option = rng.choice(question.options)
    return Response(option, raw=option)


def _oracle_responses(
    pairs: list[tuple[Life, Question]], trajectories: list[Trajectory[Response]]
) -> list[Response]:
    """Run each trajectory with the oracle of its life: an oracle knows only one life."""
    responses = []
    for (life, _), trajectory in zip(pairs, trajectories, strict=True):
        responses += run_trajectories([trajectory], life.oracle)
    return responses


def _failed_response(error: Exception) -> Response:
    """The response of a sample that is not scored."""
    return Response(None, error=str(error))


def cached_answers(
    name: str,
    folder: Path,
    made_from: dict[str, Any],
    lives: list[Life],
    memory: Callable[[Condition, Life], MemoryStore],
    models: Callable[[str], ChatModel],
    settings: EvaluationSettings,
) -> list[AnswerRecord]:
    """Return `answer_questions` of one condition from `folder`/<name>, or compute and store it.

    `made_from` holds the fingerprints of all inputs, with those of the models under "weights", by
    name. Stored answers are reused only if they were made from the same inputs. An interrupted
    evaluation therefore loses only the condition that was running, and with a server not even that:
    a file beside keeps its answers. A condition with unscored questions is not finished: the next
    call asks these again. Delete `folder`/<name> to have one condition answered again.
    """
    condition = CONDITIONS[name]
    cache = folder / name
    inputs = made_from | settings.labels
    inputs["weights"] = made_from["weights"].get(condition.model)
    inputs["condition"] = asdict(condition)
    inputs["size"] = (settings.width, settings.max_tokens)
    key = cache_key(**inputs)
    if not reuse_or_clear(cache, key, folder):
        log = AnswerLog(folder / f"{name}{UNFINISHED}", key)
        records = answer_questions(condition, lives, memory, models, settings, log)
        write_records(cache / "records.parquet", records)
        if all(record.correct is not None for record in records):
            mark_finished(cache, key)
            log.file.unlink()
    return load_records(cache / "records.parquet")


def _record(
    condition: Condition,
    life: Life,
    question: Question,
    response: Response,
    labels: dict[str, Any],
    seconds: float = 0.0,
) -> AnswerRecord:
    answer = response.answer
    options = list(question.options)
    index = question.matching_option(answer) if answer else None
    parsed = None if index is None else options[index]
    correct = None if response.error else bool(accuracy(question, answer))
    kind = "alignment" if question.kind == "binary" else "choice"
    about_question = {name: getattr(question, name) for name in ("case", "task", "aspect")}
    about_response = {name: getattr(response, name) for name in KEPT_OF_RESPONSES}
    return AnswerRecord(
        **labels,
        **about_question,
        **about_response,
        user=life.user,
        kind=kind,
        condition=condition.name,
        model=condition.model,
        memory=condition.memory,
        options=options,
        gold=question.answer,
        parsed=parsed,
        correct=correct,
        evidence_turns=list(question.evidence),
        steps=len(response.steps),
        retrievals=len(response.retrieved),
        seconds=seconds,
    )
