"""A reward model inside PPO: the score of everywhere else, on the policy's own backbone, which stays itself."""

from __future__ import annotations

from copy import deepcopy
from shutil import copytree

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from datamodules import PreferenceDataModule
from lit_rlhf.models.building import build_backbone
from lit_rlhf.models.heads.reward_model import RewardModel, add_reward_model, build_reward_model, load_reward_model
from lit_rlhf.models.options import BackboneConfig, LoraOptions
from lit_rlhf.rewards.model import ModelReward
from lit_rlhf.rewards.reward import Sample
from lit_rlhf.rewards.texts import with_template
from lit_rlhf.types import Forest, Segment

FOREST = Forest.pack([[Segment([7, 8, 9], [False] * 3), Segment([10, 11], [True] * 2, 0), Segment([12], [True], 0)]])
CHATML = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

PLAIN = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


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
        assert policy.acting == "reference"
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


def attached(model, policy, tokenizer, /, **options):
    reward = ModelReward(model if isinstance(model, RewardModel) else str(model), **options)
    reward.attach(policy, tokenizer, [tokenizer.eos_token_id])
    return reward


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
    assert attached(load_reward_model(run), policy, tokenizer, normalise=False).spread == (0.0, 1.0)
    normalised = ModelReward(load_reward_model(run))
    normalised.attach(policy, tokenizer, stops)
    assert normalised.spread == (0.5, 2.0)
    found = torch.tensor(normalised(drawn(batch, stops)))
    torch.testing.assert_close(found, (wanted - 0.5) / 2, rtol=1e-5, atol=1e-5)


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
    first, second = (attached(run, policy, tiny_tokenizer) for _ in range(2))
    assert first.scorer.model.backbone is policy
    assert second.scorer.model.backbone is not policy
    assert first(samples) == pytest.approx(second(samples), abs=1e-5)
    with pytest.raises(ValueError, match="cannot lie on the policy's backbone: another reward model lies there"):
        attached(run, policy, tiny_tokenizer, placement="backbone")


def test_what_cannot_lie_on_the_backbone_lies_beside_it_or_is_refused(
    run, policy, tiny_llama, tiny_tokenizer, tmp_path
):
    whole = build_backbone(BackboneConfig(str(tiny_llama()), lora=LoraOptions(enabled=False)), reference="none")
    other = build_backbone(BackboneConfig(str(tiny_llama(seed=3)), lora=LoraOptions(r=2)))
    changed = build_backbone(BackboneConfig(str(tiny_llama()), lora=LoraOptions(r=2, init="pissa")))
    merged = build_reward_model(BackboneConfig(str(tiny_llama()), lora=LoraOptions(enabled=False)), {"score": 1.0})
    merged.save(tmp_path)
    for backbone, model, reason in (
        (whole, run, "all weights of the policy are trained"),
        (other, run, "it was trained on '.*', and the policy's base is"),
        (changed, run, "the policy's adapter took its beginning out of the base's weights"),
        (policy, tmp_path, "it is no adapter"),
    ):
        assert attached(model, backbone, tiny_tokenizer).scorer.model.backbone is not backbone
        with pytest.raises(ValueError, match=f"cannot lie on the policy's backbone: {reason}"):
            attached(model, backbone, tiny_tokenizer, placement="backbone")


def test_a_precision_of_its_own_needs_a_base_of_its_own(run, policy, tiny_tokenizer):
    reward = attached(run, policy, tiny_tokenizer, dtype="bfloat16")
    assert reward.scorer.model.base.dtype == torch.bfloat16
    with pytest.raises(ValueError, match="dtype is 'bfloat16' and quantization 'none', and it would take the policy's"):
        attached(run, policy, tiny_tokenizer, dtype="bfloat16", placement="backbone")
    quarter = attached(run, policy, tiny_tokenizer, quantization="nf4")
    assert quarter.scorer.model.base.is_loaded_in_4bit
    assert len(quarter([Sample("", "", (), [7, 8], [9, 10])])) == 1


@torch.no_grad()
def test_the_policy_is_what_it_was_after_scoring(run, policy, tiny_tokenizer, monkeypatch):
    reward = attached(run, policy, tiny_tokenizer)
    policy.train()
    before = policy.token_logprobs(FOREST).logprobs
    model, modes = reward.scorer.model, []
    score = model.scores
    monkeypatch.setattr(
        model, "scores", lambda *given, **options: modes.append(policy.training) or score(*given, **options)
    )
    reward([Sample("", "", (), [7, 8], [9, 10])])
    assert (modes, policy.training) == ([False], True)
    torch.testing.assert_close(policy.token_logprobs(FOREST).logprobs, before, rtol=0, atol=0)


