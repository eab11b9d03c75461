"""The log-likelihood of texts under a local model."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

from personavlm_lib.models.local import LocalModel

PADDING = -1  # no token id


class TextLikelihood(NamedTuple):
    """The log-likelihood of a text in nats (at most 0), and the number of tokens counted."""

    nats: float
    tokens: int


def log_likelihoods(
    model: LocalModel, texts: Sequence[str], prefix: str = "", max_tokens: int | None = None
) -> list[TextLikelihood]:
    """The log-likelihood of each text after `prefix`, such as the header of a chat turn.

    The prefix is tokenized apart from the text, and not counted. Without one, the first token of a
    text is not counted, because nothing predicts it. A text is cut after `max_tokens` tokens.
    Special tokens in a text count as such. A batch holds `model.settings.batch_width` texts of
    similar length. Raises ValueError if a text is longer than the model's context.
    """
    tokenizer = model.processor.tokenizer
    prefix_ids = tokenizer(prefix, add_special_tokens=False).input_ids
    encoded = [tokenizer(text, add_special_tokens=False).input_ids for text in texts]
    rows = [torch.tensor(prefix_ids + ids[:max_tokens], dtype=torch.long) for ids in encoded]
    longest = model.config.max_position_embeddings
    if max(map(len, rows), default=0) > longest:
        raise ValueError(f"a text is longer than the {longest} tokens of model {model.name}")
    order = sorted(range(len(rows)), key=lambda n: len(rows[n]))
    width = model.settings.batch_width
    measured: dict[int, TextLikelihood] = {}
    for start in range(0, len(rows), width):
        batch = order[start : start + width]
        likelihoods = _measure(model, [rows[n] for n in batch], max(len(prefix_ids), 1))
        measured.update(zip(batch, likelihoods, strict=True))
    return [measured[n] for n in range(len(rows))]


@torch.inference_mode()
def _measure(model: LocalModel, rows: list[torch.Tensor], given: int) -> list[TextLikelihood]:
    """Measure one batch, padded on the right; the first `given` tokens are not counted."""
    padded = pad_sequence(rows, batch_first=True, padding_value=PADDING).to(model.model.device)
    mask = padded != PADDING
    logits = model.model(input_ids=padded.clamp(min=0), attention_mask=mask.long()).logits
    # The logits at a token are those of the next one.
    counted = mask[:, given:]
    next_logits = logits[:, given - 1 : -1][counted]
    losses = cross_entropy(next_logits.float(), padded[:, given:][counted], reduction="none")
    by_text = losses.split(counted.sum(1).tolist())
    return [TextLikelihood(-text.sum().item(), len(text)) for text in by_text]
