"""Pictures among the embeddings of text: each row of a picture takes the place of that of one of its image tokens.

Shape letters: T tokens of a forest, n image tokens of a picture, H hidden size, B padded rows, W their width.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor

from lit_rlhf.models.vision.eyes import Features, Vision, beside_one_another
from lit_rlhf.models.vision.places import PlacedInSpace, places
from lit_rlhf.models.vision.samples import sample_inputs
from lit_rlhf.types import Forest, Picture

_TOKEN_TYPES = ("mm_token_type_ids", "token_type_ids")
"""Names under which models are told which tokens are those of pictures."""


@runtime_checkable
class _Seeing(Protocol):
    def get_image_features(self, **inputs: Tensor) -> Any: ...


class EmbeddedVision(Vision):
    """The eyes of a model whose pictures stand among the embeddings of its text; arguments as :class:`Vision` has."""

    def _why_not(self) -> str:
        return "" if isinstance(self.model, _Seeing) else "transformers has no get_image_features for it"

    def decoder_inputs(self, forest: Forest) -> dict[str, Any]:
        """What the decoder is given for a forest with pictures; see :class:`Vision`."""
        is_image, rows = self._image_tokens(forest.tokens, forest.pictures)
        known = self._different(forest.pictures)
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

    def positions(self, forest: Forest) -> Tensor:
        """(1, T) depths of the tokens of a forest; (3, 1, T) where time, height and width of a picture count apart."""
        return places(self.model, forest, self.image_token).positions

    def ahead(self, forest: Forest) -> list[int]:
        """For each segment, how much further than its depth the position of a token lies that would follow it."""
        return places(self.model, forest, self.image_token).ahead

    def own_forward(
        self, tokens: Tensor, mask: Tensor, positions: Tensor, pictures: Sequence[Picture], **options: Any
    ) -> Tensor:
        """Last hidden states (B, W, H) by the model's own code; see :class:`Vision`."""
        if not isinstance(self.model.base_model, PlacedInSpace):
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
        """What the model's own code is given for padded rows; see :class:`Vision`."""
        tokens = self._unmarked(tokens, mask)
        is_image, _ = self._image_tokens(tokens.flatten(), pictures)
        self.num_passes += len(pictures)
        names = inspect.signature(self.model.forward).parameters
        kinds = {name: is_image.view_as(tokens).int() for name in _TOKEN_TYPES if name in names}
        seen = self._on_device(beside_one_another(pictures))
        return {"input_ids": tokens, "attention_mask": mask, **kinds, **seen}

    def sample_picture(self) -> Picture:
        """A picture made of nothing; see :class:`Vision`."""
        self._refuse()
        inputs = sample_inputs(self.model.config, inspect.signature(cast(_Seeing, self.model).get_image_features))
        return Picture(inputs, len(self._looked_at(inputs).rows), "a sample")

    def _through_tower(self, pictures: Sequence[Picture]) -> list[Features]:
        whole = self._looked_at(beside_one_another(pictures))
        sizes = [picture.num_tokens for picture in pictures]
        if len(whole.rows) != sum(sizes):
            raise ValueError(
                f"{len(pictures)} pictures have {sum(sizes)} image tokens in the text, and the tower of "
                f"'{self.model.name_or_path}' gives {len(whole.rows)} rows: data.processor is another model's"
            )
        columns = zip(*(part.split(sizes) for part in (whole.rows, *whole.deeper)), strict=True)
        return [Features(rows, tuple(deeper)) for rows, *deeper in columns]

    def _looked_at(self, inputs: Mapping[str, Tensor]) -> Features:
        said = cast(_Seeing, self.model).get_image_features(**self._on_device(inputs))
        return Features(_joined(said.pooler_output), tuple(map(_joined, said.get("deepstack_features") or ())))


def _joined(rows: Tensor | Sequence[Tensor]) -> Tensor:
    """(n, H) of one picture, which transformers gives as a tensor or cut into pieces."""
    return rows.flatten(0, -2) if isinstance(rows, Tensor) else torch.cat([piece.flatten(0, -2) for piece in rows])
