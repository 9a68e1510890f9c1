"""A run of iterations: what is drawn when, what moves from one to the next, what is logged of it."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from lit_rlhf.losses.kl import kl_k1, kl_k2, kl_k3
from lit_rlhf.rewards import WeightedReward
from lit_rlhf.rollout.iterations import Iterations, of_tokens
from lit_rlhf.rollout.learning import Learnt
from lit_rlhf.rollout.options import KLOptions, ScoreOptions, UpdateOptions
from lit_rlhf.rollout.sampling.request import SamplingOptions
from lit_rlhf.types import PromptBatch


def length(samples):
    return [float(len(sample.response_tokens)) for sample in samples]


WHOLE = SimpleNamespace(
    prepare=nullcontext, whole_weights=nullcontext, modules=list, base=SimpleNamespace(is_gradient_checkpointing=False)
)
"""A backbone that is not sharded, and is not asked."""


class Scripted:
    """Gives ready-made responses."""

    def __init__(self, rollouts, is_exact=True):
        self.rollouts, self.is_exact, self.requests = rollouts, is_exact, []

    def __call__(self, backbone, request):
        self.requests.append(request)
        return self.rollouts


class Module:
    """What iterations need of a LightningModule."""

    device = torch.device("cpu")

    def __init__(self):
        weight = torch.nn.Parameter(torch.zeros(()))
        optimizer = torch.optim.SGD([weight], lr=0.25)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
        self.trainer = SimpleNamespace(optimizers=[optimizer])
        self.logged, self.bar = {}, set()
        optimizer.step()

    def log(self, name, value, prog_bar=False):
        self.log_dict({name: value}, prog_bar)

    def log_dict(self, values, prog_bar=False):
        self.logged.update({name: float(value) for name, value in values.items()})
        self.bar |= set(values) if prog_bar else set()

    def lr_schedulers(self):
        return self.schedule


@pytest.fixture
def make_iterations(make_rollouts, make_policy, tiny_tokenizer):
    """Iterations over ready-made responses, and the prompts that belong to them."""

    def make(kl=None, scores=None, updates=None, is_exact=True, num_responses=2, seed=0):
        sampler = Scripted(make_rollouts(repeats=num_responses, garbage=True), is_exact)
        options = KLOptions(**(kl or {})), ScoreOptions(**(scores or {})), UpdateOptions(**(updates or {}))
        made = Iterations(
            [WeightedReward(length)], SamplingOptions(num_responses, 6), sampler, *options, seed, ["policy_loss"]
        )
        made.collector.open(make_policy(), tiny_tokenizer)
        return made

    return make


@pytest.fixture
def batch(numbered_prompt):
    """A batch of four prompts, one row dropped on the way."""
    return PromptBatch(tuple(numbered_prompt(number) for number in range(4)), {"dropped/too_long": 1})


def one_iteration(iterations, batch, module, logprobs=None, policy=WHOLE):
    scored = iterations.collect(policy, batch)
    mask = scored.rollouts.response_mask
    logprobs = torch.zeros(mask.shape) if logprobs is None else logprobs
    iterations.watch(scored, logprobs, torch.full(mask.shape, -0.5), entropy=torch.ones(mask.shape))
    iterations.end(module, Learnt(4, torch.tensor(1.5), torch.tensor(0.75)))
    return scored


def test_what_is_drawn_depends_on_seed_iteration_and_row(make_iterations, batch):
    iterations, module = make_iterations(), Module()
    seeds = []
    for number in range(3):
        assert int(iterations.number) == number
        one_iteration(iterations, batch, module)
        seeds.append(iterations.collector.sampler.requests[-1].seeds)
    assert len({seed for draw in seeds for seed in draw}) == 24
    resumed = make_iterations()
    resumed.number.fill_(2)
    resumed.collect(WHOLE, batch)
    assert resumed.collector.sampler.requests[-1].seeds == seeds[2]
    other = make_iterations(seed=1)
    other.collect(WHOLE, batch)
    assert other.collector.sampler.requests[-1].seeds != seeds[0]


def test_what_is_logged_of_an_iteration(make_iterations, batch):
    iterations, module = make_iterations(), Module()
    iterations.means.update({"policy_loss": (torch.tensor(6.0), 4)})
    scored = one_iteration(iterations, batch, module)
    lengths = scored.rollouts.lengths.float()
    logged = module.logged
    assert logged["rollout/score"] == pytest.approx(float(lengths.mean()))
    assert logged["rollout/rewards/length"] == pytest.approx(float(lengths.mean()))
    assert logged["rollout/length"] == pytest.approx(float(lengths.mean()))
    assert logged["rollout/finished"] == pytest.approx(float(scored.rollouts.finished.float().mean()))
    assert logged["rollout/kl"] == pytest.approx(0.5 * float(lengths.mean())), "summed over a response"
    assert logged["rollout/entropy"] == 1.0
    known = scored.rollouts.logprobs[scored.rollouts.response_mask]
    assert logged["rollout/sampler_kl"] == pytest.approx(float(known.mean()), rel=1e-5)
    assert logged["train/policy_loss"] == 1.5
    assert logged["train/data/dropped"] == pytest.approx(1 / 5)
    assert (logged["train/num_updates"], logged["train/ratio_max"], logged["train/grad_norm"]) == (4.0, 1.5, 0.75)
    assert logged["train/lr"] == 0.25
    assert logged["rollout/kl_coef"] == pytest.approx(0.05)
    assert module.bar == {"rollout/score", "rollout/kl"}
    assert module.trainer.optimizers[0].param_groups[0]["lr"] == 0.125, "stepped once per iteration"
    one_iteration(iterations, batch, module)
    assert "train/policy_loss" not in iterations.means.compute(), "means begin anew"


def test_the_kl_coefficient_moves_after_what_is_logged(make_iterations, batch):
    iterations, module = make_iterations({"coef": 0.1, "target": 0.5, "horizon": 100}), Module()
    expected = 0.1
    for logprobs, error in ((None, 0.2), (torch.full((8, 7), -0.5), -0.2)):
        one_iteration(iterations, batch, module, logprobs)
        assert module.logged["rollout/kl_coef"] == pytest.approx(expected)
        expected *= 1.0 + error * 8 / 100
        assert float(iterations.kl_coef) == pytest.approx(expected)
    again = make_iterations({"coef": 0.1, "target": 0.5, "horizon": 100})
    again.load_state_dict(iterations.state_dict())
    assert float(again.kl_coef) == pytest.approx(expected)
    assert int(again.number) == 2


def test_a_coefficient_without_a_target_stays(make_iterations, batch):
    iterations = make_iterations({"coef": 0.1})
    one_iteration(iterations, batch, Module())
    assert float(iterations.kl_coef) == pytest.approx(0.1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_what_it_knows_stays_exact_in_a_module_of_low_precision(make_iterations, dtype):
    """In bfloat16 a coefficient could not move by less than a hundredth of itself."""
    iterations = make_iterations({"coef": 0.1}).to(dtype)
    assert iterations.kl_coef.dtype == torch.float32
    assert iterations.shaper.moments.dtype == torch.float64
    assert iterations.number.dtype == torch.int64


@pytest.mark.parametrize(("estimator", "function"), [("k1", kl_k1), ("k2", kl_k2), ("k3", kl_k3)])
def test_estimators_of_the_divergence(make_iterations, estimator, function):
    logprobs, reference = torch.randn(2, 3, 5)
    found = make_iterations({"estimator": estimator}).divergence(logprobs, reference)
    assert found.equal(function(logprobs.flatten(), reference.flatten()).view(3, 5))


@pytest.mark.parametrize(
    ("is_exact", "cap", "expected"),
    [(True, None, None), (False, None, 2.0), (True, 1.25, 1.25), (False, 1.25, 1.25)],
)
def test_weights_that_make_up_for_a_sampler(make_iterations, is_exact, cap, expected):
    """By default where it computes otherwise than training does; what lies behind a response does not matter."""
    iterations = make_iterations(updates={"importance_cap": cap}, is_exact=is_exact)
    rollouts = iterations.collector.sampler.rollouts
    logprobs = rollouts.logprobs.nan_to_num(0.0) + torch.linspace(-1, 2, 8)[:, None]
    found = iterations.importance(rollouts, logprobs)[rollouts.response_mask]
    ratios = (logprobs - rollouts.logprobs)[rollouts.response_mask].exp()
    wanted = torch.ones_like(ratios) if expected is None else ratios.clamp(max=expected)
    torch.testing.assert_close(found, wanted)


def test_scores_are_shaped_with_the_limit_of_the_sampler(make_iterations, batch):
    scores = {"missing_eos_penalty": 0.0, "overlong_buffer": 6, "overlong_penalty": 6.0}
    iterations = make_iterations(scores=scores)
    scored = iterations.collect(WHOLE, batch)
    assert iterations.shaped_scores(scored).tolist() == pytest.approx([0.0] * 8), "a token more, a penalty more"


def test_held_out_prompts_are_answered_once_and_alike_each_time(make_iterations, make_policy, batch, make_rollouts):
    iterations, module, policy = make_iterations(), Module(), make_policy()
    sampler = iterations.collector.sampler
    sampler.rollouts = make_rollouts(repeats=1, garbage=True)
    rows = [iterations.answer(policy, batch) for _ in range(2)]
    assert rows[0] == rows[1]
    first, again = sampler.requests
    assert first.seeds == again.seeds
    assert first.options.num_responses == 1
    assert len(rows[0]) == 4
    iterations.log_held_out(module, "val")
    assert module.logged["val/kl"] == pytest.approx(sum(row["kl"] for row in rows[0]) / 4, rel=1e-5)
    assert module.logged["val/score"] == sum(row["score"] for row in rows[0]) / 4
    assert {"val/length", "val/finished", "val/rewards/length", "val/entropy"} <= set(module.logged)
    assert module.bar == {"val/score", "val/kl"}
    iterations.collect(WHOLE, batch)
    assert not set(sampler.requests[-1].seeds) & set(first.seeds), "training draws anew"


def test_nothing_random_is_refused():
    options = KLOptions(), ScoreOptions(), UpdateOptions()
    with pytest.raises(ValueError, match=r"sampling\.temperature is 0"):
        Iterations([WeightedReward(length)], SamplingOptions(temperature=0.0), None, *options, 0, [])


def test_a_rank_without_prompts_takes_part(make_iterations, make_policy):
    iterations, module = make_iterations({"target": 6.0}), Module()
    one_iteration(iterations, PromptBatch((), {}), module, policy=make_policy())
    assert "rollout/score" not in module.logged
    assert int(iterations.number) == 1
    assert float(iterations.kl_coef) == pytest.approx(0.05)


def test_functions_of_tokens_keep_shapes():
    assert (
        of_tokens(lambda a, b, scale: (a - b) * scale, torch.ones(2, 3), torch.zeros(2, 3), scale=2.0).tolist()
        == [[2.0] * 3] * 2
    )
