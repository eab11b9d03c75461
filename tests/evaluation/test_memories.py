"""The memories of an evaluation: written side by side, reused, and never deleted for others."""

from dataclasses import replace

import pytest

from personavlm_lib.benchmark.oracle import Oracle
from personavlm_lib.caching import fingerprint
from personavlm_lib.evaluation.conditions import CONDITIONS, Condition, EvaluationSettings
from personavlm_lib.evaluation.memories import Memories, write_gold_memories, write_own_memories
from personavlm_lib.memory.store import MemoryStore

LABELS = dict(run="test", benchmark="world", seed=0, prompt_set_hash="0" * 12)
SETTINGS = EvaluationSettings(LABELS, width=8)
OWN = Condition("oracle_own", "oracle", "own")


class LifeOracles:
    """Replies with the oracle of the life that a request is about; records the batch sizes."""

    def __init__(self, lives):
        self.oracles = [life.oracle for life in lives]
        self.batch_sizes = []

    def start(self):
        return []

    def reply(self, requests):
        self.batch_sizes.append(len(requests))
        replies = []
        for transcript, request in requests:
            oracle = self.oracle_of(request.subject)
            replies += oracle.reply([(transcript, request)])
        return replies

    def oracle_of(self, subject) -> Oracle:
        turn = subject[0] if isinstance(subject, list) else subject
        matching = [o for o in self.oracles if (turn.time, turn.user) in o.indices]
        return matching[0]


def memories_in(folder, **made_from):
    return Memories(lambda writer, user: folder / writer / user, folder, made_from)


def write_own(conditions, lives, memories, model, weights="weights", settings=SETTINGS):
    names = {condition.model for condition in conditions}
    write_own_memories(
        conditions,
        {"canonical": lives, "paraphrased": lives},
        memories,
        lambda name: model,
        dict.fromkeys(names, weights),
        settings,
    )


def test_memories_are_written_side_by_side(lives, tmp_path):
    model = LifeOracles(lives)
    write_own([OWN], lives, memories_in(tmp_path), model)
    assert max(model.batch_sizes) == 6
    for life in lives:
        with MemoryStore(tmp_path / "oracle" / life.user) as store:
            view = store.as_of()
            assert len(view.turns) == len(life.turns)
            assert view.semantic[0].written_by.startswith("oracle/nano-")


def test_complete_memories_are_reused_and_partial_groups_rewritten(lives, tmp_path):
    model = LifeOracles(lives)

    def write(weights, **made_from):
        write_own([OWN], lives, memories_in(tmp_path, **made_from), model, weights)
        return len(model.batch_sizes)

    rounds = write("weights")
    assert write("weights") == rounds, "complete memories are reused"
    (tmp_path / "oracle" / lives[0].user / "finished").unlink()
    assert write("weights") == 2 * rounds, "an incomplete group is rewritten as a whole"
    assert write("another model's") == 3 * rounds
    assert write("another model's", encoder="other") == 4 * rounds
    with MemoryStore(tmp_path / "oracle" / lives[0].user) as store:
        assert len(store.as_of().turns) == len(lives[0].turns)


def test_gold_memories_are_reused_until_their_inputs_change(lives, tmp_path):
    def write(**made_from):
        """Write the gold memories; return when each of them was finished."""
        memories = memories_in(tmp_path, **made_from)
        conditions = [CONDITIONS["rl_gold"], CONDITIONS["backbone_rag5"]]
        write_gold_memories(conditions, {"canonical": lives}, memories, SETTINGS)
        stamps = [tmp_path / "gold" / life.user / "finished" for life in lives]
        return [stamp.stat().st_mtime_ns for stamp in stamps]

    first = write(lives="these")
    assert write(lives="these") == first
    second = write(lives="others")
    assert all(new > old for new, old in zip(second, first, strict=True))


def test_evaluation_of_fewer_users_and_conditions_keeps_all_other_memories(lives, tmp_path):
    model = LifeOracles(lives)
    everything = [OWN, Condition("sft_own", "sft", "own"), CONDITIONS["rl_gold"]]
    memories = memories_in(tmp_path, lives="both")
    write_gold_memories(everything, {"canonical": lives}, memories, SETTINGS)
    write_own(everything, lives, memories, model)
    before = {folder: fingerprint(folder) for folder in tmp_path.glob("*/*") if folder.is_dir()}
    assert len(before) == 3 * len(lives)

    fewer = [OWN, CONDITIONS["rl_gold"]]
    memories = memories_in(tmp_path, lives="one")
    write_gold_memories(fewer, {"canonical": lives[:1]}, memories, SETTINGS)
    write_own(fewer, lives[:1], memories, model)
    rewritten = {tmp_path / writer / lives[0].user for writer in ("gold", "oracle")}
    for folder, content in before.items():
        if folder not in rewritten:
            assert fingerprint(folder) == content, f"{folder} belongs to others"


def test_memories_outside_of_the_run_are_never_deleted(lives, tmp_path):
    elsewhere = tmp_path / "elsewhere" / lives[0].user
    elsewhere.mkdir(parents=True)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "oracle").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="is not deleted"):
        write_own([OWN], lives[:1], memories_in(tmp_path / "run"), LifeOracles(lives))
    assert elsewhere.exists()


def test_a_condition_reads_the_memory_of_its_writer(lives, tmp_path):
    model = LifeOracles(lives)
    memories = memories_in(tmp_path)
    write_own([OWN], lives[:1], memories, model, settings=replace(SETTINGS, width=1))
    store = memories.store(OWN, lives[0])
    assert len(store.as_of().turns) == len(lives[0].turns)
    assert memories.store(OWN, lives[0]) is store
    store.close()
