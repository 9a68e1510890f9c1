"""Records to a prompt and its judged responses, in tokens.

1. Prompt and response are tokenised *together*, because tokens may merge across the seam; the responses begin where the
   tokens of the prompt alone and those of all prompts with a response stop being equal.
2. What follows is scored: every token, those of later user turns too, or those of assistant turns only.
3. Where a template renders the prompt otherwise once an answer follows it, the prompt is taken as it is rendered to be
   answered, and the response as it is rendered after the prompt.

Rows of text and well-behaved conversations give exactly the tokens of TRL 1.16.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, cast

from transformers import PreTrainedTokenizerBase

from datamodules.encoding.families import tokenize_families
from datamodules.encoding.rendering import ChatRenderer, kind_of
from datamodules.encoding.spans import TurnFinder
from datamodules.encoding.tokenizers import Range, TextTokenizer
from datamodules.encoding.truncation import TooLongError, Truncation, cut_to_length, keep_end, require_whole_pictures
from datamodules.packing import TokenResponse
from datamodules.pictures import TEXT_ALONE, PictureReader, SeenPicture
from datamodules.records import BadRowError, Message, Record, common_prefix_length


class ResponseTexts(NamedTuple):
    """A prompt and its responses, ready to be tokenised.

    Args:
        prompt: the prompt alone.
        wholes: prompt and response, one for each.
        ranks: rank of each response, 0 the best; None where they were judged alone.
        is_plain: whether it is plain text: no chat template wrote the special tokens.
        ranges: ranges of characters of each whole that are scored; None where all of a response is.
        pictures: one for each mark in the prompt.
    """

    prompt: str
    wholes: tuple[str, ...]
    ranks: tuple[int, ...] | None
    is_plain: bool = False
    ranges: tuple[Sequence[Range], ...] | None = None
    pictures: tuple[SeenPicture, ...] = ()


class ResponseTokens(NamedTuple):
    """The tokens of a prompt and its responses.

    Args:
        prompt: token ids that all sequences begin with.
        responses: what follows, one for each response that is kept.
        kept: their indices in the record, ascending.
        ranks: their ranks, 0 the best; None where they were judged alone.
        truncated: what was cut: ``prompt``, ``response``.
        dropped: why parts of the row were left out, one reason for each: ``identical_responses`` and
            ``identical_when_cut`` for a response, ``cut_steps`` for a step.
        pictures: those that the image tokens of the prompt stand for.
    """

    prompt: list[int]
    responses: tuple[TokenResponse, ...]
    kept: tuple[int, ...]
    ranks: tuple[int, ...] | None = None
    truncated: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    pictures: tuple[SeenPicture, ...] = ()


class ResponseEncoder:
    """Turns records with responses into tokens of limited length.

    Args:
        tokenizer: any Hugging Face tokenizer.
        max_length: most tokens of the prompt and any one response.
        truncation: what happens to longer rows. ``prompt_left`` cuts the beginning of the prompt, but keeps half of
            ``max_length`` of it, then the end of the responses. ``response_right`` cuts the end, as TRL does, and drops
            a row whose prompt leaves no room. ``drop`` drops the row.
        trained: ``response`` scores every token of a response; ``assistant`` only its assistant turns.
        pictures: reads those of records; without it rows with pictures are refused.

    Raises:
        ValueError: if ``max_length`` is below 2 or the tokenizer has no end-of-sequence token.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        truncation: Truncation = "prompt_left",
        trained: Literal["response", "assistant"] = "response",
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

    def render(self, record: Record) -> ResponseTexts | ResponseTokens:
        """Write a record as the texts to be tokenised; a row that came in tokens has them already.

        Raises:
            BadRowError: if there is no response, the chat template refuses the conversation, or a picture cannot be
                shown.
            ValueError: if the record is a conversation and the tokenizer has no chat template.
        """
        if not record.responses:
            raise BadRowError("no_response", "the row has no response; give 'chosen' and 'rejected', or 'completion'")
        is_judged_alone = all(response.label is not None for response in record.responses)
        ranks = None if is_judged_alone else tuple(response.rank for response in record.responses)
        texts: list[Any] = [response.text for response in record.responses]
        kind, seen = kind_of(record), self.pictures.read(record)
        if kind == "conversation":
            return self._render_conversation(record, texts, ranks)._replace(pictures=seen)
        if kind == "text":
            prompt = self.chat.plain(str(record.prompt or ""), bool(seen))
            wholes = tuple(prompt + self.chat.plain(text) for text in texts)
            return ResponseTexts(prompt, wholes, ranks, is_plain=True, pictures=seen)
        responses = tuple(TokenResponse(self.tokenizer.checked(ids), [True] * len(ids)) for ids in texts)
        prompt_ids = self.tokenizer.checked(cast("list[int]", record.prompt or []))
        return ResponseTokens(prompt_ids, responses, tuple(range(len(responses))), ranks, pictures=seen)

    def encode(self, rendered: Sequence[ResponseTexts | ResponseTokens]) -> list[ResponseTokens]:
        """Tokenise rows, all at once. Nothing is cut."""
        rows = [row for row in rendered if isinstance(row, ResponseTexts)]
        ids = tokenize_families(self.tokenizer, [(row.prompt, *row.wholes) for row in rows])
        split = iter(map(self._split, rows, ids))
        return [self._with_pictures(next(split) if isinstance(row, ResponseTexts) else row) for row in rendered]

    def fit(self, tokens: ResponseTokens) -> ResponseTokens:
        """Check a row and cut it to ``max_length``.

        Of responses with the same tokens only the best is kept: they cannot be preferred to each other.

        Raises:
            BadRowError: if nothing precedes the responses, one has no tokens to score, or too few differ.
            TooLongError: if the row has to be dropped for its length.
        """
        if not tokens.prompt:
            message = "the prompt has no tokens, so nothing predicts the first token of the response; give a prompt"
            raise BadRowError("empty_prompt", message)
        if not all(any(response.scored) for response in tokens.responses):
            raise BadRowError("empty_response", "a response has no tokens that could be scored")
        message = "the responses are identical: they have the same tokens"
        tokens = _distinct(tokens, BadRowError("identical_responses", message))
        longest = max(len(response.tokens) for response in tokens.responses)
        keep, room, truncated = cut_to_length(len(tokens.prompt), longest, self.max_length, self.truncation)
        if not truncated:
            return tokens
        prompt = keep_end(tokens.prompt, keep, self.tokenizer.tokenizer.bos_token_id)
        require_whole_pictures(self.pictures, tokens.prompt, prompt, f"max_length={self.max_length}")
        cut = tokens._replace(
            prompt=prompt,
            responses=tuple(TokenResponse(ids[:room], scored[:room]) for ids, scored in tokens.responses),
            truncated=truncated,
        )
        message = f"responses do not differ within max_length={self.max_length}"
        return _distinct(cut, TooLongError("identical_when_cut", message))

    def _render_conversation(
        self, record: Record, responses: Sequence[list[Message]], ranks: tuple[int, ...] | None
    ) -> ResponseTexts:
        prompt = self.chat.clean(cast("list[Message]", record.prompt or []), self.pictures.sees(record))
        opening = self.chat.render_prompt(record, prompt) if prompt else ""
        wholes, ranges = zip(*(self._whole(record, prompt, opening, response) for response in responses), strict=True)
        return ResponseTexts(opening, wholes, ranks, ranges=None if None in ranges else ranges)

    def _whole(
        self, record: Record, prompt: list[Message], opening: str, response: list[Message]
    ) -> tuple[str, list[Range] | None]:
        """Render prompt and response, and say what of it is scored; None = all."""
        messages, first = _join(prompt, self.chat.clean(response))
        whole = self.chat.render(record, messages)
        ranges = self._scored(record, response, messages, first, whole)
        if whole.startswith(opening) or self._opens_alike(record, prompt, opening, whole):
            return whole, ranges
        turns = self.finder.find(record, messages, whole)
        if first < len(prompt) or first not in turns:
            raise BadRowError("chat_template", "the chat template renders the prompt otherwise before this answer")
        begin = turns[first].start
        shift = len(opening) - begin
        shifted = None if ranges is None else [(start + shift, end + shift) for start, end in ranges]
        return opening + whole[begin:], shifted

    def _scored(
        self, record: Record, response: list[Message], messages: list[Message], first: int, whole: str
    ) -> list[Range] | None:
        """Ranges of a rendered conversation that are scored, all in a response that begins in message ``first``."""
        if self.trained == "response":
            return None
        turns = self.finder.find(record, messages, whole)
        return [
            (start, end)
            for turn, (start, end, _) in sorted(turns.items())
            if turn >= first and response[turn - first].get("weight", 1)
        ]

    def _opens_alike(self, record: Record, prompt: list[Message], opening: str, whole: str) -> bool:
        """Whether a template that opens an answer otherwise than asked for leaves the messages before it as they are.

        Templates of models that think do so: they ask for an answer with ``<think>`` and write it without.
        """
        if not prompt:
            return True
        messages = opening if prompt[-1]["role"] == "assistant" else self.chat.render(record, prompt)
        return common_prefix_length(opening, whole) >= len(messages.rstrip())

    def _masks(self, row: ResponseTexts, wholes: Sequence[list[int]]) -> list[list[bool]]:
        """Which tokens of each whole are scored, where not all of a response is."""
        return [mask for _, mask in self.tokenizer.masked_ids(row.wholes, row.ranges or ())]

    def _split(self, row: ResponseTexts, ids: list[list[int]]) -> ResponseTokens:
        """Split the sequences of a row where one of them leaves the prompt."""
        prompt, *wholes = ids
        if row.is_plain:
            prompt = self.tokenizer.opened(prompt)
            wholes = [self.tokenizer.closed(text, whole) for text, whole in zip(row.wholes, wholes, strict=True)]
        begin = min(_shared(prompt, whole) for whole in wholes)
        masks = [[True] * len(whole) for whole in wholes] if row.ranges is None else self._masks(row, wholes)
        responses = tuple(TokenResponse(whole[begin:], mask[begin:]) for whole, mask in zip(wholes, masks, strict=True))
        kept = tuple(range(len(responses)))
        return ResponseTokens(prompt[:begin], responses, kept, row.ranks, pictures=row.pictures)

    def _with_pictures(self, tokens: ResponseTokens) -> ResponseTokens:
        """Put pictures in the place of their marks in the prompt.

        Raises:
            BadRowError: if there is not one mark for each, or a response holds an image token.
        """
        for response in tokens.responses:
            self.pictures.require_none(response.tokens)
        return tokens._replace(prompt=self.pictures.put_in(tokens.pictures, tokens.prompt)[0])


