"""A configuration as ``fit`` takes it, to the run that is estimated."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, NamedTuple

from jsonargparse import Namespace
from lightning.pytorch import LightningDataModule, LightningModule
from transformers import AutoConfig, PretrainedConfig

from datamodules.inspection import inspect
from datamodules.prompts_and_texts import PromptAndTextDataModule
from datamodules.streamed import StreamedDataModule
from lit_rlhf.algorithms.dpo import DPOModule
from lit_rlhf.algorithms.grpo import GRPOModule
from lit_rlhf.algorithms.online_dpo import OnlineDPOModule
from lit_rlhf.algorithms.ppo import PPOModule
from lit_rlhf.algorithms.reinforce import REINFORCEModule
from lit_rlhf.algorithms.reward import RewardModule
from lit_rlhf.algorithms.rloo import RLOOModule
from lit_rlhf.algorithms.sft import SFTModule
from lit_rlhf.commands.training import read_run
from lit_rlhf.estimating.run import Beside, Run, Sampling, Texts
from lit_rlhf.models import adapters
from lit_rlhf.models.loading import local_or_hub
from lit_rlhf.models.options import BackboneConfig
from lit_rlhf.rewards.model import ModelReward
from lit_rlhf.rollout.sampling.cached_sampler import CachedSampler

_SAMPLED_ROWS = 200
"""Rows of each source that are read to know how long texts are."""
_MOMENTS = {"SGD": (0, None), "AdamW8bit": (2, 1), "Adam8bit": (2, 1), "PagedAdamW8bit": (2, 1), "Lion": (1, None)}
"""Numbers that an optimizer keeps of each trained one, and their bytes; Adam's two where it is not named here."""


class Said(NamedTuple):
    """What the command line says beside the configuration.

    Args:
        model_config: file to read the model's configuration from; None = what its name leads to.
        prompt_tokens: of a prompt; None = as the data are.
        response_tokens: of a response; None = as the data are, or the most that are drawn.
        rows: of the data; None = they are counted.
        device: cuda, cpu or None = what the trainer takes.
    """

    model_config: Path | None = None
    prompt_tokens: int | None = None
    response_tokens: int | None = None
    rows: int | None = None
    device: Literal["cuda", "cpu"] | None = None


def read(words: Sequence[str], said: Said) -> tuple[Run, list[str]]:
    """The run of a configuration, and what had to be assumed.

    Args:
        words: as they follow ``fit``.
        said: beside them.

    Raises:
        ValueError: if the configuration or the model's cannot be read, or names an algorithm of another package.
    """
    module, data, config = read_run(words)
    word, facts = _facts(module)
    backbone: Any = facts["backbone"]
    if not isinstance(backbone, BackboneConfig):
        raise ValueError("model.backbone is no configuration of a backbone, so nothing is known of it")
    model_config = _model_config(backbone, said.model_config)
    prompts = data.prompts if isinstance(data, PromptAndTextDataModule) else data
    assumed: list[str] = []
    texts, rows = _texts(prompts, facts.get("sampling"), said, assumed)
    trainer = config.trainer
    ranks, device = _ranks(trainer), said.device or ("cpu" if trainer.accelerator == "cpu" else "cuda")
    moments, moment_bytes = _optimizer(config)
    accumulated = trainer.accumulate_grad_batches or 1
    run = Run(
        algorithm=word,
        config=model_config,
        texts=texts,
        token_budget=facts.pop("token_budget", None) or vars(prompts or Namespace()).get("token_budget", 4096),
        batch_size=vars(prompts or Namespace()).get("batch_size", 16) * accumulated,
        moments=moments,
        moment_bytes=moment_bytes,
        device=device,
        is_autocast="mixed" in str(trainer.precision or ""),
        num_ranks=ranks,
        is_sharded=ranks > 1 and "fsdp" in str(trainer.strategy).lower(),
        num_rows=rows,
        num_epochs=max(1, trainer.max_epochs or 1),
        **facts,
    )
    return run, assumed


def _facts(module: LightningModule) -> tuple[str, dict[str, Any]]:
    """The word of an algorithm, and what it says of a run."""
    for kind, (word, facts) in _ALGORITHMS.items():
        if isinstance(module, kind):
            return word, facts(module)
    raise ValueError(
        f"model.class_path is {type(module).__name__}, whose memory is not known; known are "
        f"{', '.join(kind.__name__ for kind in _ALGORITHMS)}"
    )


def _imitation(module: Any) -> dict[str, Any]:
    return {"backbone": module.backbone}


def _preference(module: DPOModule) -> dict[str, Any]:
    options = module.reference
    reference = _reference(module.backbone, is_moving=bool(options.sync_steps)) if module.needs_reference else "none"
    return {"backbone": module.backbone, "reference": reference, "is_reference_cached": options.cache}


def _rollouts(module: Any) -> dict[str, Any]:
    iterations = module.iterations
    collector, updates = iterations.collector, iterations.updates
    sampler = collector.sampler if isinstance(collector.sampler, CachedSampler) else CachedSampler()
    models = [each.reward for each in collector.rewards if isinstance(each.reward, ModelReward)]
    apart = [reward for number, reward in enumerate(models) if number or not _lies_on_backbone(reward)]
    beside = [_beside(f"reward model {reward.model}", str(reward.model), reward) for reward in apart]
    reference = _reference(module.backbone)
    if module.reference_model is not None:
        own = module.reference_model
        beside.append(_beside("reference model", own.name_or_path, own))
        reference = "base"
    return {
        "backbone": module.backbone,
        "token_budget": updates.token_budget,
        "reference": reference,
        "num_reward_adapters": len(models) - len(apart),
        "beside": tuple(beside),
        "sampling": Sampling(
            num_responses=collector.sampling.num_responses,
            max_new_tokens=collector.sampling.max_new_tokens,
            max_rows=sampler.max_rows,
            max_cache_tokens=sampler.max_cache_tokens,
            max_copy_bytes=sampler.max_copy_mib * 2**20,
            num_epochs=updates.num_epochs,
            num_minibatches=updates.num_minibatches,
        ),
    }


