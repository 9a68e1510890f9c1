"""Every config under configs/ is found, accepted whole by the command line, and small enough to read."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from lit_rlhf.cli import main

ROOT = Path(__file__).parents[1]
CONFIGS = sorted(ROOT.glob("configs/**/*.yaml"))


def num_keys(node: object) -> int:
    if isinstance(node, dict):
        return sum(1 + num_keys(child) for child in node.values() if isinstance(child, dict | list)) + sum(
            not isinstance(child, dict | list) for child in node.values()
        )
    return sum(map(num_keys, node)) if isinstance(node, list) else 0


def launch(config: Path) -> list[str]:
    """The configs of the first launch line in the header; of an overlay, those before it too."""
    line = re.search(r"^#   python -m lit_rlhf fit (.*)$", config.read_text(encoding="utf-8"), re.MULTILINE)
    assert line
    return re.findall(r"--config (\S+)", line[1])


def test_the_walk_finds_the_configs_of_every_depth():
    assert {ROOT / "configs/dpo.yaml", ROOT / "configs/llama3_8b/dpo_mixture.yaml"} <= set(CONFIGS)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_command_line_accepts_it(config, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["fit", *(word for name in launch(config) for word in ("--config", str(ROOT / name))), "--print_config"])
    assert stop.value.code in (0, None), capsys.readouterr().err
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["model"]["class_path"].startswith("lit_rlhf.")


def test_a_mistyped_key_is_refused(tmp_path, capsys):
    text = (ROOT / "configs/dpo.yaml").read_text(encoding="utf-8").replace("beta:", "betta:")
    (tmp_path / "typo.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--config", str(tmp_path / "typo.yaml"), "--print_config"])
    assert stop.value.code == 2
    assert "did you mean 'beta'" in capsys.readouterr().err


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: str(path.relative_to(ROOT)))
def test_it_can_be_read_in_one_look(config):
    text = config.read_text(encoding="utf-8")
    content = yaml.safe_load(text)
    assert text.startswith("# ")
    assert launch(config)[-1] == str(config.relative_to(ROOT))
    sections = ["seed_everything", "model", "data", "trainer"]
    is_overlay = len(launch(config)) > 1
    assert list(content) == [name for name in sections if name in content or not is_overlay]
    assert num_keys(content) <= 45  # class_path and init_args are counted too
