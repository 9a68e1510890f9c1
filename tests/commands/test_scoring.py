"""Rows to scores: those of plain transformers and PEFT, whatever else is scored beside them."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from datamodules.preference import PreferenceDataModule
from datamodules.sources import Row
from lit_rlhf.commands.scoring import NotFiniteError, Scored, Scorer
from lit_rlhf.models.heads.reward_model import RewardModel, build_reward_model, load_reward_model
from lit_rlhf.models.options import BackboneConfig, LoraOptions
from tests.tiny_vision import draw

CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello there."}]
ROWS = [
    {"prompt": "What is the capital of France?", "response": " Paris."},
    {"prompt": "What is the capital of France?", "chosen": " The capital is Paris.", "rejected": " No."},
    {"messages": CHAT},
    {"prompt": "Please tell me a short story.", "completion": " Once upon a time there was a little fox." * 3},
    {"prompt": "a", "completions": [{"completion": " b", "rank": 2}, {"completion": " c", "rank": 1}]},
]


def rows(contents=ROWS):
    return [Row(f"rows:{number}", "rows", content) for number, content in enumerate(contents, start=1)]


def make(folder, tokenizer, token_budget=4096, **settings):
    data = PreferenceDataModule(kind="graded", tokenizer=tokenizer, token_budget=token_budget, **settings)
    return Scorer(load_reward_model(folder), data.task(), token_budget)


@pytest.fixture(scope="module")
def scorer(reward_folders, tiny_tokenizer):
    return make(reward_folders(), tiny_tokenizer)


def numbers(scored: list[Scored]) -> list[list[float]]:
    return [one.scores for one in scored]


def test_scores_are_those_of_transformers_and_peft(scorer, reward_folders, tiny_llama, tiny_tokenizer):
    base = AutoModelForSequenceClassification.from_pretrained(tiny_llama(), num_labels=1)
    model = PeftModel.from_pretrained(base, reward_folders()).eval()
    text = tiny_tokenizer.apply_chat_template(CHAT, tokenize=False)
    tokens = (
        tiny_tokenizer("What is the capital of France? Paris.</s>")["input_ids"],
        tiny_tokenizer(text, add_special_tokens=False)["input_ids"],
    )
    expected = [model(torch.tensor([ids])).logits.item() for ids in tokens]
    (plain, _, chat, *_) = scorer(rows())
    assert [*plain.scores, *chat.scores] == pytest.approx(expected, abs=1e-5)
    assert len({round(score, 4) for score in expected}) == 2


@pytest.mark.parametrize("token_budget", [8, 60, 200])
def test_a_score_does_not_depend_on_what_stands_beside_it(scorer, reward_folders, tiny_tokenizer, token_budget):
    together = numbers(make(reward_folders(), tiny_tokenizer, token_budget)(rows()))
    assert list(map(len, together)) == [1, 2, 1, 1, 2]
    alone = [numbers(scorer([row]))[0] for row in rows()]
    for ours, theirs in zip(together, alone, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5)
    assert numbers(scorer(rows()[::-1]))[::-1] == [pytest.approx(theirs, abs=1e-5) for theirs in alone]


def test_a_forward_pass_keeps_to_the_budget(reward_folders, tiny_tokenizer, monkeypatch):
    """A row that is longer than the budget has a pass to itself."""
    scorer, sizes, plain = make(reward_folders(), tiny_tokenizer, 60), [], RewardModel.objective_scores

    def noted(model, forest):
        sizes.append((forest.num_tokens, len(forest.ends)))
        return plain(model, forest)

    monkeypatch.setattr(RewardModel, "objective_scores", noted)
    scorer(rows())
    assert sum(num_responses for _, num_responses in sizes) == 7
    assert 1 < len(sizes) < 5
    assert all(num_tokens <= 60 or num_responses == 1 for num_tokens, num_responses in sizes)


def test_responses_are_in_the_order_of_the_row(scorer):
    listed = [{"prompt": "a", "completion": completion} for completion in (" b", " c")]
    assert numbers(scorer(rows()))[-1] == pytest.approx([score for (score,) in numbers(scorer(rows(listed)))], abs=1e-5)


def test_a_lost_row_keeps_its_place(scorer):
    contents = [ROWS[0], {"prompt": "a", "response": " "}, {"prompt": "a"}, {"rubbish": 1}, ROWS[2]]
    scored = scorer(rows(contents))
    assert [one.row.address for one in scored] == [f"rows:{number}" for number in range(1, 6)]
    assert [one.error is None for one in scored] == [True, False, False, False, True]
    assert scored[-1].scores == pytest.approx(numbers(scorer(rows()))[2], abs=1e-5)
    assert scored[1].scores == []


def test_what_is_cut_is_said(reward_folders, tiny_tokenizer):
    scored = make(reward_folders(), tiny_tokenizer, max_length=12)(rows([ROWS[0], {"prompt": "a", "response": " b"}]))
    assert [one.truncated for one in scored] == [("prompt",), ()]
    dropped = make(reward_folders(), tiny_tokenizer, max_length=12, truncation="drop")(rows(ROWS[:1]))
    assert dropped[0].error.reason == "too_long"


def test_several_objectives_make_the_score(reward_folders, tiny_tokenizer):
    scored = make(reward_folders(good=1.0, short=-0.5), tiny_tokenizer)(rows())
    assert list(scored[0].objectives) == ["good", "short"]
    for one in scored:
        sums = [good - 0.5 * short for good, short in zip(*one.objectives.values(), strict=True)]
        assert one.scores == pytest.approx(sums, abs=1e-5)


def test_normalised_scores(scorer, reward_folders, tiny_tokenizer):
    assert scorer.normalise([0.5, 4.5, -1.5]) == [0.0, 2.0, -1.0]
    with pytest.raises(ValueError, match="does not know how its scores spread"):
        make(reward_folders(measured=False), tiny_tokenizer).normalise([1.0])


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_model_that_gives_no_number(reward_folders, tiny_tokenizer, number):
    scorer = make(reward_folders(good=1.0, short=0.0), tiny_tokenizer)
    scorer.model.score.weight[1, 0] = number
    for one in scorer(rows()):
        assert isinstance(one.error, NotFiniteError)
        assert one.scores == []


def test_a_token_that_the_model_lacks(reward_folders, tiny_tokenizer):
    scorer = make(reward_folders(), tiny_tokenizer)
    scorer.model.base.set_input_embeddings(torch.nn.Embedding(300, 64))
    ids = [{"input_ids": [1, 70, token], "completion_mask": [0, 0, 1]} for token in (299, 300)]
    fine, wrong = scorer(rows(ids))
    assert fine.error is None
    assert "token id 300 lies outside the model's embedding of 300 rows" in str(wrong.error)


def test_a_missing_chat_template_names_the_row(reward_folders, tiny_tokenizer):
    bare = deepcopy(tiny_tokenizer)
    bare.chat_template = None
    with pytest.raises(ValueError, match=r"rows:3: .*chat template"):
        make(reward_folders(), bare)(rows())


def test_rows_with_pictures(tiny_llava, tmp_path):
    """The same text under two pictures, by a reward model that reads them; a row without beside them."""
    torch.manual_seed(0)
    config = BackboneConfig(str(tiny_llava), lora=LoraOptions(r=2, init="gaussian"))
    model = build_reward_model(config, {"score": 1.0})
    model.save(tmp_path)
    seen = [draw(tmp_path / f"{colour}.png", colour=colour) for colour in ("red", "blue", "red")]
    shown = [{"prompt": "<image>What?", "response": " Red.", "images": [str(file.name)]} for file in seen]
    contents = [*shown, {"prompt": "What?", "response": " Red."}]
    tokenizer = AutoTokenizer.from_pretrained(tiny_llava)
    red, blue, again, blind = make(tmp_path, tokenizer, processor=str(tiny_llava), image_dir=str(tmp_path))(
        rows(contents)
    )
    assert red.scores == pytest.approx(again.scores, abs=1e-6)
    assert len({round(one.scores[0], 4) for one in (red, blue, blind)}) == 3
    from_training = PreferenceDataModule(
        train=shown[:1], kind="graded", tokenizer=tokenizer, processor=str(tiny_llava), image_dir=str(tmp_path)
    )
    (batch,) = from_training.steps("train")
    (micro_batch,) = batch.micro_batches
    with torch.no_grad():
        assert load_reward_model(tmp_path).scores(micro_batch.forest).tolist() == pytest.approx(red.scores, abs=1e-5)
