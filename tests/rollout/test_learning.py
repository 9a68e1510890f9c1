"""Passes over responses: their loss does not depend on cuts, every knob does what it says, errors name the row."""

from __future__ import annotations

import lightning
import pytest
import torch

from lit_rlhf.rollout.learning import TokenLosses, learn
from lit_rlhf.rollout.measuring import Measurer
from lit_rlhf.rollout.options import UpdateOptions
from lit_rlhf.rollout.packing import pack, packed_values


class Learner(lightning.LightningModule):
    """Raises the log-probability of responses, some more than others, by their place."""

    def __init__(self, policy, updates, learnt=None, spoil=None, rate=0.5):
        super().__init__()
        self.automatic_optimization = False
        self.policy, self.updates, self.learnt, self.spoil, self.rate = policy, updates, learnt, spoil, rate
        self.orders, self.kls = [], []

    def losses_of(self, micro_batch):
        logprobs = self.policy.token_logprobs(micro_batch.forest).logprobs
        weights = torch.arange(self.rollouts.tokens.numel()).view_as(self.rollouts.tokens) % 5 - 1.5
        losses = -logprobs * packed_values(weights, self.rollouts, micro_batch)
        if self.spoil is not None and self.spoil in micro_batch.members.tolist():
            losses = losses * torch.tensor(float("nan"))
        self.orders.append(micro_batch.members.tolist())
        old = packed_values(self.old, self.rollouts, micro_batch)
        moved = logprobs.detach() - old
        self.kls.append(float(moved.square().mean()) / 2)
        return TokenLosses(losses, moved.square() / 2, moved.exp())

    def training_step(self, rollouts, batch_idx):
        self.rollouts = rollouts
        self.old = Measurer(UpdateOptions(), 1.0).policy_and_reference(self.policy, rollouts).logprobs
        learnt = rollouts.response_mask if self.learnt is None else self.learnt
        self.found = learn(
            self, rollouts, self.losses_of, None, updates=self.updates, learnt=learnt, key=f"0:{batch_idx}"
        )

    def configure_optimizers(self):
        return torch.optim.SGD(
            [parameter for parameter in self.policy.parameters() if parameter.requires_grad], lr=self.rate
        )


@pytest.fixture
def run(make_policy, make_rollouts, fit):
    """Trains a fresh policy for one iteration of ready-made responses; the module with what it found."""

    def train(batch=None, learnt=None, spoil=None, rate=0.5, **updates):
        module = Learner(make_policy(), UpdateOptions(**{"max_grad_norm": 0.0, **updates}), learnt, spoil, rate)
        module.before = weights_of(module)
        module.trainer_ = fit(module, [make_rollouts() if batch is None else batch])
        return module

    return train


def weights_of(module):
    return {name: p.detach().clone() for name, p in module.policy.named_parameters() if p.requires_grad}


def assert_same(one, other, tolerance=1e-6):
    for name, weight in weights_of(one).items():
        torch.testing.assert_close(weight, weights_of(other)[name], rtol=tolerance, atol=tolerance, msg=name)


def moved(module):
    return sum(float((weight - module.before[name]).norm()) for name, weight in weights_of(module).items())


@pytest.mark.parametrize("average", ["tokens", "sequences"])
@pytest.mark.parametrize("budget", [1, 23])
def test_the_cut_does_not_change_what_is_learnt(run, average, budget):
    whole, cut = (run(average=average, token_budget=size, rate=0.05) for size in (10**6, budget))
    assert len(cut.orders) > len(whole.orders) == 4
    assert_same(whole, cut)
    assert float(cut.found.grad_norm) == pytest.approx(float(whole.found.grad_norm), rel=1e-4)
    assert float(cut.found.ratio_max) == pytest.approx(float(whole.found.ratio_max), rel=1e-4)


def test_tokens_behind_a_response_are_never_read(run, make_rollouts):
    plain, spoilt = make_rollouts(), make_rollouts(garbage=True)
    width = plain.tokens.shape[1]
    spoilt = spoilt._replace(
        tokens=spoilt.tokens[:, :width],
        response_mask=spoilt.response_mask[:, :width],
        logprobs=spoilt.logprobs[:, :width],
    )
    assert not spoilt.tokens.equal(plain.tokens)
    assert_same(run(plain), run(spoilt), 0.0)


@pytest.mark.parametrize("average", ["tokens", "sequences"])
def test_one_step_is_that_of_the_average_by_hand(run, make_policy, make_rollouts, average):
    module = run(average=average, num_epochs=1, num_minibatches=1)
    by_hand = Learner(make_policy(), None)
    by_hand.rollouts = rollouts = make_rollouts()
    by_hand.old = torch.zeros(rollouts.tokens.shape)
    (whole,) = pack(rollouts, range(8), 10**6)
    losses = by_hand.losses_of(whole).losses
    parts = losses.split(rollouts.lengths.tolist())
    loss = losses.mean() if average == "tokens" else torch.stack([part.mean() for part in parts]).mean()
    loss.backward()
    by_hand.configure_optimizers().step()
    assert_same(module, by_hand)
    gradients = [p.grad for p in by_hand.policy.parameters() if p.grad is not None]
    assert float(module.found.grad_norm) == pytest.approx(float(torch.nn.utils.get_total_norm(gradients)), rel=1e-4)


