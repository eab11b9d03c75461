"""Open the models that a profile names."""

from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from personavlm_lib.memory import vision
from personavlm_lib.models.chat import ChatModel
from personavlm_lib.models.endpoint import EndpointModel, EndpointSettings, is_endpoint
from personavlm_lib.models.local import LocalModel
from personavlm_lib.models.preflight import require_server
from personavlm_lib.models.weights import LoadSettings, weights_fingerprint
from personavlm_lib.study.profiles import BACKBONE, ProfileError, nearest, require

NANO_THRESHOLD = 0.7  # similarity from which the small image encoder recognizes an object again


Entry = str | dict[str, Any]  # of a profile's `models`: a model, or a mapping with its settings


def model_source(run: str, entry: Entry) -> str | Path:
    """Locate a model of a profile's `models`: a server, or the stage that wrote it."""
    name, _ = _split_entry(entry)
    return name if is_endpoint(name) else require(run, name) / "model"


def model_fingerprint(run: str, entry: Entry) -> list:
    """What identifies the replies of a model of a profile: its weights and its settings."""
    source = model_source(run, entry)
    _, settings = _split_entry(entry)
    identity: list = list(weights_fingerprint(source))
    if is_endpoint(source):
        settings = _endpoint_settings(settings).sampling()
    return [*identity, settings] if settings else identity


def entry_server(entry: Entry, name: str = "") -> EndpointModel | None:
    """The server of an entry with its settings, without any request; None for a stage."""
    source, settings = _split_entry(entry)
    if not is_endpoint(source):
        return None
    return EndpointModel(source, _endpoint_settings(settings), name=name)


def open_profile_model(
    run: str, entry: Entry, name: str = "", longest_prompt: str = ""
) -> ChatModel:
    """Open a model of a profile's `models` with its settings.

    A server is checked by `require_server` first. Raises ProfileError for an unknown setting.
    """
    server = entry_server(entry, name)
    if server is not None:
        require_server(server, longest_prompt)
        return server
    _, settings = _split_entry(entry)
    _check_names(settings, [field.name for field in fields(LoadSettings)])
    return LocalModel(model_source(run, entry), name=name, load=LoadSettings(**settings))


def open_model(source: str | Path) -> ChatModel:
    """Open a model of a folder or hub id in this process, or of a server, which is checked."""
    if is_endpoint(source):
        return open_profile_model("", str(source))
    return LocalModel(source)


def _split_entry(entry: Entry) -> tuple[str, dict[str, Any]]:
    """The model of an entry, and its settings."""
    if isinstance(entry, str):
        return entry, {}
    if "model" not in entry:
        raise ProfileError(f"models: {entry} lacks 'model', a stage or a server http://...#name")
    settings = {name: value for name, value in entry.items() if name != "model"}
    return entry["model"], settings


def _endpoint_settings(settings: dict[str, Any]) -> EndpointSettings:
    _check_names(settings, [field.name for field in fields(EndpointSettings)])
    return EndpointSettings(**settings)


def _check_names(settings: dict[str, Any], known: Iterable[str]) -> None:
    for name in settings:
        if name not in known:
            raise ProfileError(f"models: unknown setting {name!r} {nearest(name, known)}")


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
