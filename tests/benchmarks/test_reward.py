"""What the reward benchmark says of its settings."""

import pytest


@pytest.fixture(scope="module")
def script(load_script):
    return load_script("reward.py")


def test_useful_operations_by_hand(script, load_script, monkeypatch):
    monkeypatch.setitem(script.body_flops.__globals__["ARCHITECTURES"], "hand", (2, 3, 1, 5, 7))
    assert script.useful_flops("hand", {"unique": 10, "scored": 4}, {}) == 2 * 2 * 10 * 138


def test_what_is_compared_with_is_measured(script):
    settings = script.REWARD.settings
    assert settings[script.REWARD.default] == {"side": "trl", "gradient_checkpointing": True, "is_sorted": False}
    assert settings[script.REWARD.careful] == {"side": "trl", "gradient_checkpointing": False, "is_sorted": True}
