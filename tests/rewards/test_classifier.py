"""Hugging Face sequence classifiers: the logit of one row alone, whatever stands beside it and whatever pads it."""

from __future__ import annotations

from shutil import copytree

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from lit_rlhf.rewards.classifier import Classifier

ROWS = [[2, 5, 6, 3], [2, 9, 3], [2, 5, 6, 7, 8, 9, 10, 3], [2, 3]]


def wanted(folder, rows, output=0, **options):
    """Logits of rows one by one, by transformers itself."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    if model.config.model_type == "llama":
        model.config.pad_token_id = 300  # in no row: transformers would read the token before it
    with torch.no_grad():
        return [float(model(torch.tensor([row]), **options).logits[0, output]) for row in rows]


@pytest.mark.parametrize("kind", ["bert", "roberta", "deberta-v2", "modernbert", "llama", "gpt2", "distilbert"])
@pytest.mark.parametrize("token_budget", [1, 10, 1000])
@torch.no_grad()
def test_a_row_has_its_own_logit_in_every_batch(kind, token_budget, tiny_classifier):
    folder = tiny_classifier(kind, num_labels=1)
    found = Classifier(str(folder))([{"input_ids": row} for row in ROWS], 0, token_budget)
    assert found == pytest.approx(wanted(folder, ROWS), abs=1e-5)
    assert len({round(score, 4) for score in found}) == len(ROWS)


@pytest.mark.parametrize("pad", [None, 3, 0, 9])
@torch.no_grad()
def test_a_pad_token_that_ends_texts_does_no_harm(pad, tiny_classifier):
    folder = tiny_classifier("llama", num_labels=1)
    rows = [*ROWS, [2, 0, 1, 3], [4, 0]]
    found = Classifier(str(folder))([{"input_ids": row} for row in rows], pad, 1000)
    assert found == pytest.approx(wanted(folder, rows), abs=1e-5)


@torch.no_grad()
def test_types_of_tokens_reach_the_model(tiny_classifier):
    folder = tiny_classifier("bert", num_labels=1)
    types = [[0, 0, 1, 1], [0, 1, 1]]
    rows = [{"input_ids": ids, "token_type_ids": one} for ids, one in zip(ROWS, types, strict=False)]
    found = Classifier(str(folder))(rows, 0, 1000)
    alone = [
        wanted(folder, [row["input_ids"]], token_type_ids=torch.tensor([row["token_type_ids"]]))[0] for row in rows
    ]
    assert found == pytest.approx(alone, abs=1e-5)
    assert found != pytest.approx(wanted(folder, ROWS[:2]), abs=1e-3)


@torch.no_grad()
def test_types_that_a_model_does_not_read_are_left_out(tiny_classifier):
    folder = tiny_classifier("distilbert", num_labels=1)
    rows = [{"input_ids": row, "token_type_ids": [1] * len(row)} for row in ROWS]
    assert Classifier(str(folder))(rows, 0, 1000) == pytest.approx(wanted(folder, ROWS), abs=1e-5)


@torch.no_grad()
def test_one_of_several_labels_is_the_score(tiny_classifier):
    folder = tiny_classifier("bert", id2label={0: "bad", 1: "good", 2: "odd"}, label2id={"bad": 0, "good": 1, "odd": 2})
    for label, output in (("good", 1), (2, 2), ("bad", 0)):
        found = Classifier(str(folder), label)([{"input_ids": row} for row in ROWS], 0, 1000)
        assert found == pytest.approx(wanted(folder, ROWS, output), abs=1e-5)
    for label in (None, "fine", 3, -1):
        with pytest.raises(ValueError, match=rf"label is {label!r}, and the classifier '.*' has bad, good, odd; name"):
            Classifier(str(folder), label)


def test_it_is_frozen_and_evaluates(tiny_classifier):
    model = Classifier(str(tiny_classifier("bert", num_labels=1))).module
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_how_long_a_text_may_be(tiny_classifier):
    assert Classifier(str(tiny_classifier("bert", num_labels=1))).max_length == 48
    roberta = Classifier(str(tiny_classifier("roberta", num_labels=1)))
    assert roberta.max_length == 47  # positions begin behind that of the padding, 0 here
    with torch.no_grad():
        roberta([{"input_ids": [5] * 47}], 0, 1000)


def test_what_is_no_classifier_is_refused(tiny_llama, tmp_path):
    with pytest.raises(ValueError, match=r"is no reward model: it is a LlamaForCausalLM without a head"):
        Classifier(str(tiny_llama()), "LABEL_0")
    with pytest.raises(ValueError, match="cannot be loaded"):
        Classifier(str(tmp_path))
    copytree(tiny_llama(), tmp_path / "headless")
    file = tmp_path / "headless" / "config.json"
    file.write_text(file.read_text().replace("LlamaForCausalLM", "LlamaForSequenceClassification"))
    with pytest.raises(ValueError, match=r"is no reward model: its checkpoint lacks score\.weight"):
        Classifier(str(tmp_path / "headless"), "LABEL_0")
    with pytest.raises(ValueError, match="no folder"):
        Classifier(str(tmp_path / "none"))


@torch.no_grad()
def test_four_bits(tiny_classifier):
    folder = str(tiny_classifier("bert", num_labels=1, hidden_size=64, intermediate_size=128))
    whole, quarter = Classifier(folder), Classifier(folder, quantization="nf4")
    rows = [{"input_ids": row} for row in ROWS]
    assert quarter.module.is_loaded_in_4bit
    assert quarter(rows, 0, 1000) == pytest.approx(whole(rows, 0, 1000), abs=1.0)
    assert quarter(rows, 0, 1000) != whole(rows, 0, 1000)
