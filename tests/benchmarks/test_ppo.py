"""What the PPO benchmark says of its settings, how it tells phases apart, and the model that ends its responses."""

import argparse
import json
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM


@pytest.fixture(scope="module")
def script(load_script):
    return load_script("ppo.py")


def test_what_is_compared_with_is_measured(script):
    settings = script.PPO.settings
    assert settings[script.PPO.default] == script.trl(gradient_checkpointing=False)
    assert settings[script.PPO.careful] == script.trl(gradient_checkpointing=True)
    assert {setting["critic"] for setting in settings.values() if setting["side"] == "lit_rlhf"} == {
        "shared",
        "adapter",
        "model",
    }


def run(seconds, peak_mib, response, rollout):
    phases = {"rollout": rollout, "score": 1.0, "update": 2.0}
    return {
        "seconds": seconds,
        "steps": 2,
        "peak_mib": peak_mib,
        "phases": phases,
        "tokens": {"responses": 4, "response": response},
        "versions": {},
    }


def test_throughput_counts_the_tokens_that_each_run_drew(script, monkeypatch):
    runs = {
        script.DEFAULT: [run(10.0, 400, 100, 5.0), run(10.0, 500, 200, 5.0), run(10.0, 600, 300, 5.0)],
        "ours": [run(1.0, 50, 100, 0.25)],
    }
    default, ours = script.summarise(script.PPO, argparse.Namespace(device="cpu"), runs)
    assert (default["tokens_per_second"], ours["tokens_per_second"]) == (20, 100)
    assert (default["sampling_ms"], default["score_ms"], default["update_ms"]) == (25, 5, 10)
    assert ours["sampling_ms"] == 2.5
    assert (default["mean_length"], ours["mean_length"]) == (50, 25)
    assert (ours["times_default"], ours["memory_of_default"], ours["times_careful"]) == (5, 0.1, None)
    monkeypatch.setattr(sys, "argv", ["ppo.py", "--trl-python", "p", "--data", "hh.jsonl"])
    table = script.compare.__globals__["table"](script.PPO, [default, ours], "cpu")
    assert table.splitlines()[0].startswith("| PPO | response tokens / CPU s | x default |")
    assert table.splitlines()[3].startswith(
        "| ours | 100.00 | 5.00 |  | 120.00 | 10.00 | 2.5 | 10.0 | 20.0 | 50 | 0.10 |"
    )
    assert script.parse(script.PPO, batch_size=16).batch_size == 16


def test_phases_add_up_once_the_warm_up_is_over(load_script, monkeypatch):
    meter = load_script("sides/ppo_meter.py").PhaseMeter("cpu", warmup=1)
    clock = iter(range(100))
    monkeypatch.setattr(meter, "_now", lambda: float(next(clock)))
    meter.begin()
    for lengths in ([9, 9], [3, 4], [5, 6]):
        meter.enter("rollout")
        meter.count(lengths)
        meter.enter("score")
        meter.enter("score")  # two parts of one phase
        meter.enter("update")
        meter.step()
    result = meter.result()
    assert result["phases"] == {"rollout": 2.0, "score": 4.0, "update": 2.0}
    assert result["tokens"] == {"responses": 4, "response": 18}
    assert result["steps"] == 2


def test_time_begins_with_training_where_nothing_warms_up(load_script, monkeypatch):
    meter = load_script("sides/ppo_meter.py").PhaseMeter("cpu", warmup=0)
    clock = iter((100.0, 101.0, 103.0, 103.0, 103.0))
    monkeypatch.setattr(meter, "_now", lambda: next(clock))
    meter.begin()
    meter.enter("rollout")
    meter.step()
    assert meter.result()["seconds"] == 3.0


@pytest.mark.parametrize(("mean_length", "max_length"), [(24.0, 64), (5.0, 1000), (1.5, 2)])
def test_rate_by_hand(load_script, mean_length, max_length):
    rate = load_script("ending_model.py").ending_rate(mean_length, max_length)
    assert sum((1 - rate) ** token for token in range(max_length)) == pytest.approx(mean_length, rel=1e-6)


def test_responses_end_as_often_as_is_wanted(load_script, tmp_path):
    proxy, ending = load_script("proxy_model.py"), load_script("ending_model.py")
    prompts = [f"\n\nHuman: what is {number}?\n\nAssistant:" for number in range(64)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    tokenizer = proxy.train_tokenizer(prompts)
    proxy.make_model("tiny", "float32", "cpu", tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    ending.let_responses_end(tmp_path / "model", tmp_path / "rows.jsonl", 6.0, 64, "cpu")
    asked = tokenizer(prompts * 4, return_tensors="pt", padding=True, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    torch.manual_seed(0)
    drawn = model.generate(**asked, do_sample=True, top_k=0, max_new_tokens=64)[:, asked.input_ids.shape[1] :]
    lengths = (drawn != tokenizer.pad_token_id).sum(1).float()
    assert 5.0 < lengths.mean() < 7.2  # 256 responses: the standard error is 0.35


@pytest.mark.parametrize("critic", ["shared", "adapter", "model"])
def test_our_side_measures_iterations(script, load_script, tiny_llama, tmp_path, monkeypatch, critic):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"{number} and"}) + "\n" for number in range(4)))
    script.make_reward_model(tiny_llama(), tmp_path / "reward_model")
    plan = {
        **script.NUMBERS,
        **{"model": str(tiny_llama()), "rows": str(rows), "scratch": str(tmp_path), "lora": {"r": 2, "lora_alpha": 4}},
        **{"reward_model": str(tmp_path / "reward_model"), "steps": 2, "warmup": 1, "batch_size": 2, "max_length": 64},
        **{"device": "cpu", "dtype": "float32", "quantization": "none", "max_new_tokens": 3},
    }
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    setting = {**script.ours(critic, token_budget=512)}
    out = tmp_path / "measured.json"
    monkeypatch.setattr(sys, "argv", ["ppo_lit_rlhf.py", str(tmp_path / "plan.json"), json.dumps(setting), str(out)])
    load_script("sides/ppo_lit_rlhf.py").main()
    measured = json.loads(out.read_text())
    assert measured["steps"] == 1
    assert measured["tokens"]["responses"] == 2
    assert 2 <= measured["tokens"]["response"] <= 6
    assert all(seconds > 0 for seconds in measured["phases"].values())
    assert 0.5 * measured["seconds"] < sum(measured["phases"].values()) <= measured["seconds"]
