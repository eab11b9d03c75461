"""Train the offline image encoder: a CLIP of under 0.2 M parameters for rendered scenes (A.2).

Deviations from CLIP, because the agent uses the encoder to recognize things: captions name a crop
(`a red cup`), and no two captions in a batch are equal. Two crops of one thing, on different
backgrounds and cut out by the detector, must be close to each other as well. The temperature is
fixed at 0.1. A hinge keeps different things below the recognition threshold: CLIP's loss alone only
ranks them, and a red hat would pass for a red cup at a cosine of 0.5.

Launch (one process only; the model is too small for several):
`python -m personavlm_lib.training.clip --config CONFIG.yaml` (written by notebook 00_backbone).
"""

import itertools
import random
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
import yaml
from PIL import Image
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from personavlm_lib.memory.vision import ClassicalDetector, Detector, ImageEncoder, crops, tokenize
from personavlm_lib.simulation.scenes import COLORS, LOOSE, THINGS, render, sample_scene
from personavlm_lib.training.launch import main

SHAPE = yaml.safe_load(Path(__file__).with_name("clip.yaml").read_text(encoding="utf-8"))
SIZE = SHAPE["vision_config"]["image_size"]
CAPTION_TOKENS = SHAPE["text_config"]["max_position_embeddings"]
HINGE = 50.0  # weight of the hinge
MARGIN = 0.25  # cosine of two different things up to which the hinge is zero
SHIFT = 4  # pixels, largest shift of an augmented image
JITTER = 0.06  # standard deviation of an augmented image's contrast and brightness
PAIRS = tuple(itertools.product(THINGS, COLORS))  # (kind, color), all 72


def build_clip(tokenizer: PreTrainedTokenizerFast) -> CLIPModel:
    """Build an untrained model for images of 56 x 56 pixels and captions of at most 12 tokens.

    Raises ValueError if the tokenizer has no end token or its id is 2: transformers takes 2 as a
    sign of CLIP's old configuration, and pools at the token with the highest id instead.
    """
    end = tokenizer.eos_token_id
    if end in (None, 2):
        raise ValueError(
            f"the tokenizer's end token has id {end}; use a tokenizer that gives it another id"
        )
    special = dict(eos_token_id=end, pad_token_id=tokenizer.pad_token_id)
    text = SHAPE["text_config"] | special | {"vocab_size": len(tokenizer)}
    temperature = float(np.log(10))
    config = CLIPConfig(**SHAPE | {"text_config": text, "logit_scale_init_value": temperature})
    return CLIPModel(config)


def sighting(rng: random.Random, kind: str, color: str, detector: Detector) -> Image.Image | None:
    """Draw a new scene with the thing in it, and return the detector's crop of the thing.

    The thing stands alone, three times or beside another one, and is seen from either side. None
    if the detector misses it.
    """
    scene = sample_scene(rng, _scene_contents(rng, kind, color), turned=rng.random() < 0.5)
    image = render(scene)
    target = next(thing for thing in scene.things if (thing.kind, thing.color) == (kind, color))
    left, top, right, bottom = (image.width * edge for edge in target.box)
    center_x = (left + right) / 2
    center_y = (top + bottom) / 2
    detections = detector.detect(image)
    for detection, crop in zip(detections, crops(image, detections), strict=True):
        x0, y0, x1, y1 = detection.box
        if x0 < center_x < x1 and y0 < center_y < y1:
            return crop
    return None


def _scene_contents(rng: random.Random, kind: str, color: str) -> list[tuple[str, str]]:
    """The (kind, color) pairs of a scene with the thing in it, in random order."""
    other = (rng.choice(LOOSE), rng.choice(list(COLORS)))
    contents = [(kind, color)]
    if kind != "sign":  # a sign stands alone
        if rng.random() < 0.5:
            contents.append(other)
        else:
            contents *= rng.choice((1, 1, 1, 3))
    rng.shuffle(contents)
    return contents


def _sure_sighting(
    rng: random.Random, kind: str, color: str, detector: Detector
) -> Image.Image | None:
    """Return the first crop from up to a hundred scenes; None if the detector never finds it."""
    for _ in range(100):
        crop = sighting(rng, kind, color, detector)
        if crop is not None:
            return crop
    return None


def _captions(pairs: Sequence[tuple[str, str]]) -> list[str]:
    return [f"a {color} {kind}" for kind, color in pairs]


def train_clip(
    tokenizer: PreTrainedTokenizerFast,
    folder: str | Path,
    steps: int = 500,
    seed: int = 0,
    views: int = 16,
) -> list[dict[str, float]]:
    """Train from scratch on `views` crops of each of the 72 things.

    Saves weights, configuration, tokenizer and image processor to `folder`, for
    `ImageEncoder(folder)`. Returns a row every 20 steps: step, loss, image-text top-1 within the
    batch, and seconds.
    """
    started = time.monotonic()
    size = {"height": SIZE, "width": SIZE}
    processor = CLIPImageProcessorPil(size=size, do_center_crop=False)
    pixels = _sample_pixels(processor, random.Random(seed), views)
    ids, mask = tokenize(tokenizer, _captions(PAIRS), CAPTION_TOKENS)
    metrics: list[dict[str, float]] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_clip(tokenizer).train()
        model.logit_scale.requires_grad_(False)
        learned = [weight for weight in model.parameters() if weight.requires_grad]
        optimizer = torch.optim.AdamW(learned, lr=2e-3, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=2e-3, total_steps=steps, pct_start=0.1
        )
        for step in range(1, steps + 1):
            loss, top1 = _contrastive_loss(model, _two_views(pixels), ids, mask)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            if step == steps or step % 20 == 0:
                seconds = round(time.monotonic() - started, 1)
                metrics.append(dict(step=step, loss=loss.item(), top1=top1, seconds=seconds))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    processor.save_pretrained(folder)
    return metrics


