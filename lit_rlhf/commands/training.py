"""``fit``, ``validate``, ``test`` and ``predict``: a LightningCLI that names what is wrong and gives a run one folder.

Where it departs from Lightning's:

1. An unknown key is told in one line with its full path and the nearest key that exists.
2. The configuration wins over the hyper-parameters in a checkpoint; Lightning lets the checkpoint win, silently.
3. ``data.tokenizer`` follows ``model.backbone.name_or_path`` and ``data.objectives`` the names of ``model.objectives``
   unless they are set.
4. Names that begin with ``embedded:`` mean files inside the package; ``config.yaml`` keeps the names.
5. ``fit`` takes the folder ``trainer.default_root_dir``, or a free one beside it, and leaves there what is needed to
   use what was learnt: see :mod:`lit_rlhf.commands.run_folder`. A callback of the user replaces ours of its kind.
6. Checkpoints are files that verify themselves; ``--ckpt_path=last`` takes the newest one that is whole, and ``auto``
   begins anew where there is none. A run that is told to go saves itself first.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, NoReturn

from jsonargparse import Namespace
from lightning.fabric.plugins import CheckpointIO
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, ProgressBar
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from lit_rlhf.callbacks.batch_kind import BatchKind
from lit_rlhf.callbacks.progress import Progress
from lit_rlhf.checkpoints.folder import newest_valid
from lit_rlhf.checkpoints.plugin import SafeCheckpointIO
from lit_rlhf.commands.config_errors import explain
from lit_rlhf.commands.quiet import quieten
from lit_rlhf.commands.run_folder import folder_of_checkpoint, free_folder, last_checkpoint
from lit_rlhf.commands.run_parts import listed, missing, refuse_callbacks, run_callbacks, run_loggers
from lit_rlhf.embedded import resolve

_ADVICE = {
    "No supported gpu": ("trainer.accelerator is gpu, and torch finds none on this machine; auto takes what there is"),
    "Automatic gradient clipping": (
        "trainer.gradient_clip_val is for algorithms that take one optimizer step per batch; this one clips by itself: "
        "set model.updates.max_grad_norm"
    ),
    "Automatic gradient accumulation": (
        "trainer.accumulate_grad_batches is for algorithms that take one optimizer step per batch; this one takes "
        "model.updates.num_minibatches: set that and data.batch_size; model.updates.token_budget bounds its memory"
    ),
}
"""What is said instead of a message of Lightning, by its beginning."""


def run(command: str, words: Sequence[str]) -> None:
    """Run ``fit``, ``validate``, ``test`` or ``predict``.

    Args:
        command: which.
        words: the rest of the command line.

    Raises:
        ValueError: for settings that Lightning refuses.
    """
    _cli(TrainingCLI, command, words)


def read_data(words: Sequence[str]) -> LightningDataModule:
    """Make the data module that ``fit`` would, and nothing else.

    Args:
        words: what follows ``fit`` on its command line.

    Raises:
        ValueError: if the configuration names no data, or settings that the data module refuses.
    """
    data = _cli(DataCLI, "fit", words).datamodule
    if data is None:
        raise ValueError("the configuration has no `data`")
    return data


def read_run(words: Sequence[str]) -> tuple[LightningModule, LightningDataModule | None, Namespace]:
    """Make the module and the data module that ``fit`` would; no weights are read, no data, and nothing is trained.

    Args:
        words: what follows ``fit`` on its command line.

    Returns:
        Both, and the settings of ``fit``.

    Raises:
        ValueError: for settings that a module refuses.
    """
    cli = _cli(PartsCLI, "fit", words)
    return cli.model, cli.datamodule, cli.config.fit


def _cli(kind: type[TrainingCLI], command: str, words: Sequence[str]) -> TrainingCLI:
    quieten()
    Parser.words = [command, *words]
    try:
        return kind(
            LightningModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            parser_class=Parser,
            parser_kwargs={"prog": "lit-rlhf", "allow_abbrev": False},
            seed_everything_default=0,
            save_config_kwargs={"overwrite": True},
            args=[command, *words],
        )
    except MisconfigurationException as error:
        ours = (advice for begin, advice in _ADVICE.items() if str(error).startswith(begin))
        raise ValueError(next(ours, str(error))) from error
    except ValueError as error:
        # jsonargparse wraps what a constructor refuses into a page about everything else that it tried.
        cause = error
        while str(error).startswith("Does not validate") and isinstance(cause.__cause__, ValueError):
            cause = cause.__cause__
        if str(cause).startswith(("Does not validate", "Problem with given class_path")):
            raise ValueError(explain(str(cause), [], words)) from cause
        raise cause from None


class Parser(LightningArgumentParser):
    """Refuses a wrong configuration in one line."""

    words: Sequence[str] = ()
    """The command line that is being parsed, for messages."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print what is wrong and leave with status 2."""
        print(f"error: {explain(message, self._known_keys(), self.words)}", file=sys.stderr)  # noqa: T201
        raise SystemExit(2)

    def _known_keys(self) -> list[str]:
        """Keys of this parser and of its subcommands, which all take the same ones."""
        keys = [action.dest for action in self._actions]
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                keys += [key for parser in action.choices.values() for key in parser._known_keys()]
        return keys


