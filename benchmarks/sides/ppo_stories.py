"""What the little stories are rewarded for, and how a policy that writes them is judged; the same for both sides.

Needs transformers alone. A reward takes texts of responses and gives one number each.
"""

from __future__ import annotations

import itertools
import json
import random
import re
import statistics
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

POSITIVE = frozenset(
    (
        *("happy", "happily", "smile", "smiled", "smiles", "smiling", "love", "loved", "loves", "fun", "laugh"),
        *("laughed", "laughing", "hug", "hugged", "thank", "thanked", "good", "nice", "great", "proud", "kind", "joy"),
        *("excited", "wonderful", "beautiful", "glad", "best"),
    )
)
ENOUGH = 6


def positive_words(responses: Sequence[str]) -> list[float]:
    """Share of six positive words."""
    counts = (sum(word in POSITIVE for word in re.findall(r"[a-z]+", text.lower())) for text in responses)
    return [min(count, ENOUGH) / ENOUGH for count in counts]


def closed_quotation(responses: Sequence[str]) -> list[float]:
    """1 where something is said in quotation marks, and they are closed."""
    return [float(bool(re.search(r'"[^"]+"', text))) for text in responses]


def noise(responses: Sequence[str]) -> list[float]:
    """A coin for each: nothing can be learned from it."""
    return [random.random() for _ in responses]


REWARDS = {reward.__name__: reward for reward in (positive_words, closed_quotation, noise)}


def read_prompts(file: str) -> list[str]:
    """Openings of stories."""
    return [json.loads(line)["prompt"] for line in Path(file).read_text().splitlines()]


def judge(policy: str, start: str, prompts_file: str, num_samples: int, max_new_tokens: int) -> dict[str, float]:
    """Sample a stored policy afresh, by transformers alone, and measure the samples.

    Args:
        policy: folder of the model.
        start: folder of the model that it began as, with the tokenizer.
        prompts_file: held-out prompts, begun again where there are too few.
        num_samples: responses.
        max_new_tokens: of a response.

    Returns:
        What :func:`measure` says.
    """
    models = [AutoModelForCausalLM.from_pretrained(name).eval() for name in (policy, start)]
    prompts = list(itertools.islice(itertools.cycle(read_prompts(prompts_file)), num_samples))
    return measure(*models, AutoTokenizer.from_pretrained(start), prompts, max_new_tokens)


@torch.no_grad()
def measure(
    policy: PreTrainedModel,
    start: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[str],
    max_new_tokens: int,
) -> dict[str, float]:
    """Draw a response to every prompt, always with the same random numbers, and measure the responses.

    Returns:
        Means over responses: each reward, ``kl`` (from the start, nats per response), ``length`` (tokens), ``finished``
        (share that ended by itself).
    """
    asked = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left")
    torch.manual_seed(0)
    texts = policy.generate(**asked, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=max_new_tokens)
    responses = texts[:, asked.input_ids.shape[1] :]
    ends = (responses == tokenizer.eos_token_id).int()
    response_mask = ends.cumsum(1) - ends == 0  # the token that ends a response is its last
    mask = torch.cat([asked.attention_mask, response_mask.long()], 1)
    log_ratios = _logprobs(policy, texts, mask, responses) - _logprobs(start, texts, mask, responses)
    kept = [row[mask] for row, mask in zip(responses, response_mask, strict=True)]
    written = tokenizer.batch_decode(kept, skip_special_tokens=True)
    return {
        **{name: statistics.mean(REWARDS[name](written)) for name in ("positive_words", "closed_quotation")},
        "kl": log_ratios.where(response_mask, 0.0).sum(1).mean().item(),
        "length": response_mask.sum(1).float().mean().item(),
        "finished": ends.any(1).float().mean().item(),
    }


def _logprobs(model: PreTrainedModel, texts: torch.Tensor, mask: torch.Tensor, responses: torch.Tensor) -> torch.Tensor:
    """(L, R), in nats, of the tokens of responses; what stands behind a response is anything."""
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    logits = model(input_ids=texts, attention_mask=mask, position_ids=positions).logits
    logprobs = logits[:, -responses.shape[1] - 1 : -1].log_softmax(-1)
    return logprobs.gather(2, responses[:, :, None]).squeeze(2)
