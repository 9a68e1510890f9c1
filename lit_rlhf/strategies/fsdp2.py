"""The strategy ``fsdp2``: every model of an algorithm sharded over all ranks, frozen and 4-bit weights too.

Lightning's own FSDP cannot run manual optimization, so it can never run PPO. This one is torch's ``fully_shard`` on
Lightning's ModelParallelStrategy. Where it departs from the latter:

1. All ranks share the data; none splits tensors.
2. Models are sharded here and not in ``configure_model``, so that an algorithm does not know of it.
3. A checkpoint is one file, the same that any other strategy writes and reads. Only what it holds is gathered: the
   frozen base never is. With ``sharded_checkpoints`` nothing is.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy, StrategyRegistry
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from lit_rlhf.checkpoints.shards import Rows, read_sharded, rows_like, save_sharded
from lit_rlhf.models.whole import whole
from lit_rlhf.strategies.combinations import refuse_combination
from lit_rlhf.strategies.sharding import shard_models


class FSDP2Strategy(ModelParallelStrategy):
    """Shards every model over all ranks.

    Args:
        timeout_seconds: how long a rank waits for the others before the run ends.
        sharded_checkpoints: let each rank write the rows that it holds, beside a file that names them all, instead of
            gathering what a checkpoint holds on the first rank; for full fine-tuning of large models. Any strategy on
            any number of ranks reads either.
        process_group_backend: "nccl" or "gloo"; None = what fits the device.
    """

    strategy_name = "fsdp2"

    def __init__(
        self,
        timeout_seconds: float = 1800.0,
        process_group_backend: str | None = None,
        sharded_checkpoints: bool = False,
    ) -> None:
        self.sharded_checkpoints = sharded_checkpoints
        super().__init__(
            tensor_parallel_size=1,
            save_distributed_checkpoint=False,
            process_group_backend=process_group_backend,
            timeout=timedelta(seconds=timeout_seconds),
        )

    def setup_environment(self) -> None:
        """Join the other ranks, all of which share the data."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def setup(self, trainer: Trainer) -> None:
        """Shard the models that ``configure_model`` built, then make the optimizer of the shards."""
        assert self.lightning_module is not None
        refuse_combination(self.lightning_module)
        self.model = self.precision_plugin.convert_module(self.lightning_module)
        shard_models(self.lightning_module, self.device_mesh["data_parallel"])
        super().setup(trainer)

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Checkpoints are restored as those of any other strategy."""
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """All tensors, sharded: the module takes out what a checkpoint does not hold before they are gathered."""
        assert self.lightning_module is not None
        return self.lightning_module.state_dict()

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The state of an optimizer, sharded until it is saved."""
        return Strategy.optimizer_state(self, optimizer)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Gather what the checkpoint holds, and let the first rank write it; or let each rank write what it holds."""
        if self.sharded_checkpoints:
            save_sharded(checkpoint, Path(filepath), self.root_device)
            return
        Strategy.save_checkpoint(self, _whole_tree(checkpoint), filepath, storage_options)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a whole checkpoint, on every rank; of one in shards, a rank reads the rows that it will hold."""
        sharded = read_sharded(Path(checkpoint_path)) if Path(checkpoint_path).is_file() else None
        return sharded if sharded is not None else Strategy.load_checkpoint(self, checkpoint_path, weights_only)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Give each rank its shards."""
        assert self.lightning_module is not None
        own = self.lightning_module.state_dict()
        state = {
            name: _like(own[name], value) if name in own else value for name, value in checkpoint["state_dict"].items()
        }
        self.lightning_module.load_state_dict(state, strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Give each rank its shards of the optimizers' state."""
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            sharded = {
                number: {key: _like(parameters[number], value) for key, value in entry.items()}
                for number, entry in state["state"].items()
            }
            optimizer.load_state_dict({**state, "state": sharded})


def _whole_tree(value: Any) -> Any:
    """A copy of a tree in which no tensor is sharded; those that were lie on the CPU."""
    if isinstance(value, DTensor):
        return whole(value.detach()).cpu()
    if isinstance(value, dict):
        return type(value)((key, _whole_tree(item)) for key, item in value.items())
    return [_whole_tree(item) for item in value] if type(value) is list else value


def _like(own: Tensor, value: Any) -> Any:
    """A whole tensor, or one in shards, sharded as ours of the same shape is."""
    if isinstance(value, Rows):
        return rows_like(own, value)
    if not isinstance(own, DTensor) or not isinstance(value, Tensor) or value.shape != own.shape:
        return value
    return distribute_tensor(value.to(own.device), own.device_mesh, own.placements, src_data_rank=None)


def register() -> None:
    """Make the strategy known to Lightning by its name."""
    if FSDP2Strategy.strategy_name not in StrategyRegistry:
        StrategyRegistry.register(FSDP2Strategy.strategy_name, FSDP2Strategy, description=str(FSDP2Strategy.__doc__))
