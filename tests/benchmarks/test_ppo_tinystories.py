"""Rewards, judging, gates and table of the PPO benchmark on little stories."""

import argparse
import json
import sys
from copy import deepcopy

import pytest
import torch
from transformers import AutoModelForCausalLM


@pytest.fixture(scope="module")
def script(load_script):
    return load_script("ppo_tinystories.py")


@pytest.fixture(scope="module")
def stories(load_script):
    return load_script("sides/ppo_stories.py")


def test_rewards_by_hand(stories):
    texts = ["Happy, HAPPY hug.", "unhappy", "", "fun fun fun fun fun fun fun"]
    assert stories.positive_words(texts) == [0.5, 0.0, 0.0, 1.0]
    assert len(stories.POSITIVE) == 28
    assert stories.closed_quotation(['he said "yes" and', 'he said "yes', '""', ""]) == [1.0, 0.0, 0.0, 0.0]
    assert all(0 <= number < 1 for number in stories.noise(texts))
    assert stories.noise(texts) != stories.noise(texts)


def test_a_policy_is_judged_by_what_it_writes(stories, tiny_llama, tiny_tokenizer):
    start = AutoModelForCausalLM.from_pretrained(tiny_llama())
    prompts = ["Once upon a time", "Tom had a ball. He"]
    same = stories.measure(start, start, tiny_tokenizer, prompts, 8)
    assert same["kl"] == 0.0
    assert same == stories.measure(start, start, tiny_tokenizer, prompts, 8)
    # a policy that ends at once: minus the log-probability that the start gives to that is its divergence
    ends = deepcopy(start)
    ends.lm_head = torch.nn.Linear(*reversed(start.lm_head.weight.shape))
    torch.nn.init.zeros_(ends.lm_head.weight)
    ends.lm_head.bias.data[tiny_tokenizer.eos_token_id] = 100.0
    result = stories.measure(ends, start, tiny_tokenizer, prompts, 8)
    assert (result["length"], result["finished"], result["positive_words"]) == (1.0, 1.0, 0.0)
    with torch.no_grad():
        last = [
            start(**tiny_tokenizer(prompt, return_tensors="pt")).logits[0, -1].log_softmax(-1) for prompt in prompts
        ]
    expected = -sum(float(logprobs[tiny_tokenizer.eos_token_id]) for logprobs in last) / 2
    assert result["kl"] == pytest.approx(expected, rel=1e-4)


