"""A sampler by the continuous batching of transformers: responses come and go, and the cache is kept in pages.

A call costs seconds before its first token (ten on a CPU, where it is never worth it), and its cache takes what memory
is free; it may pay for thousands of responses on a GPU, which has not been measured. Responses of a call share one
random state, so a response depends on what is drawn beside it.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from transformers import GenerationConfig

from lit_rlhf.models.backbone import Backbone
from lit_rlhf.models.layout import attention_of, set_attention
from lit_rlhf.models.loading import evaluating
from lit_rlhf.rollout.sampling.generate_sampler import rollouts_by
from lit_rlhf.rollout.sampling.request import SamplingRequest
from lit_rlhf.types import Prompt, Rollouts


class ContinuousSampler:
    """Draws by ``generate_batch``; the log-probabilities are computed afterwards, on the forest of what was drawn.

    Args:
        max_rows: most responses of one call.
        attention: that transformers computes pages with, such as "sdpa" or "flash_attention_2".
    """

    is_exact = True

    def __init__(self, max_rows: int = 4096, attention: str = "sdpa") -> None:
        if max_rows < 1:
            raise ValueError(f"sampler.max_rows is {max_rows}; it is at least 1")
        self.max_rows = max_rows
        self.attention = attention

    @torch.no_grad()
    def __call__(self, backbone: Backbone, request: SamplingRequest) -> Rollouts:
        """Draw one response per seed; see :class:`lit_rlhf.rollout.sampling.request.Sampler`.

        Raises:
            ValueError: if a prompt is empty, there is no stop token, the number of seeds does not fit, or transformers
                gives no answer to a prompt, or one has pictures.
            FloatingPointError: if log-probabilities are not finite, naming the prompt's address.
        """
        for prompt in request.prompts:
            if prompt.pictures:
                raise ValueError(f"{prompt.row}: ContinuousSampler takes no pictures; take CachedSampler")
        backbone.prepare()
        base, options = cast(Any, backbone.base), request.options
        sampling: dict[str, Any] = {"do_sample": False}
        if options.temperature:
            sampling = {"do_sample": True, "temperature": options.temperature, "top_k": 0, "top_p": 1.0}
        config = GenerationConfig(
            max_new_tokens=options.max_new_tokens,
            eos_token_id=[*request.stop_tokens, *options.stop_tokens],
            pad_token_id=request.stop_tokens[0],
            **sampling,
        )

        def draw(prompts: list[Prompt], seed: int) -> list[list[int]]:
            before = attention_of(base)
            try:
                base.set_attn_implementation(self.attention)
                with evaluating(backbone), torch.random.fork_rng():
                    torch.manual_seed(seed)
                    answers = base.generate_batch(
                        inputs=[list(prompt.tokens) for prompt in prompts], generation_config=config, progress_bar=False
                    )
            finally:
                set_attention([base], before)
            return _in_order(answers, len(prompts))

        return rollouts_by(draw, backbone, request, self.max_rows)


def _in_order(answers: dict[str, Any], number: int) -> list[list[int]]:
    """Responses in the order of their prompts; transformers names them ``req_0``, ``req_1`` and so on."""
    found = {int(name.rpartition("_")[2]): [*answer.generated_tokens] for name, answer in answers.items()}
    if sorted(found) != list(range(number)) or not all(found.values()):
        raise ValueError(
            f"generate_batch of transformers answered {sum(map(bool, found.values()))} of {number} prompts"
        )
    return [found[index] for index in range(number)]
