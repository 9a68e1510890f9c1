"""Operations of a run: two for each number of a matrix that a token meets, and attention.

A pass forward costs F. Backward costs F again for what flows to the inputs, a third F where the weights themselves
learn, and a further one where layers are computed again (gradient checkpointing).
"""

from __future__ import annotations

from typing import NamedTuple

from lit_rlhf.estimating.anatomy import Anatomy
from lit_rlhf.estimating.passes import is_forest, is_head_trained
from lit_rlhf.estimating.phases import rollout_rows
from lit_rlhf.estimating.run import Run


class Work(NamedTuple):
    """Work of one step (or iteration) on one rank.

    Args:
        flops: operations by phase.
        decode_bytes: bytes that are read, one token after another, while responses are drawn.
        tokens: of prompts and responses that the step is about.
        num_steps: steps or iterations of the run; None = the data's size is not known.
    """

    flops: dict[str, float]
    decode_bytes: float
    tokens: int
    num_steps: int | None


def work(run: Run, found: Anatomy, base_bytes: int, cache_bytes: int) -> Work:
    """Count the work of a step.

    Args:
        run: the run.
        found: its model.
        base_bytes: of its weights as they are stored.
        cache_bytes: of a token in the sampler's cache.
    """
    rows = -(-run.batch_size // run.num_ranks)
    steps = None if run.num_rows is None else max(1, -(-run.num_rows // run.batch_size)) * run.num_epochs
    if run.sampling is None:
        tokens, scored = _tokens(run, found, rows)
        trained = train_flops(run, found, tokens, scored)
        live = run.reference != "none" and not run.is_reference_cached
        reference = _forward(run, found, tokens, scored) if live else 0.0
        return Work({"step": trained + reference}, 0.0, tokens, steps)
    tokens, scored = _tokens(run, found, rows)
    sampling = run.sampling
    critics = 2 if run.critic in ("adapter", "model") else 1
    body = forward_flops(run, found, tokens)
    head = 2.0 * found.vocabulary * found.hidden * scored
    judged = (run.num_reward_adapters + len(run.beside)) * body
    measured = critics * body + head + (body + head if run.reference != "none" else 0.0)
    learnt = sampling.num_epochs * (train_flops(run, found, tokens, scored) + (critics - 1) * _body(run, found, tokens))
    drawn = _forward(run, found, tokens, scored)
    return Work(
        {"rollout": drawn, "score": judged + measured, "update": learnt},
        _decode_bytes(run, found, base_bytes, cache_bytes),
        tokens,
        steps,
    )


def forward_flops(run: Run, found: Anatomy, tokens: int) -> float:
    """Operations of the decoder layers on so many tokens: 2 per active number, and attention to half of a text."""
    config = found.text_config
    heads = config.num_attention_heads
    width = config.to_dict().get("head_dim") or found.hidden // heads
    attended = (run.texts.prompt + run.texts.response) / 2
    attention = 4.0 * heads * width * attended * len(found.layers)
    return tokens * (2.0 * found.num_active + attention)


def train_flops(run: Run, found: Anatomy, tokens: int, scored: int) -> float:
    """Operations of a pass forward and backward."""
    head = 2.0 * found.vocabulary * found.hidden * scored
    head *= 0 if run.algorithm == "reward" else 4 if is_head_trained(run) else 2
    return _body(run, found, tokens) + head


def _body(run: Run, found: Anatomy, tokens: int) -> float:
    again = run.backbone.gradient_checkpointing
    return forward_flops(run, found, tokens) * (2 + again + (not run.backbone.lora.enabled))


def _forward(run: Run, found: Anatomy, tokens: int, scored: int) -> float:
    return forward_flops(run, found, tokens) + 2.0 * found.vocabulary * found.hidden * scored


def _tokens(run: Run, found: Anatomy, rows: int) -> tuple[int, int]:
    """Tokens that are computed for so many rows, and those of responses."""
    texts = run.texts
    responses = rows * (texts.per_prompt if run.sampling is None else run.sampling.num_responses)
    prompts = rows if is_forest(run, found) else responses
    return prompts * texts.prompt + responses * texts.response, responses * texts.response


def _decode_bytes(run: Run, found: Anatomy, base_bytes: int, cache_bytes: int) -> float:
    """Every step reads all weights once, and the cache of the rows that are drawn together."""
    assert run.sampling is not None
    at_once, _ = rollout_rows(run)
    responses = -(-run.batch_size // run.num_ranks) * run.sampling.num_responses
    batches = -(-responses // at_once)
    weights = float(base_bytes)
    if run.backbone.quantization != "none":  # read, written dense, and read again
        weights += 2.0 * found.num_quantised * found.dtype.itemsize
    context = run.texts.prompt / run.sampling.num_responses + run.texts.response / 2
    return batches * run.texts.response * (weights + at_once * context * cache_bytes)
