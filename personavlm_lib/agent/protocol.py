"""What the model may write, read leniently (paper, Figures 16 and 18-22); `replies.py` writes it strictly.

A step of the response stage is a `<think>` block followed by exactly one of `<answer>` and `<retrieve>`; the update
stage answers in `"key": value` pairs. Released weights write a dialect of this (values without quotes, `True`,
full-width punctuation, text around the tags, a missing closing tag), and a small model writes anything at all, so
**no reader in this file raises on any text**: what is wrong with a step stands in `Step.errors`, which is also what
the format reward reads, and a reply that cannot be used is None or empty.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, time

from personavlm_lib.memory.records import TRAITS, BigFive

TIME_FORMAT = "%Y-%m-%d %H:%M"


@dataclass(frozen=True)
class RetrieveArgs:
    """What to look for and in which period; None is an open end."""

    keywords: str
    start: datetime | None = None
    end: datetime | None = None


@dataclass(frozen=True)
class Step:
    """One generation of the response stage. `errors` is empty exactly where the grammar of Figure 16 was kept."""

    think: str | None
    retrieve: RetrieveArgs | None
    answer: str | None
    errors: tuple[str, ...] = ()


@dataclass(frozen=True)
class SemanticReply:
    """Figure 20: is there something to remember, and what. Content and keywords are empty where there is nothing."""

    reason: str
    decision: bool
    content: str
    keywords: str


@dataclass(frozen=True)
class EpisodeReply:
    """Figure 22: one topic of a session; `indices` count the dialogues as the prompt numbered them."""

    topic_summary: str
    keywords: str
    indices: tuple[int, ...]


# ---------------------------------------------------------------- steps

_TAG = re.compile(r"<\s*(/?)\s*(think|answer|retrieve)\s*>", re.IGNORECASE)


def parse_step(text: str) -> Step:
    """Reads one generation. Both blocks are given where both were written (an error); the first of each counts."""
    blocks, errors = _blocks(text)
    think = blocks.get("think", "")
    if len(blocks) == 1 and (tag := _TAG.search(think)):  # the action was written before </think>
        errors.append("block inside <think>")
        blocks |= {"think": think[: tag.start()].strip()} | _blocks(think)[0]
    if not blocks.get("think"):
        errors.append("no <think>")
    answer, retrieve = blocks.get("answer"), None
    if "retrieve" in blocks:
        retrieve, wrong = _retrieve_args(blocks["retrieve"])
        errors += wrong
    if answer == "":
        errors.append("empty <answer>")
    actions = blocks.keys() & {"answer", "retrieve"}
    if len(actions) != 1:
        errors.append(
            "both <answer> and <retrieve>" if actions else "neither <answer> nor <retrieve>"
        )
    return Step(blocks.get("think"), retrieve, answer, tuple(errors))


def _blocks(text: str) -> tuple[dict[str, str], list[str]]:
    """The first block of each name, and what is wrong around them.

    A block runs to its own closing tag; without one, to the next tag or the end. A closing tag that nothing opened
    closes a block of the text since the last one: chat templates that write `<think>` themselves leave that.
    """
    blocks: dict[str, str] = {}
    errors: list[str] = []
    tags = list(_TAG.finditer(text))
    position, outside = 0, []
    for i, tag in enumerate(tags):
        if tag.start() < position:  # within a block that is already read
            continue
        before, name = text[position : tag.start()], tag[2].lower()
        if tag[1]:
            content, position = before, tag.end()
            errors.append(f"unopened <{name}>")
        else:
            outside.append(before)
            close = next((t for t in tags[i + 1 :] if t[1] and t[2].lower() == name), None)
            end = close or next(iter(tags[i + 1 :]), None)
            content = text[tag.end() : end.start() if end else len(text)]
            position = close.end() if close else tag.end() + len(content)
            if close is None:
                errors.append(f"unclosed <{name}>")
        if name in blocks:
            errors.append(f"more than one <{name}>")
        elif name == "think" and blocks:
            errors.append("<think> after the action")
        blocks.setdefault(name, content.strip())
    outside.append(text[position:])
    if any(part.strip() for part in outside):
        errors.append("text outside the tags")
    return blocks, errors


def _retrieve_args(text: str) -> tuple[RetrieveArgs | None, list[str]]:
    """None where nothing to search for was written: no keywords and no period."""
    fields = _fields(text, ("keywords", "start_time", "end_time"))
    errors = [f"no {name}" for name in ("keywords", "start_time", "end_time") if name not in fields]
    ends: dict[str, datetime | None] = {}
    for name in ("start_time", "end_time"):
        ends[name], readable = _moment(fields.get(name, ""), last=name == "end_time")
        if not readable:
            errors.append(f"bad {name}")
    start, end = ends["start_time"], ends["end_time"]
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


def _moment(text: str, last: bool) -> tuple[datetime | None, bool]:
    """(time or None for an open end, whether it could be read). A date alone is its first or `last` minute."""
    text = re.sub(r"\s*([-/:])\s*", r"\1", text.translate(_FULL_WIDTH)).strip(" \t\"',")
    if text.lower() in ("", "null", "none"):
        return None, True
    match = _DATE.fullmatch(text)
    try:
        year, month, day, hour, minute = (None if g is None else int(g) for g in match.groups())
        day_part = datetime(year, month, day)
        if hour is None:
            return datetime.combine(day_part, time(23, 59) if last else time(0, 0)), True
        return day_part.replace(hour=hour, minute=minute), True
    except (AttributeError, ValueError):  # no date at all, or one like 2024-02-31
        return None, False


# ---------------------------------------------------------------- key-value replies

_OPEN, _CLOSE = "\"'“‘「", "\"'”’」"
_QUOTED = "|".join(
    rf"{o}[ \t]*([^{c}\n]{{1,80}}?)[ \t]*{c}" for o, c in zip(_OPEN, _CLOSE, strict=True)
)
_KEY = re.compile(rf"""(?:(?<=[\s,，;；{{(\["'”])|(?<![\s\S]))(?:{_QUOTED})\s*[:：]""")
_LINE_KEY = re.compile(r"\n\s*" + _KEY.pattern)
_VALUE_ENDS = re.compile(r"\s*[,，;；]?\s*(?:$|\n|[}\]]|" + _KEY.pattern + ")")


def parse_pairs(text: str, known: Iterable[str] = ()) -> dict[str, str]:
    """Every `"key": value` in order, one a line or many, values quoted or bare; of a repeated key the first.

    Values keep their colons, commas, inner quotes and full-width signs. Where not one quoted key stands in the text,
    the `known` keys are also read without quotes.
    """
    pairs: dict[str, str] = {}
    for key, value in _pairs(text, known):
        pairs.setdefault(key, value)
    return pairs


def _pairs(text: str, known: Iterable[str] = ()) -> list[tuple[str, str]]:
    key = _KEY
    if known and not _KEY.search(text):
        names = "|".join(re.escape(name) for name in known)
        key = re.compile(
            rf"(?:(?<=[\s,，;；{{])|(?<![\s\S]))[*-]*({names})[*]*\s*[:：]", re.IGNORECASE
        )
    found: list[tuple[str, str]] = []
    match = key.search(text)
    while match:
        value, position = _value(text, match.end(), key)
        if re.search(r"\w", name := match[match.lastindex]):
            found.append((name, value))
        match = key.search(text, position)
    return found


def _value(text: str, start: int, key: re.Pattern) -> tuple[str, int]:
    """The value that begins at `start`, and where to look on. A key at the start of a line always ends a value."""
    start += len(text[start:]) - len(text[start:].lstrip())
    if key.match(text, start):
        return "", start
    line_key = _LINE_KEY.search(text, start)
    limit = line_key.start() if line_key else len(text)
    if text[start : start + 1] and text[start] in _OPEN:
        closing = _CLOSE[_OPEN.index(text[start])]
        for mark in re.finditer(rf"\\.|{closing}", text[start + 1 : limit], re.DOTALL):
            end = start + 1 + mark.end()
            if mark[0] == closing and _VALUE_ENDS.match(text, end, limit):
                plain = re.sub(
                    r'\\([n"\\])',
                    lambda m: "\n" if m[1] == "n" else m[1],
                    text[start + 1 : end - 1],
                )
                return plain.strip(), end
    elif text.startswith("[", start) and (bracket := text.find("]", start, limit)) >= 0:
        return text[start : bracket + 1], bracket + 1
    newline = text.find("\n", start, limit)
    end = newline if newline >= 0 else limit
    if following := key.search(text, start, end):
        end = following.start()
    value = text[start:end].strip().rstrip(",，;；").strip()
    if "{" not in value:
        value = value.rstrip("}").strip()
    if len(value) > 1 and value[0] in _OPEN and value[-1] == _CLOSE[_OPEN.index(value[0])]:
        value = value[1:-1].strip()
    return value, end


def _fields(text: str, known: Sequence[str]) -> dict[str, str]:
    """`parse_pairs` for a reply whose keys are fixed: `Start Time` and `start_time` are one."""
    return {
        _field(key): value for key, value in reversed(_pairs(text, known))
    }  # the first of each counts


def _field(key: str) -> str:
    return re.sub(r"[\s-]+", "_", key.strip().lower())


def _keywords(text: str) -> str:
    """`tea, cats` from `["tea", "cats"]`, `tea，cats` or `tea, cats`; `""` from null."""
    parts = (part.strip(" \t\n[]\"'“”") for part in re.split("[,，]", text))
    joined = ", ".join(part for part in parts if part)
    return "" if joined.lower() in ("null", "none") else joined


def parse_personality(text: str) -> BigFive | None:
    """The momentary p' of Figure 18; None unless all five traits stand there, each between 1 and 5."""
    fields = _fields(text, TRAITS)
    numbers = [
        re.match(r"\D{0,3}?(-?\d{1,3}(?:\.\d{1,6})?)(?!\d)", fields.get(trait, ""))
        for trait in TRAITS
    ]
    if not all(numbers):
        return None
    scores = [float(number[1]) for number in numbers]
    return BigFive(*scores) if all(1 <= score <= 5 for score in scores) else None


def parse_semantic(text: str) -> SemanticReply | None:
    """Figure 20. None where the decision cannot be read, or says yes to nothing."""
    fields = _fields(text, ("reason", "decision", "content", "keywords"))
    word = re.match(r"\W*(\w+)", fields.get("decision", ""))
    decision = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    decision = decision.get(word[1].lower()) if word else None
    content = fields.get("content", "")
    if decision is None or (decision and not content):
        return None
    if not decision:
        return SemanticReply(fields.get("reason", ""), False, "", "")
    return SemanticReply(
        fields.get("reason", ""), True, content, _keywords(fields.get("keywords", ""))
    )


def parse_episodes(text: str) -> list[EpisodeReply]:
    """Figure 22: a topic begins at each `topic_summary`. One without readable indices has none: the caller decides."""
    topics: list[dict[str, str]] = []
    for key, value in _pairs(text, ("topic_summary", "keywords", "source_dialog_indices")):
        if _field(key) == "topic_summary":
            topics.append({})
        if topics:
            topics[-1].setdefault(_field(key), value)
    return [
        EpisodeReply(
            topic["topic_summary"],
            _keywords(topic.get("keywords", "")),
            tuple(
                dict.fromkeys(
                    int(n) for n in re.findall(r"\d{1,6}", topic.get("source_dialog_indices", ""))
                )
            ),
        )
        for topic in topics
        if topic["topic_summary"]
    ]


def parse_core(text: str) -> dict[str, str]:
    """Figure 21: the new profile, less what says nothing (`null`). A key may lack a value: the store refuses that."""
    return {
        key: value
        for key, value in parse_pairs(text).items()
        if value.lower() not in ("null", "none")
    }


def parse_procedural(text: str) -> dict[str, str]:
    """Figure 19: key -> sentence, however many: the store takes five at most."""
    return parse_core(text)


_IMAGE_OBJECT = re.compile(r"[(（]\s*image\s+object\s*[:：]\s*([^()（）]*?)\s*[)）]", re.IGNORECASE)


def image_object(content: str) -> tuple[str, str] | None:
    """(description, class name) of a visual concept `my cat Miso (Image Object: cat)`, else None (Appendix B)."""
    match = _IMAGE_OBJECT.search(content)
    name = match[1].strip(" <>\"'") if match else ""
    if not name:
        return None
    return (
        f"{content[: match.start()].strip()} {content[match.end() :].strip(' .。')}".strip(),
        name,
    )
