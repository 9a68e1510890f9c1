"""A reward model inside PPO: the score of everywhere else, on the policy's own backbone, which stays itself."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch

from datamodules import PreferenceDataModule
from lit_rlhf.models.building import build_backbone
from lit_rlhf.models.heads.reward_model import add_reward_model, build_reward_model, load_reward_model
from lit_rlhf.models.options import BackboneConfig, LoraOptions
from lit_rlhf.rewards.model import ModelReward
from lit_rlhf.rewards.reward import Sample
from lit_rlhf.types import Forest, Segment

FOREST = Forest.pack([[Segment([7, 8, 9], [False] * 3), Segment([10, 11], [True] * 2, 0), Segment([12], [True], 0)]])
CHATML = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def stir(module, ending):
    for name, parameter in module.named_parameters():
        if ending in name:
            parameter.data.add_(0.1 * torch.randn_like(parameter))


@pytest.fixture(scope="module")
def run(tiny_llama, tmp_path_factory):
    """The folder of a finished reward model."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("reward")
    model = build_reward_model(BackboneConfig(str(tiny_llama()), lora=LoraOptions(r=4)), {"score": 1.0})
    stir(model, "lora_B.reward")
    model.score.measure(0.5, 2.0, 100)
    model.save(folder)
    return folder


@pytest.fixture
def policy(tiny_llama):
    torch.manual_seed(1)
    backbone = build_backbone(BackboneConfig(str(tiny_llama()), lora=LoraOptions(r=2)))
    stir(backbone, "lora_B.policy")
    return backbone.eval()


