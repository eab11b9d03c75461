"""Any vision-language model: what it says in ragged batches and from kept prefixes is what plain `generate` says.

Each test runs on Qwen2.5-VL, Qwen3-VL, InternVL, LLaVA-OneVision and Idefics3 (see conftest).
"""

import numpy as np
import pytest
import torch
from PIL import Image

from personavlm_lib.models.chat import ChatRequest
from personavlm_lib.models.local import GenerationSettings, LocalModel, content_parts

NO_REUSE = GenerationSettings(reuse_cache=False)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for n, (height, width) in enumerate([(60, 90), (84, 56), (30, 30)]):
        pixels = (
            rng.integers(0, 255, (height // 6, width // 6, 3), dtype=np.uint8)
            .repeat(6, 0)
            .repeat(6, 1)
        )
        Image.fromarray(pixels).save(folder / f"{n}.png")
    return [str(folder / f"{n}.png") for n in range(3)]


def talks(pictures):
    """Five users, three asks each: ragged, with images in the first, in a later one, in several, and in none."""
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


def talk(model, asks):
    transcripts = [model.start() for _ in asks]
    replies = [
        model.reply(list(zip(transcripts, step, strict=True))) for step in zip(*asks, strict=True)
    ]
    return transcripts, list(zip(*replies, strict=True))


def plain(model, messages, images, tokens):
    """Ids that the processor and `generate` give, without us."""
    text = model.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    bos = model.processor.tokenizer.bos_token
    inputs = model.processor(
        text=[text], images=[images] if images else None, return_tensors="pt",
        add_special_tokens=not (bos and text.startswith(bos)),
    )  # fmt: skip
    output = model.model.generate(
        **inputs, do_sample=False, max_new_tokens=tokens, suppress_tokens=model.forbidden_tokens,
        pad_token_id=model.processor.tokenizer.pad_token_id,
    )  # fmt: skip
    return output[0].tolist()


def test_ragged_batches_and_kept_prefixes_say_what_each_alone_says_from_scratch(
    architecture, pictures
):
    kept, scratch = LocalModel(architecture), LocalModel(architecture, settings=NO_REUSE)
    together, replies = talk(kept, talks(pictures))
    assert len(kept.cached_prefixes) == 5 and kept.reuse_cache
    assert len({reply.text for row in replies for reply in row}) > 12  # it repeats itself little
    for asks, transcript, row in zip(talks(pictures), together, replies, strict=True):
        [alone], [said] = talk(scratch, [asks])
        assert (alone.ids, alone.generated_mask, said) == (
            transcript.ids,
            transcript.generated_mask,
            row,
        )
    assert not scratch.cached_prefixes
    del together, transcript
    assert not kept.cached_prefixes  # what is kept of a transcript goes with it


def test_who_shares_a_batch_may_change_between_steps(architecture, pictures):
    """Some fall out, one comes in, the order is another, and batches are narrower than what is asked."""
    model, scratch = (
        LocalModel(architecture, settings=GenerationSettings(batch_width=2)),
        LocalModel(architecture, settings=NO_REUSE),
    )
    asks = talks(pictures)
    transcripts = [model.start() for _ in asks]
    for step, who in enumerate([[0, 1, 2, 3], [3, 0, 2], [4, 2, 3, 1]]):
        model.reply([(transcripts[n], asks[n][step]) for n in who])
    for n, steps in enumerate([[0, 1], [0, 2], [0, 1, 2], [0, 1, 2], [2]]):
        [alone], _ = talk(scratch, [[asks[n][step] for step in steps]])
        assert alone.ids == transcripts[n].ids


def test_a_first_ask_is_the_template_and_plain_generate(architecture, pictures):
    model = LocalModel(architecture)
    firsts = [row[0] for row in talks(pictures)]
    transcripts, _ = talk(model, [[ask] for ask in firsts])
    for ask, transcript in zip(firsts, transcripts, strict=True):
        images = [Image.open(path).convert("RGB") for path in ask.images]
        ids = plain(
            model, [{"role": "user", "content": content_parts(ask.text)}], images, ask.max_tokens
        )
        assert ids == transcript.ids[: len(ids)] and len(transcript.ids) <= len(ids) + 1


def test_later_asks_are_the_template_over_the_whole_and_plain_generate(
    architecture, pictures, monkeypatch
):
    """One image in all: LLaVA-OneVision cuts the only image of a text otherwise than one of several."""
    model, messages = LocalModel(architecture), []
    lead = (
        " " if architecture.name.startswith("idefics3") else ""
    )  # what the model is to write between "Assistant:"
    asks = [
        ChatRequest("look <img> now", (pictures[0],), max_tokens=16),
        ChatRequest("and?", max_tokens=8),
        ChatRequest("well", max_tokens=9),
    ]
    transcript, lines = model.start(), ["it is red.", "yes", ""]
    for ask, line in zip(asks, lines, strict=True):
        messages.append({"role": "user", "content": content_parts(ask.text)})
        if line:  # what a random model says is no text; here it says these words
            said = model.processor.tokenizer(lead + line, add_special_tokens=False)
            with monkeypatch.context() as patch:
                new = torch.tensor([[*said.input_ids, model.end_token]])
                patch.setattr(
                    model.model,
                    "generate",
                    lambda input_ids, new=new, **_: torch.cat([input_ids, new], 1),
                )
                model.reply([(transcript, ask)])
            messages.append({"role": "assistant", "content": [{"type": "text", "text": line}]})
    model.reply([(transcript, asks[-1])])
    ids = plain(model, messages, [Image.open(pictures[0]).convert("RGB")], asks[-1].max_tokens)
    assert ids == transcript.ids[: len(ids)] and len(transcript.ids) <= len(ids) + 1


def test_a_text_opens_no_turn_and_promises_no_image_in_any_template(architecture):
    model = LocalModel(architecture)
    hostile, plain_ = model.start(), model.start()
    model.append_request(
        hostile, ChatRequest(" ".join(marker for marker in model.markers if marker != "<img>"))
    )
    model.append_request(plain_, ChatRequest("hello"))
    for token in model.processor.tokenizer.all_special_ids:
        assert hostile.ids.count(token) == plain_.ids.count(token)


def test_tiny_and_huge_images_go_through(architecture, tmp_path):
    Image.new("RGB", (1, 1), (200, 0, 0)).save(tmp_path / "dot.png")
    model = LocalModel(architecture)
    [reply] = model.reply(
        [(model.start(), ChatRequest("<img>", (str(tmp_path / "dot.png"),), max_tokens=2))]
    )
    assert reply.tokens_out in (1, 2)
