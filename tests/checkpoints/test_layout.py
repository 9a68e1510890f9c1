"""The first part of a file, written and read."""

from __future__ import annotations

import json

import pytest
import torch

from lit_rlhf.checkpoints import layout
from lit_rlhf.checkpoints.layout import DIGEST_AT, DTYPES, NO_DIGEST, in_order, read_header, write_header

TENSORS = in_order({"flags": torch.ones(3, dtype=torch.bool), "weights": torch.zeros(2, 5), "none": torch.zeros(0)})
NUM_BYTES = 43


def header(**changes):
    """The entries of a header, some of them changed."""
    entries = json.loads(write_header({"tree": "{}"}, TENSORS)[8:])
    entries["__metadata__"].update(changes.pop("metadata", {}))
    return json.dumps({**entries, **changes}).encode()


def test_a_header_comes_back():
    text = write_header({"tree": "{}"}, TENSORS)
    assert text[DIGEST_AT : DIGEST_AT + 64].decode() == NO_DIGEST
    assert len(text) % 64 == 0
    metadata, places = read_header(text[8:], NUM_BYTES)
    assert metadata["tree"] == "{}"
    assert [(place.name, place.begin, place.end) for place in places] == [
        ("weights", 0, 40),
        ("none", 40, 40),
        ("flags", 40, 43),
    ]


def test_every_tensor_lies_aligned():
    tensors = in_order({str(dtype): torch.zeros(3, dtype=dtype) for dtype in reversed(DTYPES)})
    _, places = read_header(write_header({}, tensors)[8:], sum(tensor.nbytes for tensor in tensors.values()))
    assert [place.name for place in places if place.begin % place.dtype.itemsize] == []


ENTRY = {"dtype": "F32", "shape": [2, 5], "data_offsets": [0, 40]}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"{", "its header is damaged"),
        (b"[]", "its header is damaged"),
        (b"[" * 100_000, "its header is damaged"),
        (header(weights=1), "its header is damaged"),
        (header(weights={**ENTRY, "dtype": "F99"}), "its header is damaged"),
        (header(weights={**ENTRY, "data_offsets": [0]}), "its header is damaged"),
        (header(weights={**ENTRY, "data_offsets": [4, 44]}), "its header is damaged at weights"),
        (header(weights={**ENTRY, "shape": [2, 6]}), "its header is damaged at weights"),
        (header(weights={**ENTRY, "data_offsets": [4, 40]}), "its header is damaged at weights"),
        (header(weights={**ENTRY, "shape": [-2, -5]}), "its header is damaged"),
        (header(metadata={"format": "pt"}), "a safetensors file, but no checkpoint"),
        (header(metadata={"version": "9"}), "version 9; this lit_rlhf reads version 1"),
        (header(more={**ENTRY, "data_offsets": [43, 83]}), "43 bytes of data, and 83 were written"),
    ],
)
def test_a_wrong_header_is_refused(text, reason):
    with pytest.raises(ValueError, match=reason):
        read_header(text, NUM_BYTES)


def test_a_header_that_no_reader_takes_is_not_written(monkeypatch):
    monkeypatch.setattr(layout, "MAX_HEADER", 1000)
    with pytest.raises(ValueError, match="1,000 is most"):
        write_header({"tree": "x" * 1000}, {})
