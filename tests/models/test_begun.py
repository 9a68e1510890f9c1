"""Going on from prompts that were computed before: the numbers and gradients of computing all at once."""

from __future__ import annotations

import pytest
import torch

from lit_rlhf.models.begun import BegunPrompts
from lit_rlhf.rollout.sampling import forest_decoder
from lit_rlhf.rollout.sampling.forest_decoder import ForestDecoder
from lit_rlhf.types import Forest, Segment

PROMPTS = ((5, 6, 7, 8, 9, 10), (11,), (12, 13, 14))
RESPONSES = {PROMPTS[2]: [(40, 41)], PROMPTS[0]: [(20, 21, 22), (30,), (31, 32)], PROMPTS[1]: [(50, 51)]}
"""In another order than the prompts were begun in."""


def begun_by(backbone, prompts=PROMPTS):
    """Prompts as a sampler leaves them, which decodes without gradients."""
    begun = BegunPrompts()
    with torch.no_grad():
        decoder = ForestDecoder(backbone, prompts, range(len(prompts)), 3, begun=begun)
    assert not decoder.states.requires_grad
    assert not any(x.requires_grad for pair in decoder.cache._responses.values() for x in pair)
    return begun


def forest_of(responses=RESPONSES, **changes):
    trees = []
    for prompt, behind in responses.items():
        segments = [Segment(response, [True] * len(response), 0) for response in behind]
        trees.append([Segment(prompt, [False] * len(prompt)), *segments])
    return Forest.pack(trees)._replace(**changes)


def said_and_learnt(backbone, forest):
    """Log-probabilities, and the gradients of an uneven sum of them."""
    backbone.zero_grad()
    logprobs = backbone.token_logprobs(forest).logprobs
    (logprobs * torch.linspace(-1, 2, len(logprobs))).sum().backward()
    return logprobs.detach(), {n: p.grad.clone() for n, p in backbone.named_parameters() if p.grad is not None}


@pytest.fixture
def make_policy(build, stir):
    """Policies whose adapters change something."""

    def make(**options):
        backbone = build(**{"fused": True, **options})
        stir(backbone)
        backbone.prepare()
        return backbone

    return make


@pytest.fixture
def watched_rows():
    """Numbers of tokens that went through the decoder, pass by pass."""

    def watch(backbone):
        rows = []
        backbone.base.get_decoder().layers[0].register_forward_hook(
            lambda _, inputs, __: rows.append(inputs[0].shape[1])
        )
        return rows

    return watch


@pytest.mark.parametrize("prefill", [4096, 1])
@pytest.mark.parametrize("options", [{}, {"fused": False}, {"quantization": "nf4"}], ids=str)
def test_the_numbers_and_gradients_of_one_pass(options, prefill, make_policy, monkeypatch, watched_rows):
    monkeypatch.setattr(forest_decoder, "PREFILL_TOKENS", prefill)
    backbone = make_policy(**options)
    forest = forest_of()
    expected, wanted = said_and_learnt(backbone, forest)
    begun = begun_by(backbone)
    rows = watched_rows(backbone)
    with backbone.going_on(begun):
        logprobs, gradients = said_and_learnt(backbone, forest)
    assert rows[-1] == sum(len(response) for behind in RESPONSES.values() for response in behind)
    torch.testing.assert_close(logprobs, expected, rtol=1e-5, atol=1e-5)
    assert gradients.keys() == wanted.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-4, atol=1e-5, msg=name)


def test_some_of_the_prompts_are_enough(make_policy):
    backbone = make_policy()
    forest = forest_of({PROMPTS[2]: [(40, 41)]})
    with torch.no_grad():
        expected = backbone.token_logprobs(forest).logprobs
        with backbone.going_on(begun_by(backbone)):
            torch.testing.assert_close(backbone.token_logprobs(forest).logprobs, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "forest",
    [
        forest_of({(5, 6, 7): [(20,)]}),
        forest_of({PROMPTS[0]: [(20,)], (1,): [(2,)]}),
        Forest.pack([[Segment(PROMPTS[0], [False, *[True] * 5])]]),
        Forest.pack([[Segment(PROMPTS[0], [False] * 6), Segment([], [], 0), Segment([20], [True], 0)]]),
        Forest.pack(
            [[Segment(PROMPTS[0], [False] * 6), Segment([20], [False], 0), Segment([21], [True], 1)]],
        ),
        forest_of(pictures=("a picture",)),
    ],
    ids=["another prompt", "one other prompt", "no response", "an empty response", "a third generation", "a picture"],
)
def test_what_was_not_begun_is_not_covered(forest, make_policy):
    backbone = make_policy()
    begun = begun_by(backbone)
    assert begun.covers(forest_of())
    assert not begun.covers(forest)
    assert not BegunPrompts().covers(forest_of())


@pytest.mark.parametrize("read", ["all", "ends"])
def test_other_reads_and_roles_begin_anew(read, make_policy, watched_rows):
    backbone = make_policy()
    forest, begun = forest_of(), begun_by(backbone)
    rows = watched_rows(backbone)
    with torch.no_grad(), backbone.going_on(begun):
        backbone.hidden_states(forest, read=read)
        with backbone.role("reference"):
            backbone.hidden_states(forest, read="predictors")
    backbone.hidden_states(forest, read="predictors")
    assert rows == [forest.num_tokens] * 3
