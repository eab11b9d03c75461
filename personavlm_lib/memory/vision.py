"""Visual concepts: find the objects in an image, and recognise the ones that the user has shown before (A.2, B.1).

The paper uses Grounding DINO and CLIP. Both are asked through transformers, by a hub id or a folder; offline, a
classical detector stands in for the one and a small CLIP of our own (`training/clip.py`) for the other. What the paper
leaves open is the threshold of recognition; the released code takes squared L2 < 1.0, which is cosine > 0.5 (findings
D8): the same by arithmetic, so it is the default here too.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
import torch
from PIL import Image
from transformers import (
    AutoModelForZeroShotObjectDetection,
    AutoProcessor,
    AutoTokenizer,
    CLIPModel,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from personavlm_lib.memory.images import read_image
from personavlm_lib.memory.records import SemanticMemory, Turn, VisualConcept

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Detection:
    """An object in an image: `box` = (left, top, right, bottom) in pixels, `score` in 0..1, its label where known."""

    box: Box
    score: float
    label: str | None = None


class Detector(Protocol):
    def detect(self, image: Image.Image, names: Sequence[str] = ()) -> list[Detection]:
        """The objects of `image`, largest first; `names` are classes to look for, where a detector can be told."""
        ...


@dataclass(frozen=True)
class ClassicalDetector:
    """What stands out against the border's colour is an object: no weights, right on plain backgrounds.

    `contrast` is the least distance from the background in CIELAB (raised where the border itself is uneven, as on
    photographs); `min_area` and `join` are parts of the image's area and of its longer side.
    """

    contrast: float = 12.0
    min_area: float = 0.01
    join: float = 0.012
    margin: float = 0.02

    def detect(self, image: Image.Image, names: Sequence[str] = ()) -> list[Detection]:
        small = image.convert("RGB")
        small.thumbnail((512, 512))
        lab = cv2.cvtColor(np.asarray(small, np.float32) / 255, cv2.COLOR_RGB2LAB)
        border = np.concatenate([lab[0], lab[-1], lab[:, 0], lab[:, -1]])
        background = np.median(border, axis=0)
        unevenness = np.median(np.linalg.norm(border - background, axis=1))
        distance = np.linalg.norm(lab - background, axis=2)
        mask = (distance > max(self.contrast, 3 * unevenness)).astype(np.uint8)
        height, width = mask.shape
        reach = 1 + 2 * round(self.join * max(height, width) / 2)
        mask = cv2.morphologyEx(mask, cv2.MORPH_CLOSE, np.ones((reach, reach), np.uint8))
        _, labels, stats, _ = cv2.connectedComponentsWithStats(mask)
        scale, found = image.width / width, []
        for i, (x, y, w, h, area) in enumerate(stats):
            if i == 0 or area < self.min_area * mask.size:  # component 0 is the background
                continue
            pad = self.margin * max(width, height)
            edges = (x - pad, y - pad, x + w + pad, y + h + pad)
            limits = (image.width, image.height) * 2
            box = tuple(
                int(min(max(0, round(scale * v)), end))
                for v, end in zip(edges, limits, strict=True)
            )
            found.append(
                (area, Detection(box, float(min(1.0, distance[labels == i].mean() / 100))))
            )
        return [detection for _, detection in sorted(found, key=lambda pair: -pair[0])]


class GroundingDinoDetector:
    """Grounding DINO (or any zero-shot detector of transformers) by hub id or folder, with its default thresholds."""

    def __init__(self, model_id: str, device: str = "cpu", threshold: float = 0.25):
        self.processor = AutoProcessor.from_pretrained(model_id)
        self.model = AutoModelForZeroShotObjectDetection.from_pretrained(model_id).to(device).eval()
        self.threshold = threshold

    @torch.inference_mode()
    def detect(self, image: Image.Image, names: Sequence[str] = ()) -> list[Detection]:
        """Without `names` it looks for "object", the salient ones of A.2."""
        image, labels = (
            image.convert("RGB"),
            [[f"a {name.lower()}" for name in names or ("object",)]],
        )
        inputs = self.processor(images=image, text=labels, return_tensors="pt").to(
            self.model.device
        )
        [result] = self.processor.post_process_grounded_object_detection(
            self.model(**inputs),
            inputs.input_ids,
            threshold=self.threshold,
            target_sizes=[(image.height, image.width)],
        )
        detections = []
        for corners, score, label in zip(
            result["boxes"], result["scores"], result["text_labels"], strict=True
        ):
            limits = (image.width, image.height) * 2
            box = tuple(
                min(max(0, round(v)), end) for v, end in zip(corners.tolist(), limits, strict=True)
            )
            if box[0] < box[2] and box[1] < box[3]:
                detections.append(Detection(box, float(score), label or None))
        return sorted(detections, key=lambda d: -(d.box[2] - d.box[0]) * (d.box[3] - d.box[1]))


class ImageEncoder:
    """A CLIP model by hub id or folder: images and texts to L2-normalised float32 rows of one space."""

    def __init__(self, path_or_id: str | Path, device: str = "cpu"):
        self.model = CLIPModel.from_pretrained(path_or_id).to(device).eval()
        self.processor = CLIPImageProcessorPil.from_pretrained(path_or_id)
        self.tokenizer = AutoTokenizer.from_pretrained(path_or_id)

    @torch.inference_mode()
    def images(self, images: Sequence[Image.Image]) -> np.ndarray:
        """(n, d) float32 for n images of any size."""
        if not images:
            return np.zeros((0, self.model.config.projection_dim), np.float32)
        pixels = self.processor(
            [image.convert("RGB") for image in images], return_tensors="pt"
        ).pixel_values
        return _unit(self.model.get_image_features(pixels.to(self.model.device)).pooler_output)

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """(n, d) float32 for n texts; what is longer than the text tower's positions is cut."""
        if not texts:
            return np.zeros((0, self.model.config.projection_dim), np.float32)
        ids, mask = tokenize(
            self.tokenizer, texts, self.model.config.text_config.max_position_embeddings
        )
        device = self.model.device
        return _unit(
            self.model.get_text_features(
                ids.to(device), attention_mask=mask.to(device)
            ).pooler_output
        )


