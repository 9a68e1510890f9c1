from pathlib import Path

import pytest

from lit_rlhf.embedded import resolve


def test_embedded_names_become_paths():
    assert Path(resolve("embedded:dpo_train.jsonl")).is_file()
    assert Path(resolve("embedded:tiny_llama"), "config.json").is_file()


@pytest.mark.parametrize("text", ["some/folder", "org/name", "", "not-embedded:tiny_llama"])
def test_other_text_stays_as_it_is(text: str):
    assert resolve(text) == text


@pytest.mark.parametrize("name", ["tiny_lama", "", ".", "..", "../facts.py", "tiny_llama/config.json"])
def test_unknown_names_are_refused_with_the_known_ones(name: str):
    with pytest.raises(ValueError, match=r"embedded are: dpo_test\.jsonl, .*tiny_llama"):
        resolve(f"embedded:{name}")
