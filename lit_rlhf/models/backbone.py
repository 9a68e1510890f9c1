"""One frozen base model that carries every role, and the one way from tokens to numbers.

A role is what sits on the base: the policy is a LoRA adapter; the reference is the base with the adapter off, a frozen
copy of the adapter that training started from, or (full fine-tuning) a second, frozen model. Switching costs no copy.

Shape letters: T tokens of a forest, N scored tokens, H hidden size, V vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from peft import PeftModel
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel

from lit_rlhf.models import adapters, generation
from lit_rlhf.models.begun import BegunPrompts
from lit_rlhf.models.host_memory import keep_freed_memory
from lit_rlhf.models.layers.attention import ForestLayout, Read
from lit_rlhf.models.layers.linear_logprobs import LogitTransform, TokenLogprobs, linear_logprobs
from lit_rlhf.models.layers.lm_head import head_parameters
from lit_rlhf.models.layout import Layout, choose_layout
from lit_rlhf.models.loading import evaluating, name_decoder
from lit_rlhf.models.padded import unfold
from lit_rlhf.models.recomputing import PassAgain, Within
from lit_rlhf.models.vision import Vision, is_seeing, open_eyes
from lit_rlhf.models.whole import whole, whole_state, whole_weights
from lit_rlhf.ranks import is_first_rank
from lit_rlhf.types import Forest

Role = Literal["policy", "reference", "reward", "critic"]

_NOT_OF_THE_MODEL = ("_name_or_path", "transformers_version", "architectures", "use_cache")
"""Entries of a config that say nothing about what the model computes."""


class Backbone(nn.Module):
    """A causal language model with roles. Make one by :mod:`lit_rlhf.models.building`.

    Args:
        model: the policy: a Hugging Face causal language model, or a PEFT model, whose active adapter is the policy.
        reference_model: a frozen second model that plays the reference; None = the reference is an adapter named
            ``reference`` where there is one, else the model with its adapters off.
        attention: as in :class:`lit_rlhf.models.options.BackboneConfig`.
    """

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        reference_model: PreTrainedModel | None = None,
        attention: str = "auto",
    ) -> None:
        super().__init__()
        self.model = model
        self.reference_model = reference_model
        self.attention = attention
        self.router_aux_loss_coef = 0.0
        self.layout: Layout | None = None
        self.picture_layout: Layout = "padded"
        self.transform: LogitTransform | None = None
        self.policy_adapter = model.active_adapter if isinstance(model, PeftModel) else None
        self.acting: Role = "policy"
        self.within: Callable[[Any], Within] = _plainly
        self._within: Within = nullcontext
        self._begun: BegunPrompts | None = None
        for one in (self.base, reference_model):
            if one is not None:
                name_decoder(one)
        self._visions: list[Vision] = []
        if self.base.is_gradient_checkpointing:
            self.base.gradient_checkpointing_enable({"use_reentrant": False, "context_fn": self._recomputing})

    @property
    def base(self) -> PreTrainedModel:
        """The Hugging Face model of the current role, adapters inside."""
        model = self.reference_model if self.acting == "reference" and self.reference_model is not None else self.model
        return cast(PreTrainedModel, model.get_base_model()) if isinstance(model, PeftModel) else model

    @contextmanager
    def role(self, name: Role) -> Iterator[None]:
        """Play a role inside the context. What was before is back after it, also after an exception.

        ``reward`` and ``critic`` are the adapters of these names where there are any, and the policy where there are
        none.

        Raises:
            ValueError: for another name, or where a model without adapters has no reference.
        """
        if name not in get_args(Role):
            raise ValueError(f"no role '{name}'; there are {', '.join(map(repr, get_args(Role)))}")
        before = self.acting
        with self._adapter_of(name):
            self.acting = name
            try:
                yield
            finally:
                if isinstance(self.base, FSDPModule):
                    self.base.reshard()
                self.acting = before

    def _adapter_of(self, name: Role) -> AbstractContextManager[None]:
        if not isinstance(self.model, PeftModel):
            if name == "reference" and self.reference_model is None:
                raise ValueError("this backbone has neither adapters nor a second model, so it has no reference")
            return nullcontext()
        if name in (adapters.REWARD, adapters.CRITIC) and name in self.model.peft_config:
            return adapters.active_adapter(self.model, name)
        if name != "reference":
            return adapters.active_adapter(self.model, self.policy_adapter)
        own = (other for other in (adapters.REFERENCE, adapters.BEGINNING) if other in self.model.peft_config)
        return adapters.active_adapter(self.model, next(own, None))

    def _recomputing(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """For checkpointed layers: the context that they are computed in, and the one of the backward pass."""
        return nullcontext(), PassAgain(self, self.acting, self._within)

    @contextmanager
    def computing(self, within: Within) -> Iterator[None]:
        """Compute inside a context that layers are computed again in, too, when the backward pass asks for them.

        Args:
            within: makes the context, as often as it is needed.
        """
        self._within = within
        try:
            with within():
                yield
        finally:
            self._within = nullcontext

    @property
    def has_reference_adapter(self) -> bool:
        """Whether the reference is an adapter of its own rather than the base."""
        return isinstance(self.model, PeftModel) and adapters.REFERENCE in self.model.peft_config

    def hidden_states(self, forest: Forest, *, read: Read = "all") -> Tensor:
        """Last hidden states of the current role, after the final norm.

        Args:
            forest: the packed text.
            read: ``all``: (T, H), one per token. ``predictors``: (N, H), one per scored token, of the token before it.
                ``ends``: (L, H), one per sequence, of its last token. A fused last layer does no more than that.

        Raises:
            ValueError: if a token id lies outside the embedding.
        """
        self.prepare()
        return self._states(forest, read)

    @contextmanager
    def going_on(self, begun: BegunPrompts | None) -> Iterator[None]:
        """Inside the context the policy goes on from prompts that it has computed, where only predictors are read.

        Args:
            begun: computed by the policy as it is now; None = nothing changes.
        """
        self._begun = begun
        try:
            yield
        finally:
            self._begun = None

    def _states(self, forest: Forest, read: Read) -> Tensor:
        if self._begun is not None and (self.acting, read) == ("policy", "predictors") and self._begun.covers(forest):
            return self._begun.predictors(self.base.get_decoder(), forest)
        if isinstance(self.base, FSDPModule):  # a reference model, sharded apart: whole for as long as it is played
            self.base.unshard()
        if not forest.tokens.is_cuda and (largest := self._largest_token(forest)) >= (rows := self.num_embeddings):
            raise ValueError(
                f"token id {largest} lies outside the embedding of {rows} rows: the tokenizer does not fit the model"
            )
        if self.layout_of(bool(forest.pictures)) == "padded":
            states = self.padded_states(forest)
            return states if read == "all" else states.index_select(0, _read_rows(forest, read))
        # The end of a sequence whose leaf is empty lies inside another one, where no query would be left.
        is_trimmed = read == "predictors" or all(forest.lengths[leaf] for leaf in forest.leaves)
        layout = ForestLayout(forest, read=read if is_trimmed else "all")
        states = self.forest_states(forest, layout)
        return states if read == "all" else layout.states_at(_read_rows(forest, read), states)

    def token_logprobs(
        self,
        forest: Forest,
        with_entropy: bool = False,
        with_log_sum_squares: bool = False,
        *,
        temperature: float = 1.0,
    ) -> TokenLogprobs:
        """Log-probabilities (N,) of the scored tokens under the current role, in nats, in the order of the row.

        Args:
            forest: the packed text.
            with_entropy: also return entropies.
            with_log_sum_squares: also return logs of the sums of squared probabilities.
            temperature: what the logits are divided by, as they were when the tokens were drawn.
        """
        states = self.hidden_states(forest, read="predictors")
        return self.logprobs_of(
            states,
            forest,
            with_entropy=with_entropy,
            with_log_sum_squares=with_log_sum_squares,
            temperature=temperature,
        )

    def idle(self, forest: Forest) -> Tensor:
        """(N,) log-probabilities of a forest that nobody asks for, in step with ranks that have more to compute."""
        return self.token_logprobs(forest).logprobs

    def logprobs_of(self, states: Tensor, forest: Forest, *, temperature: float = 1.0, **wanted: bool) -> TokenLogprobs:
        """Log-probabilities (N,) of the scored tokens from hidden states that are known already.

        Args:
            states: (N, H) of the ``predictors`` of the forest, in the current role.
            forest: the packed text.
            temperature: what the logits are divided by.
            **wanted: ``with_entropy`` and the like, for :func:`lit_rlhf.models.layers.linear_logprobs.linear_logprobs`.
        """
        weight, bias = head_parameters(self.base)
        transform = (self.transform or LogitTransform())._replace(temperature=temperature)
        return linear_logprobs(states, weight, forest.tokens[forest.targets], bias, transform=transform, **wanted)

    @property
    def has_lm_head(self) -> bool:
        """Whether it can say what comes next; a reward model's is left out."""
        return not isinstance(self.base.get_output_embeddings(), nn.Identity)

    @property
    def num_embeddings(self) -> int:
        """Rows of the token embedding (V)."""
        return self._embedding_weight.shape[0]

    @property
    def _embedding_weight(self) -> Tensor:
        return cast(Tensor, self.base.get_input_embeddings().weight)

    @property
    def vision(self) -> Vision | None:
        """The eyes of the current role's model; None where it reads text alone."""
        return self.vision_of(self.base) if is_seeing(self.base.config) else None

    def vision_of(self, model: PreTrainedModel) -> Vision:
        """The eyes of one of the models of this backbone, the same at every call."""
        if not any(known.model is model for known in self._visions):
            self._visions.append(open_eyes(model))
        return next(known for known in self._visions if known.model is model)

    @property
    def eyes(self) -> Vision:
        """The same, where there are pictures to be seen.

        Raises:
            ValueError: if the model reads text alone.
        """
        if (vision := self.vision) is None:
            raise ValueError(
                f"the rows have pictures, which '{self.base.name_or_path}' does not take: it reads text alone; set "
                "data.images to ignore, or take another model"
            )
        return vision

    @property
    def undrawn_tokens(self) -> list[int]:
        """Ids that are never drawn: an image token stands for a picture, which no response has."""
        return [] if self.vision is None or self.vision.refusal else [self.vision.image_token]

    def layout_of(self, has_pictures: bool) -> Layout | None:
        """The layout of text with pictures, or without."""
        return self.picture_layout if has_pictures else self.layout

    def decoder_inputs(self, forest: Forest) -> dict[str, Any]:
        """What the decoder is given for a forest, with or without pictures."""
        if forest.pictures:
            return self.eyes.decoder_inputs(forest)
        return {"input_ids": forest.tokens[None], "position_ids": forest.positions[None]}

    def forest_states(self, forest: Forest, layout: ForestLayout) -> Tensor:
        """Last hidden states (Q, H) of the layout's last queries, by the attention of this package."""
        # A mask of four dimensions is passed through as it is; the layout, not the mask, says who sees whom.
        mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=forest.tokens.device)
        return self.base.get_decoder()(
            **self.decoder_inputs(forest), attention_mask=mask, use_cache=False, forest_layout=layout
        ).last_hidden_state[0]

    def padded_states(self, forest: Forest) -> Tensor:
        """Last hidden states (T, H) of all tokens, computed on one padded row per sequence."""
        if forest.pictures:
            return self.eyes.own_states(forest)
        rows = unfold(forest)
        states = self.base.get_decoder()(
            input_ids=rows.tokens, attention_mask=rows.mask, position_ids=rows.positions, use_cache=False
        ).last_hidden_state
        return states.flatten(0, 1)[rows.cells]

    def _largest_token(self, forest: Forest) -> int:
        """The largest id that is looked up in the embedding; that of pictures may lie outside."""
        tokens = forest.tokens
        return int((tokens.masked_fill(tokens == self.eyes.image_token, 0) if forest.pictures else tokens).max())

    @torch.no_grad()
    def prepare(self) -> None:
        """Choose the layout and find the logit transform by running a probe of a few tokens. Only the first call works.

        Raises:
            ValueError: if ``attention: forest`` is asked of a model that cannot take one, or its logits cannot be
                reproduced.
        """
        if self.layout is None:
            if self.base.device.type == "cpu":
                keep_freed_memory()
            with evaluating(self):
                self._fit()
            rank_zero_info(f"backbone: {self.base.config.model_type}, {self.layout} layout")

    def _fit(self) -> None:
        self.layout, self.transform = choose_layout(self)

    @property
    def is_quantized(self) -> bool:
        """Whether the base's weights are held in 4 or 8 bits."""
        return self.base.config.to_dict().get("quantization_config") is not None

    generate = generation.generate

    def whole_weights(self) -> AbstractContextManager[None]:
        """Gather the weights of the current role inside the context, where they are sharded; on all ranks together."""
        return whole_weights(self, without=None if self.acting == "reference" else self.reference_model)

    def move_reference(self, weight: float) -> None:
        """``reference <- weight * policy + (1 - weight) * reference`` (TR-DPO, arXiv 2404.09656, eq. 7 and 8).

        Args:
            weight: 0-1; 1 copies the policy.

        Raises:
            ValueError: if the reference has no weights of its own.
        """
        if isinstance(self.model, PeftModel) and self.has_reference_adapter:
            adapters.mix_adapters(self.model, self.model.active_adapter, adapters.REFERENCE, weight)
        elif self.reference_model is not None:
            with torch.no_grad():
                for ours, theirs in zip(self.reference_model.parameters(), self.model.parameters(), strict=True):
                    ours.lerp_(theirs.to(ours.dtype), weight)
        else:
            raise ValueError("the reference is the frozen base, which cannot move")

    @property
    def checkpointed_names(self) -> set[str]:
        """Names, within this module, of the tensors that a checkpoint must hold: all but the frozen base."""
        if isinstance(self.model, PeftModel):
            ours = {self.policy_adapter, adapters.REFERENCE, adapters.CRITIC}
            return {name for name, _ in self.named_parameters() if ours & set(name.split("."))}
        return set(self.state_dict())

    def save(self, folder: str | Path) -> None:
        """Write what was trained: the adapter as PEFT writes it, or the whole model; safetensors."""
        folder = Path(folder)
        if isinstance(self.model, PeftModel):
            adapters.save_adapter(self.model, cast(str, self.policy_adapter), folder)
        else:
            state = whole_state(self.model.state_dict())
            if is_first_rank():
                self.model.save_pretrained(folder, state_dict=state)

    @torch.no_grad()
    def fingerprint(self, role: Role) -> str:
        """A digest of the weights that a role computes with, taken from samples and sums of every tensor."""
        skipped = {"policy": adapters.REFERENCE, "reference": self.policy_adapter}[role]
        module = self.reference_model if role == "reference" and self.reference_model is not None else self.model
        config = {key: value for key, value in self.base.config.to_dict().items() if key not in _NOT_OF_THE_MODEL}
        digest = hashlib.sha256(repr(sorted(config.items(), key=str)).encode())
        for name, parameter in module.named_parameters():
            if skipped in name.split("."):
                continue
            flat = whole(parameter.detach()).flatten()
            # A copy: memory that NumPy has seen cannot be let go, as that of a gathered weight must be.
            sample = flat[:: max(1, flat.numel() // 256)][:256].clone().float().cpu()
            digest.update(f"{name} {tuple(parameter.shape)} {float(flat.sum(dtype=torch.float64))}".encode())
            digest.update(sample.numpy().tobytes())
        return digest.hexdigest()


def _plainly(micro_batch: Any) -> Within:
    """The context of a micro-batch's pass: none."""
    return nullcontext


def _read_rows(forest: Forest, read: Read) -> Tensor:
    """Row indices of the tokens whose hidden states are read."""
    return forest.predictors if read == "predictors" else torch.tensor(forest.ends, device=forest.tokens.device)
