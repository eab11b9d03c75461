"""Replies in the output grammar, written strictly (paper, Figures 16 and 18-22): what `protocol.py` reads.

The oracle answers with them, and the backbone and the SFT samples learn from them.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime

from personavlm_lib.agent.protocol import TIME_FORMAT, EpisodeReply, SemanticReply

Value = str | bool | int | datetime | tuple[int, ...] | None


def write_pairs(pairs: Mapping[str, Value], *, separator: str = "\n", quote: bool = True) -> str:
    """`"key": value` pairs, for the replies of Figures 18, 19 and 21.

    Truth values and numbers are never quoted, None is `null`. `quote=False` leaves text bare: line breaks become
    spaces, and a value must not hold a `"key":` of its own.
    """
    return separator.join(f'"{key}": {_written(value, quote)}' for key, value in pairs.items())


def _written(value: Value, quote: bool) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return str(value)
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    text = (
        "null"
        if value is None
        else value.strftime(TIME_FORMAT)
        if isinstance(value, datetime)
        else value
    )
    if not quote:
        return " ".join(text.split())
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


def write_answer(think: str, answer: str, *, separator: str = "\n") -> str:
    """A step that answers (Figure 16)."""
    return f"<think>{think}</think>{separator}<answer>{answer}</answer>"


def write_retrieve(
    think: str, keywords: str, start: datetime | None = None, end: datetime | None = None, *,
    separator: str = "\n", quote: bool = True,
) -> str:  # fmt: skip
    """A step that searches (Figure 16)."""
    pairs = write_pairs(
        {"keywords": keywords, "start_time": start, "end_time": end},
        separator=separator,
        quote=quote,
    )
    return f"<think>{think}</think>{separator}<retrieve>{separator}{pairs}{separator}</retrieve>"


def write_semantic(reply: SemanticReply, *, separator: str = "\n", quote: bool = True) -> str:
    """Four pairs (Figure 20)."""
    return write_pairs(vars(reply), separator=separator, quote=quote)


def write_episodes(
    replies: Sequence[EpisodeReply], *, separator: str = "\n", quote: bool = True
) -> str:
    """Three pairs for each topic, one after another (Figure 22)."""
    names = ("topic_summary", "keywords", "source_dialog_indices")
    topics = [
        dict(zip(names, (r.topic_summary, r.keywords, r.indices), strict=True)) for r in replies
    ]
    return separator.join(write_pairs(topic, separator=separator, quote=quote) for topic in topics)
