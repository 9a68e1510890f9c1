"""A run's memory by role and by phase, out of the parts that the other files of this folder count.

Static memory is there all the time; each phase adds its own. The peak of a run is that of its largest phase.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from lit_rlhf.estimating.anatomy import Anatomy, adapter_tensors, anatomy, base_bytes, cache_bytes
from lit_rlhf.estimating.passes import LayerCosts, Pass, layer_costs, training_pass
from lit_rlhf.estimating.run import Beside, Run, Texts
from lit_rlhf.rollout.sampling.forest_decoder import PREFILL_TOKENS

CONTEXT = 500_000_000
"""Bytes that CUDA takes for itself; an assumption, as it depends on the driver."""
DRAWING = 20
"""Bytes per logit while a token is drawn: four float32 tensors of them, and one in float64."""


class Memory(NamedTuple):
    """Bytes of a run on one device.

    Args:
        roles: static memory by what it is for.
        phases: phase -> name of a part -> bytes beside the static memory.
        origin: where the activations' numbers come from, as in LayerCosts.
        pass_tokens: tokens of the largest forward pass.
        num_trained: numbers that are trained, over all ranks.
    """

    roles: dict[str, int]
    phases: dict[str, dict[str, int]]
    origin: str
    pass_tokens: int
    num_trained: int

    @property
    def static(self) -> int:
        """Bytes that are there all the time."""
        return sum(self.roles.values())

    @property
    def peaks(self) -> dict[str, int]:
        """Most bytes in each phase."""
        return {phase: self.static + sum(parts.values()) for phase, parts in self.phases.items()}

    @property
    def worst(self) -> str:
        """The phase that needs most."""
        return max(self.peaks, key=self.peaks.__getitem__)

    @property
    def peak(self) -> int:
        """Most bytes in any phase."""
        return self.peaks[self.worst]


def memory(run: Run) -> Memory:
    """Count the memory of a run.

    Raises:
        ValueError: if the model or its adapters cannot be made from their configuration.
    """
    found = anatomy(run.config, run.backbone.dtype)
    costs = layer_costs(run, found)
    roles, num_trained, gradients = _roles(run, found)
    own = training_pass(run, found, costs, has_head=run.algorithm != "reward")
    update = _update(run, found, costs, own)
    held = gradients if run.num_passes > 1 else 0  # a single pass peaks before it has left any
    stepping = gradients + _optimizer_in_passing(run, found, gradients)
    phases: dict[str, dict[str, int]] = {"loading": _loading(run, found)}
    if run.sampling is not None:
        phases["rollout"] = _rollout(run, found, costs)
        phases["score"] = {"activations": _score(run, own, update)}
    name = "step" if run.sampling is None else "update"
    if update + held >= stepping:
        phases[name] = {"activations": update, "gradients": held}
    else:
        phases[name] = {"gradients": gradients, "optimizer in passing": stepping - gradients}
    if run.device == "cuda":
        roles["CUDA context"] = CONTEXT
    return Memory(roles, phases, costs.origin, run.pass_tokens, num_trained)


def _roles(run: Run, found: Anatomy) -> tuple[dict[str, int], int, int]:
    """Static bytes by role, the numbers that are trained, and the bytes of their gradients on one rank."""
    backbone, parted = run.backbone, run.num_ranks if run.is_sharded else 1
    base = base_bytes(found, backbone.quantization, with_lm_head=run.algorithm != "reward")
    head = 4 * (found.hidden + 1)
    roles = {"base": base}
    if backbone.lora.enabled:
        tensors = adapter_tensors(found, backbone.lora)
        adapter, trained = sum(x.nbytes for x in tensors), sum(x.numel() for x in tensors)
        trained_bytes, num_tensors = adapter, len(tensors)
        roles["adapter"] = adapter
        roles["reference adapter"] = adapter if run.reference == "adapter" else 0
        roles["reward adapters and heads"] = run.num_reward_adapters * (adapter + head)
    else:
        trained, num_tensors = found.num_all, len(list(found.model.parameters()))
        adapter, trained_bytes = 0, base
    if run.reference == "model":
        roles["reference model"] = base
    if run.algorithm == "reward":
        roles["score head"] = head
        trained, trained_bytes = trained + found.hidden, trained_bytes + head
    if run.critic != "none":
        own = {"adapter": adapter, "shared": 0, "model": base + adapter}[run.critic]
        learnt = {"adapter": adapter, "shared": 0, "model": adapter or base}[run.critic]
        roles["critic"] = own + head
        trained += (learnt // max(1, trained_bytes // max(1, trained))) + found.hidden + 1
        trained_bytes += learnt + head
        num_tensors *= 1 + (run.critic != "shared")
    for beside in run.beside:
        roles[beside.name] = _beside_bytes(run, beside)
    per_number = run.moment_bytes * trained if run.moment_bytes is not None else trained_bytes
    roles["optimizer"] = run.moments * per_number + 4 * num_tensors
    roles = {role: -(-size // parted) for role, size in roles.items() if size}
    if run.is_sharded:
        roles["gathered layers"] = 2 * base // max(1, len(found.layers))
    return roles, trained, -(-trained_bytes // parted)


def _beside_bytes(run: Run, beside: Beside) -> int:
    found = anatomy(beside.config or run.config, beside.dtype if beside.config else run.backbone.dtype)
    return base_bytes(found, beside.quantization, with_lm_head=False)


def _loading(run: Run, found: Anatomy) -> dict[str, int]:
    """What loading needs beside what stays: the largest tensor before it is quantised."""
    if run.backbone.quantization == "none":
        return {"nothing more": 0}
    return {"the largest tensor, not quantised yet": max(p.nbytes for p in found.model.parameters())}


def _update(run: Run, found: Anatomy, costs: LayerCosts, own: Pass) -> int:
    """Activations of an update: of the policy's pass, and of the critic's where that is another one."""
    reference = own.kept + own.without_graph if run.reference != "none" and run.sampling is None else 0
    if run.critic in ("adapter", "model"):
        critic = training_pass(run, found, costs, has_head=False)
        return round(max(own.peak, own.kept + critic.peak))
    return round(max(own.peak, reference))


def _score(run: Run, own: Pass, update: int) -> int:
    """Activations while responses are measured. What the first step learns from is kept where it is one pass."""
    if run.num_passes > 1:
        return round(own.without_graph)
    return round(max(update, own.kept + own.without_graph))


def _rollout(run: Run, found: Anatomy, costs: LayerCosts) -> dict[str, int]:
    """What drawing responses needs: the cache, the prompts' pass, and the logits of a step."""
    assert run.sampling is not None
    rows, prompts = rollout_rows(run)
    sampling, texts = run.sampling, run.texts
    token = cache_bytes(found)
    responses = -(-run.batch_size // run.num_ranks) * sampling.num_responses
    prefill = round(costs.forward * min(PREFILL_TOKENS, prompts * texts.prompt))
    drawing = DRAWING * rows * found.vocabulary
    cache = token * (prompts * texts.prompt + rows * texts.response)
    scores = 3 * 4 * rows * found.text_config.num_attention_heads * (texts.prompt + texts.response)
    copies = 0
    if run.device == "cpu" and found.dtype.itemsize == 4 and costs.is_trimmed:
        copies = min(sampling.max_copy_bytes, 4 * (round(found.num_active) + found.num_head))
    num_begun = -(-run.batch_size // run.num_ranks) * texts.prompt
    alone = costs if costs.origin != "formula" else layer_costs(replace(run, texts=Texts(texts.prompt, 0)), found)
    begun = num_begun * (alone.around + alone.last_all + (len(found.layers) - 1) * alone.kept)
    return {
        "cache": cache,
        "kept of prompts": round(begun) if run.keeps_prompts else 0,
        "logits and scores": max(drawing, scores, prefill - token * rows * texts.response),
        "copies of weights": copies,
        "responses": 20 * responses * texts.response,
    }


def rollout_rows(run: Run) -> tuple[int, int]:
    """How many responses are drawn at once, and to how many prompts."""
    assert run.sampling is not None
    sampling, texts = run.sampling, run.texts
    responses = -(-run.batch_size // run.num_ranks) * sampling.num_responses
    per_prompt = sampling.num_responses * texts.response + texts.prompt
    by_cache = max(1, sampling.max_cache_tokens * sampling.num_responses // per_prompt)
    rows = min(responses, sampling.max_rows, by_cache)
    return rows, -(-rows // sampling.num_responses)


def _optimizer_in_passing(run: Run, found: Anatomy, gradients: int) -> int:
    """What a step needs: on a GPU a copy of all that is trained, on a CPU two of the largest tensor."""
    if run.device == "cuda":
        return gradients
    if not run.backbone.lora.enabled:
        return 2 * max(p.nbytes for p in found.model.parameters())
    return 2 * max(x.nbytes for x in adapter_tensors(found, run.backbone.lora))
