"""Where a model's weights lie, and how they are loaded."""

import json
import os
from pathlib import Path

import torch
import transformers
from peft import PeftModel
from transformers import AutoConfig, AutoModelForImageTextToText, BitsAndBytesConfig
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

from personavlm_lib.caching import fingerprint
from personavlm_lib.models.nano import ImageOnly

SOURCE = "source.json"


MAX_PIXELS = 230_400  # of one image (paper, Table 3): at most 294 tokens


def write_source(folder: Path, base: str | Path, adapter: str | Path = "") -> None:
    """Makes `folder` a model without weights of its own: `base`, and `adapter` (if any), which is merged into it
    whenever it is loaded. Each is a hub id or a folder, which is then kept as seen from this one."""
    folder.mkdir(parents=True, exist_ok=True)
    named = {"base": base, "adapter": adapter}
    named = {
        key: os.path.relpath(n, folder) if n and Path(n).exists() else str(n)
        for key, n in named.items()
    }
    (folder / SOURCE).write_text(json.dumps(named))


def follow_source(source: str | Path) -> tuple[str, list[str]]:
    """Where the weights and the processor of a model lie, and the adapters on the way there, the innermost first."""
    adapters: list[str] = []
    while (file := Path(source) / SOURCE).is_file():
        named = json.loads(file.read_text())
        base, adapter = (
            str(p) if name and (p := file.parent / name).exists() else name
            for name in named.values()
        )
        adapters, source = [adapter] * bool(adapter) + adapters, base
    return str(source), adapters


def weights_fingerprint(source: str | Path) -> list[str]:
    """Fingerprints of all that a model's weights come from: the base, then the adapters."""
    base, adapters = follow_source(source)
    return [fingerprint(Path(part)) for part in (base, *adapters)]


def load_model(source: str | Path, *more: str | Path, four_bit: bool = False):
    """The model of a hub id or folder with its adapters, and `more` of them, merged: on a GPU in the precision that its
    weights are kept in, else in float32, because processors that only emulate bfloat16 are many times slower with it.

    `four_bit` loads the weights as 4-bit NF4, which needs a GPU and bitsandbytes (ImportError without). Turns cuDNN's
    attention off for the process.
    """
    torch.backends.cuda.enable_cudnn_sdp(
        False
    )  # plans anew, for 80 ms, at every length not met before: at each token
    base, adapters = follow_source(source)
    dtype = "auto" if torch.cuda.is_available() else torch.float32
    bits = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
    )
    given = dict(quantization_config=bits) if four_bit else {}
    model = AutoModelForImageTextToText.from_pretrained(base, dtype=dtype, **given)
    for adapter in (*adapters, *more):
        model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    return model


def load_processor(source: str | Path):
    """The processor of a hub id or folder, for images alone: no video is ever shown. ValueError for none."""
    base = follow_source(source)[0]
    try:
        kind = getattr(
            transformers, PROCESSOR_MAPPING_NAMES[AutoConfig.from_pretrained(base).model_type]
        )
    except OSError as error:
        missing = (
            "is no folder with a model, nor one of the hub that is in its cache or can be reached"
        )
        raise ValueError(f"model {base} {missing}: check the name, or fetch it first") from error
    processor = type("ImageOnlyProcessor", (ImageOnly, kind), {}).from_pretrained(base)
    size = processor.image_processor.size
    if (
        "longest_edge" in size
    ):  # so the Qwen-VL family calls it, and it bounds the area; a true edge is far below it
        size["longest_edge"] = min(size["longest_edge"], MAX_PIXELS)
    return processor
