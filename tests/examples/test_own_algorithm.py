"""The example is sixty lines, its weights are those of its formula, and the command line trains it."""

from __future__ import annotations

import ast
import csv
import tokenize
from pathlib import Path

import pytest
import torch

from lit_rlhf.cli import main

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "own_algorithm.py"
SILENT = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


def code_lines(path: Path) -> int:
    """Lines that hold code: no docstrings, comments or empty ones."""
    nodes = ast.walk(ast.parse(path.read_text()))
    documented = [node.body[0] for node in nodes if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)]
    strings = [node for node in documented if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)]
    told = {line for node in strings for line in range(node.lineno, node.end_lineno + 1)}
    with path.open() as file:
        tokens = [token for token in tokenize.generate_tokens(file.readline) if token.type not in SILENT]
    return len({line for token in tokens for line in range(token.start[0], token.end[0] + 1)} - told)


def test_it_is_sixty_lines():
    assert code_lines(EXAMPLE) <= 60


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.chdir(tmp_path)
    trust = ["--trust", "examples.own_algorithm"]
    return [f"--config={ROOT}/examples/own_algorithm.yaml", "--trainer.default_root_dir=run", *trust]


def test_the_command_takes_it(words: list[str]):
    main(["fit", *words, "--data.batch_size=2", "--model.sampling.num_responses=2", "--trainer.fast_dev_run=true"])


@pytest.mark.slow
def test_what_a_run_leaves(words: list[str], tmp_path: Path):
    small = ["--data.batch_size=4", "--data.validation=null", "--model.sampling.num_responses=3"]
    small += ["--trainer.val_check_interval=null", "--model.sampling.max_new_tokens=12", "--trainer.max_steps=2"]
    main(["fit", *words, *small])
    assert (tmp_path / "run" / "adapter_model.safetensors").is_file()
    with (tmp_path / "run" / "metrics.csv").open() as file:
        first, second = (row for row in csv.DictReader(file) if row["rollout/score"])
    assert float(first["rollout/kl"]) == pytest.approx(0.0, abs=1e-4)
    assert float(second["rollout/kl"]) != 0.0
    assert float(first["train/nll"]) > 0
    base = sum(path.stat().st_size for path in (ROOT / "lit_rlhf/embedded/assets/tiny_llama").glob("*.safetensors"))
    (checkpoint,) = (tmp_path / "run" / "checkpoints").glob("last*")
    with checkpoint.open("rb") as file:
        assert b"lora_A" in (head := file.read(base))
        assert b"embed_tokens" not in head  # the frozen base is left out


def brevity(response: str) -> float:
    return 1 / len(response)


def test_weights_by_hand(monkeypatch: pytest.MonkeyPatch):
    """Two prompts with two responses each: odds of e at a difference of beta, one half each where both score alike."""
    monkeypatch.syspath_prepend(str(ROOT))
    from examples.own_algorithm import RewardWeightedModule
    from lit_rlhf import BackboneConfig
    from lit_rlhf.rewards import FunctionReward, WeightedReward
    from lit_rlhf.rollout.sampling.request import SamplingOptions

    reward = [WeightedReward(FunctionReward(brevity))]
    module = RewardWeightedModule(BackboneConfig("any"), reward, SamplingOptions(num_responses=2), torch.optim.AdamW)
    weights = module.weights(torch.tensor([1.0, 0.5, 3.0, 3.0]))
    assert weights.tolist() == pytest.approx([2 * 0.7310586, 2 * 0.2689414, 1.0, 1.0])
