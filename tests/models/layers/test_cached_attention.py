"""Attention over a cache of prompts and responses, against a softmax over one row per response."""

import pytest
import torch

from lit_rlhf.models.layers import cached_attention
from lit_rlhf.models.layers.cached_attention import CachedRows

LENGTHS, OWNERS, CAPACITY = (5, 1, 9), (0, 0, 1, 2, 2, 2), 6
GROUPS, HEADS, SIZE = 2, 3, 4
NUMBERS = (0, 3)  # of layers, between which others look at pictures


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
        prompts = [self.random(HEADS, sum(lengths), SIZE) for _ in range(4)]
        layers = [(prompts[0], prompts[1]), (prompts[2], prompts[3])]
        self.alone = [
            [[x.split(lengths, 1)[owner] for x in pair] for owner in owners] for pair in layers
        ]  # by layer, row: keys and values (J, K, D)
        self.cache = CachedRows(zip(NUMBERS, layers, strict=True), lengths, owners, CAPACITY)

    def random(self, *shape):
        return torch.randn(*shape, generator=self.generator)

    def step(self, **options):
        """Compare one step of both layers; returns the greatest difference."""
        self.cache.advance()
        expected = {"scaling": None, "window": None, "softcap": None, **options}
        worst = 0.0
        for layer, rows in zip(NUMBERS, self.alone, strict=True):
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
        self.cache.keep(living)
        self.alone = [[rows[place] for place in living] for rows in self.alone]


OPTIONS = [
    {},
    {"scaling": 0.3},
    {"window": 3},
    {"window": 7},
    {"softcap": 0.5},
    {"softcap": 0.5, "window": 4, "scaling": 2.0},
]


@pytest.fixture(params=[0, 2 * HEADS * SIZE * 4 * 4, 2**20], ids=["alone", "two blocks", "one block"])
def blocks(request, monkeypatch):
    """Bytes of padding that a block may have: none, four tokens, plenty."""
    monkeypatch.setitem(cached_attention._CALL_BYTES, "cpu", request.param)


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("owners", [OWNERS, (0, 1, 2)])
def test_every_row_sees_its_prompt_and_itself(options, owners):
    rows = Rows(owners)
    for leaving in ((), (), (1,), (0, 2), ()):
        living = [place for place in range(len(rows.alone[0])) if place not in leaving]
        if leaving:
            rows.keep(living)
        assert rows.step(**options) < 1e-5


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("living", [[0], [5], [2, 5], [0, 1, 3, 4], [3, 4, 5], [0, 1, 2, 3, 4, 5]])
def test_any_rows_may_stay(living):
    rows = Rows()
    rows.step()
    rows.keep(living)
    assert rows.step() < 1e-5
    assert rows.cache.positions().tolist() == [rows_.shape[1] - 1 for rows_, _ in rows.alone[0]]


@pytest.mark.parametrize(
    ("spare", "blocks", "room"),
    [(0, [1, 1, 1], 5 + 1 + 9), (3, [1, 1, 1], 5 + 1 + 9), (4, [2, 1], 5 + 5 + 9), (12, [3], 9 + 9 + 9)],
)
def test_prompts_of_like_length_are_padded_to_the_longest_of_them(spare, blocks, room, monkeypatch):
    monkeypatch.setitem(cached_attention._CALL_BYTES, "cpu", spare * 2 * HEADS * SIZE * 4)
    cache = Rows().cache
    assert [len(keys) for keys, _ in cache._prompts[0]] == blocks
    assert cache.num_tokens == room + 6 * CAPACITY
    assert cache.num_bytes == cache.num_tokens * 2 * 2 * HEADS * SIZE * 4


def test_what_ended_is_let_go():
    rows = Rows()
    assert rows.cache.num_tokens == 3 * 9 + 6 * CAPACITY
    rows.step()
    rows.keep([2])
    assert rows.cache.num_tokens == 1 + CAPACITY


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_a_row_does_not_see_adds_nothing(dtype):
    """Beside a prompt whose values are huge, in the type of the model."""
    keys, values = torch.randn(2, HEADS, sum(LENGTHS), SIZE, dtype=dtype)
    values[:, :5] = 1e6
    cache = CachedRows([(0, (keys, values))], LENGTHS, (0, 1, 2), CAPACITY)
    cache.advance()
    query, key, value = (torch.randn(1, heads, 3, SIZE, dtype=dtype) for heads in (GROUPS * HEADS, HEADS, HEADS))
    output = cache.attend(0, query, key, value)
    assert output.dtype == dtype
    assert output[0, 0].abs().max() > 1e5
    assert output[0, 1:].abs().max() < 100
