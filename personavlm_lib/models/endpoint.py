"""Any OpenAI-compatible server as a ChatModel: vLLM, `python -m personavlm_lib serve`, a vendor.

A transcript is the list of messages, kept in full with the reasoning as the model wrote it. Waiting longer from try to
try is the `openai` client's own; an ask that still has no answer fails alone. A key comes from the environment only.
"""

import base64
import mimetypes
import os
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import openai

from personavlm_lib.memory.images import read_image
from personavlm_lib.models.chat import ChatReply, ChatRequest
from personavlm_lib.models.local import content_parts

API_KEY_VARIABLE = (
    "PERSONAVLM_API_KEY"  # the environment variable that holds the key, where a server asks for one
)
FAILURES = (  # the first that fits: error, kind, what happened, mend
    (
        openai.APITimeoutError,
        "timeout",
        "did not answer within {timeout:g} s",
        "allow more time, or ask less at once",
    ),
    (
        openai.APIConnectionError,
        "unreachable",
        "cannot be reached",
        "start it, or correct its address",
    ),
    (
        (openai.AuthenticationError, openai.PermissionDeniedError),
        "key refused",
        "refuses the key",
        f"set {API_KEY_VARIABLE} anew",
    ),
    (
        openai.NotFoundError,
        "unknown model",
        "does not know model {model!r}",
        "{url}/models lists those it knows",
    ),
    (
        openai.APIStatusError,
        "request refused",
        "refuses the request, or fails at it",
        "see what it says, and its log",
    ),
    (
        Exception,
        "nonsense",
        "answered with nonsense",
        "check that its address is that of the API (many end in /v1)",
    ),
)


class EndpointError(RuntimeError):
    """An ask that a server did not answer; `kind` is one of `FAILURES`, to be counted."""

    def __init__(self, kind: str, message: str):
        super().__init__(message)
        self.kind = kind


def is_endpoint(source: object) -> bool:
    """Whether a model's name is that of a server: `http://host:port/v1#model`."""
    return str(source).startswith(("http://", "https://"))


class EndpointModel:
    """`source`: `http://host:port/v1#model`. Up to `concurrency` asks at a time, each tried `retries` times more if it
    fails for a cause that may pass, with `timeout` seconds for each try. ValueError for any other source."""

    def __init__(
        self, source: str, *, temperature: float = 0.0, concurrency: int = 8, retries: int = 4, timeout: float = 120.0,
        name: str = "",
    ):  # fmt: skip
        self.url, _, self.model = source.partition("#")
        if "@" in urlsplit(self.url).netloc:
            raise ValueError(
                f"a server's address holds no key or password: name it without, and set {API_KEY_VARIABLE}"
            )
        if not is_endpoint(source) or not self.model:
            raise ValueError(
                f"{source!r} names no model of a server: write it as http://host:port/v1#model"
            )
        self.name = name or self.model
        self.temperature, self.concurrency, self.timeout = temperature, concurrency, timeout
        key = (
            os.environ.get(API_KEY_VARIABLE) or "no-key-is-set"
        )  # the client wants one even where the server does not
        self.client = openai.OpenAI(
            base_url=self.url, api_key=key, max_retries=retries, timeout=timeout
        )

    def start(self) -> list[dict]:
        return []

    def reply(self, asked: list[tuple[list[dict], ChatRequest]]) -> list[ChatReply | Exception]:
        """One reply for each ask, in order. A failed ask's place holds the EndpointError, or the ValueError for an
        image that cannot be read, and its transcript is as before: it may be asked again."""
        with ThreadPoolExecutor(self.concurrency) as pool:
            return list(pool.map(lambda pair: self._one(*pair), asked))

    def _one(self, transcript: list[dict], ask: ChatRequest) -> ChatReply | Exception:
        try:
            message = {"role": "user", "content": message_content(ask)}
        except ValueError as error:
            return error
        try:
            answer = self.client.chat.completions.create(
                model=self.model, messages=[*transcript, message], max_tokens=ask.max_tokens,
                temperature=self.temperature,
            )  # fmt: skip
            choice, used = answer.choices[0], answer.usage
            if not isinstance(text := choice.message.content, str):
                raise TypeError(f"no text, finish_reason {choice.finish_reason}")
        # The client takes any JSON for an answer: what is missing shows where it is read.
        except (openai.OpenAIError, AttributeError, IndexError, TypeError, ValueError) as error:
            return self._told(error)
        transcript += [message, {"role": "assistant", "content": text}]
        return (
            ChatReply(text, used.prompt_tokens or 0, used.completion_tokens or 0)
            if used
            else ChatReply(text)
        )

    def _told(self, error: Exception) -> EndpointError:
        """The error without its cause, which holds the request and so the key."""
        _, kind, what, mend = next(failure for failure in FAILURES if isinstance(error, failure[0]))
        detail = textwrap.shorten(str(error).replace(self.client.api_key, "***"), 300)
        what, mend = (part.format(**vars(self)) for part in (what, mend))
        return EndpointError(kind, f"server {self.url} {what} ({detail}): {mend}")


def message_content(ask: ChatRequest) -> str | list[dict]:
    """The ask as a message's content: its text, or parts with images as data URLs. ValueError as `read_image`."""
    parts, urls = content_parts(ask.text), []
    for path in ask.images:
        read_image(path)
        kind = mimetypes.guess_type(path)[0] or "image/png"
        urls.append(f"data:{kind};base64,{base64.b64encode(Path(path).read_bytes()).decode()}")
    for part, url in zip([part for part in parts if part["type"] == "image"], urls, strict=True):
        part |= {"type": "image_url", "image_url": {"url": url}}
        del part["text"]
    return parts if urls else "".join(part["text"] for part in parts)
