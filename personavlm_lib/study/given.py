"""From what a profile names to the thing itself, where that is more than one class can say."""

import torch

from personavlm_lib.memory.vision import ClassicalDetector, Eyes, GroundingDinoDetector, ImageEncoder
from personavlm_lib.study.profiles import BACKBONE


def open_eyes(detector: str, image_encoder: str) -> Eyes:
    """`detector`: "classical", or a zero-shot detector by hub id or folder (the paper: Grounding DINO).
    `image_encoder`: "nano", the small one kept in results/backbone/clip, or a CLIP by hub id or folder."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    finder = ClassicalDetector() if detector == "classical" else GroundingDinoDetector(detector, device)
    if image_encoder == "nano":
        return Eyes(finder, ImageEncoder(BACKBONE / "clip", device), threshold=0.7)
    return Eyes(finder, ImageEncoder(image_encoder, device))
