"""Metrics: named means kept as (sum, count), so that neither padding nor the split over ranks can bend them."""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lit_rlhf.losses.preference import preference_statistics
from lit_rlhf.losses.terms import PairLogprobs
from lit_rlhf.ranks import gather_texts, sum_over_ranks
from lit_rlhf.types import PreferenceBatch, PreferencePairs

PAIR_METRICS = (
    "rewards/chosen",
    "rewards/rejected",
    "rewards/margin",
    "rewards/accuracy",
    "rewards/ties",
    "rewards/accuracy_longer",
    "rewards/accuracy_shorter",
    "logprobs/chosen",
    "logprobs/rejected",
    "kl",
    "entropy",
    "length/chosen",
    "length/rejected",
    "data/dropped",
    "data/truncated",
    "data/fill",
)
"""Means that every preference algorithm logs; docs/algorithms/dpo.md says what each one is."""


class Means(Metric):
    """Means of named quantities over everything since the last reset, over all ranks.

    One vector of sums and one of counts, so that one reduction serves all names. The state is part of checkpoints: a
    resumed run reports what an unbroken one does.

    A quantity may be kept apart by the source of its rows as well: ``accuracy/hh`` is the part of ``accuracy`` that
    came from ``hh``. Sources need not be announced, and are reported as soon as there are two of them. A share by
    reason, ``dropped/too_long``, is over all that ``dropped`` counts.

    Args:
        names: of the quantities, fixed for life.

    Example:
        >>> means = Means(["loss", "length"])
        >>> means.update({"loss": (torch.tensor(6.0), 3)})
        >>> means.compute()
        {'loss': tensor(2.)}
    """

    full_state_update = False

    def __init__(self, names: Iterable[str]) -> None:
        super().__init__()
        self.names = tuple(names)
        self.sums: Tensor
        self.counts: Tensor
        zeros = torch.zeros(len(self.names))
        self.add_state("sums", zeros.clone(), dist_reduce_fx="sum", persistent=True)
        self.add_state("counts", zeros.clone(), dist_reduce_fx="sum", persistent=True)
        self._parts: dict[str, Tensor] = {}  # (sum, count) of each; the count of a share is not a number

    def update(self, values: Mapping[str, tuple[Tensor | float, Tensor | float | None]]) -> None:
        """Add to the sums and counts.

        Args:
            values: for each name, or name/source, a scalar sum and the count it is over; for name/reason None, as its
                count is that of the name.

        Raises:
            ValueError: for a name that was not announced.
        """
        for name, (total, count) in values.items():
            if name in self.names:
                index = self.names.index(name)
                self.sums[index] += total.detach() if isinstance(total, Tensor) else total
                self.counts[index] += 0 if count is None else count
            elif any(name.startswith(f"{known}/") for known in self.names):
                part = self._parts.setdefault(name, torch.zeros(2, device=self.sums.device))
                part[0] += total.detach() if isinstance(total, Tensor) else total
                part[1] += math.nan if count is None else count
            else:
                raise ValueError(f"no metric '{name}'; there are: {', '.join(self.names)}")

    def _apply(self, *args: Any, **kwargs: Any) -> Means:
        """Move between devices, but stay in float32: a sum in bfloat16 stops growing at 256."""
        super()._apply(*args, **kwargs)
        for name in ("sums", "counts"):
            setattr(self, name, getattr(self, name).float())
            self._defaults[name] = torch.zeros_like(self.sums)
        self._parts = {name: part.to(self.sums.device) for name, part in self._parts.items()}
        return self

    def reset(self) -> None:
        """Begin anew."""
        super().reset()
        self._parts = {}

    def compute(self) -> dict[str, Tensor]:
        """The means, float32 scalars; names that counted nothing are left out."""
        whole = {
            name: self.sums[index] / self.counts[index]
            for index, name in enumerate(self.names)
            if float(self.counts[index]) != 0
        }
        return {**whole, **self._means_of_parts()}

    def _means_of_parts(self) -> dict[str, Tensor]:
        """Means by source, where there are several, and shares by reason; ranks may have met different ones."""
        mine = json.dumps(sorted(self._parts))
        names = sorted({name for text in gather_texts(mine, self.sums.device) for name in json.loads(text)})
        if not names:
            return {}
        nothing = torch.zeros(2, device=self.sums.device)
        parts = sum_over_ranks(torch.stack([self._parts.get(name, nothing) for name in names]))
        means, shares = {}, {}
        for name, (total, count) in zip(names, parts, strict=True):
            if torch.isnan(count):
                shares[name] = total / self.counts[self.names.index(self._quantity(name))]
            elif count != 0:
                means[name] = total / count
        quantities = Counter(map(self._quantity, means))
        return {**{name: mean for name, mean in means.items() if quantities[self._quantity(name)] > 1}, **shares}

    def _quantity(self, name: str) -> str:
        """The announced name that a name/source or name/reason is a part of."""
        return max((known for known in self.names if name.startswith(f"{known}/")), key=len)

    def get_extra_state(self) -> Tensor:
        """Sums and counts of parts as JSON in bytes (uint8): a checkpoint is a table of tensors."""
        parts = {name: part.tolist() for name, part in self._parts.items()}
        return torch.tensor(list(json.dumps(parts).encode()), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """Go on from saved sums and counts of parts."""
        parts = json.loads(bytes(state.tolist()))
        self._parts = {name: torch.tensor(part, device=self.sums.device) for name, part in parts.items()}


class Throughput:
    """Tokens per second of training on this rank, pauses left out.

    Example:
        >>> throughput = Throughput()
        >>> throughput.add(100)
        >>> throughput.rate() > 0, throughput.rate()
        (True, 0.0)
    """

    def __init__(self) -> None:
        self._num_tokens = 0
        self._since = self._paused = time.monotonic()

    def add(self, num_tokens: int) -> None:
        """Count tokens that were trained on."""
        self._num_tokens += num_tokens

    def pause(self) -> None:
        """Stop the clock."""
        self._paused = time.monotonic()

    def go_on(self) -> None:
        """Let the clock run again after a pause."""
        self._since += time.monotonic() - self._paused

    def rate(self) -> float:
        """Tokens per second since the last call."""
        now = time.monotonic()
        rate = self._num_tokens / max(now - self._since, 1e-9)
        self._num_tokens, self._since = 0, now
        return rate


def pair_sums(
    pairs: PairLogprobs, logratios: Tensor, entropy: Tensor, sources: Sequence[str] = (), *, beta: float
) -> dict[str, tuple[Tensor, Tensor | float]]:
    """Sum and count of every metric of preference pairs.

    Args:
        pairs: of one micro-batch; each column (B,).
        sources: B names of sources, whose accuracies and margins are kept apart as well; none = not.
        logratios: (N,) policy minus reference of every scored token, in nats, detached.
        entropy: (N,) of the policy at every scored token, in nats.
        beta: scale of the implicit rewards.
    """
    seen = preference_statistics(pairs.chosen_logratios, pairs.rejected_logratios, beta=beta)
    num_pairs, num_tokens = len(seen.wins), len(logratios)
    longer = (pairs.chosen_lengths > pairs.rejected_lengths) & ~seen.ties
    shorter = (pairs.chosen_lengths < pairs.rejected_lengths) & ~seen.ties
    means = {
        "rewards/chosen": seen.chosen_rewards,
        "rewards/rejected": seen.rejected_rewards,
        "rewards/margin": seen.margins,
        "rewards/ties": seen.ties,
        "logprobs/chosen": pairs.chosen_logprobs,
        "logprobs/rejected": pairs.rejected_logprobs,
        "length/chosen": pairs.chosen_lengths,
        "length/rejected": pairs.rejected_lengths,
    }
    sums: dict[str, tuple[Tensor, Tensor | float]] = {name: (column.sum(), num_pairs) for name, column in means.items()}
    sums["rewards/accuracy"] = (seen.wins.sum(), num_pairs - seen.ties.sum())
    sums["rewards/accuracy_longer"] = ((seen.wins & longer).sum(), longer.sum())
    sums["rewards/accuracy_shorter"] = ((seen.wins & shorter).sum(), shorter.sum())
    sums["kl"] = ((torch.expm1(logratios.clamp(max=20.0)) - logratios).sum(), num_tokens)
    sums["entropy"] = (entropy.sum(), num_tokens)
    for source in sorted(set(sources)):
        mine = torch.tensor([name == source for name in sources], device=entropy.device)
        sums[f"rewards/accuracy/{source}"] = ((seen.wins & mine).sum(), (mine & ~seen.ties).sum())
        sums[f"rewards/margin/{source}"] = (seen.margins[mine].sum(), mine.sum())
    return sums


def pair_rows(batch: PreferencePairs, pairs: PairLogprobs, *, beta: float) -> list[dict[str, Any]]:
    """One dictionary per pair: its address, implicit rewards (nats times beta), log-probabilities (nats) and lengths.

    Args:
        batch: where the pairs come from.
        pairs: their log-probabilities; each column (B,).
        beta: scale of the implicit rewards.
    """
    seen = preference_statistics(pairs.chosen_logratios, pairs.rejected_logratios, beta=beta)
    columns = {
        "chosen_reward": seen.chosen_rewards,
        "rejected_reward": seen.rejected_rewards,
        "margin": seen.margins,
        "chosen_logprob": pairs.chosen_logprobs,
        "rejected_logprob": pairs.rejected_logprobs,
        "chosen_length": pairs.chosen_lengths.int(),
        "rejected_length": pairs.rejected_lengths.int(),
    }
    values = zip(*(column.tolist() for column in columns.values()), strict=True)
    return [
        {"row": row, "source": source, **dict(zip(columns, numbers, strict=True))}
        for row, source, numbers in zip(batch.rows, batch.sources, values, strict=True)
    ]


def row_sums(batch: PreferenceBatch) -> dict[str, tuple[float, float | None]]:
    """Shares of rows dropped or cut on the way, in all and by reason, and of the room that tokens fill."""
    sums: dict[str, tuple[float, float | None]] = {}
    counts = {kind: Counter[str]() for kind in ("dropped", "truncated")}
    for note, count in batch.notes.items():
        kind, _, reason = note.partition("/")
        if kind in counts:
            counts[kind][reason] += count
    rows = batch.num_pairs + counts["dropped"].total()
    for kind, reasons in counts.items():
        sums[f"data/{kind}"] = (float(reasons.total()), float(rows))
        sums.update({f"data/{kind}/{reason}": (float(count), None) for reason, count in reasons.items()})
    if room := batch.notes.get("room"):
        sums["data/fill"] = (float(batch.notes["tokens"]), float(room))
    return sums
