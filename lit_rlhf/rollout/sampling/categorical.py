"""Drawing tokens from logits: one random number per response and token, so that a draw depends on nothing beside it.

A response's random numbers come from its own seed. Each token is the inverse of the cumulative distribution at the
next number, in float64, so that equal logits give equal tokens whatever else is in the batch.

Shape letters: B rows of a step, V vocabulary, R most tokens of a response.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def uniforms(seeds: Sequence[int], count: int) -> Tensor:
    """Random numbers (len(seeds), count) float64 in [0, 1), each row from its own seed. Global state is not touched."""
    rows = [torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) for seed in seeds]
    return torch.stack(rows)


def draw_tokens(
    logits: Tensor, numbers: Tensor, temperature: float, num_tokens: int, undrawn: Sequence[int] = ()
) -> tuple[Tensor, Tensor]:
    """One token per row, and its log-probability.

    The log-probability is that of the policy over its whole vocabulary, as training computes it again. Ids that the
    tokenizer cannot decode are not drawn; a policy that gives them weight is the tokenizer's mistake, not the draw's.

    Args:
        logits: (B, V) float32, as the model gives them, before the temperature.
        numbers: (B,) float64 in [0, 1).
        temperature: what the logits are divided by; 0 takes the likeliest token and gives its log-probability at 1.
        num_tokens: ids below it are drawn.
        undrawn: ids that are not, such as that of pictures.

    Returns:
        Token ids (B,) int64 and log-probabilities (B,) float32, in nats; NaN where the logits are not finite.

    Example:
        >>> logits = torch.tensor([[0.0, 0.0, -torch.inf]]).expand(2, 3)
        >>> draw_tokens(logits, torch.tensor([0.4, 0.6], dtype=torch.float64), 1.0, 3)[0].tolist()
        [0, 1]
    """
    logprobs = torch.log_softmax(logits / (temperature or 1.0), dim=-1)
    drawable = logprobs[:, :num_tokens]
    if undrawn := [token for token in undrawn if token < num_tokens]:
        drawable = drawable.index_fill(1, torch.tensor(undrawn, device=logits.device), -torch.inf)
    if temperature == 0.0:
        tokens = drawable.argmax(-1)
    else:
        mass = drawable.exp().cumsum(-1, dtype=torch.float64)
        total = mass[:, -1]
        # Rounding up to the whole mass would leave the vocabulary.
        wanted = torch.minimum(numbers * total, torch.nextafter(total, torch.zeros_like(total)))
        tokens = torch.searchsorted(mass, wanted[:, None], right=True)[:, 0].clamp_(max=drawable.shape[1] - 1)
    return tokens, logprobs.gather(1, tokens[:, None])[:, 0]


def nucleus(logits: Tensor, temperature: float, top_p: float) -> Tensor:
    """Leave the likeliest tokens that together hold a probability mass, at least one; the others get no weight.

    Args:
        logits: (B, V) float32, as the model gives them, before the temperature.
        temperature: what the logits are divided by; at 0 nothing is left out, as the likeliest token is taken anyway.
        top_p: the mass, above 0; 1 leaves all.

    Returns:
        (B, V), -inf where a token is left out.

    Source:
        Holtzman et al., "The Curious Case of Neural Text Degeneration", arXiv 1904.09751, section 3.1.

    Example:
        >>> nucleus(torch.tensor([[0.5, 0.3, 0.2]]).log(), 1.0, 0.6).isfinite().tolist()
        [[True, True, False]]
    """
    if top_p >= 1.0 or temperature == 0.0:
        return logits
    mass, order = torch.softmax(logits / temperature, dim=-1).sort(descending=True, dim=-1)
    is_beyond = mass.cumsum(-1) - mass >= top_p  # what comes before it is enough
    return logits.masked_fill(torch.zeros_like(is_beyond).scatter(-1, order, is_beyond), -torch.inf)
