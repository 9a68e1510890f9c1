"""``lit-rlhf score``: files in, scores out."""

from __future__ import annotations

import json
import shutil
from argparse import ArgumentParser

import pytest
import torch
import yaml
from transformers import AutoModelForSequenceClassification

from lit_rlhf.cli import main
from lit_rlhf.commands import score as command

SINGLE = {"prompt": "What is the capital of France?", "response": " Paris."}
PAIR = {"prompt": "What is the capital of France?", "chosen": " Paris.", "rejected": " No."}


def score(*words):
    main(["score", *map(str, words)])


@pytest.fixture
def file(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in (SINGLE, PAIR)))
    return file


def lines(text):
    return [json.loads(line) for line in text.splitlines()]


def test_files_to_a_file(reward_folders, file, tmp_path, capsys):
    """Options may stand anywhere, and files come in their order."""
    other = tmp_path / "other.csv"
    other.write_text("prompt,response\nWhat is the capital of France?, Paris.\n")
    out = tmp_path / "scores.jsonl"
    score(reward_folders(), "--out", out, file, "--token_budget", 50, other)
    single, pair, third = lines(out.read_text())
    assert [list(line) for line in (single, pair, third)] == [
        ["row", "score"],
        ["row", "chosen", "rejected"],
        ["row", "score"],
    ]
    assert [line["row"].rpartition("/")[2] for line in (single, pair, third)] == [
        "rows.jsonl:1",
        "rows.jsonl:2",
        "other.csv:1",
    ]
    assert single["score"] == pytest.approx(pair["chosen"], abs=1e-5) == pytest.approx(third["score"], abs=1e-5)
    assert abs(pair["chosen"] - pair["rejected"]) > 1e-3
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines()[-1].startswith("3 rows, 4 responses; mean ")
    assert said.err.splitlines()[-1].endswith(f"rows/s: {out}")


def test_one_quick_score_and_lines_on_the_screen(reward_folders, file, capsys):
    score(reward_folders(), file)
    single, _ = lines(capsys.readouterr().out)
    score(reward_folders(), "--prompt", SINGLE["prompt"], "--response", SINGLE["response"])
    (quick,) = lines(capsys.readouterr().out)
    assert quick == {"score": pytest.approx(single["score"], abs=1e-5)}
    score(reward_folders(), "--prompt", SINGLE["prompt"], "--response", SINGLE["response"], "--normalise")
    (quick,) = lines(capsys.readouterr().out)
    assert quick == {"score": pytest.approx((single["score"] - 0.5) / 2, abs=1e-5)}


def test_several_objectives(reward_folders, file, capsys):
    score(reward_folders(good=1.0, short=-0.5), file)
    single, pair = lines(capsys.readouterr().out)
    good, short = (single["objectives"][name]["score"] for name in ("good", "short"))
    assert single["score"] == pytest.approx(good - 0.5 * short, abs=1e-5)
    assert list(pair["objectives"]["good"]) == ["chosen", "rejected"]


def test_a_classifier_of_plain_transformers(tiny_llama, tiny_tokenizer, file, tmp_path, capsys):
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(tiny_llama(), num_labels=1).eval()
    model.save_pretrained(tmp_path / "classifier")
    score(tmp_path / "classifier", "--tokenizer", tiny_llama(), file)
    tokens = tiny_tokenizer(SINGLE["prompt"] + SINGLE["response"] + "</s>", return_tensors="pt")["input_ids"]
    assert lines(capsys.readouterr().out)[0]["score"] == pytest.approx(model(tokens).logits.item(), abs=1e-5)


def test_how_the_model_is_held_and_the_text_is_written(reward_folders, tiny_llama, tmp_path, capsys):
    row = tmp_path / "row.jsonl"
    row.write_text(json.dumps({"question": "Hi", "answer": "Hello."}))
    moved = tmp_path / "moved"
    shutil.copytree(reward_folders(), moved)
    config = json.loads((moved / "adapter_config.json").read_text())
    (moved / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "/gone"}))

    def of(folder, *words):
        score(folder, row, *words)
        return lines(capsys.readouterr().out)[0]["score"]

    plain = of(reward_folders())
    assert of(moved, "--base", tiny_llama()) == plain
    assert of(reward_folders(), "--dtype", "bfloat16") == pytest.approx(plain, abs=0.1)
    assert of(reward_folders(), "--dtype", "bfloat16") != plain
    template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    assert abs(of(reward_folders(), "--chat_template", template) - plain) > 1e-3


def test_embedded_files_have_names(reward_folders, capsys):
    score(reward_folders(), "embedded:dpo_validation.jsonl", "--max_length", 16)
    assert len(lines(capsys.readouterr().out)) == 256


