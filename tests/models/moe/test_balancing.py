"""What routers are heard of, and counted: real tokens once, the role that is trained, each layout alike."""

from __future__ import annotations

from unittest.mock import Mock

import pytest
import torch

from lit_rlhf.models.backbone import Backbone
from lit_rlhf.models.building import build_backbone, wrap_model
from lit_rlhf.models.moe.balancing import StepBalance, token_sums, told, trained_backbone, trains_routers
from lit_rlhf.models.moe.routers import find_routers, heard
from lit_rlhf.models.options import BackboneConfig, LoraOptions
from tests.tiny_moe import make_mixture


def always() -> bool:
    return True


@pytest.mark.parametrize("family", ["mixtral", "deepseek_v3", "llama4"])
def test_every_token_of_every_sequence_counts_in_each_layout(family, ragged):
    tokens = sum(sum(ragged.lengths[part] for part in ragged.path(leaf)) for leaf in ragged.leaves)
    assert tokens > ragged.num_tokens
    found = []
    for attention in ("auto", "sdpa"):
        backbone = wrap_model(make_mixture(family, vocab_size=320), reference="none")
        backbone.attention = attention
        backbone.prepare()
        with heard(find_routers(backbone.model), always) as said:
            backbone.hidden_states(ragged)
        probabilities, choices = token_sums(backbone, said, ragged)
        assert choices.sum(1).tolist() == [2.0 * tokens] * len(said)
        torch.testing.assert_close(probabilities.sum(1), torch.full((len(said),), float(tokens)))
        assert probabilities.requires_grad
        found.append((probabilities.detach(), choices))
    expected = torch.zeros_like(choices)
    for leaf in ragged.leaves:  # sequence by sequence
        rows = [
            at
            for part in ragged.path(leaf)
            for at in range(ragged.starts[part], ragged.starts[part] + ragged.lengths[part])
        ]
        with heard(find_routers(backbone.model), always) as said:
            backbone.base(input_ids=ragged.tokens[rows][None])
        expected += torch.stack([said[n].experts.flatten().bincount(minlength=expected.shape[1]) for n in sorted(said)])
    assert torch.equal(expected, choices)
    torch.testing.assert_close(found[0], found[1])


def test_mixed_precision_rounds_no_sum(ragged):
    backbone = wrap_model(make_mixture("mixtral", vocab_size=320), reference="none")
    with heard(find_routers(backbone.model), always) as said:
        backbone.hidden_states(ragged)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = token_sums(backbone, said, ragged)
    assert torch.equal(rounded[0], token_sums(backbone, said, ragged)[0])


def test_dropout_plays_no_part_in_what_is_counted(tmp_path, stir, ragged):
    make_mixture("mixtral", vocab_size=320).save_pretrained(tmp_path)
    config = BackboneConfig(str(tmp_path), lora=LoraOptions(dropout=0.5), router_aux_loss_coef=1.0)
    backbone = stir(build_backbone(config), scale=0.3).train()
    before = torch.get_rng_state()
    found = [
        StepBalance(Mock(device=torch.device("cpu")), backbone, [Mock(forest=ragged)] * 2, lambda _, some, __: some)
        for _ in range(2)
    ]
    assert torch.equal(found[0]._choices, found[1]._choices)
    assert torch.equal(torch.get_rng_state(), before)
    assert backbone.training


def test_what_is_told():
    seen = torch.tensor([[[3.0, 1.0]], [[4.0, 0.0]]])
    assert {name: round(float(value), 4) for name, value in told(seen).items()} == {
        **{"aux_loss": 1.5, "load_max": 2.0, "load_min": 0.0, "load_entropy": 0.0, "dropped_tokens": 0.0},
    }
    assert told(torch.zeros(2, 1, 2)) == {}


def test_what_is_trained_is_found():
    frozen = Backbone(make_mixture("mixtral").requires_grad_(False))
    trained = Backbone(make_mixture("mixtral"))
    assert trained_backbone(torch.nn.ModuleList([frozen, trained])) is trained
    assert trains_routers(torch.nn.ModuleList([frozen, trained]))
    assert not trains_routers(frozen)
    assert not trains_routers(torch.nn.Linear(1, 1))
    assert trained_backbone(torch.nn.Linear(1, 1)) is None


def test_a_dense_model_cannot_be_balanced(tiny_llama):
    with pytest.raises(ValueError, match=r"backbone.router_aux_loss_coef is set, and 'llama' has no routers"):
        build_backbone(BackboneConfig(str(tiny_llama()), router_aux_loss_coef=0.1))
    with pytest.raises(ValueError, match="router_aux_loss_coef is -1"):
        BackboneConfig("name", router_aux_loss_coef=-1.0)
