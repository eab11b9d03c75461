"""Tiny random models of several architectures, each in a folder with the processor and the template of its kind."""

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
    LlavaOnevisionImageProcessorPil,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from personavlm_lib.models.nano import ImageOnly

QWEN = (
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for c in m.content %}{% if c.type == 'image' %}IMAGE"
    "{% else %}{{ c.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Images come before the text, and no line break after a turn. (The real one also puts a space after the role of a turn
# that is over, and none before one to be written: what was written after none stays so.)
LLAVA = (
    "{% for m in messages %}<|im_start|>{{ m.role }}{% for c in m.content if c.type == 'image' %}<image>{% endfor %}"
    "{% for c in m.content if c.type == 'text' %}{{ '\n' ~ c.text }}{% endfor %}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# A beginning that is said once, turns that no marker opens, and an end that no other family uses.
IDEFICS = (
    "<|im_start|>{% for m in messages %}{{ m.role | capitalize }}{{ ':' if m.content[0].type == 'image' else ': ' }}"
    "{% for c in m.content %}{% if c.type == 'image' %}<image>{% else %}{{ c.text }}{% endif %}{% endfor %}"
    "<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)
TEXT = dict(
    hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
    max_position_embeddings=2048, head_dim=16, bos_token_id=None,
)  # fmt: skip
EYE = dict(hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
SMALL = {"height": 28, "width": 28}


def tokenizer_with(special, end, **named):
    """Bytes and special tokens."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([*special, "<pad>"])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=end,
        pad_token="<pad>",
        padding_side="left",
        extra_special_tokens=named,
    )


def parts(kind):
    """(configuration, arguments of the processor's class, that class)."""
    if kind in ("qwen2_5_vl", "qwen3_vl"):
        tokenizer = tokenizer_with(QWEN, "<|im_end|>")
        ids = {
            f"{n}_token_id": tokenizer.convert_tokens_to_ids(f"<|{n}|>")
            for n in ("vision_start", "vision_end")
        }
        ids |= {
            f"{n}_token_id": tokenizer.convert_tokens_to_ids(f"<|{n}_pad|>")
            for n in ("image", "video")
        }
        size, rope = (
            len(tokenizer),
            {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0},
        )
        text = TEXT | dict(vocab_size=size, rope_parameters=rope)
        pixels = dict(min_pixels=56 * 56, max_pixels=84 * 84)
        eye = dict(
            depth=2,
            hidden_size=32,
            intermediate_size=32,
            num_heads=2,
            out_hidden_size=32,
            patch_size=14,
        )
        if kind == "qwen2_5_vl":
            eye |= dict(window_size=56, fullatt_block_indexes=[1])
            config, made = transformers.Qwen2_5_VLConfig, transformers.Qwen2_5_VLProcessor
        else:
            eye |= dict(num_position_embeddings=36, deepstack_visual_indexes=[0])
            config, made = transformers.Qwen3VLConfig, transformers.Qwen3VLProcessor
        template = CHAT.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>")
        images = Qwen2VLImageProcessorPil(**pixels)
        return (
            config(text_config=text, vision_config=eye, **ids),
            (images, tokenizer, template),
            {},
            made,
        )
    if kind == "internvl":
        named = dict(
            start_image_token="<img>", end_image_token="</img>", context_image_token="<IMG_CONTEXT>"
        )
        tokenizer = tokenizer_with(QWEN[:2], "<|im_end|>", video_token="<video>", **named)
        image = tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>")
        config = transformers.InternVLConfig(
            text_config=TEXT | dict(model_type="qwen2", vocab_size=len(tokenizer)), image_token_id=image,
            vision_config=EYE | dict(image_size=[28, 28], patch_size=[7, 7]), image_seq_length=4,
        )  # fmt: skip
        images = GotOcr2ImageProcessorPil(size=SMALL, max_patches=3, crop_to_patches=True)
        template = CHAT.replace("IMAGE", "<IMG_CONTEXT>\n")
        return (
            config,
            (images, tokenizer, template),
            dict(image_seq_length=4),
            transformers.InternVLProcessor,
        )
    if kind == "llava_onevision":
        tokenizer = tokenizer_with((*QWEN[:2], "<image>", "<video>"), "<|im_end|>")
        grid = [[28, 28], [28, 56], [56, 28], [56, 56]]
        config = transformers.LlavaOnevisionConfig(
            text_config=TEXT | dict(model_type="qwen2", vocab_size=len(tokenizer)), image_grid_pinpoints=grid,
            vision_config=EYE | dict(model_type="siglip_vision_model", image_size=28, patch_size=7),
            image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
            video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        )  # fmt: skip
        images = LlavaOnevisionImageProcessorPil(size=SMALL, image_grid_pinpoints=grid)
        more = dict(num_image_tokens=16, vision_feature_select_strategy="full")
        return config, (images, tokenizer, LLAVA), more, transformers.LlavaOnevisionProcessor
    tokenizer = tokenizer_with(
        ("<|im_start|>", "<image>", "<fake_token_around_image>"), "<end_of_utterance>"
    )
    tokenizer.bos_token = "<|im_start|>"
    config = transformers.Idefics3Config(
        text_config=TEXT | dict(model_type="llama", vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id),
        vision_config=EYE | dict(image_size=28, patch_size=7), scale_factor=2, pad_token_id=tokenizer.pad_token_id,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    images = Idefics3ImageProcessorPil(
        size={"longest_edge": 56}, max_image_size={"longest_edge": 28}
    )
    return (
        config,
        (images, tokenizer, IDEFICS),
        dict(image_seq_len=4),
        transformers.Idefics3Processor,
    )


KINDS = ("qwen2_5_vl", "qwen3_vl", "internvl", "llava_onevision", "idefics3")


@pytest.fixture(scope="session", params=KINDS)
def architecture(request, tmp_path_factory):
    """A folder with a model and a processor, to be loaded by its path."""
    folder = tmp_path_factory.mktemp(request.param)
    config, (images, tokenizer, template), more, made = parts(request.param)
    config.tie_word_embeddings = config.text_config.tie_word_embeddings = (
        False  # else it repeats itself for ever
    )
    torch.manual_seed(0)
    model = transformers.AutoModelForImageTextToText.from_config(config)
    for (
        name,
        parameter,
    ) in model.named_parameters():  # so large that what it says depends on all that it is told
        if parameter.dim() > 1:
            torch.nn.init.normal_(
                parameter, std=1.0 if "embed_tokens" in name or "visual" in name else 0.2
            )
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    made = type(made.__name__, (ImageOnly, made), {})
    made(images, tokenizer, chat_template=template, **more).save_pretrained(folder)
    return folder
