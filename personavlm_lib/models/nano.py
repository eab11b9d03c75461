"""The offline nano model: Qwen2.5-VL at 1/5000 of the size, with a whole-word tokenizer.

The architecture, the processor and the chat template are Qwen's; only the sizes and the tokenizer
are our own.
"""

import re
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import torch
import trl
import yaml
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from personavlm_lib.memory.records import TRAITS

_DATA: dict[str, Any] = yaml.safe_load(
    Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8")
)
VISION: dict[str, Any] = _DATA["vision"]
SPECIAL = tuple(_DATA["special"])
TAGS = ("<think>", "</think>", "<retrieve>", "</retrieve>", "<answer>", "</answer>")
KEYS = (*_DATA["keys"], *TRAITS)
# A piece of text that becomes one token: a key of the output grammar with its quotes, the rest of
# any other key after its word, a date, a time, an option's letter, a word, a number, a line break,
# any other character (each with the space before it), or a space.
FIXED = "|".join(KEYS)
PIECE = (
    rf""" ?"(?:{FIXED})":| ?":| ?\d{{4}}-\d{{2}}-\d{{2}}| ?\d{{2}}:\d{{2}}"""
    r"""| ?\([a-d]\)| ?[A-Za-z]+| ?\d+| ?\n| ?[^\sA-Za-z\d]| """
)
_USER_KEY = rf"""(?!(?:{FIXED})")[a-z]+":"""  # a key from a user's life, after its first quote
FIRST_DAY = datetime(2024, 3, 1)
DAYS = 214


class ImageOnly:
    """Mixin before a processor class: omits the video processor, which needs torchvision."""

    @classmethod
    def get_attributes(cls) -> list[str]:
        names = super().get_attributes()  # type: ignore[misc]  # the processor class's method
        return [name for name in names if name != "video_processor"]


class ImageOnlyProcessor(ImageOnly, Qwen2_5_VLProcessor):
    """Qwen2_5_VLProcessor without its video processor."""


