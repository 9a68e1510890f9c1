"""What memory holds before the first token: four roles over one copy of a base, measured in a model and computed.

Computed means: transformers, PEFT and this package make the model without its numbers, on torch's device ``meta``, and
every tensor of it is counted. So counts are those of the real thing for a shape that is too large for this machine.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator

import bitsandbytes
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig, PretrainedConfig, PreTrainedModel

from lit_rlhf.models import adapters
from lit_rlhf.models.backbone import Backbone
from lit_rlhf.models.heads.critic import ActorCritic, add_critic
from lit_rlhf.models.heads.reward_model import RewardModel
from lit_rlhf.models.heads.score_head import ScoreHead
from lit_rlhf.models.options import CriticOptions, LoraOptions
from lit_rlhf.rollout.sampling.forest_decoder import ForestDecoder

# hidden, layers, heads, heads of keys and values, MLP, vocabulary. All untied; LoRA of rank 16 on all linear layers.
SHAPES = {
    "small": (256, 4, 8, 4, 768, 2000),
    "reference": (4096, 32, 32, 32, 11008, 151_936),
    "llama2_7b": (4096, 32, 32, 32, 11008, 32_000),
    "llama3_8b": (4096, 32, 32, 8, 14336, 128_256),
}
ROLES = ("base", "policy", "reference", "reward", "critic", "gradients", "optimizer")
BLOCK, NESTED_BLOCK = 64, 256
"""Numbers that share a scale in NF4, and scales that share one of theirs (double quantisation)."""
TABLES = 4 * (16 + 256 + 1)
"""Bytes of what each quantised layer has once: the 16 values of NF4, the 256 of its scales, and their mean."""


def make_config(shape: str, dtype: str) -> LlamaConfig:
    """The config of a shape."""
    hidden, layers, heads, kv_heads, mlp, vocabulary = SHAPES[shape]
    return LlamaConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        intermediate_size=mlp,
        vocab_size=vocabulary,
        max_position_embeddings=131_072,
        tie_word_embeddings=False,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        dtype=dtype,
    )


def with_reward(model: PreTrainedModel) -> RewardModel:
    """A reward model on the backbone of a policy: fresh adapters of both on one base, and the reward's head."""
    policy = adapters.new_adapter(model.requires_grad_(False), LoraOptions())
    adapters.add_fresh_adapter(policy, adapters.POLICY, adapters.REWARD)
    for parameter in adapters.adapter_parameters(policy, adapters.REWARD):
        parameter.requires_grad_(False)
    head = ScoreHead(model.config.hidden_size, {"score": 1.0}).requires_grad_(False)
    return RewardModel(Backbone(policy), head)


def with_critic(reward: RewardModel) -> ActorCritic:
    """The policy with its critic, the fourth role, as PPOModule adds it."""
    return add_critic(reward.backbone, CriticOptions(init_from="fresh"), None)


def computed_bytes(shape: str, quantization: str = "nf4", dtype: str = "bfloat16") -> dict[str, int]:
    """Bytes of each role, by arithmetic on the tensors that the roles would have."""
    with torch.device("meta"):
        model = _without_numbers(shape, dtype)
        four_bits = {id(layer.weight) for layer in _quantised(model)} if quantization == "nf4" else set()
        reward = with_reward(model)
        critic = with_critic(reward)
    found = _by_role(critic, reward, lambda tensor: _nf4_bytes(tensor) if id(tensor) in four_bits else tensor.nbytes)
    trained = [parameter for parameter in critic.parameters() if parameter.requires_grad]
    found["gradients"] = sum(parameter.nbytes for parameter in trained)
    # Two moments of each number, and the count of steps of each tensor.
    found["optimizer"] = sum(2 * parameter.nbytes + 4 for parameter in trained)
    return found


def base_bytes(shape: str, quantization: str, dtype: str = "bfloat16") -> int:
    """Bytes of the base alone, by the same arithmetic."""
    with torch.device("meta"):
        model = _without_numbers(shape, dtype)
    saved = sum(layer.weight.nbytes - _nf4_bytes(layer.weight) for layer in _quantised(model))
    return sum(tensor.nbytes for _, tensor in _tensors(model)) - (saved if quantization == "nf4" else 0)


def stored_bytes(critic: ActorCritic, reward: RewardModel) -> dict[str, int]:
    """Bytes of each role of a model that is there, what belongs to its 4-bit weights included."""
    return _by_role(critic, reward, lambda tensor: sum(part.nbytes for part in _parts(tensor)))


def cache_bytes(config: PretrainedConfig, dtype: str) -> int:
    """Bytes that the sampler's cache takes for a token of a response: a key and a value per layer and head."""
    return 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * getattr(torch, dtype).itemsize


def measured_cache_bytes(backbone: Backbone) -> float:
    """The same, of a cache that is there."""
    with torch.no_grad():
        cache = ForestDecoder(backbone, [[1, 5, 6], [1, 7, 8]], [0, 0, 1], capacity=5).cache
    return cache.num_bytes / cache.num_tokens


def total_bytes(found: dict[str, int]) -> int:
    """Bytes of all roles together."""
    return sum(found[role] for role in ROLES)


def _without_numbers(shape: str, dtype: str) -> PreTrainedModel:
    return AutoModelForCausalLM.from_config(make_config(shape, dtype), dtype=getattr(torch, dtype))


def _by_role(critic: ActorCritic, reward: RewardModel, size_of: Callable[[Tensor], int]) -> dict[str, int]:
    """Bytes by role; what several names lead to is counted once."""
    found: defaultdict[str, int] = defaultdict(int, dict.fromkeys(ROLES, 0))
    seen: set[int] = set()
    heads = [(f"{adapters.REWARD}.{name}", tensor) for name, tensor in _tensors(reward.score)]
    for name, tensor in [*_tensors(critic), *heads]:
        if id(tensor) not in seen:
            found[_role(name)] += size_of(tensor)
        seen.add(id(tensor))
    return dict(found)


def _role(name: str) -> str:
    """Whose a tensor is, by its name."""
    parts = {"critic" if part == "v_head" else part for part in name.split(".")}
    return next((role for role in ("policy", "reference", "reward", "critic") if role in parts), "base")


def _tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [*module.named_parameters(), *module.named_buffers()]


def _quantised(model: PreTrainedModel) -> Iterator[nn.Linear]:
    """The layers that are quantised: all linear ones but ``lm_head``."""
    head = model.get_output_embeddings()
    return (layer for layer in model.modules() if isinstance(layer, nn.Linear) and layer is not head)


def _nf4_bytes(weight: Tensor) -> int:
    """Half a byte per number, a byte per block's scale, four per scale of scales, and the tables."""
    blocks = math.ceil(weight.numel() / BLOCK)
    return math.ceil(weight.numel() / 2) + blocks + 4 * math.ceil(blocks / NESTED_BLOCK) + TABLES


def _parts(tensor: Tensor) -> list[Tensor]:
    """A tensor with what its 4-bit numbers are read by."""
    if not isinstance(tensor, bitsandbytes.nn.Params4bit):
        return [tensor]
    state = tensor.quant_state
    return [tensor, state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code]
