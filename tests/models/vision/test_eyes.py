"""Pictures go through a frozen tower once, a trained one learns, and each role sees with its own."""

from __future__ import annotations

import pytest
import torch

from tests.tiny_pictures import picture_for, seeing_forest


def test_a_picture_goes_through_a_frozen_tower_once(look):
    backbone = look()
    forest = seeing_forest(backbone.base)
    backbone.prepare()
    assert backbone.eyes.num_passes == 0
    for role in ("policy", "reference", "policy"):
        with backbone.role(role):
            backbone.token_logprobs(forest)
    assert backbone.eyes.num_passes == 3  # pictures 0, 1 and 2, one of them in two trees
    other = forest._replace(pictures=tuple(one._replace(digest=f"other {one.digest}") for one in forest.pictures))
    backbone.token_logprobs(other)
    assert backbone.eyes.num_passes == 6


def test_what_is_kept_of_pictures_is_bounded(look):
    backbone = look()
    eyes, bytes_of_one = backbone.eyes, 16 * 64 * 4
    eyes.max_bytes = 2 * bytes_of_one
    for seed in (0, 1, 0, 2, 2, 0):  # 1 went when 2 came, as 0 had been asked for again
        eyes.features([picture_for(backbone.base, seed)])
    assert eyes.num_passes == 3
    eyes.features([picture_for(backbone.base, 1)])
    assert eyes.num_passes == 4
    eyes.max_bytes = bytes_of_one - 1
    for _ in range(2):
        eyes.features([picture_for(backbone.base, 5)])
    assert eyes.num_passes == 6


def test_what_validation_kept_serves_training(look):
    backbone = look()
    forest = seeing_forest(backbone.base)
    backbone.prepare()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        backbone.token_logprobs(forest)
    said = backbone.token_logprobs(forest).logprobs
    said.sum().backward()
    assert backbone.eyes.num_passes == 3
    assert torch.equal(said, look().token_logprobs(forest).logprobs)


@pytest.mark.parametrize(
    "lora",
    [
        {"target_modules": ["q_proj", "multi_modal_projector.linear_1"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["multi_modal_projector"]},
        {"target_modules": r".*vision_tower.*\.q_proj|.*language_model.*\.q_proj"},
    ],
    ids=["adapter", "whole", "tower"],
)
def test_a_trained_projector_learns_and_the_reference_keeps_its_own(lora, look, stir):
    backbone, fresh = look(lora=lora), look()
    forest = seeing_forest(backbone.base)
    stir(backbone)
    policy = backbone.token_logprobs(forest).logprobs
    policy.sum().backward()
    beside = {n: p for n, p in backbone.named_parameters() if p.requires_grad and "language_model" not in n}
    assert any(p.grad is not None and p.grad.abs().max() > 1e-4 for p in beside.values())
    with torch.no_grad(), backbone.role("reference"):
        reference = backbone.token_logprobs(forest).logprobs
    assert not torch.allclose(policy, reference, atol=1e-3)
    assert torch.allclose(reference, fresh.token_logprobs(forest).logprobs, atol=1e-5)
    assert backbone.eyes.num_passes == 6  # nothing is shared between roles that see differently


@pytest.mark.parametrize("kind", ["llava", "llava_next", "qwen3_vl"])
def test_pictures_of_a_trained_tower_are_encoded_together(kind, look, own):
    """The same rows, and of each picture the gradient."""
    backbone, plain = look(kind), own(kind)
    kept = backbone.eyes.features([picture_for(plain, seed) for seed in range(3)])
    backbone.base.requires_grad_(True)
    assert not backbone.eyes.is_frozen
    trained = backbone.eyes.features([picture_for(plain, seed) for seed in range(3)])
    for one, other in zip(kept, trained, strict=True):
        torch.testing.assert_close(one.rows, other.rows, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(one.deeper, other.deeper, rtol=1e-4, atol=1e-5)
        assert other.rows.requires_grad
        assert not one.rows.requires_grad


def test_all_weights_are_trained_and_the_reference_has_eyes_of_its_own(look):
    backbone = look(lora={"enabled": False})
    forest = seeing_forest(backbone.base)
    backbone.token_logprobs(forest).logprobs.sum().backward()
    assert backbone.base.model.vision_tower.embeddings.patch_embedding.weight.grad.abs().max() > 0
    with torch.no_grad():
        backbone.base.model.multi_modal_projector.linear_2.weight.mul_(2.0)
        with backbone.role("reference"):
            reference = backbone.token_logprobs(forest).logprobs
        assert torch.allclose(reference, look().token_logprobs(forest).logprobs, atol=1e-5)
        assert not torch.allclose(reference, backbone.token_logprobs(forest).logprobs, atol=1e-3)
