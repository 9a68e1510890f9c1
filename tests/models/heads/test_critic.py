"""Critics: which values they give, what of them is trained, how they begin, and what is left of them in a folder."""

from __future__ import annotations

import json
import logging

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
)

from lit_rlhf.models.building import build_policy
from lit_rlhf.models.heads.critic import RewardStart, add_critic
from lit_rlhf.models.heads.reward_model import add_reward_model, build_reward_model, load_reward_model
from lit_rlhf.models.heads.value_model import AutoModelForCausalLMWithValueHead
from lit_rlhf.models.options import BackboneConfig, CriticOptions, LoraOptions
from lit_rlhf.types import Forest, Segment

TEXTS = ([7, 8, 9, 10, 11, 12], [5, 6, 20, 21, 22], [40, 41, 42])
KINDS = {
    "lora-adapter": ({}, "adapter"),
    "lora-shared": ({}, "shared"),
    "lora-model": ({}, "model"),
    "full-shared": ({"enabled": False}, "shared"),
    "full-model": ({"enabled": False}, "model"),
}


def ends_of(texts):
    """Every text with one token behind it: the state of that token is the end of the text."""
    return Forest.pack([[Segment([*text, 3], [False] * len(text) + [True])] for text in texts])


@pytest.fixture
def policy_config(tiny_llama):
    """Settings of a policy on the tiny Llama."""

    def make(lora=None, **options):
        return BackboneConfig(str(tiny_llama()), lora=LoraOptions(**{"r": 4, "alpha": 8, **(lora or {})}), **options)

    return make


@pytest.fixture
def make_critic(policy_config):
    """Policies with their critics."""

    def make(lora=None, kind="adapter", start=None, init_from="reward", **options):
        torch.manual_seed(0)
        config = policy_config(lora, **options)
        critic = CriticOptions(kind=kind, init_from=init_from)
        return add_critic(build_policy(config), critic, start, config=config)

    return make


@pytest.fixture(scope="module")
def reward_folder(tiny_llama, stir, tmp_path_factory):
    """Folders of reward models: of which base, with an adapter or whole."""
    folders = {}

    def make(enabled=True, **base):
        key = enabled, *sorted(base.items())
        if key not in folders:
            torch.manual_seed(1)
            config = BackboneConfig(str(tiny_llama(**base)), lora=LoraOptions(enabled=enabled, r=4))
            model = stir(build_reward_model(config, {"kind": 0.75, "short": -0.5}))
            model.score.measure(0.5, 2.0, 100)
            folders[key] = tmp_path_factory.mktemp("reward")
            model.save(folders[key])
        return str(folders[key])

    return make


