"""Layers that look at pictures compute for text alone, too, where other ranks may have pictures."""

from __future__ import annotations

import pytest
import torch

from lit_rlhf.models.vision import cross_inputs
from lit_rlhf.types import Forest, Segment


@pytest.mark.parametrize("attention", ["auto", "sdpa"])
def test_among_ranks_layers_that_look_compute_for_text_alone_too_and_add_nothing(attention, look, stir, monkeypatch):
    backbone = stir(look("mllama", attention=attention))
    forest, said = (
        Forest.pack(
            [
                [Segment([50, 51], [False] * 2), Segment([60, 61, 62], [True] * 3, 0)],
                [Segment([52], [False]), Segment([70, 71], [True] * 2, 0)],
            ]
        ),
        [],
    )
    for ranks in (1, 2):
        monkeypatch.setattr(cross_inputs, "num_ranks", lambda ranks=ranks: ranks)
        backbone.zero_grad()
        said.append(backbone.token_logprobs(forest).logprobs)
        said[-1].sum().backward()
        looking = [p.grad for name, p in backbone.named_parameters() if "cross_attn" in name and p.requires_grad]
        assert all((gradient is None) == (ranks == 1) for gradient in looking)
        assert len(looking) == 2 * 2 * 4
        assert all(gradient is None or not gradient.any() for gradient in looking)
    assert torch.allclose(*said, atol=1e-6)
