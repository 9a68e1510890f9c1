import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from lit_rlhf.callbacks.sampled_score import SampledScore, win_rate


class Scripted:
    """Stands for a LightningModule with a Backbone: gives the answers it was told to, and keeps what is logged."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, answers: list[str]) -> None:
        self.model, self.base = self, SimpleNamespace(generation_config=None)
        self.tokenizer, self.answers = tokenizer, answers
        self.asked: list[str] = []
        self.logged: dict[str, float] = {}

    def generate(self, prompts: list[list[int]], max_new_tokens: int, **options: Any) -> list[list[int]]:
        assert options["stop_tokens"] == [self.tokenizer.eos_token_id]
        self.asked = [self.tokenizer.decode(ids) for ids in prompts]
        return [self.tokenizer(text + "</s>", add_special_tokens=False)["input_ids"] for text in self.answers]

    def log(self, name: str, value: float) -> None:
        self.logged[name] = value


def num_words(prompt: list[dict[str, str]] | str, response: str) -> float:
    return len(response.split())


def trainer_that(fn: str) -> Any:
    return SimpleNamespace(state=SimpleNamespace(fn=fn))


@pytest.fixture
def prompts(tmp_path: Path) -> str:
    rows = [{"prompt": [{"role": "user", "content": "A?"}]}, {"prompt": "B?"}, {"prompt": "never asked"}]
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def test_scores_are_logged_beside_those_from_before_training(prompts: str, tiny_tokenizer: PreTrainedTokenizerBase):
    callback = SampledScore(num_words, prompts, num_prompts=2, tokenizer=tiny_tokenizer)
    module = Scripted(tiny_tokenizer, ["one", "one two three"])
    callback.on_validation_epoch_end(trainer_that("fit"), module)
    assert module.asked == ["<s><|user|>A?<|assistant|>", "<s>B?"]
    assert module.logged == {"val/sampled_score": 2.0, "val/sampled_win_rate": 0.5}
    module.answers = ["one two", "one two three"]
    callback.on_validation_epoch_end(trainer_that("fit"), module)
    assert module.logged == {"val/sampled_score": 2.5, "val/sampled_win_rate": 0.75}


def test_a_resumed_run_compares_with_the_same_beginning(prompts: str, tiny_tokenizer: PreTrainedTokenizerBase):
    before = SampledScore(num_words, prompts, num_prompts=2, tokenizer=tiny_tokenizer)
    before.on_validation_epoch_end(trainer_that("fit"), Scripted(tiny_tokenizer, ["one", "one"]))
    after = SampledScore(num_words, prompts, num_prompts=2, tokenizer=tiny_tokenizer)
    after.load_state_dict(before.state_dict())
    module = Scripted(tiny_tokenizer, ["one two", "one two"])
    after.on_validation_epoch_end(trainer_that("fit"), module)
    assert module.logged["val/sampled_win_rate"] == 1.0


def test_nothing_is_sampled_outside_of_fit(prompts: str, tiny_tokenizer: PreTrainedTokenizerBase):
    module = Scripted(tiny_tokenizer, [])
    SampledScore(num_words, prompts).on_validation_epoch_end(trainer_that("validate"), module)
    assert module.logged == {}


def test_win_rate_refuses_lists_of_unequal_length():
    with pytest.raises(ValueError, match="shorter"):
        win_rate([1.0, 2.0], [1.0])
