"""``estimate``: what it prints for every algorithm, and what it refuses."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from lit_rlhf.cli import main

CONFIGS = Path(__file__).parents[2] / "configs"
LLAMA_3_8B = {
    **{"model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32},
    **{"num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128_256, "dtype": "bfloat16"},
}


def estimated(capsys: pytest.CaptureFixture[str], config: str, *words: str) -> dict:
    main(["estimate", "--config", str(CONFIGS / config), "--json", *words])
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("name", ["sft", "reward", "dpo", "ppo", "grpo", "rloo", "reinforce", "online_dpo"])
def test_every_algorithm_is_estimated(name: str, capsys: pytest.CaptureFixture[str]):
    found = estimated(capsys, f"{name}.yaml")
    assert found["algorithm"] == name
    last = "step" if name in ("sft", "reward", "dpo") else "update"
    assert {"loading", last} <= set(found["memory"]["phases"])
    assert found["devices"][0]["name"] == "cpu"
    assert found["devices"][0]["run_seconds"] > 0


def test_a_large_model_is_estimated_from_its_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_3_8B))
    words = ["--model_config", str(tmp_path), "--prompt_tokens", "512", "--vram", "12"]
    found = estimated(capsys, "llama3_8b/ppo_qlora.yaml", *words)
    assert found["memory"]["roles"]["base"] == pytest.approx(5.70e9, rel=2e-3)
    (card,) = found["devices"]
    assert not card["fits"]
    # What is advised can be pasted, and then it fits.
    advised = [word for change in card["advice"] for word in shlex.split(change["flags"])]
    again = estimated(capsys, "llama3_8b/ppo_qlora.yaml", *words, *advised)
    assert again["devices"][0]["fits"]
    assert again["memory"]["peak"] == card["advice"][-1]["peak"]


def test_it_prints_tables_and_says_that_it_estimates(capsys: pytest.CaptureFixture[str]):
    main(["estimate", "--config", str(CONFIGS / "dpo.yaml"), "--gpu", "t4", "h200"])
    said = capsys.readouterr().out
    for words in ("Estimated, not measured", "optimizer", "step", "t4", "h200", "CUDA context"):
        assert words in said
    assert said.isascii()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "nothing to estimate"),
        (["--config", "configs/dpo.yaml", "--gpu", "h20"], "did you mean 'h200'"),
        (["--config", "configs/dpo.yaml", "--gpu", "cpu", "t4"], "--gpu cpu stands alone"),
        (["--config", "configs/dpo.yaml", "--vram", "-3"], "not a number above 0"),
        (["--config", "configs/dpo.yaml", "--model.bta", "3"], "did you mean 'beta'"),
        (["--config", "configs/dpo.yaml", "--model_config", "nowhere.json"], "--model_config nowhere.json"),
        (["--config", "configs/llama3_8b/sft_qlora.yaml"], "give its config.json by --model_config FILE"),
    ],
)
def test_what_is_wrong_is_told_in_a_line(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(CONFIGS.parent)
    with pytest.raises(SystemExit):
        main(["estimate", *words])
    said = capsys.readouterr().err.strip().splitlines()
    assert message in said[-1]
