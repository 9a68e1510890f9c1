"""Answers by ``generate`` to prompts with pictures are those of the plain model; text alone is in test_backbone.py."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForImageTextToText

from lit_rlhf.models.building import build_backbone
from lit_rlhf.models.options import BackboneConfig
from tests.tiny_pictures import make_seeing, row_logits, seeing_segment


@pytest.mark.parametrize("kind", ["llava", "qwen2_vl"])
def test_prompts_with_and_without_pictures(kind, tmp_path):
    folder = make_seeing(kind, tmp_path)
    backbone = build_backbone(BackboneConfig(str(folder)), reference="none")
    plain = AutoModelForImageTextToText.from_pretrained(folder).eval()
    prompts = [seeing_segment(plain, seeds, start) for seeds, start in (((0,), 40), ((1, 2, 0), 60), ((), 90))]
    tokens, pictures = [list(prompt.tokens) for prompt in prompts], [prompt.pictures for prompt in prompts]
    found = backbone.generate(tokens, 6, stop_tokens=[2], temperature=0.0, pictures=pictures)
    with torch.no_grad():
        for prompt, seen, answer in zip(tokens, pictures, found, strict=True):
            logits = row_logits(plain, prompt + answer, seen)
            logits[:, plain.config.image_token_id] = -torch.inf
            assert answer == logits[len(prompt) - 1 : -1].argmax(-1).tolist()
