"""What a run leaves to be used."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from lit_rlhf.callbacks.checkpoints import StepCheckpoint
from lit_rlhf.callbacks.export import AdapterExport, save_reward_tokenizer
from lit_rlhf.models.building import build_backbone
from lit_rlhf.models.heads.reward_model import load_reward_model
from lit_rlhf.models.options import BackboneConfig, LoraOptions
from lit_rlhf.types import Forest, Segment

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


def test_the_best_weights_by_a_metric(train, policy, tiny_tokenizer, tmp_path):
    """By the loss that falls the first state is the greatest one, not the last."""
    checkpoint = StepCheckpoint(tmp_path / "kept", monitor="val/loss", mode="max")
    options = {"enable_checkpointing": True, "val_check_interval": 1, "num_sanity_val_steps": 0}
    train(policy(), AdapterExport(tokenizer=tiny_tokenizer, weights="best"), checkpoint, **options)
    kept = torch.load(tmp_path / "kept" / "step-1.ckpt", weights_only=True)["state_dict"]
    written = load_file(tmp_path / "adapter_model.safetensors")
    assert len(written) > 5
    for name, weight in written.items():
        (ours,) = (value for key, value in kept.items() if key.replace(".policy", "").endswith(name[-60:]))
        assert torch.equal(ours, weight), name
    assert "step-1, the best by val/loss" in (tmp_path / "README.md").read_text()
    last = torch.load(tmp_path / "kept" / "last.ckpt", weights_only=True)["state_dict"]
    assert not all(torch.equal(last[name], kept[name]) for name in kept)


def test_the_best_is_refused_where_nothing_says_what_it_is(train, policy, tiny_tokenizer, tmp_path):
    with pytest.raises(ValueError, match=r"give trainer\.callbacks a StepCheckpoint"):
        train(policy(), AdapterExport(tokenizer=tiny_tokenizer, weights="best"))
    with pytest.raises(ValueError, match="weights is 'first'"):
        AdapterExport(weights="first")


def test_another_folder(train, policy, tiny_tokenizer, tmp_path):
    train(policy(), AdapterExport(str(tmp_path / "a" / "b"), tiny_tokenizer))
    assert (tmp_path / "a" / "b" / "adapter_config.json").is_file()


@torch.no_grad()
@pytest.mark.parametrize("enabled", [False, True])
def test_a_reward_model_is_left_with_all_that_scores_a_text(
    train, reward, tiny_llama, tiny_tokenizer, tmp_path, enabled
):
    ending = deepcopy(tiny_tokenizer)
    ending.pad_token = ending.eos_token
    module = reward(enabled, objectives={"score": 1.0})
    train(module, AdapterExport(tokenizer=ending))
    text = (tmp_path / "README.md").read_text()
    for word in ("A reward model", "finished after 3 steps", "num_labels=1, pad_token_id=1)", "score", "--normalise"):
        assert word in text
    assert AutoTokenizer.from_pretrained(tmp_path).pad_token == "<s>"
    assert ending.pad_token == ending.eos_token
    if enabled:
        base = AutoModelForSequenceClassification.from_pretrained(tiny_llama(), num_labels=1, pad_token_id=1)
        theirs = PeftModel.from_pretrained(base, tmp_path)
    else:
        theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path)
        assert theirs.config.pad_token_id == 1
    padded = torch.tensor([[5, 20, 31, 2], [42, 2, 1, 1]])
    module.eval()
    wanted = module.model.scores(Forest.pack([[Segment(row, [False] * len(row))] for row in ([5, 20, 31, 2], [42, 2])]))
    mask = (padded != 1).long()
    torch.testing.assert_close(theirs.eval()(padded, attention_mask=mask).logits[:, 0], wanted, rtol=1e-5, atol=1e-5)
    again = load_reward_model(tmp_path)
    assert again.score.is_measured
    assert (again.score.mean, again.score.std) == (module.model.score.mean, module.model.score.std)


def test_an_interrupted_reward_model_is_left_too(train, reward, tiny_tokenizer, tmp_path, monkeypatch):
    module = reward()
    plain = module.training_step

    def failing(batch, batch_idx):
        if module.global_step == 2:
            raise OSError("disk")
        return plain(batch, batch_idx)

    monkeypatch.setattr(module, "training_step", failing)
    with pytest.raises(OSError, match="disk"):
        train(module, AdapterExport(tokenizer=tiny_tokenizer))
    assert "interrupted after 2 steps (OSError)" in (tmp_path / "README.md").read_text()
    assert load_reward_model(tmp_path).score.weight.shape == (1, 64)


def test_the_bias_of_a_head_is_told_to_those_who_cannot_have_it(reward, tiny_tokenizer, tmp_path):
    module = reward(objectives={"good": 2.0, "short": -1.0})
    module.configure_model()
    module.model.score.bias = torch.nn.Parameter(torch.tensor([0.5, 0.25]))
    module.model.save(tmp_path)
    text = save_reward_tokenizer(module.model, tiny_tokenizer, tmp_path, "made by hand")
    assert "their scores are lower by\n0.75." in text
    assert "num_labels=2, pad_token_id=0)" in text
    assert "State: made by hand." in text
