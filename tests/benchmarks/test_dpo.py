"""What the DPO benchmark says of its settings."""

import pytest


@pytest.fixture(scope="module")
def script(load_script):
    return load_script("dpo.py")


def test_useful_operations_by_hand(script, monkeypatch):
    monkeypatch.setitem(script.ARCHITECTURES, "hand", (2, 3, 1, 5, 7))
    # body: 3 * (4 * 2 * 2 + 3 * 2 * 5) = 138 multiply-adds a token; head: 2 * 7 = 14 a scored one
    tokens = {"unique": 10, "scored": 4}
    assert script.useful_flops("hand", tokens, {"cached_reference": True}) == 2 * 2 * (10 * 138 + 4 * 14)
    assert script.useful_flops("hand", tokens, {"cached_reference": False}) == 2 * 3 * (10 * 138 + 4 * 14)


def test_what_is_compared_with_is_measured(script):
    assert {script.DPO.default, script.DPO.careful} <= set(script.DPO.settings)
    assert script.DPO.settings[script.DPO.default] == {
        "side": "trl",
        "gradient_checkpointing": True,
        "cached_reference": False,
    }
