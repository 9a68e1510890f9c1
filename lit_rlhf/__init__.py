"""lit_rlhf: PyTorch Lightning modules that align language models with human preferences.

Public names are loaded on first use, so that ``import lit_rlhf.losses`` costs no more than torch.
"""

from importlib import import_module

__version__ = "0.1.0"

_PUBLIC = {
    "AutoModelForCausalLMWithValueHead": "lit_rlhf.models.heads.value_model",
    "BackboneConfig": "lit_rlhf.models.options",
    "DPOModule": "lit_rlhf.algorithms.dpo",
    "GRPOModule": "lit_rlhf.algorithms.grpo",
    "LoraOptions": "lit_rlhf.models.options",
    "LossTerm": "lit_rlhf.losses.terms",
    "OnlineDPOModule": "lit_rlhf.algorithms.online_dpo",
    "PPOModule": "lit_rlhf.algorithms.ppo",
    "REINFORCEModule": "lit_rlhf.algorithms.reinforce",
    "RLOOModule": "lit_rlhf.algorithms.rloo",
    "ReferenceOptions": "lit_rlhf.models.options",
    "RewardModel": "lit_rlhf.models.heads.reward_model",
    "RewardModule": "lit_rlhf.algorithms.reward",
    "RewardTerm": "lit_rlhf.losses.reward_terms",
    "SFTModule": "lit_rlhf.algorithms.sft",
    "SafeCheckpointIO": "lit_rlhf.checkpoints.plugin",
    "ValueHead": "lit_rlhf.models.heads.value_head",
    "load_reward_model": "lit_rlhf.models.heads.reward_model",
    "open_checkpoint": "lit_rlhf.checkpoints.plugin",
}

__all__ = [
    "AutoModelForCausalLMWithValueHead",
    "BackboneConfig",
    "DPOModule",
    "GRPOModule",
    "LoraOptions",
    "LossTerm",
    "OnlineDPOModule",
    "PPOModule",
    "REINFORCEModule",
    "RLOOModule",
    "ReferenceOptions",
    "RewardModel",
    "RewardModule",
    "RewardTerm",
    "SFTModule",
    "SafeCheckpointIO",
    "ValueHead",
    "__version__",
    "load_reward_model",
    "open_checkpoint",
]


def __getattr__(name: str) -> object:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'lit_rlhf' has no attribute '{name}'")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return list(__all__)
