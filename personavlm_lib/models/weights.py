"""Locate and load a model's weights and its processor."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import PeftModel
from transformers import AutoConfig, AutoModelForImageTextToText, BitsAndBytesConfig
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

from personavlm_lib.caching import fingerprint
from personavlm_lib.models.gguf import SMOLLM2, smollm2_folder
from personavlm_lib.models.nano import ImageOnly

SOURCE = "source.json"
# Model types whose processor cannot do without its video part -> one that treats images the same.
PROCESSOR_ALIASES = {"smolvlm": "idefics3"}
MAX_PIXELS = 230_400  # per image (paper, Table 3): at most 294 tokens


def write_source(folder: Path, base: str | Path, adapter: str | Path = "") -> None:
    """Make `folder` a model that has no weights of its own but refers to `base` and `adapter`.

    The adapter, if any, is merged into the base each time the model is loaded. Each of the two is
    a hub id or a folder; a folder is stored as a path relative to `folder`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    record = {"base": _relative(base, folder), "adapter": _relative(adapter, folder)}
    (folder / SOURCE).write_text(json.dumps(record), encoding="utf-8")


def _relative(location: str | Path, folder: Path) -> str:
    """A folder's path relative to `folder`; a hub id or "" as it is."""
    if location and Path(location).exists():
        return os.path.relpath(location, folder)
    return str(location)


def follow_source(source: str | Path) -> tuple[str, list[str]]:
    """Return where a model's weights and processor are, and its adapters in merging order.

    The source "smollm2" is a folder in the user's cache (`models.gguf.smollm2_folder`).
    """
    location = str(source)
    adapters: list[str] = []
    while True:
        if location == SMOLLM2:
            location = str(smollm2_folder())
        file = Path(location) / SOURCE
        if not file.is_file():
            return location, adapters
        record = json.loads(file.read_text(encoding="utf-8"))
        if record["adapter"]:
            adapters.insert(0, _resolve(record["adapter"], file.parent))
        location = _resolve(record["base"], file.parent)


def _resolve(name: str, folder: Path) -> str:
    """The inverse of `_relative`."""
    path = folder / name
    return str(path) if name and path.exists() else name


def weights_fingerprint(source: str | Path) -> list[str]:
    """Fingerprints of everything that a model's weights come from: the base, then the adapters."""
    base, adapters = follow_source(source)
    return [fingerprint(Path(part)) for part in (base, *adapters)]


@dataclass(frozen=True)
class LoadSettings:
    """How weights are loaded; in a profile, beside the model's stage.

    four_bit: as 4-bit NF4, which needs a GPU and bitsandbytes.
    device_map: of transformers, such as "auto" for several GPUs; "" for one device.
    attention: implementation of attention, such as "sdpa" or "eager"; "" for the model's default.
    """

    four_bit: bool = False
    device_map: str = ""
    attention: str = ""


STORED_WEIGHTS = LoadSettings()


def load_model(
    source: str | Path, *more: str | Path, settings: LoadSettings = STORED_WEIGHTS
) -> Any:
    """Load the model of a hub id or folder, with its own adapters and those in `more` merged.

    On a GPU, weights keep the precision in which they are stored. On a CPU they are float32,
    because processors that only emulate bfloat16 are many times slower with it. Raises ImportError
    for four bits without bitsandbytes. Turns cuDNN's attention off for the whole process.
    """
    # cuDNN's attention spends 80 ms on a new plan for every new length, that is, at every token.
    torch.backends.cuda.enable_cudnn_sdp(False)
    base, adapters = follow_source(source)
    arguments: dict[str, Any] = {"dtype": torch.float32}
    if torch.cuda.is_available():
        arguments["dtype"] = "auto"
    if settings.device_map:
        arguments["device_map"] = settings.device_map
    if settings.attention:
        arguments["attn_implementation"] = settings.attention
    if settings.four_bit:
        arguments["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
        )
    model = AutoModelForImageTextToText.from_pretrained(base, **arguments)
    for adapter in (*adapters, *more):
        model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    return model


def load_processor(source: str | Path) -> Any:
    """Load the processor of a hub id or folder, without its video part.

    Bounds the image size by MAX_PIXELS in the Qwen-VL family. Raises ValueError if there is no
    model at `source`, or one that sees no pictures.
    """
    base, _ = follow_source(source)
    try:
        config = AutoConfig.from_pretrained(base)
    except OSError as error:
        raise ValueError(
            f"Cannot find model {base}: neither a folder with a model, nor a hub model that is "
            "cached or can be downloaded. Check the name, or download the model first."
        ) from error
    if config.model_type not in PROCESSOR_MAPPING_NAMES:
        raise ValueError(
            f"{base} is a {config.model_type} model, which reads text only: choose a model that "
            "also sees pictures"
        )
    model_type = PROCESSOR_ALIASES.get(config.model_type, config.model_type)
    stock_class = getattr(transformers, PROCESSOR_MAPPING_NAMES[model_type])
    image_only_class: Any = type("ImageOnlyProcessor", (ImageOnly, stock_class), {})
    processor = image_only_class.from_pretrained(base)
    size = processor.image_processor.size
    # The Qwen-VL family uses "longest_edge" for the area in pixels. In other families it is the
    # length of an edge, which is far below MAX_PIXELS.
    if "longest_edge" in size:
        size["longest_edge"] = min(size["longest_edge"], MAX_PIXELS)
    return processor
