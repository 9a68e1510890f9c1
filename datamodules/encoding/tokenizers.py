"""Tokenizers: loading them, and texts to token ids without anything added."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from datamodules.records import BadRowError, common_prefix_length

Range = tuple[int, int]

# Private-use characters around what stands for something else: the number of a special token that a message spells
# out, or the end of a message.
OPEN, CLOSE = "\ue000", "\ue001"
_HIDDEN = re.compile(f"{OPEN}(\\d+){CLOSE}")


def load_tokenizer(name_or_path: str, chat_template: str | None = None) -> PreTrainedTokenizerBase:
    """Load a tokenizer, never running code that comes with it.

    Args:
        name_or_path: folder or hub name.
        chat_template: a Jinja template, or the path of a file holding one; replaces the tokenizer's own.
    """
    tokenizer = AutoTokenizer.from_pretrained(name_or_path, trust_remote_code=False)
    return with_chat_template(tokenizer, chat_template)


def with_chat_template(tokenizer: PreTrainedTokenizerBase, chat_template: str | None) -> PreTrainedTokenizerBase:
    """Set the chat template of a tokenizer, unless ``chat_template`` is None.

    Raises:
        ValueError: if ``chat_template`` looks like a path and there is no such file.
    """
    if chat_template is not None and "{" not in chat_template:
        if not Path(chat_template).is_file():
            raise ValueError(f"data.chat_template is {chat_template!r}, which is neither a file nor a Jinja template")
        chat_template = Path(chat_template).read_text(encoding="utf-8")
    if chat_template is not None:
        tokenizer.chat_template = chat_template
    return tokenizer


class TextTokenizer:
    """A Hugging Face tokenizer that adds nothing by itself and tells its own special tokens from spelled-out ones.

    Args:
        tokenizer: any Hugging Face tokenizer, fast or slow.
        image_tokens: special tokens that stand for pictures, which no text may spell out, not even a plain one.

    Raises:
        ValueError: if it cannot be found out what the tokenizer puts before a text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, image_tokens: Sequence[str] = ()) -> None:
        self.tokenizer = tokenizer
        self.opening = _opening(tokenizer)
        self.splits_words = tokenizer.is_fast and len(set(self._backend().encode("a b c").word_ids) - {None}) > 1
        added = (str(token) for token in tokenizer.added_tokens_decoder.values() if token.special)
        self._special = sorted({*added, *map(str, tokenizer.all_special_tokens), *image_tokens}, key=len, reverse=True)
        self._is_special = re.compile("|".join(map(re.escape, self._special)) or "(?!)")
        self._hideable = [OPEN, *self._special]
        self._is_hideable = re.compile("|".join(map(re.escape, self._hideable)))
        self._is_never_meant = re.compile("|".join(map(re.escape, [OPEN, *image_tokens])))

    def require_eos(self) -> None:
        """Refuse a tokenizer whose responses would not end.

        Raises:
            ValueError: if it has no end-of-sequence token.
        """
        if self.tokenizer.eos_token is None:
            name = self.tokenizer.name_or_path
            raise ValueError(f"tokenizer {name!r} has no eos_token, which ends a response; set tokenizer.eos_token")

    def opened(self, ids: list[int]) -> list[int]:
        """Put what the tokenizer puts before a text before its ids, unless the text spelled it out."""
        return ids if ids[: len(self.opening)] == self.opening else self.opening + ids

    def closed(self, text: str, ids: list[int]) -> list[int]:
        """Put what begins and ends a text around its ids, unless the text spelled it out."""
        ending = [] if text.endswith(str(self.tokenizer.eos_token)) else [self.tokenizer.eos_token_id]
        return self.opened(ids) + ending

    def checked(self, ids: Sequence[int]) -> list[int]:
        """Token ids that a row came with.

        Raises:
            BadRowError: if the tokenizer has no such token.
        """
        if wrong := [token for token in ids if not 0 <= token < len(self.tokenizer)]:
            message = f"token id {wrong[0]} is not one of the {len(self.tokenizer)} tokens of the tokenizer"
            raise BadRowError("bad_token", message)
        return list(ids)

    def hide(self, text: str) -> str:
        """Replace special tokens that a message spells out by marks that the tokenizer does not know."""
        return self._is_hideable.sub(self._hidden, text)

    def hide_marks(self, text: str) -> str:
        """Replace the characters of our own marks and image tokens, so that no text is taken for more than it is."""
        return self._is_never_meant.sub(self._hidden, text)

    def show(self, text: str) -> str:
        """Undo :meth:`hide` and :meth:`hide_marks`."""
        return _HIDDEN.sub(lambda match: self._hideable[int(match[1])], text) if OPEN in text else text

    def special_end(self, text: str, start: int, end: int) -> int | None:
        """Where the first special token in ``text[start:end]`` ends, counted from the beginning of ``text``."""
        match = self._is_special.search(text, start, end)
        return match.end() if match else None

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokenise texts, all at once; what was hidden becomes the tokens of its letters."""
        if not texts:
            return []
        if self.tokenizer.is_fast:
            rows = [encoding.ids for encoding in self._backend().encode_batch_fast(texts, add_special_tokens=False)]
        else:
            rows = self.tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
        return [self._pieces(text)[0] if OPEN in text else row for text, row in zip(texts, rows, strict=True)]

    def masked_ids(self, texts: Sequence[str], ranges: Sequence[Sequence[Range]]) -> list[tuple[list[int], list[bool]]]:
        """Tokenise texts, and say which tokens overlap ranges of characters.

        Args:
            texts: the texts.
            ranges: (start, end) pairs of each text.

        Returns:
            For each text its token ids, and one bool per token; True = the token overlaps a range.
        """
        return [(ids, _mask(len(ids), found)) for ids, found in self.ranged_ids(texts, ranges)]

    def ranged_ids(
        self, texts: Sequence[str], ranges: Sequence[Sequence[Range]]
    ) -> list[tuple[list[int], list[Range]]]:
        """Tokenise texts, and say which tokens hold ranges of characters.

        Args:
            texts: the texts.
            ranges: (start, end) pairs of each text.

        Returns:
            For each text its token ids, and for each range the first token that ends behind its start, and the one
            after the last token that begins before its end.
        """
        if not texts:
            return []
        if not self.tokenizer.is_fast:
            rows = zip(texts, self.ids(texts), ranges, strict=True)
            return [(ids, self._by_prefixes(text, ids, wanted)) for text, ids, wanted in rows]
        found = []
        encodings = self._backend().encode_batch(texts, add_special_tokens=False)
        for text, encoding, wanted in zip(texts, encodings, ranges, strict=True):
            ids, offsets = self._pieces(text) if OPEN in text else (encoding.ids, encoding.offsets)
            found.append((ids, _by_offsets(offsets, wanted)))
        return found

    def _hidden(self, match: re.Match[str]) -> str:
        return f"{OPEN}{self._hideable.index(match[0])}{CLOSE}"

    def _backend(self) -> Any:
        """The tokenizer without its wrapper, which takes a third of the time; set as the wrapper would set it."""
        backend: Any = self.tokenizer.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = False
        return backend

    def _pieces(self, text: str) -> tuple[list[int], list[Range]]:
        """Tokenise a text with marks piece by piece; offsets, for fast tokenizers only, count the marks as they are."""
        ids: list[int] = []
        offsets: list[Range] = []
        at = 0
        for number, piece in enumerate(re.split(f"({OPEN}\\d+{CLOSE})", text)):
            is_mark = number % 2 == 1
            encoded = self.tokenizer(
                self.show(piece),
                add_special_tokens=False,
                split_special_tokens=is_mark,
                verbose=False,
                return_offsets_mapping=self.tokenizer.is_fast,
            )
            whole = [(at, at + len(piece))] * len(encoded["input_ids"])
            inside = whole if is_mark else [(at + start, at + end) for start, end in encoded.get("offset_mapping", [])]
            ids += encoded["input_ids"]
            offsets += inside
            at += len(piece)
        return ids, offsets

    def _by_prefixes(self, text: str, ids: list[int], ranges: Sequence[Range]) -> list[Range]:
        """Token ranges from the tokens of what precedes each character range and of what it ends with."""
        prefixes = self.ids([text[:at] for both in ranges for at in both])
        ends = [common_prefix_length(prefix, ids) for prefix in prefixes]
        return list(zip(ends[::2], ends[1::2], strict=True))


def _opening(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids that a tokenizer puts before a text by itself."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    for start in range(len(whole) - len(bare) + 1):
        if whole[start : start + len(bare)] == bare:
            return whole[:start]
    raise ValueError(
        f"tokenizer {tokenizer.name_or_path!r} changes the tokens of a text when it adds special tokens "
        f"({bare} becomes {whole}), so it cannot be told what belongs to the text"
    )


def _by_offsets(offsets: Sequence[Range], ranges: Sequence[Range]) -> list[Range]:
    """Ranges of the tokens that overlap ranges of characters."""
    starts, ends = [start for start, _ in offsets], [end for _, end in offsets]
    return [(bisect_right(ends, start), bisect_left(starts, end)) for start, end in ranges]


def _mask(length: int, ranges: Sequence[Range]) -> list[bool]:
    mask = [False] * length
    for start, end in ranges:
        mask[start:end] = [True] * (min(end, length) - start)
    return mask
