"""Break up special tokens in what users and memories say, and divide a text at its images.

A chat template writes special tokens around turns and pictures. Where a user or a memory writes
one, it must stay text, or it would open a turn. Text that merely looks similar stays as it is.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

SERVERS = yaml.safe_load(Path(__file__).with_name("servers.yaml").read_text(encoding="utf-8"))
# Special tokens of the chat formats in use, for servers, whose tokenizer is not known here: those
# between <| and |> (also with the full-width bars of DeepSeek), and those with other frames.
_FRAMED = r"<[|｜][^\s<>|｜]{1,40}[|｜]>"
KNOWN_MARKERS = re.compile("|".join([_FRAMED, *map(re.escape, SERVERS["special_tokens"])]))


def break_markers(text: str, markers: Iterable[str] = ()) -> str:
    """Put a space after the first character of each special token of any family, and of `markers`.

    `<img>` stays: it is the mark of an image in a request.
    """
    own = [re.escape(marker) for marker in markers if len(marker) > 1 and marker != "<img>"]
    pattern = KNOWN_MARKERS
    if own:
        pattern = re.compile("|".join([*sorted(own, key=len, reverse=True), pattern.pattern]))
    return pattern.sub(lambda match: f"{match[0][0]} {match[0][1:]}", text)


def content_parts(text: str, markers: Iterable[str] = ()) -> list[dict[str, Any]]:
    """Convert a message's text to chat content; each `<img>` mark becomes an image placeholder.

    Special tokens, and `markers`, are broken up by `break_markers`.
    """
    first, *rest = break_markers(text, markers).split("<img>")
    parts: list[dict[str, Any]] = [{"type": "text", "text": first}]
    for part in rest:
        image = {"type": "image", "text": None}
        parts.append(image)
        parts.append({"type": "text", "text": part})
    return [part for part in parts if part["text"] != ""]
