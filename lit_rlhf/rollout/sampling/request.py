"""What a sampler is asked for, and the interface that every sampler has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from transformers import PreTrainedTokenizerBase

from lit_rlhf.models.backbone import Backbone
from lit_rlhf.models.begun import BegunPrompts
from lit_rlhf.types import Prompt, Rollouts


@dataclass
class SamplingOptions:
    """How responses are drawn.

    Args:
        num_responses: to each prompt.
        max_new_tokens: most tokens of a response.
        temperature: what the logits are divided by, also when the log-probabilities of a response are computed again;
            1 = the policy as it is, 0 = the likeliest token each time (for evaluation only).
        stop_strings: texts that end a response; the token that completes one is its last.
        stop_tokens: ids that end a response, beside those that tokenizer and model name.
    """

    num_responses: int = 1
    max_new_tokens: int = 128
    temperature: float = 1.0
    stop_strings: list[str] = field(default_factory=list)
    stop_tokens: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.num_responses < 1 or self.max_new_tokens < 1 or self.temperature < 0.0:
            raise ValueError(
                f"sampling.num_responses is {self.num_responses}, max_new_tokens is {self.max_new_tokens} and "
                f"temperature is {self.temperature}; the first two are at least 1, the last is not negative"
            )
        if not all(self.stop_strings):
            raise ValueError("sampling.stop_strings holds an empty text, which would end every response at once")


class SamplingRequest(NamedTuple):
    """The responses that are wanted.

    Args:
        prompts: P prompts, at least one, each with at least one token.
        options: how responses are drawn.
        stop_tokens: ids that end a response, at least one.
        tokenizer: of the policy; stop strings are looked for in what it decodes.
        seeds: P * num_responses numbers, one per response, prompts one after another. A response depends on its seed,
            its prompt and the policy alone (to rounding), not on what is drawn beside it.
        begun: takes in what a sampler computes of the prompts, with its graph, where it computes as training does;
            None = nobody asks for it.
    """

    prompts: Sequence[Prompt]
    options: SamplingOptions
    stop_tokens: Sequence[int]
    tokenizer: PreTrainedTokenizerBase
    seeds: Sequence[int]
    begun: BegunPrompts | None = None


class Sampler(Protocol):
    """Anything that draws responses from the role that a backbone plays.

    The random state of training, the mode and the role of the backbone are left as they were.

    Attributes:
        is_exact: whether it computes with the weights and the precision that training does. Where it does not, PPO
            corrects by truncated importance sampling.
    """

    is_exact: bool

    def __call__(self, backbone: Backbone, request: SamplingRequest) -> Rollouts:
        """Draw responses.

        Args:
            backbone: computes in the role that it plays when this is called.
            request: what is wanted.

        Returns:
            One response per seed, in their order, on the device of the backbone.
        """
        ...


def check_request(request: SamplingRequest) -> None:
    """Refuse what no sampler can draw.

    Raises:
        ValueError: if there is no prompt, a prompt is empty, no stop token is given, or the number of seeds is not
            that of the responses.
    """
    if not request.prompts or not request.stop_tokens:
        raise ValueError("sampling needs at least one prompt and at least one stop token")
    for prompt in request.prompts:
        if not prompt.tokens:
            raise ValueError(f"{prompt.row}: the prompt has no tokens, so nothing can follow it")
    wanted = len(request.prompts) * request.options.num_responses
    if len(request.seeds) != wanted:
        raise ValueError(f"sampling of {wanted} responses needs as many seeds, not {len(request.seeds)}")
