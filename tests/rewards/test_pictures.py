"""A reward model that reads pictures judges a policy's responses: the score that each text has alone."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoTokenizer

from lit_rlhf.models.building import build_backbone
from lit_rlhf.models.heads.reward_model import build_reward_model, load_reward_model
from lit_rlhf.models.options import BackboneConfig, LoraOptions
from lit_rlhf.rewards import FunctionReward
from lit_rlhf.rewards.model import ModelReward
from lit_rlhf.rewards.reward import Sample
from lit_rlhf.types import Forest, Segment
from tests.tiny_pictures import seeing_segment

LORA = LoraOptions(r=2)


def stirred(module):
    for name, parameter in module.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.1)
    return module


@pytest.fixture(scope="module")
def run(tiny_llava, tmp_path_factory):
    """The folder of a finished reward model."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("reward")
    model = stirred(build_reward_model(BackboneConfig(str(tiny_llava), lora=LORA), {"score": 1.0}))
    model.save(folder)
    AutoTokenizer.from_pretrained(tiny_llava).save_pretrained(folder)
    return folder


@pytest.fixture
def policy(tiny_llava):
    torch.manual_seed(1)
    return stirred(build_backbone(BackboneConfig(str(tiny_llava), lora=LORA))).eval()


def make_samples(model):
    """Prompts of the same text with other pictures, several responses to one, and one without pictures."""
    prompts = [seeing_segment(model, seeds) for seeds in ((0,), (0,), (3,), (1, 2, 0), ())]
    responses = [[101, 102], [103], [101, 102], [104, 105, 106], [107]]
    return [
        Sample(f"prompt of {len(one.tokens)}", "", (), one.tokens, tokens, row=f"rows:{row}", pictures=one.pictures)
        for row, (one, tokens) in enumerate(zip(prompts, responses, strict=True))
    ]


@torch.no_grad()
@pytest.mark.parametrize("placement", ["backbone", "separate"])
def test_a_response_has_the_score_that_it_has_alone(placement, run, policy, tiny_llava):
    reward, tokenizer = ModelReward(str(run), placement=placement), AutoTokenizer.from_pretrained(tiny_llava)
    reward.attach(policy, tokenizer, [2])
    samples = make_samples(policy.base)
    model = load_reward_model(run)
    alone = [
        model.scores(
            Forest.pack(
                [
                    [
                        Segment(sample.prompt_tokens, [False] * len(sample.prompt_tokens), -1, sample.pictures),
                        Segment(sample.response_tokens, [False] * len(sample.response_tokens), 0),
                    ]
                ]
            )
        ).item()
        for sample in samples
    ]
    assert reward(samples) == pytest.approx(alone, abs=1e-5)
    assert abs(alone[0] - alone[2]) > 1e-4  # the same text under another picture
    eyes = policy.eyes if placement == "backbone" else reward.scorer.model.backbone.eyes
    assert eyes.num_passes == 4


def test_what_cannot_see_refuses(run, policy, tiny_llava, tiny_llama, tmp_path):
    samples = make_samples(policy.base)
    torch.manual_seed(0)
    blind = build_reward_model(BackboneConfig(str(tiny_llama()), lora=LORA), {"score": 1.0})
    tokenizer = AutoTokenizer.from_pretrained(tiny_llava)
    reward = ModelReward(blind)
    reward.attach(policy, tokenizer, [2])
    with pytest.raises(ValueError, match=r"rows:0: the row has pictures, and the reward model .* reads text alone"):
        reward(samples)
    other = AutoTokenizer.from_pretrained(tiny_llava)
    other.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    reward = ModelReward(str(run), tokenizer=other)
    reward.attach(policy, tokenizer, [2])
    said = samples[0]._replace(messages=({"role": "user", "content": "?"},))
    with pytest.raises(ValueError, match=r"rows:0: .* other tokens or another chat template"):
        reward([said])


def test_a_function_may_name_the_pictures_of_the_rows():
    samples = [Sample("a", "b", columns={"images": ["x.png", "y.png"]}), Sample("a", "b")]
    assert FunctionReward(lambda response, images: len(images or ()))(samples) == [2.0, 0.0]
