"""Measure inference speed: prefill, decoding, and the gains of batching users and of the KV cache.

    python speed/inference.py --size nano --json results/speed/inference.json
    python speed/inference.py --size 7b --contexts 2048 8192 32768 43520 \\
        --json results/gpu/inference.json   # on a GPU

`7b` is Qwen2.5-VL-7B built from its configuration in bfloat16, with random weights, on which speed
does not depend. `nano` has the published weights of the offline backbone; `tiny` is an untrained
model of a tenth of its size. All requests go through LocalModel, and no reply ends before its last
token. Seconds are wall-clock time on a GPU and processor time on a CPU, which stays comparable when
other work runs on the same machine. Each number is the best of `--repeats` measurements.
"""

import argparse
import importlib.metadata
import os
import platform
import random
import resource
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from personavlm_lib.models.chat import ChatRequest
from personavlm_lib.models.local import LocalModel
from personavlm_lib.models.nano import build_model
from personavlm_lib.models.weights import load_processor
from results import write_results

BACKBONE = Path(__file__).parents[1] / "results" / "backbone"
SEVEN_B = dict(
    text_config=dict(
        vocab_size=152_064,
        hidden_size=3584,
        intermediate_size=18_944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        max_position_embeddings=128_000,
        bos_token_id=None,
        rope_parameters={"rope_type": "default", "mrope_section": [16, 24, 24], "rope_theta": 1e6},
    ),
    vision_config=dict(
        depth=32, hidden_size=1280, intermediate_size=3420, num_heads=16, out_hidden_size=3584
    ),
)
STEP = 60  # tokens that a retrieval adds to the context
GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"


def build_local_model(size: str) -> LocalModel:
    """A "tiny", "nano" or "7b" model that never ends a reply early."""
    if size == "nano":
        local = LocalModel(BACKBONE)
    else:
        processor = load_processor(BACKBONE)
        torch.backends.cuda.enable_cudnn_sdp(False)  # as load_model does
        torch.manual_seed(0)
        if size == "7b":
            model = build_seven_b(
                image_token_id=processor.image_token_id, video_token_id=processor.video_token_id
            ).eval()
        else:
            model = build_model(processor.tokenizer, 64, 2).eval()
        local = LocalModel(model=model.to(DEVICE), processor=processor, name=size)
    local.stop_tokens = [2**30]  # not the id of any token
    return local


def build_seven_b(**token_ids: int) -> Qwen2_5_VLForConditionalGeneration:
    """Qwen2.5-VL-7B with random bfloat16 weights, built on the GPU if there is one."""
    config = Qwen2_5_VLConfig(**SEVEN_B, **token_ids)
    with torch.device(DEVICE):
        torch.set_default_dtype(torch.bfloat16)
        model = Qwen2_5_VLForConditionalGeneration(config)
        torch.set_default_dtype(torch.float32)
    return model


def fastest(work: Callable[[], object], repeats: int) -> float:
    """Seconds of the fastest of `repeats` calls."""
    clock = time.perf_counter if GPU else time.process_time
    seconds = []
    for _ in range(repeats):
        start = clock()
        work()
        if GPU:
            torch.cuda.synchronize()
        seconds.append(clock() - start)
    return min(seconds)


