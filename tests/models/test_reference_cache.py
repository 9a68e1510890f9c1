"""Kept log-probabilities: exact over packings and restarts, refused when anything changed, safe from kills."""

from __future__ import annotations

import pytest
import torch

from lit_rlhf.models import reference_cache
from lit_rlhf.models.reference_cache import ReferenceCache
from lit_rlhf.types import Forest, Picture, Segment

PAIR = [([5, 6], -1), ([7, 8], 0), ([9], 0)]
OTHER = [([5], -1), ([3, 4], 0), ([2], 0)]
KEYS = ["a:1#0", "a:1#1"]


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "kept"


def filled(folder, make_forest, fingerprint="model", keys=KEYS, tree=PAIR, rank=0):
    cache = ReferenceCache(folder, fingerprint, rank)
    cache.store(make_forest(tree), keys, torch.tensor([-1.0, -2.0, -3.0]))
    return cache


def test_hits_and_misses(folder, make_forest):
    cache = filled(folder, make_forest)
    assert cache.lookup(make_forest(PAIR), KEYS).tolist() == [-1.0, -2.0, -3.0]
    assert cache.lookup(make_forest(PAIR, OTHER), [*KEYS, "a:2#0", "a:2#1"]) is None
    assert (cache.hits, cache.misses) == (2, 2)


def test_another_packing_and_order(folder, make_forest):
    cache = filled(folder, make_forest)
    cache.store(make_forest(OTHER), ["b:1#0", "b:1#1"], torch.tensor([-4.0, -5.0, -6.0]))
    keys = ["b:1#0", "b:1#1", *KEYS]
    assert cache.lookup(make_forest(OTHER, PAIR), keys).tolist() == [-4.0, -5.0, -6.0, -1.0, -2.0, -3.0]


def test_it_survives_a_restart_and_grows(folder, make_forest):
    filled(folder, make_forest).flush()
    again = ReferenceCache(folder, "model")
    assert again.lookup(make_forest(PAIR), KEYS).tolist() == [-1.0, -2.0, -3.0]
    again.flush()
    assert len(list(folder.iterdir())) == 1, "nothing is written twice"
    again.store(make_forest(OTHER), ["b:1#0", "b:1#1"], torch.zeros(3))
    again.store(make_forest(PAIR), KEYS, torch.zeros(3))
    again.flush()
    third = ReferenceCache(folder, "model", rank=1)
    assert third.lookup(make_forest(PAIR, OTHER), [*KEYS, "b:1#0", "b:1#1"])[:3].tolist() == [-1, -2, -3]


def test_ranks_write_files_of_their_own_and_read_all(folder, make_forest):
    filled(folder, make_forest).flush()
    filled(folder, make_forest, keys=["b:1#0", "b:1#1"], rank=1).flush()
    assert sorted(file.name for file in folder.iterdir()) == [
        "part-00000-000000.safetensors",
        "part-00001-000000.safetensors",
    ]
    assert ReferenceCache(folder, "model").lookup(make_forest(PAIR), ["b:1#0", "b:1#1"]) is not None


def test_a_deleted_file_is_not_written_over_another(folder, make_forest):
    trees = {number: [([5, 6], -1), ([7, number], 0), ([9], 0)] for number in range(10, 14)}
    for number in (10, 11, 12):
        filled(folder, make_forest, keys=[f"a:{number}#0", f"a:{number}#1"], tree=trees[number]).flush()
    (folder / "part-00000-000000.safetensors").unlink()
    filled(folder, make_forest, keys=["a:13#0", "a:13#1"], tree=trees[13]).flush()
    last = ReferenceCache(folder, "model")
    for number in (11, 12, 13):
        assert last.lookup(make_forest(trees[number]), [f"a:{number}#0", f"a:{number}#1"]) is not None


@pytest.mark.parametrize(
    "tree",
    [
        [([5, 6], -1), ([7, 9], 0), ([9], 0)],
        [([4, 6], -1), ([7, 8], 0), ([9], 0)],
        [([5], -1), ([6, 7, 8], 0), ([6, 9], 0)],  # the same tokens, another prompt boundary
    ],
)
def test_changed_rows_are_refused_by_name(folder, make_forest, tree):
    with pytest.raises(ValueError, match=r"^a:1: its tokens are not those .* model\.reference\.cache_folder$"):
        filled(folder, make_forest).lookup(make_forest(tree), KEYS)


def test_another_reference_is_refused(folder, make_forest):
    filled(folder, make_forest).flush()
    with pytest.raises(ValueError, match="kept holds log-probabilities of another reference model"):
        ReferenceCache(folder, "other")


@pytest.mark.parametrize("damage", [b"", b"broken", None])
def test_a_damaged_file_is_refused_by_name(folder, make_forest, damage):
    filled(folder, make_forest).flush()
    (file,) = folder.iterdir()
    file.write_bytes(file.read_bytes()[:-4] if damage is None else damage)
    with pytest.raises(ValueError, match=r"part-00000-000000\.safetensors is damaged"):
        ReferenceCache(folder, "model")


def test_a_kill_while_writing_costs_nothing_that_was_written(folder, make_forest, monkeypatch):
    filled(folder, make_forest).flush()
    cache = filled(folder, make_forest, keys=["b:1#0", "b:1#1"])

    def half(tensors, file, metadata):
        file.write_bytes(b"half of a fi")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(reference_cache, "save_file", half)
        with pytest.raises(KeyboardInterrupt):
            cache.flush()
    again = ReferenceCache(folder, "model")
    assert again.lookup(make_forest(PAIR), KEYS) is not None
    assert again.lookup(make_forest(PAIR), ["b:1#0", "b:1#1"]) is None
    cache.flush()
    assert ReferenceCache(folder, "model").lookup(make_forest(PAIR), ["b:1#0", "b:1#1"]) is not None


def test_much_is_written_along_the_way(folder, make_forest, monkeypatch):
    monkeypatch.setattr(reference_cache, "FLUSH_EVERY", 4)
    cache = filled(folder, make_forest)
    assert not list(folder.iterdir())
    cache.store(make_forest(OTHER), ["b:1#0", "b:1#1"], torch.zeros(3))
    assert len(list(folder.iterdir())) == 1


def test_other_pictures_of_the_same_tokens_are_refused(folder):
    def seen(digest):
        picture = Picture({"pixel_values": torch.zeros(1)}, 1, digest)
        return Forest.pack([[Segment([5], [False], pictures=(picture,)), Segment([7], [True], 0)]])

    cache = ReferenceCache(folder, "model")
    cache.store(seen("one"), ["a:1#0"], torch.tensor([-1.0]))
    assert cache.lookup(seen("one"), ["a:1#0"]).tolist() == [-1.0]
    with pytest.raises(ValueError, match="a:1: its tokens are not those"):
        cache.lookup(seen("two"), ["a:1#0"])
