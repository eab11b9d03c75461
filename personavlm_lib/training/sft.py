"""Stage 1: supervised fine-tuning on recordings of the oracle (paper, Section 3.2 and Table 3).

Trains the whole language model or a LoRA on it, with the loss on the assistant's tokens only.
Writes `model/`, from which the next stage starts: the weights, or references to the adapter and
its base model. The profile sets sizes and rates.

Deviations from the paper, which trains all weights: a LoRA, unless `lora_rank` is 0 (then the whole
language model, as in the profile `nano`); the vision tower stays frozen; at most a tenth of the 78k
samples, except in the profile `paper`. The samples are recordings of the agent with the oracle as
model, so the prompts are exactly those of the evaluation.

Launch one process: `python -m personavlm_lib.training.sft --config CONFIG.yaml`
Launch several: `accelerate launch -m personavlm_lib.training.sft --config CONFIG.yaml`
"""

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import yaml
from datasets import Dataset, Features, Image, List, Value
from peft import LoraConfig, PeftModel
from transformers import PreTrainedModel, TrainerCallback
from trl import SFTConfig, SFTTrainer
from trl.chat_template_utils import get_training_chat_template, has_generation_markers
from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

from personavlm_lib.caching import cache_key, delete, mark_finished
from personavlm_lib.models.local import content_parts
from personavlm_lib.models.weights import (
    load_model,
    load_processor,
    weights_fingerprint,
    write_source,
)
from personavlm_lib.training.launch import main, prepare_checkpoint_folder, prune_checkpoints

TRAINERS = yaml.safe_load(Path(__file__).with_name("trainers.yaml").read_text(encoding="utf-8"))
# The linear projections of the language model.
TARGETS = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"


