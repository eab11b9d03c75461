"""The nano backbone from scratch: reading, looking up and seeing, before it has met the agent's tasks.

Launch: python -m personavlm_lib.training.backbone --config CONFIG.yaml (written by the notebook 00_backbone).
"""

import json
import math
import random
import re
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from personavlm_lib.models import nano
from personavlm_lib.simulation import lexicon
from personavlm_lib.training import backbone_data
from personavlm_lib.training.backbone_data import Row, collate, encode
from personavlm_lib.training.launch import main

_ASKS_PICTURE = re.compile(r"ask (what color|how many|what is (left|right|on))")


def answer_loss(model, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Mean cross entropy of the labelled tokens. The vocabulary is asked at those alone, a fifth of all positions."""
    batch = dict(batch)
    labels = batch.pop("labels")[:, 1:]
    hidden = model.model(**batch).last_hidden_state[:, :-1]
    learned = labels != -100
    return torch.nn.functional.cross_entropy(model.lm_head(hidden[learned]), labels[learned])


@torch.no_grad()
def probe(
    model, processor: nano.ImageOnlyProcessor, seed: int = 0, n: int = 64
) -> dict[str, float]:
    """Share of reasoning steps whose words are all right when each is predicted from the right ones before it.

    On lives never trained on. `table`: the newest of a bare fact among eight; `copy`: a list of random words; `read_8`,
    `read_all`: a question on 8 turns or on a whole life; `date`: a period; `list`: turns by number or key; `see`: a
    scene; `recall`: the same with the picture among the turns of a conversation.
    """
    vocabulary = backbone_data.BackboneData(processor, 1, 1, 0).vocabulary
    makers = {
        "table": lambda rng: backbone_data.table(rng, 8, 1),
        "copy": lambda rng: backbone_data.copying(rng, vocabulary),
        "read_8": lambda rng: backbone_data.conversation(rng, 8, 1, False, False),
        "read_all": lambda rng: backbone_data.conversation(rng, 60, 1, False, False),
        "know": lambda rng: backbone_data.knowing(rng, 1),
        "date": lambda rng: backbone_data.dating(rng, 1),
        "list": lambda rng: backbone_data.listing(rng, 8),
        "see": lambda rng: backbone_data.seeing(rng, 1, 1),
        "recall": _about_pictures,
    }
    model.eval()
    shares = {}
    for name, make in makers.items():
        rng = random.Random(f"probe {seed} {name}")
        rows = [
            encode(Row(row.messages[:2], row.images), processor)
            for row in (make(rng) for _ in range(n))
        ]
        right = 0
        for start in range(0, n, 32):
            batch = collate(
                rows[start : start + 32], processor.tokenizer.pad_token_id, processor.image_token_id
            )
            batch = {key: value.to(model.device) for key, value in batch.items()}
            labels = batch.pop("labels")[:, 1:]
            hit = model(**batch).logits[:, :-1].argmax(-1) == labels
            right += (hit | (labels == -100)).all(-1).sum().item()
        shares[name] = right / n
    model.train()
    return shares


def _about_pictures(rng: random.Random) -> Row:
    while True:
        row = backbone_data.conversation(rng, 12, 1, False, True)
        if _ASKS_PICTURE.search(row.messages[0][1]):
            return row


def build_optimisers(model: torch.nn.Module, config: dict) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for embeddings, norms, biases and the convolution of the patches."""
    named = list(model.named_parameters())
    muon = [p for name, p in named if p.ndim == 2 and "embed" not in name]
    rest = [p for _, p in named if not any(p is q for q in muon)]
    adam = torch.optim.AdamW(rest, config["learning_rate"], weight_decay=0.05, betas=(0.9, 0.98))
    # scaled to the size of AdamW's steps, so that one learning rate serves both
    scaled = torch.optim.Muon(
        muon, config["learning_rate"], weight_decay=0.05, adjust_lr_fn="match_rms_adamw"
    )
    return [adam, scaled]


def train(config: dict, folder: Path) -> None:
    """Trains with `config` (seed, steps, batch, learning_rate, width, layers, log_every, workers) into `folder`."""
    torch.manual_seed(config["seed"])
    tokenizer = nano.build_tokenizer(corpus())
    processor = nano.build_processor(tokenizer)
    model = nano.build_model(
        tokenizer, config["width"], config["layers"], config.get("look_back", True)
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device)
    optimisers = build_optimisers(model, config)
    steps = config["steps"]
    batches = backbone_data.BackboneData(processor, config["batch"], steps, config["seed"])
    data = DataLoader(batches, None, num_workers=config["workers"])
    start, seen = time.time(), 0
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "metrics.jsonl", "w") as log:
        for step, batch in enumerate(data, 1):
            done = step / steps
            pace = min(1, step / 50) * (
                0.5 * (1 + math.cos(math.pi * (2 * done - 1))) if done > 0.5 else 1
            )
            for group in (group for optimiser in optimisers for group in optimiser.param_groups):
                group["lr"] = config["learning_rate"] * pace
            # float32: bfloat16 is many times slower on processors that only emulate it
            loss = answer_loss(model, {key: value.to(device) for key, value in batch.items()})
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimiser in optimisers:
                optimiser.step()
            model.zero_grad()
            seen += batch["input_ids"].numel()
            if step % config["log_every"] == 0 or step == steps:
                entry = {
                    "step": step,
                    "tokens": seen,
                    "seconds": round(time.time() - start, 1),
                    "loss": loss.item(),
                }
                entry |= probe(model, processor)
                log.write(json.dumps(entry) + "\n")
                log.flush()
                print(
                    f"step {step}/{steps} " + " ".join(f"{k} {v:.3g}" for k, v in entry.items()),
                    flush=True,
                )
                model.save_pretrained(folder)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def corpus() -> Iterator[str]:
    """Every text that the tokenizer must know in whole words: the lexicon, the prompts and replies of some lives."""
    yield " ".join(lexicon.vocabulary())
    yield " ".join((*nano.SPECIAL, *nano.TAGS))
    yield "\n".join(f'"{key}":' for key in nano.KEYS)
    yield "\n".join(f'"{key}":' for key in ("name", *lexicon.CORE, *lexicon.HABITS, *lexicon.GOALS))
    yield "You are a helpful assistant. system user (Image Object: cup) (a) (b) (c) (d) , . ? ! ' - null true false"
    for path in sorted((Path(__file__).parents[1] / "agent" / "prompts" / "nano").glob("*.j2")):
        yield " ".join(word for word in path.read_text().split() if word.isalpha())


if __name__ == "__main__":
    main(train)
