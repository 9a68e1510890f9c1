"""Checkpoints without the frozen base: what stays in them, and which are refused."""

from __future__ import annotations

import pytest
import torch

from lit_rlhf.models.adapters import REWARD, copy_adapter
from lit_rlhf.models.checkpoints import drop_frozen, frozen_digest, refuse_foreign


def checkpoint_of(backbone):
    state = {"model." + name: value for name, value in backbone.state_dict().items()}
    return {"state_dict": {**state, "train_means.sums": torch.zeros(2)}, "epoch": 3}


@pytest.mark.parametrize("options", [{}, {"quantization": "nf4"}, {"lora": {"modules_to_save": ["lm_head"]}}])
def test_the_frozen_base_is_left_out(build, options):
    backbone = build(**options)
    checkpoint = checkpoint_of(backbone)
    drop_frozen(checkpoint, backbone, "model.")
    trained = {"model." + name for name, parameter in backbone.named_parameters() if parameter.requires_grad}
    assert set(checkpoint["state_dict"]) == trained | {"train_means.sums"}
    assert checkpoint["epoch"] == 3
    refuse_foreign(checkpoint, backbone, "model.")


def test_full_weights_are_kept(build):
    backbone = build(lora={"enabled": False})
    checkpoint = checkpoint_of(backbone)
    before = dict(checkpoint["state_dict"])
    drop_frozen(checkpoint, backbone, "model.")
    assert checkpoint["state_dict"] == before


def test_other_checkpoints_are_refused(build):
    mine, wide, more = build(), build(lora={"r": 8}), build(reference="moving")
    with pytest.raises(ValueError, match=r"is \(8, \d+\) in it and \(4, \d+\) here"):
        refuse_foreign(checkpoint_of(wide), mine, "model.")
    with pytest.raises(ValueError, match=r"it lacks model\..*\.reference\."):
        refuse_foreign(checkpoint_of(mine), more, "model.")


def test_a_reward_model_keeps_its_head_and_what_it_knows(build_reward):
    model = build_reward()
    checkpoint = checkpoint_of(model)
    drop_frozen(checkpoint, model, "model.")
    spread = {f"model.score.{name}" for name in ("mean", "std", "num_responses")}
    trained = {"model." + name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert set(checkpoint["state_dict"]) == trained | spread | {"train_means.sums"}
    refuse_foreign(checkpoint, model, "model.")
    del checkpoint["state_dict"]["model.score.weight"]
    with pytest.raises(ValueError, match=r"another model or adapter: it lacks model\.score\.weight"):
        refuse_foreign(checkpoint, model, "model.")


def test_checkpoints_of_other_heads_and_of_policies_are_refused(build, build_reward):
    mine, two = build_reward(), build_reward(objectives={"good": 1.0, "short": 1.0})
    with pytest.raises(ValueError, match=r"model\.score\.weight is \(2, 64\) in it and \(1, 64\) here"):
        refuse_foreign(checkpoint_of(two), mine, "model.")
    with pytest.raises(ValueError, match=r"it lacks model\.backbone\."):
        refuse_foreign(checkpoint_of(build()), mine, "model.")


@pytest.mark.parametrize("options", [{}, {"quantization": "nf4"}, {"lora": {"init": "pissa"}}, {"fused": False}])
def test_another_base_is_refused_and_both_are_named(build, tiny_llama, options):
    mine, again = build(**options), build(**options)
    checkpoint = checkpoint_of(mine)
    drop_frozen(checkpoint, mine, "model.")
    refuse_foreign(checkpoint, again, "model.")
    other = build(tiny_llama(seed=5), **options)
    with pytest.raises(ValueError, match=rf"the base '{tiny_llama()}' .*and this run has '{tiny_llama(seed=5)}'"):
        refuse_foreign(checkpoint, other, "model.")
    del checkpoint["base"]
    refuse_foreign(checkpoint, other, "model.")


def test_what_is_trained_says_nothing_of_the_base(build):
    mine, again = build(), build(lora={"r": 4, "init": "gaussian"})
    with torch.no_grad():
        for parameter in mine.parameters():
            if parameter.requires_grad:
                parameter.normal_()
    assert frozen_digest(mine) == frozen_digest(again) == frozen_digest(build(dtype="bfloat16"))
    assert frozen_digest(mine) != frozen_digest(build(quantization="nf4"))
    whole = [build(lora={"enabled": False}) for _ in range(2)]
    torch.nn.init.zeros_(next(whole[0].parameters()))
    assert frozen_digest(whole[0]) == frozen_digest(whole[1]), "nothing of it is frozen"


def test_a_merged_adapter_makes_another_base(build, tmp_path):
    backbone = build()
    with torch.no_grad():
        for name, parameter in backbone.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=1e-3)
    backbone.model.merge_and_unload().save_pretrained(tmp_path / "merged")
    assert frozen_digest(build(tmp_path / "merged")) != frozen_digest(build())


def test_a_reward_model_on_the_base_is_no_part_of_it(build):
    """It is there once rewards are loaded, and not before."""
    plain, more = build(), build()
    copy_adapter(more.model, more.policy_adapter, REWARD)
    assert frozen_digest(plain) == frozen_digest(more)
