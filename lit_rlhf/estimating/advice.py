"""What to change in a run that does not fit: settings that need less, with what each saves, in the order to try them.

First what costs nothing but bytes of copies, then what costs time, then what changes the model's numbers, then what
changes what is learnt. To add one: a function from a run to another run and its flags, in the table at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple

from lit_rlhf.estimating.phases import Memory, memory
from lit_rlhf.estimating.run import Run

Change = tuple[Run, str]
_WORTH = 0.995
"""Share of the peak that must not be left for a change to be worth its while."""


class Advice(NamedTuple):
    """A change, and where it leads.

    Args:
        flags: to append to the command line.
        why: what it does and costs.
        saving: bytes of the peak, with the changes before it made already.
        peak: bytes after it.
    """

    flags: str
    why: str
    saving: int
    peak: int


def advise(run: Run, limit: float, begins: Memory | None = None) -> Iterator[Advice]:
    """Changes that save memory, one upon another, until the run fits.

    Args:
        run: that does not fit.
        limit: bytes of the device.
        begins: its memory, where that is known.
    """
    peak = (begins or memory(run)).peak
    while peak > limit:
        steps = (_step(run, limit, peak, change) for _, change in _CHANGES)
        found = next(((step, why) for step, (why, _) in zip(steps, _CHANGES, strict=True) if step), None)
        if found is None:
            return
        (changed, flags, now), why = found
        yield Advice(flags, why, peak - now, now)
        run, peak = changed, now


def _step(run: Run, limit: float, peak: int, change: Callable[[Run], Change | None]) -> tuple[Run, str, int] | None:
    """The run after a change, as often as it helps where it is one of degree; None where it saves nothing."""
    best = None
    while (found := change(run)) is not None and peak > limit:
        now = memory(found[0]).peak
        if now > _WORTH * peak:
            break
        run, peak = found[0], now
        best = (*found, now)
        if change not in _REPEATED:
            break
    return best


def _checkpointing(run: Run) -> Change | None:
    if run.backbone.gradient_checkpointing:
        return None
    changed = replace(run, backbone=replace(run.backbone, gradient_checkpointing=True))
    return changed, "--model.backbone.gradient_checkpointing true"


def _token_budget(run: Run) -> Change | None:
    longest = run.texts.prompt + run.texts.response * (run.texts.per_prompt if run.sampling is None else 1)
    fewer = max(longest, min(run.token_budget, run.step_tokens) // 2)
    if fewer >= min(run.token_budget, run.step_tokens):
        return None
    key = "data.token_budget" if run.sampling is None else "model.updates.token_budget"
    return replace(run, token_budget=fewer), f"--{key} {fewer}"


def _copies(run: Run) -> Change | None:
    if run.device != "cpu" or run.sampling is None or not run.sampling.max_copy_bytes:
        return None
    sampling = run.sampling._replace(max_copy_bytes=0)
    return replace(run, sampling=sampling), f"{_SAMPLER} --model.sampler.max_copy_mib 0"


def _rows(run: Run) -> Change | None:
    if run.sampling is None or run.sampling.max_rows < 2:
        return None
    rows = run.sampling.max_rows // 2
    return (
        replace(run, sampling=run.sampling._replace(max_rows=rows)),
        f"{_SAMPLER} --model.sampler.max_rows {rows}",
    )


def _bfloat16(run: Run) -> Change | None:
    if run.device == "cpu" or run.backbone.dtype == "bfloat16" or not run.backbone.lora.enabled:
        return None
    return replace(run, backbone=replace(run.backbone, dtype="bfloat16")), "--model.backbone.dtype bfloat16"


def _lora(run: Run) -> Change | None:
    if run.backbone.lora.enabled:
        return None
    lora = replace(run.backbone.lora, enabled=True)
    reference = "base" if run.reference == "model" else run.reference
    critic = "adapter" if run.critic == "model" else run.critic
    changed = replace(run, backbone=replace(run.backbone, lora=lora), reference=reference, critic=critic)
    more = " --model.critic.kind adapter" if critic != run.critic else ""
    return changed, f"--model.backbone.lora.enabled true{more}"


def _nf4(run: Run) -> Change | None:
    if run.backbone.quantization == "nf4" or not run.backbone.lora.enabled:
        return None
    return replace(run, backbone=replace(run.backbone, quantization="nf4")), "--model.backbone.quantization nf4"


def _shared_critic(run: Run) -> Change | None:
    if run.critic not in ("adapter", "model"):
        return None
    return replace(run, critic="shared"), "--model.critic.kind shared"


def _response(run: Run) -> Change | None:
    if run.texts.response < 64:
        return None
    shorter = run.texts.response // 2
    changed = replace(run, texts=run.texts._replace(response=shorter))
    if run.sampling is not None:
        return changed, f"--model.sampling.max_new_tokens {shorter}"
    prompt = run.texts.prompt // 2
    changed = replace(run, texts=run.texts._replace(prompt=prompt, response=shorter))
    return changed, f"--data.max_length {prompt + shorter}"


def _rank(run: Run) -> Change | None:
    lora = run.backbone.lora
    if not lora.enabled or lora.r < 16:
        return None
    fewer = replace(lora, r=lora.r // 2)
    return replace(run, backbone=replace(run.backbone, lora=fewer)), f"--model.backbone.lora.r {fewer.r}"


_SAMPLER = "--model.sampler lit_rlhf.rollout.sampling.cached_sampler.CachedSampler"
_CHANGES: tuple[tuple[str, Callable[[Run], Change | None]], ...] = (
    ("no copies of weights while drawing: slower drawing, the same numbers", _copies),
    ("fewer tokens at a time: the same numbers, a little slower", _token_budget),
    ("fewer responses at once: the same responses, slower drawing", _rows),
    ("layers are computed again: the same numbers, about a third more time", _checkpointing),
    ("half as many bytes per number of the base", _bfloat16),
    ("an adapter learns in place of all weights", _lora),
    ("the base in 4 bits (QLoRA): slower, and slightly other numbers", _nf4),
    ("the critic shares the policy's trunk: one pass instead of two", _shared_critic),
    ("an adapter of lower rank", _rank),
    ("shorter texts: what is cut is not learnt", _response),
)
_REPEATED = (_token_budget, _rows, _response)
