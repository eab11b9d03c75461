"""Log-likelihoods of texts, against a plain loop over one text at a time."""

import pytest
import torch

from personavlm_lib.models.likelihood import log_likelihoods
from personavlm_lib.models.local import GenerationSettings, LocalModel

TEXTS = ["My cat is called Miso.", "", "x", "a long text " * 9, "two\nlines <|im_end|>", "é 😀"]
HEADER = "<|im_start|>user\n"


@pytest.fixture
def model(architecture):
    return LocalModel(architecture, settings=GenerationSettings(batch_width=3))


@torch.no_grad()
def plain(model, text, prefix, max_tokens=None):
    """(nats, tokens) of one text, token by token, without padding."""
    tokenizer = model.processor.tokenizer
    given = tokenizer(prefix, add_special_tokens=False).input_ids
    ids = given + tokenizer(text, add_special_tokens=False).input_ids[:max_tokens]
    nats = 0.0
    count = 0
    for n in range(max(len(given), 1), len(ids)):
        logits = model.model(input_ids=torch.tensor([ids[:n]])).logits[0, -1]
        nats += logits.log_softmax(-1)[ids[n]].item()
        count += 1
    return nats, count


@pytest.mark.parametrize("prefix", ["", HEADER])
def test_padded_batches_equal_one_text_at_a_time(model, prefix):
    found = log_likelihoods(model, TEXTS, prefix)
    assert len({round(likelihood.nats, 2) for likelihood in found}) >= 5
    for text, likelihood in zip(TEXTS, found, strict=True):
        nats, tokens = plain(model, text, prefix)
        assert likelihood.tokens == tokens
        assert likelihood.nats == pytest.approx(nats, abs=2e-3, rel=1e-4)


def test_neighbors_in_a_batch_do_not_change_a_text(model):
    """The mask: padding of any length, and whatever else is in the batch, changes nothing."""
    [alone] = log_likelihoods(model, ["My cat"], HEADER)
    for neighbor in ("y", "a long text " * 20):
        together = log_likelihoods(model, [neighbor, "My cat"], HEADER)
        assert together[1].tokens == alone.tokens
        assert together[1].nats == pytest.approx(alone.nats, abs=1e-3)


def test_text_is_cut_and_the_prefix_is_read_but_not_counted(model):
    [cut] = log_likelihoods(model, ["a long text"], HEADER, max_tokens=4)
    assert cut.tokens == 4
    assert cut.nats == pytest.approx(plain(model, "a long text", HEADER, 4)[0], abs=2e-3)
    [other] = log_likelihoods(model, ["a long text"], "<|im_start|>assistant\n", max_tokens=4)
    assert other.tokens == 4 and other.nats != pytest.approx(cut.nats, abs=1e-3)


def test_no_texts_and_a_text_longer_than_the_context(model):
    assert log_likelihoods(model, []) == []
    with pytest.raises(ValueError, match="a text is longer than the 2048 tokens of model"):
        log_likelihoods(model, ["fine", "x " * 2048])
