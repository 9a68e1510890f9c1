"""What speaks and how it draws, from the command line."""

from __future__ import annotations

import argparse

import pytest

from lit_rlhf.commands.speaking import arguments
from lit_rlhf.rollout.sampling.token_stream import StreamOptions


def parsed(*words):
    parser = argparse.ArgumentParser()
    arguments.add_voices(parser)
    arguments.add_drawing(parser)
    return parser.parse_args(["runs/dpo", *words])


def test_defaults_and_values_reach_the_options():
    assert arguments.read_drawing(parsed()) == StreamOptions()
    words = ("--temperature", "0.5", "--top_p", "0.9", "--max_new_tokens", "7", "--seed", "3")
    assert arguments.read_drawing(parsed(*words)) == StreamOptions(0.5, 0.9, 7, 3)


def test_a_number_out_of_range_is_refused():
    with pytest.raises(ValueError, match="top_p is 2"):
        arguments.read_drawing(parsed("--top_p", "2"))
