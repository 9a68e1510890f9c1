"""A reward model as a reward: on the policy's own backbone, or frozen beside it.

Where it speaks the policy's tokens it reads those that the policy wrote, so that a text has the score that it had when
the reward model was trained; where it has a tokenizer of its own it reads the text.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Literal

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from peft import PeftModel
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from lit_rlhf.models import adapters
from lit_rlhf.models.backbone import Backbone
from lit_rlhf.models.heads.head_files import read_head
from lit_rlhf.models.heads.reward_files import local_folder, read_reward_file
from lit_rlhf.models.heads.reward_model import RewardModel, add_reward_model, load_reward_model
from lit_rlhf.models.loading import evaluating, local_or_hub
from lit_rlhf.rewards.classifier import Classifier
from lit_rlhf.rewards.forest_scorer import ForestScorer, ScoredText
from lit_rlhf.rewards.reward import AttachedReward, Sample, checked_scores
from lit_rlhf.rewards.texts import SampleReader, with_template


class ModelReward(AttachedReward):
    """Scores responses by a reward model: one of this package, or any Hugging Face sequence classifier.

    Args:
        model: folder or hub name; or one that is open.
        tokenizer: folder or hub name of its tokenizer, or one that is open; None = the one beside the model, else that
            of its base, else the policy's.
        label: of a classifier with several labels the name or number of the one whose logit is the score.
        normalise: give scores in standard deviations from the mean of the reward model's validation data; "auto" does
            so where they are known.
        placement: "backbone" lays an adapter on the policy's base, which takes the memory of the adapter alone;
            "separate" loads a base of its own; "auto" takes the first where adapter and base fit and no other reward
            model is there.
        token_budget: tokens of one forward pass; a longer sample gets one to itself.
        chat_template: Jinja template, or the path of one, instead of the one of its tokenizer.
        base: takes the place of the base that an adapter names.
        dtype: of a separate model: "auto" is what it was saved in.
        quantization: of a separate model: "none", "nf4" or "int8".

    Raises:
        ValueError: for a number out of range.
    """

    def __init__(
        self,
        model: str | RewardModel,
        tokenizer: str | PreTrainedTokenizerBase | None = None,
        label: str | int | None = None,
        normalise: bool | Literal["auto"] = "auto",
        placement: Literal["auto", "backbone", "separate"] = "auto",
        token_budget: int = 8192,
        chat_template: str | None = None,
        base: str | None = None,
        dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
        quantization: Literal["none", "nf4", "int8"] = "none",
    ) -> None:
        if token_budget < 1:
            raise ValueError(f"token_budget is {token_budget}; a forward pass needs room for at least 1 token")
        self.model = model
        self.tokenizer = tokenizer
        self.label = label
        self.normalise = normalise
        self.placement = placement
        self.token_budget = token_budget
        self.chat_template = chat_template
        self.base = base
        self.dtype = dtype
        self.quantization = quantization
        self.backbone: Backbone
        self.reader: SampleReader
        self.scorer: ForestScorer | Classifier

    def attach(
        self,
        backbone: Backbone,
        tokenizer: PreTrainedTokenizerBase,
        stop_tokens: Collection[int],
        device: torch.device | None = None,
    ) -> None:
        """Open the reward model, on the policy's backbone where it belongs there, and say where.

        Raises:
            ValueError: if there is no such model, it cannot be placed as asked, or scores cannot be normalised.
        """
        self.backbone = backbone
        device = device or _device(backbone)
        own = with_template(self._tokenizer(tokenizer), self.chat_template)
        limit = None
        if isinstance(self.model, RewardModel) or _is_ours(self.model, self.label):
            model = self._open(device)
            self.scorer = ForestScorer(model, self._normalises(model.score.is_measured))
        else:
            self._normalises(False)
            if self.placement == "backbone":
                raise ValueError(f"reward model '{self.model}' cannot lie on the policy's backbone: it is a classifier")
            self.scorer = Classifier(self.model, self.label, self.dtype, self.quantization, device)
            rank_zero_info(f"reward model '{self.model}': a classifier, beside the policy")
            limit = min(self.scorer.max_length or own.model_max_length, own.model_max_length)
        self.reader = SampleReader(own, tokenizer, stop_tokens, limit)

    @property
    def spread(self) -> tuple[float, float]:
        """Mean and standard deviation that scores are normalised by; 0 and 1 where they are not."""
        if isinstance(self.scorer, ForestScorer) and self.scorer.normalise:
            head = self.scorer.model.score
            return float(head.mean), float(head.std)
        return 0.0, 1.0

    @torch.no_grad()
    def __call__(self, samples: Sequence[Sample]) -> list[float]:
        """Score responses; the mode and the role of the backbone are left as they are.

        Args:
            samples: with their tokens, none empty, where the reward model reads the policy's tokens.

        Returns:
            One finite number per sample, in their order.

        Raises:
            ValueError: if a sample cannot be read, or its score is not finite; with its row.
        """
        rows = [self.reader(sample) for sample in samples]
        self._refuse_pictures(samples)
        self._follow()
        with evaluating(self.scorer.module):
            if isinstance(self.scorer, Classifier):
                scores = self.scorer(rows, self.reader.tokenizer.pad_token_id, self.token_budget)
            else:
                texts = [
                    ScoredText(_group(sample), row["input_ids"], sample.pictures)
                    for sample, row in zip(samples, rows, strict=True)
                ]
                scores = self.scorer(texts, self.token_budget)
        return checked_scores(scores, samples, self._title)

    def _refuse_pictures(self, samples: Sequence[Sample]) -> None:
        """Pictures lie among the policy's tokens: what reads other tokens, or text alone, is never shown them."""
        seen = next((sample for sample in samples if sample.pictures), None)
        if seen is None:
            return
        if isinstance(self.scorer, Classifier) or self.scorer.model.backbone.vision is None:
            raise ValueError(
                f"{seen.address}: the row has pictures, and the reward model '{self._title}' reads text alone"
            )
        if self.reader.has_own_vocabulary or (self.reader.has_own_template and seen.messages):
            raise ValueError(
                f"{seen.address}: the row has pictures, which lie among the policy's tokens, and the reward model "
                f"'{self._title}' has other tokens or another chat template: take one of the policy's kind"
            )

    def _follow(self) -> None:
        """Be where the policy is: it may have moved since this was attached."""
        device = _device(self.backbone)
        if any(parameter.device != device for parameter in self.scorer.module.parameters()):
            self.scorer.module.to(device)

    @property
    def _title(self) -> str:
        return self.model if isinstance(self.model, str) else str(self.model.base.name_or_path)

    def _normalises(self, is_measured: bool) -> bool:
        """Whether scores are normalised."""
        if self.normalise is True and not is_measured:
            raise ValueError(
                f"reward model '{self._title}' does not know how its scores spread, so they cannot be normalised: set "
                "normalise to false, or train it with data.validation set"
            )
        return is_measured and bool(self.normalise)

    def _open(self, device: torch.device) -> RewardModel:
        """The reward model, on the policy's backbone or with a base of its own."""
        if isinstance(self.model, RewardModel):
            return self.model
        obstacle = self._obstacle()
        if self.placement == "backbone" and obstacle:
            raise ValueError(f"reward model '{self.model}' cannot lie on the policy's backbone: {obstacle}")
        if self.placement == "separate" or obstacle:
            rank_zero_info(f"reward model '{self.model}': beside the policy, on a base of its own")
            return load_reward_model(self.model, self.base, self.dtype, self.quantization, device)
        rank_zero_info(f"reward model '{self.model}': an adapter on the policy's backbone")
        model = add_reward_model(self.backbone, self.model)
        model.score.to(device)
        return model

    def _obstacle(self) -> str:
        """Why the reward model cannot be an adapter on the policy's backbone; empty where it can."""
        folder, policy = local_folder(str(self.model)), self.backbone.model
        if not (folder / "adapter_config.json").is_file():
            return "it is no adapter"
        if (self.dtype, self.quantization) != ("auto", "none"):
            return f"dtype is '{self.dtype}' and quantization '{self.quantization}', and it would take the policy's"
        if not isinstance(policy, PeftModel):
            return "all weights of the policy are trained"
        if adapters.REWARD in policy.peft_config:
            return "another reward model lies there"
        if adapters.BEGINNING in policy.peft_config:
            return "the policy's adapter took its beginning out of the base's weights, which are no longer the same"
        trained_on, base = self.base or adapters.base_of(folder), str(self.backbone.base.name_or_path)
        if Path(trained_on).name != Path(base).name:
            return f"it was trained on '{trained_on}', and the policy's base is '{base}'"
        return ""

    def _tokenizer(self, policy_tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
        """The tokenizer of the reward model."""
        if isinstance(self.tokenizer, PreTrainedTokenizerBase):
            return self.tokenizer
        if self.tokenizer is None and isinstance(self.model, RewardModel):
            return policy_tokenizer
        name = self.tokenizer or str(self.model)
        places = [name] if self.tokenizer else [name, *self._other_base()]
        for place in places:
            try:
                return AutoTokenizer.from_pretrained(local_or_hub(place), trust_remote_code=False)
            except (OSError, ValueError) as error:
                reason = str(error).splitlines()[0]
        if self.tokenizer:
            raise ValueError(f"tokenizer '{name}' cannot be loaded: {reason}")
        return policy_tokenizer

    def _other_base(self) -> list[str]:
        """The base of an adapter, where that is not the policy's."""
        folder = local_folder(str(self.model))
        if not (folder / "adapter_config.json").is_file():
            return []
        base = self.base or adapters.base_of(folder)
        return [] if Path(base).name == Path(str(self.backbone.base.name_or_path)).name else [base]


def _group(sample: Sample) -> str:
    """Samples of one name begin alike: they have the same prompt with the same pictures."""
    return "\n".join([sample.prompt, *(picture.digest for picture in sample.pictures)])


def _is_ours(name: str, label: str | int | None) -> bool:
    """Whether a model has a score head that this package reads: one output, or named objectives."""
    folder = local_folder(name)
    if (folder / "adapter_config.json").is_file():
        if label is not None:
            raise ValueError(f"label is {label!r}, and '{name}' is an adapter, whose score is that of its objectives")
        return True
    try:
        head = None if label is not None else read_head(folder, num_objectives=None)
    except ValueError:  # a classifier's head, which transformers reads, or refuses in its own words
        return False
    return head is not None and (len(head.weight) == 1 or read_reward_file(folder) is not None)


def _device(backbone: Backbone) -> torch.device:
    return next(backbone.parameters()).device
