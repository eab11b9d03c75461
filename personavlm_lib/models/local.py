"""Any Hugging Face vision-language model as a ChatModel: batched, with transcripts kept as token ids.

A transcript is never rendered twice: the first ask goes through the processor's chat template, later ones append the
ids of what is new, framed as the template frames it between turns. Tried with Qwen2.5-VL, Qwen3-VL, InternVL,
LLaVA-OneVision and Idefics3 (which SmolVLM follows). The KV cache of a transcript is kept until the next reply.
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from weakref import WeakKeyDictionary

import torch
from PIL import Image
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from personavlm_lib.memory.images import read_image
from personavlm_lib.models.chat import ChatReply, ChatRequest
from personavlm_lib.models.nano import TAGS
from personavlm_lib.models.weights import load_model, load_processor


@dataclass(eq=False)  # a transcript is itself and no other: what is kept of it goes with it
class Transcript:
    """Token ids of a conversation so far; `written` marks the tokens that the model wrote (1) against given (0)."""

    ids: list[int] = field(default_factory=list)
    written: list[int] = field(default_factory=list)
    images: list[Image.Image] = field(default_factory=list)
    prompt: int = 0  # length of the first prompt: where the first completion starts
    # What the processor makes of an ask's images beside the tokens (pixels, sizes, ...), and the ask's first position.
    seen: list[tuple[int, dict[str, torch.Tensor]]] = field(default_factory=list)


# A transcript's part of a batch's KV cache: the cache, the row, and the (n,) columns that hold its first n tokens.
Kept = tuple[DynamicCache, int, torch.Tensor]


REPLY = "REPLY"  # stands for what the model said, where the template is asked what comes after it
SAID = (("user", "-"), ("assistant", REPLY))
OPENING = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in SAID]
CLOSING = tuple(tag for tag in TAGS if tag in ("</retrieve>", "</answer>"))
PER_TOKEN = ("input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids")


class LocalModel:
    """A model in this process, on the GPU if there is one. `adapter`: folder of a LoRA adapter to merge in as well;
    `temperature` 0 is greedy, else `seed` makes the samples those of the call and its number; `width` bounds a batch;
    `keep` keeps the KV cache of a transcript for its next ask, where the architecture allows it.

    `model` and `processor` may be handed in (the GRPO rollout does) instead of being loaded from `source`.
    """

    def __init__(
        self, source: str | Path = "", adapter: str | Path | None = None, *, model=None, processor=None,
        temperature: float = 0.0, repetition_penalty: float = 1.0, name: str = "", seed: int | None = None,
        width: int = 48, keep: bool = True, four_bit: bool = False,
    ):  # fmt: skip
        self.processor = processor or load_processor(source)
        if model is None:
            model = load_model(source, *filter(None, [adapter]), four_bit=four_bit)
            model = model.to("cuda" if torch.cuda.is_available() else "cpu")
        self.model = model
        self.name = name or str(adapter or source)
        self.temperature, self.repetition_penalty, self.seed, self.width = (
            temperature,
            repetition_penalty,
            seed,
            width,
        )
        tokenizer, self.config = (
            self.processor.tokenizer,
            model.config.get_text_config(decoder=True),
        )
        eos = model.generation_config.eos_token_id or tokenizer.eos_token_id
        eos = eos if isinstance(eos, list) else [eos]
        # A turn ends with what the template puts after it, if that is a special token.
        after = self.processor.apply_chat_template(OPENING, tokenize=False).partition(REPLY)[2]
        first = tokenizer(after, add_special_tokens=False).input_ids[0] if after.strip() else None
        self.end = first if first in tokenizer.all_special_ids else eos[0]
        self.stops = sorted({self.end, *eos})
        # A sampled placeholder would promise an image that is not there.
        self.barred = list(
            {getattr(self.processor, f"{kind}_token_id", None) for kind in ("image", "video")}
            - {None}
        )
        special = {
            token.content for token in tokenizer.added_tokens_decoder.values() if token.special
        }
        self.markers = sorted(special - {"<img>"})
        self.closing = [
            tag for tag in CLOSING if len(tokenizer.tokenize(tag)) > 1
        ]  # else the end token comes at once
        self.kept: WeakKeyDictionary[Transcript, Kept] = WeakKeyDictionary()
        self.keep = keep and {type(layer) for layer in DynamicCache(config=self.config).layers} <= {
            DynamicLayer
        }
        if keep > self.keep:
            logging.getLogger(__name__).warning(
                "%s: no KV cache is kept between asks: it slides or recurs", self.name
            )
        self.replies = 0

    def start(self) -> Transcript:
        return Transcript()

    def give(self, transcript: Transcript, ask: ChatRequest) -> None:
        """Appends the ask to the transcript, as tokens; the model's turn comes next. ValueError, and the transcript is
        as before, for an image that cannot be read and for a context that is too long."""
        tokenizer, known = self.processor.tokenizer, len(transcript.ids)
        images = [read_image(path) for path in ask.images]
        messages = OPENING * bool(known) + [
            {"role": "user", "content": content_parts(ask.text, self.markers)}
        ]
        text = self.processor.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=False
        )
        if known:
            text = text.partition(REPLY)[2].removeprefix(tokenizer.convert_ids_to_tokens(self.end))
        given = dict(images=[images]) if images else {}
        # The template says what comes first, or leaves it to the tokenizer.
        given["add_special_tokens"] = not known and not (
            tokenizer.bos_token and text.startswith(tokenizer.bos_token)
        )
        seen = (self.processor if images else tokenizer)(text=[text], return_tensors="pt", **given)
        ids = seen["input_ids"][0].tolist()
        if (length := known + len(ids) + ask.max_tokens) > (
            most := self.config.max_position_embeddings
        ):
            what = f"{ask.purpose or 'ask'}: {length} tokens, those to be written among them,"
            raise ValueError(f"{what} are more than the {most} of model {self.name}: show it less")
        transcript.ids += ids
        transcript.written += [0] * len(ids)
        transcript.images += images
        transcript.prompt = transcript.prompt or len(ids)
        if images:
            transcript.seen.append(
                (known, {key: seen[key] for key in seen if key not in PER_TOKEN})
            )

    @torch.inference_mode()
    def reply(self, asked: list[tuple[Transcript, ChatRequest]]) -> list[ChatReply | Exception]:
        """One generation for each ask, or the ValueError that it fails with alone; in batches of like length."""
        replies: dict[int, ChatReply | Exception] = {}
        for n, (transcript, ask) in enumerate(asked):
            try:
                self.give(transcript, ask)
            except ValueError as error:
                replies[n] = error
        before, self.kept = self.kept, WeakKeyDictionary()
        order = sorted(set(range(len(asked))) - set(replies), key=lambda n: len(asked[n][0].ids))
        for start in range(0, len(order), self.width):
            rows = order[start : start + self.width]
            replies |= zip(rows, self._generate([asked[n] for n in rows], before), strict=True)
        return [replies[n] for n in range(len(asked))]

    def _generate(
        self, asked: list[tuple[Transcript, ChatRequest]], before: WeakKeyDictionary
    ) -> list[ChatReply]:
        transcripts, tokenizer = [transcript for transcript, _ in asked], self.processor.tokenizer
        past = [before.pop(transcript, None) for transcript in transcripts]
        lengths = [len(kept[2]) if kept else 0 for kept in past]
        batch, cache = self._batch(transcripts, lengths), DynamicCache(config=self.config)
        if any(lengths):
            fill(cache, past)
        del past
        hot = dict(do_sample=True, temperature=self.temperature, top_k=0, top_p=1.0)
        sampling = hot if self.temperature > 0 else dict(do_sample=False)
        with torch.random.fork_rng(enabled=self.seed is not None):
            if self.seed is not None:
                torch.manual_seed(self.seed + self.replies)
            output = self.model.generate(
                **batch, **sampling, past_key_values=cache if self.keep else None, eos_token_id=self.stops,
                pad_token_id=tokenizer.pad_token_id, max_new_tokens=max(ask.max_tokens for _, ask in asked),
                suppress_tokens=self.barred, repetition_penalty=self.repetition_penalty,
                stop_strings=self.closing or None, tokenizer=tokenizer,
            )[:, batch["input_ids"].shape[1] :].tolist()  # fmt: skip
        self.replies += 1
        replies = []
        for row, ((transcript, ask), new) in enumerate(zip(asked, output, strict=True)):
            stop = next((n + 1 for n, token in enumerate(new) if token in self.stops), len(new))
            new = new[: min(stop, ask.max_tokens)]
            text = tokenizer.decode(new, skip_special_tokens=True)
            while new[-1:] == [tokenizer.pad_token_id] and any(tag in text for tag in self.closing):
                new.pop()  # the turn ended with the tag; this waits for the others of the batch
            replies.append(ChatReply(text, len(transcript.ids), len(new)))
            transcript.ids, transcript.written = (
                transcript.ids + new,
                transcript.written + [1] * len(new),
            )
            if self.keep and (held := cache.get_seq_length()):
                mask = batch["attention_mask"][row]
                columns = torch.arange(
                    len(mask), min(len(mask) + len(new), held), device=mask.device
                )
                self.kept[transcript] = cache, row, torch.cat([mask.nonzero()[:, 0], columns])
            if new[-1:] != [
                self.end
            ]:  # cut short: the turn is closed for it, and the mask says by whom
                transcript.ids, transcript.written = (
                    transcript.ids + [self.end],
                    transcript.written + [0],
                )
        return replies

    def _batch(
        self, transcripts: list[Transcript], past: list[int] | None = None
    ) -> dict[str, torch.Tensor]:
        """The model's inputs, each row padded on the left of its first `past` tokens and again on the left of the rest:
        so the first stand where a cache of them does."""
        past = past or [0] * len(transcripts)
        sizes = [(p, len(t.ids) - p) for t, p in zip(transcripts, past, strict=True)]
        most, rest = map(max, zip(*sizes, strict=True))
        mask = torch.tensor(
            [[0] * (most - p) + [1] * p + [0] * (rest - n) + [1] * n for p, n in sizes]
        )
        ids = torch.full_like(mask, self.processor.tokenizer.pad_token_id)
        ids[mask.bool()] = torch.tensor([token for t in transcripts for token in t.ids])
        batch = {"input_ids": ids, "attention_mask": mask}
        if getattr(self.processor, "return_mm_token_type_ids", False):
            # Without token types positions silently fall back from three dimensions to one.
            batch["mm_token_type_ids"] = torch.tensor(
                self.processor.create_mm_token_type_ids(ids.tolist())
            )
        batch = {key: value.to(self.model.device) for key, value in batch.items()}
        if any(past):
            # From all images; left to itself, `generate` would count on from the positions of another batch.
            whole = batch | self._seen(transcripts, [0] * len(past))
            batch["position_ids"] = self.model._prepare_position_ids_for_generation(
                batch["input_ids"], whole
            )
        return batch | self._seen(transcripts, past)

    def _seen(self, transcripts: list[Transcript], past: list[int]) -> dict[str, torch.Tensor]:
        """What the processor made of the images from `past` on, one ask after another, padded to one shape."""
        parts = [
            part
            for t, p in zip(transcripts, past, strict=True)
            for start, part in t.seen
            if start >= p
        ]
        joined = {}
        for key in parts[0] if parts else ():
            rows = [part[key] for part in parts]
            shape = [max(sizes) for sizes in zip(*(row.shape for row in rows), strict=True)][1:]
            joined[key] = rows[0].new_zeros(sum(map(len, rows)), *shape, device=self.model.device)
            for row, room in zip(rows, joined[key].split([*map(len, rows)]), strict=True):
                room[tuple(map(slice, row.shape))] = row
        return joined


def fill(cache: DynamicCache, past: list[Kept | None]) -> None:
    """Puts what is kept of each row into an empty cache, padded on the left; None is a row of which nothing is."""
    some = next(kept for kept in past if kept)
    past = [kept or (*some[:2], some[2][:0]) for kept in past]
    for n in range(len(some[0].layers)):
        states = []
        for name in ("keys", "values"):  # (heads, tokens, d) of a row
            rows = [
                getattr(cached.layers[n], name)[row].transpose(0, 1)[columns]
                for cached, row, columns in past
            ]
            states.append(pad_sequence(rows, batch_first=True, padding_side="left").transpose(1, 2))
        cache.update(*states, n)


def content_parts(text: str, markers: Iterable[str] = ()) -> list[dict]:
    """A message's text as chat content, each `<img>` mark an image placeholder.

    Markers of the chat format, and `markers`, are broken up: what a user or a memory holds must not open a turn.
    """
    for marker in ("<|", "|>", *markers):
        text = text.replace(marker, f"{marker[0]} {marker[1:]}")
    first, *rest = text.split("<img>")
    parts = [{"type": "text", "text": first}]
    for part in rest:
        parts += [{"type": "image", "text": None}, {"type": "text", "text": part}]
    return [part for part in parts if part["text"] != ""]
