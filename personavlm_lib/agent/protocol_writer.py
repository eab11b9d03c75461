"""Write replies in the exact output format (paper, Figures 16 and 18-22) that `protocol.py` reads.

The oracle (`benchmark/oracle.py`) answers in this format, and the nano backbone's drills and the
SFT samples teach it.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime

from personavlm_lib.agent.protocol import TIME_FORMAT, EpisodeReply, SemanticReply

Value = str | bool | int | datetime | tuple[int, ...] | None


def write_pairs(pairs: Mapping[str, Value], *, separator: str = "\n", quote: bool = True) -> str:
    """Write `"key": value` pairs, the format of Figures 18, 19 and 21.

    Booleans and numbers are never quoted, and None is `null`. `quote=False` writes bare text: line
    breaks become spaces, and a value must not contain a `"key":` itself.
    """
    return separator.join(f'"{key}": {_format(value, quote)}' for key, value in pairs.items())


def _format(value: Value, quote: bool) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return str(value)
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    if value is None:
        text = "null"
    elif isinstance(value, datetime):
        text = value.strftime(TIME_FORMAT)
    else:
        text = value
    if not quote:
        return " ".join(text.split())
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def write_answer(think: str, answer: str, *, separator: str = "\n") -> str:
    """Write a step that answers (Figure 16)."""
    return f"<think>{think}</think>{separator}<answer>{answer}</answer>"


def write_retrieve(
    think: str,
    keywords: str,
    start: datetime | None = None,
    end: datetime | None = None,
    *,
    separator: str = "\n",
    quote: bool = True,
) -> str:
    """Write a step that searches (Figure 16)."""
    fields: dict[str, Value] = {"keywords": keywords, "start_time": start, "end_time": end}
    pairs = write_pairs(fields, separator=separator, quote=quote)
    return f"<think>{think}</think>{separator}<retrieve>{separator}{pairs}{separator}</retrieve>"


def write_semantic(reply: SemanticReply, *, separator: str = "\n", quote: bool = True) -> str:
    """Write the four pairs of Figure 20."""
    return write_pairs(vars(reply), separator=separator, quote=quote)


def write_episodes(
    replies: Sequence[EpisodeReply], *, separator: str = "\n", quote: bool = True
) -> str:
    """Write the three pairs of each topic, one topic after another (Figure 22)."""
    topics = []
    for reply in replies:
        fields: dict[str, Value] = {
            "topic_summary": reply.topic_summary,
            "keywords": reply.keywords,
            "source_dialog_indices": reply.indices,
        }
        topics.append(write_pairs(fields, separator=separator, quote=quote))
    return separator.join(topics)
