"""A small OpenAI-compatible server over a local model: `/v1/chat/completions` and `/v1/models`.

`transformers serve` does more, and needs FastAPI, uvicorn and their like (`transformers[serving]`), which nothing else
here does. No streaming, no tools, no fetching of images: what a request asks for beyond this is refused by name.
Requests that come together share a batch.
"""

import base64
import json
import queue
import tempfile
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from PIL.Image import DecompressionBombError

from personavlm_lib.memory.images import read_image
from personavlm_lib.models import Ask, Reply
from personavlm_lib.models.local import LocalModel, Transcript

TOGETHER = 0.01  # seconds that the first request of a batch waits for others
FIELDS = ("model", "messages", "max_tokens", "max_completion_tokens", "temperature", "user")
ONE = {"n": 1, "top_p": 1}  # may be said, at these values


@dataclass
class Job:
    """A request that is understood: the messages before the last one, (role, text, images) each, and the last."""

    before: list[tuple[str, str, tuple[str, ...]]]
    ask: Ask
    temperature: float
    answer: "Future[tuple[Reply, str]]" = field(default_factory=Future)  # and the reason for its end


class ChatServer(ThreadingHTTPServer):
    """Listens at once; `serve_forever` answers. `port` 0 takes a free one (`server_port`). OSError for one in use."""

    daemon_threads = True

    def __init__(self, model: LocalModel, host: str = "127.0.0.1", port: int = 8000, width: int = 16):
        try:
            super().__init__((host, port), Handler)
        except OSError as error:
            raise OSError(f"port {port} of {host} is not to be had ({error}): choose another") from error
        self.model, self.width, self.jobs = model, width, queue.SimpleQueue()
        threading.Thread(target=self._work, daemon=True).start()

    @property
    def source(self) -> str:
        """What `EndpointModel` reaches this by."""
        return f"http://{self.server_address[0]}:{self.server_port}/v1#{self.model.name}"

    def _work(self) -> None:
        while True:
            jobs = [self.jobs.get()]
            time.sleep(TOGETHER)
            while len(jobs) < self.width and not self.jobs.empty():
                jobs.append(self.jobs.get())
            for temperature in {job.temperature for job in jobs}:
                self._answer([job for job in jobs if job.temperature == temperature], temperature)

    def _answer(self, jobs: list[Job], temperature: float) -> None:
        self.model.temperature, ready = temperature, []
        for job in jobs:
            try:
                ready.append((job, opened(self.model, job)))
            except ValueError as error:
                job.answer.set_exception(error)
        try:
            replies = self.model.reply([(transcript, job.ask) for job, transcript in ready]) if ready else []
        except Exception as error:  # whoever waits is told, and the server goes on
            replies = [error] * len(ready)
        for (job, transcript), reply in zip(ready, replies, strict=True):
            if isinstance(reply, Exception):
                job.answer.set_exception(reply)
            else:
                cut = reply.tokens_out >= job.ask.max_tokens and not transcript.written[-1]
                job.answer.set_result((reply, "length" if cut else "stop"))


def opened(model: LocalModel, job: Job) -> Transcript:
    """A transcript of what was said before the job's ask."""
    transcript, tokenizer = model.start(), model.processor.tokenizer
    for role, text, images in job.before:
        if role == "user":
            model.give(transcript, Ask(text, images, job.ask.max_tokens))
            continue
        if role == "system":
            message = {"role": role, "content": [{"type": "text", "text": text}]}
            ids = tokenizer(model.processor.apply_chat_template([message], tokenize=False).rstrip()).input_ids
        else:
            ids = [*tokenizer(text).input_ids, model.end]
        transcript.ids += ids
        transcript.written += [0] * len(ids)
    return transcript


