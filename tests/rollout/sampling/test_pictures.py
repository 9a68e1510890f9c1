"""Samplers are given prompts with pictures: what they draw is what the plain model says of each row."""

from __future__ import annotations

from contextlib import nullcontext
from itertools import product

import pytest
import torch
from transformers import AutoModelForImageTextToText

from lit_rlhf.models.building import build_backbone
from lit_rlhf.models.options import BackboneConfig
from lit_rlhf.rollout.sampling import forest_decoder
from lit_rlhf.rollout.sampling.cached_sampler import CachedSampler
from lit_rlhf.rollout.sampling.continuous_sampler import ContinuousSampler
from lit_rlhf.rollout.sampling.generate_sampler import GenerateSampler
from lit_rlhf.rollout.sampling.token_stream import StreamOptions, TokenStream
from lit_rlhf.types import Prompt
from tests.tiny_pictures import make_seeing, picture_for, row_logits, seeing_segment


def make_prompt(tokens, row="rows.jsonl:0", pictures=()):
    return Prompt(tuple(tokens), "", (), {}, row, "rows", pictures)


def rows_alone(plain, rollouts):
    """Each response and the logits of its tokens in a row of its own, of which the log-probabilities must be."""
    rows = []
    for prompt, ids, mask, found in zip(
        rollouts.prompts, rollouts.tokens, rollouts.response_mask, rollouts.logprobs, strict=True
    ):
        response = ids[mask].tolist()
        with torch.no_grad():
            row = row_logits(plain, [*prompt.tokens, *response], prompt.pictures)[len(prompt.tokens) - 1 : -1]
        logprobs = torch.log_softmax(row, -1)[torch.arange(len(response)), response]
        torch.testing.assert_close(found[mask], logprobs, rtol=0, atol=2e-5)
        rows.append((response, row))
    return rows


@pytest.mark.parametrize(
    ("kind", "attention"),
    [*product(("llava", "qwen2_vl", "qwen3_vl", "mllama"), ("forest", "sdpa")), ("llama4", "auto")],
)
def test_prompts_with_pictures(kind, attention, make_request, tmp_path):
    """Greedy answers and log-probabilities are those of the plain model; prompts that differ in a picture are two."""
    folder = make_seeing(kind, tmp_path)
    backbone = build_backbone(BackboneConfig(str(folder), attention=attention), reference="none")
    plain = AutoModelForImageTextToText.from_pretrained(folder, attn_implementation="eager").eval()
    shown = [seeing_segment(plain, seeds, 40) for seeds in ((0,), (3,), (1, 2, 0), ())]
    prompts = [make_prompt(one.tokens, pictures=one.pictures) for one in shown]
    assert prompts[0].tokens == prompts[1].tokens
    request = make_request(prompts=prompts, num_responses=2, temperature=0.0, max_new_tokens=6, stop_tokens=[2, 3])
    rollouts = CachedSampler()(backbone, request)
    image = plain.config.image_token_id
    for response, row in rows_alone(plain, rollouts):
        drawable = row.clone()[:, : len(request.tokenizer)]
        drawable[:, image : image + 1] = -torch.inf  # that of Llama 3.2 Vision lies outside of the head
        assert response == drawable.argmax(-1).tolist()
    assert rollouts.tokens[0].tolist() != rollouts.tokens[2].tolist()
    if attention == "forest":
        assert backbone.eyes.num_passes == 4


