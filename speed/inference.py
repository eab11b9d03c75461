"""How fast a model is asked: prefill, decoding, what it gains from users side by side and from a kept prefix.

    python speed/inference.py --size nano --json results/speed/inference.json
    python speed/inference.py --size 7b --contexts 2048 8192 32768 43520 --json results/gpu/inference.json   # a GPU

`7b` is Qwen2.5-VL-7B built from its configuration, in bfloat16, with random weights, on which speed does not depend;
`nano` are the kept weights of the offline backbone, `tiny` an untrained one of a tenth of its size. Everything is asked
through LocalModel, and no turn ends before its last token. Seconds are the clock's on a GPU and the processor's
elsewhere, which is what remains comparable where other work runs on the same machine. The best of `--repeats` counts.
"""

import argparse
import csv
import importlib.metadata
import json
import os
import platform
import random
import resource
import time
from pathlib import Path

import psutil
import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from personavlm_lib.models.chat import ChatRequest
from personavlm_lib.models.local import LocalModel
from personavlm_lib.models.nano import build_model
from personavlm_lib.models.weights import load_processor

KEPT = Path(__file__).parents[1] / "results" / "backbone"
SEVEN_B = dict(
    text_config=dict(
        vocab_size=152_064, hidden_size=3584, intermediate_size=18_944, num_hidden_layers=28, num_attention_heads=28,
        num_key_value_heads=4, max_position_embeddings=128_000, bos_token_id=None,
        rope_parameters={"rope_type": "default", "mrope_section": [16, 24, 24], "rope_theta": 1e6},
    ),
    vision_config=dict(depth=32, hidden_size=1280, intermediate_size=3420, num_heads=16, out_hidden_size=3584),
)  # fmt: skip
STEP = 60  # tokens that a retrieval brings back
GPU = torch.cuda.is_available()


def build(size: str) -> LocalModel:
    processor = load_processor(KEPT)
    torch.backends.cuda.enable_cudnn_sdp(False)  # as load_model does
    if size == "nano":
        local = LocalModel(KEPT)
    else:
        torch.manual_seed(0)
        if size == "7b":
            ids = {
                f"{kind}_token_id": getattr(processor, f"{kind}_token_id")
                for kind in ("image", "video")
            }
            with torch.device("cuda" if GPU else "cpu"):
                torch.set_default_dtype(torch.bfloat16)
                model = Qwen2_5_VLForConditionalGeneration(
                    Qwen2_5_VLConfig(**SEVEN_B, **ids)
                ).eval()
                torch.set_default_dtype(torch.float32)
        else:
            model = build_model(processor.tokenizer, 64, 2).eval()
        local = LocalModel(model=model.to("cuda" if GPU else "cpu"), processor=processor, name=size)
    local.stop_tokens = [2**30]  # no token
    return local


def timed(work, repeats: int) -> float:
    """Seconds of the fastest of `repeats` calls."""
    now, best = (time.perf_counter if GPU else time.process_time), float("inf")
    for _ in range(repeats):
        start = now()
        work()
        if GPU:
            torch.cuda.synchronize()
        best = min(best, now() - start)
    return best


def memory_mib() -> float:
    """The most that was held: by tensors on a GPU, else by the process."""
    return (
        torch.cuda.max_memory_allocated() / 2**20
        if GPU
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    )


