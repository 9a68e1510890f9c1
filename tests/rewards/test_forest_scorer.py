"""Texts to forests: the score of each text alone, however they are packed."""

from __future__ import annotations

import pytest
import torch
from torch import distributed as dist
from torch import multiprocessing

from lit_rlhf.models.heads.reward_model import build_reward_model
from lit_rlhf.models.options import BackboneConfig, LoraOptions
from lit_rlhf.rewards.forest_scorer import ForestScorer, ScoredText, _batches, _trees, common_prefix
from lit_rlhf.types import Forest, Segment

ROWS = [
    ScoredText("a", [5, 6, 7, 8]),
    ScoredText("a", [5, 6, 9]),
    ScoredText("a", [5, 6]),
    ScoredText("a", [5, 6]),
    ScoredText("b", [5]),
    ScoredText("b", [5]),
    ScoredText("c", [9, 8, 7]),
    ScoredText("c", [8, 8, 7]),
    ScoredText("a", [5, 6, 7, 8]),
]


@pytest.fixture(scope="module")
def model(tiny_llama):
    torch.manual_seed(0)
    model = build_reward_model(BackboneConfig(str(tiny_llama()), lora=LoraOptions(r=2)), {"score": 1.0}).eval()
    model.score.measure(0.5, 2.0, 10)
    return model


@torch.no_grad()
@pytest.mark.parametrize("token_budget", [1, 4, 6, 8192])
def test_every_text_has_the_score_that_it_has_alone(model, token_budget):
    alone = [model.scores(Forest.pack([[Segment(ids, [False] * len(ids))]])).item() for _, ids, _ in ROWS]
    assert ForestScorer(model, False)(ROWS, token_budget) == pytest.approx(alone, abs=1e-6)
    normal = [(score - 0.5) / 2 for score in alone]
    assert ForestScorer(model, True)(ROWS, token_budget) == pytest.approx(normal, abs=1e-6)
    assert ForestScorer(model, False)([], token_budget) == []


def test_batches_keep_to_their_budget_and_count_what_is_shared_once():
    assert [len(batch) for batch in _batches(ROWS, 1)] == [1, 1, 1, 1, 2, 1, 1, 1]
    assert [len(batch) for batch in _batches(ROWS, 5)] == [4, 3, 1, 1]
    assert [len(batch) for batch in _batches(ROWS[:4], 100)] == [4]
    assert [row for batch in _batches(ROWS, 5) for row in batch] == ROWS


def test_what_texts_share_is_one_segment():
    (tree,) = _trees(iter(ROWS[:2]))
    assert [list(segment.tokens) for segment in tree] == [[5, 6], [7, 8], [9]]
    (tree,) = _trees(iter(ROWS[:3]))
    assert [list(segment.tokens) for segment in tree] == [[5], [6, 7, 8], [6, 9], [6]]
    assert [[list(segment.tokens) for segment in tree] for tree in _trees(iter(ROWS[6:8]))] == [
        [[9, 8, 7]],
        [[8, 8, 7]],
    ]
    assert common_prefix([], [1]) == 0


def _sharded(rank, file, folder, results):
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group("gloo", f"file://{file}", rank=rank, world_size=2)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = build_reward_model(BackboneConfig(folder, dtype="float32", lora=LoraOptions(r=2)), {"score": 1.0}).eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for layer in model.base.model.layers:
        fully_shard(layer)
    rows = [ROWS, ROWS[:1]][rank]
    with torch.no_grad():
        scores = ForestScorer(model, False)(rows, 4)
    results.put((rank, scores))
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.slow
def test_ranks_with_different_numbers_of_texts_do_not_wait_for_each_other(tiny_llama, tmp_path):
    """Needs two processes."""
    context = multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    multiprocessing.spawn(_sharded, (str(tmp_path / "store"), str(tiny_llama()), results), nprocs=2)
    found = dict(results.get() for _ in range(2))
    assert len(found[0]) == len(ROWS)
    assert found[1] == pytest.approx(found[0][:1], abs=1e-6)
