"""Pictures to what a decoder reads: the one way from tokens and pictures to embeddings and positions.

A picture goes through the tower and the projector of its model and becomes one row for each of its image tokens, which
takes the place of that token's embedding: once per pass, however many responses share it; and, while tower and
projector are frozen, once for all roles, passes and epochs, as its rows are then kept, the latest used ones, within a
bound of memory. What is kept was encoded by itself, so that it does not depend on what stood beside it: a resumed run
sees the same.

Shape letters: T tokens of a forest, n image tokens of a picture, H hidden size, B padded rows, W their width.
"""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, cast, runtime_checkable

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

from lit_rlhf.models.padded import unfold
from lit_rlhf.types import Forest, Picture

MAX_BYTES = 2**30
"""Most memory for the rows of pictures that are kept: LLaVA-1.5 takes 4.5 MiB for one in half precision."""

UNSEEING = {
    "llama4": "its processor needs torchvision",
    "mllama": "its text attends to them by layers of their own (cross-attention), which no row of embeddings can hold",
    "paligemma": "it does not read the text before a response from left to right",
}
"""Kinds of model whose pictures are not taken, and why; they are loaded as models of text where transformers can."""


class Features(NamedTuple):
    """What became of one picture.

    Args:
        rows: (n, H), in place of the embeddings of its image tokens.
        deeper: (n, H) each, added to the hidden states behind the first layers, where the model does that.
    """

    rows: Tensor
    deeper: tuple[Tensor, ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes of all of them."""
        return sum(part.nbytes for part in (self.rows, *self.deeper))


class _Places(NamedTuple):
    positions: Tensor
    following: list[int]


@runtime_checkable
class _Seeing(Protocol):
    def get_image_features(self, **inputs: Tensor) -> Any: ...


@runtime_checkable
class _PlacedInSpace(Protocol):
    def get_rope_index(self, input_ids: Tensor, **inputs: Tensor) -> tuple[Tensor, Tensor]: ...


class Vision:
    """The eyes of a model that reads pictures among text.

    Args:
        model: a Hugging Face model with a tower, adapters inside.
        max_bytes: most memory for what is kept.

    Attributes:
        image_token: id of the token that pictures take the place of; -1 where it takes none.
        refusal: why it takes no pictures at all; empty where it does.
        num_passes: pictures that went through the tower so far.
    """

    def __init__(self, model: PreTrainedModel, max_bytes: int = MAX_BYTES) -> None:
        self.model = model
        self.max_bytes = max_bytes
        self.num_passes = 0
        self.refusal = "" if isinstance(model, _Seeing) else "transformers has no get_image_features for it"
        self.image_token = -1 if self.refusal else int(model.config.image_token_id)
        self._kept: OrderedDict[str, Features] = OrderedDict()
        self._num_bytes = 0

    def decoder_inputs(self, forest: Forest) -> dict[str, Any]:
        """What the decoder is given for a forest with pictures.

        Raises:
            ValueError: if image tokens and pictures do not fit each other.
        """
        self._refuse()
        is_image, rows = self._image_tokens(forest.tokens, forest.pictures)
        different = {picture.digest: picture for picture in forest.pictures}
        known = dict(zip(different, self.features([*different.values()]), strict=True))
        features = [known[picture.digest] for picture in forest.pictures]
        # An image token may lie outside of the embedding; any other id stands in for it.
        embeddings = self.model.get_input_embeddings()(forest.tokens.masked_fill(is_image, 0))
        seen = torch.cat([picture.rows for picture in features]).to(embeddings.dtype)
        inputs = {
            "inputs_embeds": embeddings.index_copy(0, rows, seen)[None],
            "position_ids": self.positions(forest),
        }
        if features[0].deeper:
            levels = zip(*(picture.deeper for picture in features), strict=True)
            inputs |= {"visual_pos_masks": is_image[None], "deepstack_visual_embeds": [*map(torch.cat, levels)]}
        return inputs

    def features(self, pictures: Sequence[Picture]) -> list[Features]:
        """The rows of pictures: with their gradient where tower or projector is trained, else kept for the next time.

        Raises:
            ValueError: if one was made for another number of image tokens, or the model takes none.
        """
        return [self._kept_rows(picture) for picture in pictures] if self.is_frozen else self._encoded(pictures)

    def _kept_rows(self, picture: Picture) -> Features:
        known = self._kept.pop(picture.digest, None)
        self._num_bytes -= 0 if known is None else known.nbytes
        if known is None or known.rows.device != self.model.device:
            # The same rows whoever asks first: in validation, under autocast, or while responses are drawn.
            with torch.inference_mode(False), torch.no_grad(), torch.autocast(self.model.device.type, enabled=False):
                (known,) = self._encoded([picture])
        self._kept[picture.digest] = known
        self._num_bytes += known.nbytes
        while self._num_bytes > self.max_bytes:
            self._num_bytes -= self._kept.popitem(last=False)[1].nbytes
        return known

    def forget(self) -> None:
        """Let go of what is kept, and count anew."""
        self._kept.clear()
        self._num_bytes = self.num_passes = 0

    @property
    def is_frozen(self) -> bool:
        """Whether what it makes of a picture is the same in every role and after every step."""
        parts = [part for beside in parts_beside_decoder(self.model).values() for part in beside.modules()]
        if any(isinstance(part, BaseTunerLayer | AuxiliaryTrainingWrapper) for part in parts):
            return False
        return not any(parameter.requires_grad for part in parts for parameter in part.parameters(recurse=False))

    def _encoded(self, pictures: Sequence[Picture]) -> list[Features]:
        """The rows of pictures, which go through the tower together."""
        whole = self._through_tower(_beside_one_another(pictures))
        sizes = [picture.num_tokens for picture in pictures]
        if len(whole.rows) != sum(sizes):
            raise ValueError(
                f"{len(pictures)} pictures have {sum(sizes)} image tokens in the text, and the tower of "
                f"'{self.model.name_or_path}' gives {len(whole.rows)} rows: data.processor is another model's"
            )
        self.num_passes += len(pictures)
        columns = zip(*(part.split(sizes) for part in (whole.rows, *whole.deeper)), strict=True)
        return [Features(rows, tuple(deeper)) for rows, *deeper in columns]

    def _through_tower(self, inputs: Mapping[str, Tensor]) -> Features:
        self._refuse()
        said = cast(_Seeing, self.model).get_image_features(**self._on_device(inputs))
        return Features(_joined(said.pooler_output), tuple(map(_joined, said.get("deepstack_features") or ())))

    def _on_device(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        parameters = (own for part in parts_beside_decoder(self.model).values() for own in part.parameters())
        dtype = next((own.dtype for own in parameters if own.is_floating_point()), self.model.dtype)
        device = self.model.device
        return {name: x.to(device, dtype if x.is_floating_point() else None) for name, x in inputs.items()}

    def _refuse(self) -> None:
        if self.refusal:
            raise ValueError(
                f"'{self.model.name_or_path}' takes no pictures: {self.refusal}; leave them out of the rows, or set "
                "data.images to ignore"
            )

    def _image_tokens(self, tokens: Tensor, pictures: Sequence[Picture]) -> tuple[Tensor, Tensor]:
        """Which of the tokens (T,) are image tokens: bool (T,), and their indices."""
        is_image = tokens == self.image_token
        rows = is_image.nonzero()[:, 0]
        wanted = sum(picture.num_tokens for picture in pictures)
        if len(rows) != wanted:
            raise ValueError(
                f"the text has {len(rows)} image tokens (id {self.image_token}), and its {len(pictures)} pictures take "
                f"{wanted}: tokenizer, processor and model do not fit each other"
            )
        return is_image, rows

    def positions(self, forest: Forest) -> Tensor:
        """(1, T) depths of the tokens of a forest; (3, 1, T) where time, height and width of a picture count apart."""
        return self._places(forest).positions

    def ahead(self, forest: Forest) -> list[int]:
        """For each segment, how much further than its depth the position of a token lies that would follow it."""
        return [end - depth for end, depth in zip(self._places(forest).following, _depths(forest), strict=True)]

    def _places(self, forest: Forest) -> _Places:
        """Where the tokens of a forest stand, each segment going on where its parent ends."""
        core = self.model.base_model
        if not isinstance(core, _PlacedInSpace):
            return _Places(forest.positions[None], _depths(forest))
        following: list[int] = []
        positions = []
        for number, (start, length, parent) in enumerate(
            zip(forest.starts, forest.lengths, forest.parents, strict=True)
        ):
            begin = following[parent] if parent >= 0 else 0
            pictures = [one for one, at in zip(forest.pictures, forest.holders, strict=True) if at == number]
            own = torch.arange(length).expand(3, -1)
            if pictures:
                tokens = forest.tokens[start : start + length].cpu()[None]
                own = core.get_rope_index(tokens, **self._counted_apart(core, tokens, pictures))[0][:, 0]
            positions.append(own + begin)
            following.append(begin + (int(own.max()) + 1 if length else 0))
        return _Places(torch.cat(positions, dim=1)[:, None].to(forest.tokens.device), following)

    def _counted_apart(self, core: _PlacedInSpace, tokens: Tensor, pictures: Sequence[Picture]) -> dict[str, Tensor]:
        """What the positions of a text (1, T) depend on beside its tokens, on the CPU."""
        names = inspect.signature(core.get_rope_index).parameters
        inputs = {name: value.cpu() for name, value in _beside_one_another(pictures).items() if name in names}
        return {**inputs, "mm_token_type_ids": (tokens == self.image_token).int()}

    def own_states(self, forest: Forest) -> Tensor:
        """Last hidden states (T, H) by the model's own code, on one padded row per sequence with its pictures."""
        rows = unfold(forest)
        pictures = [picture for leaf in forest.leaves for picture in forest.seen_in(leaf)]
        states = self.own_forward(rows.tokens, rows.mask, rows.positions, pictures, use_cache=False)
        return states.flatten(0, 1)[rows.cells]

    def own_forward(
        self, tokens: Tensor, mask: Tensor, positions: Tensor, pictures: Sequence[Picture], **options: Any
    ) -> Tensor:
        """Last hidden states (B, W, H) by the model's own code.

        Args:
            tokens: (B, W) int64, padded on either side.
            mask: (B, W) int64; 1 = a token, 0 = padding.
            positions: (B, W) int64, depths; a model that counts time, height and width apart finds its own.
            pictures: of all rows, one row after another, at least one.
            **options: for the model.

        Raises:
            ValueError: if image tokens and pictures do not fit each other, or the model takes none.
        """
        if not isinstance(self.model.base_model, _PlacedInSpace):
            options["position_ids"] = positions
        said: list[Tensor] = []
        decoder = self.model.get_decoder()
        hook = decoder.register_forward_hook(lambda module, args, output: said.append(output.last_hidden_state))
        try:
            self.model(**self.own_inputs(tokens, mask, pictures), logits_to_keep=1, **options)
        finally:
            hook.remove()
        return said[0]

    def own_inputs(self, tokens: Tensor, mask: Tensor, pictures: Sequence[Picture]) -> dict[str, Tensor]:
        """What the model's own code is given for padded rows; the arguments are those of :meth:`own_forward`."""
        self._refuse()
        tokens = tokens.masked_fill(mask == 0, int(self.image_token == 0))  # what pads a row must be no image token
        is_image, _ = self._image_tokens(tokens.flatten(), pictures)
        self.num_passes += len(pictures)
        names = inspect.signature(self.model.forward).parameters
        kinds = {name: is_image.view_as(tokens).int() for name in _TOKEN_TYPES if name in names}
        seen = self._on_device(_beside_one_another(pictures))
        return {"input_ids": tokens, "attention_mask": mask, **kinds, **seen}

    def sample_picture(self) -> Picture:
        """A picture of the size that the config names, made of nothing, to try the model with.

        Raises:
            ValueError: if the config names no size that is known here.
        """
        inputs = _sample_inputs(self.model.config, inspect.signature(cast(_Seeing, self.model).get_image_features))
        return Picture(inputs, len(self._through_tower(inputs).rows), "a sample")


_TOKEN_TYPES = ("mm_token_type_ids", "token_type_ids")
"""Names under which models are told which tokens are those of pictures."""


def is_seeing(config: PretrainedConfig) -> bool:
    """Whether a model of this config has a tower for pictures that is used here."""
    return "vision_config" in config.sub_configs and config.model_type not in UNSEEING


def parts_beside_decoder(model: PreTrainedModel) -> dict[str, nn.Module]:
    """Name -> part: the largest parts that hold nothing of the decoder, such as the tower; ``lm_head`` is none."""
    decoder = set(model.get_decoder().modules())
    head = model.get_output_embeddings()

    def visit(module: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
        for name, child in module.named_children():
            if child in decoder or child is head:
                continue
            if decoder.isdisjoint(child.modules()):
                yield f"{path}{name}", child
            else:
                yield from visit(child, f"{path}{name}.")

    return dict(visit(model, ""))


def _depths(forest: Forest) -> list[int]:
    """Tokens from the root to the end of each segment."""
    return [sum(forest.lengths[part] for part in forest.path(number)) for number in range(len(forest.lengths))]


def _joined(rows: Tensor | Sequence[Tensor]) -> Tensor:
    """(n, H) of one picture, which transformers gives as a tensor or cut into pieces."""
    return rows.flatten(0, -2) if isinstance(rows, Tensor) else torch.cat([piece.flatten(0, -2) for piece in rows])


def _beside_one_another(pictures: Sequence[Picture]) -> dict[str, Tensor]:
    """The inputs of several pictures; where they are cut into different numbers of tiles, filled up with zeros."""
    joined = {}
    for name in pictures[0].inputs:
        parts = [picture.inputs[name] for picture in pictures]
        if len({part.shape[1:] for part in parts}) > 1:
            most = max(part.shape[1] for part in parts)
            fill = [0, 0] * (parts[0].ndim - 2)
            parts = [nn.functional.pad(part, [*fill, 0, most - part.shape[1]]) for part in parts]
        joined[name] = torch.cat(parts)
    return joined


def _sample_inputs(config: PretrainedConfig, signature: inspect.Signature) -> Mapping[str, Tensor]:
    values = config.vision_config.to_dict()
    if "image_grid_thw" in signature.parameters:
        merge, patch = values["spatial_merge_size"], values["patch_size"]
        width = values.get("in_channels", 3) * values.get("temporal_patch_size", 1) * patch**2
        grid = torch.tensor([[1, 2 * merge, 3 * merge]])
        return {"pixel_values": _ramp(int(grid.prod()), width), "image_grid_thw": grid}
    side = values.get("image_size")
    if isinstance(side, list | tuple):
        side = side[0]
    if not side:
        raise ValueError(f"the config of a {config.model_type} model names no size of pictures")
    size = torch.tensor([[side, side]])
    if tiles := config.to_dict().get("image_grid_pinpoints"):  # a picture of one tile size: it, and the tiles of it
        num_tiles = image_size_to_num_patches(size[0].tolist(), tiles, side)
        return {"pixel_values": _ramp(1, num_tiles, values.get("num_channels", 3), side, side), "image_sizes": size}
    pixels = {"pixel_values": _ramp(1, values.get("num_channels", 3), side, side)}
    return {**pixels, "image_sizes": size} if "image_sizes" in signature.parameters else pixels


def _ramp(*shape: int) -> Tensor:
    """Numbers between -1 and 1, each different."""
    return torch.linspace(-1.0, 1.0, int(torch.tensor(shape).prod())).reshape(shape)
