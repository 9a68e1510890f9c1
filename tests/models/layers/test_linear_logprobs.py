"""Hidden states to log-probabilities against full logits: values, gradients, chunks, and what is kept in memory."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import nn

from lit_rlhf.models.layers import linear_logprobs as module
from lit_rlhf.models.layers.linear_logprobs import LogitTransform, linear_logprobs

N, H, V = 7, 5, 11
TRANSFORMS = (None, LogitTransform(0.3), LogitTransform(softcap=2.0), LogitTransform(1.7, 1.5, 0.6))


def full(hidden, weight, targets, bias, transform):
    """The same with all logits in memory; log-probabilities, entropies, logs of the sums of squares."""
    transform = transform or LogitTransform()
    logits = nn.functional.linear(hidden, weight, bias) * transform.scale
    if transform.softcap:
        logits = transform.softcap * torch.tanh(logits / transform.softcap)
    logprobs = torch.log_softmax(logits / transform.temperature, dim=-1)
    probs = logprobs.exp()
    entropy, squares = -(probs * logprobs).sum(-1), probs.square().sum(-1).log()
    return logprobs.gather(1, targets[:, None])[:, 0], entropy, squares


def inputs(trained=(True, True, True), dtype=torch.float32):
    torch.manual_seed(0)
    shapes = zip(((N, H), (V, H), (V,)), trained, strict=True)
    made = [torch.randn(shape, dtype=dtype).requires_grad_(needs) for shape, needs in shapes]
    return *made, torch.randint(V, (N,))


@pytest.fixture(params=[1, 9, 3 * V, 10**6], ids=["alone", "one_by_six", "three_by_ten", "all_rows"])
def _chunks(monkeypatch, request):
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", request.param)


@pytest.mark.usefixtures("_chunks")
@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("trained", [*product((True, False), repeat=3)])
@pytest.mark.parametrize("with_bias", [True, False])
def test_values_and_gradients(transform, trained, with_bias):
    hidden, weight, bias, targets = inputs(trained)
    bias = bias if with_bias else None
    expected, entropy, squares = full(hidden, weight, targets, bias, transform)
    ours = linear_logprobs(
        hidden, weight, targets, bias, transform=transform, with_entropy=True, with_log_sum_squares=True
    )
    torch.testing.assert_close(ours.logprobs, expected)
    torch.testing.assert_close(ours.entropy, entropy)
    torch.testing.assert_close(ours.log_sum_squares, squares)
    assert not ours.entropy.requires_grad
    leaves = [leaf for leaf in (hidden, weight, bias) if leaf is not None and leaf.requires_grad]
    assert ours.logprobs.requires_grad == bool(leaves)
    if leaves:
        incoming = torch.linspace(-2, 1, N)
        wanted = torch.autograd.grad(expected, leaves, incoming)
        for got, want in zip(torch.autograd.grad(ours.logprobs, leaves, incoming), wanted, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("_chunks")
@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("trained", [each for each in product((True, False), repeat=3) if any(each)])
def test_the_entropy_carries_its_gradient(transform, trained):
    hidden, weight, bias, targets = inputs(trained)
    leaves = [leaf for leaf in (hidden, weight, bias) if leaf.requires_grad]
    logprobs, entropy, _ = full(hidden, weight, targets, bias, transform)
    ours = linear_logprobs(hidden, weight, targets, bias, transform=transform, entropy_gradient=True)
    torch.testing.assert_close(ours.entropy, entropy)
    alone, incoming = torch.linspace(1, -2, N), torch.linspace(-2, 1, N)
    for outputs, expected in (
        ((alone * ours.entropy).sum(), (alone * entropy).sum()),
        ((alone * ours.entropy + incoming * ours.logprobs).sum(), (alone * entropy + incoming * logprobs).sum()),
        ((incoming * ours.logprobs).sum(), (incoming * logprobs).sum()),
    ):
        wanted = torch.autograd.grad(expected, leaves, retain_graph=True)
        for got, want in zip(torch.autograd.grad(outputs, leaves, retain_graph=True), wanted, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-5, atol=3e-6)


@pytest.mark.usefixtures("_chunks")
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_the_likeliest_token_is_known(transform):
    hidden, weight, bias, _ = inputs()
    transform = transform or LogitTransform()
    order = transform(nn.functional.linear(hidden, weight, bias)).argsort(-1, descending=True)
    for place in range(3):
        ours = linear_logprobs(hidden, weight, order[:, place], bias, transform=transform)
        assert ours.is_likeliest.tolist() == [place == 0] * N
    equal = linear_logprobs(torch.zeros(1, H), torch.zeros(V, H), torch.tensor([4]))
    assert equal.is_likeliest.tolist() == [True]


@pytest.mark.parametrize("transform", [None, LogitTransform(1.7, temperature=0.6)])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_leads_over_the_mean_of_all_logits_and_their_gradients(transform, with_bias, dtype):
    hidden, weight, bias, targets = inputs(dtype=dtype)
    leaves = [hidden, weight, bias] if with_bias else [hidden, weight]
    wide = [leaf.detach().float().requires_grad_() for leaf in leaves]
    logits = (transform or LogitTransform())(nn.functional.linear(*wide))
    wanted = logits.gather(1, targets[:, None])[:, 0] - logits.mean(-1)
    ours = linear_logprobs(*leaves[:2], targets, *leaves[2:], transform=transform, with_leads=True).leads
    torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-6)
    incoming = torch.linspace(-2, 1, N)
    expected = torch.autograd.grad(wanted, wide, incoming)
    for got, want in zip(torch.autograd.grad(ours, leaves, incoming), expected, strict=True):
        torch.testing.assert_close(got, want.to(dtype), rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-2)


def test_leads_only_where_they_are_asked_for_and_can_be_had():
    hidden, weight, bias, targets = inputs()
    assert len(linear_logprobs(hidden, weight, targets, bias).leads) == 0
    with pytest.raises(ValueError, match="label smoothing needs the mean of the logits, which a model with a softcap"):
        linear_logprobs(hidden, weight, targets, bias, transform=LogitTransform(softcap=2.0), with_leads=True)


def test_the_entropy_of_a_coin_by_hand():
    """H = -p log p - q log q with p = sigmoid(h): dH/dh = -p q h, which is -0.75 * 0.25 * log 3 at p = 3/4."""
    hidden = torch.tensor([[3.0]]).log().requires_grad_()
    for weight in (torch.tensor([[1.0], [0.0]]), torch.tensor([[1.0], [0.0]], requires_grad=True)):
        (gradient,) = torch.autograd.grad(
            linear_logprobs(hidden, weight, torch.tensor([0]), entropy_gradient=True).entropy.sum(), hidden
        )
        torch.testing.assert_close(gradient, torch.tensor([[-0.205990]]))


def test_an_entropy_bonus_flattens_the_distribution():
    hidden, weight, _, targets = inputs((True, False, False))
    before = linear_logprobs(hidden, weight, targets, entropy_gradient=True).entropy
    before.sum().backward()
    after = linear_logprobs(hidden.detach() + 0.01 * hidden.grad, weight, targets, with_entropy=True).entropy
    assert (after > before).all()


@pytest.mark.parametrize("trained", [(True, False, False), (True, True, True)])
def test_nothing_of_rows_times_vocabulary_is_kept(trained):
    hidden, weight, bias, targets = inputs(trained)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.numel()) or tensor, lambda x: x):
        linear_logprobs(hidden, weight, targets, bias, with_log_sum_squares=True, entropy_gradient=True)
    assert kept
    assert max(kept) <= V * H < N * V
    without = linear_logprobs(hidden.detach(), weight.detach(), targets, bias.detach())
    assert without.logprobs.grad_fn is None


def test_no_chunk_exceeds_the_limit(monkeypatch):
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", 3 * V)
    seen = []
    plain = module._linear
    monkeypatch.setattr(module, "_linear", lambda *a: seen.append(plain(*a)) or seen[-1])
    hidden, weight, bias, targets = inputs()
    linear_logprobs(hidden, weight, targets, bias).logprobs.sum().backward()
    assert max(logits.numel() for logits in seen) <= 3 * V
    assert min(len(logits[0]) for logits in seen) < V  # the vocabulary is cut as well as the rows
    assert sum(logits.numel() for logits in seen) == 2 * N * V


def test_what_is_not_asked_for_is_empty():
    ours = linear_logprobs(*inputs()[:2], inputs()[3])
    assert (len(ours.entropy), len(ours.log_sum_squares)) == (0, 0)


def test_no_rows():
    hidden, weight, bias, _ = inputs()
    ours = linear_logprobs(hidden[:0], weight, torch.zeros(0, dtype=torch.int64), bias, with_entropy=True)
    assert ours.logprobs.shape == (0,)
    ours.logprobs.sum().backward()
    assert not hidden.grad.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gives_float32_log_probabilities(dtype):
    hidden, weight, bias, targets = inputs(dtype=dtype)
    ours = linear_logprobs(hidden, weight, targets, bias).logprobs
    expected = full(hidden.float(), weight.float(), targets, bias.float(), None)[0]
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, expected, rtol=2e-2, atol=2e-2)
    for got, want in zip(
        torch.autograd.grad(ours.sum(), (hidden, weight, bias)),
        torch.autograd.grad(expected.sum(), (hidden, weight, bias)),
        strict=True,
    ):
        assert got.dtype == dtype
        torch.testing.assert_close(got, want, rtol=5e-2, atol=5e-2)


def test_extreme_logits_stay_finite():
    hidden = torch.tensor([[1e4], [-1e4]], requires_grad=True)
    ours = linear_logprobs(hidden, torch.tensor([[1.0], [-1.0]]), torch.tensor([1, 0]), with_entropy=True)
    assert ours.logprobs.tolist() == [-2e4, -2e4]
    assert ours.entropy.tolist() == [0.0, 0.0]
    ours.logprobs.sum().backward()
    assert hidden.grad.isfinite().all()


@pytest.mark.parametrize("is_head_trained", [True, False])
def test_the_entropy_gradient_of_extreme_logits_stays_finite(is_head_trained):
    hidden = torch.tensor([[1e4], [-1e4], [0.0]], requires_grad=True)
    weight = torch.tensor([[1.0], [-1.0]], requires_grad=is_head_trained)
    linear_logprobs(hidden, weight, torch.tensor([1, 0, 0]), entropy_gradient=True).entropy.sum().backward()
    assert hidden.grad.tolist() == [[0.0], [0.0], [0.0]]


def test_a_gradient_keeps_its_digits_where_the_target_is_all_but_certain():
    """1 - p is 1e-9 here, which float32 cannot tell from 1 - 1; the gradient is that small, and right."""
    hidden = torch.tensor([[20.723]], requires_grad=True)
    linear_logprobs(hidden, torch.tensor([[1.0], [0.0]]), torch.tensor([0])).logprobs.sum().backward()
    torch.testing.assert_close(hidden.grad, torch.sigmoid(-hidden.detach()), rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("hidden", "weight", "targets"), [((2, 3), (4, 5), (2,)), ((2, 3), (4, 3), (3,)), ((1, 2, 3), (4, 3), (1,))]
)
def test_shapes_that_do_not_belong_together(hidden, weight, targets):
    with pytest.raises(ValueError, match=r"do not fit \(N, H\), \(V, H\) and \(N,\)"):
        linear_logprobs(torch.zeros(hidden), torch.zeros(weight), torch.zeros(targets, dtype=torch.int64))
