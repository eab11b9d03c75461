"""Shared fixtures: a tiny untrained model, two short lives with gold memories, and fake models."""

import json
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
import transformers
from transformers.models.grounding_dino.image_processing_pil_grounding_dino import (
    GroundingDinoImageProcessorPil,
)

from personavlm_lib.benchmark import recordings
from personavlm_lib.benchmark.lives import simulate_life
from personavlm_lib.models.chat import ChatReply, ChatRequest
from personavlm_lib.models.nano import build_model, build_processor, build_tokenizer
from personavlm_lib.training.backbone import corpus


@dataclass
class Script:
    """A ChatModel that replies with `lines`, one per request, and records the requests."""

    lines: Iterable[str]
    asks: list[ChatRequest] = field(default_factory=list)

    def __post_init__(self):
        self.lines = iter(self.lines)

    def start(self) -> list[str]:
        return []

    def reply(self, asked):
        self.asks += [request for _, request in asked]
        return [ChatReply(next(self.lines), 7, 3) for _ in asked]


@pytest.fixture
def script():
    return Script


@pytest.fixture(scope="session")
def processor():
    return build_processor(build_tokenizer(corpus()))


@pytest.fixture(scope="session")
def model(processor):
    """An untrained model with weights so large that each reply depends on its whole input."""
    torch.manual_seed(0)
    model = build_model(processor.tokenizer, 64, 2).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.08)
    return model


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory, processor):
    """A folder with a small model with ordinary random weights, in the format of the stages."""
    folder = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(0)
    build_model(processor.tokenizer, 64, 2).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def lives(tmp_path_factory):
    """Two short lives."""
    folder = tmp_path_factory.mktemp("lives")
    return [simulate_life(seed, folder / "images", 20, 0.7, 8, 1) for seed in (1, 2)]


@pytest.fixture(scope="session")
def memories(lives, tmp_path_factory):
    """user -> gold memory, each in a folder with the user's name. Tests must not write to them."""
    folder = tmp_path_factory.mktemp("memories")
    return {life.user: recordings.gold_memory(life, folder / life.user, None) for life in lives}


GROUNDING_DINO_CONFIG = dict(
    encoder_layers=1,
    encoder_ffn_dim=16,
    encoder_attention_heads=2,
    encoder_n_points=2,
    d_model=32,
    decoder_layers=2,
    decoder_ffn_dim=16,
    decoder_attention_heads=2,
    decoder_n_points=2,
    num_queries=5,
)
SWIN_CONFIG = dict(
    model_type="swin",
    embed_dim=8,
    depths=[1] * 4,
    num_heads=[1] * 4,
    window_size=4,
    image_size=64,
    out_features=["stage2", "stage3", "stage4"],
)
BERT_CONFIG = dict(
    model_type="bert",
    hidden_size=32,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=16,
)


@pytest.fixture(scope="session")
def grounding_dino(tmp_path_factory):
    """A folder with a tiny random Grounding DINO and its processor."""
    folder = tmp_path_factory.mktemp("grounding_dino")
    torch.manual_seed(0)  # so that its detections do not depend on the tests before
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "cup", "object", ".", "?"]
    config = transformers.GroundingDinoConfig(
        backbone_config=SWIN_CONFIG,
        text_config=BERT_CONFIG | dict(vocab_size=len(words)),
        **GROUNDING_DINO_CONFIG,
    )
    transformers.GroundingDinoForObjectDetection(config).save_pretrained(folder)
    token_ids = {word: i for i, word in enumerate(words)}
    tokenizer = transformers.BertTokenizer(vocab=token_ids)
    images = GroundingDinoImageProcessorPil(size={"shortest_edge": 96, "longest_edge": 160})
    processor = transformers.GroundingDinoProcessor(images, tokenizer)
    processor.save_pretrained(folder)
    return folder


@contextmanager
def serve_script(script: Callable[[dict], str | int | bytes | float | None], port: int = 0):
    """Run a real HTTP server with OpenAI's API; yields (source, list of the bodies it receives).

    `script` maps the body of a request to its response: a str is the text of a completion, an int
    the status of an error, bytes the whole body of a response, a float the seconds to wait before
    closing the connection without a response. None closes it in the middle of a response. A tuple
    is (status, headers, body); a function is called with the handler and writes the response. The
    body of a GET request is {"get": its path}, if the script has an attribute `answers_get`.
    """
    bodies: list[dict] = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_GET(self):
            if getattr(script, "answers_get", False):
                self.respond({"get": self.path})
            else:
                self.send(404, b"{}")

        def do_POST(self):
            length = int(self.headers["Content-Length"])
            body = json.loads(self.rfile.read(length))
            bodies.append(body)
            self.respond(body)

        def respond(self, body):
            response = script(body)
            if callable(response):
                response(self)
            elif isinstance(response, tuple):
                self.send_all(*response)
            elif isinstance(response, float):
                time.sleep(response)
            elif isinstance(response, bytes):
                self.send(200, response)
            elif isinstance(response, int):
                key = self.headers["Authorization"]
                message = f"refused with {key}"
                error = json.dumps({"error": {"message": message}})
                self.send(response, error.encode())
            elif response is None:
                self.send(200, completion(None), sent_bytes=20)
            else:
                self.send(200, completion(response))

        def send_all(self, status, headers, data):
            self.send_response(status)
            for name, value in {"Content-Length": str(len(data)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        def send(self, status, data, sent_bytes=None):
            length = len(data)
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(length))
            self.send_header("Retry-After-Ms", "10")
            self.end_headers()
            self.wfile.write(data[:sent_bytes])

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.handle_error = lambda *_: None  # a client that hangs up is no news
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1#teller", bodies
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def completion(text: str | None) -> bytes:
    """The body of a chat completion."""
    message = {"role": "assistant", "content": text}
    body = {
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10},
    }
    return json.dumps(body).encode()


@pytest.fixture
def served():
    return serve_script
