"""Records to tokens.

1. Prompt and response are tokenised *together*, because tokens may merge across the seam; the response begins where
   the tokens of prompt + chosen, prompt + rejected and the prompt alone stop being equal. From there on every token is
   scored, those of later user turns too.
2. Text gets the special tokens that the tokenizer adds by itself, and the end-of-sequence token after each response.
3. Conversations are rendered by the chat template, which writes all special tokens: the tokenizer adds none. A prompt
   that ends in an assistant turn is a turn begun, and the response goes on with it.
4. A special token spelled out inside a message (``"<|im_end|>"`` typed by a user) stays plain text and cannot end a
   turn. In text rows it is parsed, so that prompts rendered beforehand keep their meaning.
5. What is scored is decided by position, never by token id, so ``pad == eos`` and ``bos == eos`` are harmless.

Rows of text and well-behaved conversations give exactly the tokens of TRL 1.16.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from jinja2 import TemplateError
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from datamodules.records import BadRowError, Message, PreferenceRecord, common_prefix_length

Truncation = Literal["prompt_left", "response_right", "drop"]

# Private-use characters around the number of a special token that a message spells out.
_OPEN, _CLOSE = "\ue000", "\ue001"


class TooLongError(BadRowError):
    """A row that is well formed, and dropped because it does not fit the length limit."""


class PairTexts(NamedTuple):
    """The three texts of a pair, ready to be tokenised.

    Args:
        prompt: the prompt alone.
        chosen: prompt and chosen response.
        rejected: prompt and rejected response.
        is_rendered: whether a chat template wrote the special tokens already.
    """

    prompt: str
    chosen: str
    rejected: str
    is_rendered: bool


class PairTokens(NamedTuple):
    """The tokens of a pair.

    Args:
        prompt: token ids that both sequences begin with.
        chosen: token ids of the preferred response.
        rejected: token ids of the other response.
        truncated: what was cut: ``prompt``, ``response``.
    """

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]
    truncated: tuple[str, ...] = ()


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


class PairTokenizer:
    """Turns preference records into tokens of limited length.

    Args:
        tokenizer: any Hugging Face tokenizer.
        max_length: most tokens of prompt and response together.
        truncation: what happens to a longer pair. ``prompt_left`` cuts the beginning of the prompt, but keeps half of
            ``max_length`` of it, then the end of the response. ``response_right`` cuts the end of the sequence, as TRL
            does, and drops a pair whose prompt leaves no room. ``drop`` drops the pair.

    Raises:
        ValueError: if ``max_length`` is below 2 or the tokenizer has no end-of-sequence token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int, truncation: Truncation) -> None:
        if max_length < 2:
            raise ValueError(f"data.max_length is {max_length}; a prompt and a response need at least 2 tokens")
        if tokenizer.eos_token is None:
            raise ValueError(f"tokenizer {tokenizer.name_or_path!r} has no eos_token, which ends a response; set one")
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.truncation = truncation
        special = {_OPEN, *(str(token) for token in tokenizer.added_tokens_decoder.values() if token.special)}
        self._special = sorted(special, key=len, reverse=True)
        self._is_special = re.compile("|".join(map(re.escape, self._special)))

    def render(self, record: PreferenceRecord) -> PairTexts:
        """Write a record as the three texts to be tokenised.

        Raises:
            BadRowError: if the chat template refuses the conversation.
            ValueError: if the record is a conversation and the tokenizer has no chat template.
        """
        if record.is_conversation:
            return self._render_conversation(record)
        eos = str(self.tokenizer.eos_token)
        prompt, *responses = (str(text) for text in record[:3])
        chosen, rejected = (prompt + text if text.endswith(eos) else prompt + text + eos for text in responses)
        return PairTexts(prompt, chosen, rejected, is_rendered=False)

    def encode(self, texts: Sequence[PairTexts]) -> list[PairTokens]:
        """Tokenise pairs, all at once. Nothing is cut."""
        ids: dict[tuple[str, bool], list[int]] = {}
        for is_rendered in (False, True):
            wanted = {text: None for pair in texts if pair.is_rendered is is_rendered for text in pair[:3]}
            for text, tokens in zip(wanted, self._ids(list(wanted), is_rendered), strict=True):
                ids[text, is_rendered] = tokens
        return [split_pair(*(ids[text, pair.is_rendered] for text in pair[:3])) for pair in texts]

    def fit(self, pair: PairTokens) -> PairTokens:
        """Check a pair and cut it to ``max_length``.

        Raises:
            BadRowError: if nothing precedes the response, or the responses have the same tokens.
            TooLongError: if the pair has to be dropped for its length.
        """
        prompt, chosen, rejected, _ = pair
        if not prompt:
            message = "the prompt has no tokens, so nothing predicts the first token of the response; give a prompt"
            raise BadRowError("empty_prompt", message)
        if chosen == rejected:
            raise BadRowError("identical_responses", "'chosen' and 'rejected' have the same tokens")
        longest = max(len(chosen), len(rejected))
        if len(prompt) + longest <= self.max_length:
            return pair
        if self.truncation == "drop":
            message = f"has {len(prompt)} prompt and {longest} response tokens, above max_length={self.max_length}"
            raise TooLongError("too_long", message)
        keep = len(prompt)
        if self.truncation == "prompt_left":
            keep = min(keep, max(self.max_length - longest, self.max_length // 2))
        room = self.max_length - keep
        if room <= 0:
            message = (
                f"has {len(prompt)} prompt tokens, which leaves no room for a response in max_length={self.max_length}"
            )
            raise TooLongError("prompt_too_long", message)
        if chosen[:room] == rejected[:room]:
            raise TooLongError("identical_when_cut", f"responses do not differ within max_length={self.max_length}")
        cut = [("prompt", keep < len(prompt)), ("response", room < longest)]
        return PairTokens(
            self._keep_end(prompt, keep),
            chosen[:room],
            rejected[:room],
            tuple(what for what, was_cut in cut if was_cut),
        )

    def _keep_end(self, prompt: list[int], keep: int) -> list[int]:
        """Cut a prompt from the left, but not a beginning-of-sequence token that it opens with."""
        if keep == len(prompt):
            return prompt
        opening = prompt[:1] if prompt[0] == self.tokenizer.bos_token_id and keep > 1 else []
        return opening + prompt[len(prompt) - keep + len(opening) :]

    def _render_conversation(self, record: PreferenceRecord) -> PairTexts:
        if self.tokenizer.chat_template is None:
            raise ValueError(
                f"the row is a conversation, but tokenizer {self.tokenizer.name_or_path!r} has no chat template; set "
                "data.chat_template to a Jinja template or the path of one, or use an instruction-tuned tokenizer"
            )
        prompt, chosen, rejected = ([_map_text(self._hide, turn) for turn in turns] for turns in record[:3])
        is_begun = bool(prompt) and prompt[-1]["role"] == "assistant" == chosen[0]["role"] == rejected[0]["role"]
        opening: dict[str, Any] = {"continue_final_message": True} if is_begun else {"add_generation_prompt": True}
        join = _continue_turn if is_begun else _append_turns
        try:
            return PairTexts(
                self._template(record, prompt, **opening) if prompt else "",
                self._template(record, join(prompt, chosen)),
                self._template(record, join(prompt, rejected)),
                is_rendered=True,
            )
        except (TemplateError, TypeError, ValueError) as error:
            raise BadRowError("chat_template", f"the chat template refuses this conversation: {error}") from None

    def _template(self, record: PreferenceRecord, messages: list[Message], **options: Any) -> str:
        text = self.tokenizer.apply_chat_template(
            messages, tools=record.tools, tokenize=False, **options, **record.template_kwargs
        )
        return str(text)

    def _hide(self, text: str) -> str:
        """Replace special tokens that a message spells out by marks that the tokenizer does not know."""
        return self._is_special.sub(lambda match: f"{_OPEN}{self._special.index(match[0])}{_CLOSE}", text)

    def _ids(self, texts: list[str], is_rendered: bool) -> list[list[int]]:
        if not texts:
            return []
        if not is_rendered:
            bos = self.tokenizer.bos_token_id
            ids = self.tokenizer(texts, verbose=False)["input_ids"]
            # The text spelled out the token that the tokenizer adds as well: once is enough.
            return [row[1:] if bos is not None and row[:2] == [bos, bos] else row for row in ids]
        ids = self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        return [self._ids_of_marked(text) if _OPEN in text else row for text, row in zip(texts, ids, strict=True)]

    def _ids_of_marked(self, text: str) -> list[int]:
        """Tokenise a text with marks: what stands for a special token becomes the tokens of its letters."""
        ids: list[int] = []
        for number, piece in enumerate(re.split(f"{_OPEN}(\\d+){_CLOSE}", text)):
            is_mark = number % 2 == 1
            plain = self._special[int(piece)] if is_mark else piece
            ids += self.tokenizer(plain, add_special_tokens=False, split_special_tokens=is_mark)["input_ids"]
        return ids


def split_pair(prompt: list[int], chosen: list[int], rejected: list[int]) -> PairTokens:
    """Split two sequences where they leave the prompt.

    Args:
        prompt: token ids of the prompt alone.
        chosen: token ids of prompt and chosen response.
        rejected: token ids of prompt and rejected response.

    Example:
        >>> split_pair([1, 2, 3], [1, 2, 3, 4], [1, 2, 9])
        PairTokens(prompt=[1, 2], chosen=[3, 4], rejected=[9], truncated=())
    """
    end = min(common_prefix_length(prompt, chosen), common_prefix_length(prompt, rejected))
    return PairTokens(prompt[:end], chosen[end:], rejected[end:])


def _append_turns(prompt: list[Message], response: list[Message]) -> list[Message]:
    return prompt + response


def _continue_turn(prompt: list[Message], response: list[Message]) -> list[Message]:
    begun, first = prompt[-1], response[0]
    return [*prompt[:-1], {**first, "content": begun["content"] + first["content"]}, *response[1:]]


def _map_text(change: Callable[[str], str], value: Any) -> Any:
    """Apply ``change`` to every text inside messages; drop keys that a column store filled with null."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [_map_text(change, item) for item in value]
    if isinstance(value, Mapping):
        return {key: _map_text(change, item) for key, item in value.items() if item is not None or key == "content"}
    return value
