"""Visual concepts: detect objects in an image, and recognize those the user has shown (A.2, B.1).

The paper uses Grounding DINO and CLIP; both are loaded through transformers, by hub id or folder.
For offline use, a classical detector and a small CLIP of our own (`training/clip.py`) replace them.
The paper leaves the recognition threshold open. The authors' released code uses squared L2 < 1.0,
which is cosine > 0.5 (D8 in PAPER_MAP.md); that is the default here too.
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
from personavlm_lib.memory.view import MemoryView

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Detection:
    """An object in an image.

    `box` is (left, top, right, bottom) in pixels, `score` is in 0..1, `label` is None if unknown.
    """

    box: Box
    score: float
    label: str | None = None


class Detector(Protocol):
    def detect(self, image: Image.Image, names: Sequence[str] = ()) -> list[Detection]:
        """The objects in `image`, largest first. `names` are classes to look for, if supported."""
        ...


@dataclass(frozen=True)
class ClassicalDetector:
    """Detects regions that differ from the border color; needs no weights and ignores `names`.

    It is reliable on plain backgrounds. `contrast` is the minimum distance from the background in
    CIELAB; it is raised if the border itself is uneven, as in photographs. `min_area` is a fraction
    of the image's area; `join` (gaps to close) and `margin` (around boxes) are fractions of its
    longer side.
    """

    contrast: float = 12.0
    min_area: float = 0.01
    join: float = 0.012
    margin: float = 0.02

    def detect(self, image: Image.Image, names: Sequence[str] = ()) -> list[Detection]:
        small = image.convert("RGB")
        small.thumbnail((512, 512))
        lab = cv2.cvtColor(np.asarray(small, np.float32) / 255, cv2.COLOR_RGB2LAB)
        distance, unevenness = _background_distance(lab)
        foreground = distance > max(self.contrast, 3 * unevenness)
        mask = self._close_gaps(foreground.astype(np.uint8))

        height, width = mask.shape
        longer_side = max(width, height)
        pad = self.margin * longer_side
        scale = image.width / width
        _, labels, stats, _ = cv2.connectedComponentsWithStats(mask)
        sized_detections = []
        for component, (x, y, w, h, area) in enumerate(stats):
            is_background = component == 0
            if is_background or area < self.min_area * mask.size:
                continue
            edges = (x - pad, y - pad, x + w + pad, y + h + pad)
            box = _clip_box([scale * edge for edge in edges], image)
            score = min(1.0, distance[labels == component].mean() / 100)
            sized_detections.append((area, Detection(box, float(score))))
        sized_detections.sort(key=lambda pair: -pair[0])
        return [detection for _, detection in sized_detections]

    def _close_gaps(self, mask: np.ndarray) -> np.ndarray:
        longer_side = max(mask.shape)
        reach = 1 + 2 * round(self.join * longer_side / 2)
        return cv2.morphologyEx(mask, cv2.MORPH_CLOSE, np.ones((reach, reach), np.uint8))


def _background_distance(lab: np.ndarray) -> tuple[np.ndarray, float]:
    """Distance of each pixel from the median border color, and the border's median distance."""
    sides = [lab[0], lab[-1], lab[:, 0], lab[:, -1]]
    border = np.concatenate(sides)
    background = np.median(border, axis=0)
    border_distance = np.linalg.norm(border - background, axis=1)
    distance = np.linalg.norm(lab - background, axis=2)
    return distance, np.median(border_distance)


def _clip_box(edges: Sequence[float], image: Image.Image) -> Box:
    """Edges (left, top, right, bottom) rounded to pixels, within the image."""
    left, top, right, bottom = edges
    return (
        _clip(left, image.width),
        _clip(top, image.height),
        _clip(right, image.width),
        _clip(bottom, image.height),
    )


def _clip(edge: float, limit: int) -> int:
    return int(min(max(0, round(edge)), limit))


