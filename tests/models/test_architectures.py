"""Batches and cached prefixes generate the same as plain `generate`, for any architecture.

Each test runs on seven architectures (see PARTS in conftest).
"""

import numpy as np
import pytest
import torch
from PIL import Image

from personavlm_lib.models.chat import ChatRequest
from personavlm_lib.models.local import GenerationSettings, LocalModel
from personavlm_lib.models.markers import content_parts

NO_REUSE = GenerationSettings(reuse_cache=False)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    paths = []
    for n, (height, width) in enumerate([(60, 90), (84, 56), (30, 30)]):
        shape = (height // 6, width // 6, 3)
        colors = rng.integers(0, 255, shape, dtype=np.uint8)
        rows = colors.repeat(6, 0)
        pixels = rows.repeat(6, 1)
        path = folder / f"{n}.png"
        Image.fromarray(pixels).save(path)
        paths.append(str(path))
    return paths


def conversations(pictures):
    """Five ragged conversations of three requests, with images in the first, in a later one, in
    several, and in none."""
    one, two, three = pictures
    return [
        [
            ChatRequest("my drink", max_tokens=9),
            ChatRequest("found <img> here", (one,), max_tokens=5),
            ChatRequest("and now?", max_tokens=12),
        ],
        [
            ChatRequest("<img> is <img>", (one, two), max_tokens=4),
            ChatRequest("so", max_tokens=3),
            ChatRequest("<img>", (two,), max_tokens=7),
        ],
        [
            ChatRequest("a long question " * 9, max_tokens=7),
            ChatRequest("b", max_tokens=8),
            ChatRequest("long again " * 7, max_tokens=9),
        ],
        [
            ChatRequest("<img>", (three,), max_tokens=8),
            ChatRequest("<img>", (one,), max_tokens=9),
            ChatRequest("<img>", (two,), max_tokens=8),
        ],
        [
            ChatRequest("?", max_tokens=1),
            ChatRequest("! <img> <img>", (two, three), max_tokens=6),
            ChatRequest(".", max_tokens=12),
        ],
    ]


def converse(model, conversations):
    """(transcripts, the replies of each conversation), with one batch per step."""
    transcripts = [model.start() for _ in conversations]
    replies = []
    for requests in zip(*conversations, strict=True):
        pairs = zip(transcripts, requests, strict=True)
        replies.append(model.reply(list(pairs)))
    by_conversation = zip(*replies, strict=True)
    return transcripts, list(by_conversation)


def plain_generate(model, messages, image_paths, max_tokens):
    """The ids from the processor and `generate` alone."""
    processor = model.processor
    images = [Image.open(path).convert("RGB") for path in image_paths]
    text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    bos = processor.tokenizer.bos_token
    template_writes_bos = bool(bos and text.startswith(bos))
    image_lists = [images] if images else None
    inputs = processor(
        text=[text],
        images=image_lists,
        return_tensors="pt",
        add_special_tokens=not template_writes_bos,
    )
    output = model.model.generate(
        **inputs,
        do_sample=False,
        max_new_tokens=max_tokens,
        suppress_tokens=model.forbidden_tokens,
        pad_token_id=processor.tokenizer.pad_token_id,
    )
    return output[0].tolist()


def assert_same_ids(plain_ids, transcript):
    """Equal, except for the end token that closes a turn that was cut."""
    assert plain_ids == transcript.ids[: len(plain_ids)]
    assert len(transcript.ids) <= len(plain_ids) + 1


def test_ragged_batches_with_cached_prefixes_equal_single_rows_from_scratch(architecture, pictures):
    caching = LocalModel(architecture)
    scratch = LocalModel(architecture, settings=NO_REUSE)
    talks = conversations(pictures)
    transcripts, replies = converse(caching, talks)
    # Gemma's layers with a sliding window do not keep the keys and values of all tokens.
    keeps_all = not architecture.name.startswith("gemma3")
    assert caching.reuse_cache == keeps_all
    assert len(caching.cached_prefixes) == 5 * keeps_all
    texts = {reply.text for row in replies for reply in row}
    assert len(texts) > 12  # the model rarely repeats itself
    for talk, transcript, row in zip(talks, transcripts, replies, strict=True):
        [alone], [alone_replies] = converse(scratch, [talk])
        assert alone.ids == transcript.ids
        assert alone.generated_mask == transcript.generated_mask
        assert alone_replies == row
    assert not scratch.cached_prefixes
    del transcripts, transcript
    assert not caching.cached_prefixes  # a cached prefix is freed with its transcript


def test_batch_composition_may_change_between_steps(architecture, pictures):
    """Some conversations leave, one joins, the order changes, and batches are split."""
    caching = LocalModel(architecture, settings=GenerationSettings(batch_width=2))
    scratch = LocalModel(architecture, settings=NO_REUSE)
    talks = conversations(pictures)
    transcripts = [caching.start() for _ in talks]
    members_of_steps = [[0, 1, 2, 3], [3, 0, 2], [4, 2, 3, 1]]
    for step, members in enumerate(members_of_steps):
        asked = [(transcripts[n], talks[n][step]) for n in members]
        caching.reply(asked)
    steps_of_talks = [[0, 1], [0, 2], [0, 1, 2], [0, 1, 2], [2]]
    for talk, steps, transcript in zip(talks, steps_of_talks, transcripts, strict=True):
        requests = [talk[step] for step in steps]
        [alone], _ = converse(scratch, [requests])
        assert alone.ids == transcript.ids


def test_first_request_equals_template_and_plain_generate(architecture, pictures):
    model = LocalModel(architecture)
    requests = [talk[0] for talk in conversations(pictures)]
    talks = [[request] for request in requests]
    transcripts, _ = converse(model, talks)
    for request, transcript in zip(requests, transcripts, strict=True):
        content = content_parts(request.text)
        messages = [{"role": "user", "content": content}]
        ids = plain_generate(model, messages, request.images, request.max_tokens)
        assert_same_ids(ids, transcript)


def test_later_requests_equal_template_over_the_whole_and_plain_generate(
    architecture, pictures, monkeypatch
):
    """With one image, because LLaVA-OneVision splits a single image differently from several."""
    model = LocalModel(architecture)
    # The Idefics3 template has a space after "Assistant:", which the model has to write.
    lead = " " if architecture.name.startswith(("idefics3", "smolvlm")) else ""
    exchanges = [
        (ChatRequest("look <img> now", (pictures[0],), max_tokens=16), "it is red."),
        (ChatRequest("and?", max_tokens=8), "yes"),
    ]
    last = ChatRequest("well", max_tokens=9)
    transcript = model.start()
    messages = []
    for request, line in exchanges:
        # The random model does not write text, so these lines replace its output.
        ids = model.processor.tokenizer(lead + line, add_special_tokens=False).input_ids
        generate = generate_that_writes([*ids, model.end_token])
        with monkeypatch.context() as patch:
            patch.setattr(model.model, "generate", generate)
            model.reply([(transcript, request)])
        messages.append({"role": "user", "content": content_parts(request.text)})
        messages.append({"role": "assistant", "content": content_parts(line)})
    model.reply([(transcript, last)])
    messages.append({"role": "user", "content": content_parts(last.text)})
    ids = plain_generate(model, messages, pictures[:1], last.max_tokens)
    assert_same_ids(ids, transcript)


def generate_that_writes(ids):
    def generate(input_ids, **_):
        return torch.cat([input_ids, torch.tensor([ids])], dim=1)

    return generate


def test_text_cannot_open_a_turn_or_insert_an_image_in_any_template(architecture):
    model = LocalModel(architecture)
    markers = [marker for marker in model.markers if marker != "<img>"]
    text = " ".join(markers)
    tokenizer = model.processor.tokenizer
    hostile = model.start()
    plain = model.start()
    model.append_request(hostile, ChatRequest(text))
    model.append_request(plain, ChatRequest("hello"))
    for token in tokenizer.all_special_ids:
        expected = plain.ids.count(token)
        assert hostile.ids.count(token) == expected


def test_single_pixel_image_is_accepted(architecture, tmp_path):
    path = tmp_path / "dot.png"
    image = Image.new("RGB", (1, 1), (200, 0, 0))
    image.save(path)
    model = LocalModel(architecture)
    request = ChatRequest("<img>", (str(path),), max_tokens=2)
    [reply] = model.reply([(model.start(), request)])
    assert reply.tokens_out in (1, 2)
