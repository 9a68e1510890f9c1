"""Folders of models with a value head: what is written, every form that is read, and what is refused."""

from __future__ import annotations

import json
import logging
import shutil
import warnings

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForSequenceClassification,
    MixtralConfig,
    MixtralForCausalLM,
)

from lit_rlhf import AutoModelForCausalLMWithValueHead
from lit_rlhf.models.heads.value_files import HEAD_FILES

TOKENS = torch.tensor([[5, 9, 13, 2, 44, 21, 8], [30, 3, 17, 50, 6, 11, 29]])
HEAD = {"v_head.summary.weight": torch.linspace(-1, 1, 64)[None], "v_head.summary.bias": torch.tensor([0.5])}
FRESH = "holds no value head"


@pytest.fixture
def base(tiny_llama):
    return tiny_llama()


def load(folder, **options):
    """What is loaded, which no fresh head may be part of."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=f".*{FRESH}")
        return AutoModelForCausalLMWithValueHead.from_pretrained(folder, **options)


def with_head(model):
    wrapped = AutoModelForCausalLMWithValueHead(model)
    wrapped.v_head.load_state_dict({key.removeprefix("v_head."): value for key, value in HEAD.items()})
    return wrapped.eval()


@pytest.fixture
def whole(base):
    return with_head(AutoModelForCausalLM.from_pretrained(base))


@pytest.fixture
def adapted(base):
    torch.manual_seed(3)
    lora = LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", init_lora_weights=False)
    return with_head(get_peft_model(AutoModelForCausalLM.from_pretrained(base), lora))


def check(folder, expected, **options):
    """The folder gives the same values, in evaluation mode."""
    found = load(folder, **options)
    assert not any(module.training for module in found.modules())
    assert torch.equal(found.v_head.summary.weight, expected.v_head.summary.weight)
    assert torch.equal(found.values(TOKENS), expected.values(TOKENS))
    return found


@pytest.mark.parametrize("size", ["50GB", "50KB"])
def test_a_whole_model(whole, tmp_path, size):
    whole.save_pretrained(tmp_path, max_shard_size=size)
    assert (tmp_path / "model.safetensors.index.json").is_file() == (size == "50KB")
    assert not list(tmp_path.glob("*.bin"))
    if size == "50GB":
        assert set(load_file(tmp_path / "model.safetensors")) == set(whole.state_dict())
    found = check(tmp_path, whole)
    assert all(parameter.requires_grad for parameter in found.parameters())
    plain = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(plain(TOKENS).logits, whole(TOKENS)[0]), "for others it is a language model"


def test_tied_weights_and_experts(tmp_path):
    shape = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 32, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "num_local_experts": 2, "tie_word_embeddings": True}
    model = with_head(MixtralForCausalLM(MixtralConfig(**shape, **heads)).eval())
    model.save_pretrained(tmp_path)
    assert not any("experts.gate_up" in key for key in load_file(tmp_path / "model.safetensors")), "names in the wild"
    check(tmp_path, model)


def test_a_bfloat16_model_keeps_a_float32_head(base, tmp_path):
    model = with_head(AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16))
    model.save_pretrained(tmp_path)
    found = check(tmp_path, model)
    assert found.dtype == torch.bfloat16
    assert load(tmp_path, dtype=torch.float32).dtype == torch.float32


def test_weights_from_elsewhere_are_written(whole, tmp_path):
    gathered = {key: 2 * value for key, value in whole.state_dict().items()}
    whole.save_pretrained(tmp_path, state_dict=gathered)
    found = load(tmp_path).state_dict()
    assert all(torch.equal(found[key], value) for key, value in gathered.items())


@pytest.mark.parametrize("name", ["default", "policy"])
def test_an_adapter(base, adapted, tmp_path, name):
    if name == "policy":
        adapted.pretrained_model.add_adapter(name, adapted.pretrained_model.peft_config["default"])
        adapted.pretrained_model.set_adapter(name)
    adapted.eval().save_pretrained(tmp_path)
    files = {file.name for file in tmp_path.iterdir()}
    assert files - {"README.md"} == {"adapter_config.json", "adapter_model.safetensors", *HEAD_FILES}
    for file in HEAD_FILES:
        saved = load_file(tmp_path / file)
        assert set(saved) == set(HEAD)
        assert all(torch.equal(saved[key], HEAD[key]) for key in HEAD)
    found = check(tmp_path, adapted)
    trained = {name for name, parameter in found.named_parameters() if parameter.requires_grad}
    assert trained == {"v_head.summary.weight", "v_head.summary.bias"}
    again = check(base, adapted, adapter=tmp_path, is_trainable=True)
    assert any("lora_A" in name and parameter.requires_grad for name, parameter in again.named_parameters())


def test_an_adapter_on_a_model_with_a_head(whole, adapted, tmp_path):
    whole.save_pretrained(tmp_path / "base")
    adapted.pretrained_model.save_pretrained(tmp_path / "adapter")
    check(tmp_path / "base", adapted, adapter=str(tmp_path / "adapter"))


def test_a_folder_of_old_trl(base, whole, tmp_path):
    shutil.copy(base / "config.json", tmp_path)
    torch.save(whole.state_dict(), tmp_path / "pytorch_model.bin")
    check(tmp_path, whole)


@pytest.mark.parametrize("file", ["pytorch_model.bin", "value_head.bin", "value_head.safetensors", "model.safetensors"])
def test_adapters_of_trl_and_llama_factory(adapted, tmp_path, file):
    adapted.pretrained_model.save_pretrained(tmp_path)
    head = {key: value.clone() for key, value in HEAD.items()}
    (save_file if file.endswith("safetensors") else torch.save)(head, tmp_path / file)
    check(tmp_path, adapted)


@pytest.mark.parametrize("is_adapter", [False, True])
def test_from_the_cache_of_the_hub(whole, adapted, base, tmp_path, is_adapter):
    snapshot = tmp_path / "models--someone--model" / "snapshots" / "0123abc"
    (snapshot.parents[1] / "refs").mkdir(parents=True)
    (snapshot.parents[1] / "refs" / "main").write_text("0123abc")
    (snapshot.parents[1] / "refs" / "v2").write_text("0123abc")
    saved = adapted if is_adapter else whole
    saved.save_pretrained(snapshot)
    check("someone/model", saved, cache_dir=str(tmp_path))
    check("someone/model", saved, cache_dir=str(tmp_path), revision="v2")
    with pytest.raises(ValueError, match="'someone/other' cannot be loaded"):
        load("someone/other", cache_dir=str(tmp_path))
    if is_adapter:
        check(base, saved, adapter="someone/model", cache_dir=str(tmp_path))


def test_a_revision_is_that_of_the_adapter(adapted, base, tmp_path):
    places = {name: tmp_path / f"models--someone--{name}" for name in ("base", "adapter")}
    for name, branch in {"base": "main", "adapter": "v2"}.items():
        (places[name] / "refs").mkdir(parents=True)
        (places[name] / "refs" / branch).write_text("0123abc")
    shutil.copytree(base, places["base"] / "snapshots" / "0123abc")
    adapted.pretrained_model.peft_config["default"].base_model_name_or_path = "someone/base"
    adapted.save_pretrained(places["adapter"] / "snapshots" / "0123abc")
    check("someone/adapter", adapted, cache_dir=str(tmp_path), revision="v2")


def test_a_fresh_head_is_announced_once(base, adapted, tmp_path):
    adapted.pretrained_model.save_pretrained(tmp_path)
    for folder in (base, tmp_path):
        with pytest.warns(UserWarning, match=rf"'{folder}' {FRESH}.*fresh") as caught:
            AutoModelForCausalLMWithValueHead.from_pretrained(folder)
        assert len([warning for warning in caught if FRESH in str(warning.message)]) == 1


def test_transformers_does_not_report_the_head(whole, tmp_path):
    heard = []
    handler = logging.Handler()
    handler.emit = lambda record: heard.append(record.getMessage())
    logger = logging.getLogger("transformers.modeling_utils")
    logger.addHandler(handler)
    try:
        whole.save_pretrained(tmp_path)
        load(tmp_path)
        assert not [line for line in heard if "v_head" in line]
        AutoModelForCausalLM.from_pretrained(tmp_path)
        assert [line for line in heard if "v_head" in line], "nor is it kept quiet for good"
        save_file({**load_file(tmp_path / "model.safetensors"), "odd": torch.ones(1)}, tmp_path / "model.safetensors")
        load(tmp_path)
        assert [line for line in heard if "odd" in line], "and it does report what is odd"
    finally:
        logger.removeHandler(handler)


def test_a_head_of_another_size(base, adapted, tmp_path):
    adapted.pretrained_model.save_pretrained(tmp_path)
    save_file({"v_head.summary.weight": torch.ones(1, 32)}, tmp_path / "value_head.safetensors")
    with pytest.raises(ValueError, match=r"value_head\.safetensors reads .* size 32, and those of '.*' have 64"):
        load(tmp_path)


def test_the_head_alone_is_written_beside_an_adapter(adapted, tmp_path):
    adapted.save_pretrained(tmp_path, state_dict={"lm_head.weight": torch.ones(1), **HEAD})
    assert [set(load_file(tmp_path / file)) for file in HEAD_FILES] == [set(HEAD)] * 2


def test_a_head_without_bias(adapted, tmp_path):
    adapted.pretrained_model.save_pretrained(tmp_path)
    save_file({"v_head.summary.weight": HEAD["v_head.summary.weight"]}, tmp_path / "value_head.safetensors")
    found = load(tmp_path)
    assert found.v_head.summary.bias.item() == 0
    torch.testing.assert_close(found.values(TOKENS) + 0.5, adapted.values(TOKENS))


def test_saving_where_another_head_lies(adapted, whole, tmp_path):
    torch.save({key: 2 * value for key, value in HEAD.items()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"two heads that differ: .*value_head\.safetensors and .*pytorch_model\.bin"):
        adapted.save_pretrained(tmp_path)
    whole.save_pretrained(tmp_path / "whole")
    with pytest.raises(ValueError, match=r"whole holds a whole model \(config\.json\)"):
        adapted.save_pretrained(tmp_path / "whole")
    assert set(load_file(tmp_path / "whole" / "model.safetensors")) == set(whole.state_dict())


def test_what_is_no_language_model(tmp_path):
    shape = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    LlamaForSequenceClassification(LlamaConfig(**shape, num_attention_heads=2)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"is no causal language model: its checkpoint lacks lm_head\.weight"):
        load(tmp_path)
    with pytest.raises(ValueError, match=r"no folder '.*nowhere'"):
        load(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="trust_remote_code"):
        load(tmp_path, **{"trust_remote_code": True})


def test_adapters_that_do_not_fit(base, tiny_llama, adapted, tmp_path):
    adapted.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"adapter '.*' does not fit '.*': .*size mismatch"):
        load(tiny_llama(intermediate_size=96), adapter=tmp_path)
    with pytest.raises(ValueError, match=r"adapter '.*' does not fit"):
        load(base, adapter=base)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": None}))
    with pytest.raises(ValueError, match=r"does not name its base: .* as adapter="):
        load(tmp_path)
    check(base, adapted, adapter=tmp_path)


def test_an_adapter_is_read_by_peft_alone(base, adapted, tmp_path):
    adapted.save_pretrained(tmp_path)
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path).eval()
    assert torch.equal(plain(TOKENS).logits, adapted(TOKENS)[0])
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path)(TOKENS).logits, adapted(TOKENS)[0])
