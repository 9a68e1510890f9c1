"""Adapters: saved ones load on the plain base through PEFT alone; switching and copying leave no trace."""

from __future__ import annotations

import json

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from transformers import LlamaForCausalLM

from lit_rlhf.models import adapters
from lit_rlhf.models.building import build_backbone, wrap_model
from lit_rlhf.models.options import BackboneConfig

KINDS = {
    "default": {},
    "gaussian": {"init": "gaussian"},
    "orthogonal": {"init": "orthogonal"},
    "pissa": {"init": "pissa"},
    "olora": {"init": "olora"},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "pissa_rslora_dora": {"init": "pissa", "use_rslora": True, "use_dora": True},
    "head_saved": {"modules_to_save": ["lm_head"]},
    "pissa_head_saved": {"init": "pissa", "modules_to_save": ["lm_head"]},
    "head_lora": {"target_modules": ["q_proj", "lm_head"]},
    "targets": {"target_modules": ["q_proj", "v_proj"], "exclude_modules": ["layers.0.self_attn.q_proj"]},
}


@pytest.fixture
def loaded(stock, tiny_llama):
    """Loads a saved adapter on the plain base, with nothing of this package."""
    return lambda folder, base=None: PeftModel.from_pretrained(stock(base or tiny_llama()), str(folder)).eval()


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_saved_loads_on_the_plain_base(build, stir, loaded, ragged, row_logprobs, tmp_path, kind):
    backbone = stir(build(lora=KINDS[kind])).eval()
    (tmp_path / "out").mkdir()
    ours = backbone.token_logprobs(ragged).logprobs
    for folder in ("out", "out"):  # saving again replaces the files, and changes nothing of the model
        backbone.save(tmp_path / folder)
    torch.testing.assert_close(row_logprobs(loaded(tmp_path / "out"), ragged), ours, rtol=1e-5, atol=2e-5)
    assert torch.equal(backbone.token_logprobs(ragged).logprobs, ours)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == backbone.base.name_or_path
    began_by_changing_the_base = KINDS[kind].get("init") in ("pissa", "olora")
    assert config["r"] == (8 if began_by_changing_the_base else 4)
    assert config["init_lora_weights"] not in ("pissa", "olora")
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"adapter_config.json", "adapter_model.safetensors"}
    assert not [path for path in (tmp_path / "out").iterdir() if path.is_dir()]


