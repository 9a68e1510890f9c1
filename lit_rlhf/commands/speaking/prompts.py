"""Messages to the tokens of a prompt, as training reads them; the oldest turns leave where they do not fit."""

from __future__ import annotations

from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from datamodules.encoding.prompts import PromptEncoder
from datamodules.forms import read_row
from datamodules.pictures import TEXT_ALONE, PictureReader
from lit_rlhf.types import Picture

Messages = list[dict[str, Any]]

_NO_LIMIT = 2**31


class FittedPrompt(NamedTuple):
    """A prompt that leaves room for an answer.

    Args:
        tokens: token ids.
        said: messages, of which the oldest may be missing, or a text.
        num_left: messages that had to leave.
        pictures: that its image tokens stand for.
    """

    tokens: list[int]
    said: Messages | str
    num_left: int = 0
    pictures: tuple[Picture, ...] = ()


class PromptTooLongError(ValueError):
    """A prompt that leaves the model no room for an answer."""


class PromptReader:
    """Turns conversations and plain texts into token ids.

    Args:
        tokenizer: of the policy.
        max_tokens: that the model takes, prompt and answer together; None = any number.
        pictures: reads those of messages; without it they are refused.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        max_tokens: int | None = None,
        pictures: PictureReader = TEXT_ALONE,
    ) -> None:
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens or _NO_LIMIT
        self.sees = pictures.processor is not None
        self._encoder = PromptEncoder(tokenizer, self.max_tokens, pictures=pictures)

    @property
    def has_template(self) -> bool:
        """Whether it takes conversations, and not only texts."""
        return self.tokenizer.chat_template is not None

    def read(self, prompt: Messages | str) -> FittedPrompt:
        """A prompt of any length.

        Raises:
            ValueError: if a message is wrong, no chat template takes it, or there is nothing to read.
        """
        if not self.has_template and not isinstance(prompt, str):
            raise ValueError(
                "the tokenizer has no chat template, so the model goes on with a text and takes no messages"
            )
        (record,) = read_row({"prompt": prompt})
        (tokens,) = self._encoder.encode([self._encoder.render(record)])
        if not tokens.tokens:
            raise ValueError("the prompt is empty, so nothing can follow it")
        return FittedPrompt(list(tokens.tokens), prompt, pictures=tuple(seen.picture for seen in tokens.pictures))

    def whole(self, prompt: Messages | str) -> FittedPrompt:
        """A prompt of which nothing is left out.

        Raises:
            PromptTooLongError: if it leaves no room for a token.
            ValueError: as :meth:`read` does.
        """
        read = self.read(prompt)
        if len(read.tokens) >= self.max_tokens:
            raise PromptTooLongError(
                f"the prompt has {len(read.tokens)} tokens, and the model takes {self.max_tokens} with its answer"
            )
        return read

    def fit(self, messages: Messages, num_wanted: int) -> FittedPrompt:
        """A conversation that leaves the room that is wanted for the answer, or half of all there is.

        Raises:
            PromptTooLongError: if the last message alone is too long.
            ValueError: as :meth:`read` does.
        """
        room, kept = self.max_tokens - min(num_wanted, self.max_tokens // 2), messages
        while len((read := self.read(kept)).tokens) > room:
            if (shorter := without_oldest(kept)) == kept:
                read = self.whole(kept)
                break
            kept = shorter
        return read._replace(num_left=len(messages) - len(kept))


def without_oldest(messages: Messages) -> Messages:
    """A conversation without its oldest exchange; what the system says stays, and so does the last question.

    Example:
        >>> talk = [{"role": role, "content": ""} for role in ("system", "user", "assistant", "user")]
        >>> [message["role"] for message in without_oldest(talk)]
        ['system', 'user']
    """
    first = next((at for at, message in enumerate(messages) if message["role"] != "system"), len(messages))
    second = next((at for at in range(first + 1, len(messages)) if messages[at]["role"] == "user"), None)
    return messages if second is None else messages[:first] + messages[second:]
