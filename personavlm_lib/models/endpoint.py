"""Use an OpenAI-compatible server (vLLM, llama.cpp, Ollama, `transformers serve`) as a ChatModel.

A transcript is the full list of messages, with the reasoning as the model wrote it. A request that
fails for a transient reason is sent again with growing delays; one that still has no reply fails
without the others. The API key comes only from the environment.
"""

import base64
import os
import random
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import openai

from personavlm_lib.memory.images import MAX_PIXELS, encoded_image
from personavlm_lib.models.chat import ChatReply, ChatRequest, ContextOverflow, RequestFailure
from personavlm_lib.models.completions import error_text, failure_of, read_completion
from personavlm_lib.models.markers import SERVERS, content_parts

API_KEY_VARIABLE = "PERSONAVLM_API_KEY"  # the environment variable with the key, if one is needed
LONGEST_PAUSE = 60.0  # seconds before a request is sent again; a server that asks for more fails
TRANSIENT_STATUS = (408, 409, 425, 429)  # besides 500 and above


@dataclass(frozen=True)
class EndpointSettings:
    """How requests are sent to one server; in a profile, beside the model's address.

    temperature, top_p, seed: None leaves them out, for servers that refuse them.
    max_tokens_name: "max_tokens", or "max_completion_tokens" for servers that expect that.
    extra_body, headers: added to each request.
    time_limit: seconds for one attempt from sending to the last byte.
    retries: attempts after the first.
    connections: requests under way at a time.
    requests_per_minute: 0 for no limit.
    max_pixels: larger pictures are scaled down.

    Raises ValueError for a value that no server can take.
    """

    temperature: float | None = 0.0
    top_p: float | None = None
    seed: int | None = None
    max_tokens_name: str = "max_tokens"
    extra_body: dict[str, Any] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    time_limit: float = 120.0
    retries: int = 4
    connections: int = 8
    requests_per_minute: float = 0.0
    max_pixels: int = MAX_PIXELS

    def __post_init__(self):
        if self.max_tokens_name not in ("max_tokens", "max_completion_tokens"):
            raise ValueError("max_tokens_name must be max_tokens or max_completion_tokens")
        if self.time_limit <= 0 or self.connections < 1 or self.retries < 0 or self.max_pixels < 1:
            raise ValueError(
                "time_limit, connections and max_pixels must be positive, and retries at least 0"
            )

    def sampling(self) -> dict[str, Any]:
        """The fields of a request that influence its reply, without those that are left out."""
        values = asdict(self)
        body = {name: values[name] for name in ("temperature", "top_p", "seed")}
        body = {name: value for name, value in body.items() if value is not None}
        return body | self.extra_body


def is_endpoint(source: object) -> bool:
    """Whether a model's name is that of a model on a server: `http://host:port/v1#model`."""
    return str(source).startswith(("http://", "https://"))


