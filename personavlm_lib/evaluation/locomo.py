"""Evidence recall on LoCoMo: the share of a question's evidence turns among the first k results.

The units of retrieval are turns. No setting is tuned on the conversations, and no model answers the
questions.
"""

import json
import time
from pathlib import Path
from typing import Any

import pandas as pd

from personavlm_lib.benchmark.conversations import CATEGORIES, Conversation, read_conversations
from personavlm_lib.evaluation.statistics import cluster_bootstrap
from personavlm_lib.memory.encoder import MINILM
from personavlm_lib.memory.search import Retriever
from personavlm_lib.memory.store import MemoryStore

CUTS = (5, 10, 20)


def recalls(path: str | Path, retriever: Retriever) -> pd.DataFrame:
    """Evidence recall of every question that names its evidence.

    Columns: user (the conversation), category, question, recall@5, recall@10, recall@20. Raises
    ValueError if the file names no evidence.
    """
    rows = []
    for conversation in read_conversations(path):
        rows.extend(_conversation_recalls(conversation, retriever))
    if not rows:
        raise ValueError(
            f"{path} contains no question that names its evidence: "
            "evidence recall needs a file in LoCoMo's format"
        )
    return pd.DataFrame(rows)


def _conversation_recalls(conversation: Conversation, retriever: Retriever) -> list[dict]:
    rows = []
    with MemoryStore.in_memory(retriever.encoder) as store:
        with store.transaction():
            for turn in conversation.turns:
                store.add_turn(turn)
        view = store.as_of()
        probes = [probe for probe in conversation.probes if probe.evidence]
        if retriever.ranking != "bm25":
            # Encode all questions in one batch; the encoder caches the vectors.
            view.encoder.encode([probe.question for probe in probes])
        for probe in probes:
            results = retriever.rank_turns(view, probe.question, max(CUTS), by_time=False)
            ranked = [turn.index for turn in results]
            evidence = set(probe.evidence)
            row: dict[str, Any] = {
                "user": conversation.user,
                "category": probe.category,
                "question": probe.question,
            }
            for k in CUTS:
                hits = evidence.intersection(ranked[:k])
                row[f"recall@{k}"] = len(hits) / len(probe.evidence)
            rows.append(row)
    return rows


def recall_table(frame: pd.DataFrame) -> pd.DataFrame:
    """Mean recall with its 95% interval, per category and for all questions.

    Columns: category, n, then recall@k, low@k, high@k for each cut k. Conversations are resampled;
    if there is only one, its questions.
    """
    cluster = "user" if frame["user"].nunique() > 1 else "question"
    groups = {name: frame[frame["category"] == name] for name in CATEGORIES.values()}
    groups["all"] = frame
    rows = []
    for name, group in groups.items():
        if group.empty:
            continue
        row = dict(category=name, n=len(group))
        for k in CUTS:
            recall = cluster_bootstrap(group, f"recall@{k}", cluster)
            row[f"recall@{k}"] = recall.mean
            row[f"low@{k}"] = recall.low
            row[f"high@{k}"] = recall.high
        rows.append(row)
    return pd.DataFrame(rows)


def measure_recall(path: str | Path, ranking: str = "hybrid") -> dict:
    """Compute `recall_table` for a file.

    Returns file, ranking, encoder, conversations (their number), seconds and rows.
    """
    retriever = Retriever(ranking=ranking)
    start = time.monotonic()
    frame = recalls(path, retriever)
    seconds = time.monotonic() - start
    encoder = None if ranking == "bm25" else MINILM
    conversations = int(frame["user"].nunique())
    rows = recall_table(frame).to_dict("records")
    about = dict(file=Path(path).name, ranking=ranking, encoder=encoder)
    return about | dict(conversations=conversations, seconds=round(seconds, 2), rows=rows)


def report_locomo(file: Path, ranking: str = "hybrid", out: Path | None = None) -> None:
    """Print the evidence recall of a ranking (dense, bm25 or hybrid) on a file in LoCoMo's format.

    Write the numbers to `out` as JSON if it is given.
    """
    result = measure_recall(file, ranking)
    table = pd.DataFrame(result["rows"])
    print(table.round(3).to_string(index=False))
    if out:
        out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
