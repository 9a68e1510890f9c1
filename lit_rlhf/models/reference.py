"""The reference's log-probabilities of preference pairs: live or kept, of a reference that stands or moves."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import torch
from torch import Tensor

from lit_rlhf.models.backbone import Backbone
from lit_rlhf.models.options import ReferenceOptions
from lit_rlhf.models.reference_cache import ReferenceCache
from lit_rlhf.models.whole import is_sharded
from lit_rlhf.ranks import most_over_ranks
from lit_rlhf.types import Forest, PreferencePairs


class Reference:
    """What the reference policy says of preference pairs.

    Args:
        backbone: plays the reference, without a second copy where it has adapters.
        options: live or kept, fixed or moving.
        folder: of the run; kept log-probabilities lie in ``reference_logprobs`` in it unless the options name a folder.
        rank: of this process.

    Raises:
        ValueError: if the folder was filled by another reference.
    """

    def __init__(self, backbone: Backbone, options: ReferenceOptions, folder: str | Path, rank: int = 0) -> None:
        self.backbone = backbone
        self.options = options
        self.cache: ReferenceCache | None = None
        if options.cache:
            place = options.cache_folder or Path(folder) / "reference_logprobs"
            self.cache = ReferenceCache(place, backbone.fingerprint("reference"), rank)

    @torch.no_grad()
    def logprobs(self, pairs: PreferencePairs) -> Tensor:
        """(N,) log-probabilities of the scored tokens, in nats, detached.

        Raises:
            ValueError: if a row's tokens changed since its log-probabilities were kept.
        """
        keys = _keys(pairs)
        known = None if self.cache is None else self.cache.lookup(pairs.forest, keys)
        if self._is_missed(known is None, pairs.forest.tokens.device):
            with self.backbone.role("reference"):
                computed = self.backbone.token_logprobs(pairs.forest).logprobs
            if known is None and self.cache is not None:
                self.cache.store(pairs.forest, keys, computed)
            known = computed if known is None else known
        assert known is not None
        return known

    @torch.no_grad()
    def idle(self, forest: Forest) -> None:
        """Take part in the pass of a rank that has pairs, where weights are sharded."""
        if self._is_missed(self.cache is None, forest.tokens.device):
            with self.backbone.role("reference"):
                self.backbone.token_logprobs(forest)

    def _is_missed(self, is_missed_here: bool, device: torch.device) -> bool:
        """Whether the reference is asked: where weights are sharded, by all ranks as soon as one of them has to."""
        if self.cache is None or not is_sharded(self.backbone):
            return is_missed_here
        return bool(most_over_ranks(int(is_missed_here), device))

    def move_if_due(self, step: int) -> None:
        """Move the reference towards the policy, if it moves at this optimizer step (counted from 1)."""
        if self.options.sync_steps and step % self.options.sync_steps == 0:
            self.backbone.move_reference(self.options.mixup)

    def flush(self) -> None:
        """Write what is kept and not on disk yet."""
        if self.cache is not None:
            self.cache.flush()


def _keys(pairs: PreferencePairs) -> list[str]:
    """Key of each sequence in the cache: the row's address, and which of the row's responses it is."""
    rows: dict[int, str] = {}
    for row, *both in zip(pairs.rows, pairs.chosen.tolist(), pairs.rejected.tolist(), strict=True):
        rows.update(dict.fromkeys(both, row))
    seen: Counter[int] = Counter()
    keys = []
    for sequence, leaf in enumerate(pairs.forest.leaves):
        root = pairs.forest.path(leaf)[0]
        keys.append(f"{rows[sequence]}#{seen[root]}")
        seen[root] += 1
    return keys
