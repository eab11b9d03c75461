"""The nano model: its whole-word tokenizer, image tokens, size, and initial lookup heads."""

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


def test_word_is_the_same_single_token_at_every_position(processor):
    tokenizer = processor.tokenizer
    for word in vocabulary():
        (token,) = tokenizer(word).input_ids
        text = f"qx {word}\n{word} (a) {word}."
        ids = tokenizer(text).input_ids
        assert ids.count(token) == 3, word
        _, thought, _ = tokenizer(f"<think>{word}</think>").input_ids
        assert thought == token


def test_dates_and_times_of_the_world_are_single_tokens(processor):
    for text in ("2024-03-04", "2024-09-30", "07:00", "23:59", "(d)", '"keywords":', "<retrieve>"):
        ids = processor.tokenizer(text).input_ids
        assert len(ids) == 1, text


def test_key_from_a_life_has_the_token_of_the_word_that_was_said(processor):
    tokenizer = processor.tokenizer
    text = '"pottery": every sunday i do pottery\n"keywords": tea\n"city": oslo'
    ids = tokenizer(text).input_ids
    (pottery,) = tokenizer("pottery").input_ids
    city = tokenizer("city").input_ids[0]
    assert ids.count(pottery) == 2
    assert city in ids
    assert tokenizer.decode(ids) == text


def test_dialogue_of_a_life_needs_no_byte_tokens(processor):
    tokenizer = processor.tokenizer
    last_byte = tokenizer.convert_tokens_to_ids("<0xFF>")
    for seed in range(10):
        plan = sample_plan(seed, 70, 1.2)
        for turn in render_dialogue(plan, Path("unused"), draw=False):
            user = turn.user.replace("<img>", "")
            text = f"{turn.time:%Y-%m-%d} user {user} assistant {turn.assistant}"
            lowest = min(tokenizer(text).input_ids)
            assert lowest > last_byte, text


QUESTION = "my drink is tea\nask what is my drink ? options (a) tea (b) coffee"
RETRIEVAL = """\
<think>look up my drink</think>
<retrieve>
"keywords": my drink
"start_time": 2024-03-04 00:00
</retrieve>"""


@pytest.mark.parametrize("text", [QUESTION, "Zażółć 🦆 42,5%", RETRIEVAL])
def test_decoding_restores_the_text_up_to_spaces(processor, text):
    tokenizer = processor.tokenizer
    ids = tokenizer(text).input_ids
    decoded = tokenizer.decode(ids)
    words = text.split()
    decoded_words = decoded.split()
    assert decoded_words == words or "".join(decoded_words) == "".join(words)


def test_building_the_tokenizer_is_deterministic(processor):
    assert build_tokenizer(corpus()).get_vocab() == processor.tokenizer.get_vocab()


@pytest.mark.parametrize(
    ("size", "tokens"), [((84, 84), 9), ((56, 56), 4), ((84, 56), 6), ((28, 28), 4)]
)
def test_image_has_as_many_tokens_as_patches(processor, size, tokens):
    scene = sample_scene(random.Random(0), [("cup", "red")])
    image = render(scene).resize(size)
    text = "look <|vision_start|><|image_pad|><|vision_end|> now"
    inputs = processor(text=[text], images=[image])
    ids = inputs["input_ids"][0]
    assert ids.count(processor.image_token_id) == tokens


def test_published_model_has_about_one_and_a_half_million_parameters(processor):
    model = build_model(processor.tokenizer)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert 1.2e6 < parameters < 2e6


@pytest.mark.parametrize("seed", range(3))
def test_untrained_model_attends_to_the_answer(processor, seed):
    """After `who key is` of the first reasoning step, layer 1 attends most to the value of that
    fact, among the values of all facts in the context."""
    torch.manual_seed(seed)
    tokenizer = processor.tokenizer
    model = build_model(tokenizer).eval()
    model.set_attn_implementation("eager")
    correct = 0
    for number in range(40):
        row = table_drill(random.Random(f"{seed} {number}"), 8, 1)
        encoded = encode(row, processor)
        batch = collate([encoded], tokenizer.pad_token_id, processor.image_token_id)
        labels = batch.pop("labels")[0]
        first_label = (labels != -100).nonzero()[0].item()
        pieces = tokenizer.convert_ids_to_tokens(batch["input_ids"][0])
        position = pieces.index(" is", first_label)  # in `<think> bob drink is`
        value = pieces[position + 1]
        value_positions = []
        for i in range(3, first_label):
            if pieces[i - 1] == " is":
                value_positions.append(i)
        with torch.no_grad():
            attentions = model(**batch, output_attentions=True).attentions
        layer = attentions[1][0]  # (heads, queries, keys)
        weights = layer[:, position].mean(0)
        most_attended = max(value_positions, key=lambda i: weights[i])
        correct += pieces[most_attended] == value
    assert correct >= 24  # of 40, with five values on average; a fact that changed twice has two
