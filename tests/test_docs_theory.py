"""The theory on the pages of the algorithms is true: claims are computed, and printed numbers are read and compared.

Expectations are exact sums over all responses of a policy so small that they can be listed: two tokens, three words.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lit_rlhf import losses

PAGES = Path(__file__).parents[1] / "docs/algorithms"
PPO, DPO, REWARD = ((PAGES / f"{name}.md").read_text() for name in ("ppo", "dpo", "reward"))
WORDS = 3
RESPONSES = torch.tensor(list(itertools.product(range(WORDS), repeat=2)))
"""(9, 2) all that the policy can say; its states are numbered: 0, then 1 more than the first word."""
STATES = torch.stack([torch.zeros(9, dtype=torch.int64), 1 + RESPONSES[:, 0]], dim=1)
EVERYWHERE = torch.ones(9, 2, dtype=torch.bool)
BETA = 0.4


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def logits() -> Tensor:
    """(4, 3) of the policy, by state and word."""
    return random(1 + WORDS, WORDS).requires_grad_()


SCORES, REFERENCE = random(9, seed=1), random(1 + WORDS, WORDS, seed=2).log_softmax(-1)


def of_tokens(table: Tensor) -> Tensor:
    """(9, 2) what a table by state and word says of each token of each response."""
    return table[STATES, RESPONSES]


def policy_of(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the tokens (9, 2), and probabilities of the responses (9,)."""
    logprobs = of_tokens(logits.log_softmax(-1))
    return logprobs, logprobs.sum(1).exp()


def objective(logits: Tensor) -> Tensor:
    """(1), exactly."""
    logprobs, probabilities = policy_of(logits)
    return (probabilities * (SCORES - BETA * (logprobs - of_tokens(REFERENCE)).sum(1))).sum()


def divergence(logits: Tensor) -> Tensor:
    logprobs, probabilities = policy_of(logits)
    return (probabilities * (logprobs - of_tokens(REFERENCE)).sum(1)).sum()


def slope(number: Tensor, logits: Tensor) -> Tensor:
    return torch.autograd.grad(number, logits, retain_graph=True)[0]


def expected(token_losses: Tensor, logits: Tensor) -> Tensor:
    """The gradient, on average over responses that the policy draws, of losses (9, 2)."""
    probabilities = policy_of(logits)[1].detach()
    return slope((probabilities[:, None] * token_losses).sum(), logits)


def reinforce(advantages: Tensor, logits: Tensor) -> Tensor:
    """The gradient that REINFORCE goes up by, on average."""
    logprobs = policy_of(logits)[0]
    return -expected(losses.reinforce_loss(logprobs.flatten(), advantages.flatten()).view(9, 2), logits)


def rewards_of(logits: Tensor, estimate: Callable[..., Tensor] = losses.kl_k1) -> Tensor:
    """(8): rewards (9, 2) of the tokens."""
    spent = estimate(policy_of(logits)[0].detach().flatten(), of_tokens(REFERENCE).flatten()).view(9, 2)
    return losses.token_rewards(SCORES, spent, EVERYWHERE, kl_coef=BETA)


def true_values(logits: Tensor) -> Tensor:
    """(10): (9, 2) what can be expected from each state on."""
    logprobs = policy_of(logits)[0].detach()
    rewards = rewards_of(logits)
    second = (logprobs[:, 1].exp() * rewards[:, 1]).view(WORDS, WORDS).sum(1)
    first = (policy_of(logits)[1].detach() * rewards.sum(1)).sum()
    return torch.stack([first.expand(9), second.repeat_interleave(WORDS)], dim=1)


def numbers(cell: str) -> list[float]:
    return [float(number) for number in re.findall(r"-?\d+(?:\.\d+)?", cell)]


