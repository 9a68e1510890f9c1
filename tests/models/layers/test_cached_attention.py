"""Attention over a cache of prompts and responses, against a softmax over one row per response."""

import pytest
import torch

from lit_rlhf.models.layers.cached_attention import CachedRows, attend

LENGTHS, OWNERS, CAPACITY = (5, 1, 9), (0, 0, 1, 2, 2, 2), 6
GROUPS, HEADS, SIZE = 2, 3, 4


def reference(query, keys, values, scaling, window, softcap):
    """(heads, D) of one query (heads, D) over keys (J, K, D), of which it sees the last ``window``."""
    keys, values = (x[:, -(window or x.shape[1]) :].repeat_interleave(GROUPS, 0) for x in (keys, values))
    scores = (keys @ query[:, :, None])[..., 0] * (SIZE**-0.5 if scaling is None else scaling)
    scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
    return (torch.softmax(scores, -1)[:, None] @ values)[:, 0]


class Rows:
    """A cache of two layers, and beside it the keys and values of every row by themselves."""

    def __init__(self, owners=OWNERS, lengths=LENGTHS):
        self.generator = torch.Generator().manual_seed(0)
        prompts = [self.random(len(lengths), HEADS, max(lengths), SIZE) for _ in range(4)]
        layers = [(prompts[0], prompts[1]), (prompts[2], prompts[3])]
        self.alone = [
            [[x[owner, :, : lengths[owner]].clone() for x in pair] for owner in owners] for pair in layers
        ]  # by layer, row: keys and values (J, K, D)
        self.cache = CachedRows(layers, lengths, owners, CAPACITY)

    def random(self, *shape):
        return torch.randn(*shape, generator=self.generator)

    def step(self, **options):
        """Compare one step of both layers; returns the greatest difference."""
        self.cache.advance()
        expected = {"scaling": None, "window": None, "softcap": None, **options}
        worst = 0.0
        for layer, rows in enumerate(self.alone):
            query = self.random(1, GROUPS * HEADS, len(rows), SIZE)
            key, value = self.random(2, 1, HEADS, len(rows), SIZE)
            got = self.cache.attend(layer, query, key, value, **options)
            assert got.shape == (1, len(rows), GROUPS * HEADS, SIZE)
            for number, row in enumerate(rows):
                row[:] = [torch.cat([x, new[0, :, number, None]], 1) for x, new in zip(row, (key, value), strict=True)]
                slow = reference(query[0, :, number], *row, **expected)
                worst = max(worst, float((got[0, number] - slow).abs().max()))
        return worst

    def keep(self, living):
        order = self.cache.keep(living)
        assert sorted(order) == list(living)
        self.alone = [[rows[place] for place in order] for rows in self.alone]


OPTIONS = [
    {},
    {"scaling": 0.3},
    {"window": 3},
    {"window": 7},
    {"softcap": 0.5},
    {"softcap": 0.5, "window": 4, "scaling": 2.0},
]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("owners", [OWNERS, (0, 1, 2)])
def test_every_row_sees_its_prompt_and_itself(options, owners):
    rows = Rows(owners)
    for leaving in ((), (), (1,), (0, 2), ()):
        living = [place for place in range(len(rows.alone[0])) if place not in leaving]
        if leaving:
            rows.keep(living)
        assert rows.step(**options) < 1e-5


@pytest.mark.parametrize("living", [[0], [5], [2, 5], [0, 1, 3, 4], [3, 4, 5], [0, 1, 2, 3, 4, 5]])
def test_any_rows_may_stay(living):
    rows = Rows()
    rows.step()
    rows.keep(living)
    assert rows.step() < 1e-5
    assert rows.cache.positions().tolist() == [rows_.shape[1] - 1 for rows_, _ in rows.alone[0]]


def test_what_ended_is_let_go():
    rows = Rows()
    assert rows.cache.num_tokens == 3 * 9 + 6 * CAPACITY
    rows.step()
    rows.keep([2])
    assert rows.cache.num_tokens == 9 + CAPACITY


def test_what_lies_behind_a_prompt_is_not_seen():
    keys, values = torch.randn(2, 3, HEADS, 9, SIZE)
    for number, length in enumerate(LENGTHS):
        keys[number, :, length:] = 100.0
        values[number, :, length:] = 1e6
    rows = Rows(owners=(0, 1, 2))
    rows.cache = CachedRows([(keys, values)], LENGTHS, (0, 1, 2), CAPACITY)
    rows.cache.advance()
    query, key, value = (torch.randn(1, heads, 3, SIZE) for heads in (GROUPS * HEADS, HEADS, HEADS))
    assert rows.cache.attend(0, query, key, value).abs().max() < 100


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_kernel_and_the_formula_agree(dtype):
    torch.manual_seed(0)
    query, key, value = torch.randn(2, 3, 5, 8).to(dtype), *torch.randn(2, 2, 3, 7, 8).to(dtype)
    mask = torch.zeros(2, 1, 1, 7, dtype=dtype)
    mask[0, ..., 4:] = torch.finfo(dtype).min / 2
    kernel = attend(query, key, value, mask, 0.4)
    formula = attend(query, key, value, mask, 0.4, softcap=1e6)
    tolerance = {"rtol": 0, "atol": 4e-2 if dtype == torch.bfloat16 else 1e-4}
    torch.testing.assert_close(kernel[0], formula[0], **tolerance)
    torch.testing.assert_close(kernel[1].float(), formula[1].float(), **tolerance)
