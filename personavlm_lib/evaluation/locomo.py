"""Evidence recall on LoCoMo: which share of the turns that hold a question's evidence stands among the first k ranked.

Turns are the units. No setting is chosen by the conversation, and the answering model has no part in it.
"""

import json as serial
import time
from pathlib import Path

import pandas as pd

from personavlm_lib.benchmark.conversations import CATEGORIES, read_conversations
from personavlm_lib.evaluation.statistics import cluster_bootstrap
from personavlm_lib.memory.encoder import MINILM
from personavlm_lib.memory.search import Retriever
from personavlm_lib.memory.store import MemoryStore

CUTS = (5, 10, 20)
FIELDS = {"recall": "mean", "low": "low", "high": "high"}


def recalls(path: str | Path, retriever: Retriever) -> pd.DataFrame:
    """One row per question with evidence: user (the conversation), category, question, recall@5, recall@10, recall@20.

    ValueError if the file names no evidence.
    """
    rows = []
    for conversation in read_conversations(path):
        with MemoryStore.in_memory(retriever.encoder) as store:
            with store.transaction():
                for turn in conversation.turns:
                    store.add_turn(turn)
            view, probes = store.as_of(), [probe for probe in conversation.probes if probe.evidence]
            if retriever.ranking != "bm25":
                view.encoder.encode([probe.question for probe in probes])  # together, and kept
            for probe in probes:
                ranked = [
                    t.index
                    for t in retriever.rank_turns(view, probe.question, max(CUTS), by_time=False)
                ]
                found = {
                    f"recall@{k}": len({*ranked[:k]} & {*probe.evidence}) / len(probe.evidence)
                    for k in CUTS
                }
                rows.append(
                    dict(
                        user=conversation.user,
                        category=probe.category,
                        question=probe.question,
                        **found,
                    )
                )
    if not rows:
        raise ValueError(
            f"{path} holds no question that names its evidence: evidence recall needs LoCoMo's shape"
        )
    return pd.DataFrame(rows)


def recall_table(frame: pd.DataFrame) -> pd.DataFrame:
    """Per category and for all: category, n, then for each cut the recall with its 95% interval.

    Conversations are resampled; of a single one, its questions.
    """
    cluster = "user" if frame["user"].nunique() > 1 else "question"
    groups = {name: frame[frame["category"] == name] for name in CATEGORIES.values()} | {
        "all": frame
    }
    rows = []
    for name, group in groups.items():
        if len(group):
            found = {f"@{k}": cluster_bootstrap(group, f"recall@{k}", cluster) for k in CUTS}
            numbers = {
                f"{n}{k}": getattr(v, f) for k, v in found.items() for n, f in FIELDS.items()
            }
            rows.append(dict(category=name, n=len(group), **numbers))
    return pd.DataFrame(rows)


def measure_recall(path: str | Path, ranking: str = "hybrid") -> dict:
    """`recall_table` of a file with what made it: file, ranking, encoder, conversations, seconds, rows."""
    retriever, start = Retriever(ranking=ranking), time.monotonic()
    frame = recalls(path, retriever)
    return dict(
        file=Path(path).name, ranking=ranking, encoder=None if ranking == "bm25" else MINILM,
        conversations=int(frame["user"].nunique()), seconds=round(time.monotonic() - start, 2),
        rows=recall_table(frame).to_dict("records"),
    )  # fmt: skip


def report_locomo(file: Path, ranking: str = "hybrid", json: Path | None = None) -> None:
    """Evidence recall of a RANKING (dense, bm25 or hybrid) on a FILE of LoCoMo's shape."""
    result = measure_recall(file, ranking)
    print(pd.DataFrame(result["rows"]).round(3).to_string(index=False))
    if json:
        json.write_text(serial.dumps(result, indent=1) + "\n", encoding="utf-8")