def closed_form(scores: Tensor, ref_logprobs: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """(3): the best policy, and log Z."""
    tilted = ref_logprobs + scores / beta
    return tilted.softmax(0), tilted.logsumexp(0)


def climb(function: Callable[[Tensor], Tensor], size: int) -> Tensor:
    """Logits at the maximum of a function."""
    found = torch.zeros(size, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([found], lr=0.5, max_iter=400, tolerance_grad=1e-10, tolerance_change=0.0)

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = -function(found)
        value.backward()
        return value

    optimizer.step(loss)
    return found.detach()


@pytest.mark.parametrize("beta", [0.3, 1.0, 5.0])
def test_the_objective_is_highest_at_its_closed_form(beta: float):
    scores, ref_logprobs = random(5, seed=3), random(5, seed=4).log_softmax(0)

    def value(logits: Tensor) -> Tensor:
        return (logits.softmax(0) * (scores - beta * (logits.log_softmax(0) - ref_logprobs))).sum()

    best, log_z = closed_form(scores, ref_logprobs, beta)
    found = climb(value, 5)
    torch.testing.assert_close(found.softmax(0), best, rtol=0, atol=1e-6)
    assert float(value(found)) == pytest.approx(beta * float(log_z), abs=1e-9)  # (4), where the divergence is 0
    logits = random(5, seed=5)
    away = (logits.softmax(0) * (logits.log_softmax(0) - best.log())).sum()
    assert float(value(logits)) == pytest.approx(beta * float(log_z - away), abs=1e-9)  # (4), elsewhere


def test_the_odds_that_the_page_names():
    told = re.search(r"factor \$e\^\{1/\\beta\}\$: ([\d.]+) at \$\\beta = 1\$, ([\d,]+) at 0\.1", PPO)
    assert told is not None
    for beta, cell in zip((1.0, 0.1), told.groups(), strict=True):
        best, _ = closed_form(torch.tensor([1.0, 0.0], dtype=torch.float64), torch.tensor([0.5, 0.5]).log(), beta)
        odds = float(best[0] / best[1])
        assert float(cell.replace(",", "")) == pytest.approx(odds, rel=0.01)


@pytest.mark.parametrize("beta", [0.5, 2.0])
def test_dpo_finds_the_policy_that_is_best_for_the_scores_behind_the_choices(beta: float):
    scores, ref_logprobs = random(5, seed=3), random(5, seed=4).log_softmax(0)
    chosen, rejected = torch.tensor(list(itertools.permutations(range(5), 2))).T
    chances = torch.sigmoid(scores[chosen] - scores[rejected])

    def value(logits: Tensor) -> Tensor:
        ratios = logits.log_softmax(0) - ref_logprobs
        return -(chances * losses.sigmoid_loss(ratios[chosen], ratios[rejected], beta=beta)).sum()

    torch.testing.assert_close(
        climb(value, 5).softmax(0), closed_form(scores, ref_logprobs, beta)[0], rtol=0, atol=1e-6
    )


def test_reinforce_climbs_the_objective_whatever_the_baseline(logits: Tensor):
    """(6) to (9): the baseline depends on the state; lambda 1 takes it off the rewards that are still to come."""
    exact = slope(objective(logits), logits)
    baseline = random(1 + WORDS, seed=6)[STATES]
    for values in (torch.zeros(9, 2, dtype=torch.float64), baseline, true_values(logits)):
        advantages = losses.gae(rewards_of(logits), values, EVERYWHERE, gae_lambda=1.0).advantages
        torch.testing.assert_close(reinforce(advantages, logits), exact)
    seen_too_late = baseline + of_tokens(random(1 + WORDS, WORDS, seed=7))
    wrong = losses.gae(rewards_of(logits), seen_too_late, EVERYWHERE, gae_lambda=1.0).advantages
    assert not torch.allclose(reinforce(wrong, logits), exact, atol=1e-2)


def test_the_first_clipped_gradient_is_that_of_reinforce(logits: Tensor):
    advantages = losses.gae(rewards_of(logits), true_values(logits), EVERYWHERE).advantages
    logprobs = policy_of(logits)[0].flatten()
    clipped = losses.clipped_policy_loss(logprobs, logprobs.detach(), advantages.flatten()).losses.view(9, 2)
    torch.testing.assert_close(-expected(clipped, logits), reinforce(advantages, logits))


def test_each_estimate_in_the_reward_and_as_a_loss(logits: Tensor):
    """The table of k1, k2 and k3, for whole responses. In the reward, a token pays for where it leads as well."""
    ours = slope(divergence(logits), logits)

    def in_the_reward(estimate: Callable[..., Tensor]) -> Tensor:
        spent = estimate(policy_of(logits)[0].detach().flatten(), of_tokens(REFERENCE).flatten()).view(9, 2)
        return reinforce(losses.discounted_returns(spent, EVERYWHERE), logits)

    torch.testing.assert_close(in_the_reward(losses.kl_k1), ours)
    for estimate in (losses.kl_k2, losses.kl_k3):
        assert not torch.allclose(in_the_reward(estimate), ours, atol=1e-2)
    mean_of_k3 = losses.kl_k3(policy_of(logits)[0].flatten(), of_tokens(REFERENCE).flatten()).view(9, 2).sum(1)
    torch.testing.assert_close((policy_of(logits)[1] * mean_of_k3).sum(), divergence(logits))

    visits = torch.cat([torch.ones(1, dtype=torch.float64), logits[0].detach().softmax(0)])
    logprobs = logits.log_softmax(-1)
    nearby = slope((visits[:, None] * logprobs.exp() * (logprobs - REFERENCE)).sum(), logits)
    other = slope((visits[:, None] * REFERENCE.exp() * (REFERENCE - logprobs)).sum(), logits)

    def as_a_loss(loss: Callable[..., Tensor]) -> Tensor:
        return expected(loss(policy_of(logits)[0].flatten(), of_tokens(REFERENCE).flatten()).view(9, 2), logits)

    torch.testing.assert_close(as_a_loss(losses.kl_k1), torch.zeros_like(logits), atol=1e-12, rtol=0)
    for loss in (losses.kl_k2, losses.kl_k2_loss, losses.kl_k3_loss):
        torch.testing.assert_close(as_a_loss(loss), nearby)  # what a token costs itself, not where it leads
    assert not torch.allclose(nearby, ours, atol=1e-2)
    torch.testing.assert_close(as_a_loss(losses.kl_k3), other)


def test_k3_in_the_reward_of_one_token_is_wrong_by_the_other_divergence():
    logits, ref_logprobs = random(5, seed=8).requires_grad_(), random(5, seed=9).log_softmax(0)
    logprobs = logits.log_softmax(0)
    spent = losses.kl_k3(logprobs.detach(), ref_logprobs)
    pushed = slope((logprobs.exp().detach() * spent * logprobs).sum(), logits)
    logprobs = logits.log_softmax(0)
    ours = (logprobs.exp() * (logprobs - ref_logprobs)).sum()
    other = (ref_logprobs.exp() * (ref_logprobs - logprobs)).sum()
    torch.testing.assert_close(pushed, slope(ours - other, logits))


def test_what_lambda_trades(logits: Tensor):
    """The table of bias and variance: lambda 1 forgives a wrong critic, lambda 0 trusts it and is calm."""
    exact, right = slope(objective(logits), logits), true_values(logits)
    wrong = right + random(1 + WORDS, seed=6)[STATES]
    spread = {}
    for gae_lambda in (0.0, 1.0):
        advantages = losses.gae(rewards_of(logits), right, EVERYWHERE, gae_lambda=gae_lambda).advantages
        torch.testing.assert_close(reinforce(advantages, logits), exact)
        spread[gae_lambda] = float((policy_of(logits)[1].detach() * advantages[:, 0] ** 2).sum())
        biased = losses.gae(rewards_of(logits), wrong, EVERYWHERE, gae_lambda=gae_lambda).advantages
        assert torch.allclose(reinforce(biased, logits), exact, atol=1e-2) == (gae_lambda == 1.0)
    assert spread[0.0] < spread[1.0]


@pytest.mark.parametrize(("gamma", "gae_lambda"), [(1.0, 0.95), (0.9, 0.5)])
def test_gae_is_the_mixture_of_all_looks_ahead(gamma: float, gae_lambda: float):
    """(12) and (13), for the first of four tokens; past the end all looks ahead are the same."""
    rewards, values = random(4, seed=1), random(4, seed=2)
    ends = torch.cat([values, torch.zeros(400, dtype=torch.float64)])
    ahead = []
    for steps in range(1, 400):
        seen = sum(gamma**k * float(rewards[k]) for k in range(min(steps, 4)))
        ahead.append(seen + gamma**steps * float(ends[steps]) - float(values[0]))
    mixture = (1 - gae_lambda) * sum(gae_lambda**k * each for k, each in enumerate(ahead))
    found = losses.gae(
        rewards[None], values[None], torch.ones(1, 4, dtype=torch.bool), gamma=gamma, gae_lambda=gae_lambda
    )
    assert float(found.advantages[0, 0]) == pytest.approx(mixture, abs=1e-6)


def test_the_three_tokens_that_are_worked_by_hand():
    told = re.search(
        r"rewards are ([\d., ]+) and the critic said ([\d., ]+)\. The errors \(11\) are ([-\d.,\s]+):", PPO
    )
    assert told is not None
    rewards, values = (torch.tensor([numbers(group)]) for group in told.groups()[:2])
    rows = re.findall(r"^\| (0|0\.95|1) \| ([-\d., ]+) \| ([-\d., ]+) \|$", PPO, re.MULTILINE)
    assert [row[0] for row in rows] == ["0", "0.95", "1"]
    for gae_lambda, *cells in rows:
        found = losses.gae(rewards, values, torch.ones(1, 3, dtype=torch.bool), gae_lambda=float(gae_lambda))
        for ours, cell in zip(found, cells, strict=True):
            assert ours[0].tolist() == pytest.approx(numbers(cell), abs=1e-5)
    assert numbers(told.group(3)) == numbers(rows[0][1])


@pytest.mark.parametrize(("sign", "advantage"), [(">", 1.0), ("<", -1.0)])
def test_which_tokens_have_a_gradient(sign: str, advantage: float):
    """The table of six cases, cell by cell, and the dual clip that its last cell names."""
    (line,) = re.findall(rf"^\| A {sign} 0, .*$", PPO, re.MULTILINE)
    told = [cell.strip().split(":")[0] for cell in line.strip("|").split("|")[1:]]
    ratios = torch.tensor([0.7, 1.1, 1.3, 3.5], dtype=torch.float64)
    logprobs = ratios.log().requires_grad_()
    found = losses.clipped_policy_loss(logprobs, torch.zeros_like(ratios), torch.full_like(ratios, advantage)).losses
    gradient = torch.autograd.grad(found.sum(), logprobs)[0]
    assert ["gradient" if moved else "none" for moved in (gradient[:3] != 0).tolist()] == told
    assert gradient[3] == 0
    plain = -torch.minimum(ratios * advantage, ratios.clamp(0.8, 1.2) * advantage)  # (16)
    torch.testing.assert_close(found[:3].detach(), plain[:3])


def test_ratios_make_up_for_the_policy_that_drew():
    """Below (15): in a given state, the mean of ratio times advantage under the old policy."""
    old, new, advantages = random(5, seed=1).log_softmax(0), random(5, seed=2).log_softmax(0), random(5, seed=3)
    weighted = losses.clipped_policy_loss(new, old, advantages, clip_range=None, dual_clip=None).ratios * advantages
    torch.testing.assert_close((old.exp() * weighted).sum(), (new.exp() * advantages).sum())


def test_memory_by_arithmetic():
    """(18) for Llama 3 8B: 32 layers of width 4096, 8 of 32 key-value heads, LoRA of rank 16 on its linear layers."""
    hidden, mlp, keys, layers, vocabulary, rank = 4096, 14336, 1024, 32, 128256, 16
    shapes = [(hidden, hidden), (hidden, keys), (hidden, keys), (hidden, hidden), *[(hidden, mlp)] * 2, (mlp, hidden)]
    linear = layers * sum(a * b for a, b in shapes)
    adapter = layers * sum(rank * (a + b) for a, b in shapes)
    rest = 2 * vocabulary * hidden + (2 * layers + 1) * hidden
    four_bits = linear * (4 + 8 / 64 + 32 / (64 * 256)) / 8 + 2 * rest
    found = [four_bits, four_bits + 16 * 2 * adapter + 4 * adapter, 4 * four_bits, 4 * 2 * (linear + rest)]
    table = PPO[PPO.index("| arrangement | GB |") : PPO.index("Activations and the sampler's cache")]
    told = re.findall(r"\| ([\d.]+) \|$", table, re.MULTILINE)
    assert [float(cell) for cell in told] == [round(size / 1e9, 1) for size in found]
    assert f"({adapter / 1e6:.1f} million parameters)" in PPO


def test_the_gradient_of_dpo():
    """(5) of the page: the weight is what the implicit reward gives to the wrong choice."""
    chosen, rejected = (ratios.requires_grad_() for ratios in (random(4, seed=1), random(4, seed=2)))
    losses.sigmoid_loss(chosen, rejected, beta=0.3).sum().backward()
    weight = 0.3 * torch.sigmoid(0.3 * (rejected - chosen)).detach()
    torch.testing.assert_close(chosen.grad, -weight)
    torch.testing.assert_close(rejected.grad, weight)


def test_what_beta_asks_for():
    told = re.search(r"rewards must differ by ([\d.]+), .*?: ([\d.]+) nats at 0\.1, ([\d.]+) at 0\.5", DPO, re.DOTALL)
    assert told is not None
    sure = math.log(0.9 / 0.1)
    assert numbers(" ".join(told.groups())) == pytest.approx([sure, sure / 0.1, sure / 0.5], rel=0.01)


def test_likelihoods_of_choices():
    """(1) to (5) of the reward page, written out."""
    won, lost = random(6, seed=1), random(6, seed=2)
    zeros, gap = torch.zeros(6, dtype=torch.float64), won - lost
    chance = won.exp() / (won.exp() + lost.exp())
    torch.testing.assert_close(losses.bradley_terry_loss(won, lost, zeros), -chance.log())
    for tie in (False, True):
        ties = torch.full((6,), tie)
        rao = torch.sigmoid(gap - 0.7), torch.sigmoid(-gap - 0.7)
        rao_chance = 1 - rao[0] - rao[1] if tie else rao[0]
        torch.testing.assert_close(losses.tied_bradley_terry_loss(won, lost, ties, threshold=0.7), -rao_chance.log())
        weights = (gap / 2).exp(), (-gap / 2).exp(), torch.full_like(gap, 1.3)
        davidson = weights[2 if tie else 0] / sum(weights)
        torch.testing.assert_close(losses.davidson_loss(won, lost, ties, nu=1.3), -davidson.log())
    listed = -sum((won[i] - won[i:].logsumexp(0)) for i in range(5))
    lists = torch.zeros(6, dtype=torch.int64)
    torch.testing.assert_close(losses.plackett_luce_loss(won, torch.arange(6), lists)[0], listed)


def test_how_often_the_better_response_wins():
    told = re.search(r"apart by 1 means (\d+) wins in 100, by 3 means (\d+)", REWARD)
    assert told is not None
    assert [int(cell) for cell in told.groups()] == [round(100 / (1 + math.exp(-gap))) for gap in (1, 3)]


def test_only_differences_matter():
    won, lost, shift = random(6, seed=1), random(6, seed=2), random(6, seed=3)
    zeros, ties, lists = torch.zeros(6, dtype=torch.float64), torch.arange(6) % 2 == 0, torch.arange(6) // 3
    ranks = torch.arange(6) % 3
    for loss in (
        lambda a, b: losses.bradley_terry_loss(a, b, zeros),
        lambda a, b: losses.tied_bradley_terry_loss(a, b, ties),
        lambda a, b: losses.davidson_loss(a, b, ties),
    ):
        torch.testing.assert_close(loss(won + shift, lost + shift), loss(won, lost))
    of_lists = shift[lists]
    torch.testing.assert_close(
        losses.plackett_luce_loss(won + of_lists, ranks, lists), losses.plackett_luce_loss(won, ranks, lists)
    )
    assert not torch.allclose(losses.centring_loss(won + shift, lost + shift), losses.centring_loss(won, lost))


def test_flipped_labels_have_a_finite_best_difference():
    zeros = torch.zeros(1, dtype=torch.float64)
    gap = climb(lambda d: -losses.bradley_terry_loss(d, zeros, zeros, label_smoothing=0.2).sum(), 1)
    assert float(gap) == pytest.approx(math.log(0.8 / 0.2), abs=1e-6)


def test_noise_is_a_ceiling():
    """The true scores lose nothing but the entropy of the choices, and no other scores are right more often."""
    gap = random(200, seed=1) * 2
    chance = torch.sigmoid(gap)
    zeros = torch.zeros_like(gap)

    def loss(found: Tensor) -> float:
        both = [losses.bradley_terry_loss(side * found, zeros, zeros) for side in (1, -1)]
        return float((chance * both[0] + (1 - chance) * both[1]).mean())

    def accuracy(found: Tensor) -> float:
        return float(torch.where(found > 0, chance, 1 - chance).mean())

    assert loss(gap) == pytest.approx(float(torch.distributions.Bernoulli(chance).entropy().mean()))
    assert accuracy(gap) == pytest.approx(float(torch.sigmoid(gap.abs()).mean()))
    for seed in range(2, 6):
        other = gap + random(200, seed=seed)
        assert loss(other) > loss(gap)
        assert accuracy(other) < accuracy(gap)
