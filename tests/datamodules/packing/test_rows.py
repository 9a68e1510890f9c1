"""Rows in tokens: how many they have in a forest, and what a tree of them is."""

from __future__ import annotations

import pytest

from datamodules.packing import TokenPair, TokenSequence, TokenTree
from lit_rlhf.types import Segment


def test_a_shared_prompt_is_counted_once(responses):
    assert TokenTree([1, 2], responses([5], [6, 7])).num_tokens == 5
    assert TokenPair([1, 2], [5], [6, 7]).num_tokens == 5
    assert TokenSequence([1, 2], [False, True]).num_tokens == 2


def test_a_tree_has_its_prompt_as_root(responses):
    assert TokenTree([1, 2], responses([5], [6, 7])).segments == [
        Segment([1, 2], [False, False]),
        Segment([5], [True], 0),
        Segment([6, 7], [True, True], 0),
    ]


@pytest.mark.parametrize(("prompt", "response"), [([], [5]), ([1], [])])
def test_an_empty_part_is_refused(responses, prompt, response):
    with pytest.raises(ValueError, match=r"row 'a:1' has an empty prompt or response"):
        _ = TokenTree(prompt, responses([6], response), row="a:1").segments
