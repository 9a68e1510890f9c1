"""The folder of a reward model: read back as it was, by us, by transformers and by PEFT, with any pad token."""

from __future__ import annotations

import json

import pytest
import torch
from peft import AutoPeftModelForSequenceClassification, PeftModel
from safetensors import safe_open
from transformers import AutoModelForSequenceClassification, GPTNeoXConfig, GPTNeoXForCausalLM

from lit_rlhf.models.heads.reward_files import RewardFile, local_folder, read_reward_file
from lit_rlhf.models.heads.reward_model import build_reward_model, load_reward_model, wrap_reward_model
from lit_rlhf.models.options import BackboneConfig, LoraOptions
from lit_rlhf.types import Forest, Segment

PROMPT, CHOSEN, REJECTED = [7, 8, 9, 10], [11, 12, 13], [14, 15]
FOREST = Forest.pack([[Segment(PROMPT, [False] * 4), Segment(CHOSEN, [True] * 3, 0), Segment(REJECTED, [True] * 2, 0)]])


@pytest.fixture
def make(tiny_llama):
    """A reward model that has learnt something: its LoRA is no longer nothing."""

    def made(objectives=None, **options):
        torch.manual_seed(0)
        lora = LoraOptions(r=4, alpha=8, **options)
        model = build_reward_model(BackboneConfig(str(tiny_llama()), lora=lora), objectives or {"score": 1.0})
        for name, parameter in model.named_parameters():
            if "lora_B.reward" in name:
                parameter.data.add_(0.1 * torch.randn_like(parameter))
        return model.eval()

    return made


def scores_of(classifier, pad=0):
    """What transformers says of both responses, padded into one batch."""
    rows = [PROMPT + CHOSEN, PROMPT + REJECTED]
    width = max(map(len, rows))
    tokens = torch.tensor([row + [pad] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    with torch.no_grad():
        return classifier.eval()(tokens, attention_mask=mask).logits.float()


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"use_dora": True}, {"use_rslora": True}, {"init": "pissa"}])
def test_an_adapter_scores_the_same_everywhere(options, make, tiny_llama, tmp_path):
    model = make(**options)
    wanted = model.scores(FOREST)
    model.save(tmp_path)
    torch.testing.assert_close(load_reward_model(tmp_path).scores(FOREST), wanted, rtol=1e-5, atol=1e-5)
    base = AutoModelForSequenceClassification.from_pretrained(tiny_llama(), num_labels=1, pad_token_id=0)
    peft = PeftModel.from_pretrained(base, tmp_path)
    torch.testing.assert_close(scores_of(peft)[:, 0], wanted, rtol=1e-5, atol=1e-5)
    merged = peft.merge_and_unload()
    torch.testing.assert_close(scores_of(merged)[:, 0], wanted, rtol=1e-5, atol=1e-5)
    auto = AutoPeftModelForSequenceClassification.from_pretrained(tmp_path, num_labels=1, pad_token_id=0)
    torch.testing.assert_close(scores_of(auto)[:, 0], wanted, rtol=1e-5, atol=1e-5)


def test_the_adapter_file_holds_the_head_and_nothing_of_the_base(make, tmp_path):
    make().save(tmp_path)
    with safe_open(tmp_path / "adapter_model.safetensors", "pt") as file:
        keys = set(file.keys())
    assert "base_model.model.score.weight" in keys
    assert all("lora_" in key for key in keys - {"base_model.model.score.weight"})
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["task_type"] == "SEQ_CLS"
    assert config["modules_to_save"] == ["classifier", "score"]


@torch.no_grad()
def test_a_whole_model_is_a_sequence_classifier(make, tmp_path):
    model = make(enabled=False)
    wanted = model.scores(FOREST)
    model.save(tmp_path)
    classifier = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert (type(classifier).__name__, classifier.config.num_labels) == ("LlamaForSequenceClassification", 1)
    torch.testing.assert_close(scores_of(classifier)[:, 0], wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(load_reward_model(tmp_path).scores(FOREST), wanted, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_bfloat16_is_a_hundredth_off_at_most(make, tmp_path):
    model = make(enabled=False)
    wanted = model.scores(FOREST)
    model.save(tmp_path)
    half = load_reward_model(tmp_path, dtype="bfloat16").scores(FOREST)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, wanted, rtol=1e-2, atol=1e-2)
    assert not torch.equal(half, wanted)


@torch.no_grad()
def test_a_kind_of_model_with_other_names_inside(tmp_path):
    config = GPTNeoXConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64
    )
    GPTNeoXForCausalLM(config).save_pretrained(tmp_path / "base")
    lora = LoraOptions(enabled=False)
    model = build_reward_model(BackboneConfig(str(tmp_path / "base"), lora=lora), {"score": 1.0}).eval()
    wanted = model.scores(FOREST)
    model.save(tmp_path / "run")
    classifier = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run", pad_token_id=0)
    torch.testing.assert_close(scores_of(classifier)[:, 0], wanted, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_objectives_and_spread_come_back(make, tmp_path):
    model = make({"helpful": 0.7, "short": 0.3})
    model.score.measure(0.25, 1.5, 12)
    wanted = model.scores(FOREST, normalise=True)
    model.save(tmp_path)
    known = read_reward_file(tmp_path)
    assert known == RewardFile({"helpful": 0.7, "short": 0.3}, 0.25, 1.5, 12)
    loaded = load_reward_model(tmp_path)
    torch.testing.assert_close(loaded.scores(FOREST, normalise=True), wanted, rtol=1e-5, atol=1e-5)
    assert loaded.objective_scores(FOREST).shape == (2, 2)


@torch.no_grad()
def test_a_bias_that_a_head_came_with_is_kept(make, tmp_path):
    model = make()
    model.score.bias = torch.nn.Parameter(torch.tensor([0.75]))
    wanted = model.scores(FOREST)
    model.save(tmp_path)
    torch.testing.assert_close(load_reward_model(tmp_path).scores(FOREST), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("content", ["{", '{"objectives": 3}', '{"objectives": {"a": 1}, "colour": 1}', "[]"])
def test_a_damaged_file_is_named(content, tmp_path):
    (tmp_path / "reward_model.json").write_text(content)
    with pytest.raises(ValueError, match=r"reward_model\.json is not what this package writes"):
        read_reward_file(tmp_path)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match="no folder"):
        local_folder(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="'some-name' is no folder here, and the hub does not give it"):
        local_folder("some-name")


@torch.no_grad()
def test_a_model_of_the_users_is_saved_alike(tiny_llama, tmp_path):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    mine = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_llama()), LoraConfig(task_type="CAUSAL_LM", r=2))
    model = wrap_reward_model(mine, {"score": 1.0}).eval()
    wanted = model.scores(FOREST)
    model.save(tmp_path)
    torch.testing.assert_close(load_reward_model(tmp_path).scores(FOREST), wanted, rtol=1e-5, atol=1e-5)
