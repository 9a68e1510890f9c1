"""PPO: one iteration against an independent slow computation, what each knob changes, and what must stay as it is."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import log_softmax

from lit_rlhf.algorithms.ppo import PPOModule
from lit_rlhf.models.options import BackboneConfig, CriticOptions, LoraOptions
from lit_rlhf.rewards import FunctionReward, ModelReward, WeightedReward
from lit_rlhf.rollout.options import AdvantageOptions, ClipOptions, KLOptions, ScoreOptions, UpdateOptions
from lit_rlhf.rollout.sampling.cached_sampler import CachedSampler

ONE_STEP = UpdateOptions(num_epochs=1, num_minibatches=1, max_grad_norm=0.0)
PLAIN = {"updates": ONE_STEP, "critic": CriticOptions(lr_factor=1.0), "lora": {"init": "gaussian"}}


def started(make_policy, **options):
    """A module whose adapter has left its beginning, so that nothing is zero by accident."""
    module = make_policy(**options)
    module.configure_model()
    with torch.no_grad():
        torch.manual_seed(3)
        for name, parameter in module.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    return module


def slow_rows(module, rollouts):
    """Log-probabilities of policy and reference and values, row by row, from whole logits."""
    base, head, found = module.model.backbone.base, module.model.v_head.summary, []
    for prompt, tokens, mask in zip(rollouts.prompts, rollouts.tokens, rollouts.response_mask, strict=True):
        response = tokens[mask]
        row = torch.cat([torch.tensor(prompt.tokens), response])[None]
        first = len(prompt.tokens) - 1

        def chosen(role, row=row, response=response, first=first):
            with module.model.backbone.role(role):
                known = log_softmax(base(input_ids=row).logits[0, first:-1] / module.temperature, -1)
            return known[torch.arange(len(response)), response], -(known.exp() * known).sum(-1)

        with module.model.backbone.role("critic"):
            states = base.get_decoder()(input_ids=row).last_hidden_state[0, first:-1]
        with torch.no_grad():
            reference, _ = chosen("reference")
        policy, entropy = chosen("policy")
        found.append((policy, reference, (states @ head.weight[0]) + head.bias[0], entropy))
    return found


def slow_targets(rows, scores, kl_coef, gamma, lam):
    """Whitened advantages and returns of each response, by loops."""
    advantages, returns = [], []
    for (logprobs, reference, values, _), score in zip(rows, scores, strict=True):
        rewards = [-kl_coef * float(p - q) for p, q in zip(logprobs, reference, strict=True)]
        rewards[-1] += score
        known, result, later = [*values.tolist(), 0.0], [0.0] * len(rewards), 0.0
        for t in reversed(range(len(rewards))):
            later = rewards[t] + gamma * known[t + 1] - known[t] + gamma * lam * later
            result[t] = later
        advantages.append(result)
        returns.append([a + v for a, v in zip(result, known, strict=False)])
    everything = [a for row in advantages for a in row]
    mean = sum(everything) / len(everything)
    std = math.sqrt(sum((a - mean) ** 2 for a in everything) / len(everything))
    return [[(a - mean) / std for a in row] for row in advantages], returns


def test_one_iteration_by_an_independent_slow_computation(make_policy, make_prompts, fit):
    """At the first update ratios are 1 and nothing is clipped: the losses are -A and (V - R)^2 / 2, per token."""
    kl, lr, vf_coef, entropy_coef = KLOptions(coef=0.3, loss_coef=0.4), 0.5, 0.7, 0.2
    options = {**PLAIN, "kl": kl, "lr": lr, "vf_coef": vf_coef, "sampling": {"temperature": 0.7}}
    options["entropy_coef"] = entropy_coef
    options["advantages"] = AdvantageOptions(gamma=0.9, gae_lambda=0.8)
    (batch,) = make_prompts(5, 5)
    module = started(make_policy, **options)
    module.model.prepare()
    scored = module.iterations.collect(module.model.backbone, batch)
    module.iterations.meter.compute()
    module.phases.report()
    rows = slow_rows(module, scored.rollouts)
    shaped = [
        float(s) - (0.0 if done else 1.0) for s, done in zip(scored.scores, scored.rollouts.finished, strict=True)
    ]
    with torch.no_grad():
        detached = [tuple(column.detach() for column in row) for row in rows]
    advantages, returns = slow_targets(detached, shaped, kl.coef, 0.9, 0.8)
    num_tokens = sum(map(len, advantages))
    loss = 0.0
    for (logprobs, reference, values, entropy), a, r in zip(rows, advantages, returns, strict=True):
        ratios = (logprobs - logprobs.detach()).exp()
        loss = loss - (ratios * torch.tensor(a)).sum() / num_tokens
        loss = loss + vf_coef * 0.5 * (values - torch.tensor(r)).square().sum() / num_tokens
        loss = loss + kl.loss_coef * 0.5 * (logprobs - reference).square().sum() / num_tokens
        loss = loss - entropy_coef * entropy.sum() / num_tokens
    trained = [parameter for parameter in module.model.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(loss, trained)
    expected = [p.detach() - lr * g for p, g in zip(trained, gradients, strict=True)]
    trainer = fit(module, [batch])
    for parameter, wanted in zip(trained, expected, strict=True):
        torch.testing.assert_close(parameter.detach(), wanted, rtol=2e-4, atol=2e-6)
    norm = torch.stack([g.norm() for g in gradients]).norm()
    assert trainer.logger.column("train/grad_norm")[0] == pytest.approx(float(norm), rel=1e-4)
    found = {name: trainer.logger.column(name)[0] for name in trainer.logger.rows[0] if name != "step"}
    summed = [float((p - q).sum()) for p, q, *_ in detached]
    assert found["rollout/kl"] == pytest.approx(sum(summed) / len(summed), abs=1e-4)
    assert found["rollout/score"] == pytest.approx(float(scored.scores.mean()), abs=1e-6)
    assert found["rollout/length"] == pytest.approx(num_tokens / 5)
    values = torch.cat([row[2] for row in detached])
    targets = torch.tensor([r for row in returns for r in row])
    explained = 1.0 - float((targets - values).var(correction=0) / targets.var(correction=0))
    assert found["rollout/explained_variance"] == pytest.approx(explained, abs=1e-3)
    assert abs(found["rollout/sampler_kl"]) < 1e-6
    assert found["train/ratio_max"] == pytest.approx(1.0, abs=1e-5)
    assert found["train/approx_kl"] == pytest.approx(0.0, abs=1e-6)


class OtherPrecision(CachedSampler):
    """Claims to compute otherwise, and does: its log-probabilities are off."""

    is_exact = False

    def __call__(self, backbone, request):
        rollouts = super().__call__(backbone, request)
        return rollouts._replace(logprobs=rollouts.logprobs - 0.3 * rollouts.response_mask)


def noisy(responses):
    return [len(text) % 3 - 1.0 for text in responses]


BASE = {"updates": UpdateOptions(num_epochs=2, num_minibatches=2, max_grad_norm=0.0), "critic": CriticOptions()}
KNOBS = {
    "kl.coef": {"kl": KLOptions(coef=0.5)},
    "kl.estimator k2": {"kl": KLOptions(coef=0.5, estimator="k2")},
    "kl.estimator k3": {"kl": KLOptions(coef=0.5, estimator="k3")},
    "kl.target": {"kl": KLOptions(coef=0.5, target=0.01, horizon=10)},
    "kl.loss_coef": {"kl": KLOptions(loss_coef=0.5)},
    "scores.normalise": {"scores": ScoreOptions(normalise="running")},
    "scores.clip": {"scores": ScoreOptions(clip=0.1)},
    "scores.missing_eos_penalty": {"scores": ScoreOptions(missing_eos_penalty=0.3)},
    "scores.missing_eos_score": {"scores": ScoreOptions(missing_eos_score=-0.5)},
    "scores.min_length": {"scores": ScoreOptions(min_length=9, short_penalty=0.5)},
    "scores.overlong_buffer": {"scores": ScoreOptions(overlong_buffer=5)},
    "scores.ignore_unfinished": {"scores": ScoreOptions(ignore_unfinished=True)},
    "advantages.gamma": {"advantages": AdvantageOptions(gamma=0.9)},
    "advantages.gae_lambda": {"advantages": AdvantageOptions(gae_lambda=0.5)},
    "advantages.value_lambda": {"advantages": AdvantageOptions(value_lambda=1.0)},
    "advantages.length_alpha": {"advantages": AdvantageOptions(length_alpha=0.3)},
    "advantages.whiten": {"advantages": AdvantageOptions(whiten=False)},
    "clipping.clip_range": {"clipping": ClipOptions(clip_range=0.01)},
    "clipping.clip_range_high": {"clipping": ClipOptions(clip_range_high=0.01)},
    "clipping.dual_clip": {"clipping": ClipOptions(clip_range=1e-9, dual_clip=1.0001)},
    "clipping.clip_range_value": {"clipping": ClipOptions(clip_range_value=1e-3)},
    "updates.num_epochs": {"updates": replace(BASE["updates"], num_epochs=3)},
    "updates.num_minibatches": {"updates": replace(BASE["updates"], num_minibatches=1)},
    "updates.max_grad_norm": {"updates": replace(BASE["updates"], max_grad_norm=0.01)},
    "updates.average": {"updates": replace(BASE["updates"], average="sequences")},
    "updates.max_kl": {"updates": replace(BASE["updates"], max_kl=1e-6)},
    "updates.importance_cap": {"updates": replace(BASE["updates"], importance_cap=1.05), "sampler": OtherPrecision()},
    "sampler": {"sampler": OtherPrecision()},
    "sampling.temperature": {"sampling": {"temperature": 0.6}},
    "sampling.num_responses": {"sampling": {"num_responses": 2}},
    "sampling.max_new_tokens": {"sampling": {"max_new_tokens": 5}},
    "critic.kind shared": {"critic": CriticOptions(kind="shared")},
    "critic.kind model": {"critic": CriticOptions(kind="model")},
    "critic.lr_factor": {"critic": CriticOptions(lr_factor=1.0)},
    "critic.warmup_iterations": {"critic": CriticOptions(warmup_iterations=1)},
    "vf_coef": {"vf_coef": 0.1},
    "entropy_coef": {"entropy_coef": 0.1},
    "seed": {"rollout_seed": 1},
}


@pytest.fixture
def trained(make_policy, make_prompts, fit, trained_weights):
    """What two iterations make of the weights and the logs, with settings that differ from the base ones."""

    def run(**options):
        seed = options.pop("rollout_seed", 0)
        rewards = [WeightedReward(FunctionReward(noisy))]
        module = make_policy(rewards=rewards, **{"optimizer": torch.optim.AdamW, "lr": 5e-3, **BASE, **options})
        module.iterations.seed = module.iterations.collector.seed = seed
        trainer = fit(module, make_prompts(8, 4))
        return trained_weights(module), trainer

    return run


@pytest.mark.parametrize("knob", KNOBS)
def test_turning_a_knob_changes_something(trained, knob):
    before, _ = trained()
    after, _ = trained(**KNOBS[knob])
    assert before.keys() != after.keys() or any(not torch.equal(before[name], after[name]) for name in before)


def test_knobs_that_change_a_detail_change_that_detail(trained):
    """Pairs of knobs of one family that must not do the same."""
    both = [("kl.estimator k2", "kl.estimator k3"), ("kl.coef", "kl.target"), ("sampler", "updates.importance_cap")]
    for first, second in both:
        one, _ = trained(**KNOBS[first])
        other, _ = trained(**KNOBS[second])
        assert any(not torch.equal(one[name], other[name]) for name in one), (first, second)


def test_the_two_losses_of_kl_differ_in_their_value_alone(trained):
    """k3+ is the value of k3 with the gradient of k2."""
    k2, first = trained(kl=KLOptions(loss_coef=0.5))
    k3, second = trained(kl=KLOptions(loss_coef=0.5, loss_estimator="k3+"))
    assert all(torch.equal(k2[name], k3[name]) for name in k2)
    assert first.logger.column("train/kl_loss")[1] != second.logger.column("train/kl_loss")[1]


def test_the_cut_into_micro_batches_changes_nothing(trained, assert_same_run):
    descent = {
        "optimizer": torch.optim.SGD,
        "lr": 1e-2,
        "critic": CriticOptions(lr_factor=1.0),
    }  # AdamW makes much of gradients that are rounding alone
    _, whole = trained(**descent)
    _, cut = trained(**descent, updates=replace(BASE["updates"], token_budget=1))
    assert_same_run(cut, whole, tolerance=2e-5)


def test_the_schedule_steps_once_per_iteration_and_clipping_bounds_the_step(trained):
    _, trainer = trained()
    assert trainer.logger.column("train/lr") == pytest.approx([5e-3, 5e-3])
    assert trainer.global_step == 8
    assert trainer.logger.column("train/num_updates") == [4.0, 4.0]


def test_a_policy_that_moved_too_far_ends_the_passes_without_a_step(trained):
    _, trainer = trained(updates=replace(BASE["updates"], max_kl=1e-9))
    assert trainer.logger.column("train/num_updates") == [1.0, 1.0]  # at the first update nothing has moved yet


@pytest.mark.parametrize("kind", ["adapter", "shared", "model"])
def test_only_the_critic_learns_while_it_warms_up(make_policy, make_prompts, fit, trained_weights, kind):
    module = make_policy(critic=CriticOptions(kind=kind, warmup_iterations=2), updates=BASE["updates"], lr=1e-3)
    module.configure_model()
    before = trained_weights(module)
    fit(module, make_prompts(8, 4))
    after = trained_weights(module)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert all("critic" in name or "v_head" in name or "trunk" in name for name in moved)


def test_every_trained_tensor_moves_and_nothing_else_does(make_policy, make_prompts, fit):
    module = started(make_policy, lr=1e-3, **BASE)
    before = {name: tensor.clone() for name, tensor in module.model.state_dict().items()}
    trained = {name for name, parameter in module.model.named_parameters() if parameter.requires_grad}
    fit(module, make_prompts(8, 4))
    moved = {name for name, tensor in module.model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == trained


def test_vowels_are_learnt_and_noise_is_not(make_policy, make_prompts, fit):
    """A reward with a meaning is raised by many of its standard errors; one without is not."""

    def gain(reward):
        module = make_policy(
            rewards=[WeightedReward(FunctionReward(reward))],
            optimizer=torch.optim.AdamW,
            lr=1e-2,
            lora={"enabled": False},
            critic=CriticOptions(kind="shared", lr_factor=1.0),
            kl=KLOptions(coef=0.0),
            sampling={"num_responses": 4},
        )
        scores = fit(module, make_prompts(256, 16)).logger.column("rollout/score")
        return sum(scores[-3:]) / 3 - sum(scores[:3]) / 3

    def by_hash(row, response):
        return float(torch.randn((), generator=torch.Generator().manual_seed(len(row) * 7919 + hash_of(response))))

    assert gain(share_of_vowels) > 0.15
    assert abs(gain(by_hash)) < 0.3


def share_of_vowels(response):
    return sum(response.count(letter) for letter in "aeiou") / max(len(response), 1)


def hash_of(text):
    return sum((at + 1) * ord(letter) for at, letter in enumerate(text))


@pytest.fixture
def reward_folder(make_reward, make_judged, fit, tmp_path, tiny_tokenizer):
    """A reward model that was trained for a step on the tiny Llama, with its statistics."""
    module = make_reward()
    fit(module, make_judged("pairs", 8, 4), validation=make_judged("pairs", 8, 4))
    module.model.save(tmp_path / "reward")
    tiny_tokenizer.save_pretrained(tmp_path / "reward")
    return tmp_path / "reward"


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_four_roles_on_one_backbone(make_policy, make_prompts, fit, reward_folder, quantization):
    """Policy, reference, reward model and critic over one base, in 4 bits too; the frozen ones stay to the bit."""
    module = make_policy(
        rewards=[WeightedReward(ModelReward(str(reward_folder)), name="judge")],
        backbone={"quantization": quantization},
        updates=BASE["updates"],
        optimizer=torch.optim.AdamW,
        lr=1e-3,
    )
    module.configure_model()
    adapters = set(module.model.backbone.model.peft_config)
    assert adapters == {"policy", "reward", "critic"}
    bases = [m for m in module.modules() if type(m).__name__ == "LlamaForCausalLM"]
    assert len(bases) == 1
    before = {name: tensor.clone() for name, tensor in module.model.state_dict().items()}
    trainer = fit(module, make_prompts(12, 4))
    after = module.model.state_dict()
    frozen = {n for n in before if ".policy." not in n and ".critic." not in n and "v_head" not in n}
    assert any(".reward." in name for name in frozen)
    assert all(torch.equal(before[name], after[name]) for name in frozen)
    assert any(not torch.equal(before[name], after[name]) for name in before if ".critic." in name)
    assert len(trainer.logger.column("rollout/rewards/judge")) == 3
    assert all(map(math.isfinite, trainer.logger.column("train/grad_norm")))


@pytest.mark.parametrize("kind", ["shared", "model"])
def test_all_weights_are_trained(make_policy, make_prompts, fit, reward_folder, kind):
    module = make_policy(
        rewards=[WeightedReward(ModelReward(str(reward_folder), normalise=False), name="judge")],
        lora={"enabled": False},
        critic=CriticOptions(kind=kind, init_from="fresh", lr_factor=1.0),
        updates=BASE["updates"],
        lr=1e-3,
    )
    trainer = fit(module, make_prompts(8, 4), validation=make_prompts(4, 4))
    assert trainer.logger.column("rollout/kl")[0] == pytest.approx(0.0, abs=1e-4)
    assert trainer.logger.column("rollout/kl")[1] != 0.0
    assert "val/rewards/judge" in trainer.logger.rows[-1] or trainer.logger.column("val/rewards/judge")


def test_a_reference_of_its_own(make_policy, make_prompts, fit, tiny_llama):
    other = BackboneConfig(str(tiny_llama(seed=1)), lora=LoraOptions(enabled=False))
    trainer = fit(make_policy(reference_model=other, updates=ONE_STEP), make_prompts(4, 4))
    assert trainer.logger.column("rollout/kl")[0] != pytest.approx(0.0, abs=1e-3)


def test_an_adapter_cannot_be_the_critic_of_a_policy_without_adapters(make_policy):
    module = make_policy(lora={"enabled": False})
    with pytest.raises(ValueError, match="'shared' or 'model'"):
        module.configure_model()


def test_greedy_answers_are_refused(make_policy):
    with pytest.raises(ValueError, match=r"sampling\.temperature is 0"):
        make_policy(sampling={"temperature": 0.0})


def test_rows_of_held_out_prompts_and_the_same_answers_each_time(make_policy, make_prompts, make_trainer, make_loader):
    module = make_policy(updates=ONE_STEP)
    first, second = (make_trainer().predict(module, make_loader(make_prompts(3, 3)))[0] for _ in range(2))
    assert first == second
    assert set(first[0]) == {"prompt", "response", "score", "rewards", "kl", "length", "finished"}
    assert [row["kl"] for row in first] == pytest.approx([0.0] * 3, abs=1e-4)


def test_what_scores_no_number_stops_the_run_and_names_the_row(make_policy, make_prompts, fit):
    def broken(response):
        return math.nan

    module = make_policy(rewards=[WeightedReward(FunctionReward(broken))], updates=ONE_STEP)
    with pytest.raises(ValueError, match=r"broken.*prompts\.jsonl:1|prompts\.jsonl:1.*broken"):
        fit(module, make_prompts(4, 4))


def test_a_checkpoint_of_another_model_is_refused(make_policy, make_prompts, fit, tmp_path):
    from lightning.pytorch.callbacks import ModelCheckpoint

    saver = ModelCheckpoint(tmp_path, filename="last")
    fit(make_policy(updates=ONE_STEP), make_prompts(4, 4), callbacks=[saver], enable_checkpointing=True)
    other = make_policy(updates=ONE_STEP, lora={"r": 2})
    with pytest.raises(ValueError, match="another model or adapter"):
        fit(other, make_prompts(4, 4), ckpt_path=tmp_path / "last.ckpt")


def test_a_model_that_you_made_yourself(make_policy, make_prompts, fit, tiny_llama):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_llama(), dtype=torch.float32)
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.2))
    made = make_policy(updates=ONE_STEP)
    module = PPOModule(
        adapted,
        [WeightedReward(FunctionReward(noisy))],
        sampling=made.iterations.sampling,
        tokenizer=made.tokenizer,
        optimizer=made.optimizer,
    )
    with pytest.warns(UserWarning, match="had dropout, which is off now"):
        trainer = fit(module, make_prompts(4, 2))
    assert trainer.logger.column("rollout/kl")[0] == pytest.approx(0.0, abs=1e-4)


@pytest.mark.parametrize("wrong", [{"vf_coef": -0.1}, {"entropy_coef": -0.1}, {"ptx_coef": -0.1}])
def test_negative_weights_are_refused(make_policy, wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} is -0.1"):
        make_policy(**wrong)


def test_a_buffer_longer_than_the_responses_is_refused(make_policy):
    with pytest.raises(ValueError, match=r"scores\.overlong_buffer is 10.*max_new_tokens=9"):
        make_policy(scores=ScoreOptions(overlong_buffer=10))


def test_a_scaled_loss_is_refused(make_policy, make_prompts, fit, monkeypatch):
    module = make_policy(updates=ONE_STEP)
    monkeypatch.setattr("lightning.Trainer.precision", "16-mixed")
    with pytest.raises(ValueError, match="take 'bf16-mixed'"):
        fit(module, make_prompts(2, 2))


def test_what_a_held_out_row_is_answered_does_not_depend_on_its_batch(
    make_policy, make_prompts, make_trainer, make_loader
):
    whole, parts = (
        [row for batch in make_trainer().predict(make_policy(), make_loader(make_prompts(4, size))) for row in batch]
        for size in (4, 1)
    )
    assert [row["response"] for row in whole] == [row["response"] for row in parts]
