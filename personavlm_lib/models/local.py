"""Any Hugging Face vision-language model as a ChatModel: batched, with transcripts kept as token ids.

A transcript is never rendered twice: the first ask goes through the processor's chat template, later ones append the
ids of what is new, framed as the template frames it between turns. Tried with Qwen2.5-VL, Qwen3-VL, InternVL,
LLaVA-OneVision and Idefics3 (which SmolVLM follows). The KV cache of a transcript is kept until the next reply.
"""

import json
import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
import transformers
from peft import PeftModel
from PIL import Image
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, BitsAndBytesConfig, DynamicCache
from transformers.cache_utils import DynamicLayer
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES
from transformers.utils import is_bitsandbytes_available, is_torchvision_available

from personavlm_lib.memory.images import read_image
from personavlm_lib.models import Ask, Reply
from personavlm_lib.models.nano import TAGS, ImageOnly
from personavlm_lib.work import fingerprint


@dataclass(eq=False)  # a transcript is itself and no other: what is kept of it goes with it
class Transcript:
    """Token ids of a conversation so far; `written` marks the tokens that the model wrote (1) against given (0)."""

    ids: list[int] = field(default_factory=list)
    written: list[int] = field(default_factory=list)
    images: list[Image.Image] = field(default_factory=list)
    prompt: int = 0  # length of the first prompt: where the first completion starts
    # What the processor makes of an ask's images beside the tokens (pixels, sizes, ...), and the ask's first position.
    seen: list[tuple[int, dict[str, torch.Tensor]]] = field(default_factory=list)


class Kept(NamedTuple):
    """A transcript's part of a batch's KV cache: its row, and the (n,) columns that hold its first n tokens."""

    cache: DynamicCache
    row: int
    columns: torch.Tensor


SOURCE = "source.json"
MAX_PIXELS = 230_400  # of one image (paper, Table 3): at most 294 tokens


def write_source(folder: Path, base: str | Path, adapter: str | Path = "") -> None:
    """Makes `folder` a model without weights of its own: `base`, and `adapter` (if any), which is merged into it
    whenever it is loaded. Each is a hub id or a folder, which is then kept as seen from this one."""
    folder.mkdir(parents=True, exist_ok=True)
    named = {"base": base, "adapter": adapter}
    named = {key: os.path.relpath(n, folder) if n and Path(n).exists() else str(n) for key, n in named.items()}
    (folder / SOURCE).write_text(json.dumps(named))


def follow_source(source: str | Path) -> tuple[str, list[str]]:
    """Where the weights and the processor of a model lie, and the adapters on the way there, the innermost first."""
    adapters: list[str] = []
    while (file := Path(source) / SOURCE).is_file():
        named = json.loads(file.read_text())
        base, adapter = (str(p) if name and (p := file.parent / name).exists() else name for name in named.values())
        adapters, source = [adapter] * bool(adapter) + adapters, base
    return str(source), adapters


def made_of(source: str | Path) -> list[str]:
    """Fingerprints of all that a model's weights come from: the base, then the adapters."""
    base, adapters = follow_source(source)
    return [fingerprint(Path(part)) for part in (base, *adapters)]


def load_config(source: str | Path):
    """The configuration of a hub id or folder. ValueError for one that is not there."""
    try:
        return AutoConfig.from_pretrained(source)
    except OSError as error:
        raise ValueError(
            f"model {source} is no folder with a model, nor one of the hub that is in its cache or can be reached: "
            "check the name, or fetch it first where there is a network"
        ) from error


def load_model(source: str | Path, *more: str | Path, four_bit: bool = False):
    """The model of a hub id or folder with its adapters, and `more` of them, merged: bfloat16 where there is a GPU.

    `four_bit` loads the weights as 4-bit NF4, which needs a GPU and bitsandbytes (ImportError without).
    """
    base, adapters = follow_source(source)
    if four_bit and not is_bitsandbytes_available():
        raise ImportError("four_bit needs bitsandbytes, which is not here or finds no GPU: pip install bitsandbytes")
    dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    model = AutoModelForImageTextToText.from_pretrained(
        base, config=load_config(base), dtype=dtype, quantization_config=bits if four_bit else None
    )
    for adapter in (*adapters, *more):
        model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    return model


def load_processor(source: str | Path):
    """The processor of a hub id or folder; where torchvision is absent, with images alone."""
    base = follow_source(source)[0]
    kind, name = AutoProcessor, PROCESSOR_MAPPING_NAMES[load_config(base).model_type]
    if not is_torchvision_available():
        kind = type("ImageOnlyProcessor", (ImageOnly, getattr(transformers, name)), {})
    processor = kind.from_pretrained(base)
    size = processor.image_processor.size
    if "longest_edge" in size:  # so the Qwen-VL family calls it, and it bounds the area; a true edge is far below it
        size["longest_edge"] = min(size["longest_edge"], MAX_PIXELS)
    return processor