def memory_mib() -> float:
    """Peak memory: of all tensors on a GPU, else of the process."""
    if GPU:
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class Benchmark:
    """The measurements; the name of a method is the `what` of its row."""

    def __init__(self, local: LocalModel, decode: int, repeats: int):
        self.local = local
        self.decode = decode
        self.repeats = repeats
        self.rng = random.Random(0)
        tokenizer = local.processor.tokenizer
        self.words = []
        for word in ("tea", "cup", "red", "drink", "my", "is", "ask"):
            if len(tokenizer(word).input_ids) == 1:
                self.words.append(word)

    def request(self, tokens: int, new_tokens: int) -> ChatRequest:
        """A message of `tokens` words of one token each, with a reply of `new_tokens`."""
        words = self.rng.choices(self.words, k=tokens)
        return ChatRequest(" ".join(words), max_tokens=new_tokens)

    def requests(self, count: int, tokens: int, new_tokens: int) -> list[ChatRequest]:
        return [self.request(tokens, new_tokens) for _ in range(count)]

    def reply(self, requests: list[ChatRequest]) -> None:
        self.local.reply([(self.local.start(), request) for request in requests])

    def speed(self, context: int, batch: int) -> dict:
        """Prefill and decoding speed in tokens per second."""

        def first_token() -> None:
            self.reply(self.requests(batch, context, 1))

        def all_tokens() -> None:
            self.reply(self.requests(batch, context, 1 + self.decode))

        prefill_s = fastest(first_token, self.repeats)
        total_s = fastest(all_tokens, self.repeats)
        decode_s = max(total_s - prefill_s, 1e-9)
        return dict(
            what="speed",
            context=context,
            batch=batch,
            prefill_per_s=context * batch / prefill_s,
            decode_per_s=self.decode * batch / decode_s,
            memory_mib=memory_mib(),
        )

    def users(self, context: int, users: int) -> dict:
        """Seconds for the requests of several users, one after another and as one batch."""
        requests = self.requests(users, context, self.decode)

        def one_by_one() -> None:
            for request in requests:
                self.reply([request])

        apart = fastest(one_by_one, 1)
        together = fastest(lambda: self.reply(requests), self.repeats)
        return dict(
            what="users",
            context=context,
            batch=users,
            apart_s=apart,
            together_s=together,
            gain=apart / together,
        )

    def prefix(self, context: int, batch: int) -> dict:
        """Seconds for a prompt and two retrieved messages, with and without reusing the cache."""
        steps = []
        for tokens in (context, STEP, STEP):
            requests = self.requests(batch, tokens, self.decode)
            steps.append(requests)

        def reason(reuse_cache: bool) -> None:
            local = self.local
            local.reuse_cache = reuse_cache
            transcripts = [local.start() for _ in range(batch)]
            for requests in steps:
                asked = list(zip(transcripts, requests, strict=True))
                local.reply(asked)

        cached = fastest(lambda: reason(True), self.repeats)
        scratch = fastest(lambda: reason(False), self.repeats)
        self.local.reuse_cache = True
        return dict(
            what="prefix",
            context=context,
            batch=batch,
            scratch_s=scratch,
            kept_s=cached,
            gain=scratch / cached,
        )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    size = "7b" if GPU else "nano"
    parser.add_argument(
        "--size", choices=("tiny", "nano", "7b"), default=size, help="size of the model"
    )
    parser.add_argument(
        "--contexts", type=int, nargs="+", default=[200, 800, 2000], help="tokens per prompt"
    )
    parser.add_argument("--batches", type=int, nargs="+", default=[8, 16], help="prompts per batch")
    parser.add_argument("--users", type=int, default=32, help="users who write at the same time")
    parser.add_argument("--decode", type=int, default=32, help="tokens generated per reply")
    parser.add_argument("--repeats", type=int, default=2, help="repetitions; the best one counts")
    parser.add_argument("--json", type=Path, help="output file; a CSV is written next to it")
    return parser.parse_args()


def describe_setup(arguments: argparse.Namespace, local: LocalModel) -> dict:
    cores = psutil.cpu_count()
    machine = f"{cores} x {platform.machine()}"
    seconds = "processor"
    if GPU:
        machine = torch.cuda.get_device_name()
        seconds = "clock"
    parameters = sum(parameter.numel() for parameter in local.model.parameters())
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers")}
    return dict(
        size=arguments.size,
        parameters=parameters,
        decode=arguments.decode,
        step=STEP,
        machine=machine,
        seconds=seconds,
        threads=torch.get_num_threads(),
        load=os.getloadavg(),
        python=platform.python_version(),
        dtype=str(local.model.dtype),
        versions=versions,
    )


def main() -> None:
    arguments = parse_arguments()
    local = build_local_model(arguments.size)
    benchmark = Benchmark(local, arguments.decode, arguments.repeats)
    warm_up = benchmark.request(50, 2)
    benchmark.reply([warm_up])
    jobs = [(benchmark.users, 200, arguments.users)]
    for context in arguments.contexts:
        jobs += [(benchmark.prefix, context, batch) for batch in arguments.batches]
        jobs += [(benchmark.speed, context, batch) for batch in (1, *arguments.batches)]
    about = describe_setup(arguments, local)
    rows = []
    for job, context, batch in jobs:
        try:
            row = job(context, batch)
        except torch.OutOfMemoryError:
            row = dict(what=job.__name__, context=context, batch=batch, memory_mib=None)
        for key, value in row.items():
            if isinstance(value, float):
                row[key] = round(value, 3)
        rows.append(row)
        print(row, flush=True)
        if arguments.json:
            write_results(arguments.json, about, rows)


if __name__ == "__main__":
    main()