@pytest.mark.parametrize(("num_epochs", "num_minibatches"), [(1, 1), (2, 2), (3, 4)])
def test_passes_and_minibatches_are_counted(run, num_epochs, num_minibatches):
    module = run(num_epochs=num_epochs, num_minibatches=num_minibatches)
    assert module.found.num_updates == num_epochs * num_minibatches == module.trainer_.global_step
    for number in range(num_epochs):
        part = module.orders[number * num_minibatches : (number + 1) * num_minibatches]
        assert sorted(member for members in part for member in members) == list(range(8))
    if num_epochs > 1:
        assert module.orders[:num_minibatches] != module.orders[num_minibatches : 2 * num_minibatches]


def test_what_is_not_learnt_from_weighs_nothing(run, make_rollouts):
    rollouts = make_rollouts()
    some = run(learnt=rollouts.response_mask & rollouts.finished[:, None], num_epochs=1, num_minibatches=1)
    whole = run(num_epochs=1, num_minibatches=1)
    assert 0 < moved(some) != moved(whole)
    none = run(learnt=torch.zeros_like(rollouts.response_mask))
    assert moved(none) == 0.0


def test_gradients_are_clipped_and_their_norm_is_that_before(run):
    options = {"num_epochs": 1, "num_minibatches": 1}
    free = run(**options)
    norm = float(free.found.grad_norm)
    clipped = run(**options, max_grad_norm=norm / 4)
    assert float(clipped.found.grad_norm) == pytest.approx(norm)
    for name, weight in weights_of(clipped).items():
        step, whole = weight - clipped.before[name], weights_of(free)[name] - free.before[name]
        torch.testing.assert_close(step, whole / 4, rtol=1e-3, atol=1e-6)
    assert_same(run(**options, max_grad_norm=norm * 4), free)


def test_a_loss_that_is_not_finite_names_its_row_and_updates_nothing(run, make_policy, make_rollouts, fit):
    module = Learner(make_policy(), UpdateOptions(token_budget=1, num_minibatches=1), spoil=5)
    before = weights_of(module)
    with pytest.raises(FloatingPointError, match=r"not finite at step 0, in one of train:3; nothing was updated"):
        fit(module, [make_rollouts()])
    assert all(torch.equal(weight, before[name]) for name, weight in weights_of(module).items())


def test_passes_end_before_a_step_too_far(run):
    """The first minibatch is at the policy that wrote the responses, so that its divergence is 0."""
    module = run(max_kl=1e-9, num_epochs=3, num_minibatches=2)
    assert module.found.num_updates == 1 == module.trainer_.global_step
    assert not [p for p in module.policy.parameters() if p.grad is not None and p.grad.any()]
    assert float(module.found.ratio_max) > 1.0
    far = run(max_kl=1e9, num_epochs=3, num_minibatches=2)
    assert far.found.num_updates == 6
    assert_same(far, run(num_epochs=3, num_minibatches=2))


def test_the_divergence_that_ends_is_that_of_the_last_minibatch(run):
    """Not the mean of those before, which is lower."""
    options = {"num_epochs": 4, "num_minibatches": 1, "rate": 0.02}
    free = run(**options).kls
    assert free[0] < free[1] < free[2]
    assert run(**options, max_kl=(free[1] + free[2]) / 2).found.num_updates == 2


def test_a_rank_without_responses_steps_along(run, make_rollouts):
    module = run(make_rollouts((), 2))
    assert module.found.num_updates == 4
    assert moved(module) == 0.0
    assert (float(module.found.ratio_max), float(module.found.grad_norm)) == (1.0, 0.0)


def test_losses_of_responses_weigh_each_alike(run, make_policy, make_rollouts, fit):
    class OfResponses(Learner):
        def losses_of(self, micro_batch):
            said = super().losses_of(micro_batch)
            lengths = self.rollouts.lengths[micro_batch.members].tolist()
            return said._replace(losses=torch.stack([part.mean() for part in said.losses.split(lengths)]))

        def training_step(self, rollouts, batch_idx):
            self.rollouts, self.old = rollouts, torch.zeros(rollouts.tokens.shape)
            mask = rollouts.response_mask
            learn(self, rollouts, self.losses_of, None, updates=self.updates, learnt=mask, key="0:0", per="response")

    module = OfResponses(make_policy(), UpdateOptions(max_grad_norm=0.0))
    fit(module, [make_rollouts()])
    assert_same(module, run(average="sequences"))
