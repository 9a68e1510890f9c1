"""Text that attends to pictures, against a softmax over what each token sees."""

from __future__ import annotations

import pytest
import torch
from transformers.models.mllama.processing_mllama import (
    convert_sparse_cross_attention_mask_to_dense,
    get_cross_attention_token_mask,
)

from lit_rlhf.models.layers.cross_attention import CachedPictures, SeenPictures, Stretch, sights

GROUPS, HEADS, SIZE = 2, 3, 4


def slow(query, keys, values):
    """(heads, D) of one query (heads, D) over keys (J, K, D); 0 where there are none."""
    if not keys.shape[1]:
        return torch.zeros_like(query)
    keys, values = keys.repeat_interleave(GROUPS, 0), values.repeat_interleave(GROUPS, 0)
    return (torch.softmax(keys @ query[:, :, None] * SIZE**-0.5, 1).transpose(1, 2) @ values)[:, 0]


def rows_of(x, spans):
    return torch.cat([x[:, :0], *(x[:, start:end] for start, end in spans)], dim=1)


@pytest.mark.parametrize("images", [[], [0], [4], [2, 3], [0, 1, 2], [1, 3], [0, 2, 3, 6, 7, 8]], ids=str)
def test_who_sees_what_is_what_the_processor_of_transformers_says(images):
    tokens = [7 if at in images else 5 for at in range(9)]
    mask = torch.zeros(9, max(1, len(images)), dtype=torch.int64)
    if images:
        spans = get_cross_attention_token_mask(tokens, 7)
        mask = torch.from_numpy(convert_sparse_cross_attention_mask_to_dense([spans], [[1] * 6], 1, 9))[0, :, :, 0]
    found, covered = torch.zeros_like(mask), []
    for sight in sights(images, 0, 9):
        covered += range(sight.start, sight.end)
        if sight.is_before:
            assert list(sight.pictures) == list(range(len(images)))
        else:
            found[sight.start : sight.end, list(sight.pictures)] = 1
    assert torch.equal(found, mask)
    assert covered == list(range(9))


def test_each_stretch_attends_to_its_rows_and_what_sees_nothing_gets_nothing():
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(1, GROUPS * HEADS, 7, SIZE, generator=generator)
    key, value = torch.randn(2, 1, HEADS, 9, SIZE, generator=generator)
    stretches = [Stretch(0, 2, ((0, 9),)), Stretch(2, 5, ((1, 3), (6, 9))), Stretch(5, 5), Stretch(5, 7)]
    seen = SeenPictures(stretches, [stretches[1].spans, ()])
    output = seen.attend(4, query, key, value, keep=True)
    assert output.shape == (1, 7, GROUPS * HEADS, SIZE)
    for start, end, spans in stretches:
        for at in range(start, end):
            expected = slow(query[0, :, at], rows_of(key[0], spans), rows_of(value[0], spans))
            assert torch.allclose(output[0, at], expected, atol=1e-6)
    assert seen.lengths == [5, 1]
    keys, values = seen.kept[4]
    assert torch.equal(keys[:, :5], rows_of(key[0], stretches[1].spans))
    assert torch.equal(values[:, :5], rows_of(value[0], stretches[1].spans))
    assert not keys[:, 5:].any()
    assert not values[:, 5:].any()
    assert not SeenPictures(stretches, [()]).attend(4, query, key, value).isnan().any()


def test_responses_see_what_the_ends_of_their_prompts_see():
    """Prompts of three forests, the one in the middle without pictures; responses leave."""
    generator = torch.Generator().manual_seed(1)
    seen, alone = [], []
    for ends in ([((0, 4),), ()], 2, [((2, 3), (4, 9))]):
        if ends == 2:
            seen.append(2)
            alone += [(torch.zeros(HEADS, 0, SIZE),) * 2] * 2
            continue
        key, value = torch.randn(2, 1, HEADS, 9, SIZE, generator=generator)
        layout = SeenPictures([Stretch(0, 1)], ends)
        layout.attend(3, torch.randn(1, GROUPS * HEADS, 1, SIZE), key, value, keep=True)
        seen.append(layout)
        alone += [(rows_of(key[0], spans), rows_of(value[0], spans)) for spans in ends]
    owners = [0, 0, 1, 2, 3, 4, 4]
    cached = CachedPictures(seen, owners)
    for living in (None, [1, 2, 5, 6], [2, 3]):
        if living is not None:
            cached.keep(living)
            owners = [owners[place] for place in living]
        query = torch.randn(1, GROUPS * HEADS, len(owners), SIZE, generator=generator)
        nothing = torch.zeros(1, HEADS, 1, SIZE)
        output = cached.attend(3, query, nothing, nothing, keep=False)
        for number, owner in enumerate(owners):
            assert torch.allclose(output[0, number], slow(query[0, :, number], *alone[owner]), atol=1e-6)