def _actor_critic(module: PPOModule) -> dict[str, Any]:
    return {**_rollouts(module), "critic": module.critic.kind}


_ALGORITHMS: dict[type, tuple[str, Callable[[Any], dict[str, Any]]]] = {
    SFTModule: ("sft", _imitation),
    RewardModule: ("reward", _imitation),
    DPOModule: ("dpo", _preference),
    PPOModule: ("ppo", _actor_critic),
    GRPOModule: ("grpo", _rollouts),
    RLOOModule: ("rloo", _rollouts),
    REINFORCEModule: ("reinforce", _rollouts),
    OnlineDPOModule: ("online_dpo", _rollouts),
}
"""Algorithms, their words, and how each is read. A new algorithm is one line."""


def _reference(backbone: Any, *, is_moving: bool = False) -> Literal["base", "adapter", "model"]:
    if not isinstance(backbone, BackboneConfig) or not backbone.lora.enabled:
        return "model"
    has_begun = backbone.adapter is not None or backbone.lora.init in adapters.MUTATING
    return "adapter" if is_moving or has_begun else "base"


def _lies_on_backbone(reward: ModelReward) -> bool:
    """Whether a reward model is an adapter on the policy's base; one that is not there yet is taken to be."""
    if reward.placement != "auto":
        return reward.placement == "backbone"
    folder = Path(str(reward.model))
    is_plain = (reward.dtype, reward.quantization) == ("auto", "none")
    return is_plain and (not folder.is_dir() or (folder / "adapter_config.json").is_file())


def _beside(title: str, name: str, options: Any) -> Beside:
    try:
        config = _load_config(name)
    except ValueError:
        config = None
    return Beside(title, config, options.quantization, options.dtype)


def _model_config(backbone: BackboneConfig, file: Path | None) -> PretrainedConfig:
    if file is None:
        return _load_config(backbone.name_or_path, backbone.revision)
    place = file / "config.json" if file.is_dir() else file
    try:
        values = json.loads(place.read_text(encoding="utf-8"))
        return AutoConfig.for_model(**values)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"--model_config {file}: no config.json of a model that transformers knows: {error}") from None


def _load_config(name: str, revision: str | None = None) -> PretrainedConfig:
    place = local_or_hub(name)
    try:
        return AutoConfig.from_pretrained(place, revision=revision, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError) as error:
        if Path(place).is_dir():
            raise ValueError(f"backbone '{name}': {str(error).partition(chr(10))[0]}") from None
        raise ValueError(
            f"backbone '{name}' is neither a folder here nor in the hub's cache, and estimate downloads nothing: "
            f"give its config.json by --model_config FILE"
        ) from None


def _texts(
    data: LightningDataModule | None, sampling: Sampling | None, said: Said, assumed: list[str]
) -> tuple[Texts, int | None]:
    """How long texts are and how many rows there are: as said, as the data are, or as long as they may be."""
    lengths, rows = _lengths(data, said)
    options = vars(data or Namespace())
    per_prompt = 2 if options.get("kind") == "pairs" else 1
    most = options.get("max_length") or 1024
    prompt = said.prompt_tokens or lengths.get("prompt") or options.get("max_prompt_length") or most // 2
    response = said.response_tokens or lengths.get("response") or most - most // 2
    if sampling is not None:
        response = said.response_tokens or sampling.max_new_tokens
        per_prompt = max(1, sampling.num_responses // sampling.num_minibatches)
        assumed.append(f"every response has {response} tokens")
    if not lengths and said.prompt_tokens is None:
        assumed.append(f"prompts have {prompt} tokens: the data cannot be read, and --prompt_tokens says otherwise")
    if rows is None:
        assumed.append("the number of rows is not known (--rows says it), so the whole run's time is not either")
    return Texts(prompt, response, per_prompt), rows


def _lengths(data: LightningDataModule | None, said: Said) -> tuple[dict[str, int], int | None]:
    """Mean tokens of prompts and responses, and the number of rows, as far as the data tell."""
    if not isinstance(data, StreamedDataModule):
        return {}, said.rows
    found: dict[str, list[int]] = {}
    rows: float | None = 0.0
    try:
        for report in inspect(data, "train", _SAMPLED_ROWS, 0):
            number = report.sample.num_rows
            rows = None if number is None or rows is None else rows + number * report.source.weight
            for name, counts in report.lengths.items():
                found.setdefault(name, []).extend(counts)
    except (ValueError, OSError):
        return {}, said.rows
    means = {name: max(1, round(fmean(counts))) for name, counts in found.items()}
    if "trained" in means:  # conversations, of which all that is not learnt counts as prompt
        means.update(prompt=max(1, means["whole"] - means["trained"]), response=means["trained"])
    return means, said.rows or (None if rows is None else round(rows))


def _ranks(trainer: Namespace) -> int:
    devices = trainer.devices
    count = len(devices) if isinstance(devices, list) else int(devices) if str(devices).isdecimal() else 1
    return max(1, count) * (trainer.num_nodes or 1)


def _optimizer(config: Namespace) -> tuple[int, int | None]:
    named = config.model.init_args.get("optimizer")
    path = named.get("class_path", "") if isinstance(named, Namespace) else ""
    return _MOMENTS.get(path.rpartition(".")[2], (2, None))
