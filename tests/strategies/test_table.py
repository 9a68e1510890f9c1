"""The page on strategies says what the tests and the refusals say.

``python tests/strategies/test_table.py`` writes its table anew.
"""

from __future__ import annotations

import importlib.util
from itertools import product
from pathlib import Path

from lit_rlhf.strategies.combinations import REFUSALS, Combination

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "strategies.md"
TESTS = ROOT / "tests" / "algorithms" / "test_strategies.py"
BEGIN, END = "<!-- table: begin -->\n", "<!-- table: end -->\n"
STRATEGIES = ("single", "ddp", "fsdp2", "fsdp", "deepspeed")
GROUPS = {"from data": ("sft", "reward", "dpo"), "from rollouts": ("ppo", "grpo", "rloo", "reinforce", "online_dpo")}


def names_of_tests() -> set[str]:
    """Names of the tests that run a combination, with their parameters."""
    spec = importlib.util.spec_from_file_location("combinations_that_are_run", TESTS)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    tests = {name: function for name, function in vars(module).items() if name.startswith("test_")}
    return {f"{name}[{values}]" for name, function in tests.items() for values in parameters(function)}


def parameters(function):
    """The parameters of each run of a test, as in its name."""
    marks = [mark for mark in vars(function).get("pytestmark", []) if mark.name == "parametrize"]
    columns = [[run if isinstance(run, tuple) else (run,) for run in map(bare, mark.args[1])] for mark in marks]
    return ["-".join(value for values in run for value in values) for run in product(*columns)]


def bare(run):
    """The values of one run, without its marks."""
    return run if isinstance(run, str | tuple) and not hasattr(run, "marks") else tuple(run.values)


def cell(group, adapter, precision, strategy, names):
    """The test that runs some algorithms, or the number of a refusal."""
    run = Combination(strategy, precision, adapter == "int8", group == "from rollouts")
    refused = [number for number, refusal in enumerate(REFUSALS, 1) if refusal.applies(run)]
    if refused:
        return f"refused ({refused[0]})"
    tried = "ddp" if strategy == "single" else strategy  # one process is what two are held to
    candidates = {
        f"two_ranks_train_what_one_trains[{{}}-{adapter}-{tried}]": precision == "32-true",
        f"other_precisions[{{}}-{adapter}-{tried}-{precision}]": True,
        f"int8_over_two_whole_copies[{{}}-{precision}]": adapter == "int8",
    }
    for pattern, fits in candidates.items():
        if fits and all(f"test_{pattern.format(algorithm)}" in names for algorithm in GROUPS[group]):
            return f"`{pattern.format('*')}`"
    return "not tried"


def table():
    """The tables of the page, in Markdown."""
    names, lines = names_of_tests(), []
    for group, algorithms in GROUPS.items():
        lines += ["", f"{group.capitalize()}: {', '.join(algorithms)}."]
        lines += ["", "| weights | precision | " + " | ".join(STRATEGIES) + " |", "|---" * (2 + len(STRATEGIES)) + "|"]
        for adapter, precision in product(("lora", "nf4", "int8", "full"), ("32-true", "bf16-true", "bf16-mixed")):
            cells = [cell(group, adapter, precision, strategy, names) for strategy in STRATEGIES]
            lines.append(f"| {adapter} | {precision} | " + " | ".join(cells) + " |")
    lines += ["", "Refused, in these words:", ""]
    return (
        "\n".join([*lines, *(f"{number}. {refusal.message}." for number, refusal in enumerate(REFUSALS, 1))]).strip()
        + "\n"
    )


def with_table(page):
    """A page with the table in its place."""
    before, rest = page.split(BEGIN)
    return before + BEGIN + table() + END + rest.split(END)[1]


def test_the_page_is_up_to_date():
    page = PAGE.read_text(encoding="utf-8")
    assert with_table(page) == page, "run: python tests/strategies/test_table.py"


def test_every_combination_is_run_or_refused():
    rows = [line for line in table().splitlines() if line.startswith("| ") and "| precision |" not in line]
    assert len(rows) == 2 * 4 * 3
    assert [row for row in rows if "not tried" in row] == []


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
