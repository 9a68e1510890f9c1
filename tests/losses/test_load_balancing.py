"""The load-balancing loss by hand, beside transformers' own, and cut into micro-batches."""

from __future__ import annotations

import pytest
import torch

from lit_rlhf.losses.load_balancing import expert_load, load_balancing_loss


def sums(logits: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(D, E) sums of probabilities and counts of choices of logits (D, T, E)."""
    probabilities = logits.softmax(-1)
    chosen = torch.nn.functional.one_hot(logits.topk(k).indices, logits.shape[-1]).sum((1, 2))
    return probabilities.sum(1), chosen.float()


def test_by_hand():
    # Two tokens choose expert 0, one expert 1, none expert 2. f = (2/3, 1/3, 0), P = (0.5, 0.3, 0.2):
    # 3 * (2/3 * 0.5 + 1/3 * 0.3) = 1.3.
    loss = load_balancing_loss(
        torch.tensor([[1.5, 0.9, 0.6]]), torch.tensor([[2.0, 1.0, 0.0]]), num_tokens=torch.tensor(3.0)
    )
    assert float(loss) == pytest.approx(1.3)


def test_even_is_k_and_collapsed_is_the_number_of_experts():
    even = load_balancing_loss(torch.full((1, 4), 2.0), torch.full((1, 4), 4.0), num_tokens=torch.tensor(8.0))
    collapsed = torch.tensor([[8.0, 0.0, 0.0, 0.0]])
    assert float(even) == 2.0
    assert float(load_balancing_loss(collapsed, collapsed, num_tokens=torch.tensor(8.0))) == 4.0


def test_a_probability_that_was_softmaxed_twice_hides_a_collapse():
    # Logits (20, 0, 0, 0) of every token: P is (1, 0, 0, 0) and the loss 4. Taken for logits once more, P becomes
    # (e, 1, 1, 1) / (e + 3) = (0.475, ...), and the loss 1.9: hardly more than the 1 of an even router.
    logits = torch.tensor([20.0, 0.0, 0.0, 0.0]).expand(1, 5, 4)
    probabilities, choices = sums(logits, 1)
    twice = logits.softmax(-1).softmax(-1).sum(1)
    right = load_balancing_loss(probabilities, choices, num_tokens=torch.tensor(5.0))
    wrong = load_balancing_loss(twice, choices, num_tokens=torch.tensor(5.0))
    assert float(right) == pytest.approx(4.0, abs=1e-6)
    assert float(wrong) == pytest.approx(4 * 2.71828 / 5.71828, abs=1e-4)


def test_pooled_is_blind_to_layers_that_collapse_onto_different_experts():
    collapsed = torch.tensor([[6.0, 0.0], [0.0, 6.0]])
    tokens = torch.tensor(6.0)
    assert float(load_balancing_loss(collapsed, collapsed, num_tokens=tokens)) == 2.0
    assert (
        float(load_balancing_loss(collapsed, collapsed, num_tokens=tokens, pooled=True)) == 1.0
    )  # that of an even one


def test_pooled_is_what_transformers_computes():
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    logits = torch.randn(3, 11, 4)
    theirs = load_balancing_loss_func(tuple(logits), num_experts=4, top_k=2)
    probabilities, choices = sums(logits, 2)
    ours = load_balancing_loss(probabilities, choices, num_tokens=torch.tensor(11.0), pooled=True)
    assert float(ours) == pytest.approx(float(theirs), rel=1e-6)
    one = load_balancing_loss(probabilities[:1], choices[:1], num_tokens=torch.tensor(11.0))
    assert float(one) == pytest.approx(float(load_balancing_loss_func((logits[0],), num_experts=4, top_k=2)), rel=1e-6)


@pytest.mark.parametrize("pooled", [False, True])
def test_micro_batches_sum_to_the_step_in_value_and_gradient(pooled: bool):
    logits = torch.randn(2, 10, 4, requires_grad=True)
    tokens = torch.tensor(10.0)
    probabilities, choices = sums(logits, 2)
    whole = load_balancing_loss(probabilities, choices, num_tokens=tokens, pooled=pooled)
    (expected,) = torch.autograd.grad(whole, logits)
    parts = [sums(logits[:, cut], 2)[0] for cut in (slice(0, 3), slice(3, 10))]
    cut = sum(load_balancing_loss(part, choices, num_tokens=tokens, pooled=pooled) for part in parts)
    (gradient,) = torch.autograd.grad(cut, logits)
    torch.testing.assert_close(cut, whole)
    torch.testing.assert_close(gradient, expected)
    assert expected.abs().max() > 1e-3


def test_the_gradient_takes_from_the_expert_that_is_chosen_most():
    logits = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]], requires_grad=True)
    probabilities, choices = sums(logits, 1)
    load_balancing_loss(probabilities, choices, num_tokens=torch.tensor(3.0)).backward()
    assert (logits.grad[..., 0] > 0).all()
    assert (logits.grad[..., 1] < 0).all()


def test_expert_load():
    load = expert_load(torch.tensor([[4.0, 4.0, 4.0, 4.0], [8.0, 8.0, 0.0, 0.0]]))
    assert float(load.max) == 2.0
    assert float(load.min) == 0.0
    assert float(load.entropy) == pytest.approx((1.0 + 0.5) / 2)


def test_shapes_are_checked():
    with pytest.raises(ValueError, match=r"are not both \(D, E\)"):
        load_balancing_loss(torch.ones(4), torch.ones(1, 4), num_tokens=torch.tensor(1.0))
