"""What a user says about a backbone. Plain dataclasses: the command line shows them field by field."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass
class LoraOptions:
    """Low-rank adapters on the frozen backbone (Hu et al., "LoRA", arXiv 2106.09685).

    Args:
        enabled: False trains every weight of the backbone instead (full fine-tuning).
        r: rank of the update, 8-64 usual.
        alpha: scale of the update; it is multiplied by alpha / r (alpha / sqrt(r) with ``use_rslora``).
        dropout: probability of dropping an input of the adapter while training, 0-0.1 usual. The backbone's own
            dropout is always off.
        target_modules: "all-linear" (every linear layer but the head), a regular expression, or a list of name endings
            such as ``[q_proj, v_proj]``. Of a model that reads pictures, "all-linear" is its language model, where name
            endings are looked for first; ``multi_modal_projector.linear_1`` adds a layer beside it.
        exclude_modules: name endings that get no adapter although they match.
        modules_to_save: name endings of layers that are trained whole beside the adapter, such as ``[lm_head]``.
        init: how the adapter starts. "default" and "gaussian" start as no change; "orthogonal" too; "pissa" (arXiv
            2404.02948) and "olora" (arXiv 2406.01775) take their start out of the backbone's weights.
        target_experts: put an adapter on the experts of a mixture, too; in stacked weights "all-linear" does not see
            them. Without dropout.
        use_rslora: scale by alpha / sqrt(r) (arXiv 2312.03732).
        use_dora: train magnitude and direction apart (arXiv 2402.09353).
    """

    enabled: bool = True
    r: int = 16
    alpha: float = 32
    dropout: float = 0.0
    target_modules: str | list[str] = "all-linear"
    exclude_modules: list[str] = field(default_factory=list)
    modules_to_save: list[str] = field(default_factory=list)
    init: Literal["default", "gaussian", "orthogonal", "pissa", "olora"] = "default"
    target_experts: bool = False
    use_rslora: bool = False
    use_dora: bool = False

    def __post_init__(self) -> None:
        if self.r < 1:
            raise ValueError(
                f"lora.r is {self.r}; it must be at least 1 (to train without adapters: lora.enabled=false)"
            )
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"lora.dropout is {self.dropout}; it must be at least 0 and less than 1")


@dataclass
class BackboneConfig:
    """The base model that carries every role, and how it is held and trained.

    Args:
        name_or_path: a Hugging Face folder or hub name of a causal language model, weights in safetensors; one that
            reads pictures among text, such as LLaVA or Qwen2-VL, too.
        adapter: folder or hub name of a PEFT LoRA adapter to go on from. Its rank and targets apply instead of
            ``lora``'s; ``lora.dropout`` still counts. The reference policy is then a frozen copy of it.
        revision: branch, tag or commit of a hub name.
        quantization: "none", "nf4" (4 bits, QLoRA, with double quantisation) or "int8"; through bitsandbytes.
        dtype: of the frozen weights and the computation; "auto" is what the checkpoint was saved in.
        attention: "auto" computes on the forest where that is exact for this model and on padded rows elsewhere, and
            says which; "forest" refuses models that cannot take it; any name that transformers knows ("sdpa",
            "eager", "flash_attention_2", ...) computes on padded rows with it.
        gradient_checkpointing: recompute each decoder layer in the backward pass: a fraction of the memory for about
            a third more time.
        fused: run LoRA layers, norms and gated MLPs of Llama-type decoders through this package's own autograd
            functions, which keep less and do less; layers that do not fit keep the stock path.
        lora: the adapters.
        train_router: train the routers of a mixture of experts as well, by adapters of their own, or whole where all
            weights are trained. Otherwise they stay as they are.
        router_aux_loss_coef: weight of the load-balancing loss, 0.001-0.02 usual where routers are trained; 0 = none.
            It reaches a frozen router's input as well: through the layers below.
    """

    name_or_path: str
    adapter: str | None = None
    revision: str | None = None
    quantization: Literal["none", "nf4", "int8"] = "none"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    attention: str = "auto"
    gradient_checkpointing: bool = False
    fused: bool = True
    lora: LoraOptions = field(default_factory=LoraOptions)
    train_router: bool = False
    router_aux_loss_coef: float = 0.0

    def __post_init__(self) -> None:
        if self.router_aux_loss_coef < 0:
            raise ValueError(f"backbone.router_aux_loss_coef is {self.router_aux_loss_coef}; it is not negative")
        if not self.lora.enabled and self.quantization != "none":
            raise ValueError(
                f"quantization '{self.quantization}' freezes the backbone, and lora.enabled=false trains it: "
                "set quantization to 'none' or lora.enabled to true"
            )
        if not self.lora.enabled and self.adapter is not None:
            raise ValueError("backbone.adapter needs lora.enabled=true; to train all weights, merge the adapter first")


@dataclass
class ReferenceOptions:
    """The reference policy: computed live or once, fixed or moving.

    Args:
        cache: compute the reference's log-probabilities once per example and keep them on disk.
        cache_folder: where; None = ``reference_logprobs`` in the run folder.
        sync_steps: optimizer steps between two moves of the reference (TR-DPO, arXiv 2404.09656); 0 = it never moves.
        mixup: share of the policy in a move, 0-1; 1 copies the policy.
    """

    cache: bool = False
    cache_folder: str | None = None
    sync_steps: int = 0
    mixup: float = 0.6

    def __post_init__(self) -> None:
        if self.cache and self.sync_steps:
            raise ValueError("reference.cache keeps what a reference said once, and sync_steps moves it: choose one")
        if self.sync_steps < 0 or not 0.0 < self.mixup <= 1.0:
            raise ValueError(
                f"reference.sync_steps is {self.sync_steps} and mixup is {self.mixup}; "
                "the first must not be negative, the second must lie in (0, 1]"
            )


@dataclass
class CriticOptions:
    """Where the values of states come from.

    Args:
        kind: "adapter": an adapter of its own on the policy's backbone (default). "shared": the policy's own trunk
            with a value head on it, one pass for both; the value loss then moves the policy, too. "model": a model of
            its own, for a policy whose weights are all trained, or where memory is plenty.
        init_from: folder or hub name of a reward model whose adapter (or weights) and head the critic begins as.
            "reward" takes the first reward model among the rewards; "fresh" begins with values of 0.
        lr_factor: learning rate of the critic's weights, in learning rates of the policy; 10 usual with adapters.
        warmup_iterations: iterations at the beginning in which only the critic learns.
    """

    kind: Literal["adapter", "shared", "model"] = "adapter"
    init_from: str = "reward"
    lr_factor: float = 10.0
    warmup_iterations: int = 0

    def __post_init__(self) -> None:
        if self.lr_factor <= 0.0 or self.warmup_iterations < 0:
            raise ValueError(
                f"critic.lr_factor is {self.lr_factor} and warmup_iterations is {self.warmup_iterations}; "
                "the first is above 0, the second is not negative"
            )
        if self.kind == "shared" and self.init_from not in ("reward", "fresh"):
            raise ValueError(
                f"critic.init_from is '{self.init_from}' and kind is 'shared', whose trunk is the policy's: a reward "
                "model's head reads its own; take kind 'adapter' or 'model'"
            )
