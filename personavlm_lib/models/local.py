"""Run any Hugging Face vision-language model as a ChatModel, in batches.

A transcript is a list of token ids and is rendered only once: the first request goes through the
processor's chat template; later requests append only their new ids, framed as the template frames
them between turns. The KV cache of a transcript is kept until its next request. Tested with
Qwen2.5-VL, Qwen3-VL, InternVL, LLaVA-OneVision, Idefics3, SmolVLM and Gemma 3.
"""

import logging
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from PIL import Image
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from personavlm_lib.memory.images import read_image
from personavlm_lib.models.chat import ChatReply, ChatRequest, ContextOverflow
from personavlm_lib.models.markers import content_parts
from personavlm_lib.models.transcripts import (
    CachedPrefix,
    CachedPrefixes,
    GrowingLayer,
    Transcript,
    cached_columns,
    concatenate_padded,
    fill_cache,
    padding_mask,
)
from personavlm_lib.models.weights import STORED_WEIGHTS, LoadSettings, load_model, load_processor

logger = logging.getLogger(__name__)

# A rendered example conversation shows what the template puts before and after a turn.
EXAMPLE_REPLY = "REPLY"
EXAMPLE_MESSAGES = [
    {"role": "user", "content": [{"type": "text", "text": "-"}]},
    {"role": "assistant", "content": [{"type": "text", "text": EXAMPLE_REPLY}]},
]
CLOSING_TAGS = ("</retrieve>", "</answer>")
PER_TOKEN_INPUTS = ("input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids")


@dataclass(frozen=True)
class GenerationSettings:
    """How a LocalModel generates.

    `temperature` 0 decodes greedily. With a `seed`, samples depend only on it and on the number of
    the `generate` call; without one they follow torch's global generator. `batch_width` is the
    largest batch. `reuse_cache` keeps the KV cache of a transcript for its next request, where the
    architecture allows it.
    """

    temperature: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    batch_width: int = 48
    reuse_cache: bool = True


GREEDY = GenerationSettings()


