"""A reward model inside PPO: the score of everywhere else, on the policy's own backbone, which stays itself."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch

from datamodules import PreferenceDataModule
from lit_rlhf.models.building import build_backbone
from lit_rlhf.models.heads.reward_model import add_reward_model, build_reward_model, load_reward_model
from lit_rlhf.models.options import BackboneConfig, LoraOptions
from lit_rlhf.rewards.model import ModelReward, closing_tokens, refuse_other_tokenizer
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


def samples_of(batch, tokenizer, stops=()):
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
@pytest.mark.parametrize("template", [None, CHATML])
@pytest.mark.parametrize("token_budget", [1, 8192])
def test_sampled_tokens_score_as_their_text_does(template, token_budget, run, policy, tiny_tokenizer):
    tokenizer = deepcopy(tiny_tokenizer)
    if template:
        tokenizer.chat_template = template
    batch = next(iter(PreferenceDataModule(predict=ROWS, tokenizer=tokenizer, batch_size=2).predict_dataloader()))
    (part,) = batch.micro_batches
    wanted = load_reward_model(run).scores(part.forest)
    stops = [tokenizer.eos_token_id]
    reward = ModelReward(add_reward_model(policy, run), tokenizer, tokenizer, stops, False, token_budget)
    assert bool(reward.closing) == (template is not None)
    found = reward(samples_of(batch, tokenizer, stops))
    torch.testing.assert_close(torch.tensor(found), wanted, rtol=1e-5, atol=1e-5)
    normalised = ModelReward(reward.model, tokenizer, tokenizer, stops, True)
    torch.testing.assert_close(
        torch.tensor(normalised(samples_of(batch, tokenizer, stops))), (wanted - 0.5) / 2, rtol=1e-5, atol=1e-5
    )


def test_a_response_that_was_cut_gets_no_end(run, tiny_tokenizer):
    tokenizer = deepcopy(tiny_tokenizer)
    tokenizer.chat_template = CHATML
    assert tokenizer.decode(closing_tokens(tokenizer, [tokenizer.eos_token_id])) == "\n"
    reward = ModelReward(load_reward_model(run), tokenizer, tokenizer, [tokenizer.eos_token_id], normalise=False)
    cut = Sample("", "", ({"role": "user", "content": "x"},), [7, 8], [9, 10])
    (segments,) = [reward._segments([cut])]
    assert [segment.tokens for segment in segments] == [[7, 8], [9, 10]]
    tokenizer.chat_template = None
    assert closing_tokens(tokenizer, [tokenizer.eos_token_id]) == []


def test_another_tokenizer_is_refused(run, tiny_tokenizer):
    other = deepcopy(tiny_tokenizer)
    other.add_tokens(["<tool>"])
    message = r"tokenizer differs from the policy's: '<tool>' is no token in one and 3\d\d in the other \(1 differ\)"
    with pytest.raises(ValueError, match=message):
        ModelReward(load_reward_model(run), tiny_tokenizer, other, [2])
    refuse_other_tokenizer(tiny_tokenizer, deepcopy(tiny_tokenizer))


def test_scores_that_are_no_numbers_are_refused(run, tiny_tokenizer):
    model = load_reward_model(run)
    model.score.weight.data.fill_(torch.nan)
    reward = ModelReward(model, tiny_tokenizer, tiny_tokenizer, [2], normalise=False)
    with pytest.raises(ValueError, match="train:3: the reward model gives the score nan"):
        reward([Sample("", "", (), [7, 8], [9, 10], row="train:3")])
    with pytest.raises(ValueError, match="train:4: prompt and response need a token each"):
        reward([Sample("", "", (), [7, 8], [], row="train:4")])


def test_an_unknown_spread_is_refused_at_once(run, tiny_tokenizer):
    model = load_reward_model(run)
    model.score.std.fill_(torch.nan)
    with pytest.raises(ValueError, match=r"train it with data\.validation set"):
        ModelReward(model, tiny_tokenizer, tiny_tokenizer, [2])
