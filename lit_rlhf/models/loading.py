"""From a name to a Hugging Face model: safetensors only, no remote code, dropout off, 4 or 8 bits on request."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import bitsandbytes
import torch
from lightning.pytorch import LightningModule
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    BitsAndBytesConfig,
    PretrainedConfig,
    PreTrainedModel,
)

from lit_rlhf.models.layers.fused import fuse
from lit_rlhf.models.moe.four_bit import quantise_experts
from lit_rlhf.models.options import BackboneConfig
from lit_rlhf.models.vision import REFUSED, is_seeing, keep_in_step, parts_beside_decoder

OWN_ATTENTION = ("auto", "forest")
"""Values of ``attention`` that mean this package's attention; others are names that transformers knows."""


_HEADS = ("score.", "v_head.", "lm_head.", "embed_out.")


def load_causal_lm(
    config: BackboneConfig, device: torch.device | None = None, *, with_lm_head: bool = True
) -> PreTrainedModel:
    """Load the frozen base model.

    Args:
        config: what to load and how.
        device: where quantised weights are made; others stay on the CPU until the Trainer moves them.
        with_lm_head: False leaves ``lm_head`` out, which may then be missing in the checkpoint too, as in that of a
            sequence classifier.

    Returns:
        The model, every parameter frozen, in training mode with all of its own dropout at 0.

    Raises:
        ValueError: if nothing loadable lies under the name, or the checkpoint lacks weights of a causal language model.
    """
    name = local_or_hub(config.name_or_path)
    try:
        model_config = AutoConfig.from_pretrained(name, revision=config.revision, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"backbone.name_or_path '{config.name_or_path}' cannot be loaded: {_first(error)}") from error
    if (kind := model_config.model_type) in REFUSED:
        raise ValueError(f"backbone.name_or_path '{config.name_or_path}' is a {kind} model: {REFUSED[kind]}")
    _switch_dropout_off(model_config)
    with nullcontext() if with_lm_head else heads_are_no_news():
        model, missing = _from_pretrained(name, model_config, config, device)
    if not with_lm_head:
        dropped = drop_lm_head(model)
        missing = [key for key in missing if not key.startswith(f"{dropped}.")]
    if missing:
        raise ValueError(
            f"backbone '{config.name_or_path}' is no causal language model: its checkpoint lacks "
            f"{', '.join(sorted(missing)[:4])} ({len(missing)} missing in all)"
        )
    name_decoder(model)
    keep_in_step(model)
    keep_four_bits_as_they_are(model)
    if config.quantization == "nf4" and quantise_experts(model, device) and device is not None:
        nn.Module.to(model, device)
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if config.fused:
        fuse(model)
    model.requires_grad_(False)
    return model.train()


def name_decoder(model: PreTrainedModel) -> None:
    """Let a model find its decoder: Llama 4 names it by another word than it says, and would take it with its head."""
    decoder = model.get_decoder()
    if decoder.get_output_embeddings() is not None:
        decoder.base_model_prefix = "model"


def keep_four_bits_as_they_are(model: nn.Module) -> None:
    """Keep bitsandbytes from repacking 4-bit weights at the first forward in evaluation mode.

    On CPUs with AVX512-bf16 it does so in place and for good, and what the layer computes is another thing afterwards.
    """
    for module in model.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False


@contextmanager
def heads_are_no_news() -> Iterator[None]:
    """Keep transformers from reporting heads, and nothing else, as weights that are missing or that nobody expects."""

    def says_more(record: logging.LogRecord) -> bool:
        lines = record.getMessage().splitlines()
        rows = [line for line in lines if "|" in line and ("UNEXPECTED" in line or "MISSING" in line)]
        return not rows or not all(row.startswith(_HEADS) for row in rows)

    logger = logging.getLogger("transformers.modeling_utils")
    logger.addFilter(says_more)
    try:
        yield
    finally:
        logger.removeFilter(says_more)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Be in evaluation mode, that is without any dropout, inside the context; each part's own mode is back after it."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def switch_dropout_off(module: nn.Module) -> int:
    """Set the dropout inside a made module to 0, adapters included; how many places had some.

    PPO compares what one policy says at two moments, so nothing in it may be random.
    """
    found = 0
    for part in module.modules():
        if isinstance(part, nn.Dropout) and part.p:
            part.p = 0.0
            found += 1
        for name, value in vars(part).items():
            if isinstance(value, float) and value and name.endswith("dropout"):
                vars(part)[name] = 0.0
                found += 1
    return found


