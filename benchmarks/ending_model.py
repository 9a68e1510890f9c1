"""Lets a model with random weights end its responses as often as is wanted, so that they have lengths to speak of."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

NUM_PROMPTS = 32


def ending_rate(mean_length: float, max_length: int) -> float:
    """Chance per token at which responses of at most ``max_length`` tokens have this mean length."""
    low, high = 1e-6, 1.0
    for _ in range(60):
        rate = (low + high) / 2
        low, high = (rate, high) if (1 - (1 - rate) ** max_length) / rate > mean_length else (low, rate)
    return low


@torch.no_grad()
def let_responses_end(folder: Path, rows: Path, mean_length: float, max_length: int, device: str) -> None:
    """Give the stored model the mean length, as far as its first tokens tell.

    Every embedding is moved by one and the same vector. The residual stream carries it to the head, whose row of the
    end-of-text token is that vector again, at the scale at which this token has the chance that is wanted.

    Args:
        folder: the model and its tokenizer; written over.
        rows: .jsonl with prompts to measure on.
        mean_length: of responses, in tokens, the end-of-text token included.
        max_length: of responses, in tokens.
        device: where the model computes.
    """
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", device_map={"": device})
    direction = torch.nn.functional.normalize(torch.randn(model.config.hidden_size), dim=0).to(model.lm_head.weight)
    model.model.embed_tokens.weight += direction
    states = _last_states(model, folder, rows)
    logits = torch.nn.functional.linear(states, model.lm_head.weight.float())
    logits[:, model.config.eos_token_id] = -torch.inf
    others, pull = logits.logsumexp(1), states @ direction.float()
    wanted, low, high = ending_rate(mean_length, max_length), 0.0, 100.0
    for _ in range(60):
        scale = (low + high) / 2
        low, high = (scale, high) if torch.sigmoid(scale * pull - others).mean() < wanted else (low, scale)
    model.lm_head.weight[model.config.eos_token_id] = low * direction
    model.save_pretrained(folder)


def _last_states(model: PreTrainedModel, folder: Path, rows: Path) -> torch.Tensor:
    """(P, H) float32, what the head reads at the last token of some prompts."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompts = [json.loads(line)["prompt"] for line in rows.read_text().splitlines()[:NUM_PROMPTS]]
    ids = (tokenizer(prompt, return_tensors="pt").input_ids.to(model.device) for prompt in prompts)
    return torch.cat([model.model(input_ids=one, use_cache=False).last_hidden_state[:, -1] for one in ids]).float()