class Measure:
    def __init__(self, local: LocalModel, decode: int, repeats: int):
        self.local, self.decode, self.repeats, self.rng = local, decode, repeats, random.Random(0)
        tokenizer = local.processor.tokenizer
        self.words = [
            w
            for w in ("tea", "cup", "red", "drink", "my", "is", "ask")
            if len(tokenizer(w).input_ids) == 1
        ]

    def ask(self, tokens: int, written: int) -> ChatRequest:
        """A message of so many words, each of one token, that is answered with so many tokens."""
        return ChatRequest(" ".join(self.rng.choices(self.words, k=tokens)), max_tokens=written)

    def reply(self, asks: list[ChatRequest]) -> None:
        self.local.reply([(self.local.start(), ask) for ask in asks])

    def speed(self, context: int, batch: int) -> dict:
        first, all_ = (
            timed(
                lambda n=n: self.reply([self.ask(context, n) for _ in range(batch)]), self.repeats
            )
            for n in (1, 1 + self.decode)
        )
        return dict(
            what="speed", context=context, batch=batch, prefill_per_s=context * batch / first,
            decode_per_s=self.decode * batch / max(all_ - first, 1e-9), memory_mib=memory_mib(),
        )  # fmt: skip

    def users(self, context: int, users: int) -> dict:
        asks = [self.ask(context, self.decode) for _ in range(users)]
        one = timed(lambda: [self.reply([ask]) for ask in asks], 1)
        many = timed(lambda: self.reply(asks), self.repeats)
        return dict(
            what="users",
            context=context,
            batch=users,
            apart_s=one,
            together_s=many,
            gain=one / many,
        )

    def prefix(self, context: int, batch: int) -> dict:
        """Three reasoning steps: a prompt, and two messages that bring something back."""
        steps = [[self.ask(n, self.decode) for _ in range(batch)] for n in (context, STEP, STEP)]

        def three(keep: bool) -> None:
            self.local.reuse_cache, transcripts = keep, [self.local.start() for _ in range(batch)]
            for step in steps:
                self.local.reply(list(zip(transcripts, step, strict=True)))

        kept, scratch = (
            timed(lambda keep=keep: three(keep), self.repeats) for keep in (True, False)
        )
        self.local.reuse_cache = True
        return dict(
            what="prefix",
            context=context,
            batch=batch,
            scratch_s=scratch,
            kept_s=kept,
            gain=scratch / kept,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=("tiny", "nano", "7b"), default="7b" if GPU else "nano")
    parser.add_argument("--contexts", type=int, nargs="+", default=[200, 800, 2000])
    parser.add_argument("--batches", type=int, nargs="+", default=[8, 16])
    parser.add_argument("--users", type=int, default=32)
    parser.add_argument("--decode", type=int, default=32, help="tokens that are written")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    local = build(given.size)
    measure, rows = Measure(local, given.decode, given.repeats), []
    measure.reply([measure.ask(50, 2)])  # what is done once is done
    jobs = [(measure.users, 200, given.users)]
    for context in given.contexts:
        jobs += [(measure.prefix, context, batch) for batch in given.batches]
        jobs += [(measure.speed, context, batch) for batch in (1, *given.batches)]
    about = dict(
        size=given.size, parameters=sum(p.numel() for p in local.model.parameters()), decode=given.decode, step=STEP,
        machine=torch.cuda.get_device_name() if GPU else f"{psutil.cpu_count()} x {platform.machine()}",
        seconds="clock" if GPU else "processor", threads=torch.get_num_threads(), load=os.getloadavg(),
        python=platform.python_version(), dtype=str(local.model.dtype),
        versions={name: importlib.metadata.version(name) for name in ("torch", "transformers")},
    )  # fmt: skip
    for job, context, batch in jobs:
        try:
            row = job(context, batch)
        except torch.OutOfMemoryError:
            row = dict(what=job.__name__, context=context, batch=batch, memory_mib=None)
        rows.append({key: round(v, 3) if isinstance(v, float) else v for key, v in row.items()})
        print(rows[-1], flush=True)
        if given.json:
            given.json.parent.mkdir(parents=True, exist_ok=True)
            given.json.write_text(json.dumps(dict(about=about, rows=rows), indent=1) + "\n")
            with given.json.with_suffix(".csv").open("w", newline="") as file:
                table = csv.DictWriter(file, dict.fromkeys(key for row in rows for key in row))
                table.writeheader()
                table.writerows(rows)


if __name__ == "__main__":
    main()
