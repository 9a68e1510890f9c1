"""Lines that no user can act on stay off the screen; others do not."""

from __future__ import annotations

import logging

import pytest

from lit_rlhf.commands.quiet import quieten


@pytest.mark.parametrize(("line", "is_shown"), [("GPU available: False", False), ("backbone: llama", True)])
def test_chatter_is_filtered(line, is_shown, caplog):
    quieten()
    with caplog.at_level("INFO"):
        logging.getLogger("lightning.pytorch.utilities.rank_zero").info(line)
    assert (line in caplog.text) == is_shown
