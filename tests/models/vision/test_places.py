"""Where tokens stand: what ``get_rope_index`` says of each whole row."""

from __future__ import annotations

import pytest
import torch

from tests.tiny_pictures import seeing_forest


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
