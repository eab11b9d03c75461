"""Parsers for model replies (paper, Figures 16 and 18-22). `protocol_writer.py` writes the format.

A step of the Response stage is a `<think>` block followed by exactly one of `<answer>` and
`<retrieve>`. The Update stage replies in `"key": value` pairs. The authors' released weights
write a variant of this format (values without quotes, `True`, full-width punctuation, text around
the tags, a missing closing tag), and a small model can write anything, so **no parser in this file
raises on any text**. The format errors of a step are in `Step.errors`, which the format reward
reads. The parsers return None or an empty value for an unusable reply.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from personavlm_lib.memory.records import TRAITS, BigFive

TIME_FORMAT = "%Y-%m-%d %H:%M"


@dataclass(frozen=True)
class RetrieveArgs:
    """The keywords and the period of a search; None leaves that end of the period open."""

    keywords: str
    start: datetime | None = None
    end: datetime | None = None


@dataclass(frozen=True)
class Step:
    """One generation of the Response stage. `errors` is empty if it follows Figure 16 exactly."""

    think: str | None
    retrieve: RetrieveArgs | None
    answer: str | None
    errors: tuple[str, ...] = ()


@dataclass(frozen=True)
class SemanticReply:
    """A reply of Figure 20: whether to remember something, and what. A "no" has no content."""

    reason: str
    decision: bool
    content: str
    keywords: str


@dataclass(frozen=True)
class EpisodeReply:
    """One topic of a session (Figure 22). `indices` are the dialogue numbers of the prompt."""

    topic_summary: str
    keywords: str
    indices: tuple[int, ...]


# ---------------------------------------------------------------- steps

_TAG = re.compile(r"<\s*(/?)\s*(think|answer|retrieve)\s*>", re.IGNORECASE)


def parse_step(text: str, is_cut: bool = False) -> Step:
    """Parse one generation.

    Only the first block of each name is used. A step with both actions keeps both and has an error.
    If the generation was cut (`is_cut`) while the model was thinking, tags in its thoughts are no
    action.
    """
    blocks, errors = _read_blocks(text)
    only_thought = set(blocks) == {"think"} or "unclosed <think>" in errors
    if is_cut and only_thought:
        errors.append("cut while thinking")
        blocks = {"think": blocks["think"]}
    elif len(blocks) == 1:
        think = blocks.get("think", "")
        tag = _TAG.search(think)
        if tag:  # the action is inside <think>
            errors.append("block inside <think>")
            inner_blocks, _ = _read_blocks(think)
            blocks["think"] = think[: tag.start()].strip()
            blocks.update(inner_blocks)
    if not blocks.get("think"):
        errors.append("no <think>")

    retrieve = None
    if "retrieve" in blocks:
        retrieve, retrieve_errors = _retrieve_args(blocks["retrieve"])
        errors += retrieve_errors
    answer = blocks.get("answer")
    if answer == "":
        errors.append("empty <answer>")
    if "answer" in blocks and "retrieve" in blocks:
        errors.append("both <answer> and <retrieve>")
    elif "answer" not in blocks and "retrieve" not in blocks:
        errors.append("neither <answer> nor <retrieve>")
    return Step(blocks.get("think"), retrieve, answer, tuple(errors))


def _read_blocks(text: str) -> tuple[dict[str, str], list[str]]:
    """The first block of each name, and the format errors around the blocks.

    A block ends at its own closing tag or, if there is none, at the next tag or the end of the
    text. A closing tag without an opening one closes the text since the last block; this happens
    with chat templates that write `<think>` themselves.
    """
    blocks: dict[str, str] = {}
    errors: list[str] = []
    outside = []  # pieces of text outside all blocks
    position = 0  # where the last block ended
    tags = list(_TAG.finditer(text))
    for number, tag in enumerate(tags):
        if tag.start() < position:
            continue  # inside a block
        name = tag[2].lower()
        before = text[position : tag.start()]
        is_closing = tag[1] == "/"
        if is_closing:
            content = before
            position = tag.end()
            errors.append(f"unopened <{name}>")
        else:
            outside.append(before)
            later_tags = tags[number + 1 :]
            closing_tag = _first_closing_tag(later_tags, name)
            if closing_tag:
                end = closing_tag.start()
                position = closing_tag.end()
            else:
                end = later_tags[0].start() if later_tags else len(text)
                position = end
                errors.append(f"unclosed <{name}>")
            content = text[tag.end() : end]
        if name in blocks:
            errors.append(f"more than one <{name}>")
        elif name == "think" and blocks:
            errors.append("<think> after the action")
        blocks.setdefault(name, content.strip())
    outside.append(text[position:])
    if any(piece.strip() for piece in outside):
        errors.append("text outside the tags")
    return blocks, errors


def _first_closing_tag(tags: list[re.Match[str]], name: str) -> re.Match[str] | None:
    for tag in tags:
        if tag[1] and tag[2].lower() == name:
            return tag
    return None


def _retrieve_args(text: str) -> tuple[RetrieveArgs | None, list[str]]:
    """The search and its format errors; None if there are neither keywords nor a period."""
    names = ("keywords", "start_time", "end_time")
    fields = _fields(text, names)
    errors = [f"no {name}" for name in names if name not in fields]
    start, start_readable = _read_time(fields.get("start_time", ""), is_end=False)
    if not start_readable:
        errors.append("bad start_time")
    end, end_readable = _read_time(fields.get("end_time", ""), is_end=True)
    if not end_readable:
        errors.append("bad end_time")
    if start and end and end < start:
        errors.append("end_time before start_time")
    keywords = _keywords(fields.get("keywords", ""))
    if "keywords" in fields and not keywords:
        errors.append("empty keywords")
    if not keywords and not start and not end:
        return None, errors
    return RetrieveArgs(keywords, start, end), errors


_DATE = re.compile(
    r"(\d{4})[-/.](\d{1,2})[-/.](\d{1,2})(?:[T ]*(\d{1,2}):(\d{2})(?::\d{2})?)?(?:\s*\(\w+\))?"
)
_FULL_WIDTH = str.maketrans("：，／－（）　０１２３４５６７８９", ":,/-() 0123456789")


def _read_time(text: str, is_end: bool) -> tuple[datetime | None, bool]:
    """The time (None for an open end), and whether the text is readable.

    A date without a time is its first minute or, as the end of a period, its last minute.
    """
    text = text.translate(_FULL_WIDTH)
    text = re.sub(r"\s*([-/:])\s*", r"\1", text).strip(" \t\"',")
    if text.lower() in ("", "null", "none"):
        return None, True
    match = _DATE.fullmatch(text)
    if match is None:
        return None, False
    year, month, day, hour, minute = match.groups()
    try:
        midnight = datetime(int(year), int(month), int(day))
        if hour is not None:
            return midnight.replace(hour=int(hour), minute=int(minute)), True
    except ValueError:  # no such date or time, such as 2024-02-31
        return None, False
    if is_end:
        return midnight.replace(hour=23, minute=59), True
    return midnight, True


# ---------------------------------------------------------------- key-value replies

_OPEN, _CLOSE = "\"'“‘「", "\"'”’」"
_QUOTED = "|".join(
    rf"{o}[ \t]*([^{c}\n]{{1,80}}?)[ \t]*{c}" for o, c in zip(_OPEN, _CLOSE, strict=True)
)
_KEY = re.compile(rf"""(?:(?<=[\s,，;；{{(\["'”])|(?<![\s\S]))(?:{_QUOTED})\s*[:：]""")
_LINE_KEY = re.compile(r"\n\s*" + _KEY.pattern)
_VALUE_ENDS = re.compile(r"\s*[,，;；]?\s*(?:$|\n|[}\]]|" + _KEY.pattern + ")")


def parse_pairs(text: str, known: Iterable[str] = ()) -> dict[str, str]:
    """All `"key": value` pairs in order, on one line or many, with values quoted or bare.

    Only the first pair of each key is used. Values keep their colons, commas, inner quotes and
    full-width characters. If the text has no quoted key at all, the `known` keys are also read
    without quotes.
    """
    pairs: dict[str, str] = {}
    for key, value in _read_pairs(text, known):
        pairs.setdefault(key, value)
    return pairs


def _without_thinking(text: str) -> str:
    """The reply after its thinking block, which may quote keys; "" if the block never ends."""
    if not text.lstrip().startswith("<think>"):
        return text
    return text.partition("</think>")[2]


def _read_pairs(text: str, known: Iterable[str] = ()) -> list[tuple[str, str]]:
    text = _without_thinking(text)
    key_pattern = _KEY
    if known and not _KEY.search(text):
        names = "|".join(re.escape(name) for name in known)
        key_pattern = re.compile(
            rf"(?:(?<=[\s,，;；{{])|(?<![\s\S]))[*-]*({names})[*]*\s*[:：]", re.IGNORECASE
        )
    pairs: list[tuple[str, str]] = []
    match = key_pattern.search(text)
    while match:
        value, position = _read_value(text, match.end(), key_pattern)
        assert match.lastindex is not None
        name = match[match.lastindex]
        if re.search(r"\w", name):
            pairs.append((name, value))
        match = key_pattern.search(text, position)
    return pairs


def _read_value(text: str, start: int, key_pattern: re.Pattern[str]) -> tuple[str, int]:
    """The value that begins at `start`, and where it ends.

    A key at the beginning of a line always ends the value before it.
    """
    leading_space = len(text[start:]) - len(text[start:].lstrip())
    start += leading_space
    if key_pattern.match(text, start):
        return "", start
    line_key = _LINE_KEY.search(text, start)
    limit = line_key.start() if line_key else len(text)

    quoted = _read_quoted_value(text, start, limit)
    if quoted:
        return quoted
    if text.startswith("[", start):
        bracket = text.find("]", start, limit)
        if bracket >= 0:
            return text[start : bracket + 1], bracket + 1

    newline = text.find("\n", start, limit)
    end = newline if newline >= 0 else limit
    next_key = key_pattern.search(text, start, end)
    if next_key:
        end = next_key.start()
    return _clean_bare_value(text[start:end]), end


def _read_quoted_value(text: str, start: int, limit: int) -> tuple[str, int] | None:
    """The quoted value at `start` and where it ends; None if it is not quoted or never closed.

    An inner quote is part of the value unless something that ends a value follows it.
    """
    if start >= len(text) or text[start] not in _OPEN:
        return None
    closing = _CLOSE[_OPEN.index(text[start])]
    content_start = start + 1
    for mark in re.finditer(rf"\\.|{closing}", text[content_start:limit], re.DOTALL):
        end = content_start + mark.end()
        if mark[0] == closing and _VALUE_ENDS.match(text, end, limit):
            return _unescape(text[content_start : end - 1]).strip(), end
    return None


def _unescape(text: str) -> str:
    def character(match: re.Match[str]) -> str:
        return "\n" if match[1] == "n" else match[1]

    return re.sub(r'\\([n"\\])', character, text)


def _clean_bare_value(value: str) -> str:
    value = value.strip().rstrip(",，;；").strip()
    if "{" not in value:
        value = value.rstrip("}").strip()
    if len(value) > 1 and value[0] in _OPEN:
        closing = _CLOSE[_OPEN.index(value[0])]
        if value[-1] == closing:
            value = value[1:-1].strip()
    return value


def _fields(text: str, known: Sequence[str]) -> dict[str, str]:
    """`parse_pairs` for a reply with fixed keys: `Start Time` and `start_time` are the same key."""
    fields: dict[str, str] = {}
    for key, value in _read_pairs(text, known):
        fields.setdefault(_field_name(key), value)
    return fields


def _field_name(key: str) -> str:
    return re.sub(r"[\s-]+", "_", key.strip().lower())


def _keywords(text: str) -> str:
    """`tea, cats` from `["tea", "cats"]`, `tea，cats` or `tea, cats`; `""` from null."""
    keywords = []
    for part in re.split("[,，]", text):
        keyword = part.strip(" \t\n[]\"'“”")
        if keyword:
            keywords.append(keyword)
    joined = ", ".join(keywords)
    if joined.lower() in ("null", "none"):
        return ""
    return joined


_SCORE = re.compile(r"\D{0,3}?(-?\d{1,3}(?:\.\d{1,6})?)(?!\d)")


def parse_personality(text: str) -> BigFive | None:
    """The turn's p' (Figure 18); None unless all five traits have a score between 1 and 5."""
    fields = _fields(text, TRAITS)
    scores = []
    for trait in TRAITS:
        number = _SCORE.match(fields.get(trait, ""))
        if number is None:
            return None
        score = float(number[1])
        if not 1 <= score <= 5:
            return None
        scores.append(score)
    return BigFive(*scores)


_DECISIONS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def parse_semantic(text: str) -> SemanticReply | None:
    """The decision of Figure 20; None if it is unreadable, or positive without content."""
    fields = _fields(text, ("reason", "decision", "content", "keywords"))
    word = re.match(r"\W*(\w+)", fields.get("decision", ""))
    if word is None:
        return None
    decision = _DECISIONS.get(word[1].lower())
    reason = fields.get("reason", "")
    content = fields.get("content", "")
    if decision is None:
        return None
    if not decision:
        return SemanticReply(reason, False, "", "")
    if not content:
        return None
    return SemanticReply(reason, True, content, _keywords(fields.get("keywords", "")))


def parse_episodes(text: str) -> list[EpisodeReply]:
    """The topics of Figure 22, one per `topic_summary`; `indices` is empty if it is unreadable."""
    topics: list[dict[str, str]] = []
    for key, value in _read_pairs(text, ("topic_summary", "keywords", "source_dialog_indices")):
        name = _field_name(key)
        if name == "topic_summary":
            topics.append({})
        if topics:
            topics[-1].setdefault(name, value)
    replies = []
    for topic in topics:
        summary = topic["topic_summary"]
        keywords = _keywords(topic.get("keywords", ""))
        indices = _indices(topic.get("source_dialog_indices", ""))
        if summary:
            replies.append(EpisodeReply(summary, keywords, indices))
    return replies


def _indices(text: str) -> tuple[int, ...]:
    """All numbers in a text, in order, without duplicates."""
    numbers = [int(digits) for digits in re.findall(r"\d{1,6}", text)]
    return tuple(dict.fromkeys(numbers))


def parse_core(text: str) -> dict[str, str]:
    """The new profile of Figure 21, without its `null` entries.

    A value may be empty; the store rejects such a profile.
    """
    entries = {}
    for key, value in parse_pairs(text).items():
        if value.lower() not in ("null", "none"):
            entries[key] = value
    return entries


def parse_procedural(text: str) -> dict[str, str]:
    """The goals and habits of Figure 19, key -> sentence; the store rejects more than five."""
    return parse_core(text)


_IMAGE_OBJECT = re.compile(r"[(（]\s*image\s+object\s*[:：]\s*([^()（）]*?)\s*[)）]", re.IGNORECASE)


def image_object(content: str) -> tuple[str, str] | None:
    """(description, class name) of a concept such as `my cat Miso (Image Object: cat)` (App. B).

    None if the content names no image object.
    """
    match = _IMAGE_OBJECT.search(content)
    if match is None:
        return None
    class_name = match[1].strip(" <>\"'")
    if not class_name:
        return None
    before = content[: match.start()].strip()
    after = content[match.end() :].strip(" .。")
    return f"{before} {after}".strip(), class_name
