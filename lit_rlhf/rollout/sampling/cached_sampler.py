"""The default sampler: a decoding loop of its own, with a key-value cache, over the backbone in place.

A prompt is computed once for all of its responses. A row that ended leaves the batch. What does not fit the bounds of
memory waits for the next batch. A response depends on its seed, its prompt and the policy alone, to rounding: not on
what is drawn beside it, in which order, or on how many ranks.

Shape letters: L responses, R tokens of the longest one, B living rows, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from lit_rlhf.models.backbone import Backbone
from lit_rlhf.models.layers.lm_head import head_parameters
from lit_rlhf.models.layers.lora_linear import Projection, projected
from lit_rlhf.models.layers.step_parts import StepParts
from lit_rlhf.models.loading import evaluating
from lit_rlhf.rollout.sampling.categorical import draw_tokens, uniforms
from lit_rlhf.rollout.sampling.forest_decoder import ForestDecoder
from lit_rlhf.rollout.sampling.padded_decoder import PaddedDecoder
from lit_rlhf.rollout.sampling.request import SamplingRequest, check_request
from lit_rlhf.rollout.sampling.stopping import Stopping
from lit_rlhf.types import Rollouts


class CachedSampler:
    """Draws with a key-value cache, in the precision and with the weights that training computes with.

    Args:
        max_rows: most responses that are drawn at once.
        max_cache_tokens: most tokens that the cache has room for; a response that needs more is drawn alone.
        max_copy_mib: most memory, in MiB, for copies of weights with their adapters folded in, which are read faster
            while responses are drawn: on a CPU in float32 alone; 0 = none. They are gone when the responses are there.
    """

    is_exact = True

    def __init__(self, max_rows: int = 64, max_cache_tokens: int = 65_536, max_copy_mib: int = 1024) -> None:
        if max_rows < 1 or max_cache_tokens < 1 or max_copy_mib < 0:
            raise ValueError(
                f"sampler.max_rows is {max_rows}, max_cache_tokens is {max_cache_tokens} and max_copy_mib is "
                f"{max_copy_mib}; the first two are at least 1, the last is not negative"
            )
        self.max_rows = max_rows
        self.max_cache_tokens = max_cache_tokens
        self.max_copy_mib = max_copy_mib

    @torch.no_grad()
    def __call__(self, backbone: Backbone, request: SamplingRequest) -> Rollouts:
        """Draw one response per seed; see :class:`lit_rlhf.rollout.sampling.request.Sampler`.

        Raises:
            ValueError: if a prompt is empty, there is no stop token, or the number of seeds does not fit.
            FloatingPointError: if logits are not finite, naming the prompt's address.
        """
        check_request(request)
        backbone.prepare()
        with evaluating(backbone), backbone.whole_weights():
            responses = _Responses(backbone, request, self.max_copy_mib)
            for rows in self._batches(request, shares_prompts=backbone.layout == "forest"):
                responses.draw(rows)
        return responses.rollouts()

    def _batches(self, request: SamplingRequest, shares_prompts: bool) -> Iterator[list[int]]:
        """Numbers of the responses that are drawn together; those with prompts of like length are."""
        options = request.options
        prompt_of = [number // options.num_responses for number in range(len(request.seeds))]
        widths = [len(request.prompts[prompt].tokens) for prompt in prompt_of]
        batch: list[int] = []
        for row in sorted(range(len(widths)), key=widths.__getitem__):
            rows = [*batch, row]
            num_prompts = len({prompt_of[number] for number in rows}) if shares_prompts else len(rows)
            room = num_prompts * widths[row] + len(rows) * options.max_new_tokens
            if batch and (len(rows) > self.max_rows or room > self.max_cache_tokens):
                yield batch
                rows = [row]
            batch = rows
        yield batch


class _Responses:
    """The responses of one request while they are drawn."""

    def __init__(self, backbone: Backbone, request: SamplingRequest, max_copy_mib: int) -> None:
        options, device = request.options, backbone.base.device
        self.backbone, self.request = backbone, request
        self.parts = StepParts(max_copy_mib * 2**20)
        self.stopping = Stopping([*request.stop_tokens, *options.stop_tokens], options.stop_strings, request.tokenizer)
        weight, bias = head_parameters(backbone.base)
        (self.head,) = self.parts.packed([Projection(weight, bias)], weight.dtype)
        self.dtype, self.num_tokens = weight.dtype, min(len(request.tokenizer), weight.shape[0])
        self.undrawn = backbone.undrawn_tokens
        self.numbers = uniforms(request.seeds, options.max_new_tokens).to(device)
        shape = self.numbers.shape
        self.tokens = torch.zeros(shape, dtype=torch.int64, device=device)
        self.logprobs = torch.zeros(shape, dtype=torch.float32, device=device)
        self.lengths = torch.zeros(shape[0], dtype=torch.int64, device=device)
        self.finished = torch.zeros(shape[0], dtype=torch.bool, device=device)

    def draw(self, batch: Sequence[int]) -> None:
        """Draw the responses with these numbers."""
        prompt_of = {row: self.request.prompts[row // self.request.options.num_responses] for row in batch}
        name_of = {row: (own.tokens, *(one.digest for one in own.pictures)) for row, own in prompt_of.items()}
        different = {name_of[row]: prompt for row, prompt in prompt_of.items()}
        number_of = {name: number for number, name in enumerate(different)}
        batch = sorted(batch, key=lambda row: number_of[name_of[row]])
        owners = [number_of[name_of[row]] for row in batch]
        prompts = [prompt.tokens for prompt in different.values()]
        pictures = [prompt.pictures for prompt in different.values()]
        longest = self.request.options.max_new_tokens
        decoder: ForestDecoder | PaddedDecoder
        if self.backbone.layout_of(any(pictures)) == "forest":
            decoder = ForestDecoder(self.backbone, prompts, owners, longest, self.parts, pictures, self.request.begun)
        else:
            decoder = PaddedDecoder(self.backbone, prompts, owners, pictures)
        rows = torch.tensor(batch, device=self.lengths.device)
        while True:
            living = self._grow(rows, self._logits(decoder.states)).tolist()
            if not living:
                return
            if len(living) < len(rows):
                decoder.keep(living)
                rows = rows[living]
            decoder.step(self.tokens[rows, self.lengths[rows] - 1])

    def _logits(self, states: Tensor) -> Tensor:
        """Logits (B, V) float32 of hidden states (B, H)."""
        (logits,) = projected(states.to(self.dtype), [self.head])
        return self.backbone.transform(logits) if self.backbone.transform is not None else logits.float()

    def _grow(self, rows: Tensor, logits: Tensor) -> Tensor:
        """Add a token to each of ``rows`` (B,); returns the indices within ``rows`` of those that go on."""
        at = self.lengths[rows]
        options = self.request.options
        tokens, logprobs = draw_tokens(
            logits, self.numbers[rows, at], options.temperature, self.num_tokens, self.undrawn
        )
        if not bool(logprobs.isfinite().all()):
            self._refuse(rows[~logprobs.isfinite()].tolist())
        self.tokens[rows, at], self.logprobs[rows, at] = tokens, logprobs
        self.lengths[rows] = at + 1
        ended = self.stopping(self.tokens[rows], at + 1)
        self.finished[rows] = ended
        return (~ended & (at + 1 < options.max_new_tokens)).nonzero()[:, 0]

    def _refuse(self, rows: Sequence[int]) -> None:
        address = self.request.prompts[rows[0] // self.request.options.num_responses].row
        raise FloatingPointError(
            f"{address}: the policy's logits are not finite at token {int(self.lengths[rows[0]])} of the response "
            f"({len(rows)} rows in all): the weights or the precision overflow"
        )

    def rollouts(self) -> Rollouts:
        """What was drawn, cut to the longest response."""
        num_responses, longest = self.request.options.num_responses, int(self.lengths.max())
        groups = torch.arange(len(self.lengths), device=self.lengths.device) // num_responses
        return Rollouts(
            prompts=tuple(prompt for prompt in self.request.prompts for _ in range(num_responses)),
            groups=groups,
            tokens=self.tokens[:, :longest],
            response_mask=torch.arange(longest, device=groups.device) < self.lengths[:, None],
            logprobs=self.logprobs[:, :longest],
            finished=self.finished,
        )
