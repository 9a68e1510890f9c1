"""Rankings: pairs that share a prompt and responses train what the same pairs train apart."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch

from datamodules.packing import TokenPair, TokenResponse, TokenTree, pack_pairs, pack_trees


def tokens(length, seed):
    return [6 + (seed * 31 + at * at * 7 + at * seed) % 314 for at in range(length)]


def rankings(number):
    """Prompts with three responses each, the first the best."""
    return [(tokens(4, row), [tokens(3 + row % 2 + n, 100 * row + n) for n in range(3)]) for row in range(number)]


def together(rows, token_budget):
    trees = [
        TokenTree(
            prompt,
            [TokenResponse(response, [True] * len(response)) for response in responses],
            [(better, worse, 0.0) for better, worse in combinations(range(3), 2)],
            row=f"train:{number}",
            source="train",
        )
        for number, (prompt, responses) in enumerate(rows, 1)
    ]
    return pack_trees(trees, token_budget)


def apart(rows):
    pairs = [
        TokenPair(prompt, responses[better], responses[worse], row=f"train:{number}/{better}{worse}", source="train")
        for number, (prompt, responses) in enumerate(rows, 1)
        for better, worse in combinations(range(3), 2)
    ]
    return pack_pairs(pairs, 10**6)


@pytest.mark.parametrize("options", [{}, {"ld_alpha": 0.5}, {"use_weighting": True}])
@pytest.mark.parametrize("token_budget", [1, 10**6])
def test_shared_responses_change_no_number(make_module, fit, options, token_budget):
    rows = rankings(4)
    shared = [together(rows[:2], token_budget), together(rows[2:], token_budget)]
    copied = [apart(rows[:2]), apart(rows[2:])]
    assert shared[0].num_pairs == copied[0].num_pairs == 6
    modules, logs = [], []
    for batches in (shared, copied):
        modules.append(make_module(**options))  # seeded, and filled in by fit
        logs.append(fit(modules[-1], batches).logger.rows)
    per_token = {"train/kl", "train/entropy"}  # over the tokens that are computed: shared ones once
    skipped = {"train/tokens_per_second", "train/data/fill", *per_token}
    for ours_row, theirs_row in zip(*logs, strict=True):
        for name in set(theirs_row) - skipped:
            assert ours_row[name] == pytest.approx(theirs_row[name], rel=1e-5, abs=1e-6), name
    for (name, one), (_, other) in zip(*(module.named_parameters() for module in modules), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6, msg=name)
