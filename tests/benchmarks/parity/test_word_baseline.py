"""What words alone tell of a preference."""

import pytest


@pytest.fixture(scope="module")
def script(load_script):
    return load_script("parity/word_baseline.py")


def row(chosen, rejected):
    return {"prompt": "", "chosen": chosen, "rejected": rejected}


def test_words_that_decide_are_learned(script):
    train = [row(f"kind {name}", f"rude {name}") for name in ("cat", "dog", "fox", "hen")] * 5
    assert script.bag_of_words_accuracy(train, [row("Kind, owl!", "an owl"), row("an ox", "a rude ox")]) == 1
    assert script.bag_of_words_accuracy(train, [row("rude", "kind"), row("kind", "rude")]) == 0.5
    assert script.bag_of_words_accuracy(train, [row("owl", "ox")]) == 0.5  # neither is known


def test_l2_holds_the_weights_back(script):
    # "a" loses more often than "c", and yet wins against it: weights that are free to grow can say so
    train = [row("a", "c"), *[row("b", "a")] * 3]
    assert script.bag_of_words_accuracy(train, [row("b", "c")]) == 1
    assert script.bag_of_words_accuracy(train, [row("a", "c")], l2=1e-4) == 1
    assert script.bag_of_words_accuracy(train, [row("a", "c")], l2=10.0) == 0


def test_shorter_wins(script):
    assert (
        script.shorter_wins_accuracy([row("a", "long"), row("long", "a"), row("ab", "cd"), row("x", "longer")]) == 0.625
    )
