"""Folders of models with a value head: read in every form that is in the wild, written as safetensors.

A whole model is one checkpoint that holds the head too. An adapter has the head in a file beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from peft import PeftConfig, PeftModel
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from transformers import CONFIG_NAME, AutoModelForCausalLM, PreTrainedModel
from transformers.utils.peft_utils import find_adapter_config_file

from lit_rlhf.models.adapters import save_adapter
from lit_rlhf.models.heads.head_files import CHECKPOINTS, HeadFile, read_head
from lit_rlhf.models.loading import heads_are_no_news, local_or_hub

HEAD_FILES = ("value_head.safetensors", "model.safetensors")
"""Where the head of an adapter is written: LLaMA-Factory looks for the first, TRL for the second."""

_HEAD = "v_head."
_ON_THE_HUB = ("revision", "token", "cache_dir", "local_files_only")
"""Arguments of ``from_pretrained`` that say where on the hub something lies."""


def load_pretrained(
    name: str, adapter: str | None, is_trainable: bool, *args: Any, **kwargs: Any
) -> tuple[PreTrainedModel | PeftModel, HeadFile | None]:
    """Load a causal language model and find its value head.

    Args:
        name: folder or hub name of a model or an adapter.
        adapter: folder or hub name of an adapter for the model; None = none but that under ``name``.
        is_trainable: whether the adapter can be trained.
        *args: for ``AutoModelForCausalLM.from_pretrained``.
        **kwargs: for the same.

    Returns:
        The model, and its head or None, of which a warning is given.

    Raises:
        ValueError: if something cannot be loaded, or remote code is asked for.
    """
    if kwargs.pop("trust_remote_code", False):
        raise ValueError("trust_remote_code runs what a stranger wrote; only models that transformers knows are loaded")
    where = {key: kwargs[key] for key in _ON_THE_HUB if key in kwargs}
    if adapter is None and find_adapter_config_file(local_or_hub(name), **where):
        adapter, name = name, _base_of(name, where)
        kwargs.pop("revision", None)  # it is the adapter's
    base, missing = _load_causal_lm(name, *args, **kwargs)
    model: PreTrainedModel | PeftModel = base
    head = None
    if adapter is not None:
        model = _put_on(base, adapter, is_trainable, where)
        head = read_head(_folder(adapter, CHECKPOINTS, where), kinds=["v_head"])
    head = head or read_head(_folder(name, ("value_head.*",), where if adapter is None else {}), kinds=["v_head"])
    if missing and (head is None or any(base.get_parameter(key) is not _lm_head(base) for key in missing)):
        raise ValueError(f"'{name}' is no causal language model: its checkpoint lacks {', '.join(sorted(missing)[:4])}")
    if missing:
        rank_zero_warn(f"'{name}' is a critic without an lm_head: its values are right, its logits mean nothing")
    if head is None:
        rank_zero_warn(
            f"'{adapter or name}' holds no value head (v_head.summary.weight): it gets a fresh one, whose values mean "
            "nothing before it is trained"
        )
    return model, head


def write_value_model(
    model: PreTrainedModel | PeftModel, tensors: Mapping[str, Tensor], folder: Path, max_shard_size: str
) -> None:
    """Write a model with its value head.

    Args:
        model: without the head.
        tensors: by their names in a checkpoint, the head's among them.
        folder: is made if need be.
        max_shard_size: of one file of a whole model.

    Raises:
        ValueError: if the folder holds another head, or an adapter would come to lie in the folder of a whole model.
    """
    if isinstance(model, PeftModel):
        if (folder / CONFIG_NAME).is_file():
            raise ValueError(f"{folder} holds a whole model ({CONFIG_NAME}); save an adapter in a folder of its own")
        save_adapter(model, model.active_adapter, folder)
        head = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items() if key.startswith(_HEAD)}
        for name in HEAD_FILES:
            save_file(head, folder / name, {"format": "pt"})
    else:
        model.save_pretrained(folder, state_dict=dict(tensors), max_shard_size=max_shard_size)
    read_head(folder, kinds=["v_head"])


def _base_of(adapter: str, where: dict[str, Any]) -> str:
    base = PeftConfig.from_pretrained(local_or_hub(adapter), **where).base_model_name_or_path
    if not base:
        raise ValueError(f"'{adapter}' does not name its base: load the base, and give this as adapter=")
    return base


def _load_causal_lm(name: str, *args: Any, **kwargs: Any) -> tuple[PreTrainedModel, list[str]]:
    """The model, and the weights that its checkpoint lacks."""
    try:
        with heads_are_no_news():
            model, loading = cast(Any, AutoModelForCausalLM).from_pretrained(
                local_or_hub(name), *args, trust_remote_code=False, **{**kwargs, "output_loading_info": True}
            )
    except (OSError, ValueError, ImportError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"'{name}' cannot be loaded: {_in_one_line(error)}") from error
    return cast(PreTrainedModel, model), list(loading["missing_keys"])


def _lm_head(model: PreTrainedModel) -> Tensor:
    return cast(Tensor, model.get_output_embeddings().weight)


def _put_on(model: PreTrainedModel, adapter: str, is_trainable: bool, where: dict[str, Any]) -> PeftModel:
    try:
        return PeftModel.from_pretrained(model, local_or_hub(adapter), is_trainable=is_trainable, **where).eval()
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"adapter '{adapter}' does not fit '{model.name_or_path}': {_in_one_line(error)}") from error


def _in_one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _folder(name: str, wanted: tuple[str, ...], where: dict[str, Any]) -> Path:
    """A folder, or what is on this machine of a hub name, which has its model already, and the files ``wanted``."""
    place = local_or_hub(name)
    if Path(place).is_dir():
        return Path(place)
    try:
        return Path(snapshot_download(place, allow_patterns=list(wanted), **where))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ValueError(f"'{name}' is no folder here, and the hub does not give it: {error}") from error
