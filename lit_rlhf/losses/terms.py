"""Terms: from token log-probabilities to the pairs that losses read, and from several losses to one weighted sum.

Shape letters: N scored tokens, L sequences, B preference pairs, K terms.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from lit_rlhf.losses.divergences import reverse_kl_scores
from lit_rlhf.losses.marks import is_averaged_over_chosen_tokens, is_divergence_allowed, is_whole_batch
from lit_rlhf.losses.preference import sigmoid_loss
from lit_rlhf.losses.signatures import Signature
from lit_rlhf.losses.weighting import ld_token_weights

REFERENCE_INPUTS = ("chosen_logratios", "rejected_logratios", "ref_chosen_logprobs", "ref_rejected_logprobs")
"""Inputs of a loss that need a reference."""


class PairLogprobs(NamedTuple):
    """What a preference loss may ask for, by these names; each (B,), float32.

    Args:
        chosen_logratios: policy minus reference, summed over the response, weighted and transformed as asked.
        rejected_logratios: the same of the rejected responses.
        chosen_logprobs: policy, summed over the response, in nats.
        rejected_logprobs: the same of the rejected responses.
        ref_chosen_logprobs: reference, summed over the response; zeros without a reference.
        ref_rejected_logprobs: the same of the rejected responses.
        chosen_lengths: scored tokens of the chosen responses.
        rejected_lengths: the same of the rejected ones.
        margins: by how much the chosen response is better, in the unit of the data; 0 where unknown.
    """

    chosen_logratios: Tensor
    rejected_logratios: Tensor
    chosen_logprobs: Tensor
    rejected_logprobs: Tensor
    ref_chosen_logprobs: Tensor
    ref_rejected_logprobs: Tensor
    chosen_lengths: Tensor
    rejected_lengths: Tensor
    margins: Tensor


def pair_logprobs(
    logprobs: Tensor,
    ref_logprobs: Tensor,
    sequences: Tensor,
    chosen: Tensor,
    rejected: Tensor,
    margins: Tensor,
    *,
    num_sequences: int | None = None,
    scores: Callable[[Tensor], Tensor] = reverse_kl_scores,
    ld_alpha: float = 1.0,
) -> PairLogprobs:
    """Sum token log-probabilities over responses and pair them up.

    Args:
        logprobs: (N,) policy log-probability of every scored token, in nats.
        ref_logprobs: (N,) the same under the reference.
        sequences: (N,) int64, the sequence that each scored token belongs to, ascending.
        chosen: (B,) int64, the chosen sequence of each pair.
        rejected: (B,) int64, the rejected one.
        margins: (B,) by how much the chosen response is better.
        num_sequences: in all, where pairs share responses; None = two of each pair.
        scores: what an f-divergence makes of a log-ratio.
        ld_alpha: weight, in the log-ratios, of tokens past the length that both responses share; 1 = plain.

    Raises:
        ValueError: if the tokens or the pairs do not belong together.

    Example:
        >>> tokens, zeros = torch.tensor([-1.0, -2.0, -4.0]), torch.zeros(3)
        >>> pair = [torch.tensor([0]), torch.tensor([1]), torch.zeros(1)]
        >>> pair_logprobs(tokens, zeros, torch.tensor([0, 0, 1]), *pair).chosen_logratios
        tensor([-3.])
    """
    if not logprobs.shape == ref_logprobs.shape == sequences.shape or not chosen.shape == rejected.shape:
        raise ValueError(
            f"logprobs {tuple(logprobs.shape)}, ref_logprobs {tuple(ref_logprobs.shape)} and sequences "
            f"{tuple(sequences.shape)} must be (N,); chosen {tuple(chosen.shape)} and rejected "
            f"{tuple(rejected.shape)} must be (B,)"
        )
    num_sequences = num_sequences or 2 * len(chosen)
    lengths = _sums(torch.ones_like(logprobs), sequences, num_sequences)
    ratios = logprobs - ref_logprobs
    sums = torch.stack([_sums(column, sequences, num_sequences) for column in (ratios, logprobs, ref_logprobs)])
    both = sums[0, chosen], sums[0, rejected]
    if ld_alpha != 1.0:
        both = _ld_sums(ratios, lengths.long(), torch.cat([chosen, rejected]), ld_alpha)
    return PairLogprobs(
        scores(both[0]),
        scores(both[1]),
        sums[1, chosen],
        sums[1, rejected],
        sums[2, chosen],
        sums[2, rejected],
        lengths[chosen],
        lengths[rejected],
        margins,
    )


def _ld_sums(ratios: Tensor, lengths: Tensor, sides: Tensor, ld_alpha: float) -> tuple[Tensor, Tensor]:
    """(B,) log-ratios of the chosen and of the rejected sides, tokens past a pair's shared length weighing less.

    A response that is in several pairs has another shared length in each, so its tokens are laid out once per pair.
    """
    side_lengths = lengths[sides]
    side_of = torch.repeat_interleave(torch.arange(len(sides), device=sides.device), side_lengths)
    begins = (lengths.cumsum(0) - lengths)[sides] - (side_lengths.cumsum(0) - side_lengths)
    tokens = ratios[begins[side_of] + torch.arange(len(side_of), device=sides.device)]
    shared = torch.minimum(*side_lengths.chunk(2)).repeat(2)
    weights = ld_token_weights(side_of, side_lengths, shared, ld_alpha=ld_alpha)
    chosen, rejected = _sums(tokens * weights, side_of, len(sides)).chunk(2)
    return chosen, rejected


@dataclass
class LossTerm:
    """One part of a weighted sum of losses.

    Args:
        function: the loss, by its import path, such as ``lit_rlhf.losses.sigmoid_loss``; or one of your own that takes
            its tensors by the names that :mod:`lit_rlhf.losses` lists.
        weight: factor of this part.
        options: settings of the function, by name, such as ``{label_smoothing: 0.1}``. Where it takes ``beta`` and none
            is given here, it gets the algorithm's, or its own default if that has none either.
    """

    function: Callable[..., Tensor] = sigmoid_loss
    weight: float = 1.0
    options: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.signature = Signature.read(self.function, self.options, PairLogprobs._fields, "preference")

    @property
    def name(self) -> str:
        """The function's name without ``_loss``: what the part is called in logs."""
        return self.signature.name

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the tensors that the function asks for."""
        return self.signature.inputs

    @property
    def needs_reference(self) -> bool:
        """Whether the function reads anything of the reference."""
        return any(name in REFERENCE_INPUTS for name in self.inputs)

    @property
    def is_whole_batch(self) -> bool:
        """Whether the function must be given all pairs of the step at once."""
        return is_whole_batch(self.function)

    @property
    def is_divergence_allowed(self) -> bool:
        """Whether the function may be given f-divergence scores for log-ratios."""
        return is_divergence_allowed(self.function)

    @property
    def is_averaged_over_chosen_tokens(self) -> bool:
        """Whether the sum over pairs is divided by the chosen tokens of the step instead of its pairs."""
        return is_averaged_over_chosen_tokens(self.function)

    @property
    def default_beta(self) -> float | None:
        """What ``beta`` is unless the algorithm says otherwise; None for a loss without one."""
        return self.options.get("beta", self.signature.settings.get("beta"))

    def __call__(self, pairs: PairLogprobs, beta: float | None = None) -> Tensor:
        """The loss (B,) of each pair, without the weight.

        Args:
            pairs: what the function may ask for.
            beta: given to the function if it takes one and ``options`` names none; None leaves its default.
        """
        options = dict(self.options)
        if "beta" in self.signature.settings and beta is not None:
            options.setdefault("beta", beta)
        return self.function(*(pairs._asdict()[name] for name in self.inputs), **options)


def _sums(values: Tensor, sequences: Tensor, num_sequences: int) -> Tensor:
    """(L,) sums of (N,) values over each sequence."""
    return values.new_zeros(num_sequences).index_add(0, sequences, values)


def check_terms(
    terms: Sequence[LossTerm], scores: Callable[..., Tensor], *, ld_alpha: float, use_weighting: bool
) -> None:
    """Refuse settings that some loss is not defined for.

    Args:
        terms: the losses.
        scores: what an f-divergence makes of a log-ratio.
        ld_alpha: as for :func:`pair_logprobs`.
        use_weighting: whether pairs are weighed by WPO.

    Raises:
        ValueError: naming the loss and the setting.
    """
    if not 0.0 <= ld_alpha <= 1.0:
        raise ValueError(f"ld_alpha is {ld_alpha}; it must lie in 0-1")
    for term in terms:
        if scores is not reverse_kl_scores and not term.is_divergence_allowed:
            raise ValueError(f"losses: {term.name} is defined for the reverse KL only, not for another divergence")
        if term.is_whole_batch and (use_weighting or ld_alpha != 1.0):
            raise ValueError(f"losses: {term.name} compares pairs by rank; it takes neither use_weighting nor ld_alpha")


class Named(Protocol):
    """A part of a loss, whatever it reads."""

    @property
    def name(self) -> str:
        """What the part is called in logs."""


def part_names(terms: Sequence[Named]) -> tuple[str, ...]:
    """What each part is called in logs, numbered where one comes twice.

    Example:
        >>> part_names([LossTerm(), LossTerm()])
        ('loss/sigmoid_1', 'loss/sigmoid_2')
    """
    names = [f"loss/{term.name}" for term in terms]
    return tuple(
        name if names.count(name) == 1 else f"{name}_{names[:number].count(name) + 1}"
        for number, name in enumerate(names)
    )


def reward_scale(terms: Sequence[LossTerm], beta: float | None) -> float:
    """What implicit rewards are scaled by: ``beta``, else that of the first loss that has one, else 0.1.

    Example:
        >>> reward_scale([LossTerm(options={"beta": 0.3})], None)
        0.3
    """
    own = [term.default_beta for term in terms if term.default_beta is not None]
    return beta if beta is not None else next(iter(own), 0.1)


def refuse_nonfinite(losses: Tensor, rows: Sequence[str], step: int) -> None:
    """Stop at a loss that is infinite or no number, naming the rows.

    Args:
        losses: (K, B) each loss of each pair.
        rows: B addresses.
        step: optimizer steps done.

    Raises:
        FloatingPointError: if any loss is not finite.
    """
    finite = torch.isfinite(losses).all(0)
    if not finite.all():
        bad = [row for row, good in zip(rows, finite.tolist(), strict=True) if not good]
        more = f" and {len(bad) - 8} more" if len(bad) > 8 else ""
        raise FloatingPointError(
            f"the loss is not finite at step {step} in {', '.join(bad[:8])}{more}; nothing was updated"
        )


def couple(term: LossTerm, pairs: PairLogprobs, beta: float | None) -> tuple[Tensor, PairLogprobs]:
    """Evaluate a loss that compares pairs with each other, once, so that micro-batches can follow it one by one.

    Args:
        term: the loss.
        pairs: all pairs of the step.
        beta: as for the term.

    Returns:
        The values (B,), and the gradient of their sum with respect to each input (zeros where it is not read).
    """
    leaves = PairLogprobs(*(column.detach().requires_grad_() for column in pairs))
    with torch.enable_grad():
        values = term(leaves, beta)
        gradients = torch.autograd.grad(values.sum(), leaves, allow_unused=True, materialize_grads=True)
    return values.detach(), PairLogprobs(*gradients)


def coupled_values(values: Tensor, gradients: PairLogprobs, pairs: PairLogprobs) -> Tensor:
    """The values (B,) that :func:`couple` gave, with its gradients attached to ``pairs``."""
    moves = [slope * (column - column.detach()) for slope, column in zip(gradients, pairs, strict=True)]
    return values + torch.stack(moves).sum(0)
