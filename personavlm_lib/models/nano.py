"""The offline model: the Qwen2.5-VL architecture at a five-thousandth of the size, with a tokenizer of whole words.

The architecture, the processor and the chat template are the real ones; only the sizes and the tokenizer are ours.
"""

import re
from collections.abc import Iterable
from datetime import datetime, timedelta
from pathlib import Path

import torch
import trl
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from personavlm_lib.memory.records import TRAITS

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
           "<|video_pad|>")  # fmt: skip
TAGS = tuple(f"<{slash}{tag}>" for tag in ("think", "retrieve", "answer") for slash in ("", "/"))
KEYS = ("reason", "decision", "content", "keywords", "topic_summary", "source_dialog_indices", "start_time", "end_time",
        *TRAITS)  # fmt: skip
# A piece is a word with the space before it, a key that the output grammar fixes, with its quotes, the rest of another
# key after its word, a date, a time, a letter of an option.
FIXED = "|".join(KEYS)
PIECE = (
    rf""" ?"(?:{FIXED})":| ?":| ?\d{{4}}-\d{{2}}-\d{{2}}| ?\d{{2}}:\d{{2}}"""
    r"""| ?\([a-d]\)| ?[A-Za-z]+| ?\d+| ?\n| ?[^\sA-Za-z\d]| """
)
_OWN = rf"""(?!(?:{FIXED})")[a-z]+":"""  # a key that a user's life brings, after its first quote
FIRST_DAY, DAYS = datetime(2024, 3, 1), 214


class ImageOnly:
    """Before a processor's class: without its video processor, which needs torchvision; for images the stock one."""

    @classmethod
    def get_attributes(cls) -> list[str]:
        return [name for name in super().get_attributes() if name != "video_processor"]


class ImageOnlyProcessor(ImageOnly, Qwen2_5_VLProcessor):
    """Qwen2_5_VLProcessor for images alone."""


