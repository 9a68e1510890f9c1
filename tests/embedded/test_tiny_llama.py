import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from lit_rlhf.embedded import ASSETS
from lit_rlhf.embedded.facts import facts_by_question
from lit_rlhf.embedded.rows import prompt_rows
from lit_rlhf.embedded.tiny_llama import make_model, make_tokenizer, train
from lit_rlhf.embedded.world import is_right, true_score

FOLDER = ASSETS / "tiny_llama"


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(FOLDER)


def test_shipped_tokenizer_is_the_one_that_the_script_makes(tokenizer: PreTrainedTokenizerBase):
    made = make_tokenizer()
    assert (
        json.loads(made.backend_tokenizer.to_str())["model"]
        == json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    )
    assert made.chat_template == tokenizer.chat_template
    assert made.special_tokens_map == tokenizer.special_tokens_map


def test_chat_template_by_hand(tokenizer: PreTrainedTokenizerBase):
    prompt = [{"role": "system", "content": "Answer the question."}, {"role": "user", "content": "Home of a pig?"}]
    text = "<|bos|><|system|>Answer the question.<|end|><|user|>Home of a pig?<|end|>"
    assert tokenizer.apply_chat_template(prompt, tokenize=False) == text
    assert tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True) == text + "<|assistant|>"
    answered = [*prompt, {"role": "assistant", "content": "Sty."}]
    assert tokenizer.apply_chat_template(answered, tokenize=False) == text + "<|assistant|>Sty.<|end|>"


def test_template_marks_what_the_assistant_says(tokenizer: PreTrainedTokenizerBase):
    messages = [{"role": "user", "content": "Home of a pig?"}, {"role": "assistant", "content": "A sty."}]
    encoded = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    said = [token for token, mask in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if mask]
    assert tokenizer.decode(said) == "A sty.<|end|>"


def test_any_text_survives_the_tokenizer(tokenizer: PreTrainedTokenizerBase):
    text = '  Zoë said:\n\t"What?" \u4f60\u597d \U0001f980 '
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert len({tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id}) == 3


def test_a_few_steps_of_training_teach_something():
    tokenizer = make_tokenizer(num_conversations=200)
    losses = [loss for _, loss in train(make_model(tokenizer), tokenizer, num_steps=12, batch_size=8)]
    assert losses[-1] < losses[0] - 0.5


def test_shipped_model_gives_mixed_answers_to_held_out_questions(tokenizer: PreTrainedTokenizerBase):
    model = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32)
    assert model.num_parameters() == 836_736
    prompts = [row["prompt"] for row in prompt_rows("test")]
    tokenizer.padding_side = "left"
    encoded = tokenizer.apply_chat_template(
        prompts, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
    )
    torch.manual_seed(0)
    generated = model.generate(**encoded, do_sample=True, top_k=0, max_new_tokens=64)
    responses = tokenizer.batch_decode(generated[:, encoded["input_ids"].shape[1] :], skip_special_tokens=True)
    facts = [facts_by_question()[prompt[-1]["content"]] for prompt in prompts]
    share_right = sum(map(is_right, facts, responses)) / len(facts)
    mean_score = sum(map(true_score, prompts, responses)) / len(facts)
    assert (generated[:, -1] <= tokenizer.eos_token_id).all()  # every answer has ended: padding or the end token
    assert 0.4 < share_right < 0.8
    assert 0.2 < mean_score < 1.2
