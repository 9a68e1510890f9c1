"""Print what makes a shell complete commands, flags, keys and files.

  lit-rlhf completion bash > ~/.local/share/bash-completion/completions/lit-rlhf
  lit-rlhf completion zsh > ~/.lit-rlhf.zsh        and in ~/.zshrc: source ~/.lit-rlhf.zsh
  lit-rlhf completion fish > ~/.config/fish/completions/lit-rlhf.fish

All words stand in the script, so that completing starts no Python: make it again after an update.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout, suppress
from io import StringIO

from lit_rlhf.commands.training_help import KEYS

_BASH = """\
_lit_rlhf() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} words
    if [ "$COMP_CWORD" -eq 1 ]; then
        COMPREPLY=($(compgen -W "{commands}" -- "$word"))
        return
    fi
    case ${{COMP_WORDS[1]}} in
{cases}
    esac
    case $word in
        -*) COMPREPLY=($(compgen -W "$words" -- "$word")) ;;
        =) COMPREPLY=($(compgen -f)) ;;
        *) COMPREPLY=($(compgen -f -- "$word")) ;;
    esac
}}
complete -o filenames -F _lit_rlhf lit-rlhf
"""

_ZSH = "autoload -U +X compinit bashcompinit && compinit && bashcompinit\n"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    parser.add_argument("shell", choices=("bash", "zsh", "fish"))


def run(args: argparse.Namespace) -> None:
    """Print the script."""
    from lit_rlhf.cli import BESIDE, TRAINING

    keys = training_keys()
    words = {name: keys if name in TRAINING else flags(name) for name in TRAINING | BESIDE}
    if args.shell == "fish":
        print(fish(words, TRAINING | BESIDE), end="")  # noqa: T201
    else:
        print((_ZSH if args.shell == "zsh" else "") + bash(words), end="")  # noqa: T201


def flags(command: str) -> list[str]:
    """The flags that the help of a command shows."""
    from lit_rlhf.cli import main

    with redirect_stdout(StringIO()) as told, suppress(SystemExit):
        main([command, "--help"])
    return sorted(set(re.findall(r"(?<![\w-])--[a-z]\w*", told.getvalue())))


def training_keys() -> list[str]:
    """Every key of the Trainer, of all algorithms and of all data modules."""
    from jsonargparse import ArgumentParser
    from lightning.pytorch import Trainer

    import datamodules
    import lit_rlhf
    from lit_rlhf.models.options import BackboneConfig

    parts: list[tuple[type, str]] = [(Trainer, "trainer"), (BackboneConfig, "model.backbone")]
    for package, key in ((lit_rlhf, "model"), (datamodules, "data")):
        parts += [(getattr(package, name), key) for name in package.__all__ if name.endswith("Module")]
    keys = {"--help", *(key.split()[0] for group in KEYS.values() for key in group)}
    for part, key in parts:
        parser = ArgumentParser(add_help=False)
        parser.add_class_arguments(part, key, fail_untyped=False)
        keys |= {word for action in parser._actions for word in action.option_strings}
    return sorted(key for key in keys if not key.endswith(".help"))


def bash(words: Mapping[str, Sequence[str]]) -> str:
    """The script of bash, and of zsh behind its first line.

    Args:
        words: flags of each command.
    """
    by_words: dict[str, list[str]] = {}
    for command, own in words.items():
        by_words.setdefault(" ".join(own), []).append(command)
    cases = "\n".join(f'        {"|".join(names)}) words="{own}" ;;' for own, names in by_words.items())
    return _BASH.format(commands=" ".join(words), cases=cases)


def fish(words: Mapping[str, Sequence[str]], commands: Mapping[str, str]) -> str:
    """The script of fish.

    Args:
        words: flags of each command.
        commands: what each of them does.
    """
    lines = [
        f'complete -c lit-rlhf -f -n __fish_use_subcommand -a {name} -d "{does}"' for name, does in commands.items()
    ]
    by_words: dict[tuple[str, ...], list[str]] = {}
    for command, own in words.items():
        by_words.setdefault(tuple(own), []).append(command)
    for group, names in by_words.items():
        when = f'-n "__fish_seen_subcommand_from {" ".join(names)}"'
        lines += [f"complete -c lit-rlhf {when} -l {flag.removeprefix('--')} -r -F" for flag in group]
    return "\n".join([*lines, ""])
