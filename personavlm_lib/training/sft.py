"""Stage 1: supervised fine-tuning on recordings of the oracle (paper, section 3.2 and Table 3).

Of the whole language model or of a LoRA on it; the vision tower stays as it is. Sizes and rates from the profile; loss
on the assistant's tokens alone. `model/`, which the next stage starts from, holds the weights, or names the adapter and
the model that it goes on.

Launch: python -m personavlm_lib.training.sft --config CONFIG.yaml   (one process; several: accelerate launch -m ...)
"""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from datasets import Dataset, Features, Image, List, Value
from peft import LoraConfig, PeftModel
from transformers import PreTrainedModel, TrainerCallback
from trl import SFTConfig, SFTTrainer

from personavlm_lib.caching import cache_key, mark_finished
from personavlm_lib.models.local import content_parts
from personavlm_lib.models.weights import (
    load_model,
    load_processor,
    weights_fingerprint,
    write_source,
)
from personavlm_lib.training.launch import main, prepare_checkpoint_folder, prune_checkpoints

# The projections of the language model.
TARGETS = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"


class MetricsLog(TrainerCallback):
    """Every log entry as one JSON line of `path`, and a stamp on each checkpoint once it is whole.

    A resumed training starts with the lines of its checkpoint: those of steps that are made again are not doubled.
    """

    def __init__(self, path: Path, key: str, names: dict[str, str] | None = None):
        self.path, self.key, self.names = path, key, names or {}

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            self.path.write_text("".join(self._line(logs, state) for logs in state.log_history))

    def on_log(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            with self.path.open("a") as file:
                file.write(self._line(state.log_history[-1], state))

    def on_save(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            mark_finished(Path(args.output_dir) / f"checkpoint-{state.global_step}", self.key)

    def _line(self, logs: dict, state) -> str:
        if "loss" not in logs and "reward" not in logs:
            return ""
        values = {
            self.names.get(name, name): float(logs[name]) for name in sorted(logs.keys() - {"step"})
        }
        return json.dumps({"step": logs["step"], "of": state.max_steps} | values) + "\n"


def saving(folder: Path, key: str, steps: int, every: int) -> dict:
    """Trainer arguments: about ten checkpoints, each where a row of metrics ends; the last two are kept."""
    return dict(
        output_dir=str(prepare_checkpoint_folder(folder, key)), save_strategy="steps", save_total_limit=2,
        save_steps=every * max(1, round(steps / 10 / every)),
    )  # fmt: skip


def lora(config: dict) -> LoraConfig | None:
    """The adapter of both training stages; None, which is the whole language model, at rank 0."""
    if not config["lora_rank"]:
        return None
    return LoraConfig(
        r=config["lora_rank"], lora_alpha=2 * config["lora_rank"], lora_dropout=0.0, target_modules=TARGETS,
        task_type="CAUSAL_LM",
    )  # fmt: skip


def load_to_train(config: dict) -> tuple[PreTrainedModel, dict]:
    """The model of `config`, and the trainer's arguments for its precision, which is that of its own weights.

    Weights that are trained themselves, without an adapter, are float32 meanwhile: a bfloat16 loses its small steps.
    """
    model = load_model(config["model"])
    arguments = dict(bf16=model.dtype == torch.bfloat16, use_cpu=not torch.cuda.is_available())
    return model if config["lora_rank"] else model.float(), arguments


def in_batches(samples: pd.DataFrame, batch: int, steps: int, seed: int) -> pd.DataFrame:
    """`steps` random batches of rows, one after another, each with its rows in order of length.

    So each part of a batch pads little, and the batch stays a mixture. Batches of like length throughout hold one task
    each, and learned far more slowly.
    """
    rng = np.random.default_rng(seed)
    epochs = math.ceil(batch * steps / len(samples))
    order = np.concatenate([rng.permutation(len(samples)) for _ in range(epochs)])[: batch * steps]
    length = samples.messages.map(
        lambda messages: sum(len(message["content"]) for message in messages)
    ).to_numpy()
    batches = (order[i : i + batch] for i in range(0, len(order), batch))
    return samples.iloc[
        np.concatenate([rows[np.argsort(length[rows], kind="stable")] for rows in batches])
    ]


def to_dataset(samples: pd.DataFrame) -> Dataset:
    """Rows of (messages with structured content, images) as SFTTrainer takes them."""
    part = {"type": Value("string"), "text": Value("string")}
    features = Features(
        {
            "messages": List({"role": Value("string"), "content": List(part)}),
            "images": List(Image()),
        }
    )
    rows = {
        "messages": [
            [{"role": m["role"], "content": content_parts(m["content"])} for m in messages]
            for messages in samples.messages
        ],
        "images": [list(images) for images in samples.images],
    }
    return Dataset.from_dict(rows, features=features)


def train_and_save(trainer, folder: Path, base: str, key: str) -> None:
    """Runs a trainer to its end, from its last checkpoint if there is one; leaves `model/`, whole, or naming the
    `adapter/` and `base`, the model under it."""
    checkpoint = prune_checkpoints(Path(trainer.args.output_dir), key)
    if checkpoint:
        history = json.loads((checkpoint / "trainer_state.json").read_text())["log_history"]
        trainer._total_train_tokens = history[-1].get(
            "num_tokens", 0
        )  # SFTTrainer counts from 0 in each process
    adapted = isinstance(trainer.model, PeftModel)
    if (
        checkpoint and not adapted
    ):  # under the names that Qwen2.5-VL's weights are saved by, the trainer finds none
        trainer.model.load_state_dict(load_model(checkpoint).state_dict())
    trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
    shutil.rmtree(folder / "model", ignore_errors=True)  # of an earlier training
    if trainer.args.bf16 and not adapted:  # as it was given
        trainer.model.bfloat16()
    trainer.save_model(str(folder / ("adapter" if adapted else "model")))
    if adapted:
        write_source(folder / "model", base, folder / "adapter")


def train(config: dict, folder: Path) -> None:
    """Trains with `config` (model, samples, steps, batch, learning_rate, lora_rank, seed, ...) into `folder`."""
    made = cache_key(
        **config
        | {"model": weights_fingerprint(config["model"]), "samples": Path(config["samples"])}
    )
    processor = load_processor(config["model"])
    samples = in_batches(
        pd.read_parquet(config["samples"]), config["batch"], config["steps"], config["seed"]
    )
    model, precision = load_to_train(config)
    for (
        name,
        weight,
    ) in model.named_parameters():  # what a thousand pictures teach is less than what they undo
        weight.requires_grad_("visual" not in name and "vision" not in name)
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            max_steps=config["steps"], seed=config["seed"],
            per_device_train_batch_size=config["batch"] // config["accumulate"],
            gradient_accumulation_steps=config["accumulate"], learning_rate=config["learning_rate"],
            lr_scheduler_type="cosine", warmup_steps=config["warmup"], assistant_only_loss=True, max_length=None,
            logging_steps=config["log_every"], report_to="none",
            gradient_checkpointing=config["gradient_checkpointing"],
            train_sampling_strategy="sequential", dataloader_num_workers=0, disable_tqdm=True, **precision,
            **saving(folder, made, config["steps"], config["log_every"]),
        ),
        train_dataset=to_dataset(samples),
        processing_class=processor,
        peft_config=lora(config),
        callbacks=[MetricsLog(folder / "metrics.jsonl", made)],
    )  # fmt: skip
    train_and_save(trainer, folder, config["model"], made)


if __name__ == "__main__":
    main(train)
