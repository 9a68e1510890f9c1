"""All that is estimated of a run, as plain numbers and texts: what the command prints or writes as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lit_rlhf.estimating.advice import advise
from lit_rlhf.estimating.anatomy import anatomy, cache_bytes
from lit_rlhf.estimating.flops import work
from lit_rlhf.estimating.gpus import Device
from lit_rlhf.estimating.phases import memory
from lit_rlhf.estimating.run import Run
from lit_rlhf.estimating.times import READING, UTILISATION, seconds

_ORIGINS = {
    "rough": "activations are a rough guess: the layers of this model cannot be counted without its numbers",
    "counted": "activations were counted on the model's own layers, which ran without numbers",
}


def findings(run: Run, devices: Sequence[Device], assumed: Sequence[str] = ()) -> dict[str, Any]:
    """Estimate a run.

    Args:
        run: the run.
        devices: that it might run on.
        assumed: what had to be assumed to read it.

    Returns:
        Sizes in bytes, times in seconds.
    """
    found = anatomy(run.config, run.backbone.dtype)
    needed = memory(run)
    effort = work(run, found, needed.roles["base"], cache_bytes(found))
    notes = [*assumed, f"speed: {UTILISATION:.0%} of a device's peak, {READING:.0%} of its bandwidth while drawing"]
    if needed.origin in _ORIGINS:
        notes.append(_ORIGINS[needed.origin])
    if run.num_ranks > 1:
        notes.append(
            f"of one of {run.num_ranks} ranks, with weights {'sharded' if run.is_sharded else 'whole on each'}"
        )
    return {
        "algorithm": run.algorithm,
        "model": {
            "type": run.config.model_type,
            "parameters": found.num_all,
            "active_parameters": round(found.num_active) + found.num_head,
            "picture_parameters": found.num_tower,
            "trained_parameters": needed.num_trained,
        },
        "texts": {"prompt": run.texts.prompt, "response": run.texts.response, "largest_pass": needed.pass_tokens},
        "memory": {
            "roles": needed.roles,
            "static": needed.static,
            "phases": {name: {**parts, "peak": needed.peaks[name]} for name, parts in needed.phases.items()},
            "peak": needed.peak,
            "worst_phase": needed.worst,
        },
        "flops": {"phases": effort.flops, "step": sum(effort.flops.values()), "tokens": effort.tokens},
        "devices": [_on(run, each, needed.peak, seconds(effort, each), effort.num_steps) for each in devices],
        "notes": notes,
    }


def _on(run: Run, each: Device, peak: int, times: dict[str, float], num_steps: int | None) -> dict[str, Any]:
    limit = None if each.gigabytes is None else each.gigabytes * 1e9
    step = sum(times.values())
    fits = limit is None or peak <= limit
    return {
        "name": each.name,
        "memory": limit,
        "fits": fits,
        "seconds": times,
        "step_seconds": step,
        "run_seconds": None if num_steps is None else step * num_steps,
        "num_steps": num_steps,
        "advice": [] if fits or limit is None else [change._asdict() for change in advise(run, limit)],
    }
