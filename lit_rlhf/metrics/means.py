"""Named means kept as (sum, count), so that neither padding nor the split over ranks can bend them."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from lit_rlhf.metrics.sums import Sums
from lit_rlhf.ranks import gather_texts, sum_over_ranks


class Means(Sums):
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

    def __init__(self, names: Iterable[str]) -> None:
        super().__init__()
        self.names = tuple(names)
        self.sums: Tensor
        self.num_summed: Tensor
        self.add_sum("sums", len(self.names), dtype=torch.float32)
        self.add_sum("num_summed", len(self.names), dtype=torch.float32)
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
                self.num_summed[index] += 0 if count is None else count
            elif any(name.startswith(f"{known}/") for known in self.names):
                part = self._parts.setdefault(name, torch.zeros(2, device=self.sums.device))
                part[0] += total.detach() if isinstance(total, Tensor) else total
                part[1] += math.nan if count is None else count
            else:
                raise ValueError(f"no metric '{name}'; there are: {', '.join(self.names)}")

    def _apply(self, *args: Any, **kwargs: Any) -> Means:
        super()._apply(*args, **kwargs)
        self._parts = {name: part.to(self.sums.device) for name, part in self._parts.items()}
        return self

    def reset(self) -> None:
        """Begin anew."""
        super().reset()
        self._parts = {}

    def compute(self) -> dict[str, Tensor]:
        """The means, float32 scalars; names that counted nothing are left out."""
        return {name: total / count for name, (total, count) in self._reported(self.sums, self.num_summed).items()}

    def counts(self) -> dict[str, Tensor]:
        """What each mean is over, float32 scalars over all ranks, which must all ask."""
        sums, counts = sum_over_ranks(torch.stack([self.sums, self.num_summed]))
        return {name: count for name, (_, count) in self._reported(sums, counts).items()}

    def _reported(self, sums: Tensor, counts: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Sum and count of all ranks by name, those of names given; those that counted nothing are left out."""
        pairs = zip(self.names, sums, counts, strict=True)
        whole = {name: (total, count) for name, total, count in pairs if float(count) != 0}
        return {**whole, **self._reported_parts(counts)}

    def _reported_parts(self, counts: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Sum and count by source, where there are several, and by reason; ranks may have met different ones."""
        mine = json.dumps(sorted(self._parts))
        names = sorted({name for text in gather_texts(mine, self.sums.device) for name in json.loads(text)})
        if not names:
            return {}
        nothing = torch.zeros(2, device=self.sums.device)
        parts = sum_over_ranks(torch.stack([self._parts.get(name, nothing) for name in names]))
        means, shares = {}, {}
        for name, (total, count) in zip(names, parts, strict=True):
            if torch.isnan(count):
                shares[name] = total, counts[self.names.index(self._quantity(name))]
            elif count != 0:
                means[name] = total, count
        quantities = Counter(map(self._quantity, means))
        return {**{name: pair for name, pair in means.items() if quantities[self._quantity(name)] > 1}, **shares}

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