def test_rows_that_cannot_be_used(reward_folders, tmp_path, capsys):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(SINGLE) + '\n{"prompt": "a", "response": ""}\nrubbish\n' + json.dumps(SINGLE) + "\n")
    out = tmp_path / "scores.jsonl"
    with pytest.raises(SystemExit) as end:
        score(reward_folders(), file, "--out", out)
    assert end.value.code == 2
    assert "rows.jsonl:2: 'response' has an empty response; mend the row, or leave" in capsys.readouterr().err
    assert len(lines(out.read_text())) == 1
    score(reward_folders(), file, "--on_bad_row", "drop")
    said = capsys.readouterr()
    assert [line.get("dropped") for line in lines(said.out)] == [None, "empty_response", "broken_json", None]
    assert "; dropped broken_json 1; dropped empty_response 1; " in said.err


def test_rows_that_are_too_long(reward_folders, file, capsys):
    """They are no fault of the data, so the command goes on without being told to."""
    score(reward_folders(), file, "--max_length", 8, "--truncation", "drop")
    assert [line["dropped"] for line in lines(capsys.readouterr().out)] == ["too_long", "too_long"]
    score(reward_folders(), file, "--max_length", 8)
    assert all("prompt" in line["truncated"] for line in lines(capsys.readouterr().out))


def test_a_model_that_gives_no_number(reward_folders, file, tmp_path, capsys):
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "broken"
    shutil.copytree(reward_folders(), folder)
    weights = load_file(folder / "adapter_model.safetensors")
    name = next(name for name in weights if name.endswith("lora_B.weight"))
    save_file({**weights, name: weights[name].fill_(float("nan"))}, folder / "adapter_model.safetensors")
    with pytest.raises(SystemExit):
        score(folder, file, "--on_bad_row", "drop")
    assert "rows.jsonl:1: the model gives it the score [nan]" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "nothing to score: give files, or --prompt with --response, or --serve"),
        (["--prompt", "a"], "nothing to score"),
        (["--prompt", "a", "--response", "b", "{file}"], "nothing to score"),
        (["--serve", "{file}"], "nothing to score"),
        (["--serve", "--normalise"], "do not go with --serve"),
        (["--serve", "--out", "{folder}/new"], "do not go with --serve"),
        (["{file}", "--out", "{file}"], "exists already"),
        (["{folder}/nope.jsonl"], "nope.jsonl"),
        (["{file}", "--max_length", "1"], "max_length is 1"),
        (["{file}", "--token_budget", "0"], "token_budget is 0"),
        (["--serve", "--host", "0.0.0.0"], "is open to other machines"),
        (["{file}", "--tokenizer", "{folder}"], "holds no tokenizer; --tokenizer names"),
    ],
)
def test_what_is_refused(words, message, reward_folders, file, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("LIT_RLHF_TOKEN", raising=False)
    before = file.read_text()
    with pytest.raises(SystemExit) as end:
        score(reward_folders(), *(word.format(file=file, folder=tmp_path) for word in words))
    assert end.value.code == 2
    assert message in capsys.readouterr().err
    assert file.read_text() == before


def test_a_model_without_a_tokenizer_or_without_statistics(reward_folders, file, tmp_path, capsys):
    folder = tmp_path / "bare"
    shutil.copytree(reward_folders(), folder, ignore=shutil.ignore_patterns("tokenizer*", "*.jinja", "special*"))
    with pytest.raises(SystemExit):
        score(folder, file)
    assert f"{folder} holds no tokenizer; --tokenizer names the folder or hub name of one" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        score(reward_folders(measured=False), file, "--normalise", "--out", tmp_path / "scores.jsonl")
    assert "does not know how its scores spread" in capsys.readouterr().err
    assert not (tmp_path / "scores.jsonl").exists()


def test_a_language_model_is_no_reward_model(tiny_llama, file, capsys):
    with pytest.raises(SystemExit):
        score(tiny_llama(), file)
    assert "holds no score head" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("config", "words", "limits"),
    [
        (None, [], {"max_length": 1024, "truncation": "prompt_left"}),
        ({"max_length": 77, "truncation": "drop", "batch_size": 3}, [], {"max_length": 77, "truncation": "drop"}),
        ({"max_length": 77}, ["--max_length", "5"], {"max_length": 5, "truncation": "prompt_left"}),
        ({}, ["--truncation", "drop"], {"max_length": 1024, "truncation": "drop"}),
    ],
)
def test_rows_are_as_long_as_in_training_unless_said_otherwise(tmp_path, config, words, limits):
    if config is not None:
        data = {"class_path": "datamodules.PreferenceDataModule", "init_args": config}
        (tmp_path / "config.yaml").write_text(yaml.safe_dump({"data": data}))
    parser = ArgumentParser()
    command.add_arguments(parser)
    args = parser.parse_args([str(tmp_path), *words])
    assert command.limits(args.run, vars(args)) == limits
