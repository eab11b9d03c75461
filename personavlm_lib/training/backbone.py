"""Train the nano backbone from scratch to read, look up and see, before any task of the agent.

Deviation from the paper, which starts from Qwen2.5-VL-7B (Section 3.2): the nano model has the same
architecture with about a five-thousandth of the parameters, and knows the simulated world only.

Launch (one process only): `python -m personavlm_lib.training.backbone --config CONFIG.yaml`
(notebook 00_backbone writes the file).
"""

import json
import math
import random
import re
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from personavlm_lib.models import nano
from personavlm_lib.simulation import lexicon
from personavlm_lib.training import backbone_drills
from personavlm_lib.training.backbone_data import IGNORED, BackboneData, collate, encode
from personavlm_lib.training.backbone_drills import Row
from personavlm_lib.training.launch import main

PROMPT_FOLDER = Path(__file__).parents[1] / "agent" / "prompts" / "nano"
# What the chat template, the options and JSON add to the words.
FRAME_TOKENS = (
    "You are a helpful assistant. system user (Image Object: cup) (a) (b) (c) (d) , . ? ! ' -"
    " null true false"
)
WARMUP = 50  # steps
PROBE_BATCH = 32
_PICTURE_QUESTION = re.compile(r"ask (what color|how many|what is (left|right|on))")


