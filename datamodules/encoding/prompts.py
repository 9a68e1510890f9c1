"""Records to prompts that the first token of a response can follow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, cast

from transformers import PreTrainedTokenizerBase

from datamodules.encoding.rendering import ChatRenderer, kind_of
from datamodules.encoding.tokenizers import TextTokenizer
from datamodules.encoding.truncation import TooLongError, keep_end, require_whole_pictures
from datamodules.pictures import TEXT_ALONE, PictureReader, SeenPicture
from datamodules.records import BadRowError, Message, Record


class PromptText(NamedTuple):
    """A prompt, ready to be tokenised.

    Args:
        text: the prompt.
        is_plain: whether it is plain text: no chat template wrote the special tokens.
        pictures: one for each mark.
    """

    text: str
    is_plain: bool = False
    pictures: tuple[SeenPicture, ...] = ()


class PromptTokens(NamedTuple):
    """The tokens of a prompt.

    Args:
        tokens: token ids.
        text: the prompt as it was tokenised, special tokens of a chat template included, never cut.
        truncated: what was cut: ``prompt``.
        dropped: why parts of the row were left out; none are.
        pictures: those that the image tokens stand for.
    """

    tokens: list[int]
    text: str
    truncated: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    pictures: tuple[SeenPicture, ...] = ()


class PromptEncoder:
    """Turns records into prompts of limited length. Responses that a record has are left aside.

    Args:
        tokenizer: any Hugging Face tokenizer.
        max_prompt_length: most tokens of a prompt.
        truncation: what happens to a longer prompt. ``prompt_left`` cuts its beginning, ``drop`` drops the row.
        pictures: reads those of records; without it rows with pictures are refused.

    Raises:
        ValueError: if ``max_prompt_length`` is below 1.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        max_prompt_length: int,
        truncation: Literal["prompt_left", "drop"] = "prompt_left",
        pictures: PictureReader = TEXT_ALONE,
    ) -> None:
        if max_prompt_length < 1:
            raise ValueError(f"data.max_prompt_length is {max_prompt_length}; a prompt needs at least 1 token")
        self.pictures = pictures
        self.tokenizer = TextTokenizer(tokenizer, pictures.tokens)
        self.chat = ChatRenderer(self.tokenizer, pictures.processor)
        self.max_prompt_length = max_prompt_length
        self.truncation = truncation

    def render(self, record: Record) -> PromptText | PromptTokens:
        """Write the prompt of a record as text; a row that came in tokens has them already.

        Raises:
            BadRowError: if it is a conversation without messages, one that the chat template refuses, or a picture
                cannot be shown.
            ValueError: if it is a conversation and the tokenizer has no chat template.
        """
        kind, seen = kind_of(record), self.pictures.read(record)
        if kind == "text":
            return PromptText(self.chat.plain(str(record.prompt or ""), bool(seen)), is_plain=True, pictures=seen)
        if not record.prompt:
            raise BadRowError("empty_prompt", "the prompt is empty, so nothing asks for a response; give a prompt")
        if kind == "conversation":
            messages = self.chat.clean(cast("list[Message]", record.prompt), bool(seen))
            return PromptText(self.chat.render_prompt(record, messages), pictures=seen)
        ids = self.tokenizer.checked(cast("list[int]", record.prompt))
        return PromptTokens(ids, str(self.tokenizer.tokenizer.decode(ids)), pictures=seen)

    def encode(self, rendered: Sequence[PromptText | PromptTokens]) -> list[PromptTokens]:
        """Tokenise prompts, all at once. Nothing is cut."""
        ids = iter(self.tokenizer.ids([prompt.text for prompt in rendered if isinstance(prompt, PromptText)]))
        rows = (self._tokens(row, next(ids)) if isinstance(row, PromptText) else row for row in rendered)
        return [row._replace(tokens=self.pictures.put_in(row.pictures, row.tokens)[0]) for row in rows]

    def fit(self, tokens: PromptTokens) -> PromptTokens:
        """Check a prompt and cut it to ``max_prompt_length``.

        Raises:
            BadRowError: if it has no tokens.
            TooLongError: if it has to be dropped for its length.
        """
        length = len(tokens.tokens)
        if not length:
            raise BadRowError("empty_prompt", "the prompt has no tokens, so nothing asks for a response; give a prompt")
        if length <= self.max_prompt_length:
            return tokens
        if self.truncation == "drop":
            message = f"has {length} prompt tokens, above max_prompt_length={self.max_prompt_length}"
            raise TooLongError("prompt_too_long", message)
        kept = keep_end(tokens.tokens, self.max_prompt_length, self.tokenizer.tokenizer.bos_token_id)
        require_whole_pictures(self.pictures, tokens.tokens, kept, f"max_prompt_length={self.max_prompt_length}")
        return tokens._replace(tokens=kept, truncated=("prompt",))

    def _tokens(self, prompt: PromptText, ids: list[int]) -> PromptTokens:
        opened = self.tokenizer.opened(ids) if prompt.is_plain else ids
        return PromptTokens(opened, self.tokenizer.show(prompt.text), pictures=prompt.pictures)