def root_device(module: LightningModule) -> torch.device | None:
    """The device that a module's Trainer will put it on; None where it has no Trainer."""
    try:
        return module.trainer.strategy.root_device
    except RuntimeError:
        return None


def local_or_hub(name: str) -> str:
    """The absolute path where ``name`` is a folder, else ``name``, which is then a hub name.

    Raises:
        ValueError: if ``name`` looks like a path but no such folder exists.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return str(path.resolve())
    if path.is_absolute() or name.startswith((".", "~", "runs/")) or name.count("/") > 1:
        raise ValueError(f"no folder '{name}'")
    return name


def quantization_config(
    kind: str, compute_dtype: torch.dtype, skipped: list[str] | None = None
) -> BitsAndBytesConfig | None:
    """Settings of bitsandbytes for "nf4" or "int8"; None for "none".

    Args:
        kind: one of these.
        compute_dtype: of the computation in 4 bits.
        skipped: names of parts that stay as they are; None = the head alone.
    """
    if kind == "nf4":
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=compute_dtype,
            llm_int8_skip_modules=skipped,
        )
    return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skipped) if kind == "int8" else None


def _from_pretrained(
    name: str, model_config: PretrainedConfig, config: BackboneConfig, device: torch.device | None
) -> tuple[PreTrainedModel, list[str]]:
    """The model, and the weights that its checkpoint lacks."""
    dtype: torch.dtype = getattr(torch, config.dtype if config.dtype != "auto" else _saved_dtype(model_config))
    kind: Any = AutoModelForImageTextToText if is_seeing(model_config) else AutoModelForCausalLM
    is_quantized = config.quantization != "none"
    skipped = _unquantized(kind, model_config) if is_quantized and is_seeing(model_config) else None
    quantization = quantization_config(config.quantization, dtype, skipped)
    # Experts come in full precision, which the device need not have room for, and are put into 4 bits one by one.
    comes_by_cpu = config.quantization == "nf4" and _num_experts(model_config)
    place = torch.device("cpu") if device is None or comes_by_cpu else device
    placement = {"": place} if quantization is not None else None
    attention = None if config.attention in OWN_ATTENTION else config.attention
    if attention is None and model_config.get_text_config().to_dict().get("attn_logit_softcapping"):
        attention = "eager"  # older transformers choose sdpa here, which leaves the soft cap out
    try:
        model, loading = kind.from_pretrained(
            name,
            config=model_config,
            revision=config.revision,
            dtype=dtype,
            quantization_config=quantization,
            device_map=placement,
            attn_implementation={"text_config": attention} if attention and is_seeing(model_config) else attention,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        raise ValueError(f"backbone '{config.name_or_path}' cannot be loaded: {_first(error)}") from error
    return model, list(loading["missing_keys"])


def _unquantized(kind: Any, config: PretrainedConfig) -> list[str]:
    """Names of what stays unquantised of a model that reads pictures: tower, projector and head."""
    with torch.device("meta"):
        empty = kind.from_config(config, trust_remote_code=False)
    head = empty.get_output_embeddings()
    return [*parts_beside_decoder(empty), *(name for name, part in empty.named_modules() if part is head)]


def _num_experts(config: PretrainedConfig) -> int:
    """Experts of a layer that tokens choose from; 0 in a dense model."""
    values = config.get_text_config().to_dict()
    counts = (values.get(name) for name in ("num_local_experts", "num_experts", "n_routed_experts"))
    return next((int(count) for count in counts if count), 0)


def drop_lm_head(model: PreTrainedModel) -> str:
    """Put nothing in the place of ``lm_head``, and tell its name: it may hold a billion numbers."""
    head = model.get_output_embeddings()
    name = next(name for name, module in model.named_modules() if module is head)
    model.set_submodule(name, nn.Identity())
    return name


def _switch_dropout_off(config: PretrainedConfig) -> None:
    """Set every dropout of a config to 0: a policy that drops out differs from its reference before the first step."""
    for part in (config, *(value for value in vars(config).values() if isinstance(value, PretrainedConfig))):
        for name, value in part.to_dict().items():
            if isinstance(value, float) and name.endswith(("dropout", "pdrop", "dropout_prob", "drop_rate")):
                setattr(part, name, 0.0)


def _saved_dtype(config: PretrainedConfig) -> str:
    """Name of the dtype that a checkpoint was saved in; float32 where it does not say."""
    return str(config.get_text_config().dtype or config.dtype or "float32").removeprefix("torch.")


def _first(error: Exception) -> str:
    """First line of a message that may be a page long."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