class GroundingDinoDetector:
    """Grounding DINO, or another zero-shot detector of transformers, by hub id or folder.

    Uses the detector's default thresholds, except for `threshold` on the score.
    """

    def __init__(self, model_id: str, device: str = "cpu", threshold: float = 0.25):
        self.processor = AutoProcessor.from_pretrained(model_id)
        model = AutoModelForZeroShotObjectDetection.from_pretrained(model_id)
        self.model = model.to(device).eval()
        self.threshold = threshold

    @torch.inference_mode()
    def detect(self, image: Image.Image, names: Sequence[str] = ()) -> list[Detection]:
        """The objects in `image`, largest first; without `names`, any "object" (A.2: salient)."""
        image = image.convert("RGB")
        labels = [f"a {name.lower()}" for name in names or ("object",)]
        inputs = self.processor(images=image, text=[labels], return_tensors="pt")
        inputs = inputs.to(self.model.device)
        outputs = self.model(**inputs)
        [result] = self.processor.post_process_grounded_object_detection(
            outputs,
            inputs.input_ids,
            threshold=self.threshold,
            target_sizes=[(image.height, image.width)],
        )
        detections = []
        rows = zip(result["boxes"], result["scores"], result["text_labels"], strict=True)
        for corners, score, label in rows:
            box = _clip_box(corners.tolist(), image)
            if _area(box) > 0:
                detections.append(Detection(box, float(score), label or None))
        return sorted(detections, key=lambda detection: -_area(detection.box))


def _area(box: Box) -> int:
    """Area in pixels; 0 for a box that is empty or has edges in the wrong order."""
    left, top, right, bottom = box
    return max(0, right - left) * max(0, bottom - top)


class ImageEncoder:
    """A CLIP model by hub id or folder: images and texts to L2-normalized rows of one space."""

    def __init__(self, path_or_id: str | Path, device: str = "cpu"):
        model = CLIPModel.from_pretrained(path_or_id)
        self.model = model.to(device).eval()  # type: ignore[arg-type]
        self.processor = CLIPImageProcessorPil.from_pretrained(path_or_id)
        self.tokenizer = AutoTokenizer.from_pretrained(path_or_id)

    @torch.inference_mode()
    def images(self, images: Sequence[Image.Image]) -> np.ndarray:
        """(n, d) float32 for n images of any size."""
        if not images:
            return self._no_rows()
        rgb_images = [image.convert("RGB") for image in images]
        pixels = self.processor(rgb_images, return_tensors="pt").pixel_values
        output = self.model.get_image_features(pixels.to(self.model.device))
        return _normalized(output.pooler_output)

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """(n, d) float32 for n texts, each cut to the positions of the text tower."""
        if not texts:
            return self._no_rows()
        max_length = self.model.config.text_config.max_position_embeddings
        ids, mask = tokenize(self.tokenizer, texts, max_length)
        ids = ids.to(self.model.device)
        mask = mask.to(self.model.device)
        output = self.model.get_text_features(ids, attention_mask=mask)
        return _normalized(output.pooler_output)

    def _no_rows(self) -> np.ndarray:
        return np.zeros((0, self.model.config.projection_dim), np.float32)


