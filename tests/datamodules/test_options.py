"""What a user may say about a source."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import pytest

from datamodules.options import Source


def test_a_path_is_enough():
    source = Source("pairs.jsonl")
    assert (source.weight, source.name, source.limit, source.columns, source.tags) == (1.0, None, None, {}, {})


def test_sources_share_nothing_and_stay_as_they_are():
    one, other = Source("a.jsonl"), Source("b.jsonl")
    one.columns["prompt"] = "question"
    assert other.columns == {}
    with pytest.raises(FrozenInstanceError):
        one.weight = 2.0