def tokenize(tokenizer, texts: Sequence[str], length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(n, t) ids and mask. Each row ends with the end token, where CLIP pools, also of a tokenizer that adds none."""
    end = tokenizer.eos_token_id
    rows = [
        [*(i for i in tokenizer(text).input_ids if i != end)][: length - 1] + [end]
        for text in texts
    ]
    width = max(map(len, rows))
    ids = torch.tensor([row + [end] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    return ids, mask


def _unit(features: torch.Tensor) -> np.ndarray:
    return torch.nn.functional.normalize(features.float(), dim=-1).cpu().numpy()


def crops(image: Image.Image, detections: Sequence[Detection]) -> list[Image.Image]:
    """The patch of each detection."""
    return [image.crop(detection.box) for detection in detections]


def crop_concept(
    image: Image.Image, class_name: str, detector: Detector, encoder: ImageEncoder
) -> Image.Image | None:
    """The object that the model's class name means: the patch nearest to `a {class_name}` in CLIP space (B.1).

    None where the detector finds nothing.
    """
    patches = crops(image, detector.detect(image, [class_name]))
    if not patches:
        return None
    return patches[int(np.argmax(encoder.images(patches) @ encoder.texts([f"a {class_name}"])[0]))]


def match_concepts(
    image: Image.Image,
    concepts: Sequence[tuple[VisualConcept, np.ndarray]],
    detector: Detector,
    encoder: ImageEncoder,
    threshold: float = 0.5,
    metric: str = "cosine",
) -> list[tuple[VisualConcept, float]]:
    """The stored concepts, each with its crop's (d,) embedding, that the image shows again, best first (A.2).

    The similarity is the cosine to the nearest detected object. `metric` says what `threshold` bounds: "cosine" keeps
    what is above it, "squared_l2" (the release, with 1.0) what is below it. ValueError for any other.
    """
    if metric not in ("cosine", "squared_l2"):
        raise ValueError(f"metric is {metric!r}; choose cosine or squared_l2")
    least = (
        threshold if metric == "cosine" else 1 - threshold / 2
    )  # |a - b|^2 = 2 - 2 cos for unit vectors
    if not concepts:
        return []
    names = sorted({concept.class_name for concept, _ in concepts})
    objects = encoder.images(crops(image, detector.detect(image, names)))
    if not len(objects):
        return []
    similarity = (objects @ np.stack([vector for _, vector in concepts]).T).max(axis=0)
    ranked = sorted(zip(concepts, similarity, strict=True), key=lambda pair: -pair[1])
    return [(concept, float(value)) for (concept, _), value in ranked if value > least]


class ConceptRecognizer:
    """What the agent sees with: a detector, an encoder, and the settings of `match_concepts`.

    Embeddings of stored crops are kept by path, because the same memory is asked at every turn that shows an image.
    """

    def __init__(
        self,
        detector: Detector,
        encoder: ImageEncoder,
        threshold: float = 0.5,
        metric: str = "cosine",
        top_k: int = 4,
    ):
        self.detector, self.encoder = detector, encoder
        self.threshold, self.metric, self.top_k = threshold, metric, top_k
        self._vectors: dict[tuple[str, int], np.ndarray] = {}

    def crop(self, path: str | Path, class_name: str, folder: str | Path) -> str | None:
        """Cuts the object that `class_name` means out of the image at `path`, into `folder`: the crop's path, or None.

        Named by its pixels, so the same crop is the same file.
        """
        patch = crop_concept(read_image(path), class_name, self.detector, self.encoder)
        if patch is None:
            return None
        target = (
            Path(folder)
            / f"concept_{hashlib.sha256(patch.tobytes() + bytes(str(patch.size), 'ascii')).hexdigest()[:16]}.png"
        )
        target.parent.mkdir(parents=True, exist_ok=True)
        patch.save(target)
        return str(target)

    def vector(self, path: str) -> np.ndarray:
        """The (d,) embedding of the image at `path`."""
        key = (path, Path(path).stat().st_mtime_ns)
        if key not in self._vectors:
            self._vectors[key] = self.encoder.images([read_image(path)])[0]
        return self._vectors[key]

    def recognize(self, query: Turn, view) -> list[SemanticMemory]:
        """The semantic memories of the MemoryView `view` whose concept one of the query's images shows, best first.

        The crops of one description and class are one concept: its nearest crop decides, and that memory stands for it.
        """
        memories = {memory.concept: memory for memory in view.semantic if memory.concept}
        known = [(concept, self.vector(concept.crop)) for concept in memories]
        best: dict[tuple[str, str], tuple[float, VisualConcept]] = {}
        for path in query.images:
            found = match_concepts(
                read_image(path), known, self.detector, self.encoder, self.threshold, self.metric
            )
            for concept, similarity in found:
                thing = (concept.description.casefold(), concept.class_name.casefold())
                if thing not in best or similarity > best[thing][0]:
                    best[thing] = similarity, concept
        return [
            memories[concept]
            for _, concept in sorted(best.values(), key=lambda hit: -hit[0])[: self.top_k]
        ]
