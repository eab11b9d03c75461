"""A small OpenAI-compatible server over a local model: `/v1/chat/completions` and `/v1/models`.

`transformers serve` does more, but needs FastAPI, uvicorn and others (`transformers[serving]`),
which nothing else here needs. The server does not support streaming, tools or downloads of images:
it rejects a request for any of these with an error that names it. A system message is prepended to
the first user message. Requests that arrive together share a batch.
"""

import base64
import json
import tempfile
import threading
import time
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from pydantic import AliasChoices, BaseModel, Field

from personavlm_lib.memory.images import read_image
from personavlm_lib.models.chat import ChatReply, ChatRequest
from personavlm_lib.models.local import LocalModel, Transcript

BATCH_DELAY = 0.01  # seconds that the first request of a batch waits for others


class Request(BaseModel, extra="forbid"):
    """The accepted requests; pydantic's ValidationError is a ValueError that names the problem."""

    model: str
    messages: list[dict]
    max_tokens: int = Field(
        256, ge=1, validation_alias=AliasChoices("max_completion_tokens", "max_tokens")
    )
    temperature: float = Field(0.0, ge=0, le=2)


@dataclass(eq=False)
class QueuedRequest:
    """A request in the model's form, and its reply once there is one."""

    transcript: Transcript
    chat_request: ChatRequest
    temperature: float
    reply: ChatReply | Exception | None = None


class ChatServer(ThreadingHTTPServer):
    """A server that listens once it is constructed; `serve_forever` answers the requests.

    Port 0 selects a free port. Raises OSError if the port is in use.
    """

    daemon_threads = True

    def __init__(
        self, model: LocalModel, host: str = "127.0.0.1", port: int = 8000, width: int = 16
    ):
        try:
            super().__init__((host, port), Handler)
        except OSError as error:
            raise OSError(
                f"port {port} of {host} is in use or not available ({error}): choose another port"
            ) from error
        self.model = model
        self.width = width
        self.model_lock = threading.Lock()
        self.queue: list[QueuedRequest] = []
        # The source by which `EndpointModel` reaches this server.
        self.source = f"http://{host}:{self.server_port}/v1#{model.name}"

    def complete(self, job: QueuedRequest) -> None:
        """Return once `job.reply` is set.

        The thread that holds the model's lock also answers the requests of the others.
        """
        self.queue.append(job)
        with self.model_lock:
            while job.reply is None:
                time.sleep(BATCH_DELAY)
                self._complete_batch(job.temperature)

    def _complete_batch(self, temperature: float) -> None:
        """Answer the oldest queued requests with this temperature."""
        jobs = [job for job in self.queue if job.temperature == temperature]
        jobs = jobs[: self.width]
        self.model.settings = replace(self.model.settings, temperature=temperature)
        replies: list[ChatReply | Exception]
        asked = [(job.transcript, job.chat_request) for job in jobs]
        try:
            replies = self.model.reply(asked)
        except Exception as error:  # reported to every client of the batch; the server continues
            replies = [error] * len(jobs)
        for job, reply in zip(jobs, replies, strict=True):
            self.queue.remove(job)
            job.reply = reply


def read_messages(request: Request, model: LocalModel, folder: Path) -> QueuedRequest:
    """Convert a request: the last message is the request, those before it are the transcript.

    Images are written to `folder`. Raises ValueError for an image that cannot be read, and unless
    the messages are, after an optional system message, user, assistant, ..., user.
    """
    turns = _turns(request, folder)
    count = len(turns)
    roles = [role for role, _ in turns]
    alternating = ["user", "assistant"] * count
    if count % 2 == 0 or roles != alternating[:count]:
        raise ValueError(
            "messages: after an optional system message, user and assistant must take turns, and "
            "the last message must be the user's"
        )
    earlier = turns[:-1]
    _, last = turns[-1]
    transcript = model.start()
    tokenizer = model.processor.tokenizer
    for role, turn in earlier:
        if role == "user":
            model.append_request(transcript, turn)
        else:
            tokens = tokenizer(turn.text, add_special_tokens=False).input_ids
            transcript.append([*tokens, model.end_token], generated=False)
    return QueuedRequest(transcript, last, request.temperature)


