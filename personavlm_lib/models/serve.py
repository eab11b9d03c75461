"""A small OpenAI-compatible server over a local model: `/v1/chat/completions` and `/v1/models`.

`transformers serve` does more, and needs FastAPI, uvicorn and their like (`transformers[serving]`), which nothing else
here does. No streaming, no tools, no fetching of images: what a request asks for beyond this is refused by name. A
system message is read before the first user message, as a part of it. Requests that come together share a batch.
"""

import base64
import json
import tempfile
import threading
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from pydantic import AliasChoices, BaseModel, Field

from personavlm_lib.memory.images import read_image
from personavlm_lib.models.chat import ChatReply, ChatRequest
from personavlm_lib.models.local import LocalModel, Transcript

TOGETHER = 0.01  # seconds that the first request of a batch waits for others


class Request(BaseModel, extra="forbid"):
    """What may be asked; pydantic's ValidationError is a ValueError that names what is wrong."""

    model: str
    messages: list[dict]
    max_tokens: int = Field(
        256, ge=1, validation_alias=AliasChoices("max_completion_tokens", "max_tokens")
    )
    temperature: float = Field(0.0, ge=0, le=2)


@dataclass(eq=False)
class QueuedRequest:
    """A request in the form of the model, and what became of it."""

    transcript: Transcript
    ask: ChatRequest
    temperature: float
    reply: ChatReply | Exception | None = None


class ChatServer(ThreadingHTTPServer):
    """Listens at once; `serve_forever` answers. `port` 0 takes a free one. OSError for one in use."""

    daemon_threads = True

    def __init__(
        self, model: LocalModel, host: str = "127.0.0.1", port: int = 8000, width: int = 16
    ):
        try:
            super().__init__((host, port), Handler)
        except OSError as error:
            raise OSError(
                f"port {port} of {host} is not to be had ({error}): choose another"
            ) from error
        self.model, self.width, self.turn, self.waiting = model, width, threading.Lock(), []
        self.source = f"http://{host}:{self.server_port}/v1#{model.name}"  # what `EndpointModel` reaches this by

    def complete(self, job: QueuedRequest) -> None:
        """Returns when `job.reply` is there. Who has the model's turn answers all that wait by then."""
        self.waiting.append(job)
        with self.turn:
            while job.reply is None:
                time.sleep(TOGETHER)
                jobs = [other for other in self.waiting if other.temperature == job.temperature][
                    : self.width
                ]
                self.model.temperature = job.temperature
                try:
                    replies = self.model.reply([(other.transcript, other.ask) for other in jobs])
                except Exception as error:  # whoever waits is told, and the server goes on
                    replies = [error] * len(jobs)
                for other, reply in zip(jobs, replies, strict=True):
                    self.waiting.remove(other)
                    other.reply = reply


def read(request: Request, model: LocalModel, folder: Path) -> QueuedRequest:
    """The messages before the last one as a transcript, and the last to be answered; images are put into `folder`.
    ValueError for an image that is none and for messages in another order than user, assistant, ..., user."""
    said, system = [], ""
    for n, message in enumerate(request.messages):
        text, images, parts = system, [], message["content"]
        for part in [{"type": "text", "text": parts}] if isinstance(parts, str) else parts:
            if part["type"] == "text":
                text += part["text"].replace("<img>", "< img>")
                continue
            head, _, data = part["image_url"]["url"].partition(";base64,")
            if not head.startswith("data:image/"):
                raise ValueError(
                    f"messages.{n}: an image comes as data:image/...;base64,... and from nowhere else"
                )
            images.append(str(path := folder / f"messages.{n}.image.{len(images)}"))
            path.write_bytes(base64.b64decode(data))
            read_image(path)
            text += "<img>"
        system = f"{text}\n\n" if message["role"] == "system" and not n else ""
        if not system:
            said.append((message["role"], ChatRequest(text, tuple(images), request.max_tokens)))
    if [role for role, _ in said] != [
        ("user", "assistant")[n % 2] for n in range(len(said) // 2 * 2 + 1)
    ]:
        raise ValueError(
            "messages: after a system message or none, user and assistant take turns, and a user is last"
        )
    transcript = model.start()
    for role, ask in said[:-1]:
        if role == "user":
            model.give(transcript, ask)
        else:
            ids = [
                *model.processor.tokenizer(ask.text, add_special_tokens=False).input_ids,
                model.end,
            ]
            transcript.ids, transcript.written = (
                transcript.ids + ids,
                transcript.written + [0] * len(ids),
            )
    return QueuedRequest(transcript, said[-1][1], request.temperature)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: ChatServer

    def do_GET(self) -> None:
        if self.path == "/v1/models":
            return self._send(
                200, object="list", data=[{"id": self.server.model.name, "object": "model"}]
            )
        self._send(
            404,
            error={"message": f"{self.path} is not here: /v1/models and /v1/chat/completions are"},
        )

    def do_POST(self) -> None:
        body, name = (
            self.rfile.read(int(self.headers.get("Content-Length") or 0)),
            self.server.model.name,
        )
        if self.path != "/v1/chat/completions":
            return self.do_GET()
        try:
            request = Request.model_validate_json(body)
            if request.model != name:
                return self._send(
                    404, error={"message": f"model {request.model!r} is not here: {name!r} is"}
                )
            with tempfile.TemporaryDirectory() as folder:
                self.server.complete(job := read(request, self.server.model, Path(folder)))
            if isinstance(job.reply, Exception):
                raise job.reply
        except (KeyError, TypeError, AttributeError) as error:
            return self._send(
                400, error={"message": f"messages are not of the shape of this API: {error!r}"}
            )
        except Exception as error:  # of this request alone
            return self._send(
                400 if isinstance(error, ValueError) else 500, error={"message": str(error)}
            )
        into, out = job.reply.tokens_in, job.reply.tokens_out
        cut = out >= request.max_tokens and not job.transcript.written[-1]
        message = {"role": "assistant", "content": job.reply.text}
        self._send(
            200, id=f"chatcmpl-{time.time_ns()}", object="chat.completion", created=int(time.time()), model=name,
            choices=[{"index": 0, "message": message, "finish_reason": "length" if cut else "stop"}],
            usage={"prompt_tokens": into, "completion_tokens": out, "total_tokens": into + out},
        )  # fmt: skip

    def _send(self, status: int, **body: object) -> None:
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)
