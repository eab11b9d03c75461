"""The offline model: the tokenizer's promise of whole words, and the stock processing of images."""

import random
from pathlib import Path

import pytest
import torch

from personavlm_lib.models.nano import build_model, build_tokenizer
from personavlm_lib.simulation.dialogue import render_dialogue
from personavlm_lib.simulation.lexicon import vocabulary
from personavlm_lib.simulation.plan import sample_plan
from personavlm_lib.simulation.scenes import render, sample_scene
from personavlm_lib.training.backbone import corpus
from personavlm_lib.training.backbone_data import collate, encode
from personavlm_lib.training.backbone_drills import table_drill


def test_a_word_is_one_token_and_the_same_wherever_it_stands(processor):
    tokenizer = processor.tokenizer
    for word in vocabulary():
        (token,) = tokenizer(word).input_ids
        assert tokenizer(f"qx {word}\n{word} (a) {word}.").input_ids.count(token) == 3, word
        assert tokenizer(f"<think>{word}</think>").input_ids[1] == token


def test_dates_and_times_of_the_world_are_one_token(processor):
    for text in ("2024-03-04", "2024-09-30", "07:00", "23:59", "(d)", '"keywords":', "<retrieve>"):
        assert len(processor.tokenizer(text).input_ids) == 1, text


def test_a_key_that_a_life_brings_is_the_word_that_was_said(processor):
    tokenizer, text = (
        processor.tokenizer,
        '"pottery": every sunday i do pottery\n"keywords": tea\n"city": oslo',
    )
    ids, (word,) = tokenizer(text).input_ids, tokenizer("pottery").input_ids
    assert (
        ids.count(word) == 2
        and tokenizer("city").input_ids[0] in ids
        and tokenizer.decode(ids) == text
    )


def test_what_a_life_says_needs_no_bytes(processor):
    lowest = processor.tokenizer.convert_tokens_to_ids("<0xFF>")
    for seed in range(10):
        for turn in render_dialogue(sample_plan(seed, 70, 1.2), Path("unused"), draw=False):
            text = f"{turn.time:%Y-%m-%d} user {turn.user.replace('<img>', '')} assistant {turn.assistant}"
            assert min(processor.tokenizer(text).input_ids) > lowest, text


@pytest.mark.parametrize("text", [
    "my drink is tea\nask what is my drink ? options (a) tea (b) coffee", "Zażółć 🦆 42,5%",
    '<think>look up my drink</think>\n<retrieve>\n"keywords": my drink\n"start_time": 2024-03-04 00:00\n</retrieve>',
])  # fmt: skip
def test_text_survives_in_tokens_up_to_spaces(processor, text):
    back = processor.tokenizer.decode(processor.tokenizer(text).input_ids)
    assert back.split() == text.split() or "".join(back.split()) == "".join(text.split())


def test_the_tokenizer_is_the_same_each_time(processor):
    assert build_tokenizer(corpus()).get_vocab() == processor.tokenizer.get_vocab()


@pytest.mark.parametrize(
    ("size", "tokens"), [((84, 84), 9), ((56, 56), 4), ((84, 56), 6), ((28, 28), 4)]
)
def test_an_image_becomes_as_many_tokens_as_it_has_patches(processor, size, tokens):
    image = render(sample_scene(random.Random(0), [("cup", "red")])).resize(size)
    ids = processor(text=["look <|vision_start|><|image_pad|><|vision_end|> now"], images=[image])[
        "input_ids"
    ][0]
    assert ids.count(processor.image_token_id) == tokens


def test_the_sizes_of_the_kept_model(processor):
    parameters = sum(p.numel() for p in build_model(processor.tokenizer).parameters())
    assert 1.2e6 < parameters < 2e6


@pytest.mark.parametrize("seed", range(3))
def test_before_any_training_it_looks_where_the_answer_stands(processor, seed):
    """After `who key is` of the first reasoning step, layer 1 looks most at what stood there, of all facts shown."""
    torch.manual_seed(seed)
    model = build_model(processor.tokenizer).eval()
    model.set_attn_implementation("eager")
    found = []
    for number in range(40):
        row = table_drill(random.Random(f"{seed} {number}"), 8, 1)
        batch = collate(
            [encode(row, processor)], processor.tokenizer.pad_token_id, processor.image_token_id
        )
        labels = batch.pop("labels")[0]
        learned = (labels != -100).nonzero()[0].item()
        pieces = processor.tokenizer.convert_ids_to_tokens(batch["input_ids"][0])
        asked = pieces.index(" is", learned)  # `<think> bob drink is`
        value = pieces[asked + 1]
        told = [i for i in range(3, learned) if pieces[i - 1] == " is"]
        with torch.no_grad():
            looked = model(**batch, output_attentions=True).attentions[1][0, :, asked].mean(0)
        found.append(pieces[max(told, key=lambda i: looked[i])] == value)
    assert sum(found) >= 24  # of five values on average; what changed twice has two