@pytest.mark.parametrize("attention", ["forest", "sdpa"])
def test_what_goes_on_when_others_have_ended_sees_its_own_pictures(attention, make_request, tmp_path, monkeypatch):
    """Prompts without pictures are computed together, apart from those with some."""
    monkeypatch.setattr(forest_decoder, "PREFILL_TOKENS", 8)
    folder = make_seeing("mllama", tmp_path)
    backbone = build_backbone(BackboneConfig(str(folder), attention=attention), reference="none")
    plain = AutoModelForImageTextToText.from_pretrained(folder, attn_implementation="eager").eval()
    seeds = ((0,), (), (1, 2), (), (2,))
    shown = [seeing_segment(plain, own, 40 + 20 * number) for number, own in enumerate(seeds)]
    prompts = [make_prompt(one.tokens, pictures=one.pictures) for one in shown]
    request = make_request(prompts=prompts, num_responses=3, max_new_tokens=6, stop_tokens=range(2, 320, 4))
    rollouts = CachedSampler()(backbone, request)
    assert len(set(rollouts.response_mask.sum(1).tolist())) > 3
    assert len(rows_alone(plain, rollouts)) == 15


@pytest.mark.parametrize("attention", ["forest", "sdpa"])
def test_text_alone_of_a_model_whose_layers_look(attention, make_request, tmp_path):
    """Those layers are left out."""
    folder = make_seeing("mllama", tmp_path)
    backbone = build_backbone(BackboneConfig(str(folder), attention=attention), reference="none")
    plain = AutoModelForImageTextToText.from_pretrained(folder, attn_implementation="eager").eval()
    prompts = [make_prompt([40, 41, 42]), make_prompt([50, 51])]
    request = make_request(prompts=prompts, num_responses=2, temperature=0.0, max_new_tokens=5, stop_tokens=[2])
    rollouts = CachedSampler()(backbone, request)
    for prompt, ids, mask in zip(rollouts.prompts, rollouts.tokens, rollouts.response_mask, strict=True):
        response = ids[mask].tolist()
        with torch.no_grad():
            row = row_logits(plain, [*prompt.tokens, *response], ())[len(prompt.tokens) - 1 : -1]
        assert response == row[:, : len(request.tokenizer)].argmax(-1).tolist()


@pytest.mark.parametrize("kind", ["qwen2_vl", "mllama"])
def test_a_conversation_about_pictures(kind, tmp_path):
    """What is kept of the turns before, and what is computed anew, comes to the same as the plain model."""
    folder = make_seeing(kind, tmp_path)
    backbone = build_backbone(BackboneConfig(str(folder)), reference="none")
    plain = AutoModelForImageTextToText.from_pretrained(folder, attn_implementation="eager").eval()
    stream, shown = TokenStream(backbone, nullcontext), seeing_segment(plain, (0, 1), 40)
    options = StreamOptions(temperature=0.0, max_new_tokens=5)
    prompt = [*shown.tokens]
    turns = (([], False), ([60, 61, 62], True), ([], kind != "mllama"))  # the third takes the second answer back
    for more, is_kept in turns:
        prompt += more
        drawn = [
            one.token for one in stream.draw(prompt, options, stop_tokens=[2], num_tokens=300, pictures=shown.pictures)
        ]
        assert (stream.num_reused > 0) == is_kept
        with torch.no_grad():
            row = row_logits(plain, [*prompt, *drawn], shown.pictures)[len(prompt) - 1 : -1, :300]
        row[:, plain.config.image_token_id : plain.config.image_token_id + 1] = -torch.inf
        assert drawn == row.argmax(-1).tolist()
        prompt += drawn if not more else [99]


def test_an_image_token_is_never_drawn(make_request, tmp_path):
    backbone = build_backbone(BackboneConfig(str(make_seeing("llava", tmp_path))), reference="none")
    (image,) = backbone.undrawn_tokens
    with torch.no_grad():
        backbone.base.lm_head.weight[image] = 20 * backbone.base.lm_head.weight[9]  # likely wherever 9 is
    for sampler in (CachedSampler(), GenerateSampler()):
        rollouts = sampler(backbone, make_request(lengths=(4, 5, 6, 7), num_responses=8, max_new_tokens=12))
        assert not (rollouts.tokens == image).any()
    request = make_request(prompts=[make_prompt([5], "rows.jsonl:7", (picture_for(backbone.base, 0),))])
    with pytest.raises(ValueError, match=r"rows\.jsonl:7: ContinuousSampler takes no pictures"):
        ContinuousSampler()(backbone, request)