@torch.no_grad()
def test_a_classifier_of_another_kind_reads_the_text_by_its_own_tokenizer(
    policy, tiny_tokenizer, tiny_classifier, word_tokenizer
):
    folder = tiny_classifier("bert", num_labels=1)
    samples = [Sample("what is the capital ?", "paris ."), Sample("hello", "there"), Sample("hello", "no")]
    reward = attached(folder, policy, tiny_tokenizer)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    wanted = [model(**word_tokenizer(one.prompt, one.response, return_tensors="pt")).logits.item() for one in samples]
    assert reward(samples) == pytest.approx(wanted, abs=1e-5)
    assert len({round(score, 3) for score in wanted}) == 3
    assert reward.reader.max_length == 48
    assert reward([Sample("hello " * 100, "paris .")]) == pytest.approx(
        reward([Sample("hello " * 43, "paris .")]), abs=1e-5
    )
    with pytest.raises(ValueError, match="does not know how its scores spread"):
        attached(folder, policy, tiny_tokenizer, normalise=True)
    with pytest.raises(ValueError, match="cannot lie on the policy's backbone: it is a classifier"):
        attached(folder, policy, tiny_tokenizer, placement="backbone")


@torch.no_grad()
def test_a_label_of_a_decoder_reads_the_policys_tokens(policy, tiny_tokenizer, tiny_classifier):
    folder = tiny_classifier("llama", id2label={0: "NEGATIVE", 1: "POSITIVE"}, label2id={"NEGATIVE": 0, "POSITIVE": 1})
    reward = attached(folder, policy, tiny_tokenizer, label="POSITIVE")
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    wanted = model(torch.tensor([[7, 8, 9, 10]])).logits[0, 1].item()
    assert reward([Sample("", "", (), [7, 8], [9, 10])]) == pytest.approx([wanted], abs=1e-5)
    long = list(range(10, 80))
    assert reward([Sample("", "", (), long[:60], long[60:])]) == reward([Sample("", "", (), long[22:60], long[60:])])
    with pytest.raises(ValueError, match="has NEGATIVE, POSITIVE; name the one that is the score"):
        attached(folder, policy, tiny_tokenizer)


@torch.no_grad()
def test_a_reward_model_of_ours_may_have_a_tokenizer_of_its_own(run, policy, tiny_tokenizer, tmp_path):
    policy_tokenizer = deepcopy(tiny_tokenizer)
    policy_tokenizer.add_tokens(["there"])
    tiny_tokenizer.save_pretrained(tmp_path)
    for options in ({"tokenizer": str(tmp_path)}, {"tokenizer": tiny_tokenizer}):
        reward = attached(run, policy, policy_tokenizer, normalise=False, **options)
        messages = [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Hello there!"}]
        ids = tiny_tokenizer.apply_chat_template(messages, return_dict=False)
        wanted = load_reward_model(run).scores(Forest.pack([[Segment(ids, [False] * len(ids))]]))
        assert reward([Sample("?", "Hello there!", tuple(messages[:1]))]) == pytest.approx(wanted.tolist(), abs=1e-5)


def test_where_its_tokenizer_is_looked_for(run, policy, tiny_llama, tiny_tokenizer, tmp_path):
    assert attached(run, policy, tiny_tokenizer, chat_template=CHATML).reader.tokenizer.chat_template == CHATML
    mine = with_template(tiny_tokenizer, CHATML)
    assert (
        attached(run, policy, mine).reader.tokenizer.chat_template == CHATML
    )  # the adapter has none, its base is ours
    other = build_backbone(BackboneConfig(str(tiny_llama(seed=3)), lora=LoraOptions(r=2)))
    assert attached(run, other, mine).reader.has_own_template  # the one beside its base
    copytree(run, tmp_path / "run")
    with_template(tiny_tokenizer, PLAIN).save_pretrained(tmp_path / "run")
    assert attached(tmp_path / "run", policy, mine).reader.tokenizer.chat_template == PLAIN
    with pytest.raises(ValueError, match="tokenizer 'nothing/here' cannot be loaded"):
        attached(run, policy, tiny_tokenizer, tokenizer="nothing/here")


def test_it_goes_where_the_policy_goes(run, policy, tiny_tokenizer, monkeypatch):
    reward = attached(load_reward_model(run), policy, tiny_tokenizer)
    monkeypatch.setattr("lit_rlhf.rewards.model._device", lambda backbone: torch.device("meta"))
    reward._follow()
    assert {parameter.device.type for parameter in reward.scorer.module.parameters()} == {"meta"}


def test_what_is_no_reward_model_is_refused(run, policy, tiny_llama, tiny_tokenizer, tmp_path):
    with pytest.raises(ValueError, match="is no reward model: it is a LlamaForCausalLM without a head"):
        attached(tiny_llama(), policy, tiny_tokenizer)
    with pytest.raises(ValueError, match=r"label is 'good', and '.*' is an adapter, whose score"):
        attached(run, policy, tiny_tokenizer, label="good")
    with pytest.raises(ValueError, match="no folder"):
        attached(tmp_path / "none", policy, tiny_tokenizer)
    with pytest.raises(ValueError, match="token_budget is 0"):
        ModelReward("x", token_budget=0)
