"""A finished run answers prompts."""

from __future__ import annotations

import json

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from lit_rlhf.callbacks.prompts import encode
from lit_rlhf.cli import main

PROMPT = "What is the capital of France?"


def generate(folder, *words):
    main(["generate", str(folder), *words])


def test_greedy_answers_are_those_of_plain_hugging_face(finished_run, tiny_llama, tiny_tokenizer, tmp_path):
    """Also in a batch of prompts of different lengths."""
    words = [word for prompt in (PROMPT, "Hi") for word in ("--prompt", prompt)]
    out = tmp_path / "out.jsonl"
    generate(finished_run, *words, "--temperature", "0", "--max_new_tokens", "8", "--out", str(out))
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["prompt"] for row in rows] == [PROMPT, "Hi"]
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_llama()), finished_run).eval()
    for row in rows:
        tokens = torch.tensor([encode(row["prompt"], tiny_tokenizer)])
        answer = model.generate(input_ids=tokens, max_new_tokens=8, do_sample=False)[0, tokens.shape[1] :]
        assert row["response"] == tiny_tokenizer.decode(answer, skip_special_tokens=True).strip()


def test_samples_follow_the_seed_and_the_reference_is_the_base(finished_run, capsys):
    def answer(*words):
        generate(finished_run, "--prompt", PROMPT, "--max_new_tokens", "12", *words)
        return capsys.readouterr().out

    assert answer("--seed", "1") == answer("--seed", "1") != answer("--seed", "2")
    assert answer("--temperature", "0") != answer("--temperature", "0", "--reference")


def test_a_file_of_prompts(finished_run, tmp_path, capsys):
    rows = [{"prompt": PROMPT}, {"prompt": [{"role": "user", "content": "Hi"}]}, {"prompt": "third"}]
    file = tmp_path / "prompts.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    generate(finished_run, "--prompts", str(file), "--max_new_tokens", "2", "--batch_size", "2")
    out = capsys.readouterr().out
    assert [line[2:] for line in out.splitlines() if line.startswith("> ")] == [PROMPT, "Hi", "third"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "nothing to answer: give --prompt or --prompts"),
        (["--prompt", "a", "--out", "{file}"], "exists already"),
        (["--prompt", "a", "--kl"], "--kl needs --out"),
        (["--prompts", "{folder}/nope.jsonl"], "nope.jsonl"),
        (["--prompt", "a", "--base", "{folder}/nope"], "is not there; say where it is with --base"),
    ],
)
def test_what_is_refused(words, message, finished_run, tmp_path, capsys):
    file = tmp_path / "mine"
    file.write_text("mine")
    with pytest.raises(SystemExit) as end:
        generate(finished_run, *(word.format(file=file, folder=tmp_path) for word in words))
    assert end.value.code == 2
    assert message in capsys.readouterr().err
    assert file.read_text() == "mine"


def test_a_whole_model_has_no_reference(tiny_llama, capsys):
    with pytest.raises(SystemExit):
        generate(tiny_llama(), "--prompt", "a", "--reference")
    assert "holds a whole model" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        generate(tiny_llama(), "--prompt", "a", "--kl", "--out", "nowhere.jsonl")
    assert "holds a whole model" in capsys.readouterr().err


def test_how_far_an_answer_lies_from_the_base(finished_run, tiny_llama, tiny_tokenizer, tmp_path):
    """As plain Hugging Face computes it, prompt by prompt."""
    words = [word for prompt in (PROMPT, "Hi") for word in ("--prompt", prompt)]
    out = tmp_path / "out.jsonl"
    generate(finished_run, *words, "--max_new_tokens", "8", "--kl", "--temperature", "0", "--out", str(out))
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    policy = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_llama()), finished_run).eval()
    for row in rows:
        prompt = torch.tensor([encode(row["prompt"], tiny_tokenizer)])
        answer = policy.generate(input_ids=prompt, max_new_tokens=8, do_sample=False)[0, prompt.shape[1] :]
        text = torch.cat([prompt, answer[None]], 1)

        def logprob(text=text, answer=answer):
            logits = policy(text).logits[0, -len(answer) - 1 : -1]
            return float(logits.log_softmax(-1).gather(1, answer[:, None]).sum())

        with torch.no_grad():
            moved = logprob()
            with policy.disable_adapter():
                moved -= logprob()
        assert row["length"] == len(answer)
        assert row["kl"] == pytest.approx(moved, abs=2e-4)
        assert abs(moved) > 0.01


def test_prompts_of_the_embedded_world(finished_run, tmp_path):
    words = ["--prompts", "embedded:prompts_test.jsonl", "--max_new_tokens", "1", "--batch_size", "143"]
    generate(finished_run, *words, "--out", str(tmp_path / "out.jsonl"))
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 143
