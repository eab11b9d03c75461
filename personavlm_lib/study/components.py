"""From what a profile names to the thing itself, where that is more than one class can say."""

from pathlib import Path

import torch

from personavlm_lib.memory.vision import (
    ClassicalDetector,
    ConceptRecognizer,
    GroundingDinoDetector,
    ImageEncoder,
)
from personavlm_lib.models.chat import ChatModel
from personavlm_lib.models.endpoint import EndpointModel, is_endpoint
from personavlm_lib.models.local import LocalModel
from personavlm_lib.study.profiles import BACKBONE, require


def model_source(run: str, named: str) -> str | Path:
    """Where a model of the profile's `models` is: the folder that a stage left, or the server that is named."""
    return named if is_endpoint(named) else require(run, named) / "model"


def open_model(source: str | Path, adapter: str | Path | None = None, name: str = "") -> ChatModel:
    """The model that answers: of a folder or hub id in this process, or of a server, `http://host:port/v1#model`."""
    return (
        EndpointModel(str(source), name=name)
        if is_endpoint(source)
        else LocalModel(source, adapter, name=name)
    )


def open_recognizer(detector: str, image_encoder: str) -> ConceptRecognizer:
    """`detector`: "classical", or a zero-shot detector by hub id or folder (the paper: Grounding DINO).
    `image_encoder`: "nano", the small one kept in results/backbone/clip, or a CLIP by hub id or folder."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    finder = (
        ClassicalDetector() if detector == "classical" else GroundingDinoDetector(detector, device)
    )
    if image_encoder == "nano":
        return ConceptRecognizer(finder, ImageEncoder(BACKBONE / "clip", device), threshold=0.7)
    return ConceptRecognizer(finder, ImageEncoder(image_encoder, device))