class LocalModel:
    """A model in this process, on the GPU if there is one.

    `source` is a hub id or a folder, `adapter` the folder of a LoRA adapter to merge into it.
    The GRPO rollout passes its own `model` and `processor` instead of loading them from `source`.
    Raises ValueError for a model whose chat template this class cannot continue.
    """

    def __init__(
        self,
        source: str | Path = "",
        adapter: str | Path | None = None,
        *,
        model: Any = None,
        processor: Any = None,
        name: str = "",
        settings: GenerationSettings = GREEDY,
        load: LoadSettings = STORED_WEIGHTS,
    ):
        self.processor = processor or load_processor(source)
        is_loaded_here = model is None
        if is_loaded_here:
            adapters = [adapter] if adapter else []
            model = load_model(source, *adapters, settings=load)
            if not load.device_map:
                model = model.to("cuda" if torch.cuda.is_available() else "cpu")
        self.model = model
        location = adapter or source
        self.name = name or str(location)
        self.settings = settings
        self.config = model.config.get_text_config(decoder=True)
        self._set_special_tokens()
        self.cached_prefixes: CachedPrefixes = WeakKeyDictionary()
        self.reuse_cache = settings.reuse_cache and self._has_plain_cache()
        if settings.reuse_cache and not self.reuse_cache:
            logger.warning(
                "%s: the KV cache is not reused between requests, because the model has "
                "sliding-window or recurrent layers",
                self.name,
            )
        self.generate_calls = 0
        if is_loaded_here:
            self.check_template()

    def check_template(self) -> None:
        """Compare the ids of a conversation, turn by turn, with the template over all of it.

        Raises ValueError if they differ, because the model would then read prompts that no
        conversation of its kind has.
        """
        transcript = self.start()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "picture.png"
            Image.effect_noise((64, 64), 60).save(path)
            request = ChatRequest("look <img> here", (str(path),), max_tokens=1)
            self.append_request(transcript, request)
            image = read_image(path)
        tokenizer = self.processor.tokenizer
        user = {"role": "user", "content": content_parts(request.text)}
        later = {"role": "user", "content": content_parts("and now?")}
        render = partial(self.processor.apply_chat_template, tokenize=False)
        prompt = render([user], add_generation_prompt=True)
        whole = render([user, EXAMPLE_MESSAGES[1], later], add_generation_prompt=True)
        # Some templates put a space before a finished reply, which the model has to write itself.
        lead = whole.removeprefix(prompt).partition(EXAMPLE_REPLY)[0]
        reply = tokenizer(lead + EXAMPLE_REPLY, add_special_tokens=False).input_ids
        transcript.append([*reply, self.end_token], generated=True)
        self.append_request(transcript, ChatRequest("and now?", max_tokens=1))
        bos = tokenizer.bos_token
        rendered = self.processor(
            text=[whole], images=[[image]], add_special_tokens=not (bos and whole.startswith(bos))
        )
        if not whole.startswith(prompt) or list(rendered["input_ids"][0]) != transcript.ids:
            raise ValueError(
                f"model {self.name} cannot be used: its chat template writes a conversation "
                "differently once a turn follows, so that a transcript cannot be continued"
            )

    def _set_special_tokens(self) -> None:
        tokenizer = self.processor.tokenizer
        eos = self.model.generation_config.eos_token_id or tokenizer.eos_token_id
        if not isinstance(eos, list):
            eos = [eos]
        turn_end = self._template_turn_end()
        self.end_token = eos[0] if turn_end is None else turn_end
        self.stop_tokens = sorted({self.end_token, *eos})
        # A sampled image placeholder would refer to an image that does not exist.
        self.forbidden_tokens: list[int] = []
        for owner in (self.processor, tokenizer):
            for name in ("image_token_id", "video_token_id"):
                placeholder = getattr(owner, name, None)
                if placeholder is not None:
                    self.forbidden_tokens.append(placeholder)
        special: set[str] = set()
        for token in tokenizer.added_tokens_decoder.values():
            if token.special:
                special.add(token.content)
        self.markers = sorted(special - {"<img>"})
        # Where a closing tag is a single token, the model itself writes the end token after it.
        self.closing_tags: list[str] = []
        for tag in CLOSING_TAGS:
            if len(tokenizer.tokenize(tag)) > 1:
                self.closing_tags.append(tag)

    def _template_turn_end(self) -> int | None:
        """The token that the template puts after a turn, if it is a special token."""
        tokenizer = self.processor.tokenizer
        rendered = self.processor.apply_chat_template(EXAMPLE_MESSAGES, tokenize=False)
        after_reply = rendered.partition(EXAMPLE_REPLY)[2]
        if not after_reply.strip():
            return None
        first = tokenizer(after_reply, add_special_tokens=False).input_ids[0]
        return first if first in tokenizer.all_special_ids else None

    def _has_plain_cache(self) -> bool:
        """Whether every layer keeps the keys and values of all tokens."""
        layer_types = {type(layer) for layer in DynamicCache(config=self.config).layers}
        return layer_types <= {DynamicLayer}

    def start(self) -> Transcript:
        return Transcript()

    def append_request(self, transcript: Transcript, request: ChatRequest) -> None:
        """Append a request to the transcript as tokens, up to where the model's turn begins.

        Raises ValueError, and leaves the transcript unchanged, if an image cannot be read or the
        context would be too long.
        """
        position = len(transcript.ids)
        images = [read_image(path) for path in request.images]
        inputs = self._tokenize(request, images, is_first=position == 0)
        ids = inputs["input_ids"][0].tolist()
        self._check_length(request, position + len(ids) + request.max_tokens)
        transcript.append(ids, generated=False)
        transcript.images += images
        if position == 0:
            transcript.prompt_length = len(ids)
        if images:
            vision_inputs = {key: inputs[key] for key in inputs if key not in PER_TOKEN_INPUTS}
            transcript.vision_inputs.append((position, vision_inputs))

    def _check_length(self, request: ChatRequest, length: int) -> None:
        longest = self.config.max_position_embeddings
        if length > longest:
            prompt = length - request.max_tokens
            raise ContextOverflow(
                f"{request.purpose or 'request'}: {length} tokens ({request.max_tokens} of them "
                f"reserved for the reply) are more than the {longest} of model {self.name}: "
                "shorten the request or lower max_tokens",
                fits=max(0, longest - request.max_tokens) / prompt,
            )

    def _tokenize(self, request: ChatRequest, images: list[Image.Image], is_first: bool) -> Any:
        """The processor's output for a request, framed by the template as a first or later turn."""
        tokenizer = self.processor.tokenizer
        messages = [{"role": "user", "content": content_parts(request.text, self.markers)}]
        if not is_first:
            messages = EXAMPLE_MESSAGES + messages
        text = self.processor.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=False
        )
        if is_first:
            # Some templates write the BOS token themselves, others leave it to the tokenizer.
            bos = tokenizer.bos_token
            add_special_tokens = not (bos and text.startswith(bos))
        else:
            # The transcript already ends with the end token of the model's turn.
            end_token = tokenizer.convert_ids_to_tokens(self.end_token)
            text = text.partition(EXAMPLE_REPLY)[2].removeprefix(end_token)
            add_special_tokens = False
        if not images:
            return tokenizer(
                text=[text], return_tensors="pt", add_special_tokens=add_special_tokens
            )
        return self.processor(
            text=[text], images=[images], return_tensors="pt", add_special_tokens=add_special_tokens
        )

    @torch.inference_mode()
    def reply(self, asked: Sequence[tuple[Transcript, ChatRequest]]) -> list[ChatReply | Exception]:
        """Generate one reply per request, in batches of similar length.

        A request that cannot be appended (see `append_request`) has its ValueError as its reply. A
        batch that exceeds the memory is divided. If generation fails, no transcript is changed.
        """
        positions = [transcript.position() for transcript, _ in asked]
        try:
            return self._reply(asked)
        except BaseException:
            for (transcript, _), position in zip(asked, positions, strict=True):
                transcript.rewind(position)
            raise

    def _reply(
        self, asked: Sequence[tuple[Transcript, ChatRequest]]
    ) -> list[ChatReply | Exception]:

        def length(n: int) -> int:
            transcript, _ = asked[n]
            return len(transcript.ids)

        replies: dict[int, ChatReply | Exception] = {}
        valid = []
        for n, (transcript, request) in enumerate(asked):
            try:
                self.append_request(transcript, request)
            except ValueError as error:
                replies[n] = error
            else:
                valid.append(n)
        previous = self.cached_prefixes
        self.cached_prefixes = WeakKeyDictionary()
        valid.sort(key=length)
        width = self.settings.batch_width
        for start in range(0, len(valid), width):
            batch = valid[start : start + width]
            batch_replies = self._generate_in_parts([asked[n] for n in batch], previous)
            replies.update(zip(batch, batch_replies, strict=True))
        return [replies[n] for n in range(len(asked))]

    def _generate_in_parts(
        self, asked: list[tuple[Transcript, ChatRequest]], previous: CachedPrefixes
    ) -> list[ChatReply]:
        """Generate one batch, or its halves if it exceeds the memory."""
        try:
            return self._generate(asked, previous)
        except torch.OutOfMemoryError:
            if len(asked) == 1:
                raise
        torch.cuda.empty_cache()
        half = len(asked) // 2
        replies = self._generate_in_parts(asked[:half], previous)
        return replies + self._generate_in_parts(asked[half:], previous)

    def _generate(
        self, asked: list[tuple[Transcript, ChatRequest]], previous: CachedPrefixes
    ) -> list[ChatReply]:
        """Generate one batch; takes the prefixes that it reuses out of `previous`."""
        transcripts = [transcript for transcript, _ in asked]
        cache, cached_lengths = self._join_caches(transcripts, previous)
        batch = self._batch(transcripts, cached_lengths)
        max_tokens = max(request.max_tokens for _, request in asked)
        output = self._sample(batch, cache, max_tokens)
        replies = []
        for row, (transcript, request) in enumerate(asked):
            new, text = self._trim(output[row], request.max_tokens)
            has_ended = bool(new) and new[-1] in self.stop_tokens or self._is_closed(text)
            stop = "stop" if has_ended else "length"
            replies.append(ChatReply(text, len(transcript.ids), len(new), stop))
            transcript.append(new, generated=True)
            if self.reuse_cache and cache.get_seq_length() > 0:
                columns = cached_columns(cache, batch["attention_mask"][row], len(new))
                self.cached_prefixes[transcript] = CachedPrefix(cache, row, columns)
            if not new or new[-1] != self.end_token:
                # The reply was cut: close the turn. The mask shows that the model did not close it.
                transcript.append([self.end_token], generated=False)
        return replies

    def _join_caches(
        self, transcripts: list[Transcript], previous: CachedPrefixes
    ) -> tuple[DynamicCache, list[int]]:
        """A cache that holds the transcripts' cached prefixes, and the length of each prefix."""
        prefixes = []
        lengths = []
        for transcript in transcripts:
            prefix = previous.pop(transcript, None)
            prefixes.append(prefix)
            lengths.append(len(prefix.columns) if prefix else 0)
        cache = DynamicCache(config=self.config)
        if self.reuse_cache:
            cache.layers = [GrowingLayer() for _ in cache.layers]
        if any(lengths):
            fill_cache(cache, prefixes)
        return cache, lengths

    def _sample(
        self, batch: dict[str, torch.Tensor], cache: DynamicCache, max_tokens: int
    ) -> list[list[int]]:
        """Call `generate`; returns the new tokens of each row, padded on the right."""
        settings = self.settings
        prompt_width = batch["input_ids"].shape[1]
        criteria = [partial(self._turns_ended, prompt_width)] if self.closing_tags else None
        sampling: dict[str, Any] = dict(do_sample=False)
        if settings.temperature > 0:
            sampling = dict(do_sample=True, temperature=settings.temperature, top_k=0, top_p=1.0)
        with torch.random.fork_rng(enabled=settings.seed is not None):
            if settings.seed is not None:
                torch.manual_seed(settings.seed + self.generate_calls)
            output = self.model.generate(
                **batch,
                **sampling,
                past_key_values=cache if self.reuse_cache else None,
                eos_token_id=self.stop_tokens,
                pad_token_id=self.processor.tokenizer.pad_token_id,
                max_new_tokens=max_tokens,
                suppress_tokens=self.forbidden_tokens,
                repetition_penalty=settings.repetition_penalty,
                stopping_criteria=criteria,
            )
        self.generate_calls += 1
        return output[:, prompt_width:].tolist()

    def _turns_ended(self, prompt_width: int, ids: torch.Tensor, _: Any, **__: Any) -> torch.Tensor:
        """Which rows end with a closing tag outside of a thinking block, as for `generate`."""
        decode = self.processor.tokenizer.decode
        ended = []
        for row in ids[:, prompt_width:].tolist():
            # Only the end is decoded at every token; a tag is shorter than its bytes.
            has_tag = self._has_closing_tag(decode(row[-16:], skip_special_tokens=True))
            ended.append(has_tag and self._is_closed(decode(row, skip_special_tokens=True)))
        return torch.tensor(ended, device=ids.device)

    def _has_closing_tag(self, text: str) -> bool:
        return any(tag in text for tag in self.closing_tags)

    def _is_closed(self, text: str) -> bool:
        """Whether a turn is over: it has a closing tag that the model does not merely think of."""
        thought, end_of_thought, after = text.partition("</think>")
        is_thinking = text.lstrip().startswith("<think>")
        said = after if end_of_thought else "" if is_thinking else thought
        return self._has_closing_tag(said)

    def _trim(self, tokens: list[int], max_tokens: int) -> tuple[list[int], str]:
        """Cut generated tokens to `max_tokens` and after the first stop token; also their text."""
        tokenizer = self.processor.tokenizer
        tokens = tokens[:max_tokens]
        for n, token in enumerate(tokens):
            if token in self.stop_tokens:
                tokens = tokens[: n + 1]
                break
        text = tokenizer.decode(tokens, skip_special_tokens=True)
        if self._is_closed(text):
            # The turn ended with the tag; the row was padded while other rows went on.
            while tokens and tokens[-1] == tokenizer.pad_token_id:
                tokens.pop()
        return tokens, text

    def _batch(
        self, transcripts: list[Transcript], cached_lengths: list[int] | None = None
    ) -> dict[str, torch.Tensor]:
        """The model's inputs for transcripts of which the first `cached_lengths` tokens are cached.

        Each row is padded on the left of its cached tokens, and again on the left of the rest, so
        that the cached tokens are aligned with the columns of the cache.
        """
        if cached_lengths is None:
            cached_lengths = [0] * len(transcripts)
        processor = self.processor
        mask = padding_mask(transcripts, cached_lengths)
        ids = torch.full_like(mask, processor.tokenizer.pad_token_id)
        all_ids = []
        for transcript in transcripts:
            all_ids += transcript.ids
        ids[mask.bool()] = torch.tensor(all_ids)
        batch = {"input_ids": ids, "attention_mask": mask}
        if getattr(processor, "return_mm_token_type_ids", False):
            # Without token types, positions silently fall back from three dimensions to one.
            token_types = processor.create_mm_token_type_ids(ids.tolist())
            named = "token_type_ids" in processor.model_input_names
            name = "token_type_ids" if named else "mm_token_type_ids"
            batch[name] = torch.tensor(token_types)
        batch = {key: value.to(self.model.device) for key, value in batch.items()}
        if any(cached_lengths):
            # Computed from all images; by default, `generate` would continue from the positions of
            # another batch.
            all_images = self._vision_inputs(transcripts, [0] * len(transcripts))
            prepare_position_ids = self.model._prepare_position_ids_for_generation
            batch["position_ids"] = prepare_position_ids(batch["input_ids"], batch | all_images)
        return batch | self._vision_inputs(transcripts, cached_lengths)

    def _vision_inputs(
        self, transcripts: list[Transcript], first_positions: list[int]
    ) -> dict[str, torch.Tensor]:
        """The inputs of all images at or after each transcript's first position, concatenated."""
        requests = []
        for transcript, first in zip(transcripts, first_positions, strict=True):
            for position, inputs in transcript.vision_inputs:
                if position >= first:
                    requests.append(inputs)
        if not requests:
            return {}
        joined = {}
        for key in requests[0]:
            tensors = [inputs[key] for inputs in requests]
            joined[key] = concatenate_padded(tensors, self.model.device)
        return joined