@torch.no_grad()
def test_the_policys_backbone_gives_the_same_scores_and_stays_itself(run, policy):
    trained = {name for name, parameter in policy.named_parameters() if parameter.requires_grad}
    before = policy.token_logprobs(FOREST).logprobs
    model = add_reward_model(policy, run)
    torch.testing.assert_close(model.scores(FOREST), load_reward_model(run).scores(FOREST), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(policy.token_logprobs(FOREST).logprobs, before, rtol=0, atol=0)
    with policy.role("reference"):
        model.scores(FOREST)
        assert policy._role == "reference"
    assert {name for name, parameter in policy.named_parameters() if parameter.requires_grad} == trained
    assert not any(parameter.requires_grad for parameter in model.score.parameters())


@torch.no_grad()
def test_an_error_while_scoring_leaves_the_policy_in_its_role(run, policy, monkeypatch):
    model = add_reward_model(policy, run)
    before = policy.token_logprobs(FOREST).logprobs

    def fail(states):
        raise RuntimeError("planted")

    monkeypatch.setattr(model.score, "forward", fail)
    with pytest.raises(RuntimeError, match="planted"):
        model.scores(FOREST)
    torch.testing.assert_close(policy.token_logprobs(FOREST).logprobs, before, rtol=0, atol=0)


def test_what_does_not_fit_is_refused(run, policy, tiny_llama, tmp_path):
    other = build_backbone(BackboneConfig(str(tiny_llama(intermediate_size=96)), lora=LoraOptions(r=2)))
    with pytest.raises(ValueError, match="does not fit"), pytest.warns(UserWarning, match="unless they are the same"):
        add_reward_model(other, run)
    narrow = build_backbone(BackboneConfig(str(tiny_llama(hidden_size=32)), lora=LoraOptions(r=2)))
    with (
        pytest.raises(ValueError, match="the head belongs to another backbone"),
        pytest.warns(UserWarning, match="trained on"),
    ):
        add_reward_model(narrow, run)
    whole = build_backbone(BackboneConfig(str(tiny_llama()), lora=LoraOptions(enabled=False)), reference="none")
    with pytest.raises(ValueError, match="a policy without adapters cannot carry a reward model"):
        add_reward_model(whole, run)
    policy.save(tmp_path)
    with pytest.raises(ValueError, match="holds no score head"):
        add_reward_model(policy, tmp_path)
    add_reward_model(policy, run)
    with pytest.raises(ValueError, match="an adapter named 'reward' already"):
        add_reward_model(policy, run)


def drawn(batch, stops=()):
    """What a policy would have written: the responses of a batch, up to the token that ends them."""
    found = []
    for part in batch.micro_batches:
        forest = part.forest
        for sequence, leaf in enumerate(forest.leaves):
            start = forest.starts[leaf]
            response = forest.tokens[start : start + forest.lengths[leaf]].tolist()
            end = next((at + 1 for at, token in enumerate(response) if token in stops), len(response))
            root = forest.path(leaf)[0]
            prompt = forest.tokens[forest.starts[root] : forest.starts[root] + forest.lengths[root]].tolist()
            message = ({"role": "user", "content": "x"},)
            found.append(Sample("", "", message, prompt, response[:end], row=f"{part.rows[0]}#{sequence}"))
    return found


ANSWERED = (("Hello?", "Hello there!", "No."), ("What is it?", "It is a fox.", "A spider, I think."))
ROWS = [
    {
        "prompt": [{"role": "user", "content": question}],
        "chosen": [{"role": "assistant", "content": one}],
        "rejected": [{"role": "assistant", "content": other}],
    }
    for question, one, other in ANSWERED
]


@torch.no_grad()
@pytest.mark.parametrize("placement", ["backbone", "separate"])
@pytest.mark.parametrize("template", [None, CHATML])
@pytest.mark.parametrize("token_budget", [1, 8192])
def test_sampled_tokens_score_as_their_text_does(template, token_budget, placement, run, policy, tiny_tokenizer):
    tokenizer = deepcopy(tiny_tokenizer)
    if template:
        tokenizer.chat_template = template
    batch = next(iter(PreferenceDataModule(predict=ROWS, tokenizer=tokenizer, batch_size=2).predict_dataloader()))
    (part,) = batch.micro_batches
    wanted = load_reward_model(run).scores(part.forest)
    stops = [tokenizer.eos_token_id]
    reward = ModelReward(str(run), normalise=False, placement=placement, token_budget=token_budget)
    reward.attach(policy, tokenizer, stops)
    assert ("reward" in policy.model.peft_config) == (placement == "backbone")
    torch.testing.assert_close(torch.tensor(reward(drawn(batch, stops))), wanted, rtol=1e-5, atol=1e-5)
    assert reward.spread == (0.0, 1.0)
    normalised = ModelReward(load_reward_model(run))
    normalised.attach(policy, tokenizer, stops)
    assert normalised.spread == (0.5, 2.0)
    found = torch.tensor(normalised(drawn(batch, stops)))
    torch.testing.assert_close(found, (wanted - 0.5) / 2, rtol=1e-5, atol=1e-5)


def attached(model, policy, tokenizer, **options):
    reward = ModelReward(model, **options)
    reward.attach(policy, tokenizer, [tokenizer.eos_token_id])
    return reward


def test_scores_that_are_no_numbers_are_refused(run, policy, tiny_tokenizer):
    model = load_reward_model(run)
    model.score.weight.data.fill_(torch.nan)
    reward = attached(model, policy, tiny_tokenizer, normalise=False)
    with pytest.raises(ValueError, match=r"train:3: reward .* gave nan; it must give a finite number"):
        reward([Sample("", "", (), [7, 8], [9, 10], row="train:3")])
    with pytest.raises(ValueError, match="train:4: prompt and response need a token each"):
        reward([Sample("", "", (), [7, 8], [], row="train:4")])


def test_an_unknown_spread_is_refused_at_once(run, policy, tiny_tokenizer):
    model = load_reward_model(run)
    model.score.std.fill_(torch.nan)
    assert attached(model, policy, tiny_tokenizer).spread == (0.0, 1.0)
    with pytest.raises(ValueError, match=r"train it with data\.validation set"):
        attached(model, policy, tiny_tokenizer, normalise=True)


def test_a_second_reward_model_gets_a_base_of_its_own(run, policy, tiny_tokenizer):
    samples = [Sample("", "", (), [7, 8], [9, 10]), Sample("", "", (), [7, 8], [11])]
    first, second = (attached(str(run), policy, tiny_tokenizer) for _ in range(2))
    assert first.scorer.model.backbone is policy
    assert second.scorer.model.backbone is not policy
    assert first(samples) == pytest.approx(second(samples), abs=1e-5)
    with pytest.raises(ValueError, match="cannot lie on the policy's backbone: another reward model lies there"):
        attached(str(run), policy, tiny_tokenizer, placement="backbone")
