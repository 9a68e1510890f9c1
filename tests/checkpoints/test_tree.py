"""Trees as JSON and tensors: everything comes back as it was, and what could not is refused by its path."""

from __future__ import annotations

import json
import string
from collections import namedtuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_rlhf.checkpoints.tree import TAGS, flatten, rebuild

leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.complex_numbers()
keys = st.integers() | st.text(string.printable) | st.booleans() | st.tuples(st.integers(), st.text())
trees = st.recursive(
    leaves,
    lambda inside: st.lists(inside) | st.dictionaries(keys, inside) | st.lists(inside).map(tuple) | st.frozensets(keys),
    max_leaves=12,
)


@given(trees)
def test_any_tree_comes_back(value):
    plain, tensors = flatten(value)
    found = rebuild(json.loads(json.dumps(plain, allow_nan=False)), tensors)
    assert repr(found) == repr(value) or found == value
    assert type(found) is type(value)


def test_the_example_has_every_tag(tree, same):
    plain, tensors = flatten(tree)
    text = json.dumps(plain, allow_nan=False)
    assert [tag for tag in TAGS if f'"{tag}":' not in text] == []
    assert same(rebuild(json.loads(text), tensors), tree)


def test_a_tensor_in_two_places_is_kept_once(tree):
    plain, tensors = flatten(tree)
    assert "state_dict/head" in tensors
    assert "state_dict/embedding" not in tensors
    found = rebuild(plain, tensors)["state_dict"]
    assert found["head"] is found["embedding"]


def test_views_of_one_storage_are_apart():
    whole = torch.arange(6)
    plain, tensors = flatten([whole[:3], whole[3:], whole[:2], whole.view(2, 3)])
    assert [value.tolist() for value in rebuild(plain, tensors)] == [
        [0, 1, 2],
        [3, 4, 5],
        [0, 1],
        [[0, 1, 2], [3, 4, 5]],
    ]


def test_names_that_meet_stay_apart():
    tree = {"a": {"b": torch.zeros(1)}, "a/b": torch.ones(1), "__metadata__": torch.zeros(2), 1: torch.ones(3)}
    plain, tensors = flatten(tree)
    assert len(tensors) == 4
    assert "__metadata__" not in tensors
    assert rebuild(plain, tensors)["a/b"].tolist() == [1.0]


class Mine:
    pass


@pytest.mark.parametrize(
    "value",
    [
        Mine(),
        np.float64(1.0),
        np.zeros(2),
        len,
        namedtuple("Pair", "a b")(1, 2),
        torch.eye(2).to_sparse(),
        torch.zeros(2, dtype=torch.complex64),
        torch.empty(2, device="meta"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_has_no_place_is_refused_by_its_path(value):
    with pytest.raises(
        ValueError, match=r"at callbacks / Mine / 0 / 7, which could be read again only by running code"
    ):
        flatten({"callbacks": {"Mine": [{7: value}]}})
    with pytest.raises(ValueError, match="its root"):
        flatten(value)


def test_an_unknown_tag_is_no_value():
    with pytest.raises(KeyError):
        rebuild({"!module": "os"}, {})
