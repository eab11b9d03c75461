"""Any Hugging Face vision-language model as a ChatModel: batched, with transcripts kept as token ids.

A transcript is never rendered twice: the first ask goes through the processor's chat template, later ones append the
ids of what is new. Image placeholders are expanded as the Qwen2-VL family does it.
"""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path

import torch
from peft import PeftModel
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.utils import is_torchvision_available

from personavlm_lib.memory.images import read_image
from personavlm_lib.models import Ask, Reply
from personavlm_lib.models.nano import ImageOnlyProcessor
from personavlm_lib.work import fingerprint


@dataclass
class Transcript:
    """Token ids of a conversation so far; `written` marks the tokens that the model wrote (1) against given (0)."""

    ids: list[int] = field(default_factory=list)
    written: list[int] = field(default_factory=list)
    images: list[Image.Image] = field(default_factory=list)
    prompt: int = 0  # length of the first prompt: where the first completion starts


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


def load_model(source: str | Path, *more: str | Path):
    """The model of a hub id or folder with its adapters, and `more` of them, merged: bfloat16 where there is a GPU."""
    base, adapters = follow_source(source)
    dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    model = AutoModelForImageTextToText.from_pretrained(base, dtype=dtype)
    for adapter in (*adapters, *more):
        model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    return model


def load_processor(source: str | Path):
    """The processor of a hub id or folder; where torchvision is absent, Qwen2.5-VL's with images alone."""
    kind = AutoProcessor if is_torchvision_available() else ImageOnlyProcessor
    processor = kind.from_pretrained(follow_source(source)[0])
    size = processor.image_processor.size
    size["longest_edge"] = min(size["longest_edge"], MAX_PIXELS)  # so it is called; it bounds the area
    return processor


class LocalModel:
    """A model in this process, on the GPU if there is one. `adapter`: folder of a LoRA adapter to merge in as well;
    `temperature` 0 is greedy.

    `model` and `processor` may be handed in (the GRPO rollout does) instead of being loaded from `source`.
    """

    def __init__(
        self, source: str | Path = "", adapter: str | Path | None = None, *, model=None, processor=None,
        temperature: float = 0.0, repetition_penalty: float = 1.0, name: str = "",
    ):  # fmt: skip
        self.processor = processor or load_processor(source)
        if model is None:
            model = load_model(source, *filter(None, [adapter])).to("cuda" if torch.cuda.is_available() else "cpu")
        self.model = model
        self.name = name or str(adapter or source)
        self.temperature, self.repetition_penalty = temperature, repetition_penalty
        tokenizer = self.processor.tokenizer
        self.end = tokenizer.convert_tokens_to_ids("<|im_end|>")
        # A sampled placeholder would promise an image that is not there.
        self.barred = [tokenizer.convert_tokens_to_ids(t) for t in ("<|image_pad|>", "<|video_pad|>")]

    def start(self) -> Transcript:
        return Transcript()

    def give(self, transcript: Transcript, ask: Ask) -> None:
        """Appends the ask to the transcript, as tokens; the model's turn comes next."""
        tokenizer, images = self.processor.tokenizer, [read_image(path) for path in ask.images]
        template = self.processor.apply_chat_template
        message = {"role": "user", "content": content_parts(ask.text)}
        text = template([message], add_generation_prompt=True, tokenize=False)
        if transcript.ids:
            # What the template puts before a first message (a default system prompt) is there already.
            before = template([{"role": "user", "content": ""}], tokenize=False).split("<|im_start|>user")[0]
            text = "\n" + text.removeprefix(before)
        ids = (self.processor(text=[text], images=images) if images else tokenizer([text]))["input_ids"][0]
        transcript.ids += ids
        transcript.written += [0] * len(ids)
        transcript.images += images
        transcript.prompt = transcript.prompt or len(ids)

    @torch.inference_mode()
    def reply(self, asked: list[tuple[Transcript, Ask]]) -> list[Reply]:
        """One generation for each ask; batched as they come, padded on the left."""
        for transcript, ask in asked:
            self.give(transcript, ask)
        batch = self._batch([transcript for transcript, _ in asked])
        sampling = dict(do_sample=self.temperature > 0)
        if self.temperature > 0:
            sampling |= dict(temperature=self.temperature, top_k=0, top_p=1.0)
        output = self.model.generate(
            **batch, max_new_tokens=max(ask.max_tokens for _, ask in asked), eos_token_id=self.end,
            pad_token_id=self.processor.tokenizer.pad_token_id, suppress_tokens=self.barred,
            repetition_penalty=self.repetition_penalty, **sampling,
        )[:, batch["input_ids"].shape[1] :].tolist()  # fmt: skip
        replies = []
        for (transcript, ask), new in zip(asked, output, strict=True):
            new = (new[: new.index(self.end) + 1] if self.end in new else new)[: ask.max_tokens]
            text = self.processor.tokenizer.decode(new, skip_special_tokens=True)
            replies.append(Reply(text, len(transcript.ids), len(new)))
            if new[-1:] != [self.end]:  # cut short: the turn is closed for it, and the mask says by whom
                transcript.ids, transcript.written = transcript.ids + new, transcript.written + [1] * len(new)
                new, mark = [self.end], 0
            else:
                mark = 1
            transcript.ids, transcript.written = transcript.ids + new, transcript.written + [mark] * len(new)
        return replies

    def _batch(self, transcripts: list[Transcript]) -> dict[str, torch.Tensor]:
        pad, width = self.processor.tokenizer.pad_token_id, max(len(t.ids) for t in transcripts)
        ids = torch.tensor([[pad] * (width - len(t.ids)) + t.ids for t in transcripts])
        mask = torch.tensor([[0] * (width - len(t.ids)) + [1] * len(t.ids) for t in transcripts])
        # Without token types positions silently fall back from three dimensions to one.
        batch = {"input_ids": ids, "attention_mask": mask, "mm_token_type_ids": (ids == self.barred[0]).long()}
        if images := [image for t in transcripts for image in t.images]:
            pixels = self.processor.image_processor(images=images, return_tensors="pt")
            batch |= {key: pixels[key] for key in ("pixel_values", "image_grid_thw")}
        return {key: value.to(self.model.device) for key, value in batch.items()}


def content_parts(text: str) -> list[dict]:
    """A message's text as chat content, each `<img>` mark an image placeholder.

    Markers of the chat format are broken up: what a user or a memory holds must not open a turn.
    """
    first, *rest = text.replace("<|", "< |").replace("|>", "| >").split("<img>")
    parts = [{"type": "text", "text": first}]
    for part in rest:
        parts += [{"type": "image", "text": None}, {"type": "text", "text": part}]
    return [part for part in parts if part["text"] != ""]
