"""Measure the time and memory of a training step in either stage, with the sizes of a profile.

    personavlm_lib run 01_synthesize --profile nano --run speed \\
        --set prompts=full --set train_users=6
    # then, on a GPU with 80 GB:
    python speed/training.py --run speed --json results/gpu/training.json

The model is built from its configuration with random weights. Time and memory do not depend on the
weights, with one exception: a rollout of an untrained policy is a single generation of the maximum
length, because the policy neither searches nor answers. The tokenizer is the nano model's, over
whole words of the prompts and samples, so texts are somewhat shorter than with the real tokenizer.
Sizes are the profile's, but a step may have fewer samples (`--samples`), because the time of a step
is the sum over its parts.
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
from inference import GPU, build_seven_b, memory_mib
from transformers import TrainerCallback

from personavlm_lib.models.nano import build_model, build_processor, build_tokenizer
from personavlm_lib.study.profiles import load_profile, require, stage_parameters
from personavlm_lib.training import grpo, sft


class StepTimer(TrainerCallback):
    """Records the seconds of every optimizer step."""

    seconds: list[float] = []

    def on_step_begin(self, *args, **kwargs):
        self.start = time.perf_counter()

    def on_step_end(self, *args, **kwargs):
        if GPU:
            torch.cuda.synchronize()
        self.seconds.append(time.perf_counter() - self.start)


def save_random_model(folder: Path, size: str, texts: list[str]) -> int:
    """Save a "tiny" or "7b" model and its processor in `folder`; return its parameter count."""
    processor = build_processor(build_tokenizer(texts))
    tokenizer = processor.tokenizer
    torch.manual_seed(0)
    model = build_model(tokenizer, 64, 2)
    if size == "7b":
        token_ids = {}
        for key, value in vars(model.config).items():
            if key.endswith("_token_id"):
                token_ids[key] = value
        model = build_seven_b(**token_ids)
        model.generation_config.eos_token_id = tokenizer.eos_token_id
        model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters())


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", required=True, help="a run with 01_synthesize and prompts=full")
    parser.add_argument("--profile", default="one-gpu", help="profile that gives the sizes")
    size = "7b" if GPU else "tiny"
    parser.add_argument("--size", choices=("tiny", "7b"), default=size, help="size of the model")
    parser.add_argument(
        "--steps", type=int, default=3, help="optimizer steps; the first is warm-up, not measured"
    )
    parser.add_argument(
        "--samples", type=int, nargs=2, default=[16, 12], help="samples per step of SFT and of GRPO"
    )
    parser.add_argument(
        "--max-tokens", type=int, help="tokens of one generation (default: the profile's)"
    )
    parser.add_argument("--json", type=Path, help="output file")
    return parser.parse_args()


def stage_config(arguments: argparse.Namespace, stage: str, samples: int) -> tuple[dict, int]:
    """The stage's parameters with `samples` per step, and the profile's number of samples."""
    config = stage_parameters(load_profile(arguments.profile), stage, arguments.run)
    if stage == "02_sft":
        profile_samples = config["batch"]
        config["batch"] = samples
    else:
        profile_samples = config["group"] * config["groups"]
        config["groups"] = samples // config["group"]
    config["accumulate"] = samples * config["accumulate"] // profile_samples
    config["steps"] = arguments.steps
    config["log_every"] = 1
    if arguments.max_tokens:
        config["max_tokens"] = arguments.max_tokens
    return config, profile_samples


def measure_stage(stage: str, config: dict, inputs: dict, folder: Path, samples: int) -> dict:
    """Train in `folder`; return seconds, memory and tokens per sample."""
    module = sft if stage == "02_sft" else grpo
    StepTimer.seconds.clear()
    if GPU:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    module.train(config | inputs, folder.absolute())
    measured = StepTimer.seconds[1:] or StepTimer.seconds
    log_lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    last = json.loads(log_lines[-1])
    reserved = None
    if GPU:
        reserved = torch.cuda.max_memory_reserved() / 2**20
    return dict(
        per_sample_s=min(measured) / samples,
        memory_mib=memory_mib(),
        reserved_mib=reserved,
        tokens_per_sample=last["num_tokens"] / samples / config["steps"],
    )


def main() -> None:
    arguments = parse_arguments()
    world = require(arguments.run, "01_synthesize")
    samples = pd.read_parquet(world / "sft.parquet")
    texts = [message["content"] for messages in samples.messages for message in messages]
    transformers.trainer.DEFAULT_CALLBACKS.append(StepTimer)
    machine = torch.cuda.get_device_name() if GPU else platform.machine()
    packages = ("torch", "transformers", "trl", "peft")
    rows = []
    with tempfile.TemporaryDirectory(prefix="training-") as path:
        folder = Path(path)
        about = dict(
            size=arguments.size,
            parameters=save_random_model(folder / "given", arguments.size, texts),
            profile=arguments.profile,
            machine=machine,
            python=platform.python_version(),
            versions={name: importlib.metadata.version(name) for name in packages},
        )
        inputs = dict(
            samples=world / "sft.parquet",
            lives=world / "train.jsonl",
            memory=world / "memory",
            model=folder / "given",
        )
        for stage, count in zip(("02_sft", "03_grpo"), arguments.samples, strict=True):
            config, step_of = stage_config(arguments, stage, count)
            figures = measure_stage(stage, config, inputs, folder / stage, count)
            sample_s = figures["per_sample_s"]
            row = dict(
                stage=stage, per_sample_s=sample_s, step_of=step_of, step_s=sample_s * step_of
            )
            row |= figures
            print(row, flush=True)
            rows.append(row | config)
            if arguments.json:
                arguments.json.parent.mkdir(parents=True, exist_ok=True)
                results = json.dumps(dict(about=about, rows=rows), indent=1, default=str)
                arguments.json.write_text(results + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
