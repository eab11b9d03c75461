"""The memories that an evaluation reads: gold or written by a model, one per writer and user.

A memory is reused if it is complete and was made from the same inputs; otherwise the evaluation
deletes it and writes it again. It touches no memory but those that its conditions read about its
own users. Memories of other writers and users therefore stay, until `personavlm reproduce
05_evaluate --force` deletes all of them.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from personavlm_lib.agent.update import replay_conversation
from personavlm_lib.benchmark.lives import Life
from personavlm_lib.benchmark.recordings import gold_memory
from personavlm_lib.caching import STAMP, cache_key, delete, mark_finished, reuse_or_clear
from personavlm_lib.evaluation.conditions import Condition, EvaluationSettings
from personavlm_lib.evaluation.failures import FailurePolicy, UnfinishedMemory
from personavlm_lib.memory.store import MemoryStore
from personavlm_lib.models.chat import ChatModel, Trajectory
from personavlm_lib.models.engine import run_trajectories
from personavlm_lib.progress import with_progress


@dataclass(frozen=True)
class Memories:
    """The memories of a run.

    folder: the folder of a memory, by writer and user.
    root: the run's folder; nothing outside of it is deleted.
    made_from: the inputs that all memories depend on, as for `cache_key`.
    stage: name of the stage in progress lines.
    """

    folder: Callable[[str, str], Path]
    root: Path
    made_from: dict[str, Any]
    stage: str = "05_evaluate"
    _stores: dict[Path, MemoryStore] = field(default_factory=dict, repr=False)

    def store(self, condition: Condition, life: Life) -> MemoryStore:
        """The memory that `condition` reads about the user of `life`; it is opened once.

        Raises UnfinishedMemory if its writing failed.
        """
        folder = self.folder(condition.writer, life.user)
        if not (folder / STAMP).is_file():
            raise UnfinishedMemory(life.user)
        if folder not in self._stores:
            self._stores[folder] = MemoryStore(folder)
        return self._stores[folder]


def write_gold_memories(
    conditions: list[Condition],
    lives: dict[str, list[Life]],
    memories: Memories,
    settings: EvaluationSettings,
) -> None:
    """Let the oracle write every gold memory that the conditions read, unless it is up to date.

    `lives` holds the users by wording. Conditions that retrieve nothing count too: their raw turns
    come from the gold memory.
    """
    needed = []
    for condition in _one_per_writer(conditions, own=False):
        for life in lives[condition.wording]:
            folder = memories.folder(condition.writer, life.user)
            needed.append((folder, life))
    key = cache_key(**memories.made_from)
    for folder, life in with_progress(needed, memories.stage, "user"):
        if reuse_or_clear(folder, key, memories.root):
            continue
        store = gold_memory(
            life, folder, settings.recognizer, None, settings.prompts, settings.encoder
        )
        store.close()
        mark_finished(folder, key)


def write_own_memories(
    conditions: list[Condition],
    lives: dict[str, list[Life]],
    memories: Memories,
    models: Callable[[str], ChatModel],
    weights: dict[str, str],
    settings: EvaluationSettings,
) -> None:
    """Let each model write the memories that the conditions with own memory read of it.

    `models` returns the model of a name, `weights` holds the fingerprint of its weights.
    """
    writers = _one_per_writer(conditions, own=True)
    for condition in with_progress(writers, memories.stage, "writer"):
        key = cache_key(**memories.made_from, writer=weights[condition.model], width=settings.width)
        model = models(condition.model)
        _write_of_one_model(condition, lives[condition.wording], memories, model, key, settings)


def _one_per_writer(conditions: list[Condition], own: bool) -> list[Condition]:
    """One condition for each writer of own (or of gold) memories, in the order of their names."""
    by_writer = {}
    for condition in conditions:
        if (condition.memory == "own") == own:
            by_writer[condition.writer] = condition
    return [by_writer[writer] for writer in sorted(by_writer)]


def _write_of_one_model(
    condition: Condition,
    lives: list[Life],
    memories: Memories,
    model: ChatModel,
    key: str,
    settings: EvaluationSettings,
) -> None:
    """Let `model` write the memory of every user.

    `settings.width` users form a group and run side by side. A group is reused if all its memories
    are complete and have the same `key`; otherwise all of them are rewritten, because the last
    digits of what a model computes depend on the other members of its batch. A server has no
    batches: all users form one group, of which finished members are reused. A memory whose writing
    fails stays unfinished (see `FailurePolicy`).
    """
    is_server = bool(getattr(model, "connections", 0))
    width = len(lives) if is_server else settings.width
    policy = FailurePolicy(lambda error: None, limit=settings.failures)
    for start in range(0, len(lives), width):
        group = [
            (life, memories.folder(condition.writer, life.user))
            for life in lives[start : start + width]
        ]
        finished = [reuse_or_clear(folder, key, memories.root) for _, folder in group]
        if all(finished):
            continue
        if is_server:
            group = [member for member, done in zip(group, finished, strict=True) if not done]
        trajectories = []
        for life, folder in group:
            delete(folder, memories.root)
            trajectories.append(_write_memory(life, folder, key, condition.model, settings))
        run_trajectories(trajectories, model, settings.width, policy.on_error, policy.on_result)


def _write_memory(
    life: Life, folder: Path, key: str, name: str, settings: EvaluationSettings
) -> Trajectory[None]:
    """Write the memory of one user as one transaction, which a failure undoes."""
    with MemoryStore(folder, settings.encoder) as store, store.transaction():
        yield from replay_conversation(
            store, list(life.turns), settings.prompts, settings.recognizer, name
        )
    mark_finished(folder, key)