REPLY = "REPLY"  # stands for what the model said, where the template is asked what comes after it
OPENING = [
    {"role": role, "content": [{"type": "text", "text": text}]} for role, text in (("user", "-"), ("assistant", REPLY))
]
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
        self.temperature, self.repetition_penalty, self.seed, self.width = temperature, repetition_penalty, seed, width
        tokenizer, self.config = self.processor.tokenizer, model.config.get_text_config(decoder=True)
        self.stops = model.generation_config.eos_token_id or tokenizer.eos_token_id
        self.stops = [self.stops] if isinstance(self.stops, int) else list(self.stops)
        # A turn ends with what the template puts after it, if that is a special token.
        after = self.processor.apply_chat_template(OPENING, tokenize=False).partition(REPLY)[2]
        first = tokenizer(after, add_special_tokens=False).input_ids[0] if after.strip() else None
        self.end = first if first in tokenizer.all_special_ids else self.stops[0]
        self.stops = sorted({self.end, *self.stops})
        # A sampled placeholder would promise an image that is not there.
        self.barred = [getattr(self.processor, f"{kind}_token_id", None) for kind in ("image", "video")]
        self.barred = [token for token in self.barred if token is not None]
        self.markers = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
        self.closing = [tag for tag in CLOSING if len(tokenizer.tokenize(tag)) > 1]  # else the end token comes at once
        self.kept: WeakKeyDictionary[Transcript, Kept] = WeakKeyDictionary()
        self.keep = keep and {type(layer) for layer in DynamicCache(config=self.config).layers} <= {DynamicLayer}
        if keep > self.keep:
            logging.getLogger(__name__).warning("%s: no KV cache is kept between asks: it slides or recurs", self.name)
        self.replies = 0

    def start(self) -> Transcript:
        return Transcript()

    def give(self, transcript: Transcript, ask: Ask) -> None:
        """Appends the ask to the transcript, as tokens; the model's turn comes next. ValueError, and the transcript is
        as before, for an image that cannot be read and for a context that is too long."""
        tokenizer, images = self.processor.tokenizer, [read_image(path) for path in ask.images]
        messages = [{"role": "user", "content": content_parts(ask.text, self.markers)}]
        if transcript.ids:
            messages = [*OPENING, *messages]
        text = self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        if transcript.ids:
            text = text.partition(REPLY)[2].removeprefix(tokenizer.convert_ids_to_tokens(self.end))
        begins = not transcript.ids and not (tokenizer.bos_token and text.startswith(tokenizer.bos_token))
        seen = self.processor(
            text=[text], images=[images] if images else None, add_special_tokens=begins, return_tensors="pt"
        )
        ids, known = seen["input_ids"][0].tolist(), len(transcript.ids)
        if (length := known + len(ids) + ask.max_tokens) > (most := self.config.max_position_embeddings):
            raise ValueError(
                f"{ask.purpose or 'ask'}: {length} tokens, {ask.max_tokens} of them to be written, are more than the "
                f"{most} of model {self.name}: show it less"
            )
        transcript.ids += ids
        transcript.written += [0] * len(ids)
        transcript.images += images
        transcript.prompt = transcript.prompt or len(ids)
        if images:
            transcript.seen.append((known, {key: seen[key] for key in seen if key not in PER_TOKEN}))

    @torch.inference_mode()
    def reply(self, asked: list[tuple[Transcript, Ask]]) -> list[Reply | Exception]:
        """One generation for each ask, or the ValueError that it fails with alone; in batches of like length."""
        replies: dict[int, Reply | Exception] = {}
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

    def _generate(self, asked: list[tuple[Transcript, Ask]], before: WeakKeyDictionary) -> list[Reply]:
        transcripts, tokenizer = [transcript for transcript, _ in asked], self.processor.tokenizer
        past = [before.pop(transcript, None) for transcript in transcripts]
        lengths = [len(kept.columns) if kept else 0 for kept in past]
        batch, cache = self._batch(transcripts, lengths), DynamicCache(config=self.config)
        if any(lengths):
            # From all images; left to itself, `generate` would count on from the positions of another batch.
            batch["position_ids"] = self.model._prepare_position_ids_for_generation(batch["input_ids"], batch)
            batch = {key: batch[key] for key in (*PER_TOKEN, "position_ids") if key in batch}
            batch |= self._seen(transcripts, lengths)
            fill(cache, past)
            del past
        sampling = dict(do_sample=self.temperature > 0)
        if self.temperature > 0:
            sampling |= dict(temperature=self.temperature, top_k=0, top_p=1.0)
        with torch.random.fork_rng(enabled=self.seed is not None):
            if self.seed is not None:
                torch.manual_seed(self.seed + self.replies)
            output = self.model.generate(
                **batch, past_key_values=cache, max_new_tokens=max(ask.max_tokens for _, ask in asked),
                eos_token_id=self.stops, pad_token_id=tokenizer.pad_token_id, suppress_tokens=self.barred,
                repetition_penalty=self.repetition_penalty, stop_strings=self.closing or None, tokenizer=tokenizer,
                **sampling,
            )[:, batch["input_ids"].shape[1] :].tolist()  # fmt: skip
        self.replies += 1
        replies = []
        for row, ((transcript, ask), new) in enumerate(zip(asked, output, strict=True)):
            stop = next((n + 1 for n, token in enumerate(new) if token in self.stops), len(new))
            new = new[: min(stop, ask.max_tokens)]
            replies.append(Reply(tokenizer.decode(new, skip_special_tokens=True), len(transcript.ids), len(new)))
            transcript.ids, transcript.written = transcript.ids + new, transcript.written + [1] * len(new)
            if self.keep and (held := cache.get_seq_length()):
                mask = batch["attention_mask"][row]
                columns = torch.arange(len(mask), min(len(mask) + len(new), held), device=mask.device)
                self.kept[transcript] = Kept(cache, row, torch.cat([mask.nonzero()[:, 0], columns]))
            if new[-1:] != [self.end]:  # cut short: the turn is closed for it, and the mask says by whom
                transcript.ids, transcript.written = transcript.ids + [self.end], transcript.written + [0]
        return replies

    def _batch(self, transcripts: list[Transcript], past: list[int] | None = None) -> dict[str, torch.Tensor]:
        """The model's inputs, each row padded on the left of its first `past` tokens and again on the left of the rest:
        so the first stand where a cache of them does."""
        pad, past = self.processor.tokenizer.pad_token_id, past or [0] * len(transcripts)
        width = max(past), max(len(t.ids) - p for t, p in zip(transcripts, past, strict=True))
        ids, mask = [], []
        for t, p in zip(transcripts, past, strict=True):
            before, between = width[0] - p, width[1] - (len(t.ids) - p)
            ids.append([pad] * before + t.ids[:p] + [pad] * between + t.ids[p:])
            mask.append([0] * before + [1] * p + [0] * between + [1] * (len(t.ids) - p))
        batch = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
        if getattr(self.processor, "return_mm_token_type_ids", False):
            # Without token types positions silently fall back from three dimensions to one.
            batch["mm_token_type_ids"] = torch.tensor(self.processor.create_mm_token_type_ids(ids))
        return {key: value.to(self.model.device) for key, value in batch.items()} | self._seen(transcripts)

    def _seen(self, transcripts: list[Transcript], past: list[int] | None = None) -> dict[str, torch.Tensor]:
        """What the processor made of the images from `past` on, one ask after another, padded to one shape."""
        past = past or [0] * len(transcripts)
        parts = [part for t, p in zip(transcripts, past, strict=True) for start, part in t.seen if start >= p]
        joined = {}
        for key in parts[0] if parts else ():
            shape = [max(sizes) for sizes in zip(*(part[key].shape[1:] for part in parts), strict=True)]
            joined[key] = torch.cat([
                torch.nn.functional.pad(part[key], [
                    n for size, have in zip(shape[::-1], part[key].shape[:0:-1], strict=True) for n in (0, size - have)
                ]) for part in parts
            ]).to(self.model.device)  # fmt: skip
        return joined