def _turns(request: Request, folder: Path) -> list[tuple[str, ChatRequest]]:
    """The role and content of each message; a leading system message becomes part of the next."""
    turns = []
    system = ""
    for n, message in enumerate(request.messages):
        text, images = _read_content(message["content"], folder, f"messages.{n}")
        text = system + text
        if n == 0 and message["role"] == "system":
            system = f"{text}\n\n"
            continue
        system = ""
        turns.append((message["role"], ChatRequest(text, images, request.max_tokens)))
    return turns


def _read_content(
    content: str | list[dict[str, Any]], folder: Path, name: str
) -> tuple[str, tuple[str, ...]]:
    """The text of a message, with `<img>` marks, and the paths of its images, now in `folder`."""
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    text = ""
    images: list[str] = []
    for part in content:
        if part["type"] == "text":
            text += part["text"].replace("<img>", "< img>")
            continue
        header, _, data = part["image_url"]["url"].partition(";base64,")
        if not header.startswith("data:image/"):
            raise ValueError(f"{name}: an image must be a data URL: data:image/...;base64,...")
        path = folder / f"{name}.image.{len(images)}"
        images.append(str(path))
        path.write_bytes(base64.b64decode(data))
        read_image(path)  # raises ValueError if it is not an image
        text += "<img>"
    return text, tuple(images)


class Handler(BaseHTTPRequestHandler):
    """Answers one HTTP request; errors have the format of OpenAI's."""

    protocol_version = "HTTP/1.1"
    server: ChatServer

    def do_GET(self) -> None:
        if self.path == "/v1/models":
            model = {"id": self.server.model.name, "object": "model"}
            self._send(200, object="list", data=[model])
        else:
            paths = "/v1/models and /v1/chat/completions"
            self._send_error(404, f"no such path: {self.path}; use {paths}")

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        if self.path != "/v1/chat/completions":
            self.do_GET()
            return
        model = self.server.model
        try:
            request = Request.model_validate_json(body)
            if request.model != model.name:
                self._send_error(
                    404, f"no such model: {request.model!r}; this server has {model.name!r}"
                )
                return
            with tempfile.TemporaryDirectory() as folder:
                job = read_messages(request, model, Path(folder))
                self.server.complete(job)
        except Exception as error:  # of this request only
            self._send_failure(error)
            return
        if isinstance(job.reply, Exception):
            self._send_failure(job.reply)
        else:
            self._send_completion(request, job)

    def _send_completion(self, request: Request, job: QueuedRequest) -> None:
        reply = job.reply
        assert isinstance(reply, ChatReply)
        # A cut reply is as long as allowed, and its end token is not the model's own.
        ended_by_model = job.transcript.generated_mask[-1] == 1
        is_full = reply.tokens_out >= request.max_tokens
        finish_reason = "stop"
        if is_full and not ended_by_model:
            finish_reason = "length"
        message = {"role": "assistant", "content": reply.text}
        choice = {"index": 0, "message": message, "finish_reason": finish_reason}
        usage = {
            "prompt_tokens": reply.tokens_in,
            "completion_tokens": reply.tokens_out,
            "total_tokens": reply.tokens_in + reply.tokens_out,
        }
        self._send(
            200,
            id=f"chatcmpl-{time.time_ns()}",
            object="chat.completion",
            created=int(time.time()),
            model=request.model,
            choices=[choice],
            usage=usage,
        )

    def _send_failure(self, error: Exception) -> None:
        if isinstance(error, (KeyError, TypeError, AttributeError)):
            self._send_error(400, f"messages do not have the format of this API: {error!r}")
        elif isinstance(error, ValueError):
            self._send_error(400, str(error))
        else:
            self._send_error(500, str(error))

    def _send_error(self, status: int, message: str) -> None:
        self._send(status, error={"message": message})

    def _send(self, status: int, **body: object) -> None:
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)
