"""A layer that is computed again is computed in what it was computed in, once in every backward pass."""

from __future__ import annotations

from contextlib import contextmanager

import torch

from lit_rlhf.models.recomputing import PassAgain


def test_role_and_context_come_back_each_time_and_go(build, ragged):
    backbone = build(gradient_checkpointing=True)
    backbone.prepare()
    seen = []

    @contextmanager
    def within():
        seen.append(("in", backbone.acting))
        yield
        seen.append(("out", backbone.acting))

    with backbone.role("critic"):
        again = PassAgain(backbone, "policy", within)
        for _ in range(2):
            with again:
                assert backbone.acting == "policy"
            assert backbone.acting == "critic"
    assert seen == [("in", "policy"), ("out", "policy")] * 2


def test_checkpointed_layers_are_computed_again_in_what_they_were_computed_in(build, ragged):
    for options in ({}, {"lora": {"enabled": False}}):
        backbone = build(gradient_checkpointing=True, reference="none", **options)
        backbone.prepare()
        entered = []

        @contextmanager
        def within(entered=entered):
            entered.append(torch.is_grad_enabled())
            yield

        with backbone.computing(within):
            logprobs = backbone.token_logprobs(ragged).logprobs
        assert len(entered) == 1
        logprobs.sum().backward()
        assert len(entered) == 1 + backbone.base.config.num_hidden_layers
        backbone.token_logprobs(ragged).logprobs.sum().backward()
        assert len(entered) == 1 + backbone.base.config.num_hidden_layers  # not of passes outside of it
