"""How long a step of either training stage takes, and in how much memory, in the sizes of a profile.

    personavlm_lib run 01_synthesize --profile nano --run speed --set prompts=full --set train_users=6
    python speed/training.py --run speed --json results/gpu/training.json   # after it, where there is a GPU of 80 GB

The model is built from its configuration with random weights, on which neither depends, but for one thing: a rollout of
an untrained policy is one generation, as long as it may be, because it neither searches nor answers. The tokenizer is
nano's, of the whole words of prompts and samples, so they are somewhat shorter than with the real one. `--samples` of a
step are enough, because a step is that of its parts over and over; they are the profile's.
"""

import argparse
import importlib.metadata
import json
import platform
import tempfile
import time
from pathlib import Path

import pandas as pd
import torch
import transformers
from inference import GPU, SEVEN_B, memory_mib
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, TrainerCallback

from personavlm_lib.models.nano import build_model, build_processor, build_tokenizer
from personavlm_lib.study.profiles import load_profile, require, stage_parameters
from personavlm_lib.training import grpo, sft


class Clock(TrainerCallback):
    """The seconds of every optimizer step."""

    steps: list[float] = []

    def on_step_begin(self, *args, **kwargs):
        self.start = time.perf_counter()

    def on_step_end(self, *args, **kwargs):
        if GPU:
            torch.cuda.synchronize()
        self.steps.append(time.perf_counter() - self.start)


def build(folder: Path, size: str, texts: list[str]) -> int:
    """A model and its processor in `folder`; its number of parameters."""
    processor = build_processor(build_tokenizer(texts))
    tokenizer = processor.tokenizer
    torch.manual_seed(0)
    model = build_model(tokenizer, 64, 2)
    if size == "7b":
        given = {
            key: value for key, value in vars(model.config).items() if key.endswith("_token_id")
        }
        with torch.device("cuda" if GPU else "cpu"):
            torch.set_default_dtype(torch.bfloat16)
            model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**SEVEN_B, **given))
            torch.set_default_dtype(torch.float32)
        model.generation_config.eos_token_id, model.generation_config.pad_token_id = (
            tokenizer.eos_token_id, tokenizer.pad_token_id,
        )  # fmt: skip
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--run", required=True, help="a run whose 01_synthesize was made with prompts=full"
    )
    parser.add_argument("--profile", default="one-gpu")
    parser.add_argument("--size", choices=("tiny", "7b"), default="7b" if GPU else "tiny")
    parser.add_argument(
        "--steps",
        type=int,
        default=3,
        help="optimizer steps; the first warms up and does not count",
    )
    parser.add_argument(
        "--samples", type=int, nargs=2, default=[16, 12], help="per step of SFT, of GRPO"
    )
    parser.add_argument("--max-tokens", type=int, help="of one generation, if not the profile's")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    world, profile = require(given.run, "01_synthesize"), load_profile(given.profile)
    samples = pd.read_parquet(world / "sft.parquet")
    transformers.trainer.DEFAULT_CALLBACKS.append(Clock)
    rows = []
    with tempfile.TemporaryDirectory(prefix="training-") as folder:
        folder = Path(folder)
        texts = [message["content"] for messages in samples.messages for message in messages]
        about = dict(
            size=given.size, parameters=build(folder / "given", given.size, texts), profile=given.profile,
            machine=torch.cuda.get_device_name() if GPU else platform.machine(), python=platform.python_version(),
            versions={name: importlib.metadata.version(name) for name in ("torch", "transformers", "trl", "peft")},
        )  # fmt: skip
        for stage, module, count in zip(
            ("02_sft", "03_grpo"), (sft, grpo), given.samples, strict=True
        ):
            config = stage_parameters(profile, stage, given.run)
            size = config["batch"] if module is sft else config["group"] * config["groups"]
            inputs = dict(
                samples=world / "sft.parquet", lives=world / "train.jsonl", memory=world / "memory"
            )
            config |= dict(
                steps=given.steps, log_every=1, accumulate=count * config["accumulate"] // size
            )
            config |= dict(batch=count) if module is sft else dict(groups=count // config["group"])
            config |= dict(max_tokens=given.max_tokens) if given.max_tokens else {}
            Clock.steps.clear()
            if GPU:
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            module.train(config | inputs | {"model": folder / "given"}, (folder / stage).absolute())
            seconds = min(Clock.steps[1:] or Clock.steps) / count
            last = json.loads((folder / stage / "metrics.jsonl").read_text().splitlines()[-1])
            rows.append(dict(
                stage=stage, per_sample_s=seconds, step_of=size, step_s=seconds * size, memory_mib=memory_mib(),
                reserved_mib=torch.cuda.max_memory_reserved() / 2**20 if GPU else None,
                tokens_per_sample=last["num_tokens"] / count / given.steps, **config,
            ))  # fmt: skip
            print({key: rows[-1][key] for key in list(rows[-1])[:7]}, flush=True)
            if given.json:
                given.json.parent.mkdir(parents=True, exist_ok=True)
                given.json.write_text(
                    json.dumps(dict(about=about, rows=rows), indent=1, default=str) + "\n"
                )


if __name__ == "__main__":
    main()
