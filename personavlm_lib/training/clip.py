"""The offline image encoder: a CLIP of under 0.2 M parameters that tells the things of our scenes apart (A.2).

Deviations from CLIP: captions name a crop (`a red cup`), no two of a batch are the same, and two sightings of the same
thing, on other backgrounds and cut by the detector, must lie near each other too, because recognising is what the agent
asks of it. The temperature is held at 0.1, and a hinge keeps other things below the threshold of recognition: CLIP's
loss alone only ranks, and a red hat would pass for a red cup at a cosine of 0.5.
"""

import itertools
import random
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from personavlm_lib.memory.vision import ClassicalDetector, Detector, ImageEncoder, crops, tokenize
from personavlm_lib.simulation.scenes import COLORS, LOOSE, THINGS, render, sample_scene
from personavlm_lib.training.launch import main

SIZE = 56
HINGE = 50.0
PAIRS = tuple(itertools.product(THINGS, COLORS))  # (kind, color), all 72


def build_clip(tokenizer: PreTrainedTokenizerFast) -> CLIPModel:
    """An untrained model for images of 56 x 56 pixels and captions of at most 12 tokens.

    Raises ValueError where the end token's id is 2: transformers reads that as CLIP's old configuration, and pools
    at the token with the highest id instead.
    """
    if tokenizer.eos_token_id in (None, 2):
        raise ValueError(
            f"the tokenizer's end token has id {tokenizer.eos_token_id}; CLIP needs one, and not 2"
        )
    ids = {
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": None,
        "pad_token_id": tokenizer.pad_token_id,
    }
    text = dict(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2
    )
    vision = dict(
        image_size=SIZE, patch_size=14, hidden_size=64, intermediate_size=128, num_hidden_layers=2
    )
    return CLIPModel(
        CLIPConfig(
            text_config=text | ids | dict(num_attention_heads=2, max_position_embeddings=12),
            vision_config=vision | dict(num_attention_heads=4),
            projection_dim=48,
            logit_scale_init_value=float(np.log(10)),
        )
    )


def sighting(rng: random.Random, kind: str, color: str, detector: Detector) -> Image.Image | None:
    """A crop of the thing, cut by the detector out of a fresh scene, where it stands alone or with others, from either
    side."""
    beside = (rng.choice(LOOSE), rng.choice(list(COLORS)))
    wanted = [(kind, color)] + [beside] * (kind != "sign" and rng.random() < 0.5)
    wanted = (
        wanted[:1] * rng.choice((1, 1, 1, 3)) if len(wanted) == 1 and kind != "sign" else wanted
    )
    rng.shuffle(wanted)
    scene = sample_scene(rng, wanted, turned=rng.random() < 0.5)
    found = crops(image := render(scene), detections := detector.detect(image))
    index = next(
        i for i, thing in enumerate(scene.things) if (thing.kind, thing.color) == (kind, color)
    )
    left, top, right, bottom = (image.width * v for v in scene.things[index].box)
    for patch, (x0, y0, x1, y1) in zip(found, (d.box for d in detections), strict=True):
        if x0 < (left + right) / 2 < x1 and y0 < (top + bottom) / 2 < y1:
            return patch
    return None


