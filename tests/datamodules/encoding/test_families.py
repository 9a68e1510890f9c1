"""Sharing the tokens of a prompt changes nothing but the time."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datamodules.encoding import families
from datamodules.encoding.families import tokenize_families
from datamodules.encoding.tokenizers import TextTokenizer

# As Llama 3 and Qwen split: a full stop takes the line breaks after it into its word.
PATTERN = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


@pytest.fixture(scope="module")
def split_tokenizer():
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    words = pre_tokenizers.Split(Regex(PATTERN), "isolated")
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([words, letters])
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=alphabet, special_tokens=["</s>"], show_progress=False
    )
    bpe.train_from_iterator(["the fox.\n\n the fox.\n rain 2024, \n\n"] * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="</s>")


PIECES = st.sampled_from(
    ["fox", " ", "  ", "the", "\n", ".", " 20", "24", "\u4f60\u597d", "</s>", "\ue0000\ue001", "'s"]
)
TEXTS = st.lists(PIECES, max_size=30).map("".join)


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(TEXTS, st.lists(TEXTS, min_size=1, max_size=3)), max_size=3))
def test_every_text_has_the_tokens_that_it_has_alone(tiny_tokenizer, split_tokenizer, metaspace_tokenizer, rows):
    grown = [(prompt, *(prompt + text for text in texts)) for prompt, texts in rows]
    strangers = [(prompt, *texts) for prompt, texts in rows]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(families, "_BEFORE_END", 12)
        patch.setattr(families, "_WORTHWHILE", 1)
        for tokenizer in map(TextTokenizer, (tiny_tokenizer, split_tokenizer, metaspace_tokenizer)):
            expected = [[tokenizer.ids([text])[0] for text in family] for family in grown + strangers]
            assert tokenize_families(tokenizer, grown + strangers) == expected


class Counting(TextTokenizer):
    """Counts the characters that it tokenises."""

    count = 0

    def ids(self, texts):
        self.count += sum(map(len, texts))
        return super().ids(texts)


def test_a_prompt_is_tokenised_once(tiny_tokenizer, split_tokenizer, metaspace_tokenizer):
    prompt = "the fox likes the rain. " * 50
    family = [prompt, prompt + "so", prompt + "no"]
    for tokenizer, times in ((tiny_tokenizer, 1), (split_tokenizer, 1), (metaspace_tokenizer, 3)):
        counting = Counting(tokenizer)
        tokenize_families(counting, [family])
        assert times * len(prompt) <= counting.count < (times + 0.3) * len(prompt)


def test_a_cut_within_a_word_is_seen(split_tokenizer):
    prompt = "the fox " * 20 + "rain.\n " + "\u4f60" * 50
    counting = Counting(split_tokenizer)
    ((alone, whole),) = tokenize_families(counting, [(prompt, prompt + " the")])
    assert [alone] == counting.ids([prompt])
    assert [whole] == counting.ids([prompt + " the"])
    assert counting.count > 4 * len(prompt)  # the lead, both whole, and both once more in this test
