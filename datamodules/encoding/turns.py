"""Records to one sequence of tokens to imitate, with a mask of those that are trained.

1. A conversation is rendered once, as a whole. Trained are its assistant turns with their stop tokens (see
   :mod:`datamodules.encoding.spans`), all of them or the last only; a turn of weight 0 is not. Prompt and response of a
   row are one conversation.
2. Of text with a prompt the response is trained, with the end-of-sequence token after it; the boundary is found by
   tokenising both together. Of text alone every token is trained.
3. The first token of a sequence is never trained: nothing precedes it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple, cast

from transformers import PreTrainedTokenizerBase

from datamodules.encoding.rendering import ChatRenderer, kind_of
from datamodules.encoding.spans import TurnFinder
from datamodules.encoding.tokenizers import Range, TextTokenizer
from datamodules.encoding.truncation import Truncation, cut_to_length, keep_end, require_whole_pictures
from datamodules.pictures import TEXT_ALONE, PictureReader, SeenPicture
from datamodules.records import BadRowError, Message, Record, Response, common_prefix_length

Trained = Literal["assistant", "last", "all"]


class TurnText(NamedTuple):
    """A text to imitate, ready to be tokenised.

    Args:
        text: all of it.
        prompt: the beginning that is not trained, of plain text; None where a chat template wrote the special tokens.
        turns: ranges of characters that are trained, of a conversation.
        pictures: one for each mark.
    """

    text: str
    prompt: str | None = None
    turns: tuple[Range, ...] = ()
    pictures: tuple[SeenPicture, ...] = ()


class TurnTokens(NamedTuple):
    """The tokens of a text to imitate.

    Args:
        tokens: token ids.
        scored: one bool per token; True = trained.
        truncated: what was cut: ``prompt``, ``response``.
        dropped: why parts of the row were left out; none are.
        pictures: those that the image tokens stand for.
    """

    tokens: list[int]
    scored: list[bool]
    truncated: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    pictures: tuple[SeenPicture, ...] = ()


class TurnEncoder:
    """Turns records into sequences of limited length with a mask of the tokens that are trained.

    Args:
        tokenizer: any Hugging Face tokenizer.
        max_length: most tokens of a sequence.
        truncation: what happens to a longer one. ``prompt_left`` cuts the beginning of what comes before the first
            trained token, but keeps half of ``max_length`` of it, then the end. ``response_right`` cuts the end, and
            drops a row without a trained token in what is left. ``drop`` drops the row.
        trained: ``assistant`` trains all assistant turns of a conversation, ``last`` the last one only, both the
            response of a text with a prompt; ``all`` trains every token but those of pictures.
        pictures: reads those of records; without it rows with pictures are refused.

    Raises:
        ValueError: if ``max_length`` is below 2 or the tokenizer has no end-of-sequence token.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        truncation: Truncation = "prompt_left",
        trained: Trained = "assistant",
        pictures: PictureReader = TEXT_ALONE,
    ) -> None:
        if max_length < 2:
            raise ValueError(f"data.max_length is {max_length}; a prompt and a response need at least 2 tokens")
        self.pictures = pictures
        self.tokenizer = TextTokenizer(tokenizer, pictures.tokens)
        self.tokenizer.require_eos()
        self.chat = ChatRenderer(self.tokenizer, pictures.processor)
        self.finder = TurnFinder(self.chat)
        self.max_length = max_length
        self.truncation: Truncation = truncation
        self.trained = trained
        self._has_warned = False

    def render(self, record: Record) -> TurnText | TurnTokens:
        """Write a record as the text to be tokenised; a row that came in tokens has them already.

        Of several responses the best is taken.

        Raises:
            BadRowError: if there is nothing to imitate, its steps are judged, or the template refuses the conversation.
            ValueError: if the record is a conversation and the tokenizer has no chat template.
        """
        kind, seen = kind_of(record), self.pictures.read(record)
        response = min(record.responses, key=lambda response: response.rank, default=Response([]))
        if response.steps:
            message = "the steps of the response are judged, so not all are to be imitated; PreferenceDataModule with "
            raise BadRowError("judged_steps", f"{message}kind=steps takes such rows")
        if response.label is False:
            raise BadRowError("thumb_down", "the response was judged undesirable, so it is not imitated")
        if kind == "conversation":
            return self._render_conversation(record, cast("list[Message]", response.text))._replace(pictures=seen)
        if not record.responses:
            message = "the row has no response to imitate; give 'completion', 'text' or messages"
            raise BadRowError("no_response", message)
        if kind == "text":
            opening = self.chat.plain(str(record.prompt or ""), bool(seen))
            return TurnText(opening + self.chat.plain(str(response.text)), opening, pictures=seen)
        before, after = (self.tokenizer.checked(cast("list[int]", ids or [])) for ids in (record.prompt, response.text))
        mask = record.columns.get("trained_mask", [True] * len(after))  # a row in tokens may leave gaps
        return self._scored(before + after, [False] * len(before) + list(mask))._replace(pictures=seen)

    def encode(self, rendered: Sequence[TurnText | TurnTokens]) -> list[TurnTokens]:
        """Tokenise texts, all at once. Nothing is cut."""
        plain = [row for row in rendered if isinstance(row, TurnText) and row.prompt is not None]
        chats = [row for row in rendered if isinstance(row, TurnText) and row.prompt is None]
        ids = self.tokenizer.ids([row.text for row in plain] + [str(row.prompt) for row in plain])
        texts = iter(map(self._responses, plain, ids[: len(plain)], ids[len(plain) :]))
        turns = iter(self.tokenizer.masked_ids([row.text for row in chats], [row.turns for row in chats]))
        rows = (
            row if isinstance(row, TurnTokens) else self._scored(*next(turns if row.prompt is None else texts))
            for row in rendered
        )
        return [self._with_pictures(row, given.pictures) for row, given in zip(rows, rendered, strict=True)]

    def fit(self, tokens: TurnTokens) -> TurnTokens:
        """Check a sequence and cut it to ``max_length``.

        Raises:
            BadRowError: if no token is trained.
            TooLongError: if it has to be dropped for its length.
        """
        ids, scored = tokens.tokens, tokens.scored
        if not any(scored):
            message = "no token of the row is trained; give it an assistant turn or a response"
            raise BadRowError("nothing_trained", message)
        prompt = scored.index(True)
        keep, room, truncated = cut_to_length(prompt, len(ids) - prompt, self.max_length, self.truncation)
        if not truncated:
            return tokens
        opening = keep_end(ids[:prompt], keep, self.tokenizer.tokenizer.bos_token_id)
        cut = opening + ids[prompt : prompt + room]
        require_whole_pictures(self.pictures, ids, cut, f"max_length={self.max_length}")
        flags = [False] * keep + scored[prompt : prompt + room]
        return tokens._replace(tokens=cut, scored=flags, truncated=truncated)

    def _render_conversation(self, record: Record, response: list[Message]) -> TurnText:
        prompt = cast("list[Message]", record.prompt or [])
        conversation = [*prompt, *response]
        if not conversation:
            raise BadRowError("no_response", "the conversation has no messages")
        messages = self.chat.clean(prompt, self.pictures.sees(record)) + self.chat.clean(response)
        text = self.chat.render(record, messages)
        if self.trained == "all":
            return TurnText(text, turns=((0, len(text)),))
        turns = self.finder.find(record, messages, text)
        self._warn_once_of_missing_stop(turn.has_stop for turn in turns.values())
        wanted = [number for number in sorted(turns) if conversation[number].get("weight", 1)]
        if self.trained == "last":
            last = [number for number, message in enumerate(messages) if message["role"] == "assistant"][-1:]
            wanted = [number for number in wanted if number in last]
        return TurnText(text, turns=tuple(turns[number][:2] for number in wanted))

    def _warn_once_of_missing_stop(self, has_stop: Iterable[bool]) -> None:
        if not self._has_warned and not all(has_stop):
            self._has_warned = True
            warnings.warn(
                "the chat template writes no special token after an assistant turn, so the model does not learn to end "
                "its turns; give a template that does as data.chat_template, or add its end of turn to the tokenizer",
                stacklevel=2,
            )

    def _responses(self, row: TurnText, ids: list[int], prompt: list[int]) -> tuple[list[int], list[bool]]:
        """Tokens of plain text, with those after the prompt scored."""
        whole = self.tokenizer.closed(row.text, ids)
        begin = common_prefix_length(self.tokenizer.opened(prompt), whole)
        return whole, [False] * begin + [True] * (len(whole) - begin)

    def _with_pictures(self, tokens: TurnTokens, pictures: tuple[SeenPicture, ...]) -> TurnTokens:
        """Put pictures in the place of their marks.

        Raises:
            BadRowError: if there is not one mark for each.
        """
        ids, scored = self.pictures.put_in(pictures, tokens.tokens, tokens.scored)
        return tokens._replace(tokens=ids, scored=scored, pictures=pictures)

    def _scored(self, ids: list[int], scored: list[bool]) -> TurnTokens:
        """What is trained: nothing precedes the first token, so that it is not."""
        mask = [True] * len(ids) if self.trained == "all" else list(scored)
        mask[:1] = [False] * len(mask[:1])
        return TurnTokens(ids, mask)