def _join(prompt: list[Message], response: list[Message]) -> tuple[list[Message], int]:
    """Messages of the prompt, going on with those of the response.

    Returns:
        The messages, and the index of the one that the response begins in: a last assistant turn of the prompt is a
        turn begun.
    """
    if not prompt or prompt[-1]["role"] != "assistant" or response[0]["role"] != "assistant":
        return prompt + response, len(prompt)
    begun, first = (message.get("content") or "" for message in (prompt[-1], response[0]))
    if not (isinstance(begun, str) and isinstance(first, str)):
        message = "the prompt ends in an assistant turn that the response cannot go on with: both must be text"
        raise BadRowError("wrong_type", message)
    return [*prompt[:-1], {**response[0], "content": begun + first}, *response[1:]], len(prompt) - 1


def _shared(prompt: list[int], whole: list[int]) -> int:
    """Tokens that both begin with; nearly always all of the prompt."""
    return len(prompt) if whole[: len(prompt)] == prompt else common_prefix_length(prompt, whole)


def _distinct(tokens: ResponseTokens, error: BadRowError) -> ResponseTokens:
    """Keep the best of responses with the same tokens.

    Raises:
        BadRowError: ``error``, if the ranks of what is left do not differ.
    """
    ranks, responses = tokens.ranks, tokens.responses
    if ranks is None or len(responses) == 1:
        return tokens
    best: dict[tuple[int, ...], int] = {}
    for index in sorted(range(len(responses)), key=lambda index: ranks[index]):
        best.setdefault(tuple(responses[index].tokens), index)
    if len(best) == len(responses):
        return tokens
    left = sorted(best.values())
    if len({ranks[index] for index in left}) < 2:
        raise error
    return tokens._replace(
        responses=tuple(responses[index] for index in left),
        kept=tuple(tokens.kept[index] for index in left),
        ranks=tuple(ranks[index] for index in left),
        dropped=tokens.dropped + (error.reason,) * (len(responses) - len(left)),
    )