def fill(cache: DynamicCache, past: list[Kept | None]) -> None:
    """Puts what is kept of each row into an empty cache, padded on the left; None is a row of which nothing is."""
    layers = next(kept.cache.layers for kept in past if kept)
    for n, layer in enumerate(layers):
        states = []
        for name in ("keys", "values"):
            none = getattr(layer, name)[0].transpose(0, 1)[:0]
            rows = [
                getattr(kept.cache.layers[n], name)[kept.row].transpose(0, 1)[kept.columns] if kept else none
                for kept in past
            ]
            states.append(pad_sequence(rows, batch_first=True, padding_side="left").transpose(1, 2))
        cache.update(*states, n)


def content_parts(text: str, markers: Iterable[str] = ()) -> list[dict]:
    """A message's text as chat content, each `<img>` mark an image placeholder.

    Markers of the chat format, and `markers`, are broken up: what a user or a memory holds must not open a turn.
    """
    first, *rest = (unmarked(part, markers) for part in text.split("<img>"))
    parts = [{"type": "text", "text": first}]
    for part in rest:
        parts += [{"type": "image", "text": None}, {"type": "text", "text": part}]
    return [part for part in parts if part["text"] != ""]


def unmarked(text: str, markers: Iterable[str] = ()) -> str:
    text = text.replace("<|", "< |").replace("|>", "| >")
    for marker in markers:
        text = text.replace(marker, f"{marker[0]} {marker[1:]}")
    return text
