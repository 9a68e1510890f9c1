"""Random mixtures of experts of every family that is known: 2 layers, 4 experts, 2 of them to a token."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import (
    DeepseekV2Config,
    DeepseekV2ForCausalLM,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    Glm4MoeConfig,
    Glm4MoeForCausalLM,
    Llama4ForCausalLM,
    Llama4TextConfig,
    MixtralConfig,
    MixtralForCausalLM,
    OlmoeConfig,
    OlmoeForCausalLM,
    PreTrainedModel,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

SHAPE: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "num_experts_per_tok": 2,
    "tie_word_embeddings": False,
}
_SMALL = {"moe_intermediate_size": 32}
_GROUPS = {"n_group": 2, "topk_group": 1, "first_k_dense_replace": 1, "n_routed_experts": 8, "n_shared_experts": 1}
_LATENT = {
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 8,
}

FAMILIES: dict[str, Callable[..., PreTrainedModel]] = {
    "mixtral": lambda **o: MixtralForCausalLM(MixtralConfig(**{**SHAPE, "num_local_experts": 4, **o})),
    "qwen2_moe": lambda **o: Qwen2MoeForCausalLM(
        Qwen2MoeConfig(**{**SHAPE, **_SMALL, "num_experts": 4, "shared_expert_intermediate_size": 32, **o})
    ),
    "qwen3_moe": lambda **o: Qwen3MoeForCausalLM(
        Qwen3MoeConfig(**{**SHAPE, **_SMALL, "num_experts": 4, "head_dim": 8, "norm_topk_prob": True, **o})
    ),
    "olmoe": lambda **o: OlmoeForCausalLM(OlmoeConfig(**{**SHAPE, "num_experts": 4, **o})),
    "deepseek_v2": lambda **o: DeepseekV2ForCausalLM(
        DeepseekV2Config(**{**SHAPE, **_SMALL, **_GROUPS, **_LATENT, "topk_method": "group_limited_greedy", **o})
    ),
    "deepseek_v3": lambda **o: DeepseekV3ForCausalLM(
        DeepseekV3Config(**{**SHAPE, **_SMALL, **_GROUPS, **_LATENT, **o})
    ),
    "glm4_moe": lambda **o: Glm4MoeForCausalLM(Glm4MoeConfig(**{**SHAPE, **_SMALL, **_GROUPS, "head_dim": 8, **o})),
    "llama4": lambda **o: Llama4ForCausalLM(
        Llama4TextConfig(**{**SHAPE, "num_local_experts": 4, "intermediate_size_mlp": 48, "head_dim": 8, **o})
    ),
}


def make_mixture(family: str, seed: int = 0, **options: Any) -> PreTrainedModel:
    """A random model in float32 and evaluation mode, whose routers tell tokens apart."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = FAMILIES[family](**options)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith(("gate.weight", "router.weight")):
                    parameter.normal_(std=0.7)
                elif "experts" in name:
                    parameter.normal_(std=0.15)
    return model.eval()