def build_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Build a tokenizer of all pieces in `texts`, all dates and times of the world, and all bytes.

    A word is the same token at every position: a line break is a word of its own, and inside the
    tokenizer every line begins with a space. The model looks facts up by induction: it finds an
    earlier occurrence of the current words and copies the next word. That needs the same token in
    the memory and in the reasoning. Therefore a key such as `"pottery":` is read as `" pottery":`,
    so that its word is the token of the word that the user said.
    """
    normalizer = _build_normalizer()
    vocabulary = _build_vocabulary(texts, normalizer)
    token_ids = {piece: i for i, piece in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.BPE(token_ids, [], byte_fallback=True, ignore_merges=True))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(PIECE), "isolated")
    tokenizer.decoder = _build_decoder()
    tokenizer.add_tokens([AddedToken(tag, normalized=False) for tag in TAGS])
    return chat_tokenizer(tokenizer)


def chat_tokenizer(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """A tokenizer with the special tokens of Qwen2.5-VL; those that it lacks are added."""
    end = "<|im_end|>"
    padding = "<|endoftext|>"  # not the end of a turn, so that padding can be cut after it
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=end,
        pad_token=padding,
        padding_side="left",
        additional_special_tokens=[token for token in SPECIAL if token not in (end, padding)],
    )


def _build_normalizer() -> normalizers.Normalizer:
    return normalizers.Sequence(
        [
            normalizers.Replace("\n", "\n "),
            normalizers.Prepend(" "),
            normalizers.Replace(Regex(f'"(?={_USER_KEY})'), '" '),
            normalizers.Replace(Regex(" {2,}"), " "),
            normalizers.Replace(Regex(" $"), ""),
        ]
    )


def _build_decoder() -> decoders.Decoder:
    return decoders.Sequence(
        [
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Replace("\n ", "\n"),
            decoders.Strip(" ", 1, 0),
            decoders.Replace(Regex(f'" (?={_USER_KEY})'), '"'),
        ]
    )


def _build_vocabulary(texts: Iterable[str], normalizer: normalizers.Normalizer) -> list[str]:
    """The 256 bytes, then all pieces in alphabetical order."""
    tags = re.compile("|".join(map(re.escape, (*SPECIAL, *TAGS))))
    pieces: set[str] = set("abcdefghijklmnopqrstuvwxyz")
    for text in texts:
        for part in tags.split(text):
            if part:
                normalized = normalizer.normalize_str(part)
                pieces.update(re.findall(PIECE, normalized))
    for day in range(DAYS):
        date = FIRST_DAY + timedelta(days=day)
        pieces.add(f" {date:%Y-%m-%d}")
    for hour in range(24):
        for minute in (*range(0, 60, 5), 59):
            pieces.add(f" {hour:02d}:{minute:02d}")
    for number in range(101):
        pieces.add(f" {number}")
    all_bytes = [f"<0x{byte:02X}>" for byte in range(256)]
    return all_bytes + sorted(pieces)


def build_processor(
    tokenizer: PreTrainedTokenizerFast, max_pixels: int = 84 * 84
) -> ImageOnlyProcessor:
    """Build Qwen2.5-VL's processor for pictures of at most `max_pixels`; larger ones are reduced.

    A token stands for 28 x 28 pixels: a scene of 84 x 84 has 9 tokens, crops have at least 4.
    """
    templates = Path(trl.__file__).parent / "chat_templates"
    template = (templates / "qwen2_5_vl.jinja").read_text(encoding="utf-8")
    images = Qwen2VLImageProcessorPil(min_pixels=56 * 56, max_pixels=max_pixels)
    return ImageOnlyProcessor(images, tokenizer, chat_template=template)


def build_model(
    tokenizer: PreTrainedTokenizerFast, width: int = 128, layers: int = 4, look_back: bool = True
) -> Qwen2_5_VLForConditionalGeneration:
    """Build an untrained model of about 1.5 M parameters (heads of 32; vision depth 3, width 96).

    With `look_back`, and if it has at least four heads and two layers, the first two layers are
    initialized as heads that look up (see `_init_lookup_heads`); otherwise at random as the rest.
    """
    model = build_random_model(tokenizer, _text_config(width, layers))
    # The default deviation of 0.02 is only a few of Adam's steps: words of one kind (all drinks)
    # then drift to one point before the model can tell them apart, and lookup is not learned in
    # five times the steps that it takes with 0.1.
    embeddings = model.get_input_embeddings()
    assert isinstance(embeddings, torch.nn.Embedding)
    torch.nn.init.normal_(embeddings.weight, std=0.1)
    if look_back and layers > 1 and width >= 128:
        _init_lookup_heads(model)
    return model


def build_random_model(
    tokenizer: Any, text_config: dict[str, Any]
) -> Qwen2_5_VLForConditionalGeneration:
    """Build a random Qwen2.5-VL with a small vision tower and tied embeddings.

    `text_config` sets the language model, apart from the vocabulary and special tokens, which are
    those of `tokenizer` (see `chat_tokenizer`).
    """
    vocabulary = dict(
        vocab_size=len(tokenizer),
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
    )
    config = Qwen2_5_VLConfig(
        text_config=text_config | vocabulary,
        vision_config=VISION | {"out_hidden_size": text_config["hidden_size"]},
        image_token_id=tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        video_token_id=tokenizer.convert_tokens_to_ids("<|video_pad|>"),
        vision_start_token_id=tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=tokenizer.convert_tokens_to_ids("<|vision_end|>"),
        tie_word_embeddings=True,
    )
    return Qwen2_5_VLForConditionalGeneration(config)


def _text_config(width: int, layers: int) -> dict[str, Any]:
    return dict(
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 32,
        num_key_value_heads=width // 32,
        max_position_embeddings=4096,
        rope_parameters={"rope_type": "default", "mrope_section": [4, 6, 6], "rope_theta": 1e8},
    )


@torch.no_grad()
def _init_lookup_heads(model: Qwen2_5_VLForConditionalGeneration) -> None:
    """Initialize the first two layers as a two-layer induction circuit, to which lookup converges.

    Layer 0 collects the previous words, layer 1 finds where the same words came before. So `bob
    drink is` finds `bob drink is cola` among the drinks of others. Training then changes all of
    these weights. With the usual random initialization, the same recipe learns lookup much later:
    `results/backbone/starts.jsonl` has both curves. The idea is from "Mimetic Initialization of
    Self-Attention Layers" (Trockman and Kolter 2023).
    """
    config: Any = model.config.text_config
    width = config.hidden_size
    head_size = width // config.num_attention_heads
    half = head_size // 2
    base = config.rope_parameters["rope_theta"]
    frequencies = base ** (-torch.arange(half) / half)  # radians per word, fastest first
    # The subspaces of the word itself and of the words one, two, ... before it.
    subspaces = _random_orthogonal(width).split(head_size, dim=1)
    first, second = model.model.language_model.layers[:2]
    _init_previous_word_heads(first.self_attn, subspaces, frequencies)
    _init_matching_heads(second.self_attn, subspaces, frequencies)


def _random_orthogonal(size: int) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(size, size))[0]


def _init_previous_word_heads(
    attention: Any, subspaces: Sequence[torch.Tensor], frequencies: torch.Tensor
) -> None:
    """Make three heads attend one, two and three words back, by biases and rotary positions.

    Each writes the word that it attends to into a subspace of its own.
    """
    half = len(frequencies)
    head_size = 2 * half
    # With this strength, the attention logit of a neighboring position is five lower.
    drop_per_position = (1 - frequencies.cos()).sum()
    strength = (5 * head_size**0.5 / drop_per_position) ** 0.5
    key = torch.cat([torch.ones(half), torch.zeros(half)])
    for head in range(3):
        rows = slice(head * head_size, (head + 1) * head_size)
        distance = head + 1
        angles = distance * frequencies
        query = torch.cat([angles.cos(), -angles.sin()])
        attention.q_proj.bias[rows] = strength * query
        attention.k_proj.bias[rows] = strength * key
        attention.v_proj.weight[rows] = subspaces[0].T
        attention.o_proj.weight[:, rows] = 0.3 * subspaces[distance]


def _init_matching_heads(
    attention: Any, subspaces: Sequence[torch.Tensor], frequencies: torch.Tensor
) -> None:
    """Make all heads attend to words that follow the same words as the present position.

    They compare the words 0, 1, 2 before the present with the words 1, 2, 3 before each earlier
    word, in random projections, and copy that word.
    """
    half = len(frequencies)
    head_size = 2 * half
    width = attention.o_proj.weight.shape[0]
    # Dimensions that hardly rotate within 1,000 words: they compare words at any distance.
    first_half = [i for i in range(half) if frequencies[i] < 1.1e-3]
    second_half = [half + i for i in first_half]
    slow = first_half + second_half
    copied = _random_orthogonal(width)
    for head in range(width // head_size):
        rows = slice(head * head_size, (head + 1) * head_size)
        query_rows = attention.q_proj.weight[rows]
        key_rows = attention.k_proj.weight[rows]
        for distance in range(3):
            projection = torch.randn(len(slow), head_size) / len(slow) ** 0.5
            query = projection @ subspaces[distance].T
            key = projection @ subspaces[distance + 1].T
            if distance == 0:
                # The present word has less weight: two matching words before it outweigh one.
                query *= 0.67
            query_rows[slow] += query
            key_rows[slow] += key
        attention.v_proj.weight[rows] = copied[rows]
        attention.o_proj.weight[:, rows] = copied[rows].T