class EndpointModel:
    """The model of a server, `http://host:port/v1#model`.

    `changes` are fields of EndpointSettings that replace those of `settings`. Raises ValueError for
    any other `source`, and for a key that no header can hold.
    """

    def __init__(
        self,
        source: str,
        settings: EndpointSettings | None = None,
        *,
        name: str = "",
        **changes: Any,
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
        self.settings = replace(settings or EndpointSettings(), **changes)
        self.connections = self.settings.connections
        self.client = openai.OpenAI(
            base_url=self.url,
            api_key=_api_key(),
            max_retries=0,  # `_retried` also retries replies that break off
            timeout=self.settings.time_limit,
            default_headers=self.settings.headers,
        )
        # The client reads these from the shell, where they are meant for OpenAI's own server.
        self.client.organization = None
        self.client.project = None
        self._pace = _Pace(self.settings.requests_per_minute)

    def listed_models(self, time_limit: float = 5.0) -> list[str] | None:
        """The server's models, None if it lists none; RequestFailure if it cannot be asked."""
        client = self.client.with_options(timeout=time_limit)
        try:
            return [model.id for model in client.models.list().data]
        except (openai.APIConnectionError, openai.AuthenticationError) as error:
            raise self._describe(_failure_from(error)) from None
        except (openai.OpenAIError, AttributeError, TypeError, ValueError):
            return None

    def start(self) -> list[dict]:
        return []

    def reply(self, asked: list[tuple[list[dict], ChatRequest]]) -> list[ChatReply | Exception]:
        """Answer one request per transcript, in order.

        A failed request has a RequestFailure as its reply, or a ValueError if an image cannot be
        read. Its transcript is unchanged, so the request may be sent again.
        """
        if len(asked) == 1:
            return [self._reply_to_one(*asked[0])]
        pool = ThreadPoolExecutor(self.connections)
        try:
            return list(pool.map(lambda pair: self._reply_to_one(*pair), asked))
        finally:  # after Ctrl-C, do not wait for the server
            pool.shutdown(wait=False, cancel_futures=True)

    def _reply_to_one(self, transcript: list[dict], request: ChatRequest) -> ChatReply | Exception:
        try:
            content = message_content(request, self.settings.max_pixels)
        except ValueError as error:
            return error
        message = {"role": "user", "content": content}
        body = {
            "model": self.model,
            "messages": [*transcript, message],
            self.settings.max_tokens_name: request.max_tokens,
            **self.settings.sampling(),
        }
        try:
            reply = self._retried(lambda: read_completion(self._send(body)))
        except RequestFailure as failure:
            return self._describe(failure)
        transcript.append(message)
        transcript.append({"role": "assistant", "content": reply.text})
        return reply

    def _send(self, body: dict[str, Any]) -> bytes:
        """Send one request; the body of the response. Raises RequestFailure."""
        self._pace.wait()
        deadline = time.monotonic() + self.settings.time_limit
        data = bytearray()
        create: Any = self.client.chat.completions.with_streaming_response.create
        try:
            with create(model=self.model, messages=[], extra_body=body) as response:
                for chunk in response.iter_bytes():
                    data += chunk
                    # The client's own time limit is for each wait, not for all of the response.
                    if time.monotonic() > deadline:
                        raise RequestFailure("timeout", "the response is too slow")
        except RequestFailure:
            raise
        except Exception as error:  # the client lets errors of its HTTP library through
            raise _failure_from(error) from None
        return bytes(data)

    def _retried(self, attempt: Callable[[], ChatReply]) -> ChatReply:
        """Repeat an attempt while it fails for a transient reason."""
        for tries in range(self.settings.retries):
            try:
                return attempt()
            except RequestFailure as failure:
                if failure.pause is None or failure.pause > LONGEST_PAUSE:
                    raise
                growing = 0.5 * 2**tries * random.uniform(0.75, 1)
                time.sleep(failure.pause or min(growing, LONGEST_PAUSE))
        return attempt()

    def _describe(self, failure: RequestFailure) -> RequestFailure:
        """A failure with the server's address and a fix, without the key and without its cause."""
        known = SERVERS["failures"][failure.kind]
        problem, fix = (text.format(**vars(self)) for text in known)
        detail = str(failure).replace(self.client.api_key, "***")
        detail = " ".join(detail.split())[:300]
        message = f"server {self.url} {problem} ({detail}): {fix}"
        proxy = _proxy_of(self.url)
        if proxy and failure.kind != "overflow":
            message += f"; requests to it go through the proxy {proxy} of the environment"
        if isinstance(failure, ContextOverflow):
            return ContextOverflow(message, failure.fits)
        return RequestFailure(failure.kind, message)


class _Pace:
    """Spreads requests evenly over time, at most `per_minute` of them; 0 for no limit."""

    def __init__(self, per_minute: float):
        self.interval = 60 / per_minute if per_minute > 0 else 0.0
        self.next_time = 0.0
        self.lock = threading.Lock()

    def wait(self) -> None:
        if not self.interval:
            return
        with self.lock:
            now = time.monotonic()
            start = max(now, self.next_time)
            self.next_time = start + self.interval
        time.sleep(start - now)


def _api_key() -> str:
    """The key of the environment, checked once; the client requires one even if no server does."""
    key = os.environ.get(API_KEY_VARIABLE, "").strip()
    if not re.fullmatch(r"[!-~]*", key):
        raise ValueError(
            f"{API_KEY_VARIABLE} contains spaces or characters that no key has: copy the key again"
        )
    return key or "no-key-is-set"


def _proxy_of(url: str) -> str:
    """The proxy that the environment puts before a server, without its password; "" for none."""
    parts = urlsplit(url)
    proxies = getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all") or ""
    if not proxy or proxy_bypass(parts.hostname or ""):
        return ""
    return proxy.rpartition("@")[2]


def _failure_from(error: Exception) -> RequestFailure:
    """The failure behind an error of the client; its `pause` is set if it is transient."""
    if isinstance(error, openai.APIStatusError):
        return _refusal(error)
    text = f"{type(error).__name__}: {error}"
    is_timeout = isinstance(error, openai.APITimeoutError) or "Timeout" in text
    failure = RequestFailure("timeout" if is_timeout else "unreachable", text)
    failure.pause = 0.0
    return failure


def _refusal(error: openai.APIStatusError) -> RequestFailure:
    """The failure behind a response with a status of 400 or above."""
    status = error.status_code
    try:
        message = error_text(error.body) if error.body else error.response.text
    except Exception:  # a body that was not read, or is no text
        message = str(error)
    message = f"status {status}: {message}"
    kinds = {401: "key refused", 403: "key refused", 404: "unknown model", 429: "too many requests"}
    kind = kinds.get(status, "server error" if status >= 500 else "request refused")
    failure = failure_of(message, kind) if status in (400, 413, 422, 500) else None
    failure = failure or RequestFailure(kind, message)
    is_transient = status >= 500 or status in TRANSIENT_STATUS
    if is_transient and failure.kind != "overflow":
        failure.pause = _requested_pause(error)
    return failure


def _requested_pause(error: openai.APIStatusError) -> float:
    """The seconds of a Retry-After header; 0 without one, or if it holds a date."""
    headers = error.response.headers
    for name, unit in (("retry-after-ms", 1000), ("retry-after", 1)):
        try:
            return max(0.0, float(headers.get(name, ""))) / unit
        except ValueError:
            continue
    return 0.0


def message_content(request: ChatRequest, max_pixels: int = MAX_PIXELS) -> str | list[dict]:
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
            media_type, data = encoded_image(next(images), max_pixels)
            url = f"data:{media_type};base64,{base64.b64encode(data).decode()}"
            part = {"type": "image_url", "image_url": {"url": url}}
        content.append(part)
    return content