class MetricsLog(TrainerCallback):
    """Write each log entry to `path` as a JSON line, and mark each complete checkpoint with `key`.

    `names` maps the trainer's metric names to those of the study. A resumed training first rewrites
    the lines up to its checkpoint, so that no repeated step is logged twice.
    """

    def __init__(self, path: Path, key: str, names: dict[str, str] | None = None):
        self.path = path
        self.key = key
        self.names = names or {}

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            lines = [self._line(logs, state) for logs in state.log_history]
            self.path.write_text("".join(lines), encoding="utf-8")

    def on_log(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(self._line(state.log_history[-1], state))

    def on_save(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            mark_finished(checkpoint, self.key)

    def _line(self, logs: dict, state) -> str:
        """One line of the file; empty for the trainer's closing summary, which has no loss."""
        is_step = "loss" in logs or "reward" in logs
        if not is_step:
            return ""
        row: dict[str, float] = {"step": logs["step"], "of": state.max_steps}
        for name in sorted(logs):
            if name != "step":
                study_name = self.names.get(name, name)
                row[study_name] = float(logs[name])
        return json.dumps(row) + "\n"


def prepare_checkpoints(folder: Path, key: str, steps: int, log_every: int) -> dict:
    """Delete the checkpoints of other keys; return the trainer's arguments for those of `key`.

    About ten checkpoints are written, each after a logged step; the last two are kept.
    """
    logs_per_checkpoint = max(1, round(steps / 10 / log_every))
    return dict(
        output_dir=str(prepare_checkpoint_folder(folder, key)),
        save_steps=log_every * logs_per_checkpoint,
    )


def schedule_arguments(config: dict) -> dict:
    """Return the trainer's arguments that SFT and GRPO share: steps, optimizer and output."""
    return dict(
        max_steps=config["steps"],
        seed=config["seed"],
        gradient_accumulation_steps=config["accumulate"],
        learning_rate=config["learning_rate"],
        warmup_steps=config["warmup"],
        gradient_checkpointing=config["gradient_checkpointing"],
        **TRAINERS["both"],
    )


def lora(config: dict) -> LoraConfig | None:
    """The adapter of both training stages; None (train the whole language model) at rank 0."""
    rank = config["lora_rank"]
    if not rank:
        return None
    return LoraConfig(
        r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules=TARGETS, task_type="CAUSAL_LM"
    )


def load_to_train(config: dict) -> tuple[PreTrainedModel, dict]:
    """Load the model of `config`, and return it with the trainer's arguments for its precision.

    The precision is that of the stored weights. Weights that are trained without an adapter are
    converted to float32 for the training, because small steps are lost in bfloat16.
    """
    model = load_model(config["model"])
    is_bfloat16 = model.dtype == torch.bfloat16
    precision = dict(bf16=is_bfloat16, use_cpu=not torch.cuda.is_available())
    if not config["lora_rank"]:
        model = model.float()
    return model, precision


def _freeze_vision_tower(model: PreTrainedModel) -> None:
    """Train the language model alone: a thousand pictures harm the tower more than they help."""
    for name, weight in model.named_parameters():
        is_visual = "visual" in name or "vision" in name
        weight.requires_grad_(not is_visual)


def in_batches(samples: pd.DataFrame, batch: int, steps: int, seed: int) -> pd.DataFrame:
    """Draw `steps` random batches of rows, one after another, each sorted by length.

    Sorting within a batch means little padding in each of its parts, and the batch stays a mixture
    of tasks. Sorting by length across batches would put one task in each batch, and the model
    learned far more slowly that way.
    """
    rng = np.random.default_rng(seed)
    epochs = math.ceil(batch * steps / len(samples))
    permutations = [rng.permutation(len(samples)) for _ in range(epochs)]
    order = np.concatenate(permutations)[: batch * steps]
    lengths = samples.messages.map(_characters).to_numpy()
    batches = []
    for start in range(0, len(order), batch):
        rows = order[start : start + batch]
        by_length = np.argsort(lengths[rows], kind="stable")
        batches.append(rows[by_length])
    return samples.iloc[np.concatenate(batches)]


def _characters(messages: list[dict]) -> int:
    return sum(len(message["content"]) for message in messages)


def to_dataset(samples: pd.DataFrame) -> Dataset:
    """Convert rows of messages and images to SFTTrainer's format, with structured content."""
    part = {"type": Value("string"), "text": Value("string")}
    message_features = {"role": Value("string"), "content": List(part)}
    features = Features({"messages": List(message_features), "images": List(Image())})
    conversations = []
    for messages in samples.messages:
        conversation = []
        for message in messages:
            content = content_parts(message["content"])
            conversation.append({"role": message["role"], "content": content})
        conversations.append(conversation)
    images = [list(paths) for paths in samples.images]
    columns = {"messages": conversations, "images": images}
    return Dataset.from_dict(columns, features=features)


def loss_mask(sample: pd.DataFrame, processor) -> tuple[list[int], list[bool]]:
    """Encode a frame of one sample as the trainer does.

    Returns the token ids, and for each token whether the loss covers it, which is the case for what
    the assistant writes.
    """
    template = None  # the processor's own
    if not has_generation_markers(processor.chat_template):
        template = get_training_chat_template(processor)
    collator = DataCollatorForVisionLanguageModeling(
        processor, assistant_only_loss=True, chat_template=template
    )
    batch = collator(list(to_dataset(sample)))
    ids = batch["input_ids"][0]
    labels = batch["labels"][0]
    in_loss = labels >= 0  # the collator labels all other tokens -100
    return ids.tolist(), in_loss.tolist()


def train_and_save(trainer, folder: Path, base: str, key: str) -> None:
    """Train to the end, from the last checkpoint if there is one, and write `folder/model`.

    `model/` contains all weights, or refers to `adapter/` and its base model `base`.
    Incomplete checkpoints are deleted.
    """
    adapted = isinstance(trainer.model, PeftModel)
    checkpoint = prune_checkpoints(folder, key)
    if checkpoint is None:
        trainer.train(resume_from_checkpoint=None)
    else:
        _restore_count_and_weights(trainer, checkpoint, adapted)
        trainer.train(resume_from_checkpoint=str(checkpoint))
    model_folder = folder / "model"
    adapter_folder = folder / "adapter"
    delete(model_folder, folder)  # of an earlier training
    if adapted:
        trainer.save_model(str(adapter_folder))
        write_source(model_folder, base, adapter_folder)
    else:
        if trainer.args.bf16:  # back to the precision of the model that was loaded
            trainer.model.bfloat16()
        trainer.save_model(str(model_folder))


def _restore_count_and_weights(trainer, checkpoint: Path, adapted: bool) -> None:
    """Restore the token count and whole weights, which the trainer does not resume by itself."""
    state_file = checkpoint / "trainer_state.json"
    state = json.loads(state_file.read_text(encoding="utf-8"))
    newest_logs = state["log_history"][-1]
    # SFTTrainer counts from 0 in each process.
    trainer._total_train_tokens = newest_logs.get("num_tokens", 0)
    if not adapted:
        # Qwen2.5-VL's weights are saved under names that the trainer does not find in the model.
        weights = load_model(checkpoint).state_dict()
        trainer.model.load_state_dict(weights)


def train(config: dict, folder: Path) -> None:
    """Train with `config` (model, samples, steps, batch, learning_rate, lora_rank, seed, ...).

    Writes checkpoints, metrics and the trained model to `folder`.
    """
    inputs = {"model": weights_fingerprint(config["model"]), "samples": Path(config["samples"])}
    key = cache_key(**config | inputs)
    processor = load_processor(config["model"])
    samples = pd.read_parquet(config["samples"])
    batches = in_batches(samples, config["batch"], config["steps"], config["seed"])
    model, precision = load_to_train(config)
    _freeze_vision_tower(model)
    checkpoints = prepare_checkpoints(folder, key, config["steps"], config["log_every"])
    micro_batch = config["batch"] // config["accumulate"]
    arguments = SFTConfig(
        per_device_train_batch_size=micro_batch,
        logging_steps=config["log_every"],
        **TRAINERS["sft"],
        **schedule_arguments(config),
        **precision,
        **checkpoints,
    )
    metrics_log = MetricsLog(folder / "metrics.jsonl", key)
    trainer = SFTTrainer(
        model=model,
        args=arguments,
        train_dataset=to_dataset(batches),
        processing_class=processor,
        peft_config=lora(config),
        callbacks=[metrics_log],
    )
    train_and_save(trainer, folder, config["model"], key)


if __name__ == "__main__":
    main(train)
