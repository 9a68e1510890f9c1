"""A causal language model with a value head: the class that TRL dropped, maintained.

It prints, saves, loads and computes as there, and departs from it where that was a trap:

1. The last hidden state is taken from the decoder as it passes; the states of the other layers are never kept, and
   :meth:`AutoModelForCausalLMWithValueHead.values` computes no logits at all.
2. The head computes in float32 under autocast, and after ``.to(torch.bfloat16)``, too.
3. Positions follow the mask, so that padding on the left and on the right give the same values.
4. It is in the mode of the model in it: one that was just loaded drops nothing out.
5. Heads are written as safetensors alone, and one that does not fit is refused instead of left random.

Shape letters: B sequences, T tokens, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from lit_rlhf.models.adapters import refuse_learned_prompt
from lit_rlhf.models.heads.head_files import HeadFile, check_head
from lit_rlhf.models.heads.value_files import load_pretrained, write_value_model
from lit_rlhf.models.heads.value_head import ValueHead
from lit_rlhf.models.loading import keep_four_bits_as_they_are

_INSIDE = "pretrained_model."


class AutoModelForCausalLMWithValueHead(nn.Module):
    """A causal language model that gives a value for every token beside its logits.

    Args:
        pretrained_model: a Hugging Face causal language model, or a PEFT model of one.
        summary_dropout_prob: as in :class:`lit_rlhf.models.heads.value_head.ValueHead`.
        v_head_init_strategy: as there.
        v_head_initializer_range: as there.

    Attributes:
        pretrained_model: as given.
        v_head: the value head.

    Raises:
        ValueError: if the model has no decoder below its head, or an adapter that puts tokens before the text.
    """

    def __init__(
        self,
        pretrained_model: PreTrainedModel | PeftModel,
        summary_dropout_prob: float = 0.1,
        v_head_init_strategy: str | None = None,
        v_head_initializer_range: float = 0.2,
    ) -> None:
        super().__init__()
        self.pretrained_model = pretrained_model
        if isinstance(pretrained_model, PeftModel):
            refuse_learned_prompt(pretrained_model)
        base = self._base
        if base.base_model is base:
            raise ValueError(f"a {type(base).__name__} has no decoder below its head, so it gives no hidden states")
        keep_four_bits_as_they_are(base)
        head = ValueHead(self.config, summary_dropout_prob, v_head_init_strategy, v_head_initializer_range)
        self.v_head = head.to(self.device)
        self._takes_positions = "position_ids" in inspect.signature(base.forward).parameters
        self._is_text_only = self.config.get_text_config(decoder=True) is self.config
        nn.Module.train(self.v_head, pretrained_model.training)
        self.training = pretrained_model.training
        self.register_state_dict_post_hook(_leave_prefix_out)
        self.register_load_state_dict_pre_hook(_put_prefix_in)
        self.register_load_state_dict_post_hook(_expect_head_alone)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path | PreTrainedModel | PeftModel,
        *args: Any,
        peft_config: PeftConfig | None = None,
        adapter: str | Path | None = None,
        is_trainable: bool = False,
        summary_dropout_prob: float = 0.1,
        v_head_init_strategy: str | None = None,
        v_head_initializer_range: float = 0.2,
        **kwargs: Any,
    ) -> AutoModelForCausalLMWithValueHead:
        """Load a model with its value head; where there is none yet, it gets a fresh one, and a warning says so.

        Args:
            pretrained_model_name_or_path: a folder or hub name of a model, of a model with a value head, or of a PEFT
                adapter; or a model that is loaded already, which gets a fresh head.
            *args: for ``AutoModelForCausalLM.from_pretrained``.
            peft_config: puts a fresh adapter on a model that has none.
            adapter: folder or hub name of an adapter for the model; a value head beside it is read.
            is_trainable: whether a loaded adapter can be trained; without it, it is frozen. The head always can.
            summary_dropout_prob: as in :class:`lit_rlhf.models.heads.value_head.ValueHead`.
            v_head_init_strategy: as there.
            v_head_initializer_range: as there.
            **kwargs: for ``AutoModelForCausalLM.from_pretrained``, such as ``dtype`` or ``quantization_config``.

        Raises:
            ValueError: if the model, the adapter or the head cannot be loaded, or they do not fit each other.
        """
        head = None
        if isinstance(pretrained_model_name_or_path, (str, Path)):
            name = str(pretrained_model_name_or_path)
            folder = None if adapter is None else str(adapter)
            pretrained_model, head = load_pretrained(name, folder, is_trainable, *args, **kwargs)
        else:
            pretrained_model = pretrained_model_name_or_path
        if peft_config is not None:
            if isinstance(pretrained_model, PeftModel):
                raise ValueError("peft_config puts a fresh adapter on a model, and this one has an adapter already")
            training = pretrained_model.training
            pretrained_model = cast(PeftModel, get_peft_model(pretrained_model, peft_config)).train(training)
        model = cls(pretrained_model, summary_dropout_prob, v_head_init_strategy, v_head_initializer_range)
        if head is not None:
            model._take(head)
        return model

    def forward(
        self,
        input_ids: Tensor | None = None,
        past_key_values: Any = None,
        attention_mask: Tensor | None = None,
        return_past_key_values: bool = False,
        *,
        logits_to_keep: int = 0,
        **kwargs: Any,
    ) -> tuple[Any, ...]:
        """Logits, loss and values.

        Args:
            input_ids: (B, T) int64.
            past_key_values: a cache of earlier tokens, for decoding step by step.
            attention_mask: (B, T) or, with a cache, (B, earlier tokens + T); 1 = a token, 0 = padding.
            return_past_key_values: append the cache to what is returned.
            logits_to_keep: compute logits for that many last tokens only; 0 = all.
            **kwargs: for the model, such as ``labels``.

        Returns:
            (B, T, V) float32 logits, as the model makes them; the loss, None without ``labels``; (B, T) float32 values.
        """
        if logits_to_keep:
            kwargs["logits_to_keep"] = logits_to_keep
        kwargs = self._inputs(input_ids, past_key_values, attention_mask, **kwargs)
        kwargs["use_cache"] |= return_past_key_values
        with self._seen_states() as states:
            output = self.pretrained_model(**kwargs, return_dict=True)
        found = (output.logits.float(), output.loss, self._values(states[-1]))
        return (*found, output.past_key_values) if return_past_key_values else found

    def values(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor:
        """Values (B, T) in float32 of every token; no logits are computed.

        Args:
            input_ids: (B, T) int64.
            attention_mask: (B, T); 1 = a token, 0 = padding, left or right. Values of padding mean nothing.
            **kwargs: for the decoder.
        """
        kwargs = self._inputs(input_ids, kwargs.pop("past_key_values", None), attention_mask, **kwargs)
        return self._values(self._decoder(**kwargs)[0])

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """As ``generate`` of the model."""
        return cast(Any, self.pretrained_model).generate(*args, **kwargs)

    def save_pretrained(
        self, save_directory: str | Path, *, state_dict: dict[str, Tensor] | None = None, max_shard_size: str = "50GB"
    ) -> None:
        """Write safetensors: the model and the head together, or the adapter and the head beside it.

        Args:
            save_directory: is made if need be.
            state_dict: written instead of the model's own, such as one that was gathered from several devices.
            max_shard_size: of one file of a whole model.

        Raises:
            ValueError: if the folder holds another head, or an adapter would come to lie in the folder of a model.
        """
        tensors = self.state_dict() if state_dict is None else state_dict
        write_value_model(self.pretrained_model, tensors, Path(save_directory), max_shard_size)

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict[str, Any] | None = None) -> None:
        """Recompute each decoder layer in the backward pass."""
        self._base.gradient_checkpointing_enable(gradient_checkpointing_kwargs)

    def gradient_checkpointing_disable(self) -> None:
        """Keep what the backward pass needs."""
        self._base.gradient_checkpointing_disable()

    def enable_input_require_grads(self) -> None:
        """Let gradients reach adapters through a frozen embedding, which older ways of checkpointing need."""
        self._base.enable_input_require_grads()

    @property
    def config(self) -> PretrainedConfig:
        """Of the model."""
        return self._base.config

    @property
    def device(self) -> torch.device:
        """Of the model."""
        return self._base.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the model; the head is in float32."""
        return self._base.dtype

    @property
    def is_peft_model(self) -> bool:
        """Whether the model carries adapters."""
        return isinstance(self.pretrained_model, PeftModel)

    @property
    def _base(self) -> PreTrainedModel:
        model = self.pretrained_model
        return cast(PreTrainedModel, model.get_base_model()) if isinstance(model, PeftModel) else model

    @property
    def _decoder(self) -> nn.Module:
        """All of the model that lies below its output head."""
        return self._base.base_model

    @contextmanager
    def _seen_states(self) -> Iterator[list[Tensor]]:
        """Last hidden states (B, T, H) as they pass; those that reach the output head come last."""
        states: list[Tensor] = []
        below = {self._decoder, self._base.get_decoder()}  # OPT's own forward skips the first of them
        hooks = [part.register_forward_hook(lambda _, __, output: states.append(output[0])) for part in below]
        try:
            yield states
        finally:
            for hook in hooks:
                hook.remove()

    def _inputs(
        self, input_ids: Tensor | None, past_key_values: Any, attention_mask: Tensor | None, **kwargs: Any
    ) -> dict[str, Any]:
        kwargs = {"use_cache": past_key_values is not None, **kwargs}
        text = input_ids if input_ids is not None else kwargs["inputs_embeds"]
        # A model of several kinds of input makes positions of its own: they need not be one number per token.
        if attention_mask is not None and attention_mask.dim() == 2 and self._takes_positions and self._is_text_only:
            positions = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
            kwargs.setdefault("position_ids", positions[:, -text.shape[1] :])
        return {
            "input_ids": input_ids,
            "past_key_values": past_key_values,
            "attention_mask": attention_mask,
            **kwargs,
        }

    def _values(self, states: Tensor) -> Tensor:
        return self.v_head(states.to(self.v_head.summary.weight.device)).squeeze(-1)

    @torch.no_grad()
    def _take(self, head: HeadFile) -> None:
        summary = self.v_head.summary
        check_head(head, summary.in_features, str(self.config.name_or_path))
        summary.weight.copy_(head.weight)
        summary.bias.copy_(torch.zeros(1) if head.bias is None else head.bias)


def _leave_prefix_out(
    module: AutoModelForCausalLMWithValueHead, state_dict: dict[str, Tensor], prefix: str, _: Any
) -> None:
    """Name tensors as checkpoints in the wild do; of a model with adapters they hold the head alone."""
    for key in [key for key in state_dict if key.startswith(prefix + _INSIDE)]:
        tensor = state_dict.pop(key)
        if not module.is_peft_model:
            state_dict[prefix + key.removeprefix(prefix + _INSIDE)] = tensor


def _put_prefix_in(
    module: AutoModelForCausalLMWithValueHead, state_dict: dict[str, Tensor], prefix: str, *_: Any
) -> None:
    for key in [key for key in state_dict if key.startswith(prefix)]:
        name = key.removeprefix(prefix)
        if not name.startswith(("v_head.", _INSIDE)):
            state_dict[prefix + _INSIDE + name] = state_dict.pop(key)


def _expect_head_alone(module: AutoModelForCausalLMWithValueHead, incompatible: Any) -> None:
    if module.is_peft_model:
        missing = incompatible.missing_keys
        missing[:] = [key for key in missing if _INSIDE.rstrip(".") not in key.split(".")]
