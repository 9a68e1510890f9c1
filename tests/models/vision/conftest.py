"""What the tests of eyes share: random models that read pictures, as backbones and as they are."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForImageTextToText

from lit_rlhf.models.building import build_backbone
from lit_rlhf.models.options import BackboneConfig, LoraOptions
from tests.tiny_pictures import make_seeing, row_logprobs


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


@pytest.fixture
def assert_rows_alone(stir):
    """Whether a forest is what the plain model says of each of its rows alone, before and after an adapter moved."""

    def compare(backbone, plain, forest):
        with torch.no_grad():
            expected = row_logprobs(plain, forest)
            assert torch.allclose(backbone.token_logprobs(forest).logprobs, expected, atol=1e-5)
            stir(backbone)
            moved = backbone.token_logprobs(forest).logprobs
            assert not torch.allclose(moved, expected, atol=1e-2)
            merged = backbone.model.merge_and_unload()
            merged.set_attn_implementation("eager")
            assert torch.allclose(moved, row_logprobs(merged, forest), atol=2e-5)

    return compare
