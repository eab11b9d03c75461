"""What many tests share: one tiny untrained model, two short lives with their gold memories, and models that recite."""

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
    """A ChatModel that recites `lines`, one per ask, and keeps the asks."""

    lines: Iterable[str]
    asks: list[ChatRequest] = field(default_factory=list)

    def __post_init__(self):
        self.lines = iter(self.lines)

    def start(self) -> list[str]:
        return []

    def reply(self, asked):
        self.asks += [ask for _, ask in asked]
        return [ChatReply(next(self.lines), 7, 3) for _ in asked]


@pytest.fixture
def script():
    return Script


@pytest.fixture(scope="session")
def processor():
    return build_processor(build_tokenizer(corpus()))


@pytest.fixture(scope="session")
def model(processor):
    """Untrained, with weights so large that what it says depends on all that it is told."""
    torch.manual_seed(0)
    model = build_model(processor.tokenizer, 64, 2).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.08)
    return model


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory, processor):
    """A folder with a small model of ordinary weights, as the stages hand them on."""
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
    """user -> gold memory; all of them lie in one folder, each named after its user. Nobody writes to them."""
    folder = tmp_path_factory.mktemp("memories")
    return {life.user: recordings.gold_memory(life, folder / life.user, None) for life in lives}


@pytest.fixture(scope="session")
def grounding_dino(tmp_path_factory):
    """A folder with a tiny random Grounding DINO and its processor."""
    folder = tmp_path_factory.mktemp("grounding_dino")
    torch.manual_seed(0)  # else what it finds depends on the tests before
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "cup", "object", ".", "?"]
    tiny = dict(
        encoder_layers=1,
        encoder_ffn_dim=16,
        encoder_attention_heads=2,
        encoder_n_points=2,
        d_model=32,
    )
    tiny |= dict(
        decoder_layers=2,
        decoder_ffn_dim=16,
        decoder_attention_heads=2,
        decoder_n_points=2,
        num_queries=5,
    )
    swin = dict(
        model_type="swin",
        embed_dim=8,
        depths=[1] * 4,
        num_heads=[1] * 4,
        window_size=4,
        image_size=64,
    )
    bert = dict(
        model_type="bert",
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
    )
    config = transformers.GroundingDinoConfig(
        backbone_config=swin | dict(out_features=["stage2", "stage3", "stage4"]),
        text_config=bert | dict(vocab_size=len(words)),
        **tiny,
    )
    transformers.GroundingDinoForObjectDetection(config).save_pretrained(folder)
    tokenizer = transformers.BertTokenizer(vocab={word: i for i, word in enumerate(words)})
    images = GroundingDinoImageProcessorPil(size={"shortest_edge": 96, "longest_edge": 160})
    transformers.GroundingDinoProcessor(images, tokenizer).save_pretrained(folder)
    return folder


@contextmanager
def served(script: Callable[[dict], str | int | bytes | float | None], port: int = 0):
    """A real HTTP server of OpenAI's shape, as (address, the bodies it was sent). `script` says what becomes of a body:
    a text is what the model says, a number the status of an error, bytes the body of a reply, a float the seconds that
    it waits before it says nothing; None hangs up in the middle of a reply."""
    asked: list[dict] = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append(body)
            said = script(body)
            if isinstance(said, float):
                return time.sleep(said)
            message = {"role": "assistant", "content": said}
            reply = {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
            reply["usage"] = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
            if isinstance(said, int):
                reply = {"error": {"message": f"refused with {self.headers['Authorization']}"}}
            text = said if isinstance(said, bytes) else json.dumps(reply).encode()
            self.send_response(said if isinstance(said, int) else 200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.send_header("Retry-After-Ms", "10")
            self.end_headers()
            self.wfile.write(text if said is not None else text[:20])

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1#teller", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(name="served")
def served_():
    return served
