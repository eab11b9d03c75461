"""Transcripts of a local model as token ids, and the parts of a KV cache that belong to them."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from PIL import Image
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

ROOM = 128  # tokens that a cache can take before it is copied into a larger buffer


@dataclass(eq=False)  # compared by identity, so that it can be a weak dictionary's key
class Transcript:
    """A conversation as token ids; `generated_mask` is 1 for tokens that the model generated."""

    ids: list[int] = field(default_factory=list)
    generated_mask: list[int] = field(default_factory=list)
    images: list[Image.Image] = field(default_factory=list)
    prompt_length: int = 0  # tokens of the first prompt; the first completion starts there
    # For each request with images: the position of its first token, and the processor's outputs
    # other than tokens (pixels, sizes, ...).
    vision_inputs: list[tuple[int, dict[str, torch.Tensor]]] = field(default_factory=list)

    def position(self) -> tuple[int, int, int]:
        return len(self.ids), len(self.images), len(self.vision_inputs)

    def rewind(self, position: tuple[int, int, int]) -> None:
        """Undo everything since `position`."""
        ids, images, inputs = position
        del self.ids[ids:], self.generated_mask[ids:], self.images[images:]
        del self.vision_inputs[inputs:]

    def append(self, ids: list[int], generated: bool) -> None:
        self.ids += ids
        self.generated_mask += [int(generated)] * len(ids)


class GrowingLayer(DynamicLayer):
    """The keys and values of one layer, in buffers with room for more tokens.

    The stock layer copies all of them for every new token, which took a quarter of the time of an
    evaluation on a CPU.
    """

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append states (rows, heads, tokens, d); returns those of all tokens."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.buffers = [key_states[..., :0, :], value_states[..., :0, :]]
        start = self.get_seq_length()
        stop = start + key_states.shape[-2]
        for n, new in enumerate((key_states, value_states)):
            old = self.buffers[n]
            if stop > old.shape[-2]:
                rows, heads, _, width = new.shape
                self.buffers[n] = new.new_empty(rows, heads, stop + ROOM, width)
                self.buffers[n][..., :start, :] = old[..., :start, :]
            self.buffers[n][..., start:stop, :] = new
        self.keys, self.values = [buffer[..., :stop, :] for buffer in self.buffers]
        return self.keys, self.values


class CachedPrefix(NamedTuple):
    """The part of a batch's KV cache that belongs to one transcript."""

    cache: DynamicCache
    row: int
    columns: torch.Tensor  # (n,): the columns that hold the transcript's first n tokens


# Weak keys: the cached prefix of a transcript is freed with the transcript.
CachedPrefixes = WeakKeyDictionary[Transcript, CachedPrefix]


def padding_mask(transcripts: list[Transcript], cached_lengths: list[int]) -> torch.Tensor:
    """The attention mask of a batch, (transcripts, tokens): 1 for a token, else 0."""
    new_lengths = []
    for transcript, cached in zip(transcripts, cached_lengths, strict=True):
        new_lengths.append(len(transcript.ids) - cached)
    most_cached = max(cached_lengths)
    most_new = max(new_lengths)
    rows = []
    for cached, new in zip(cached_lengths, new_lengths, strict=True):
        row = [0] * (most_cached - cached)
        row += [1] * cached
        row += [0] * (most_new - new)
        row += [1] * new
        rows.append(row)
    return torch.tensor(rows)


def cached_columns(cache: DynamicCache, prompt_mask: torch.Tensor, generated: int) -> torch.Tensor:
    """The columns of a cache that hold one row's tokens; the last one is usually not cached yet."""
    start = len(prompt_mask)
    length = cache.get_seq_length()
    stop = min(start + generated, length)
    device = prompt_mask.device
    prompt_columns = prompt_mask.nonzero()[:, 0]
    generated_columns = torch.arange(start, stop, device=device)
    return torch.cat([prompt_columns, generated_columns])


def concatenate_padded(tensors: list[torch.Tensor], device: torch.device) -> torch.Tensor:
    """Concatenate along the first axis, padding all other axes with zeros to their largest size."""
    lengths = [len(tensor) for tensor in tensors]
    shapes = [tensor.shape for tensor in tensors]
    largest = [max(sizes) for sizes in zip(*shapes, strict=True)]
    joined = tensors[0].new_zeros(sum(lengths), *largest[1:], device=device)
    for tensor, target in zip(tensors, joined.split(lengths), strict=True):
        region = tuple(slice(size) for size in tensor.shape)
        target[region] = tensor
    return joined


def fill_cache(cache: DynamicCache, prefixes: list[CachedPrefix | None]) -> None:
    """Write cached prefixes into an empty cache, padded on the left; None is an empty prefix."""
    example = next(prefix for prefix in prefixes if prefix)
    empty = example._replace(columns=example.columns[:0])
    rows = [prefix or empty for prefix in prefixes]
    for layer in range(len(example.cache.layers)):
        keys = _padded_states(rows, layer, "keys")
        values = _padded_states(rows, layer, "values")
        cache.update(keys, values, layer)


def _padded_states(prefixes: list[CachedPrefix], layer: int, name: str) -> torch.Tensor:
    """The "keys" or "values" of a layer: (prefixes, heads, tokens, d), padded on the left."""
    rows = []
    for prefix in prefixes:
        cache_layer = prefix.cache.layers[layer]
        states = getattr(cache_layer, name)  # (rows, heads, tokens, d)
        by_token = states[prefix.row].transpose(0, 1)
        rows.append(by_token[prefix.columns])
    padded = pad_sequence(rows, batch_first=True, padding_side="left")
    return padded.transpose(1, 2)
