"""What one tries first: a printed configuration trains as its source does, and a fast_dev_run leaves nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from lit_rlhf.cli import main

CONFIGS = Path(__file__).parents[2] / "configs"
KIN = ("grpo", "rloo", "reinforce", "online_dpo")
"""Of PPO: they have the same loop."""
ALGORITHMS = ("sft", "dpo", "reward", "ppo", *KIN)


def printed(capsys, *words):
    with pytest.raises(SystemExit) as end:
        main(["fit", *words, "--print_config"])
    assert end.value.code in (0, None)
    return capsys.readouterr().out


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_printed_configuration_is_one(name, capsys, tmp_path):
    first = printed(capsys, "--config", str(CONFIGS / f"{name}.yaml"), "--trainer.max_steps=7")
    (tmp_path / "printed.yaml").write_text(first, encoding="utf-8")
    again = yaml.safe_load(printed(capsys, "--config", str(tmp_path / "printed.yaml")))
    assert again == yaml.safe_load(first)
    assert again["trainer"]["max_steps"] == 7


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in KIN else name for name in ALGORITHMS]
)
def test_a_fast_dev_run_of_every_algorithm_leaves_nothing(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    small = ["--data.batch_size=4", "--trainer.callbacks=null"]
    if name in ("ppo", *KIN):
        small.append("--model.sampling.max_new_tokens=4")
    folder = f"--trainer.default_root_dir={tmp_path / 'run'}"
    main(["fit", "--config", str(CONFIGS / f"{name}.yaml"), folder, *small, "--trainer.fast_dev_run=true"])
    assert [*tmp_path.rglob("*")] == []
    assert "Traceback" not in capsys.readouterr().err
