"""Stage 1: supervised fine-tuning of a LoRA on recordings of the oracle (paper, section 3.2 and Table 3).

Deviations from the paper: a LoRA instead of all weights; sizes and rates from the profile. Loss on the assistant's
tokens alone. `model/`, which the next stage starts from, names the adapter and the model that it goes on.

Launch: python -m personavlm_lib.training.sft --config CONFIG.yaml   (one process; several: accelerate launch -m ...)
"""

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from datasets import Dataset, Features, Image, List, Value
from peft import LoraConfig
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer

from personavlm_lib.models.local import content_parts, load_model, load_processor, write_source
from personavlm_lib.training.launch import main

# The projections of the language model; the vision tower stays as it is.
TARGETS = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"


class MetricsLog(TrainerCallback):
    """Every log entry as one JSON line: what the notebooks plot and the report reads."""

    def __init__(self, path: Path, names: dict[str, str] | None = None):
        self.path, self.names = path, names or {}
        path.write_text("")

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero and ("loss" in logs or "reward" in logs):
            entry = {"step": state.global_step, "of": state.max_steps}
            entry |= {self.names.get(key, key): float(value) for key, value in logs.items()}
            with open(self.path, "a") as file:
                file.write(json.dumps(entry) + "\n")


def lora(config: dict) -> LoraConfig:
    """The adapter of both training stages."""
    return LoraConfig(
        r=config["lora_rank"], lora_alpha=2 * config["lora_rank"], lora_dropout=0.0, target_modules=TARGETS,
        task_type="CAUSAL_LM",
    )  # fmt: skip


def precision() -> dict:
    """bfloat16 on a GPU, float32 elsewhere: processors that only emulate bfloat16 are many times slower with it."""
    return dict(bf16=torch.cuda.is_available(), use_cpu=not torch.cuda.is_available())


def in_batches(samples: pd.DataFrame, batch: int, steps: int, seed: int) -> pd.DataFrame:
    """`steps` random batches of rows, one after another, each with its rows in order of length.

    So each part of a batch pads little, and the batch stays a mixture. Batches of like length throughout hold one task
    each, and learned far more slowly.
    """
    rng = np.random.default_rng(seed)
    epochs = math.ceil(batch * steps / len(samples))
    order = np.concatenate([rng.permutation(len(samples)) for _ in range(epochs)])[: batch * steps]
    length = samples.messages.map(lambda messages: sum(len(message["content"]) for message in messages)).to_numpy()
    batches = (order[i : i + batch] for i in range(0, len(order), batch))
    return samples.iloc[np.concatenate([rows[np.argsort(length[rows], kind="stable")] for rows in batches])]


def to_dataset(samples: pd.DataFrame) -> Dataset:
    """Rows of (messages with structured content, images) as SFTTrainer takes them."""
    part = {"type": Value("string"), "text": Value("string")}
    features = Features({"messages": List({"role": Value("string"), "content": List(part)}), "images": List(Image())})
    rows = {
        "messages": [
            [{"role": m["role"], "content": content_parts(m["content"])} for m in messages]
            for messages in samples.messages
        ],
        "images": [list(images) for images in samples.images],
    }
    return Dataset.from_dict(rows, features=features)


def train_and_save(trainer, folder: Path, base: str) -> None:
    """Runs a trainer to its end; leaves `adapter/`, and `model/`, which names it and `base`, the model under it."""
    trainer.train()
    trainer.save_model(str(folder / "adapter"))
    write_source(folder / "model", base, folder / "adapter")


def train(config: dict, folder: Path) -> None:
    """Trains with `config` (model, samples, steps, batch, learning_rate, lora_rank, seed, ...) into `folder`."""
    processor = load_processor(config["model"])
    samples = in_batches(pd.read_parquet(config["samples"]), config["batch"], config["steps"], config["seed"])
    trainer = SFTTrainer(
        model=load_model(config["model"]),
        args=SFTConfig(
            output_dir=str(folder / "checkpoints"), max_steps=config["steps"], seed=config["seed"],
            per_device_train_batch_size=config["batch"] // config["accumulate"],
            gradient_accumulation_steps=config["accumulate"], learning_rate=config["learning_rate"],
            lr_scheduler_type="cosine", warmup_steps=config["warmup"], assistant_only_loss=True, max_length=None,
            logging_steps=config["log_every"], save_strategy="no", report_to="none",
            gradient_checkpointing=config["gradient_checkpointing"],
            train_sampling_strategy="sequential", dataloader_num_workers=0, disable_tqdm=True, **precision(),
        ),
        train_dataset=to_dataset(samples),
        processing_class=processor,
        peft_config=lora(config),
        callbacks=[MetricsLog(folder / "metrics.jsonl")],
    )  # fmt: skip
    train_and_save(trainer, folder, config["model"])


if __name__ == "__main__":
    main(train)
