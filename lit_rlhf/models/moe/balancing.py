"""The load-balancing loss of an optimizer step, and how its tokens were shared out among the experts.

How often an expert is chosen multiplies its probability, so the loss of a step is no sum over micro-batches of their
own losses. It is one of losses that all know how often the *whole step* chose each expert, over all micro-batches and
ranks. That is counted before the first backward pass, by a forward pass without a graph, where a step has more than one
micro-batch or rank; a step that is one micro-batch counts as it goes. Without the loss nothing is computed twice.

What counts is every token of every sequence, as in rows without padding: a prompt, though it is computed once, counts
for each of its responses. Counted once for each time it is computed, it would depend on which responses a micro-batch
holds. Only passes of the role that is trained are heard; a reference, a critic, a frozen reward model and rollouts are
not.

Shape letters: T tokens of a forest, D layers with experts, E experts of a layer, k experts of a token.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lit_rlhf.losses.load_balancing import expert_load, load_balancing_loss
from lit_rlhf.models.backbone import Backbone
from lit_rlhf.models.loading import evaluating
from lit_rlhf.models.moe.routers import Routed, find_routers, heard
from lit_rlhf.models.padded import unfold
from lit_rlhf.ranks import num_ranks, sum_over_ranks
from lit_rlhf.types import Forest, num_sequence_tokens

Share = tuple[Any, Callable[[], Tensor]]
"""A micro-batch (None = an idle pass), and what it adds to the loss of the step."""

InStep = Callable[[nn.Module, Sequence[Any], Callable[[Forest], object]], Any]
"""The passes of this rank, in step with those of others: :func:`lit_rlhf.models.micro_batches.in_step`."""


def trained_backbone(module: nn.Module) -> Backbone | None:
    """The backbone that a module trains; the first one where a critic has another. None where it trains none."""
    backbones = (part for part in module.modules() if isinstance(part, Backbone))
    return next((one for one in backbones if any(p.requires_grad for p in one.parameters())), None)


def trains_routers(module: nn.Module) -> bool:
    """Whether what a module trains has routers, whose words belong to a step."""
    backbone = trained_backbone(module)
    return backbone is not None and bool(find_routers(backbone.model))


class StepBalance:
    """The routers of one optimizer step.

    Args:
        module: in training, attached to a Trainer.
        backbone: that it trains.
        micro_batches: of this rank; each has a ``forest``.
        in_step: runs passes in step with other ranks.
    """

    def __init__(
        self, module: LightningModule, backbone: Backbone, micro_batches: Sequence[Any], in_step: InStep
    ) -> None:
        self.module, self.backbone = module, backbone
        self.routers = find_routers(backbone.model)
        self.coef = backbone.router_aux_loss_coef
        tokens = float(sum(num_sequence_tokens(one.forest) for one in micro_batches))
        self.num_tokens = sum_over_ranks(torch.tensor(tokens, dtype=torch.float32, device=module.device))
        num_experts = cast(Tensor, self.routers[0].module.weight).shape[0]
        self._seen = torch.zeros(2, len(self.routers), num_experts, dtype=torch.float32, device=module.device)
        self._choices: Tensor | None = None
        if self.coef and (len(micro_batches) != 1 or num_ranks() > 1):
            self._choices = sum_over_ranks(self._choices_of(micro_batches, in_step))

    @torch.no_grad()
    def _choices_of(self, micro_batches: Sequence[Any], in_step: InStep) -> Tensor:
        """(D, E) how many tokens of this rank choose each expert, without any dropout."""
        total = torch.zeros_like(self._seen[0])
        with evaluating(self.backbone), heard(self.routers, lambda: True) as said:
            for micro_batch in in_step(self.backbone, micro_batches, self.backbone.hidden_states):
                with self.backbone.computing(self.backbone.within(micro_batch)):
                    self.backbone.hidden_states(micro_batch.forest)
                total += token_sums(self.backbone, said, micro_batch.forest)[1]
        return total

    def share(self, micro_batch: Any, loss: Callable[[], Tensor], *, is_last: bool) -> Tensor:
        """What a micro-batch adds to the loss of the step, its part of the load-balancing loss with it.

        Args:
            micro_batch: None = an idle pass, of which nothing counts.
            loss: computes the rest of its share.
            is_last: whether the step ends with it; then what was seen is logged.
        """
        with heard(self.routers, self._is_meant) as said:
            value = loss()
        if micro_batch is not None and said:
            probabilities, choices = token_sums(self.backbone, said, micro_batch.forest)
            self._seen += torch.stack([probabilities.detach(), choices])
            if self.coef:
                choices = choices if self._choices is None else self._choices
                balance = load_balancing_loss(probabilities, choices, num_tokens=self.num_tokens)
                # Strategies average gradients over ranks, which is undone here.
                value = value + self.coef * num_ranks() * balance
        if is_last:
            self._log()
        return value

    def _is_meant(self) -> bool:
        return self.backbone.acting in ("policy", "reward")

    def _log(self) -> None:
        seen = sum_over_ranks(self._seen)
        self.module.log_dict({f"train/router/{name}": value for name, value in told(seen).items()})


def told(seen: Tensor) -> dict[str, Tensor]:
    """What is logged of the routers of a step.

    Args:
        seen: (2, D, E) sums of probabilities, and choices, of its tokens over all ranks.

    Returns:
        Nothing where no pass was heard. ``aux_loss``: the load-balancing loss before its coefficient; ``load_max``,
        ``load_min`` and ``load_entropy``: see :class:`lit_rlhf.losses.load_balancing.ExpertLoad`; ``dropped_tokens``:
        share of choices that no expert computed, 0 as experts take any number of tokens.
    """
    probabilities, choices = seen
    if not bool(choices.sum()):
        return {}
    load = expert_load(choices)
    # Probabilities of a token sum to one in every layer.
    aux_loss = load_balancing_loss(probabilities, choices, num_tokens=probabilities[0].sum())
    shares = {"load_max": load.max, "load_min": load.min, "load_entropy": load.entropy}
    return {"aux_loss": aux_loss, **shares, "dropped_tokens": torch.zeros_like(aux_loss)}


def token_sums(backbone: Backbone, said: Mapping[int, Routed], forest: Forest) -> tuple[Tensor, Tensor]:
    """Sums (D, E) of probabilities, with their gradient, and counts (D, E) of choices, over all sequences' tokens.

    Args:
        backbone: that computed the forest.
        said: what each router said of it.
        forest: the packed text.
    """
    is_padded = backbone.layout_of(bool(forest.pictures)) == "padded"
    cells = unfold(forest).cells if is_padded else slice(None)
    counts = _sequences_through(forest)
    probabilities, choices = [], []
    for number in sorted(said):
        routed = said[number]
        logits, experts = routed.logits[cells], routed.experts[cells]
        # No matrix product: mixed precision would round its sums, which then depended on the cut.
        probabilities.append((counts[:, None] * routed.probabilities(logits)).sum(0))
        chosen = torch.zeros_like(probabilities[-1])
        choices.append(chosen.index_add(0, experts.flatten(), counts.repeat_interleave(experts.shape[1])))
    return torch.stack(probabilities), torch.stack(choices).detach()


def _sequences_through(forest: Forest) -> Tensor:
    """(T,) float32, how many sequences each token is a part of."""
    counts = [0] * len(forest.lengths)
    for leaf in forest.leaves:
        for part in forest.path(leaf):
            counts[part] += 1
    tokens = [count for count, length in zip(counts, forest.lengths, strict=True) for _ in range(length)]
    return torch.tensor(tokens, dtype=torch.float32, device=forest.tokens.device)