def train_clip(
    tokenizer: PreTrainedTokenizerFast,
    folder: str | Path,
    steps: int = 500,
    seed: int = 0,
    seconds: float | None = None,
    views: int = 16,
) -> list[dict[str, float]]:
    """Trains from scratch on `views` crops of each of the 72 things, and leaves weights, configuration, tokenizer and
    image processor in `folder`, for `ImageEncoder(folder)`.

    `seconds` ends it sooner (and then the weights depend on the machine). Returns step, loss, image-text top-1 of the
    batch and seconds, every 20 steps.
    """
    started, rng, detector = time.monotonic(), random.Random(seed), ClassicalDetector()
    processor = CLIPImageProcessorPil(size={"height": SIZE, "width": SIZE}, do_center_crop=False)
    patches = [[_sure_sighting(rng, pair, detector) for _ in range(views)] for pair in PAIRS]
    pixels = torch.stack(
        [processor(row, return_tensors="pt").pixel_values for row in patches]
    )  # (72, views, 3, 56, 56)
    ids, mask = tokenize(tokenizer, [f"a {color} {kind}" for kind, color in PAIRS], 12)
    metrics: list[dict[str, float]] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_clip(tokenizer).train()
        model.logit_scale.requires_grad_(False)
        optimizer = torch.optim.AdamW(
            [p for p in model.parameters() if p.requires_grad], lr=2e-3, weight_decay=0.01
        )
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=2e-3, total_steps=steps, pct_start=0.1
        )
        for step in range(1, steps + 1):
            which = (
                torch.rand(len(PAIRS), views).topk(2).indices
            )  # two different sightings of each thing
            one, other = (_augment(pixels[torch.arange(len(PAIRS)), which[:, i]]) for i in range(2))
            seen = F.normalize(
                model.get_image_features(torch.cat([one, other])).pooler_output, dim=-1
            )
            said = F.normalize(
                model.get_text_features(ids, attention_mask=mask).pooler_output, dim=-1
            )
            one, other = seen.chunk(2)
            scale, target = model.logit_scale.exp(), torch.arange(len(PAIRS))
            logits = [scale * a @ b.T for a, b in ((one, said), (other, said), (one, other))]
            loss = (
                sum(F.cross_entropy(m, target) + F.cross_entropy(m.T, target) for m in logits) / 6
            )
            others = logits[2][~torch.eye(len(PAIRS), dtype=torch.bool)] / scale
            loss = loss + HINGE * F.relu(others - 0.25).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            spent = time.monotonic() - started
            late = seconds is not None and spent > seconds
            if step % 20 == 0 or step == steps or late:
                top1 = (logits[0].argmax(1) == target).float().mean().item()
                metrics.append(
                    {"step": step, "loss": loss.item(), "top1": top1, "seconds": round(spent, 1)}
                )
            if late:
                break
    for part in (model, tokenizer, processor):
        part.save_pretrained(folder)
    return metrics


def _sure_sighting(
    rng: random.Random, pair: tuple[str, str], detector: Detector
) -> Image.Image | None:
    """The first sighting in a hundred pictures; None if the detector finds the thing in none."""
    return next(
        (patch for _ in range(100) if (patch := sighting(rng, *pair, detector)) is not None), None
    )


def _augment(pixels: torch.Tensor) -> torch.Tensor:
    """(n, 3, s, s): each image moved by up to 4 pixels and a little lighter or darker."""
    padded, side = F.pad(pixels, (4, 4, 4, 4), mode="replicate"), pixels.shape[-1]
    moves = torch.randint(0, 9, (len(pixels), 2)).tolist()
    moved = torch.stack(
        [image[:, y : y + side, x : x + side] for image, (y, x) in zip(padded, moves, strict=True)]
    )
    return moved * (1 + 0.06 * torch.randn(len(pixels), 1, 1, 1)) + 0.06 * torch.randn(
        len(pixels), 1, 1, 1
    )


def concept_top1(
    encoder: ImageEncoder,
    n: int = 50,
    seed: int = 1,
    threshold: float = 0.5,
    detector: Detector | None = None,
) -> dict[str, float]:
    """How well things are recognised: n different things stored as crops, each seen again in a fresh scene.

    `top1`: the stored crop nearest to the thing is its own. `recalled`: its own cosine is above `threshold`.
    `intruders`: the part of the other crops above it. `named`: the nearest caption is its own. A thing that the
    detector misses counts as wrong. ValueError for more than the 72 things there are.
    """
    rng, detector = random.Random(seed), detector or ClassicalDetector()
    pairs = rng.sample(PAIRS, n)
    crops = (
        [_sure_sighting(rng, pair, detector) for pair in pairs],
        [sighting(rng, *pair, detector) for pair in pairs],
    )
    found = np.array(
        [bool(one and other) for one, other in zip(*crops, strict=True)]
    )  # else it counts as wrong
    stored, seen = (
        encoder.images([crop or Image.new("RGB", (SIZE, SIZE)) for crop in part]) for part in crops
    )
    similarity, own = seen @ stored.T, np.arange(n)
    captions = encoder.texts([f"a {color} {kind}" for kind, color in pairs])
    others = ~np.eye(n, dtype=bool)
    return {
        "top1": float((found & (similarity.argmax(1) == own)).mean()),
        "recalled": float((found & (similarity[own, own] > threshold)).mean()),
        "intruders": float((similarity[others] > threshold).mean()),
        "named": float((found & ((seen @ captions.T).argmax(1) == own)).mean()),
    }


def train(config: dict, folder: Path) -> None:
    """Trains with `config` (tokenizer: a folder, steps, seed) into `folder`, and leaves `metrics.jsonl` there."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(config["tokenizer"])
    metrics = pd.DataFrame(train_clip(tokenizer, folder, config["steps"], config["seed"]))
    metrics.to_json(folder / "metrics.jsonl", orient="records", lines=True)


if __name__ == "__main__":
    main(train)
