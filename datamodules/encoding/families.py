"""Texts that begin alike, tokenised with their beginning once.

A prompt is tokenised alone and with each of its responses, and most of the time goes into the prompt. So of each family
of texts only the longest, the *lead*, is tokenised whole, and of all of them what follows a cut, some words before the
end of the prompt. Where the tokens of the lead end in those of its rest, the cut lies between words, and the tokens
before it are those of the other texts too: tokenizers that split texts into words, from left to right, merge nothing
over their ends. A family that fails this test is tokenised whole; so is every text of a tokenizer without words.
"""

from __future__ import annotations

from collections.abc import Sequence

from datamodules.encoding.tokenizers import TextTokenizer

# How many characters before the end of the prompt the cut lies at least: what comes after may change the last words.
_BEFORE_END = 40
# Below this many characters before it a cut costs more than it saves.
_WORTHWHILE = 80


def tokenize_families(tokenizer: TextTokenizer, families: Sequence[Sequence[str]]) -> list[list[list[int]]]:
    """Tokenise texts that begin alike.

    Args:
        tokenizer: adds nothing.
        families: each a prompt, and the prompt with each of its responses.

    Returns:
        Token ids of every text of every family, as :meth:`TextTokenizer.ids` gives them.
    """
    cuts = [_cut(family) if tokenizer.splits_words else 0 for family in families]
    leads = [max(family, key=len) for family, cut in zip(families, cuts, strict=True) if cut]
    rests = [text[cut:] for family, cut in zip(families, cuts, strict=True) for text in family]
    ids = _table(tokenizer, leads + rests)
    uncut: list[str] = []
    for number, (family, cut) in enumerate(zip(families, cuts, strict=True)):
        lead = max(family, key=len)
        if cut and not _ends_in(ids[lead], ids[lead[cut:]]):
            cuts[number] = 0
            uncut += family
    ids.update(_table(tokenizer, uncut))
    return [_joined(family, cut, ids) for family, cut in zip(families, cuts, strict=True)]


def _cut(family: Sequence[str]) -> int:
    """Where to cut the texts of a family: before a space; 0 = nowhere."""
    prompt = family[0]
    if not all(text.startswith(prompt) for text in family):
        return 0
    cut = len(prompt[: prompt.rfind(" ", 0, max(0, len(prompt) - _BEFORE_END)) + 1].rstrip())
    return cut if cut >= _WORTHWHILE else 0


def _joined(family: Sequence[str], cut: int, ids: dict[str, list[int]]) -> list[list[int]]:
    if not cut:
        return [ids[text] for text in family]
    lead = max(family, key=len)
    before = ids[lead][: len(ids[lead]) - len(ids[lead[cut:]])]
    return [before + ids[text[cut:]] for text in family]


def _table(tokenizer: TextTokenizer, texts: Sequence[str]) -> dict[str, list[int]]:
    """Token ids by text, each tokenised once."""
    unique = list(dict.fromkeys(texts))
    return dict(zip(unique, tokenizer.ids(unique), strict=True))


def _ends_in(ids: list[int], rest: list[int]) -> bool:
    return ids[len(ids) - len(rest) :] == rest
