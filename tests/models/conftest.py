"""Tiny random models of several architectures, each in a folder with its kind of processor."""

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
    LlavaOnevisionImageProcessorPil,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from personavlm_lib.models.nano import ImageOnly

TURN_TOKENS = ("<|im_start|>", "<|im_end|>")
QWEN_TOKENS = (*TURN_TOKENS, "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% for c in m.content %}{% if c.type == 'image' %}IMAGE{% else %}{{ c.text }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Images come before the text, and there is no line break after a turn. (The real template also puts
# a space after the role of a finished turn, but not before a turn that is to be generated: what was
# generated without the space stays without it.)
LLAVA_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}"
    "{% for c in m.content if c.type == 'image' %}<image>{% endfor %}"
    "{% for c in m.content if c.type == 'text' %}{{ '\n' ~ c.text }}{% endfor %}"
    "<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# One marker at the very beginning, no marker before a turn, and an end token of its own.
IDEFICS_TEMPLATE = (
    "<|im_start|>{% for m in messages %}{{ m.role | capitalize }}"
    "{{ ':' if m.content[0].type == 'image' else ': ' }}"
    "{% for c in m.content %}{% if c.type == 'image' %}<image>{% else %}{{ c.text }}{% endif %}"
    "{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
TEXT_CONFIG = dict(
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    max_position_embeddings=2048,
    head_dim=16,
    bos_token_id=None,
)
VISION_CONFIG = dict(
    hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
)
QWEN_VISION_CONFIG = dict(
    depth=2, hidden_size=32, intermediate_size=32, num_heads=2, out_hidden_size=32, patch_size=14
)
IMAGE_SIZE = {"height": 28, "width": 28}


def build_byte_tokenizer(special_tokens, end, **named):
    """A tokenizer of single bytes and special tokens."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: i for i, letter in enumerate(letters)}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([*special_tokens, "<pad>"])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=end,
        pad_token="<pad>",
        padding_side="left",
        extra_special_tokens=named,
    )


def processor_of(stock_class, *parts, **arguments):
    """A processor without its video part, under the name of the stock class."""
    image_only_class = type(stock_class.__name__, (ImageOnly, stock_class), {})
    return image_only_class(*parts, **arguments)


def qwen_parts(kind):
    tokenizer = build_byte_tokenizer(QWEN_TOKENS, "<|im_end|>")
    token_ids = dict(
        vision_start_token_id=tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=tokenizer.convert_tokens_to_ids("<|vision_end|>"),
        image_token_id=tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        video_token_id=tokenizer.convert_tokens_to_ids("<|video_pad|>"),
    )
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}
    text = TEXT_CONFIG | dict(vocab_size=len(tokenizer), rope_parameters=rope)
    if kind == "qwen2_5_vl":
        vision = QWEN_VISION_CONFIG | dict(window_size=56, fullatt_block_indexes=[1])
        config_class = transformers.Qwen2_5_VLConfig
        processor_class = transformers.Qwen2_5_VLProcessor
    else:
        vision = QWEN_VISION_CONFIG | dict(num_position_embeddings=36, deepstack_visual_indexes=[0])
        config_class = transformers.Qwen3VLConfig
        processor_class = transformers.Qwen3VLProcessor
    config = config_class(text_config=text, vision_config=vision, **token_ids)
    images = Qwen2VLImageProcessorPil(min_pixels=56 * 56, max_pixels=84 * 84)
    image_mark = "<|vision_start|><|image_pad|><|vision_end|>"
    template = CHAT_TEMPLATE.replace("IMAGE", image_mark)
    return config, processor_of(processor_class, images, tokenizer, chat_template=template)


def internvl_parts():
    tokenizer = build_byte_tokenizer(
        TURN_TOKENS,
        "<|im_end|>",
        video_token="<video>",
        start_image_token="<img>",
        end_image_token="</img>",
        context_image_token="<IMG_CONTEXT>",
    )
    text = dict(model_type="qwen2", vocab_size=len(tokenizer))
    vision = dict(image_size=[28, 28], patch_size=[7, 7])
    image_token = tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>")
    config = transformers.InternVLConfig(
        text_config=TEXT_CONFIG | text,
        vision_config=VISION_CONFIG | vision,
        image_token_id=image_token,
        image_seq_length=4,
    )
    images = GotOcr2ImageProcessorPil(size=IMAGE_SIZE, max_patches=3, crop_to_patches=True)
    template = CHAT_TEMPLATE.replace("IMAGE", "<IMG_CONTEXT>\n")
    processor = processor_of(
        transformers.InternVLProcessor,
        images,
        tokenizer,
        chat_template=template,
        image_seq_length=4,
    )
    return config, processor


def llava_onevision_parts():
    special_tokens = (*TURN_TOKENS, "<image>", "<video>")
    tokenizer = build_byte_tokenizer(special_tokens, "<|im_end|>")
    grid = [[28, 28], [28, 56], [56, 28], [56, 56]]
    vision = dict(model_type="siglip_vision_model", image_size=28, patch_size=7)
    text = dict(model_type="qwen2", vocab_size=len(tokenizer))
    image_token, video_token = tokenizer.convert_tokens_to_ids(["<image>", "<video>"])
    config = transformers.LlavaOnevisionConfig(
        text_config=TEXT_CONFIG | text,
        vision_config=VISION_CONFIG | vision,
        image_grid_pinpoints=grid,
        image_token_index=image_token,
        video_token_index=video_token,
    )
    images = LlavaOnevisionImageProcessorPil(size=IMAGE_SIZE, image_grid_pinpoints=grid)
    processor = processor_of(
        transformers.LlavaOnevisionProcessor,
        images,
        tokenizer,
        chat_template=LLAVA_TEMPLATE,
        num_image_tokens=16,
        vision_feature_select_strategy="full",
    )
    return config, processor


def idefics3_parts():
    special_tokens = ("<|im_start|>", "<image>", "<fake_token_around_image>")
    tokenizer = build_byte_tokenizer(special_tokens, "<end_of_utterance>")
    tokenizer.bos_token = "<|im_start|>"
    padding = tokenizer.pad_token_id
    text = dict(model_type="llama", vocab_size=len(tokenizer), pad_token_id=padding)
    vision = dict(image_size=28, patch_size=7)
    image_token = tokenizer.convert_tokens_to_ids("<image>")
    config = transformers.Idefics3Config(
        text_config=TEXT_CONFIG | text,
        vision_config=VISION_CONFIG | vision,
        scale_factor=2,
        pad_token_id=padding,
        image_token_id=image_token,
    )
    images = Idefics3ImageProcessorPil(
        size={"longest_edge": 56}, max_image_size={"longest_edge": 28}
    )
    processor = processor_of(
        transformers.Idefics3Processor,
        images,
        tokenizer,
        chat_template=IDEFICS_TEMPLATE,
        image_seq_len=4,
    )
    return config, processor


def smolvlm_parts():
    """As Idefics3, under the names of SmolVLM; its own processor cannot do without videos."""
    config, processor = idefics3_parts()
    text = config.text_config.to_dict()
    vision = config.vision_config.to_dict() | dict(model_type="smolvlm_vision")
    config = transformers.SmolVLMConfig(
        text_config=text,
        vision_config=vision,
        scale_factor=2,
        pad_token_id=config.pad_token_id,
        image_token_id=config.image_token_id,
    )
    return config, processor


# The start token stands at the very beginning, roles have names of their own, and layers alternate
# between a sliding window and the whole context.
GEMMA_TEMPLATE = (
    "<bos>{% for m in messages %}<start_of_turn>"
    "{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{% for c in m.content %}{% if c.type == 'image' %}<start_of_image>{% else %}{{ c.text }}"
    "{% endif %}{% endfor %}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)


def gemma3_parts():
    special_tokens = ("<bos>", "<start_of_turn>", "<end_of_turn>")
    tokenizer = build_byte_tokenizer(
        special_tokens,
        "<end_of_turn>",
        boi_token="<start_of_image>",
        eoi_token="<end_of_image>",
        image_token="<image_soft_token>",
    )
    tokenizer.bos_token = "<bos>"
    text = TEXT_CONFIG | dict(vocab_size=len(tokenizer), sliding_window=64)
    text["layer_types"] = ["sliding_attention", "full_attention"]
    vision = dict(image_size=28, patch_size=7)
    names = dict(boi_token="boi", eoi_token="eoi", image_token="image")
    token_ids = {
        f"{name}_token_index": tokenizer.convert_tokens_to_ids(getattr(tokenizer, attribute))
        for attribute, name in names.items()
    }
    token_ids["image_token_id"] = token_ids.pop("image_token_index")
    config = transformers.Gemma3Config(
        text_config=text, vision_config=VISION_CONFIG | vision, mm_tokens_per_image=4, **token_ids
    )
    images = Gemma3ImageProcessorPil(size=IMAGE_SIZE)
    processor = processor_of(
        transformers.Gemma3Processor,
        images,
        tokenizer,
        chat_template=GEMMA_TEMPLATE,
        image_seq_length=4,
    )
    return config, processor


PARTS = {
    "qwen2_5_vl": lambda: qwen_parts("qwen2_5_vl"),
    "qwen3_vl": lambda: qwen_parts("qwen3_vl"),
    "internvl": internvl_parts,
    "llava_onevision": llava_onevision_parts,
    "idefics3": idefics3_parts,
    "smolvlm": smolvlm_parts,
    "gemma3": gemma3_parts,
}


@pytest.fixture(scope="session", params=list(PARTS))
def architecture(request, tmp_path_factory):
    """A folder with a model and a processor, to be loaded by its path."""
    folder = tmp_path_factory.mktemp(request.param)
    config, processor = PARTS[request.param]()
    # With tied embeddings, a random model repeats itself forever.
    config.tie_word_embeddings = False
    config.text_config.tie_word_embeddings = False
    torch.manual_seed(0)
    model = transformers.AutoModelForImageTextToText.from_config(config)
    # Large weights, so that each reply depends on the whole input.
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            is_input = "embed_tokens" in name or "visual" in name
            torch.nn.init.normal_(parameter, std=1.0 if is_input else 0.2)
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