@torch.no_grad()
def check_begins_as(critic, folder, weight=2.0):
    scores = load_reward_model(folder).scores(forest_without_marks(), normalise=True)
    torch.testing.assert_close(critic.eval().values(ends_of(TEXTS)), weight * scores, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(critic(ends_of(TEXTS)).values, weight * scores, rtol=1e-4, atol=1e-4)


def forest_without_marks():
    return Forest.pack([[Segment(text, [False] * len(text))] for text in TEXTS])


@pytest.mark.parametrize("name", ["lora-adapter", "lora-model", "full-model"])
@pytest.mark.parametrize("whole", [False, True])
def test_values_begin_as_the_scores_that_the_policy_is_given(make_critic, reward_folder, caplog, name, whole):
    if name == "lora-adapter" and whole:
        pytest.skip("an adapter cannot begin as a whole model")
    lora, kind = KINDS[name]
    folder = reward_folder(enabled=not whole)
    with caplog.at_level(logging.INFO):
        critic = make_critic(lora, kind, RewardStart(folder, 2.0, True))
    check_begins_as(critic, folder)
    assert f"critic: begins as the reward model '{folder}'" in caplog.text
    raw = make_critic(lora, kind, init_from=folder).eval()
    with torch.no_grad():
        scores = load_reward_model(folder).scores(forest_without_marks())
        torch.testing.assert_close(raw.values(ends_of(TEXTS)), scores, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("enabled", [False, True])
@pytest.mark.parametrize(
    ("base", "whole"), [({"seed": 1}, False), ({"hidden_size": 32}, False), ({"hidden_size": 32}, True)]
)
def test_a_model_of_its_own_may_stand_on_another_base(make_critic, reward_folder, enabled, base, whole):
    folder = reward_folder(enabled=not whole, **base)
    critic = make_critic({"enabled": enabled}, "model", RewardStart(folder, 2.0, True))
    check_begins_as(critic, folder)
    trained = {name for name, parameter in critic.trunk.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in critic.trunk.named_parameters() if ".critic." in name or not enabled}


@pytest.mark.parametrize("peft", [False, True])
@pytest.mark.parametrize("kind", ["adapter", "shared", "model"])
@pytest.mark.parametrize("begins", [False, True])
def test_a_policy_of_your_own(tiny_llama, reward_folder, stir, peft, kind, begins):
    torch.manual_seed(0)
    mine = LlamaForCausalLM.from_pretrained(tiny_llama())
    if peft:
        mine = get_peft_model(mine, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    elif kind == "adapter":
        with pytest.raises(ValueError, match="all weights of the policy are trained: take 'shared' or 'model'"):
            add_critic(build_policy(mine), CriticOptions(kind=kind), None)
        return
    start = RewardStart(reward_folder(), 2.0, True) if begins else None
    critic = add_critic(build_policy(mine), CriticOptions(kind=kind), start)
    assert critic.backbone.model is mine
    if begins and kind != "shared":
        check_begins_as(critic, start.folder)
    names, moved = trained_and_moved(stir(critic))
    assert moved == names


def classifier(folder, kind, labels):
    shape = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    if kind == "bert":
        model = BertForSequenceClassification(BertConfig(vocab_size=40, num_labels=labels, **shape))
    else:
        model = LlamaForSequenceClassification(LlamaConfig(vocab_size=40, num_labels=labels, **shape))
    model.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("kind", ["adapter", "model"])
def test_rewards_that_a_critic_cannot_begin_as(make_critic, reward_folder, tiny_llama, caplog, tmp_path, kind):
    reasons = {
        classifier(tmp_path / "bert", "bert", 1): "is a classifier over labels",
        classifier(tmp_path / "labels", "llama", 3): "is a classifier over labels",
        str(tiny_llama()): "has no score head",
    }
    if kind == "adapter":
        reasons[reward_folder(enabled=False)] = "is a whole model, which an adapter cannot begin as"
        reasons[reward_folder(seed=1)] = "was trained on another base"
        reasons[reward_folder(hidden_size=32)] = "was trained on another base"
    for folder, reason in reasons.items():
        caplog.clear()
        with caplog.at_level(logging.INFO):
            critic = make_critic(kind=kind, start=RewardStart(folder))
        assert f"critic: begins with values of 0, because the reward model '{folder}' {reason}" in caplog.text
        assert "begins as" not in caplog.text
        assert not critic.v_head.state_dict()["summary.weight"].any()
        assert float(critic.v_head.state_dict()["summary.bias"]) == 0.0
        with pytest.raises(ValueError, match=rf"cannot begin as critic\.init_from '.*': it {reason}"):
            make_critic(kind=kind, init_from=folder)


def test_a_base_that_the_policy_changed_carries_no_other_adapter(make_critic, reward_folder, caplog):
    with caplog.at_level(logging.INFO):
        make_critic({"init": "pissa"}, start=RewardStart(reward_folder()))
    assert "trained on the base as it was before the policy's adapter took its beginning" in caplog.text


@pytest.mark.parametrize("init_from", ["reward", "fresh"])
@pytest.mark.parametrize("kind", ["adapter", "shared", "model"])
def test_a_fresh_critic_computes_as_the_policy_begins(make_critic, reward_folder, ragged, init_from, kind):
    start = RewardStart(reward_folder()) if init_from == "fresh" else None
    critic = make_critic(kind=kind, start=start, init_from=init_from).eval()
    with torch.no_grad():
        states = critic.backbone.hidden_states(ragged, read="predictors")
        expected = critic.v_head.summary(states).squeeze(-1)
        torch.testing.assert_close(critic.values(ragged), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", KINDS)
def test_a_value_is_that_of_the_state_that_its_token_was_chosen_in(make_critic, stir, ragged, name):
    """The first token of a response pairs with the last one of its prompt; a token never sees its own value."""
    lora, kind = KINDS[name]
    critic = stir(make_critic(lora, kind)).eval()
    scored, expected = set(ragged.targets.tolist()), []
    with torch.no_grad(), critic.backbone.role("critic"):
        said = critic.values(ragged)
        for leaf in ragged.leaves:
            spans = [(ragged.starts[part], ragged.lengths[part]) for part in ragged.path(leaf)]
            places = [at for start, length in spans for at in range(start, start + length)]
            row = Forest.pack([[Segment(ragged.tokens[places].tolist(), [False] * len(places))]])
            values = critic.v_head((critic.trunk or critic.backbone).hidden_states(row)).squeeze(-1)
            expected += [values[at - 1] for at, place in enumerate(places) if place in scored]
    torch.testing.assert_close(said, torch.stack(expected), rtol=1e-4, atol=1e-4)
    assert said.dtype == torch.float32


@pytest.mark.parametrize("name", KINDS)
def test_what_is_said_together_is_what_is_said_apart(make_critic, stir, ragged, name):
    critic = stir(make_critic(*KINDS[name])).eval()
    said = critic(ragged, temperature=0.7)
    alone = critic.backbone.token_logprobs(ragged, with_entropy=True, temperature=0.7)
    torch.testing.assert_close(said.logprobs, alone.logprobs)
    torch.testing.assert_close(said.entropy, alone.entropy)
    torch.testing.assert_close(said.values, critic.values(ragged), rtol=1e-4, atol=1e-5)
    assert not said.entropy.requires_grad
    assert critic(ragged, entropy_gradient=True).entropy.requires_grad
    assert not torch.allclose(critic(ragged).logprobs, said.logprobs)


def trained_and_moved(critic):
    """Names of what is trained, which is the policy's or the critic's, and of what a step moves."""
    groups = critic.policy_parameters, critic.critic_parameters
    trained = {name: parameter for name, parameter in critic.named_parameters() if parameter.requires_grad}
    ids = [id(parameter) for group in groups for parameter in group]
    assert sorted(ids) == sorted(map(id, trained.values())), "each once"
    before = {name: tensor.clone() for name, tensor in critic.state_dict().items()}
    said = critic.train()(ends_of([text[:length] for text in TEXTS for length in (2, 3)]))
    (said.logprobs.sum() + said.values.square().sum()).backward()
    torch.optim.Adam([{"params": group} for group in groups], lr=1e-2).step()
    moved = {name for name, tensor in critic.state_dict().items() if not torch.equal(tensor, before[name])}
    return set(trained), moved


@pytest.mark.parametrize("name", KINDS)
def test_every_trained_tensor_moves_and_nothing_else(make_critic, stir, reward_folder, name):
    lora, kind = KINDS[name]
    critic = make_critic({**lora, "dropout": 0.3}, kind, RewardStart(reward_folder()))
    names, moved = trained_and_moved(stir(critic))
    assert moved == names
    assert names
    assert not [module for module in critic.modules() if isinstance(module, nn.Dropout) and module.p]


def test_a_critic_has_no_use_for_an_adapter_on_the_lm_head(make_critic, stir):
    critic = stir(make_critic({"target_modules": ["q_proj", "lm_head"]}))
    names, moved = trained_and_moved(critic)
    assert moved == names
    assert {name.split(".")[-2] for name in names if "lm_head" in name} == {"policy"}


def test_whose_parameters_are_whose(make_critic):
    names = {kind: parameter_names(make_critic(kind=kind)) for kind in ("adapter", "shared", "model")}
    head = {"v_head.summary.weight", "v_head.summary.bias"}
    for policy, critic in names.values():
        assert {name.split(".")[-2] for name in policy} == {"policy"}
        assert head <= critic
    assert names["shared"][1] == head
    assert {name.split(".")[-2] for name in names["adapter"][1] - head} == {"critic"}
    assert {name.split(".")[0] for name in names["model"][1] - head} == {"trunk"}
    policy, critic = parameter_names(make_critic({"enabled": False}, "shared"))
    assert {name.split(".")[1] for name in policy} == {"model"}, "not the reference"
    assert critic == head


def parameter_names(critic):
    by_id = {id(parameter): name for name, parameter in critic.named_parameters()}
    return tuple({by_id[id(p)] for p in group} for group in (critic.policy_parameters, critic.critic_parameters))


@pytest.mark.parametrize("kind", ["adapter", "shared", "model"])
def test_the_gradients_of_checkpointed_layers_are_those_of_their_own_role(make_critic, stir, ragged, kind):
    """They are computed again in the backward pass, when the policy plays; each time that there is one."""
    found = []
    for checkpointed in (False, True):
        critic = stir(make_critic(kind=kind, gradient_checkpointing=checkpointed, fused=False)).train()
        assert critic.base.is_gradient_checkpointing == checkpointed
        said = critic(ragged)
        with critic.backbone.role("reference"), torch.no_grad():
            critic.backbone.token_logprobs(ragged)
        loss = said.logprobs.sum() + said.values.square().sum()
        loss.backward(retain_graph=True)
        loss.backward()
        found.append([p.grad for p in [*critic.policy_parameters, *critic.critic_parameters]])
        with torch.no_grad():
            torch.testing.assert_close(critic(ragged).logprobs, said.logprobs)
    for plain, again in zip(*found, strict=True):
        torch.testing.assert_close(again, plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["adapter", "shared", "model"])
def test_the_policy_comes_back_after_an_exception(make_critic, stir, ragged, monkeypatch, kind):
    critic = stir(make_critic(kind=kind)).eval()
    trained = [name for name, parameter in critic.named_parameters() if parameter.requires_grad]
    before = critic(ragged)

    def fail(states):
        raise RuntimeError("planted")

    with monkeypatch.context() as broken:
        broken.setattr(critic.v_head, "forward", fail)
        for call in (critic, critic.values):
            with pytest.raises(RuntimeError, match="planted"):
                call(ragged)
    after = critic(ragged)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(after, before, strict=True))
    assert [name for name, parameter in critic.named_parameters() if parameter.requires_grad] == trained


@pytest.mark.parametrize("name", KINDS)
def test_what_a_checkpoint_holds(make_critic, reward_folder, name):
    """What is trained, the head, and what the reference stands on; no frozen base, and no frozen reward model."""
    lora, kind = KINDS[name]
    critic = make_critic(lora, kind, RewardStart(reward_folder()))
    if not lora:
        add_reward_model(critic.backbone, reward_folder())
    trained = {name for name, parameter in critic.named_parameters() if parameter.requires_grad}
    kept = critic.checkpointed_names
    assert kept <= set(critic.state_dict())
    assert trained <= kept
    assert {name for name in kept - trained if not name.startswith("backbone.reference_model.")} == set()
    assert not [name for name in kept if "reward" in name]
    assert bool([name for name in kept if "reference_model" in name]) == bool(lora)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("whole", [False, True])
def test_the_folder_gives_the_same_values_and_the_same_policy(
    make_critic, reward_folder, stir, stock, tiny_llama, tmp_path, name, whole
):
    lora, kind = KINDS[name]
    critic = stir(make_critic(lora, kind, RewardStart(reward_folder(enabled=not whole)))).eval()
    critic.save(tmp_path)
    place = tmp_path if kind == "shared" else tmp_path / "critic"
    assert (tmp_path / "critic").is_dir() == (kind != "shared")
    text = TEXTS[0]
    forest = Forest.pack([[Segment(text, [False] + [True] * (len(text) - 1))]])
    with torch.no_grad():
        said = critic(forest)
        alone = AutoModelForCausalLMWithValueHead.from_pretrained(str(place)).eval()
        values = alone(torch.tensor([text]))[2][0, :-1]
        torch.testing.assert_close(values, said.values, rtol=1e-5, atol=1e-5)
        if critic.backbone.policy_adapter is None:
            plain = stock(tmp_path)
        else:
            plain = PeftModel.from_pretrained(stock(tiny_llama()), str(tmp_path)).eval()
        logits = plain(input_ids=torch.tensor([text])).logits[0, :-1].log_softmax(-1)
        logprobs = logits.gather(1, torch.tensor(text[1:])[:, None])[:, 0]
        torch.testing.assert_close(logprobs, said.logprobs, rtol=1e-5, atol=2e-5)


def test_a_folder_of_a_critic_names_its_own_adapter(make_critic, stir, tmp_path):
    critic = stir(make_critic())
    critic.save(tmp_path)
    critic.save(tmp_path)
    for place in (tmp_path, tmp_path / "critic"):
        assert json.loads((place / "adapter_config.json").read_text())["r"] == 4
    assert not (tmp_path / "value_head.safetensors").exists()
    assert {path.name for path in (tmp_path / "critic").glob("*.safetensors")} == {
        "adapter_model.safetensors",
        "value_head.safetensors",
        "model.safetensors",
    }


def test_the_layout_is_chosen_once_for_each_model(make_critic):
    critic = make_critic(kind="model")
    critic.prepare()
    assert (critic.backbone.layout, critic.trunk.layout) == ("forest", "forest")


def test_four_bits_with_all_roles(make_critic, reward_folder, stir):
    critic = make_critic(start=RewardStart(reward_folder(), 2.0, True), quantization="nf4", dtype="float32")
    names, moved = trained_and_moved(stir(critic))
    assert moved == names