def test_a_stored_policy_is_judged_on_as_many_prompts_as_are_wanted(stories, tiny_llama, tiny_tokenizer, tmp_path):
    (tmp_path / "test.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    folder = str(tiny_llama())
    model = AutoModelForCausalLM.from_pretrained(folder)
    judged = stories.judge(folder, folder, str(tmp_path / "test.jsonl"), 3, 4)
    assert judged == stories.measure(model, model, tiny_tokenizer, ["a", "b", "a"], 4)


def judged(**numbers):
    return {"positive_words": 0.0, "closed_quotation": 0.0, "kl": 30.0, "length": 48.0, "finished": 0.0, **numbers}


@pytest.mark.parametrize(
    ("reward", "passes", "fails"),
    [
        ("positive_words", judged(positive_words=0.6), judged(positive_words=0.59)),
        ("positive_words", judged(positive_words=1.0), judged(positive_words=1.0, kl=-5.0)),
        ("closed_quotation", judged(closed_quotation=0.9, length=20.0), judged(closed_quotation=1.0, length=20.1)),
        ("noise", judged(positive_words=0.15), judged(positive_words=0.16)),
    ],
)
def test_gates(script, reward, passes, fails):
    assert all(gate.is_passed(passes) for gate in script.GATES[reward])
    assert not all(gate.is_passed(fails) for gate in script.GATES[reward])


def test_table_and_files(script, tmp_path, monkeypatch):
    monkeypatch.setattr(script, "hardware", lambda device: "a machine")
    start = {"side": "start", "reward": "", "seed": "", "judged": judged(), "is_passed": None}
    made = {
        **{"side": "lit_rlhf", "reward": "positive_words", "seed": 1, "judged": judged(positive_words=0.9)},
        **{"seconds": 61.4, "phases": {"rollout": 20.0, "score": 9.0, "update": 30.0}, "peak_mib": 99.6},
        **{"is_passed": True, "versions": {"torch": "2"}, "course": []},
    }
    lines = script.table([start, made]).splitlines()
    assert lines[0].startswith("| reward | side | seed | positive words | quotation | KL, nats | length | CPU s |")
    assert lines[2] == "|  | start |  | 0.000 | 0.000 | 30.0 | 48.0 |  |  |  |  |  |  |"
    assert lines[3].endswith("| 0.900 | 0.000 | 30.0 | 48.0 | 61 | 20 | 9 | 30 | 100 | passed |")
    options = argparse.Namespace(load="two others", model=tmp_path, out=tmp_path / "results")
    assert "- load: two others" in script.write(options, [start, made]).read_text()
    assert json.loads((tmp_path / "results" / "ppo_tinystories.json").read_text())["runs"][1]["seed"] == 1


def test_a_comparison_goes_on_where_it_was_interrupted(script, tmp_path, monkeypatch):
    trained = []
    monkeypatch.setattr(script, "train", lambda work, python, side, plan: trained.append((side, plan["seed"])) or {})
    monkeypatch.setattr(script, "judge", lambda plan, policy: judged(positive_words=0.7))
    options = argparse.Namespace(work=tmp_path, model=tmp_path, prompts=tmp_path, trl_python="trl", go_on=True)
    first = script.run(options, "trl", "positive_words", 1)
    assert script.run(options, "trl", "positive_words", 1) == first
    assert first["is_passed"]
    script.run(options, "lit_rlhf", "positive_words", 1)
    script.run(argparse.Namespace(**{**vars(options), "go_on": False}), "trl", "positive_words", 1)
    assert trained == [("trl", 1), ("lit_rlhf", 1), ("trl", 1)]


def test_a_failing_side_is_named_with_what_it_said(script, tmp_path, monkeypatch):
    (tmp_path / "sides").mkdir()
    (tmp_path / "sides" / "ppo_tinystories_bad.py").write_text("raise SystemExit('no such thing')")
    good = "import json, os, sys\njson.dump([os.environ['OMP_NUM_THREADS'], sys.argv[1]], open(sys.argv[2], 'w'))"
    (tmp_path / "sides" / "ppo_tinystories_good.py").write_text(good)
    monkeypatch.setattr(script, "HERE", tmp_path)
    assert script.train(tmp_path, sys.executable, "good", {}) == ["1", str(tmp_path / "plan.json")]
    with pytest.raises(RuntimeError, match=r"ppo_tinystories_bad.py(.|\n)*no such thing"):
        script.train(tmp_path, sys.executable, "bad", {})


def test_our_side_trains_and_keeps_the_policy(script, load_script, tiny_llama, tmp_path, monkeypatch):
    (tmp_path / "train.jsonl").write_text('{"prompt": "Tom had"}\n{"prompt": "Once"}\n{"prompt": "A dog"}\n')
    plan = {
        **script.NUMBERS,
        **{"model": str(tiny_llama()), "train": str(tmp_path / "train.jsonl"), "scratch": str(tmp_path), "seed": 0},
        **{"policy": str(tmp_path / "policy"), "reward": "noise", "steps": 2, "batch_size": 4, "max_new_tokens": 3},
    }
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    out = tmp_path / "measured.json"
    monkeypatch.setattr(sys, "argv", ["ppo_tinystories_lit_rlhf.py", str(tmp_path / "plan.json"), str(out)])
    load_script("sides/ppo_tinystories_lit_rlhf.py").main()
    measured = json.loads(out.read_text())
    assert measured["tokens"]["responses"] == 8  # as many samples as the plan says, though prompts are few
    first, second = measured["course"]
    assert first["kl"] == pytest.approx(0.0, abs=1e-4)
    assert second["kl"] != first["kl"]
    before = AutoModelForCausalLM.from_pretrained(tiny_llama()).lm_head.weight
    assert not torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path / "policy").lm_head.weight, before)
