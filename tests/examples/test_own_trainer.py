"""The example of a hand-written Trainer runs as a user runs it, learns, and leaves an adapter that PEFT loads."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from lit_rlhf.embedded import resolve

ROOT = Path(__file__).parents[2]


def test_the_example_learns_and_leaves_an_adapter(tmp_path):
    script = ROOT / "examples" / "own_trainer.py"
    done = subprocess.run(
        [sys.executable, str(script), "--steps", "16", "--out", str(tmp_path)],
        check=False,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    margins = [float(line.split()[-1]) for line in done.stdout.splitlines() if line.startswith("step ")]
    assert len(margins) == 2
    assert margins[1] > margins[0] > 0.0
    assert (tmp_path / "metrics.csv").read_text().splitlines()[0].count("val/")
    assert list((tmp_path / "checkpoints").glob("*.ckpt"))
    weights = load_file(tmp_path / "adapter_model.safetensors")
    assert all(weight.any() for name, weight in weights.items() if "lora_B" in name)
    base = AutoModelForCausalLM.from_pretrained(resolve("embedded:tiny_llama"), dtype=torch.float32)
    PeftModel.from_pretrained(base, tmp_path)
