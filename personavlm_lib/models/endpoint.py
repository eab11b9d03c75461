"""Use an OpenAI-compatible server (vLLM, `python -m personavlm_lib serve`, ...) as a ChatModel.

A transcript is the full list of messages, with the reasoning as the model wrote it. The `openai`
client retries with growing delays; a request that still has no answer fails without the others. The
API key comes only from the environment.
"""

import base64
import mimetypes
import os
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import openai

from personavlm_lib.memory.images import read_image
from personavlm_lib.models.chat import ChatReply, ChatRequest
from personavlm_lib.models.local import content_parts

API_KEY_VARIABLE = "PERSONAVLM_API_KEY"  # the environment variable with the key, if one is needed


class Failure(NamedTuple):
    """A kind of failure; `problem` and `fix` are filled with attributes of EndpointModel."""

    errors: tuple[type[Exception], ...]
    kind: str
    problem: str
    fix: str


FAILURES = (  # the first whose `errors` match applies
    Failure(
        (openai.APITimeoutError,),
        kind="timeout",
        problem="did not answer within {timeout:g} s",
        fix="increase the timeout, or send fewer requests at a time",
    ),
    Failure(
        (openai.APIConnectionError,),
        kind="unreachable",
        problem="cannot be reached",
        fix="start it, or correct its address",
    ),
    Failure(
        (openai.AuthenticationError, openai.PermissionDeniedError),
        kind="key refused",
        problem="rejected the API key",
        fix=f"set {API_KEY_VARIABLE} to a valid key",
    ),
    Failure(
        (openai.NotFoundError,),
        kind="unknown model",
        problem="has no model {model!r}",
        fix="choose one of those listed at {url}/models",
    ),
    Failure(
        (openai.APIStatusError,),
        kind="request refused",
        problem="rejected the request or failed to process it",
        fix="read the server's message and its log",
    ),
    Failure(
        (Exception,),
        kind="invalid response",
        problem="returned an invalid response",
        fix="check that the address is that of the API (many end in /v1)",
    ),
)


class EndpointError(RuntimeError):
    """A request that a server did not answer; `kind` is that of one of `FAILURES`."""

    def __init__(self, kind: str, message: str):
        super().__init__(message)
        self.kind = kind


def is_endpoint(source: object) -> bool:
    """Whether a model's name is that of a model on a server: `http://host:port/v1#model`."""
    return str(source).startswith(("http://", "https://"))


class EndpointModel:
    """The model of a server, `http://host:port/v1#model`.

    Raises ValueError for any other `source`. Sends up to `concurrency` requests at a time. A
    request that fails for a transient reason is retried up to `retries` times; each attempt may
    take `timeout` seconds.
    """

    def __init__(
        self,
        source: str,
        *,
        temperature: float = 0.0,
        concurrency: int = 8,
        retries: int = 4,
        timeout: float = 120.0,
        name: str = "",
    ):
        self.url, _, self.model = source.partition("#")
        address = urlsplit(self.url).netloc
        if "@" in address:
            raise ValueError(
                "The address of a server must not contain a user name or a password: "
                f"remove them, and set {API_KEY_VARIABLE}"
            )
        if not is_endpoint(source) or not self.model:
            raise ValueError(
                f"{source!r} is not a model on a server: write it as http://host:port/v1#model"
            )
        self.name = name or self.model
        self.temperature = temperature
        self.concurrency = concurrency
        self.timeout = timeout
        # The client requires a key even if the server does not.
        key = os.environ.get(API_KEY_VARIABLE) or "no-key-is-set"
        self.client = openai.OpenAI(
            base_url=self.url, api_key=key, max_retries=retries, timeout=timeout
        )

    def check_connection(self, timeout: float = 5.0) -> None:
        """Send one cheap request; EndpointError if the server is unreachable or rejects the key.

        Any other answer counts: not every server lists its models.
        """
        client = self.client.with_options(timeout=timeout, max_retries=0)
        try:
            client.models.list()
        except (openai.APIConnectionError, openai.AuthenticationError) as error:
            raise self._endpoint_error(error) from None
        except openai.OpenAIError:
            return

    def start(self) -> list[dict]:
        return []

    def reply(self, asked: list[tuple[list[dict], ChatRequest]]) -> list[ChatReply | Exception]:
        """Answer one request per transcript, in order.

        A failed request has an EndpointError as its reply, or a ValueError if an image cannot be
        read. Its transcript is unchanged, so the request may be sent again.
        """
        pool = ThreadPoolExecutor(self.concurrency)
        try:
            return list(pool.map(lambda pair: self._reply_to_one(*pair), asked))
        finally:  # after Ctrl-C, do not wait for the server
            pool.shutdown(wait=False, cancel_futures=True)

    def _reply_to_one(self, transcript: list[dict], request: ChatRequest) -> ChatReply | Exception:
        try:
            content = message_content(request)
        except ValueError as error:
            return error
        message = {"role": "user", "content": content}
        messages: list[Any] = [*transcript, message]
        try:
            completion = self.client.chat.completions.create(
                model=self.model,
                messages=messages,
                max_tokens=request.max_tokens,
                temperature=self.temperature,
            )
            choice = completion.choices[0]
            text = choice.message.content
            usage = completion.usage
        # The client accepts any JSON: missing fields only show when they are read.
        except (openai.OpenAIError, AttributeError, IndexError, TypeError, ValueError) as error:
            return self._endpoint_error(error)
        if not isinstance(text, str):
            reason = getattr(choice, "finish_reason", None)
            return self._endpoint_error(TypeError(f"no text, finish_reason {reason}"))
        transcript.append(message)
        transcript.append({"role": "assistant", "content": text})
        if not usage:
            return ChatReply(text)
        return ChatReply(text, usage.prompt_tokens or 0, usage.completion_tokens or 0)

    def _endpoint_error(self, error: Exception) -> EndpointError:
        """Describe an error, but do not chain it: it contains the request and thus the key."""
        failure = next(failure for failure in FAILURES if isinstance(error, failure.errors))
        attributes = vars(self)
        problem = failure.problem.format(**attributes)
        fix = failure.fix.format(**attributes)
        message = str(error).replace(self.client.api_key, "***")
        detail = textwrap.shorten(message, 300)
        return EndpointError(failure.kind, f"server {self.url} {problem} ({detail}): {fix}")


def message_content(request: ChatRequest) -> str | list[dict]:
    """The request as a message's content: its text, or parts with images as data URLs.

    Raises ValueError if an image cannot be read.
    """
    parts = content_parts(request.text)
    if not request.images:
        return "".join(part["text"] for part in parts)
    images = iter(request.images)
    content = []
    for part in parts:
        if part["type"] == "image":
            url = _data_url(next(images))
            part = {"type": "image_url", "image_url": {"url": url}}
        content.append(part)
    return content


def _data_url(path: str) -> str:
    read_image(path)  # raises ValueError if it is not an image
    media_type = mimetypes.guess_type(path)[0] or "image/png"
    data = base64.b64encode(Path(path).read_bytes()).decode()
    return f"data:{media_type};base64,{data}"
