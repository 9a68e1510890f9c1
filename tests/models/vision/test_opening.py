"""Eyes fit the model."""

from __future__ import annotations

import pytest

from lit_rlhf.models.vision.crossing import CrossVision
from lit_rlhf.models.vision.embedding import EmbeddedVision
from lit_rlhf.models.vision.opening import open_eyes


@pytest.mark.parametrize(
    ("kind", "eyes"), [("llava", EmbeddedVision), ("llama4", EmbeddedVision), ("mllama", CrossVision)]
)
def test_eyes_fit_the_model(kind, eyes, own):
    assert type(open_eyes(own(kind))) is eyes
