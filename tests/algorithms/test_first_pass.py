"""What the first step learns from is computed once: by every algorithm, and no number is changed by it."""

from __future__ import annotations

import pytest
import torch

from lit_rlhf.algorithms.grpo import GRPOModule
from lit_rlhf.algorithms.ppo import PPOModule
from lit_rlhf.algorithms.reinforce import REINFORCEModule
from lit_rlhf.algorithms.rloo import RLOOModule
from lit_rlhf.models.backbone import Backbone
from lit_rlhf.models.options import CriticOptions
from lit_rlhf.rollout.first_pass import FirstPass
from lit_rlhf.rollout.measuring import Measurer
from lit_rlhf.rollout.options import KLOptions, UpdateOptions

CASES = {
    "shared": (PPOModule, {"critic": CriticOptions("shared"), "entropy_coef": 0.1}, {}),
    "adapter": (PPOModule, {"critic": CriticOptions("adapter"), "kl": KLOptions(loss_coef=0.3)}, {}),
    "warming up": (PPOModule, {"critic": CriticOptions("shared", warmup_iterations=1)}, {}),
    "own trunk": (PPOModule, {"critic": CriticOptions("model")}, {}),
    "checkpointing": (PPOModule, {"critic": CriticOptions("adapter")}, {"gradient_checkpointing": True}),
    "4 bits": (PPOModule, {"critic": CriticOptions("adapter")}, {"quantization": "nf4"}),
    "GRPO": (GRPOModule, {"sampling": {"num_responses": 2}, "entropy_coef": 0.1}, {}),
    "RLOO": (RLOOModule, {"sampling": {"num_responses": 2}}, {}),
    "REINFORCE": (REINFORCEModule, {}, {}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_run_is_the_same_with_one_pass_less(make_policy, make_prompts, fit, trained_weights, monkeypatch, case):
    kind, options, backbone = CASES[case]

    def run():
        passes = []
        hidden_states = Backbone.hidden_states
        with monkeypatch.context() as patch:
            patch.setattr(Backbone, "hidden_states", lambda *a, **k: passes.append(1) or hidden_states(*a, **k))
            updates = UpdateOptions(num_epochs=2, num_minibatches=1)
            torch.manual_seed(0)
            module = make_policy(kind=kind, backbone=backbone, updates=updates, **options)
            fit(module, make_prompts(8, 4))
        return trained_weights(module), len(passes)

    monkeypatch.setattr(Measurer, "begin", lambda *_: None)  # tests/models/test_begun.py
    weights, passes = run()
    monkeypatch.setattr(FirstPass, "expect", lambda self, micro_batch: None)
    wanted, passes_without = run()
    models = 1 if kind is not PPOModule or options["critic"].kind == "shared" else 2
    assert passes_without - passes == 2 * models, "one pass of each model that learns, in each of two iterations"
    assert weights.keys() == wanted.keys()
    for name, weight in weights.items():
        assert weight.equal(wanted[name]), name


def test_prompts_wait_for_all_that_may_be_drawn_to_them(make_policy, make_prompts, fit, monkeypatch):
    most_drawn = []
    monkeypatch.setattr(Measurer, "begin", lambda _, backbone, prompts, most: most_drawn.append((len(prompts), most)))
    fit(make_policy(kind=GRPOModule, sampling={"num_responses": 2, "max_new_tokens": 5}), make_prompts(8, 4))
    assert most_drawn == [(4, 4 * 2 * 5)] * 2
