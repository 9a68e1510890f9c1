"""Which units a model falls into, and what of it each rank holds."""

from __future__ import annotations

import pytest
import torch
from torch.distributed import destroy_process_group, init_process_group
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from lit_rlhf.models.building import build_backbone
from lit_rlhf.models.options import BackboneConfig, LoraOptions
from lit_rlhf.strategies.sharding import local_bytes, shard_model, unit_names
from lit_rlhf.types import Forest, Segment
from tests.tiny_pictures import seeing_segment

FOREST = [[Segment([5, 6], [False, False]), Segment([7, 8], [True, True], 0), Segment([9], [True], 0)]]
KINDS = {
    "lora": {},
    "nf4": {"quantization": "nf4"},
    "bfloat16": {"dtype": "bfloat16"},
    "full": {"lora": LoraOptions(enabled=False)},
    "tied": {},
}


@pytest.fixture
def build(tiny_llama):
    plain, tied = tiny_llama(), tiny_llama(tie_word_embeddings=True)

    def make(kind):
        torch.manual_seed(0)
        return build_backbone(
            BackboneConfig(str(tied if kind == "tied" else plain), **{"lora": LoraOptions(r=4), **KINDS[kind]})
        )

    return make


def numbers(backbone):
    """Log-probabilities of both roles, and the sums of the gradients' squares by parameter."""
    forest = Forest.pack(FOREST)
    said = backbone.token_logprobs(forest).logprobs
    with torch.no_grad(), backbone.role("reference"):
        reference = backbone.token_logprobs(forest).logprobs
    said.sum().backward()
    trained = {name: parameter.grad for name, parameter in backbone.named_parameters() if parameter.requires_grad}
    whole = {name: g.full_tensor() if isinstance(g, DTensor) else g for name, g in trained.items()}
    return {"said": said.detach(), "reference": reference, "gradients": whole}


def as_rank(rank, build, kind):
    init_process_group("gloo")
    torch.manual_seed(rank)  # the first rank's adapter counts
    backbone = build(kind)
    for name, parameter in backbone.named_parameters():
        if rank and "lora_A" in name:
            parameter.data.normal_()
    shard_model(backbone, init_device_mesh("cpu", (torch.distributed.get_world_size(),)))
    units, held = unit_names(backbone), local_bytes(backbone)
    found = numbers(backbone)
    assert all(isinstance(parameter, DTensor) for parameter in backbone.parameters())
    destroy_process_group()
    return {**found, "units": units, "held": held}


@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_hold_half_each_and_say_what_one_says(kind, build, on_ranks):
    ranks = on_ranks(as_rank, build, kind)
    backbone = build(kind)
    wanted = numbers(backbone)
    for rank in ranks:
        torch.testing.assert_close(rank["said"], wanted["said"])
        torch.testing.assert_close(rank["reference"], wanted["reference"])
        for name, gradient in wanted["gradients"].items():
            torch.testing.assert_close(rank["gradients"][name], gradient, rtol=1e-4, atol=1e-5, msg=name)
    everything = local_bytes(backbone)
    assert sum(rank["held"] for rank in ranks) == everything
    assert all(rank["held"] == pytest.approx(everything / 2, rel=0.02) for rank in ranks)
    units = ranks[0]["units"]
    names = {name for name, _ in backbone.named_parameters()}
    assert {path for paths in units.values() for path in paths} == names, "nothing is left out"
    roots = {name for name in names if ".layers." not in name}
    reference = {name for name in roots if name.startswith("reference_model.")}
    assert set(units[""]) == roots - reference
    assert set(units.get("reference_model", ())) == reference
    layers = {name: paths for name, paths in units.items() if ".layers." in name}
    assert len(layers) == (4 if kind == "full" else 2), "one unit for each decoder layer"
    for name, paths in layers.items():
        assert set(paths) == {path for path in names if path.startswith(f"{name}.")}, "adapters inside"
        assert any("lora_A" in path for path in paths) == (kind != "full")


@pytest.mark.slow
def test_four_ranks_hold_a_quarter_each(build, on_ranks):
    ranks = on_ranks(as_rank, build, "lora", num_ranks=4)
    backbone = build("lora")
    wanted = numbers(backbone)
    for rank in ranks:
        torch.testing.assert_close(rank["said"], wanted["said"])
        assert rank["held"] == pytest.approx(local_bytes(backbone) / 4, rel=0.05)
    assert sum(rank["held"] for rank in ranks) == local_bytes(backbone)


def test_one_rank_is_enough(build, on_ranks):
    (rank,) = on_ranks(as_rank, build, "lora", num_ranks=1)
    torch.testing.assert_close(rank["said"], numbers(build("lora"))["said"])


def seeing_rank(rank, folder):
    init_process_group("gloo")
    torch.manual_seed(0)
    backbone = build_backbone(BackboneConfig(str(folder), lora=LoraOptions(r=4)))
    roots = [seeing_segment(backbone.base, seeds) for seeds in ([(0,), (1, 2, 0)], [()])[rank]]
    shard_model(backbone, init_device_mesh("cpu", (2,)))
    units = unit_names(backbone)
    forest = Forest.pack([root, Segment([7, 8], [True, True], 0)] for root in roots)
    said = backbone.token_logprobs(forest).logprobs
    said.sum().backward()
    destroy_process_group()
    return {"said": said.detach(), "units": units}


@pytest.mark.parametrize(("folder", "tower"), [("tiny_llava", "vision_tower"), ("tiny_mllama", "vision_model")])
def test_ranks_with_and_without_pictures_do_not_wait_for_each_other(folder, tower, request, on_ranks):
    folder = request.getfixturevalue(folder)
    ranks = on_ranks(seeing_rank, folder)
    alone = build_backbone(BackboneConfig(str(folder), lora=LoraOptions(r=4)))
    roots = [seeing_segment(alone.base, seeds) for seeds in ((0,), (1, 2, 0), ())]
    forest = Forest.pack([root, Segment([7, 8], [True, True], 0)] for root in roots)
    with torch.no_grad():
        wanted = alone.token_logprobs(forest).logprobs
    torch.testing.assert_close(torch.cat([rank["said"] for rank in ranks]), wanted, rtol=0, atol=1e-5)
    assert not any(tower in name for name in ranks[0]["units"])
    assert any(tower in name for name in ranks[0]["units"][""])


def test_a_model_without_known_layers_is_refused(build):
    backbone = build("lora")
    backbone.base._no_split_modules = None
    backbone.base.get_decoder()._no_split_modules = None
    with pytest.raises(ValueError, match="a llama model names no decoder layers"):
        shard_model(backbone, None)
