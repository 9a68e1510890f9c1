"""The reference's word on pairs: live or kept, standing or moving."""

from __future__ import annotations

import pytest
import torch

from lit_rlhf.models.options import ReferenceOptions
from lit_rlhf.models.reference import Reference
from lit_rlhf.types import PreferencePairs


@pytest.fixture
def pairs(make_forest):
    forest = make_forest([([9, 8, 7], -1), ([6, 5], 0), ([40], 0)], [([30], -1), ([31], 0), ([32, 33, 34], 0)])
    return PreferencePairs(
        forest, torch.tensor([1, 2]), torch.tensor([0, 3]), torch.zeros(2), ("a:1", "a:2"), ("a", "a")
    )


def test_live(build, stir, pairs, tmp_path):
    backbone = build().eval()
    before = backbone.token_logprobs(pairs.forest).logprobs.detach()
    stir(backbone)
    found = Reference(backbone, ReferenceOptions(), tmp_path).logprobs(pairs)
    assert torch.equal(found, before)
    assert not found.requires_grad
    assert not list(tmp_path.iterdir())


def test_kept_under_the_name_of_the_right_response(build, pairs, tmp_path):
    backbone = build().eval()
    reference = Reference(backbone, ReferenceOptions(cache=True), tmp_path)
    found = reference.logprobs(pairs)
    renamed = pairs._replace(rows=pairs.rows[::-1])
    with pytest.raises(ValueError, match="a:2: its tokens are not those"):
        reference.logprobs(renamed)
    assert torch.equal(reference.logprobs(pairs), found)
    assert (reference.cache.hits, reference.cache.misses) == (4, 4)
    names = ["a:1#0", "a:1#1", "a:2#0", "a:2#1"]
    assert torch.equal(reference.cache.lookup(pairs.forest, names), found)
    reference.flush()
    again = Reference(build(lora={"r": 2}), ReferenceOptions(cache=True), tmp_path)
    assert torch.equal(again.logprobs(pairs), found)
    elsewhere = Reference(backbone, ReferenceOptions(cache=True, cache_folder=str(tmp_path / "mine")), tmp_path)
    assert elsewhere.cache.folder == tmp_path / "mine"


def test_responses_that_pairs_share_are_kept_once(build, make_forest, tmp_path):
    responses = [([11], 0), ([12, 13], 0), ([14], 0)]
    forest = make_forest([([9, 8], -1), *responses], [([7], -1), *responses[:2]])
    chosen, rejected = torch.tensor([0, 0, 1, 3]), torch.tensor([1, 2, 2, 4])
    rows = ("a:1", "a:1", "a:1", "a:2")
    pairs = PreferencePairs(forest, chosen, rejected, torch.zeros(4), rows, ("a",) * 4)
    reference = Reference(build().eval(), ReferenceOptions(cache=True), tmp_path)
    found = reference.logprobs(pairs)
    assert (reference.cache.hits, reference.cache.misses) == (0, 5)
    names = ["a:1#0", "a:1#1", "a:1#2", "a:2#0", "a:2#1"]
    assert torch.equal(reference.cache.lookup(forest, names), found)
    twice = pairs._replace(rows=("a:1", "a:1", "a:1", "a:1"))  # a row that is shown twice in one step
    with pytest.raises(ValueError, match="a:1: its tokens are not those"):
        reference.logprobs(twice)


def test_it_moves_when_due(build, monkeypatch, tmp_path):
    backbone = build(reference="moving")
    moved = []
    monkeypatch.setattr(backbone, "move_reference", moved.append)
    reference = Reference(backbone, ReferenceOptions(sync_steps=3, mixup=0.7), tmp_path)
    for step in range(1, 8):
        reference.move_if_due(step)
    assert moved == [0.7, 0.7]
    still = Reference(backbone, ReferenceOptions(), tmp_path)
    still.move_if_due(3)
    assert len(moved) == 2