def answer_loss(model, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Mean cross entropy of the labeled tokens.

    Only their positions, a fifth of all, go through the output layer.
    """
    inputs = dict(batch)
    labels = inputs.pop("labels")[:, 1:]
    output = model.model(**inputs)
    hidden = output.last_hidden_state[:, :-1]
    labeled = labels != IGNORED
    logits = model.lm_head(hidden[labeled])
    return torch.nn.functional.cross_entropy(logits, labels[labeled])


def probe(
    model, processor: nano.ImageOnlyProcessor, seed: int = 0, n: int = 64
) -> dict[str, float]:
    """Measure each skill on n conversations from lives that are not trained on.

    A skill's value is the share of first answers in which every token is predicted correctly from
    the correct tokens before it. `table`: the newest value of a bare fact among eight; `copy`: a
    list of random words; `read_8`, `read_all`: a question on 8 turns or on a whole life; `know`:
    common knowledge; `date`: a period; `list`: turns by number or key; `see`: a scene; `recall`:
    the same with the picture among the turns of a conversation.
    """
    vocabulary = BackboneData(processor, 1, 1, 0).vocabulary
    skills: dict[str, Callable[[random.Random], Row]] = {
        "table": lambda rng: backbone_drills.table_drill(rng, 8, 1),
        "copy": lambda rng: backbone_drills.copy_drill(rng, vocabulary),
        "read_8": lambda rng: backbone_drills.conversation(rng, 8, 1, False, False),
        "read_all": lambda rng: backbone_drills.conversation(rng, 60, 1, False, False),
        "know": lambda rng: backbone_drills.knowledge_drill(rng, 1),
        "date": lambda rng: backbone_drills.date_drill(rng, 1),
        "list": lambda rng: backbone_drills.list_drill(rng, 8),
        "see": lambda rng: backbone_drills.scene_drill(rng, 1, 1),
        "recall": _picture_conversation,
    }
    model.eval()
    shares = {}
    for name, make_row in skills.items():
        rng = random.Random(f"probe {seed} {name}")
        encoded = []
        for _ in range(n):
            row = make_row(rng)
            first_exchange = Row(row.messages[:2], row.images)
            encoded.append(encode(first_exchange, processor))
        shares[name] = _count_correct(model, processor, encoded) / n
    model.train()
    return shares


@torch.no_grad()
def _count_correct(model, processor: nano.ImageOnlyProcessor, encoded: list[dict]) -> int:
    """The number of rows whose labeled tokens are all predicted correctly."""
    pad = processor.tokenizer.pad_token_id
    correct = 0
    for start in range(0, len(encoded), PROBE_BATCH):
        rows = encoded[start : start + PROBE_BATCH]
        batch = collate(rows, pad, processor.image_token_id)
        inputs = _to_device(batch, model.device)
        labels = inputs.pop("labels")[:, 1:]
        output = model(**inputs)
        predicted = output.logits[:, :-1].argmax(-1)
        matches = (predicted == labels) | (labels == IGNORED)
        correct += matches.all(-1).sum().item()
    return correct


def _to_device(batch: dict[str, torch.Tensor], device) -> dict[str, torch.Tensor]:
    return {name: tensor.to(device) for name, tensor in batch.items()}


def _picture_conversation(rng: random.Random) -> Row:
    """A conversation that begins with a question about a picture."""
    while True:
        row = backbone_drills.conversation(rng, 12, 1, False, True)
        if _PICTURE_QUESTION.search(row.messages[0][1]):
            return row


def build_optimizers(model: torch.nn.Module, config: dict) -> list[torch.optim.Optimizer]:
    """AdamW for embeddings, norms, biases and patch convolution; Muon for the layers' matrices."""
    matrices = []
    others = []
    for name, weight in model.named_parameters():
        if weight.ndim == 2 and "embed" not in name:
            matrices.append(weight)
        else:
            others.append(weight)
    rate = config["learning_rate"]
    adam = torch.optim.AdamW(others, rate, weight_decay=0.05, betas=(0.9, 0.98))
    # Its steps are scaled to the size of AdamW's, so that one learning rate serves both.
    muon = torch.optim.Muon(matrices, rate, weight_decay=0.05, adjust_lr_fn="match_rms_adamw")
    return [adam, muon]


def _rate_factor(step: int, steps: int) -> float:
    """The learning rate's share of its peak: linear warmup, constant, cosine in the second half."""
    warmup = min(1, step / WARMUP)
    done = step / steps
    if done <= 0.5:
        return warmup
    angle = math.pi * (2 * done - 1)
    cosine = 0.5 * (1 + math.cos(angle))
    return warmup * cosine


def train(config: dict, folder: Path) -> None:
    """Train with `config` (seed, steps, batch, learning_rate, width, layers, log_every, workers).

    Writes metrics, model and processor to `folder`; the model is also saved at each log entry.
    """
    steps = config["steps"]
    torch.manual_seed(config["seed"])
    tokenizer = nano.build_tokenizer(corpus())
    processor = nano.build_processor(tokenizer)
    look_back = config.get("look_back", True)
    model = nano.build_model(tokenizer, config["width"], config["layers"], look_back)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device)  # type: ignore[arg-type]  # the decorator's stub loses the signature
    optimizers = build_optimizers(model, config)
    batches = BackboneData(processor, config["batch"], steps, config["seed"])
    data = DataLoader(batches, None, num_workers=config["workers"])
    started = time.time()
    tokens = 0
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "metrics.jsonl", "w", encoding="utf-8") as log:
        for step, batch in enumerate(data, 1):
            rate = config["learning_rate"] * _rate_factor(step, steps)
            loss = _training_step(model, optimizers, _to_device(batch, device), rate)
            tokens += batch["input_ids"].numel()
            if step % config["log_every"] == 0 or step == steps:
                seconds = round(time.time() - started, 1)
                entry = dict(step=step, tokens=tokens, seconds=seconds, loss=loss.item())
                entry |= probe(model, processor)
                log.write(json.dumps(entry) + "\n")
                log.flush()
                values = [f"{name} {value:.3g}" for name, value in entry.items()]
                print(f"step {step}/{steps}", *values, flush=True)
                model.save_pretrained(folder)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def _training_step(
    model, optimizers: list[torch.optim.Optimizer], batch: dict[str, torch.Tensor], rate: float
) -> torch.Tensor:
    """Update the weights on one batch, in float32, and return the loss.

    bfloat16 is many times slower on processors that only emulate it.
    """
    loss = answer_loss(model, batch)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
    model.zero_grad()
    return loss


def corpus() -> Iterator[str]:
    """The texts from which the tokenizer takes its whole words: the lexicon and the prompts."""
    yield " ".join(lexicon.vocabulary())
    yield " ".join((*nano.SPECIAL, *nano.TAGS))
    yield _as_json_keys(nano.KEYS)
    yield _as_json_keys(("name", *lexicon.CORE, *lexicon.HABITS, *lexicon.GOALS))
    yield FRAME_TOKENS
    for path in sorted(PROMPT_FOLDER.glob("*.j2")):
        words = [word for word in path.read_text(encoding="utf-8").split() if word.isalpha()]
        yield " ".join(words)


def _as_json_keys(names: Iterable[str]) -> str:
    return "\n".join(f'"{name}":' for name in names)


if __name__ == "__main__":
    main(train)
