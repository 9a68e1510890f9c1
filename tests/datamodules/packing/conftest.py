"""What is in a forest, and rows to pack."""

from __future__ import annotations

import pytest

from datamodules.packing import TokenResponse


@pytest.fixture(scope="session")
def sequence():
    """Tokens of the root and scored tokens of a sequence, all of whose leaf is scored."""

    def sequence(forest, number):
        root, leaf = forest.path(forest.leaves[number])
        start = forest.starts[root]
        scored = forest.targets[forest.sequences == number]
        assert scored.tolist() == list(range(forest.starts[leaf], forest.starts[leaf] + forest.lengths[leaf]))
        return forest.tokens[start : start + forest.lengths[root]].tolist(), forest.tokens[scored].tolist()

    return sequence


@pytest.fixture(scope="session")
def responses():
    """Responses of which every token is scored."""
    return lambda *tokens: [TokenResponse(ids, [True] * len(ids)) for ids in tokens]
