"""Pictures that text attends to by layers of their own (cross-attention), as in Llama 3.2 Vision.

A picture is one token of the text, and the rows that its tower gives are keys and values of the layers that look. In a
forest each stretch of tokens attends to what it sees (:mod:`lit_rlhf.models.layers.cross_attention`). Padded rows have
a mask of their own here: in a batch of rows with and without pictures transformers' own lets text without pictures
attend to what fills the batch up. Rows of zeros do instead: these layers have no biases, so zeros give nothing.

Shape letters: T tokens of a forest, n rows of a picture, K rows of all pictures that are looked at together, H hidden
size, B padded rows, W their width.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from transformers import MllamaModel

from lit_rlhf.models.layers.cross_attention import CachedPictures, SeenPictures, Sight, Stretch, sights
from lit_rlhf.models.vision.cross_inputs import beside, blank, nothing_beside
from lit_rlhf.models.vision.eyes import Features, Looking, Vision, beside_one_another
from lit_rlhf.models.vision.samples import sample_inputs
from lit_rlhf.types import Forest, Picture

_INPUTS = {"pixel_values", "aspect_ratio_ids", "aspect_ratio_mask"}
"""What the tower takes: tiles of a picture, how they lie, and which of them are more than filling."""


class _Text(NamedTuple):
    """A tree or a padded row, with its pictures.

    Args:
        pictures: in the order of their tokens.
        images: places of these tokens.
        start: place of its first token.
        end: place after the last one.
    """

    pictures: list[Picture]
    images: list[int]
    start: int
    end: int

    @property
    def sights(self) -> list[Sight]:
        """What its tokens see."""
        return sights(self.images, self.start, self.end)


class CrossVision(Vision):
    """The eyes of a model whose text attends to pictures by layers of their own; arguments as :class:`Vision` has."""

    @property
    def _core(self) -> MllamaModel:
        return cast(MllamaModel, self.model.base_model)

    @property
    def _dtype(self) -> torch.dtype:
        return cast(Tensor, self.model.get_input_embeddings().weight).dtype

    def decoder_inputs(self, forest: Forest) -> dict[str, Any]:
        """What the decoder is given for a forest with pictures; see :class:`Vision`."""
        texts = self._trees(forest)
        known = self._different(forest.pictures)
        begins, begin = {}, 0
        for digest, features in known.items():
            begins[digest] = begin
            begin += len(features.rows)
        stretches, ends, is_seeing = [], [], []
        for text in texts:
            for sight in text.sights:
                shown = [text.pictures[number] for number in sight.pictures]
                spans = [(begins[one.digest], begins[one.digest] + self._num_rows(one, sight)) for one in shown]
                stretches.append(Stretch(sight.start, sight.end, tuple(spans)))
                is_seeing += [_is_seeing(sight)] * (sight.end - sight.start)
            ends.append(stretches[-1].spans)
        return {
            "input_ids": forest.tokens[None],
            "position_ids": forest.positions[None],
            **beside(
                torch.cat([features.rows for features in known.values()])[None],
                SeenPictures(stretches, ends),
                torch.tensor([is_seeing], device=self.model.device),
                self._dtype,
            ),
        }

    def looking(self, prefilled: Sequence[tuple[int, Mapping[str, Any]]], owners: Sequence[int]) -> Looking | None:
        """What responses see of the pictures of prompts that were computed as forests; see :class:`Vision`."""
        seen = [inputs.get("cross_attention_mask", num_prompts) for num_prompts, inputs in prefilled]
        is_shown = any(isinstance(one, SeenPictures) for one in seen)
        return _Looking(self.model.get_decoder(), seen, owners) if is_shown else None

    def own_forward(
        self, tokens: Tensor, mask: Tensor, positions: Tensor, pictures: Sequence[Picture], **options: Any
    ) -> Tensor:
        """Last hidden states (B, W, H) by the model's own layers; see :class:`Vision`."""
        rows = self._rows(tokens, mask, pictures)
        known = self._different(pictures)
        nothing = torch.zeros_like(next(iter(known.values())).rows)
        most = max(len(row.pictures) for row in rows)
        shown = [[known[one.digest].rows for one in row.pictures] for row in rows]
        states = torch.stack([torch.cat(own + [nothing] * (most - len(own))) for own in shown])
        inputs = beside(states, *self._masks(tokens, rows), self._dtype)
        decoder = self.model.get_decoder()
        said = decoder(input_ids=tokens, attention_mask=mask, position_ids=positions, **inputs, **options)
        return cast(Tensor, said.last_hidden_state)

    def shown_after(self, tokens: Tensor, mask: Tensor, pictures: Sequence[Picture]) -> dict[str, Tensor]:
        """What the decoder is given beside tokens that follow padded rows; see :class:`Vision`."""
        sees, is_seeing = self._masks(tokens, self._rows(tokens, mask, pictures))
        return beside(None, sees[:, :, -1:], is_seeing[:, -1:], self._dtype)  # the states are in the model's own cache

    def blank_inputs(self, forest: Forest) -> dict[str, Any]:
        """What the decoder is given for layers that look to compute without a picture; see :class:`Vision`."""
        return nothing_beside(self.model.get_decoder(), forest.tokens[None], is_forest=True)

    def together(self, pictures: Sequence[Sequence[Picture]]) -> list[list[int]]:
        """Numbers of the rows that have the same number of pictures; see :class:`Vision`."""
        counts = [len(own) for own in pictures]
        return [[row for row, count in enumerate(counts) if count == wanted] for wanted in sorted(set(counts))]

    def own_inputs(self, tokens: Tensor, mask: Tensor, pictures: Sequence[Picture]) -> dict[str, Tensor]:
        """What the model's own ``generate`` is given for rows with the same number of pictures; see :class:`Vision`."""
        rows = self._rows(tokens, mask, pictures)
        if len({len(row.pictures) for row in rows}) > 1:
            raise ValueError("rows with different numbers of pictures would attend to what fills them up")
        self.num_passes += len(pictures)
        seen = self._on_device(beside_one_another(pictures))
        by_row = {name: x.unflatten(0, (len(rows), -1)).squeeze(2) for name, x in seen.items()}
        tiles = by_row["aspect_ratio_mask"]
        sees = tiles.new_zeros(*tokens.shape, *tiles.shape[1:])
        for number, row in enumerate(rows):
            for sight in row.sights:
                if not sight.is_before:
                    own = slice(sight.pictures.start, sight.pictures.stop)
                    sees[number, sight.start : sight.end, own] = tiles[number, own]
        return {"input_ids": tokens, "attention_mask": mask, "cross_attention_mask": sees, **by_row}

    def sample_picture(self) -> Picture:
        """A picture made of nothing; see :class:`Vision`."""
        return Picture(
            sample_inputs(self.model.config, inspect.signature(self._core.vision_model.forward)), 1, "a sample"
        )

    def _through_tower(self, pictures: Sequence[Picture]) -> list[Features]:
        seen = self._core.vision_model(**self._on_device(beside_one_another(pictures))).last_hidden_state
        return [Features(rows) for rows in self._core.multi_modal_projector(seen).flatten(1, 3)]

    def _image_tokens(self, tokens: Tensor, pictures: Sequence[Picture]) -> tuple[Tensor, Tensor]:
        for picture in pictures:
            if picture.num_tokens != 1 or picture.inputs.keys() != _INPUTS:
                raise ValueError(
                    f"a picture of '{self.model.name_or_path}' is one image token and {', '.join(sorted(_INPUTS))}, "
                    f"not {picture.num_tokens} and {', '.join(sorted(picture.inputs))}: data.processor is another "
                    "model's"
                )
        return super()._image_tokens(tokens, pictures)

    def _num_rows(self, picture: Picture, sight: Sight) -> int:
        """Rows of a picture that are seen: those of what fills it up, behind the others, are seen from before it."""
        tiles = picture.inputs["aspect_ratio_mask"]
        return self._core.vision_model.num_patches * (tiles.numel() if sight.is_before else int(tiles.sum()))

    def _trees(self, forest: Forest) -> list[_Text]:
        _, found = self._image_tokens(forest.tokens, forest.pictures)
        if any(forest.parents[holder] >= 0 for holder in forest.holders):
            raise ValueError(
                f"'{self.model.name_or_path}' takes pictures at the root of a tree alone, as text before the first "
                "picture attends to it too"
            )
        images, shown = found.tolist(), iter(forest.pictures)
        roots = [start for start, parent in zip(forest.starts, forest.parents, strict=True) if parent < 0]
        texts = []
        for start, end in pairwise([*roots, forest.num_tokens]):
            own = [place for place in images if start <= place < end]
            texts.append(_Text([next(shown) for _ in own], own, start, end))
        return texts

    def _rows(self, tokens: Tensor, mask: Tensor, pictures: Sequence[Picture]) -> list[_Text]:
        is_image, _ = self._image_tokens(self._unmarked(tokens, mask).flatten(), pictures)
        shown, texts = iter(pictures), []
        for own in is_image.view_as(tokens):  # what pads a row sees something, too, which nobody reads
            images = own.nonzero()[:, 0].tolist()
            texts.append(_Text([next(shown) for _ in images], images, 0, len(own)))
        return texts

    def _masks(self, tokens: Tensor, rows: Sequence[_Text]) -> tuple[Tensor, Tensor]:
        """Who sees what of the pictures of its row, additive (B, 1, W, K), and of (B, W) what sees any; True = does.

        What sees nothing has rows of zeros alone before it, and is given them: a softmax over nothing is no number.
        """
        most = max(len(row.pictures) for row in rows)
        num_rows = next(self._num_rows(one, Sight(0, 0, range(0), True)) for row in rows for one in row.pictures)
        sees = torch.ones(*tokens.shape, most * num_rows, dtype=torch.bool, device=tokens.device)
        is_seeing = torch.zeros_like(tokens, dtype=torch.bool)
        for row, row_sees, row_seeing in zip(rows, sees, is_seeing, strict=True):
            for sight in row.sights:
                place = slice(sight.start, sight.end)
                row_seeing[place] = _is_seeing(sight)
                row_sees[place] = not sight.pictures
                for number in sight.pictures:
                    begin = number * num_rows
                    row_sees[place, begin : begin + self._num_rows(row.pictures[number], sight)] = True
        additive = torch.zeros(sees.shape, dtype=self._dtype, device=sees.device)
        return additive.masked_fill_(~sees, torch.finfo(self._dtype).min)[:, None], is_seeing


class _Looking:
    """What responses see of the pictures of their prompts, step by step.

    Args:
        decoder: of the model.
        seen: of each forest of prompts what was seen; the number of its prompts where they have no pictures.
        owners: number of the prompt of each response, ascending.
    """

    def __init__(self, decoder: nn.Module, seen: Sequence[SeenPictures | int], owners: Sequence[int]) -> None:
        self._blank = blank(decoder, 1)
        self._pictures = CachedPictures(seen, owners)
        ends = [spans for one in seen for spans in (one.ends if isinstance(one, SeenPictures) else [()] * one)]
        self._is_seeing = torch.tensor([bool(ends[owner]) for owner in owners], device=self._blank.device)

    def keep(self, living: Sequence[int]) -> None:
        """Go on with the responses at these places alone, ascending."""
        self._pictures.keep(living)
        self._is_seeing = self._is_seeing[torch.tensor(living, device=self._is_seeing.device)]

    def inputs(self) -> dict[str, Any]:
        """What the decoder is given beside the newest tokens: nothing in place of pictures, which are in the cache."""
        return beside(self._blank, self._pictures, self._is_seeing[None], self._blank.dtype)


def _is_seeing(sight: Sight) -> bool:
    return bool(sight.pictures) and not sight.is_before
