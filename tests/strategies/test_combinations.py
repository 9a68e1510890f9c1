"""What cannot be together is refused at once, with the reason and the way out."""

from __future__ import annotations

from types import SimpleNamespace

import bitsandbytes
import lightning
import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, ModelParallelStrategy

from lit_rlhf.models.moe.four_bit import FourBitWeight
from lit_rlhf.strategies.combinations import REFUSALS, Combination, refuse, refuse_combination
from lit_rlhf.strategies.fsdp2 import FSDP2Strategy

REFUSED = {
    "Lightning's FSDP cannot run manual optimization.*take 'fsdp2'": Combination("fsdp", learns_from_rollouts=True),
    "Lightning's FSDP cannot run the several backward.*take 'fsdp2'": Combination("fsdp"),
    "'deepspeed'.*take 'fsdp2'.* or 'ddp'": Combination("deepspeed"),
    "shards nothing by itself; take 'fsdp2'": Combination("model_parallel"),
    "take 'auto', 'ddp' or 'fsdp2'": Combination("other"),
    "int8.*take backbone.quantization 'nf4', or trainer.strategy 'ddp'": Combination("fsdp2", is_int8=True),
    "'16-true'.*take 'bf16-true'": Combination("fsdp2", "16-true"),
    "'16-mixed'.*take 'bf16-mixed'": Combination("single", "16-mixed", learns_from_rollouts=True),
    "experts are held in nf4.*or trainer.strategy 'ddp'": Combination("fsdp2", has_four_bit_experts=True),
    "give the Trainer the module itself": Combination("single", is_compiled=True),
}
FOUND = {FSDPStrategy: "manual optimization", ModelParallelStrategy: "shards nothing"}


@pytest.mark.parametrize(("message", "run"), REFUSED.items())
def test_refused(message, run):
    with pytest.raises(ValueError, match=message):
        refuse(run)


def test_every_refusal_is_tried():
    first = [next(at for at, refusal in enumerate(REFUSALS) if refusal.applies(run)) for run in REFUSED.values()]
    assert sorted(first) == [*range(len(REFUSALS))]


@pytest.mark.parametrize("strategy", ["single", "ddp", "fsdp2"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-true", "bf16-mixed"])
@pytest.mark.parametrize("learns_from_rollouts", [False, True])
def test_what_works_is_not_refused(strategy, precision, learns_from_rollouts):
    refuse(Combination(strategy, precision, strategy != "fsdp2", learns_from_rollouts))


class Idle(lightning.LightningModule):
    def __init__(self, automatic):
        super().__init__()
        self.automatic_optimization = automatic


def test_what_a_trainer_brings_is_found_out():
    refuse_combination(Idle(True))  # has no Trainer
    for made, message in FOUND.items():
        module = Idle(False)
        module._trainer = SimpleNamespace(strategy=made(), precision="32-true")
        with pytest.raises(ValueError, match=message):
            refuse_combination(module)
    for made in (DDPStrategy, FSDP2Strategy):
        module._trainer.strategy = made()
        refuse_combination(module)
    module.int8 = bitsandbytes.nn.Linear8bitLt(4, 4)
    with pytest.raises(ValueError, match="int8"):
        refuse_combination(module)
    module.int8 = torch.nn.ParameterList([torch.nn.Parameter(FourBitWeight.of(torch.ones(1, 8, 8)), False)])
    with pytest.raises(ValueError, match="experts are held in nf4"):
        refuse_combination(module)
