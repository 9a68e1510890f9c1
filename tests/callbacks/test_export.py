"""What a run leaves to be used."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from lit_rlhf.callbacks.export import AdapterExport
from lit_rlhf.models.building import build_backbone
from lit_rlhf.models.options import BackboneConfig, LoraOptions

TOKENS = torch.tensor([[1, 20, 31, 42]])


def test_the_adapter_loads_with_plain_peft_and_gives_the_same_numbers(
    train, policy, backbone, tiny_llama, tiny_tokenizer, tmp_path
):
    train(policy(), AdapterExport(tokenizer=tiny_tokenizer))
    plain = AutoModelForCausalLM.from_pretrained(tiny_llama())
    base = plain(TOKENS).logits
    loaded = PeftModel.from_pretrained(plain, tmp_path)(TOKENS).logits
    backbone.eval()
    ours = backbone.base(TOKENS).logits
    torch.testing.assert_close(loaded, ours, atol=1e-5, rtol=1e-5)
    assert (loaded - base).abs().max() > 0.01
    assert AutoTokenizer.from_pretrained(tmp_path).chat_template == tiny_tokenizer.chat_template


def test_the_readme_of_an_adapter_names_its_base(train, policy, tiny_llama, tiny_tokenizer, tmp_path):
    train(policy(), AdapterExport(tokenizer=tiny_tokenizer))
    text = (tmp_path / "README.md").read_text()
    assert f'from_pretrained("{tiny_llama()}")' in text
    assert "finished after 3 steps" in text
    assert "lit-rlhf generate" in text


def test_a_whole_model_is_written_whole(train, policy, tiny_llama, tiny_tokenizer, tmp_path):
    config = BackboneConfig(str(tiny_llama()), lora=LoraOptions(enabled=False))
    whole = build_backbone(config, reference="none")
    train(policy(model=whole), AdapterExport(tokenizer=tiny_tokenizer))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    for (name, weight), ours in zip(loaded.named_parameters(), whole.base.parameters(), strict=True):
        assert torch.equal(weight, ours), name
    assert "A whole model" in (tmp_path / "README.md").read_text()


def test_an_interrupted_run_leaves_what_it_learnt(train, policy, tiny_tokenizer, tmp_path):
    with pytest.raises(OSError, match="disk"):
        train(policy(2, OSError("disk")), AdapterExport(tokenizer=tiny_tokenizer))
    assert (tmp_path / "adapter_model.safetensors").is_file()
    assert "interrupted after 2 steps (OSError)" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize(("step", "error"), [(0, OSError("at once")), (2, FloatingPointError("not finite"))])
def test_nothing_is_left_of_nothing_or_of_numbers_that_ran_away(step, error, train, policy, tiny_tokenizer, tmp_path):
    with pytest.raises(type(error)):
        train(policy(step, error), AdapterExport(tokenizer=tiny_tokenizer))
    assert list(tmp_path.iterdir()) == []


def test_another_folder(train, policy, tiny_tokenizer, tmp_path):
    train(policy(), AdapterExport(str(tmp_path / "a" / "b"), tiny_tokenizer))
    assert (tmp_path / "a" / "b" / "adapter_config.json").is_file()