def tokenize(tokenizer, texts: Sequence[str], length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(n, t) token ids and attention mask, with t at most `length`.

    Each row ends with the end token, where CLIP pools, even if the tokenizer adds none.
    """
    end = tokenizer.eos_token_id
    rows = []
    for text in texts:
        tokens = [token for token in tokenizer(text).input_ids if token != end]
        rows.append(tokens[: length - 1] + [end])
    width = max(len(row) for row in rows)
    ids = []
    mask = []
    for row in rows:
        padding = width - len(row)
        ids.append(row + [end] * padding)
        mask.append([1] * len(row) + [0] * padding)
    return torch.tensor(ids), torch.tensor(mask)


def _normalized(features: torch.Tensor) -> np.ndarray:
    return torch.nn.functional.normalize(features.float(), dim=-1).cpu().numpy()


def crops(image: Image.Image, detections: Sequence[Detection]) -> list[Image.Image]:
    """The image patch of each detection."""
    return [image.crop(detection.box) for detection in detections]


def crop_concept(
    image: Image.Image, class_name: str, detector: Detector, encoder: ImageEncoder
) -> Image.Image | None:
    """The detected object that is nearest to `a {class_name}` in CLIP space (B.1).

    None if the detector finds no object.
    """
    detections = detector.detect(image, [class_name])
    patches = crops(image, detections)
    if not patches:
        return None
    patch_vectors = encoder.images(patches)
    [text_vector] = encoder.texts([f"a {class_name}"])
    nearest = np.argmax(patch_vectors @ text_vector)
    return patches[int(nearest)]


def match_concepts(
    image: Image.Image,
    concepts: Sequence[tuple[VisualConcept, np.ndarray]],
    detector: Detector,
    encoder: ImageEncoder,
    threshold: float = 0.5,
    metric: str = "cosine",
) -> list[tuple[VisualConcept, float]]:
    """The stored concepts that the image shows, with their similarity, best first (A.2).

    `concepts` are pairs of a concept and the (d,) embedding of its crop. Similarity is the cosine
    to the nearest detected object. With `metric` "cosine", a match is above `threshold`; with
    "squared_l2" (the release, at 1.0), its squared distance is below. Raises ValueError for other
    metrics.
    """
    if metric not in ("cosine", "squared_l2"):
        raise ValueError(f"metric is {metric!r}; choose cosine or squared_l2")
    min_cosine = threshold
    if metric == "squared_l2":
        min_cosine = 1 - threshold / 2  # |a - b|^2 = 2 - 2 cos for unit vectors
    if not concepts:
        return []
    names = sorted({concept.class_name for concept, _ in concepts})
    detections = detector.detect(image, names)
    if not detections:
        return []
    objects = encoder.images(crops(image, detections))
    vectors = np.stack([vector for _, vector in concepts])
    similarity = (objects @ vectors.T).max(axis=0)
    matches = []
    for (concept, _), cosine in zip(concepts, similarity, strict=True):
        if cosine > min_cosine:
            matches.append((concept, float(cosine)))
    return sorted(matches, key=lambda match: -match[1])


class ConceptRecognizer:
    """Crops and recognizes visual concepts with a detector and an encoder.

    `threshold` and `metric` are those of `match_concepts`; at most `top_k` concepts are recognized
    per query. Embeddings of stored crops are cached by path and modification time.
    """

    def __init__(
        self,
        detector: Detector,
        encoder: ImageEncoder,
        threshold: float = 0.5,
        metric: str = "cosine",
        top_k: int = 4,
    ):
        self.detector = detector
        self.encoder = encoder
        self.threshold = threshold
        self.metric = metric
        self.top_k = top_k
        self._vectors: dict[tuple[str, int], np.ndarray] = {}

    def crop(self, path: str | Path, class_name: str, folder: str | Path) -> str | None:
        """Crop the object named by `class_name` out of an image and save it in `folder`.

        Returns the path of the crop, or None if no object is found. The file name is a hash of the
        pixels, so the same crop is always the same file.
        """
        patch = crop_concept(read_image(path), class_name, self.detector, self.encoder)
        if patch is None:
            return None
        content = patch.tobytes() + str(patch.size).encode("ascii")
        digest = hashlib.sha256(content).hexdigest()
        target = Path(folder) / f"concept_{digest[:16]}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        patch.save(target)
        return str(target)

    def vector(self, path: str) -> np.ndarray:
        """The (d,) embedding of the image at `path`."""
        modified = Path(path).stat().st_mtime_ns
        key = (path, modified)
        if key not in self._vectors:
            image = read_image(path)
            [vector] = self.encoder.images([image])
            self._vectors[key] = vector
        return self._vectors[key]

    def recognize(self, query: Turn, view: MemoryView) -> list[SemanticMemory]:
        """The memories whose concept one of the query's images shows, best first.

        Crops with the same description and class are one concept: the memory of its most similar
        crop is returned.
        """
        memories = {}
        for memory in view.semantic:
            if memory.concept and Path(memory.concept.crop).is_file():
                memories[memory.concept] = memory
        concepts = [(concept, self.vector(concept.crop)) for concept in memories]
        best: dict[tuple[str, str], tuple[float, VisualConcept]] = {}
        for path in query.images:
            image = read_image(path)
            matches = match_concepts(
                image, concepts, self.detector, self.encoder, self.threshold, self.metric
            )
            for concept, similarity in matches:
                identity = (concept.description.casefold(), concept.class_name.casefold())
                if identity not in best or similarity > best[identity][0]:
                    best[identity] = (similarity, concept)
        ranked = sorted(best.values(), key=lambda match: -match[0])
        return [memories[concept] for _, concept in ranked[: self.top_k]]
