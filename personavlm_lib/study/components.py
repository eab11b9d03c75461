"""Open the models that a profile names."""

from pathlib import Path

import torch

from personavlm_lib.memory import vision
from personavlm_lib.models.chat import ChatModel
from personavlm_lib.models.endpoint import EndpointModel, is_endpoint
from personavlm_lib.models.local import LocalModel
from personavlm_lib.study.profiles import BACKBONE, require

NANO_THRESHOLD = 0.7  # similarity from which the small image encoder recognizes an object again


def model_source(run: str, name: str) -> str | Path:
    """Locate a model of the profile's `models`: `name` is a server, or the stage that wrote it."""
    return name if is_endpoint(name) else require(run, name) / "model"


def open_model(source: str | Path, adapter: str | Path | None = None, name: str = "") -> ChatModel:
    """Open a chat model.

    `source` is a folder or hub id, loaded in this process, or a server `http://host:port/v1#model`.
    """
    if is_endpoint(source):
        return EndpointModel(str(source), name=name)
    return LocalModel(source, adapter, name=name)


def bundled_image_encoder() -> Path:
    """The folder of the small image encoder; FileNotFoundError if it is not there."""
    folder = BACKBONE / "clip"
    if not folder.is_dir():
        raise FileNotFoundError(
            f"the bundled image encoder {folder} is missing: use a checkout of the project, or "
            "restore the folder with 'git checkout results/backbone'"
        )
    return folder


def open_recognizer(detector: str, image_encoder: str) -> vision.ConceptRecognizer:
    """Open the recognizer of objects in images.

    detector: "classical", or a zero-shot detector by hub id or folder (the paper's is Grounding
    DINO). image_encoder: "nano", the small one in results/backbone/clip, or a CLIP by hub id or
    folder.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    object_detector: vision.Detector
    if detector == "classical":
        object_detector = vision.ClassicalDetector()
    else:
        object_detector = vision.GroundingDinoDetector(detector, device)
    if image_encoder == "nano":
        encoder = vision.ImageEncoder(bundled_image_encoder(), device)
        return vision.ConceptRecognizer(object_detector, encoder, threshold=NANO_THRESHOLD)
    return vision.ConceptRecognizer(object_detector, vision.ImageEncoder(image_encoder, device))
