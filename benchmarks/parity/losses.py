"""Record what TRL's preference losses and their gradients are on random token log-probabilities.

Runs in an environment with TRL 1.16, without this package; ``tests/losses/test_parity.py`` compares. TRL's own
``_compute_loss`` is executed, with a stand-in for the language model that returns given log-probabilities.

    /path/to/trl/bin/python benchmarks/parity/losses.py --out tests/golden/trl_losses.json
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import trl
from torch import Tensor, nn
from trl import DPOTrainer
from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOTrainer

PLAIN = [
    "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired",
    "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm",
]  # fmt: skip
WITH_DIVERGENCE = ["sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop", "sft"]
DIVERGENCES = ["forward_kl", "js_divergence", "alpha_divergence"]
CHOSEN_LENGTHS, REJECTED_LENGTHS = [3, 5, 1, 4], [4, 2, 6, 4]
PROMPT, WIDTH = 2, 9  # tokens of each prompt; columns of the padded batch


class StandIn(nn.Module):
    """A language model that answers with given token log-probabilities (2B, T)."""

    is_gradient_checkpointing = False

    def __init__(self, logprobs: Tensor, log_sum_squared_probs: Tensor) -> None:
        super().__init__()
        self.logprobs, self.log_sum_squared_probs = logprobs, log_sum_squared_probs

    def forward(self, **_: Any) -> SimpleNamespace:
        """Answer, whatever was asked."""
        zeros = torch.zeros_like(self.logprobs)
        return SimpleNamespace(
            log_probs=self.logprobs, log_sum_sq_probs=self.log_sum_squared_probs, entropy=zeros, mean_logits=zeros,
            is_top1=zeros.bool(),
        )  # fmt: skip


def inputs() -> dict[str, Tensor]:
    """Masks (2B, T) of chosen then rejected rows, and token log-probabilities (2B, T - 1), zero off the responses."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor(CHOSEN_LENGTHS + REJECTED_LENGTHS)
    column = torch.arange(WIDTH)
    completion_mask = ((column >= PROMPT) & (column < PROMPT + lengths[:, None])).long()
    scored = completion_mask[:, 1:]
    policy = -3 * torch.rand(scored.shape, generator=generator) * scored
    ref = -3 * torch.rand(scored.shape, generator=generator) * scored
    squared = -2 * torch.rand(scored.shape, generator=generator) * scored
    return {"completion_mask": completion_mask, "policy": policy, "ref": ref, "squared": squared}


def dpo(given: dict[str, Tensor], **settings: Any) -> dict[str, Any]:
    """TRL's DPO loss and its gradient by token, under ``settings``."""
    policy = given["policy"].clone().requires_grad_()
    model, ref_model = StandIn(policy, given["squared"]), StandIn(given["ref"], given["squared"])
    defaults = {
        "beta": 0.1, "label_smoothing": 0.0, "loss_weights": [1.0], "f_divergence_type": "reverse_kl",
        "f_alpha_divergence_coef": 0.5, "ld_alpha": None, "use_weighting": False,
    }  # fmt: skip
    accelerator = SimpleNamespace(device="cpu", gather=lambda x: x, gather_for_metrics=lambda x: x)
    trainer = SimpleNamespace(
        **{**defaults, **settings}, model=model, ref_model=ref_model, accelerator=accelerator, aux_loss_enabled=False,
        precompute_ref_logps=False, args=SimpleNamespace(discopop_tau=0.05, gradient_checkpointing_kwargs=None),
        _metrics={"train": defaultdict(list)}, _total_train_tokens=0, _tp_size=1,
    )  # fmt: skip
    mask = given["completion_mask"]
    batch = {"input_ids": torch.zeros_like(mask), "attention_mask": torch.ones_like(mask), "completion_mask": mask}
    loss = DPOTrainer._compute_loss(trainer, model, batch, False)
    loss.backward()
    return {"settings": settings, "loss": loss.item(), "gradient": policy.grad.tolist()}


def reference_free(given: dict[str, Tensor]) -> dict[str, list[float]]:
    """TRL's per-pair CPO, SimPO and ORPO terms, without their likelihood part, and ORPO's on mean log-probabilities."""
    chosen, rejected = given["policy"].sum(1).chunk(2)
    chosen_mean, rejected_mean = chosen / torch.tensor(CHOSEN_LENGTHS), rejected / torch.tensor(REJECTED_LENGTHS)
    settings = {"accelerator": SimpleNamespace(device="cpu"), "alpha": 0.0, "label_smoothing": 0.1}
    cpo = SimpleNamespace(**settings, beta=0.1, loss_type="sigmoid")
    simpo = SimpleNamespace(**{**settings, "label_smoothing": 0.0}, beta=2.0, loss_type="simpo", simpo_gamma=0.5)
    orpo = SimpleNamespace(**settings, beta=0.25)
    return {
        "cpo": CPOTrainer.cpo_loss(cpo, chosen, rejected)[0].tolist(),
        "simpo": CPOTrainer.cpo_loss(simpo, chosen_mean, rejected_mean)[0].tolist(),
        "orpo": (-ORPOTrainer.odds_ratio_loss(orpo, chosen_mean, rejected_mean)[0]).tolist(),
    }


def cases() -> list[dict[str, Any]]:
    """Settings to record: every loss alone, under label smoothing, every divergence, LD-DPO, WPO, and a mixture."""
    smoothed = {"exo_pair", "robust", "aot", "aot_unpaired"}
    alone = [{"loss_types": [name], "label_smoothing": 0.2 if name in smoothed else 0.0} for name in PLAIN]
    diverged = [
        {"loss_types": [name], "f_divergence_type": divergence, "label_smoothing": 0.2, "beta": 0.3}
        for divergence in DIVERGENCES
        for name in WITH_DIVERGENCE
    ]
    desensitised = [{"loss_types": [name], "ld_alpha": 0.4} for name in ("sigmoid", "ipo", "apo_zero")]
    # not hinge: TRL 1.16 weighs in place, which its backward refuses
    weighted = [{"loss_types": [name], "use_weighting": True} for name in ("sigmoid", "ipo", "bco_pair")]
    mixture = {"loss_types": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 1.0]}
    return [*alone, *diverged, *desensitised, *weighted, mixture]


def main() -> None:
    """Write the recording."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    given = inputs()
    recording = {
        "trl": trl.__version__,
        "inputs": {name: tensor.tolist() for name, tensor in given.items()},
        "dpo": [dpo(given, **settings) for settings in cases()],
        "reference_free": reference_free(given),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(recording) + "\n")
    print(f"{len(recording['dpo'])} cases of TRL {trl.__version__} -> {out}")


if __name__ == "__main__":
    main()
