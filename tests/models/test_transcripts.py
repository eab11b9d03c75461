"""The KV cache that grows in place holds what the stock cache holds."""

import torch
from transformers.cache_utils import DynamicLayer

from personavlm_lib.models.transcripts import ROOM, GrowingLayer


def test_growing_layer_returns_the_states_of_the_stock_layer():
    growing = GrowingLayer()
    stock = DynamicLayer()
    torch.manual_seed(0)
    copies = 0
    for tokens in (7, *[1] * (ROOM + 5), 2 * ROOM, 1):
        keys = torch.randn(3, 2, tokens, 4)
        values = torch.randn(3, 2, tokens, 6)
        buffer = growing.buffers[0] if copies else None
        states = growing.update(keys, values)
        for own, expected in zip(states, stock.update(keys, values), strict=True):
            assert torch.equal(own, expected)
        assert growing.get_seq_length() == stock.get_seq_length()
        copies += growing.buffers[0] is not buffer
    assert copies == 3, "only a full buffer is replaced"