def _sample_pixels(
    processor: CLIPImageProcessorPil, rng: random.Random, views: int
) -> torch.Tensor:
    """(72, views, 3, 56, 56): `views` crops of each thing."""
    detector = ClassicalDetector()
    rows = []
    for kind, color in PAIRS:
        patches = []
        for _ in range(views):
            patch = _sure_sighting(rng, kind, color, detector)
            assert patch is not None, f"the classical detector never finds a {color} {kind}"
            patches.append(patch)
        rows.append(processor(patches, return_tensors="pt").pixel_values)
    return torch.stack(rows)


def _two_views(pixels: torch.Tensor) -> torch.Tensor:
    """(144, 3, 56, 56): two different crops of each thing, augmented; all first crops first."""
    things, views = pixels.shape[:2]
    first_view, second_view = torch.rand(things, views).topk(2).indices.T
    rows = torch.arange(things)
    first = _augment(pixels[rows, first_view])
    second = _augment(pixels[rows, second_view])
    return torch.cat([first, second])


def _augment(pixels: torch.Tensor) -> torch.Tensor:
    """(n, 3, s, s): shift each image by up to 4 pixels and jitter its contrast and brightness."""
    count = len(pixels)
    side = pixels.shape[-1]
    padded = F.pad(pixels, [SHIFT] * 4, mode="replicate")
    corners = torch.randint(0, 2 * SHIFT + 1, (count, 2)).tolist()
    windows = []
    for image, (top, left) in zip(padded, corners, strict=True):
        bottom = top + side
        right = left + side
        windows.append(image[:, top:bottom, left:right])
    shifted = torch.stack(windows)
    contrast = 1 + JITTER * torch.randn(count, 1, 1, 1)
    brightness = JITTER * torch.randn(count, 1, 1, 1)
    return shifted * contrast + brightness


def _contrastive_loss(
    model: CLIPModel, images: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor
) -> tuple[torch.Tensor, float]:
    """CLIP's loss between two views and the captions, plus the hinge; and image-text top-1.

    `images` holds the first views of all things, then the second ones; `ids` and `mask` are those
    of their captions.
    """
    image_output = model.get_image_features(images)
    image_vectors = F.normalize(image_output.pooler_output, dim=-1)
    text_output = model.get_text_features(ids, attention_mask=mask)
    text_vectors = F.normalize(text_output.pooler_output, dim=-1)
    first, second = image_vectors.chunk(2)
    scale = model.logit_scale.exp()
    target = torch.arange(len(ids))
    first_to_text = scale * first @ text_vectors.T
    second_to_text = scale * second @ text_vectors.T
    first_to_second = scale * first @ second.T
    loss = torch.zeros(())
    for logits in (first_to_text, second_to_text, first_to_second):
        loss = loss + (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target))
    loss = loss / 6
    different = ~torch.eye(len(ids), dtype=torch.bool)
    cosines = first_to_second[different] / scale
    loss = loss + HINGE * F.relu(cosines - MARGIN).square().mean()
    top1 = (first_to_text.argmax(1) == target).float().mean().item()
    return loss, top1


def concept_top1(
    encoder: ImageEncoder,
    n: int = 50,
    seed: int = 1,
    threshold: float = 0.5,
    detector: Detector | None = None,
) -> dict[str, float]:
    """Measure recognition: n different things stored as crops, each seen again in a new scene.

    `top1`: share of things whose nearest stored crop is their own. `recalled`: share whose own
    crop has a cosine above `threshold`. `intruders`: share of the other crops above it. `named`:
    share whose nearest caption is their own. A thing that the detector misses counts as wrong.
    Raises ValueError if n is more than the 72 things that exist.
    """
    rng = random.Random(seed)
    detector = detector or ClassicalDetector()
    pairs = rng.sample(PAIRS, n)
    stored_crops = [_sure_sighting(rng, kind, color, detector) for kind, color in pairs]
    seen_crops = [sighting(rng, kind, color, detector) for kind, color in pairs]
    detected = _is_detected(stored_crops) & _is_detected(seen_crops)
    stored = _encode(encoder, stored_crops)
    seen = _encode(encoder, seen_crops)
    captions = encoder.texts(_captions(pairs))
    similarity = seen @ stored.T
    caption_similarity = seen @ captions.T
    own = np.arange(n)
    others = ~np.eye(n, dtype=bool)
    nearest_is_own = similarity.argmax(1) == own
    own_is_near = similarity[own, own] > threshold
    caption_is_own = caption_similarity.argmax(1) == own
    return {
        "top1": float((detected & nearest_is_own).mean()),
        "recalled": float((detected & own_is_near).mean()),
        "intruders": float((similarity[others] > threshold).mean()),
        "named": float((detected & caption_is_own).mean()),
    }


def _is_detected(patches: list[Image.Image | None]) -> np.ndarray:
    return np.array([patch is not None for patch in patches])


def _encode(encoder: ImageEncoder, patches: list[Image.Image | None]) -> np.ndarray:
    """Embed the crops; a missing one is a black image."""
    black = Image.new("RGB", (SIZE, SIZE))
    return encoder.images([patch or black for patch in patches])


def train(config: dict, folder: Path) -> None:
    """Train with `config` (tokenizer: a folder, steps, seed); write to `folder`, with metrics."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(config["tokenizer"])
    rows = train_clip(tokenizer, folder, config["steps"], config["seed"])
    metrics = folder / "metrics.jsonl"
    pd.DataFrame(rows).to_json(metrics, orient="records", lines=True)


if __name__ == "__main__":
    main(train)
