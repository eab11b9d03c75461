"""Read the response of an OpenAI-compatible server as a ChatReply or a RequestFailure.

Servers differ in where they put reasoning, refusals and errors, and some fail with status 200.
`read_completion` accepts any bytes.
"""

import json
import re
import textwrap
from typing import Any

from personavlm_lib.models.chat import ChatReply, ContextOverflow, RequestFailure
from personavlm_lib.models.markers import SERVERS

STOP_REASONS = {  # a server's finish reason -> the stop reason of a ChatReply
    word: reason for reason, words in SERVERS["stop_reasons"].items() for word in words
}
REASONING_FIELDS = ("reasoning_content", "reasoning", "thinking")
OVERFLOW_WORDS = re.compile(
    r"context[ _-]?(length|window|size)|max_model_len|n_ctx|(prompt|input|request) is too long|"
    r"maximum (input|prompt|sequence) length|too many (input |prompt )?tokens|token limit|"
    r"reduce the length",
    re.IGNORECASE,
)
# Numbers of tokens in the messages of vLLM, OpenAI and llama.cpp: the limit, and the prompt.
_TOKENS = r"\D{0,40}?(\d{3,9})"
_LIMIT = re.compile(rf"(?:maximum context length is|n_ctx|context size){_TOKENS}", re.IGNORECASE)
_NEEDED = re.compile(
    rf"(?:you requested|resulted in|n_prompt_tokens|request has|contains at least){_TOKENS}",
    re.IGNORECASE,
)


def read_completion(data: bytes) -> ChatReply:
    """The reply in the body of a response with status 200.

    Raises RequestFailure for a body without a reply, including any that carries an error, and
    ContextOverflow where the error says so.
    """
    try:
        body = json.loads(data)
    except (ValueError, RecursionError):
        start = textwrap.shorten(data[:200].decode(errors="replace"), 100)
        raise RequestFailure("invalid response", f"not JSON: {start!r}") from None
    choices = _field(body, "choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = _field(choice, "message")
    finish = _field(choice, "finish_reason")
    error = _field(body, "error") or _field(choice, "error") or _field(message, "error")
    if error or finish in SERVERS["failed"]:
        failure = failure_of(error_text(error or finish), "server error")
        if failure.kind != "overflow":
            failure.pause = 0.0
        raise failure
    if not isinstance(message, dict):
        raise RequestFailure("invalid response", f"no message in {str(body)[:100]!r}")
    reasoning, text = _message_parts(message)
    stop = _stop_reason(message, finish)
    if not text and not reasoning and not isinstance(finish, str):
        raise RequestFailure("invalid response", "neither text nor a finish reason")
    if not text and stop == "refusal":
        text = _clean(str(message["refusal"]))
    text = _with_reasoning(reasoning, text, is_cut=stop in ("length", "overflow"))
    usage = _field(body, "usage")
    tokens_in = _count(_field(usage, "prompt_tokens"))
    return ChatReply(text, tokens_in, _count(_field(usage, "completion_tokens")), stop)


def failure_of(message: str, kind: str) -> RequestFailure:
    """The failure that a server's error message describes: an overflow, or one of `kind`."""
    if not OVERFLOW_WORDS.search(message):
        return RequestFailure(kind, message)
    limit = _LIMIT.search(message)
    needed = _NEEDED.search(message)
    if limit and needed and int(limit[1]) < int(needed[1]):
        return ContextOverflow(message, fits=int(limit[1]) / int(needed[1]))
    return ContextOverflow(message)


def error_text(error: Any) -> str:
    """The message of an error in any of the usual shapes; else all of it."""
    message = _field(error, "message") or _field(error, "detail") or _field(error, "error") or error
    if isinstance(message, dict) and message is not error:
        return error_text(message)
    return _clean(str(message))


def _field(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, dict) else None


def _message_parts(message: dict) -> tuple[str, str]:
    """The reasoning and the text of a message, whose content may be a list of parts."""
    reasoning = ""
    for name in REASONING_FIELDS:
        reasoning = reasoning or _plain_text(message.get(name), "")
    content = message.get("content")
    if isinstance(content, list):
        reasoning = reasoning or "".join(_plain_text(part, "thinking") for part in content)
        return reasoning, "".join(_plain_text(part, "text") for part in content)
    return reasoning, _plain_text(content, "")


def _plain_text(value: Any, name: str) -> str:
    """A text, or the field `name` of a part of a message (a text or again a list of parts)."""
    if name and isinstance(value, dict):
        value = value.get(name)
    if isinstance(value, list):
        return "".join(_plain_text(part, "text") for part in value if isinstance(part, (dict, str)))
    return _clean(value) if isinstance(value, str) else ""


def _clean(text: str) -> str:
    """The text without halves of surrogate pairs, which JSON can hold but no file."""
    return text.encode(errors="replace").decode()


def _stop_reason(message: dict, finish: Any) -> str:
    if message.get("refusal"):
        return "refusal"
    if not isinstance(finish, str) or not finish:
        return "tool call" if message.get("tool_calls") else "stop"
    word = finish.lower()
    return STOP_REASONS.get(word, textwrap.shorten(_clean(word), 40))


def _with_reasoning(reasoning: str, text: str, is_cut: bool) -> str:
    """Put reasoning where the agent reads it; it stays open if the reply was cut inside of it."""
    reasoning = reasoning.replace("</think>", "").strip()
    if not reasoning or "<think>" in text:
        return text
    if is_cut and not text.strip():
        return f"<think>{reasoning}"
    return f"<think>{reasoning}</think>\n{text.lstrip()}"


def _count(value: Any) -> int:
    is_number = isinstance(value, int) and not isinstance(value, bool)
    return min(value, 2**53) if is_number and value > 0 else 0
