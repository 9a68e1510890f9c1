"""Pictures among text: what the model's own code says of each row alone, encoded once and shared."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForImageTextToText

from lit_rlhf.models.building import build_backbone
from lit_rlhf.models.options import BackboneConfig, LoraOptions
from lit_rlhf.types import Forest, Segment
from tests.tiny_pictures import make_seeing, picture_for, row_logprobs, seeing_forest, seeing_segment

FORESTS = ("llava", "llava_next", "mistral3", "internvl", "qwen2_vl", "qwen2_5_vl", "qwen3_vl")


@pytest.fixture(scope="session")
def seeing(tmp_path_factory):
    """Gives the folder of a random model that reads pictures, by its kind."""
    folders = {}

    def make(kind="llava"):
        if kind not in folders:
            folders[kind] = make_seeing(kind, tmp_path_factory.mktemp(kind))
        return folders[kind]

    return make


@pytest.fixture
def look(seeing):
    """Factory of backbones that read pictures."""

    def make(kind="llava", lora=None, reference="fixed", **options):
        config = BackboneConfig(str(seeing(kind)), lora=LoraOptions(**{"r": 4, "alpha": 8, **(lora or {})}), **options)
        torch.manual_seed(0)
        return build_backbone(config, reference=reference)

    return make


@pytest.fixture
def own(seeing):
    """Loads the plain model, untouched by this package."""

    def load(kind="llava"):
        return AutoModelForImageTextToText.from_pretrained(seeing(kind), attn_implementation="eager").eval()

    return load


@pytest.mark.parametrize(("kind", "fused"), [*((kind, True) for kind in FORESTS), ("llava", False)])
def test_a_forest_with_pictures_is_what_the_model_says_of_each_row(kind, fused, look, own, stir):
    backbone, plain = look(kind, fused=fused), own(kind)
    forest = seeing_forest(plain)
    backbone.prepare()
    assert (backbone.layout, backbone.picture_layout) == ("forest", "forest")
    assert backbone.base.config.vision_config._attn_implementation == "sdpa"  # the tower's own stays
    with torch.no_grad():
        expected = row_logprobs(plain, forest)
        assert torch.allclose(backbone.token_logprobs(forest).logprobs, expected, atol=1e-5)
        stir(backbone)
        moved = backbone.token_logprobs(forest).logprobs
        assert not torch.allclose(moved, expected, atol=1e-2)
        merged = backbone.model.merge_and_unload()
        merged.set_attn_implementation("eager")
        assert torch.allclose(moved, row_logprobs(merged, forest), atol=2e-5)


@pytest.mark.parametrize(("kind", "attention"), [("gemma3", "auto"), ("llava", "sdpa"), ("qwen2_vl", "sdpa")])
def test_padded_rows_are_what_the_model_says(kind, attention, look, own):
    backbone, plain = look(kind, attention=attention), own(kind)
    forest = seeing_forest(plain)
    with torch.no_grad():
        assert torch.allclose(backbone.token_logprobs(forest).logprobs, row_logprobs(plain, forest), atol=1e-5)
    assert backbone.picture_layout == "padded"
    assert backbone.layout == ("forest" if attention == "auto" else "padded")
    if attention == "auto":
        with pytest.raises(ValueError, match="attention is 'forest', but with pictures"):
            look(kind, attention="forest").prepare()


@pytest.mark.parametrize("kind", ["llava", "qwen2_vl"])
def test_gradients_of_a_forest_are_those_of_rows(kind, look, own, stir):
    plain = own(kind)
    forest, gradients = seeing_forest(plain), []
    for attention in ("forest", "sdpa"):
        backbone = stir(look(kind, attention=attention))
        backbone.token_logprobs(forest).logprobs.sum().backward()
        gradients.append({n: p.grad for n, p in backbone.named_parameters() if p.requires_grad})
    assert all("language_model" in name for name in gradients[0])
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradient, gradients[1][name], rtol=1e-3, atol=2e-4), name


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


@pytest.mark.parametrize("kind", ["llava", "qwen2_vl", "qwen3_vl"])
def test_positions_are_the_models_own(kind, look, own):
    """Where a token stands, and the one that would follow: those of ``get_rope_index`` on each whole row."""
    backbone, plain = look(kind), own(kind)
    forest = seeing_forest(plain)
    found, ahead = backbone.eyes.positions(forest), backbone.eyes.ahead(forest)
    if kind == "llava":
        assert torch.equal(found, forest.positions[None])
        assert not any(ahead)
        return
    assert any(ahead)
    for leaf in forest.leaves:
        spans = [range(forest.starts[part], forest.starts[part] + forest.lengths[part]) for part in forest.path(leaf)]
        index = [at for span in spans for at in span]
        row, pictures = forest.tokens[index][None], forest.seen_in(leaf)
        grids = torch.cat([one.inputs["image_grid_thw"] for one in pictures]) if pictures else None
        kinds = (row == plain.config.image_token_id).int()
        expected, deltas = plain.model.get_rope_index(row, mm_token_type_ids=kinds, image_grid_thw=grids)
        assert torch.equal(found[:, 0, index], expected[:, 0])
        assert ahead[leaf] == int(deltas)


def test_four_bits_leave_tower_and_projector_as_they_are(look):
    backbone = look(quantization="nf4", reference="none")
    kinds = {name: type(part).__name__ for name, part in backbone.base.named_modules() if "Linear" in str(type(part))}
    assert all(("4bit" in kind) == ("language_model" in name) for name, kind in kinds.items() if "lora" not in name)
    forest = seeing_forest(backbone.base)
    backbone.token_logprobs(forest).logprobs.sum().backward()
    assert backbone.picture_layout == "forest"


def test_pictures_that_do_not_fit_are_refused_by_name(look, tiny_llama):
    backbone = look()
    segment = seeing_segment(backbone.base, (0,))
    fewer = segment._replace(tokens=segment.tokens[3:], scored=segment.scored[3:])
    with pytest.raises(ValueError, match=r"has 15 image tokens .* its 1 pictures take 16"):
        backbone.hidden_states(Forest.pack([[fewer]]))
    with pytest.raises(ValueError, match=r"1 pictures have 17 image tokens .* gives 16 rows"):
        backbone.eyes.features([picture_for(backbone.base, 0)._replace(num_tokens=17)])
    with pytest.raises(ValueError, match=r"does not take: .*cross-attention.*data\.images"):
        look("mllama").hidden_states(Forest.pack([[segment]]))
    blind = build_backbone(BackboneConfig(str(tiny_llama())))
    assert blind.vision is None
    assert blind.undrawn_tokens == []
    with pytest.raises(ValueError, match=r"does not take: it reads text alone; .*data\.images"):
        blind.hidden_states(Forest.pack([[segment]]))


def test_text_alone_is_read_as_before(look, own):
    backbone, plain = look(), own()
    forest = Forest.pack([[Segment([50, 51], [False] * 2), Segment([60, 61, 62], [True] * 3, 0)]])
    with torch.no_grad():
        assert torch.allclose(backbone.token_logprobs(forest).logprobs, row_logprobs(plain, forest), atol=1e-5)
    assert backbone.eyes.num_passes == 0
