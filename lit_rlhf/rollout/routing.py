"""Which experts the tokens of an iteration's responses had when they were measured, and have when they are learnt from.

A router moves with the policy, and a token that goes to other experts has another probability for no reason that
clipping knows of. How many choices differ is always counted, as that costs nothing. By choice they are *replayed*: each
update computes with the experts that were chosen before the first one, and gradients are those of that choice. Weights
of experts, which a router gives beside the choice, stay as it gives them.

Source: Zheng et al., "Group Sequence Policy Optimization", arXiv 2507.18071, section 5.3.

Shape letters: T tokens of a forest, D layers with experts, k experts of a token.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from typing import Literal, TypeVar

import torch
from torch import Tensor

from lit_rlhf.models.backbone import Backbone
from lit_rlhf.models.moe.routers import Routed, Router, find_routers, forced, heard, require_routers
from lit_rlhf.models.padded import unfold
from lit_rlhf.models.recomputing import Within
from lit_rlhf.ranks import sum_over_ranks
from lit_rlhf.rollout.packing import RolloutMicroBatch
from lit_rlhf.types import Forest, Rollouts

Said = TypeVar("Said")
_Owner = tuple[Literal["prompt", "response"], int]


class Routing:
    """The routers of a policy, from the measuring of responses to the last update.

    Args:
        kind: "free" or "replay".
    """

    def __init__(self, kind: Literal["free", "replay"] = "free") -> None:
        self.kind = kind
        self._backbone: Backbone | None = None
        self._routers: list[Router] = []
        self._phase: Literal["idle", "measuring", "learning"] = "idle"
        self._groups: list[int] = []
        self._experts: dict[_Owner, Tensor] = {}
        self._differing = torch.zeros(2)

    def open(self, backbone: Backbone) -> None:
        """Get to know the policy.

        Raises:
            ValueError: if routers are to be replayed that are not known.
        """
        self._backbone, self._routers = backbone, find_routers(backbone.model)
        if self.kind == "replay":
            require_routers(backbone.base, "updates.routing")
        backbone.within = self.within

    def measure(self, rollouts: Rollouts | None) -> None:
        """Forget what is known, and keep what passes choose from now on.

        Args:
            rollouts: whose responses they are; None = keep nothing, as they will not be learnt from.
        """
        self._experts = {}
        self._phase = "measuring" if rollouts is not None and self._routers else "idle"
        self._groups = [] if rollouts is None else rollouts.groups.tolist()

    def learn(self) -> None:
        """Hold the passes from now on against what is known."""
        if self._phase == "measuring":
            self._phase = "learning"

    def __call__(self, micro_batch: RolloutMicroBatch, compute: Callable[[Forest], Said]) -> Said:
        """What a model says of a micro-batch, with the experts that are due."""
        if self._phase == "idle" or not len(micro_batch.members):  # an idle pass has no members
            return compute(micro_batch.forest)
        assert self._backbone is not None
        with self._backbone.computing(self.within(micro_batch)), heard(self._routers, self._is_policy) as said:
            result = compute(micro_batch.forest)
        experts = self._tokens(said, micro_batch.forest)
        if self._phase == "measuring":
            self._keep(micro_batch, experts)
        else:
            known = self._known(micro_batch)
            answers = micro_batch.forest.targets  # a prompt is computed as often as responses to it are parted
            same = (experts[answers][..., None] == known[answers][..., None, :]).any(-1)
            self._differing += torch.tensor([float((~same).sum()), float(same.numel())])
        return result

    def within(self, micro_batch: object) -> Within:
        """The context that a pass of a micro-batch is computed in: its experts are those it had, where that is due.

        Args:
            micro_batch: of an optimizer step; texts to imitate were not measured, and route freely.
        """
        if self._phase != "learning" or self.kind == "free" or not isinstance(micro_batch, RolloutMicroBatch):
            return nullcontext
        if not len(micro_batch.members):
            return nullcontext
        known = self._known(micro_batch)
        cells = known if self._cells(micro_batch.forest) is None else known[self._sources(micro_batch.forest)]
        return partial(forced, self._routers, cells, self._is_policy)

    def mismatch(self, device: torch.device) -> Mapping[str, Tensor]:
        """Share of the choices for response tokens that differ from those of the measuring, of all updates and ranks.

        Args:
            device: that ranks communicate on.

        Returns:
            ``router/mismatch``, of all updates since the last time; nothing where there are no routers, or where no
            update was held against the measuring.
        """
        if not self._routers:
            return {}
        differing, count = sum_over_ranks(self._differing.to(device))
        self._differing = torch.zeros(2)
        return {"router/mismatch": differing / count} if count else {}

    def _is_policy(self) -> bool:
        assert self._backbone is not None
        return self._backbone.acting == "policy"

    def _cells(self, forest: Forest) -> Tensor | None:
        """(T,) the row of what a router says that a token has; None where rows are tokens."""
        assert self._backbone is not None
        return unfold(forest).cells if self._backbone.layout_of(bool(forest.pictures)) == "padded" else None

    def _sources(self, forest: Forest) -> Tensor:
        """(rows,) the token that a row of padded sequences holds."""
        numbers = torch.arange(forest.num_tokens, device=forest.tokens.device)
        return unfold(forest._replace(tokens=numbers)).tokens.flatten()

    def _tokens(self, said: Mapping[int, Routed], forest: Forest) -> Tensor:
        """(T, D, k) int16, the experts that routers chose by themselves."""
        cells = self._cells(forest)
        columns = [said[number].experts for number in sorted(said)]
        chosen = torch.stack(columns if cells is None else [column[cells] for column in columns], 1)
        return chosen.to(torch.int16)

    def _owners(self, micro_batch: RolloutMicroBatch) -> list[_Owner]:
        """Whose tokens each segment holds: a prompt is followed by the responses to it."""
        members, owners = iter(micro_batch.members.tolist()), list[_Owner]()
        following = next(members, None)
        for parent in micro_batch.forest.parents:
            assert following is not None
            if parent < 0:
                owners.append(("prompt", self._groups[following]))
            else:
                owners.append(("response", following))
                following = next(members, following)
        return owners

    def _keep(self, micro_batch: RolloutMicroBatch, experts: Tensor) -> None:
        parts = experts.split(micro_batch.forest.lengths)
        self._experts.update(zip(self._owners(micro_batch), parts, strict=True))

    def _known(self, micro_batch: RolloutMicroBatch) -> Tensor:
        """(T, D, k) int16."""
        return torch.cat([self._experts[owner] for owner in self._owners(micro_batch)])
