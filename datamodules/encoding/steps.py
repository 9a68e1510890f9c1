"""Records whose response was judged step by step to tokens, of which those are marked that judged steps end in.

1. The text of a response is its steps, each followed by the separator. It is tokenised as a whole, as any other text,
   so a model scores in training what it will meet; TRL puts the tokens of the single steps together instead.
2. The marked token of a step is the one that holds the last character of its separator. Where the chat template cuts
   that off, as it may behind the last step, it is the last token of the step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

from transformers import PreTrainedTokenizerBase

from datamodules.encoding.responses import ResponseEncoder, ResponseTexts, ResponseTokens
from datamodules.encoding.spans import mark
from datamodules.encoding.tokenizers import Range
from datamodules.encoding.truncation import TooLongError, Truncation
from datamodules.pictures import TEXT_ALONE, PictureReader
from datamodules.records import BadRowError, Message, Record, common_prefix_length


class StepEncoder(ResponseEncoder):
    """Turns records with judged steps into tokens of limited length; scored are the last tokens of judged steps.

    Args:
        tokenizer: any Hugging Face tokenizer.
        max_length: most tokens of prompt and response together.
        truncation: what happens to longer rows; steps that are cut lose their marks.
        step_separator: what follows each step.
        pictures: reads those of records; without it rows with pictures are refused.

    Raises:
        ValueError: if ``max_length`` is below 2 or the tokenizer has no end-of-sequence token.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        truncation: Truncation = "prompt_left",
        step_separator: str = "\n",
        pictures: PictureReader = TEXT_ALONE,
    ) -> None:
        super().__init__(tokenizer, max_length, truncation, pictures=pictures)
        self.step_separator = step_separator

    def render(self, record: Record) -> ResponseTexts:
        """Write a record as the texts to be tokenised, with the ranges of characters that judged steps end in.

        Raises:
            BadRowError: if no step is judged, or the chat template refuses the conversation.
            ValueError: if the record is a conversation and the tokenizer has no chat template.
        """
        if not any(response.steps for response in record.responses):
            message = f"read as {record.form}: no steps to judge; give the steps as 'completions', and their 'labels'"
            raise BadRowError("no_steps", message)
        (response,) = record.responses
        if not any(step.label is not None for step in response.steps):
            raise BadRowError("no_label", "nobody judged a step; give 'labels' that are not all null")
        text: Any = "".join(step.text + self.step_separator for step in response.steps)
        if not isinstance(response.text, str):
            text = [{"role": "assistant", "content": text}]
        texts = super().render(record._replace(responses=(response._replace(text=text),)))
        assert isinstance(texts, ResponseTexts)
        if not texts.is_plain:
            return texts
        ends = list(accumulate(map(len, self._pieces(record, self.tokenizer.hide_marks)), initial=len(texts.prompt)))
        judged = (end for step, end in zip(response.steps, ends[1:], strict=True) if step.label is not None)
        return texts._replace(ranges=([(end - 1, end) for end in judged],))

    def fit(self, tokens: ResponseTokens) -> ResponseTokens:
        """Check a row and cut it to ``max_length``.

        Raises:
            BadRowError: if nothing precedes the response.
            TooLongError: if the row has to be dropped for its length, or no judged step is left of it.
        """
        cut = super().fit(tokens)
        before, left = (sum(each.responses[0].scored) for each in (tokens, cut))
        if not left:
            raise TooLongError("cut_steps", f"no judged step ends within max_length={self.max_length}")
        return cut._replace(dropped=("cut_steps",) * (before - left))

    def _pieces(self, record: Record, hide: Callable[[str], str]) -> list[str]:
        """The steps, each with its separator, with what the tokenizer must not see hidden."""
        return [hide(step.text + self.step_separator) for step in record.responses[0].steps]

    def _scored(
        self, record: Record, response: list[Message], messages: list[Message], first: int, whole: str
    ) -> list[Range]:
        """The last characters of judged steps in a rendered conversation."""
        pieces = self._pieces(record, self.tokenizer.hide)
        judged = [place for place, step in enumerate(record.responses[0].steps) if step.label is not None]
        content = messages[first]["content"]
        begun = content[: len(content) - len("".join(pieces))]  # by the prompt, if it ends in an assistant turn

        def marked(*numbers: int) -> list[Message]:
            told = list(pieces)
            for number in numbers:
                told[judged[number]] = mark(pieces[judged[number]], number)
            return [*messages[:first], {**messages[first], "content": begun + "".join(told)}]

        numbers = range(len(judged))
        ends = self.finder.ends(record, marked(*numbers), map(marked, numbers), whole)
        ranges = []
        for number in numbers:
            if number not in ends:
                raise BadRowError("chat_template", f"the chat template leaves out completions[{judged[number]}]")
            piece = pieces[judged[number]]
            end = ends[number] + common_prefix_length(piece[len(piece.rstrip()) :], whole[ends[number] :])
            ranges.append((end - 1, end))
        return ranges

    def _masks(self, row: ResponseTexts, wholes: Sequence[list[int]]) -> list[list[bool]]:
        """True at the token that the last character of a judged step lies in."""
        ((ids, found),) = self.tokenizer.ranged_ids(row.wholes, row.ranges or ())
        opening = len(self.tokenizer.opened(ids)) - len(ids) if row.is_plain else 0
        marked = {opening + end - 1 for _, end in found}
        return [[place in marked for place in range(len(wholes[0]))]]

    def _split(self, row: ResponseTexts, ids: list[list[int]]) -> ResponseTokens:
        """Split a row where the response begins.

        Raises:
            BadRowError: if two judged steps end in one token.
        """
        tokens = super()._split(row, ids)
        if sum(tokens.responses[0].scored) != sum(map(len, row.ranges or ())):
            separator = f"data.step_separator={self.step_separator!r} does not keep them apart"
            raise BadRowError("merged_steps", f"two judged steps end in one token; {separator}, a line break may")
        return tokens