def understood(body: dict, folder: Path) -> Job:
    """The job that a request's body asks for; its images are put into `folder`. ValueError for what is wrong in it."""
    for name, value in body.items():
        if name not in FIELDS and value not in (None, False, ONE.get(name)):
            raise ValueError(f"{name}={value!r} is not supported here: leave it out")
    most = body.get("max_completion_tokens") or body.get("max_tokens") or 256
    temperature = body.get("temperature") or 0
    if type(most) is not int or most < 1:
        raise ValueError(f"max_tokens is {most!r}: give a whole number from 1 on")
    if type(temperature) not in (int, float) or not 0 <= temperature <= 2:
        raise ValueError(f"temperature is {temperature!r}: give a number from 0 to 2")
    messages = body.get("messages")
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise ValueError("messages is no list of {role, content}")
    *before, last = [_message(n, message, folder) for n, message in enumerate(messages)] or [("", "", ())]
    roles = [role for role, *_ in (*before, last)]
    turns = roles[1:] if roles[0] == "system" else roles
    if turns != ["user", "assistant"] * (len(turns) // 2) + ["user"]:
        raise ValueError(
            f"messages are of {roles}: a system message or none, then user and assistant in turn to a user"
        )
    return Job(before, Ask(last[1], last[2], most), float(temperature))


def _message(n: int, message: dict, folder: Path) -> tuple[str, str, tuple[str, ...]]:
    """Role, text with `<img>` marks, and paths of images. ValueError for any other shape."""
    content, text, images = message.get("content"), "", []
    for part in [{"type": "text", "text": content}] if isinstance(content, str) else content or ():
        try:
            if part["type"] == "text":
                text += part["text"].replace("<img>", "< img>")
                continue
            head, _, data = part["image_url"]["url"].partition(";base64,")
        except (KeyError, TypeError, AttributeError):
            raise ValueError(f"messages[{n}]: a part is neither {{type, text}} nor {{type, image_url}}") from None
        if not head.startswith("data:image/"):
            raise ValueError(f"messages[{n}]: an image comes as data:image/...;base64,... and from nowhere else")
        path = folder / f"{n}_{len(images)}"
        try:
            path.write_bytes(base64.b64decode(data, validate=True))
            read_image(path)
        except (ValueError, DecompressionBombError):
            raise ValueError(f"messages[{n}]: image {len(images)} cannot be read") from None
        images.append(str(path))
        text += "<img>"
    return str(message.get("role")), text, tuple(images)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: ChatServer

    def do_GET(self) -> None:
        if self.path != "/v1/models":
            return self._fail(404, f"{self.path} is not here: /v1/models and /v1/chat/completions are")
        self._send(200, {"object": "list", "data": [{"id": self.server.model.name, "object": "model"}]})

    def do_POST(self) -> None:
        text = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path != "/v1/chat/completions":
            return self._fail(404, f"{self.path} is not here: /v1/models and /v1/chat/completions are")
        try:
            body = json.loads(text)
            if not isinstance(body, dict):
                raise ValueError("the body is no object")
            if body.get("model") != (name := self.server.model.name):
                return self._fail(404, f"model {body.get('model')!r} is not here: {name!r} is")
            with tempfile.TemporaryDirectory() as folder:
                job = understood(body, Path(folder))
                self.server.jobs.put(job)
                reply, reason = job.answer.result()
        except ValueError as error:
            return self._fail(400, str(error))
        except Exception as error:
            return self._fail(500, f"{type(error).__name__}: {error}")
        message = {"role": "assistant", "content": reply.text}
        total = reply.tokens_in + reply.tokens_out
        usage = {"prompt_tokens": reply.tokens_in, "completion_tokens": reply.tokens_out, "total_tokens": total}
        self._send(200, {
            "id": f"chatcmpl-{time.time_ns()}", "object": "chat.completion", "created": int(time.time()), "model": name,
            "choices": [{"index": 0, "message": message, "finish_reason": reason}], "usage": usage,
        })  # fmt: skip

    def _fail(self, status: int, message: str) -> None:
        self._send(
            status, {"error": {"message": message, "type": "invalid_request_error" if status < 500 else "error"}}
        )

    def _send(self, status: int, body: dict) -> None:
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)