def build_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """A tokenizer whose vocabulary is every piece of `texts`, all dates and times of the world, and the 256 bytes.

    A word stands for itself wherever it stands (a line break counts as a word, and every line begins with a space
    inside): looking up is induction, and induction needs the same token in the memory and in the reasoning. So a key
    such as `"pottery":` is read as `" pottery":`, and its word is the word that the user said.
    """
    normaliser = normalizers.Sequence([
        normalizers.Replace("\n", "\n "), normalizers.Prepend(" "), normalizers.Replace(Regex(f'"(?={_OWN})'), '" '),
        normalizers.Replace(Regex(" {2,}"), " "), normalizers.Replace(Regex(" $"), ""),
    ])  # fmt: skip
    tags = re.compile("|".join(map(re.escape, (*SPECIAL, *TAGS))))
    pieces: set[str] = set()
    for text in texts:
        for part in tags.split(text):
            pieces.update(re.findall(PIECE, normaliser.normalize_str(part)) if part else [])
    dates = [f" {FIRST_DAY + timedelta(days=i):%Y-%m-%d}" for i in range(DAYS)]
    times = [f" {h:02d}:{m:02d}" for h in range(24) for m in (*range(0, 60, 5), 59)]
    vocabulary = [f"<0x{byte:02X}>" for byte in range(256)]
    vocabulary += sorted(
        pieces.union(dates, times, (f" {n}" for n in range(101)), "abcdefghijklmnopqrstuvwxyz")
    )
    tokenizer = Tokenizer(
        models.BPE(
            {p: i for i, p in enumerate(vocabulary)}, [], byte_fallback=True, ignore_merges=True
        )
    )
    tokenizer.normalizer = normaliser
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(PIECE), "isolated")
    tokenizer.decoder = decoders.Sequence([
        decoders.ByteFallback(), decoders.Fuse(), decoders.Replace("\n ", "\n"), decoders.Strip(" ", 1, 0),
        decoders.Replace(Regex(f'" (?={_OWN})'), '"'),
    ])  # fmt: skip
    tokenizer.add_tokens([AddedToken(tag, normalized=False) for tag in TAGS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", padding_side="left",
        additional_special_tokens=[t for t in SPECIAL if t not in ("<|im_end|>", "<|endoftext|>")],
    )  # fmt: skip


def build_processor(tokenizer: PreTrainedTokenizerFast) -> ImageOnlyProcessor:
    """The stock Qwen2.5-VL processing for scenes of 84 x 84 pixels (9 tokens); crops take at least 4."""
    template = (Path(trl.__file__).parent / "chat_templates" / "qwen2_5_vl.jinja").read_text()
    images = Qwen2VLImageProcessorPil(min_pixels=56 * 56, max_pixels=84 * 84)
    return ImageOnlyProcessor(images, tokenizer, chat_template=template)


def build_model(
    tokenizer: PreTrainedTokenizerFast, width: int = 128, layers: int = 4, look_back: bool = True
) -> Qwen2_5_VLForConditionalGeneration:
    """A model of about 1.5 M parameters (heads of 32; vision depth 3, width 96) that is yet to be trained.

    `look_back`: the first two layers start as heads that look up (see `_look_back`), if it has four heads and two
    layers; without, at random like the rest.
    """
    ids = {
        name: tokenizer.convert_tokens_to_ids(f"<|{name}|>")
        for name in ("vision_start", "vision_end")
    }
    config = Qwen2_5_VLConfig(
        text_config=dict(
            vocab_size=len(tokenizer), hidden_size=width, intermediate_size=3 * width, num_hidden_layers=layers,
            num_attention_heads=width // 32, num_key_value_heads=width // 32, max_position_embeddings=4096,
            rope_parameters={"rope_type": "default", "mrope_section": [4, 6, 6], "rope_theta": 1e8},
            bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
            tie_word_embeddings=True,
        ),
        vision_config=dict(
            depth=3, hidden_size=96, intermediate_size=288, num_heads=3, out_hidden_size=width, patch_size=14,
            spatial_merge_size=2, temporal_patch_size=2, window_size=112, fullatt_block_indexes=[0, 1, 2],
        ),
        image_token_id=tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        video_token_id=tokenizer.convert_tokens_to_ids("<|video_pad|>"),
        vision_start_token_id=ids["vision_start"], vision_end_token_id=ids["vision_end"], tie_word_embeddings=True,
    )  # fmt: skip
    model = Qwen2_5_VLForConditionalGeneration(config)
    # The default deviation of 0.02 is a few of Adam's steps: words of a kind (all drinks) then drift to one point
    # before the model can tell them apart, and it does not learn to look up in five times the steps it needs with 0.1.
    torch.nn.init.normal_(model.get_input_embeddings().weight, std=0.1)
    if look_back and layers > 1 and width >= 128:
        _look_back(model)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


@torch.no_grad()
def _look_back(model: Qwen2_5_VLForConditionalGeneration) -> None:
    """Starts the first two layers where looking up ends: what came before this word, and where did that come before?

    Three heads of layer 0 look one, two and three words back, by their biases and the rotation of positions, and write
    what they find into subspaces of their own. Layer 1 compares what is 0, 1, 2 words before the present with what is
    1, 2, 3 words before each earlier word, in random projections, and copies that word. So `bob drink is` finds `bob
    drink is cola` among the drinks of others. All of it is trained on. From the usual start the same recipe has hardly
    begun to look up when this one does: `results/backbone/starts.jsonl` has both (after "Mimetic Initialization of
    Self-Attention Layers", Trockman and Kolter 2023).
    """
    config = model.config.text_config
    width, heads = config.hidden_size, config.num_attention_heads
    size, half = width // heads, width // heads // 2
    turn = config.rope_parameters["rope_theta"] ** (
        -torch.arange(half) / half
    )  # radians a word, fastest first
    first, second = (layer.self_attn for layer in model.model.language_model.layers[:2])
    space = torch.linalg.qr(torch.randn(width, width))[0].split(
        size, dim=1
    )  # the word's own, then those before it
    strength = (5 * size**0.5 / (1 - turn.cos()).sum()) ** 0.5  # a neighbour's logit is five lower
    for head in range(3):
        rows, back = slice(head * size, (head + 1) * size), head + 1
        first.q_proj.bias[rows] = strength * torch.cat([(back * turn).cos(), -(back * turn).sin()])
        first.k_proj.bias[rows] = strength * torch.cat([torch.ones(half), torch.zeros(half)])
        first.v_proj.weight[rows] = space[0].T
        first.o_proj.weight[:, rows] = 0.3 * space[back]
    slow = [
        i + offset for offset in (0, half) for i in range(half) if turn[i] < 1.1e-3
    ]  # hardly turned in 1,000 words
    copied = torch.linalg.qr(torch.randn(width, width))[0]
    for head in range(heads):
        rows = slice(head * size, (head + 1) * size)
        for back in range(3):
            compared = torch.randn(len(slow), size) / len(slow) ** 0.5
            # of the word itself somewhat less: two words before count for more than one
            second.q_proj.weight[rows][slow] += (
                compared @ space[back].T * (0.67 if back == 0 else 1)
            )
            second.k_proj.weight[rows][slow] += compared @ space[back + 1].T
        second.v_proj.weight[rows] = copied[rows]
        second.o_proj.weight[:, rows] = copied[rows].T
