"""One answer as it is drawn, token by token, for a person who reads along or leaves in the middle.

What has been computed stays in a key-value cache, so that the next turn of a conversation costs its new tokens alone.
Responses for training are drawn by the samplers beside this file, many at once.

Shape letters: V vocabulary, H hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lit_rlhf.models.backbone import Backbone
from lit_rlhf.models.layers.lm_head import head_parameters
from lit_rlhf.models.loading import evaluating
from lit_rlhf.rollout.sampling.categorical import draw_tokens, nucleus
from lit_rlhf.rollout.sampling.padded_decoder import PaddedDecoder
from lit_rlhf.types import Picture


@dataclass(frozen=True)
class StreamOptions:
    """How an answer is drawn.

    Args:
        temperature: what the logits are divided by; 0 = the likeliest token each time.
        top_p: smallest probability mass that tokens are drawn from, above 0 and at most 1.
        max_new_tokens: most tokens of the answer, at least 1.
        seed: of the draws.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.temperature >= 0.0:
            raise ValueError(f"temperature is {self.temperature}; it is 0 (the likeliest token each time) or above")
        if not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"top_p is {self.top_p}; it lies above 0 and is at most 1")
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {self.max_new_tokens}; it is at least 1")


class DrawnToken(NamedTuple):
    """A token of an answer.

    Args:
        token: its id.
        logprobs: (V,) float32, of the policy at this place, at temperature 1 and without ``top_p``, in nats.
    """

    token: int
    logprobs: Tensor


class TokenStream:
    """Draws the answers of one policy, one after another, and keeps what the next one begins with as well.

    Between two tokens nothing is held: another stream of the same backbone may draw then.

    Args:
        backbone: carries the policy.
        playing: gives the context in which the backbone plays it.
    """

    def __init__(self, backbone: Backbone, playing: Callable[[], AbstractContextManager[None]]) -> None:
        self._backbone = backbone
        self._playing = playing
        self._decoder: PaddedDecoder | None = None
        self._cached: list[int] = []
        self._seen: list[str] = []
        self.num_reused = 0

    def draw(
        self,
        prompt: Sequence[int],
        options: StreamOptions,
        *,
        stop_tokens: Sequence[int],
        num_tokens: int,
        pictures: Sequence[Picture] = (),
    ) -> Iterator[DrawnToken]:
        """Draw the answer to a prompt.

        Args:
            prompt: token ids, at least one.
            options: how it is drawn.
            stop_tokens: ids that end it; the one that did is its last token.
            num_tokens: of the tokenizer; ids below it are drawn.
            pictures: that the image tokens of the prompt stand for.

        Raises:
            ValueError: if the prompt is empty, or an id of it lies outside of the embedding.
            FloatingPointError: if logits are not finite.
        """
        if not prompt:
            raise ValueError("the prompt has no tokens, so nothing can follow it")
        if max(prompt) >= (rows := self._backbone.num_embeddings):
            raise ValueError(
                f"token id {max(prompt)} lies outside the model's embedding of {rows} rows: the tokenizer is another's"
            )
        new = self._kept_from(prompt, pictures)
        generator = torch.Generator().manual_seed(options.seed)
        for _ in range(options.max_new_tokens):
            number = torch.rand((), generator=generator, dtype=torch.float64)
            with torch.no_grad(), self._playing(), evaluating(self._backbone):
                drawn = self._drawn(self._states(new, pictures), number, options, num_tokens)
            yield drawn
            if drawn.token in stop_tokens:
                return
            new = [drawn.token]

    def _kept_from(self, prompt: Sequence[int], pictures: Sequence[Picture]) -> list[int]:
        """Forget what the prompt does not begin with; returns what is to be computed, at least its last token.

        Pictures are computed together, so all is computed anew where they are others, or one is not kept as a whole.
        """
        same = 0
        while same < min(len(self._cached), len(prompt) - 1) and self._cached[same] == prompt[same]:
            same += 1
        seen, seeing = [picture.digest for picture in pictures], set(self._backbone.undrawn_tokens)
        is_kept = same > 0 and seen == self._seen and seeing.isdisjoint(prompt[same:])
        if self._decoder is None or not is_kept or not self._decoder.forget(len(self._cached) - same):
            self._decoder, same = None, 0
        self._seen = seen
        del self._cached[same:]
        self.num_reused = same
        return list(prompt[same:])

    def _states(self, new: list[int], pictures: Sequence[Picture]) -> Tensor:
        """Hidden states (1, H) of the last of the tokens that are appended."""
        decoder, self._decoder = self._decoder, None  # an interrupted pass leaves layers of different lengths
        if decoder is None:
            self._backbone.prepare()
            decoder = PaddedDecoder(self._backbone, [new], [0], [tuple(pictures)])
        else:
            decoder.extend(torch.tensor([new], device=self._backbone.base.device))
        self._decoder = decoder
        self._cached += new
        return decoder.states

    def _drawn(self, states: Tensor, number: Tensor, options: StreamOptions, num_tokens: int) -> DrawnToken:
        weight, bias = head_parameters(self._backbone.base)
        logits = torch.nn.functional.linear(states.to(weight.dtype), weight, bias)
        logits = self._backbone.transform(logits) if self._backbone.transform is not None else logits.float()
        logprobs = torch.log_softmax(logits, dim=-1)[0]
        logits = nucleus(logits[:, : min(num_tokens, logits.shape[1])], options.temperature, options.top_p)
        tokens, drawn = draw_tokens(
            logits,
            number[None].to(logits.device),
            options.temperature,
            logits.shape[1],
            self._backbone.undrawn_tokens,
        )
        if not bool(drawn.isfinite().all()):
            raise FloatingPointError("the policy's logits are not finite: the weights or the precision overflow")
        return DrawnToken(int(tokens[0]), logprobs)