class TrainingCLI(LightningCLI):
    """The LightningCLI of this package; the module says how it differs."""

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse without Lightning's warning that ``sys.argv`` holds words as well."""
        self.config = parser.parse_args(args)  # type: ignore[arg-type]

    def _parse_ckpt_path(self) -> None:
        """Leave the configuration as it was given."""

    def before_instantiate_classes(self) -> None:
        """Choose the folder, link the tokenizer and resolve embedded names."""
        config = self.config[self.subcommand]
        if self.subcommand != "fit":
            self.save_config_callback = None
        config.trainer.default_root_dir = str(self._folder(config))
        if self.subcommand != "fit" and not config.ckpt_path:
            rank_zero_info(
                "no --ckpt_path: this is the model as training begins; --ckpt_path=last takes what was learnt"
            )
        _link_tokenizer(config)
        _link_objectives(config)
        self._as_written = deepcopy(self.config)
        self._begins_again = config.ckpt_path == "auto"
        if config.ckpt_path in ("last", "auto"):
            config.ckpt_path = last_checkpoint(config.ckpt_path, Path(config.trainer.default_root_dir))
        for part in ("model", "data"):
            if config.get(part) is not None:
                config[part] = _resolve_all(config[part])

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Make the Trainer, with our callbacks and logger wherever the user has none of that kind."""
        self.config = self._as_written
        command = str(self.subcommand)
        config = self.config_init[command].trainer
        given = listed(config.callbacks)
        refuse_callbacks(given)
        if not any(isinstance(callback, ProgressBar) for callback in given) and config.enable_progress_bar is not False:
            given = [*given, Progress()]
        if config.fast_dev_run:
            given = [*given, BatchKind()]
        else:
            folder = Path(config.default_root_dir)
            ours = run_callbacks(command, self.model, folder, requeue=self._begins_again)
            given = [*given, *missing(ours, given)]
        plugins = listed(config.plugins)
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            plugins = [*plugins, SafeCheckpointIO()]
        loggers = run_loggers(command, config.logger, config.default_root_dir)
        defaults: dict[str, Any] = {"callbacks": given, "logger": loggers, "plugins": plugins}
        if config.enable_model_summary is None:
            defaults["enable_model_summary"] = False
        if config.num_sanity_val_steps is None and command == "fit" and not config.fast_dev_run:
            defaults["num_sanity_val_steps"] = -1
        try:
            return super().instantiate_trainer(**{**defaults, **kwargs})
        except TypeError as error:  # what Lightning says of a value of the wrong kind
            raise ValueError(f"trainer: {error}") from error

    def fit(self, **kwargs: Any) -> None:
        """Train; what ends it early comes with the place of the last good checkpoint."""
        try:
            self.trainer.fit(**kwargs)
        except (Exception, SystemExit) as error:
            if (path := _last_checkpoint(self.trainer)) and not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
                note = f"last good checkpoint: {path} (go on from it with --ckpt_path={path})"
                error.add_note(note)
                if isinstance(error, SystemExit):  # what Lightning makes of Ctrl-C, which nobody prints
                    rank_zero_info(note)
            raise

    def predict(self, **kwargs: Any) -> None:
        """Predict; what is written to a file is not gathered in memory as well."""
        self.trainer.predict(**{**kwargs, "return_predictions": False})

    def _folder(self, config: Namespace) -> Path:
        algorithm = config.model.class_path.rpartition(".")[2].removesuffix("Module").lower()
        wanted = Path(config.trainer.default_root_dir or f"runs/{algorithm}")
        if config.get("ckpt_path"):
            return folder_of_checkpoint(config.ckpt_path, wanted)
        if self.subcommand != "fit" or config.trainer.fast_dev_run:
            return wanted
        folder = free_folder(wanted)
        if folder != wanted:
            rank_zero_info(f"{wanted} holds a run already; this one goes to {folder}")
        return folder


class DataCLI(TrainingCLI):
    """Reads what ``fit`` takes, and makes the data module of it alone."""

    def before_instantiate_classes(self) -> None:
        """Link the tokenizer and resolve embedded names."""
        config = self.config[self.subcommand]
        _link_tokenizer(config)
        _link_objectives(config)
        config.data = _resolve_all(config.data)

    def instantiate_classes(self) -> None:
        """Make the data module; no model, no trainer."""
        data = Namespace(data=self.config[self.subcommand].data)
        self.datamodule = self._parser(self.subcommand).instantiate(data).data

    def _run_subcommand(self, subcommand: str) -> None:
        """Run nothing."""


class PartsCLI(DataCLI):
    """Reads what ``fit`` takes, and makes the module and the data module of it."""

    def before_instantiate_classes(self) -> None:
        """Link and resolve as for the data alone, and in the model."""
        config = self.config[self.subcommand]
        _link_tokenizer(config)
        _link_objectives(config)
        for part in ("model", "data"):
            if config.get(part) is not None:
                config[part] = _resolve_all(config[part])

    def instantiate_classes(self) -> None:
        """Make both; no trainer."""
        config = self.config[self.subcommand]
        parts = Namespace(**{part: config[part] for part in ("model", "data") if config.get(part) is not None})
        made = self._parser(self.subcommand).instantiate(parts)
        self.model, self.datamodule = made.model, made.get("data")


def _link_tokenizer(config: Namespace) -> None:
    """``tokenizer`` of the data and of their parts <- ``model.backbone.name_or_path``, where it is not set."""
    backbone = config.model.get("init_args", {}).get("backbone")
    if config.get("data") is not None and isinstance(backbone, Namespace) and "name_or_path" in backbone:
        _set_tokenizer(config.data, backbone.name_or_path)


def _set_tokenizer(data: Namespace, name: str) -> None:
    arguments = data.get("init_args", Namespace())
    if "tokenizer" in arguments and arguments.tokenizer is None:
        arguments.tokenizer = name
    for part in vars(arguments).values():
        if isinstance(part, Namespace) and "init_args" in part:
            _set_tokenizer(part, name)


def _link_objectives(config: Namespace) -> None:
    """``data.objectives`` <- the names of ``model.objectives``, where data has some that are not set."""
    data, model = config.get("data"), config.model
    named = model.get("init_args", {}).get("objectives")
    if data is not None and named and data.get("init_args", {}).get("objectives", []) is None:
        data.init_args.objectives = list(vars(named) if isinstance(named, Namespace) else named)


def _resolve_all(value: Any) -> Any:
    """A copy of a piece of configuration in which embedded names are paths."""
    if isinstance(value, str):
        return resolve(value)
    if isinstance(value, list):
        return [_resolve_all(item) for item in value]
    if isinstance(value, dict):
        return {key: _resolve_all(item) for key, item in value.items()}
    if isinstance(value, Namespace):
        return Namespace(**{key: _resolve_all(item) for key, item in vars(value).items()})
    return value


def _last_checkpoint(trainer: Trainer) -> str:
    """The newest checkpoint of this run that is whole; empty if there is none."""
    kept = [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)]
    folders = [Path(callback.dirpath) for callback in kept if callback.dirpath is not None]
    found = [path for folder in folders if (path := newest_valid(folder).path) is not None]
    return os.path.relpath(found[0]) if found else ""
