"""docs/support.md names a test for every cell. ``python tests/test_docs_support.py`` writes its table anew."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/support.md"
MARK = re.compile(r"(?<=<!-- support -->\n).*?(?=<!-- /support -->)", re.DOTALL)
ALGORITHMS = ("sft", "reward", "dpo", "ppo", "grpo", "rloo", "reinforce", "online_dpo")
DATA, ROLLOUTS = ALGORITHMS[:3], ALGORITHMS[3:]
KIN = ROLLOUTS[1:]
STRATEGIES = "test_strategies::test_two_ranks_train_what_one_trains"
CUT, RESUMED = "the_cut_into_micro_batches_changes_nothing", "resumed_equals_unbroken"

# Feature -> test in tests/algorithms -> the algorithms that it runs.
SHOWN: dict[str, dict[str, tuple[str, ...]]] = {
    "LoRA; copies on two ranks": {f"{STRATEGIES}[*-lora-ddp]": ALGORITHMS},
    "QLoRA (NF4)": {f"{STRATEGIES}[*-nf4-ddp]": ALGORITHMS},
    "8 bits": {"test_strategies::test_int8_over_two_whole_copies": ALGORITHMS},
    "all weights": {f"{STRATEGIES}[*-full-ddp]": ALGORITHMS},
    "sharded (fsdp2), LoRA": {f"{STRATEGIES}[*-lora-fsdp2]": ALGORITHMS},
    "sharded, QLoRA": {f"{STRATEGIES}[*-nf4-fsdp2]": ALGORITHMS},
    "sharded, all weights": {f"{STRATEGIES}[*-full-fsdp2]": ALGORITHMS},
    "bfloat16": {"test_strategies::test_other_precisions": ALGORITHMS},
    "packed without padding, any cut": {
        "test_sft::test_one_step_is_one_step_however_it_is_cut": ("sft",),
        "test_reward_kinds::test_one_step_is_one_step_however_it_is_cut": ("reward",),
        "test_dpo::test_one_step_is_one_step_however_it_is_cut": ("dpo",),
        f"test_ppo::test_{CUT}": ("ppo",),
        f"test_grpo_and_kin::test_{CUT}": KIN,
    },
    "resumed, the same weights": {
        **{f"test_{name}_resume::test_{RESUMED}": (name,) for name in (*DATA, "ppo")},
        f"test_grpo_and_kin::test_{RESUMED}": KIN,
    },
    "pictures": {
        "test_pictures::test_what_learns_from_texts": ("sft", "reward"),
        "test_pictures::test_the_cut_and_the_layout_change_nothing": ("dpo",),
        "test_pictures::test_ppo_sends_a_picture_through_the_tower_once_an_iteration": ("ppo",),
        "test_pictures::test_what_learns_from_rollouts": KIN,
    },
    "mixtures of experts": {
        "test_mixtures::test_no_cut_changes_a_step": DATA,
        "test_mixtures::test_rollouts_cut_as_they_may": ROLLOUTS,
    },
}


@cache
def source(file: str) -> str:
    return (ROOT / f"tests/algorithms/{file}.py").read_text(encoding="utf-8")


def table() -> str:
    tests = list(dict.fromkeys(test for shown in SHOWN.values() for test in shown))
    lines = ["", "| | " + " | ".join(ALGORITHMS) + " |", "|---" * (1 + len(ALGORITHMS)) + "|"]
    for feature, shown in SHOWN.items():
        number = {name: str(tests.index(test) + 1) for test, names in shown.items() for name in names}
        lines.append(f"| {feature} | " + " | ".join(number.get(name, "not tried") for name in ALGORITHMS) + " |")
    lines += ["", "The tests, in `tests/algorithms`; `*` is the algorithm:", ""]
    listed = [f"{number}. `{test.replace('::', '.py::')}`" for number, test in enumerate(tests, 1)]
    return "\n".join([*lines, *listed]) + "\n\n"


def test_the_page_is_up_to_date():
    text = PAGE.read_text(encoding="utf-8")
    assert MARK.sub(lambda _: table(), text) == text, "write it anew: python tests/test_docs_support.py"


@pytest.mark.parametrize("test", [test for shown in SHOWN.values() for test in shown])
def test_a_test_that_it_names_exists(test: str):
    file, name = test.split("[")[0].split("::")
    assert f"def {name}(" in source(file)


@pytest.mark.parametrize(("test", "names"), [(t, n) for shown in SHOWN.values() for t, n in shown.items()])
def test_that_test_knows_the_algorithm(test: str, names: tuple[str, ...]):
    """By the name of its file, by its key in a table of recipes, or by its module."""
    file = test.split("::")[0]
    text = f"{file}{source(file)}".lower().replace("_", "").replace(" ", "")
    assert [name for name in names if name.replace("_", "") not in text] == []


def test_words_of_refusal_are_those_of_the_code():
    said = re.findall(r"\| `([^`|]{30,})` \|", PAGE.read_text(encoding="utf-8"))
    assert len(said) > 1
    code = (ROOT / "lit_rlhf/models/options.py").read_text(encoding="utf-8")
    code = re.sub(r'"\s+"', "", code).replace("{self.quantization}", "nf4")
    assert [words for words in said if words not in code] == []


if __name__ == "__main__":
    PAGE.write_text(MARK.sub(lambda _: table(), PAGE.read_text(encoding="utf-8")), encoding="utf-8")
