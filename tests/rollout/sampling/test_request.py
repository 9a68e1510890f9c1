"""What a user may say about sampling."""

import pytest

from lit_rlhf.rollout.sampling.request import SamplingOptions


@pytest.mark.parametrize(
    "wrong", [{"num_responses": 0}, {"max_new_tokens": 0}, {"temperature": -0.1}, {"stop_strings": ["end", ""]}]
)
def test_what_cannot_be_is_refused_by_name(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=rf"sampling\.{name}|{name} is"):
        SamplingOptions(**wrong)
