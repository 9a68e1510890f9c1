"""The same model with a value head in TRL and here: each writes folders that the other reads with the same values.

TRL's last release that has the class is 1.10; run its side in an environment of its own:

    TRL benchmarks/parity/value_head_trl.py write trl OUT
    python benchmarks/parity/value_head_trl.py read lit_rlhf OUT

and the other way round: ``write lit_rlhf`` here, ``read trl`` there. ``read`` prints the worst difference by folder.

``write trl`` makes ``OUT/values.json``, which is kept as tests/golden/trl_value_head.json. The models are tiny, and
every weight is a formula, so that they are the same under every version of everything.
"""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from torch import nn
from transformers import GPTNeoXConfig, LlamaConfig, PreTrainedModel
from transformers import GPTNeoXForCausalLM as GPTNeoX
from transformers import LlamaForCausalLM as Llama

PLACES = {"trl": "trl.experimental.ppo", "lit_rlhf": "lit_rlhf"}
SHAPE = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
FAMILIES = {"llama": lambda: Llama(LlamaConfig(**SHAPE)), "gpt_neox": lambda: GPTNeoX(GPTNeoXConfig(**SHAPE))}
LORA = {"task_type": "CAUSAL_LM", "target_modules": "all-linear", "r": 2}
TOKENS = torch.arange(1, 22).reshape(3, 7) * 5 % 64
MASK = torch.tensor([[1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0, 0], [0, 0, 1, 1, 1, 1, 1]])


@torch.no_grad()
def fill(module: nn.Module) -> None:
    """Set every weight that is trained by a formula of its place and its index."""
    trained = ((name, weight) for name, weight in module.named_parameters() if weight.requires_grad)
    for number, (name, weight) in enumerate(sorted(trained, key=lambda named: named[0])):
        wave = torch.sin(torch.arange(weight.numel(), dtype=torch.float64) * 0.7 + number)
        around = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        weight.copy_((around + 0.3 * wave).reshape(weight.shape))


def build(family: str) -> PreTrainedModel:
    """The language model, without value head."""
    model = FAMILIES[family]().eval()
    fill(model)
    return model


@torch.no_grad()
def values(model: nn.Module) -> list[list[float]]:
    """Values of the tokens, padding as NaN; from the tuple that both give."""
    found = model.eval()(TOKENS, attention_mask=MASK)[2].masked_fill(MASK == 0, torch.nan)
    return [[round(value, 7) for value in row] for row in found.tolist()]


def write(value_model: Any, out: Path) -> None:
    """Save one whole model and one adapter per family, and say what their values are."""
    expected = {}
    for family in FAMILIES:
        base = out / family / "base"
        build(family).save_pretrained(base)
        for kind, options in {"full": {}, "adapter": {"peft_config": LoraConfig(**LORA)}}.items():
            model = value_model.from_pretrained(str(base), **options)
            fill(model)
            (out / family / kind).mkdir(exist_ok=True)
            model.save_pretrained(str(out / family / kind))
            expected[f"{family}/{kind}"] = values(model)
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(rows)}" for name, rows in expected.items())
    (out / "values.json").write_text(f"{{\n{lines}\n}}\n")


def read(value_model: Any, out: Path) -> dict[str, float]:
    """The worst difference of values, by folder, of what was written and what is read."""
    expected = json.loads((out / "values.json").read_text())
    differences = {}
    for name, rows in expected.items():
        found = torch.tensor(values(value_model.from_pretrained(str(out / name))))
        differences[name] = float((found - torch.tensor(rows)).nan_to_num().abs().max())
    return differences


def main(command: str, side: str, out: Path) -> None:
    """Write or read with one of the two classes of the same name."""
    value_model = import_module(PLACES[side]).AutoModelForCausalLMWithValueHead
    print(json.dumps({"write": write, "read": read}[command](value_model, out), indent=2))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