@pytest.mark.parametrize("kind", ["pissa", "olora"])
@pytest.mark.parametrize("reference", ["fixed", "moving"])
def test_saving_leaves_the_reference_alone(build, stir, loaded, ragged, row_logprobs, tmp_path, kind, reference):
    backbone = stir(build(lora={"init": kind}, reference=reference)).eval()
    if reference == "moving":
        backbone.move_reference(0.5)
    trained = [name for name, parameter in backbone.named_parameters() if parameter.requires_grad]
    with backbone.role("reference"), torch.no_grad():
        before = backbone.token_logprobs(ragged).logprobs
    backbone.save(tmp_path)
    with backbone.role("reference"), torch.no_grad():
        assert torch.equal(backbone.token_logprobs(ragged).logprobs, before)
    assert [name for name, parameter in backbone.named_parameters() if parameter.requires_grad] == trained
    ours = backbone.token_logprobs(ragged).logprobs
    torch.testing.assert_close(row_logprobs(loaded(tmp_path), ragged), ours, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("options", [{}, {"init_lora_weights": "pissa"}, {"use_dora": True}])
def test_an_adapter_of_your_own_is_saved_as_it_is(tiny_llama, stir, loaded, ragged, row_logprobs, tmp_path, options):
    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", **options)
    mine = get_peft_model(LlamaForCausalLM.from_pretrained(tiny_llama()), config)
    backbone = wrap_model(stir(mine)).eval()
    backbone.save(tmp_path)
    ours = backbone.token_logprobs(ragged).logprobs
    torch.testing.assert_close(row_logprobs(loaded(tmp_path), ragged), ours, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("kind", ["default", "dora", "pissa", "head_saved"])
def test_going_on_from_a_saved_adapter(build, stir, ragged, tmp_path, kind):
    first = stir(build(lora=KINDS[kind])).eval()
    first.save(tmp_path / "adapter")
    second = build(adapter=str(tmp_path / "adapter"), lora={"dropout": 0.5})
    ours = first.token_logprobs(ragged).logprobs
    second.eval()
    torch.testing.assert_close(second.token_logprobs(ragged).logprobs, ours, rtol=1e-5, atol=2e-5)
    with second.role("reference"):
        torch.testing.assert_close(second.token_logprobs(ragged).logprobs, ours, rtol=1e-5, atol=2e-5)
    second.train()
    assert not torch.equal(second.token_logprobs(ragged).logprobs, second.token_logprobs(ragged).logprobs)  # dropout
    with second.role("reference"):
        torch.testing.assert_close(second.token_logprobs(ragged).logprobs, ours, rtol=1e-5, atol=2e-5)
    stir(second)
    with second.role("reference"):
        torch.testing.assert_close(second.token_logprobs(ragged).logprobs, ours, rtol=1e-5, atol=2e-5)
    trained = {name for name, parameter in second.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in second.named_parameters() if ".policy." in name}


def test_copying_and_mixing(build, stir):
    model = stir(build(lora=KINDS["head_saved"])).model
    adapters.copy_adapter(model, "policy", "reference")
    parameters = dict(model.named_parameters())
    twins = [(name, name.replace(".policy.", ".reference.")) for name in parameters if ".policy." in name]
    assert len(twins) == 2 * 2 * 7 + 1
    for ours, theirs in twins:
        assert torch.equal(parameters[ours], parameters[theirs])
        assert parameters[ours].requires_grad
        assert not parameters[theirs].requires_grad
    before = {theirs: parameters[theirs].clone() for _, theirs in twins}
    stir(model, seed=1)
    adapters.mix_adapters(model, "policy", "reference", weight=0.25)
    for ours, theirs in twins:
        torch.testing.assert_close(parameters[theirs], 0.25 * parameters[ours] + 0.75 * before[theirs])
    assert model.active_adapter == "policy"


def test_a_copy_has_no_dropout(build):
    model = build(lora={"dropout": 0.3}).model
    adapters.copy_adapter(model, "policy", "reference")
    kinds = {name: type(layer).__name__ for name, layer in model.named_modules() if ".lora_dropout." in name}
    assert {kind for name, kind in kinds.items() if name.endswith("policy")} == {"Dropout"}
    assert {kind for name, kind in kinds.items() if name.endswith("reference")} == {"Identity"}


def test_which_adapter_is_active_comes_back_after_an_exception(build, ragged):
    backbone = build(reference="moving")
    before = [(layer._active_adapter, layer._disable_adapters) for layer in tuners(backbone.model)]
    with adapters.active_adapter(backbone.model, None):
        with adapters.active_adapter(backbone.model, "reference"):
            assert {tuple(layer.active_adapters) for layer in tuners(backbone.model)} == {("reference",)}
            assert not any(layer.disable_adapters for layer in tuners(backbone.model))
        assert all(layer.disable_adapters for layer in tuners(backbone.model))
    with pytest.raises(ZeroDivisionError), adapters.active_adapter(backbone.model, "reference"):
        _ = 1 / 0
    assert [(layer._active_adapter, layer._disable_adapters) for layer in tuners(backbone.model)] == before


def tuners(model):
    return [layer for layer in model.modules() if isinstance(layer, adapters.BaseTunerLayer)]


def test_fresh_or_not(build, stir, tiny_llama):
    for lora, fresh in (({}, True), ({"init": "gaussian"}, True), ({"init": "pissa"}, False)):
        assert adapters.is_fresh(build(lora=lora).model, "policy") == fresh
    assert not adapters.is_fresh(build(lora={"modules_to_save": ["lm_head"]}).model, "policy")
    assert not adapters.is_fresh(stir(build()).model, "policy")
    assert not adapters.is_fresh(build(lora={"use_dora": True}).model, "policy")


def test_options_that_do_not_fit_the_model(build):
    with pytest.raises(ValueError, match=r"backbone\.lora does not fit.*no_such_layer"):
        build(lora={"target_modules": ["no_such_layer"]})
    with pytest.raises(ValueError, match=r"backbone\.lora does not fit"):
        build(lora={"init": "pissa"}, dtype="float16", quantization="nf4")


def test_adapters_that_cannot_be_used(build, tiny_llama, tmp_path):
    with pytest.raises(ValueError, match=r"backbone.adapter .*missing. holds no PEFT adapter"):
        build(adapter=str(tmp_path / "missing"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no PEFT adapter"):
        build(adapter=str(tmp_path / "empty"))
    plain = LlamaForCausalLM.from_pretrained(tiny_llama())
    get_peft_model(plain, IA3Config(task_type="CAUSAL_LM")).save_pretrained(tmp_path / "ia3")
    with pytest.raises(ValueError, match="is of type IA3; only LORA is supported"):
        build(adapter=str(tmp_path / "ia3"))
    build(folder=tiny_llama(hidden_size=32)).save(tmp_path / "other")
    with pytest.raises(ValueError, match=r"was trained on .* and does not fit .*size mismatch"):
        build(adapter=str(tmp_path / "other"))
    build(folder=tiny_llama(num_hidden_layers=3)).save(tmp_path / "deeper")
    with pytest.raises(ValueError, match=r"was trained on .* and does not fit .* layer that is not there: .*layers\.2"):
        build(adapter=str(tmp_path / "deeper"))
    build(lora={"target_modules": ["q_proj"]}).save(tmp_path / "shallower")
    with pytest.raises(ValueError, match=r"was trained on .* and does not fit .* it lacks .*layers\.2"):
        build(folder=tiny_llama(num_hidden_layers=3), adapter=str(tmp_path / "shallower"))
    build().save(tmp_path / "broken")
    (tmp_path / "broken" / "adapter_model.safetensors").write_bytes(b"broken")
    with pytest.raises(ValueError, match="does not fit"):
        build(adapter=str(tmp_path / "broken"))


def test_heads_that_were_saved_with_an_adapter_are_left_aside(build, build_reward, stir, ragged, tmp_path):
    reward = stir(build_reward()).eval()
    reward.save(tmp_path)
    policy = build(adapter=str(tmp_path), reference="none").eval()
    assert policy.has_lm_head
    assert not [name for name in policy.state_dict() if "score" in name]
    assert policy.model.peft_config["policy"].task_type == "CAUSAL_LM"
    torch.testing.assert_close(policy.hidden_states(ragged), reward.backbone.hidden_states(ragged))


def test_the_name_of_an_adapter(stock, tiny_llama, build, stir, tmp_path):
    stir(build()).save(tmp_path)
    model = adapters.load_adapter(stock(tiny_llama()), str(tmp_path), dropout=0.25, name="reward")
    assert list(model.peft_config) == [model.active_adapter] == ["reward"]
    assert model.peft_config["reward"].lora_dropout == 0.25
    assert model.peft_config["reward"].base_model_name_or_path == str(tiny_llama())


def test_an_adapter_trained_on_a_head_that_is_not_there(build, stir, ragged, tmp_path):
    policy = stir(build(lora=KINDS["head_lora"])).eval()
    policy.save(tmp_path)
    config = BackboneConfig(str(policy.base.name_or_path), str(tmp_path))
    reward = build_backbone(config, reference="none", role="reward").eval()
    torch.testing.assert_close(reward.hidden_states(ragged), policy.hidden_states(ragged))
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "exclude_modules": ".*layers.7.*"}))
    again = build_backbone(config, reference="none", role="reward").eval()
    assert torch.equal(again.hidden_states(ragged), reward.hidden_states(ragged))


def test_one_more_adapter_beside_those_that_are_there(build, stir, ragged, tmp_path):
    other = stir(build(lora={"dropout": 0.5}), seed=1).eval()
    wanted = other.hidden_states(ragged)
    other.save(tmp_path)
    backbone = stir(build())
    before = backbone.hidden_states(ragged)
    trained = {name for name, parameter in backbone.named_parameters() if parameter.requires_grad}
    adapters.add_adapter(backbone.model, str(tmp_path), "reward")
    assert backbone.model.active_adapter == "policy"
    assert {name for name, parameter in backbone.named_parameters() if parameter.requires_grad} == trained
    assert torch.equal(backbone.hidden_states(ragged), before)
    with backbone.role("reward"):
        torch.testing.assert_close(backbone.hidden_states(ragged), wanted)
        assert torch.equal(*(backbone.hidden_states(ragged) for _ in range(2))), "without dropout"
    still = build()
    still.requires_grad_(False)
    adapters.add_adapter(still.model, str(tmp_path), "reward")
    assert not any(parameter.requires_grad for parameter in still.parameters())
    with pytest.raises(ValueError, match="there is an adapter named 'reward' already"):
        adapters.add_adapter(backbone.model, str(tmp_path), "reward")


def test_the_base_of_an_adapter(build, tiny_llama, tmp_path):
    build().save(tmp_path)
    assert adapters.base_of(tmp_path) == str(tiny_llama())
    file = tmp_path / "adapter_config.json"
    for content in ("{", "{}", '{"r": 4}'):
        file.write_text(content)
        with pytest.raises(ValueError, match=r"holds no adapter_config\.json that names a base model; name it with"):
            adapters.base_of(tmp_path)


def test_one_more_fresh_adapter(build, stir, ragged):
    """It changes nothing yet, is trained beside the others, and has the shape of the one that it is like."""
    backbone = stir(build(lora={"dropout": 0.5, "use_rslora": True, "modules_to_save": ["lm_head"]})).eval()
    policy = backbone.hidden_states(ragged)
    with backbone.role("reference"):
        base = backbone.hidden_states(ragged)
    trained = {name for name, parameter in backbone.named_parameters() if parameter.requires_grad}
    adapters.add_fresh_adapter(backbone.model, "policy", "critic")
    assert backbone.model.active_adapter == "policy"
    assert torch.equal(backbone.hidden_states(ragged), policy)
    with backbone.role("critic"):
        torch.testing.assert_close(backbone.hidden_states(ragged), base)
    own = {name for name, _ in backbone.named_parameters() if ".critic." in name}
    assert {name for name, parameter in backbone.named_parameters() if parameter.requires_grad} == trained | own
    assert len(own) == 2 * 2 * 7, "what is trained whole is the policy's alone"
    config = backbone.model.peft_config["critic"]
    assert (config.r, config.lora_dropout, config.use_rslora, config.modules_to_save) == (4, 0.0, True, None)
    weights = adapters.adapter_parameters(backbone.model, "critic")
    assert {id(weight) for weight in weights} == {id(backbone.get_parameter(name)) for name in own}


def test_a_frozen_adapter_is_trained_on_demand(build, stir, ragged, tmp_path):
    other = stir(build(lora={"target_modules": ["q_proj", "lm_head"]}), seed=1).eval()
    other.save(tmp_path)
    backbone = stir(build())
    adapters.add_adapter(backbone.model, str(tmp_path), "critic")
    assert not any(parameter.requires_grad for parameter in adapters.adapter_parameters(backbone.model, "critic"))
    adapters.train_adapter(backbone.model, "critic")
    trained = {name for name, parameter in backbone.named_parameters() if parameter.requires_grad}
    own = {name for name in trained if ".critic." in name}
    assert len(own) == 2 * 2
    assert not [name for name in own if "lm_head" in name], "nothing would move them"
    assert {name.split(".")[-2] for name in trained} == {"policy", "critic"}


def test_a_base_that_is_told_from_the_folder_of_the_adapter(build, tiny_llama, tmp_path):
    folder = tmp_path / "adapters" / "one"
    build().save(folder)
    file = folder / "adapter_config.json"
    content = json.loads(file.read_text())
    for name, expected in (
        ("../../base", tmp_path / "base"),
        ("..", tmp_path / "adapters"),
        ("owner/name", "owner/name"),
    ):
        file.write_text(json.dumps({**content, "base_model_name_or_path": name}))
        assert adapters.base_of(folder) == str(expected)


@pytest.mark.parametrize(
    ("name", "same"),
    [
        *((name, True) for name in ("owner/tiny", "elsewhere/tiny/", "tiny", r"C:\models\tiny", "hub:tiny")),
        *((name, False) for name in ("owner/tiny-2", "owner/tin", "tiny/other")),
    ],
)
def test_whether_two_names_are_of_one_base(stock, tiny_llama, name, same):
    model = stock(tiny_llama())
    model.name_or_path = "some/where/tiny"
    assert adapters.is_same_base(name, model) == same
