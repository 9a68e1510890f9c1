"""At the end of a run its folder holds all that is needed to use what was learnt, also when the run was interrupted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from transformers import PreTrainedTokenizerBase

from lit_rlhf.callbacks.tokenizer import tokenizer_of

_ADAPTER = """\
# {title}

A LoRA adapter for `{base}`, trained with `lit_rlhf` as `config.yaml` says.
State: {state}.

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base = AutoModelForCausalLM.from_pretrained("{base}")
model = PeftModel.from_pretrained(base, "{folder}")
tokenizer = AutoTokenizer.from_pretrained("{folder}")
```
"""

_MODEL = """\
# {title}

A whole model, trained from `{base}` with `lit_rlhf` as `config.yaml` says.
State: {state}.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{folder}")
tokenizer = AutoTokenizer.from_pretrained("{folder}")
```
"""

_MORE = """
| file | what it is |
|---|---|
| `adapter_model.safetensors`, `adapter_config.json` (or `model.safetensors`, `config.json`) | what was trained |
| `tokenizer.json`, `chat_template.jinja`, ... | the tokenizer it was trained with |
| `config.yaml` | every setting; `lit-rlhf fit --config config.yaml` does it again |
| `metrics.csv`, `plots/` | the numbers on the way |
| `samples.jsonl` | answers before, during and after training |
| `checkpoints/` | where `--ckpt_path` goes on from |

```bash
lit-rlhf generate {folder} --prompt "..."
lit-rlhf export {folder} --out merged --merge
```
"""


class AdapterExport(Callback):
    """Writes adapter (or model), tokenizer, chat template and README into the folder of the run.

    Args:
        folder: where to; None = ``trainer.default_root_dir``.
        tokenizer: what to write beside the adapter: a tokenizer or its name; None = that of the data module.
    """

    def __init__(self, folder: str | None = None, tokenizer: PreTrainedTokenizerBase | str | None = None) -> None:
        self.folder = folder
        self.tokenizer = tokenizer

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write everything; on every rank, because sharded weights are gathered."""
        self._write(trainer, pl_module, f"finished after {trainer.global_step} steps")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Write what was learnt so far, unless nothing was or the numbers had run away."""
        if trainer.world_size > 1 or trainer.global_step == 0 or isinstance(exception, FloatingPointError):
            return
        self._write(trainer, pl_module, f"interrupted after {trainer.global_step} steps ({type(exception).__name__})")
        rank_zero_info(f"what was learnt up to step {trainer.global_step} is in {self._folder(trainer)}")

    def _folder(self, trainer: Trainer) -> Path:
        return Path(self.folder or trainer.default_root_dir)

    def _write(self, trainer: Trainer, pl_module: Any, state: str) -> None:
        folder = self._folder(trainer)
        folder.mkdir(parents=True, exist_ok=True)
        backbone = pl_module.model
        backbone.save(folder)
        if not trainer.is_global_zero:
            return
        tokenizer_of(trainer, self.tokenizer).save_pretrained(folder)
        text = readme(folder, backbone.base.name_or_path, state, _MORE.format(folder=folder))
        (folder / "README.md").write_text(text, encoding="utf-8")


def readme(folder: Path, base: str, state: str, more: str = "") -> str:
    """README of a folder with an adapter, or with a whole model, that says how to load it.

    Args:
        folder: what it is about.
        base: name of the model that training started from.
        state: where the weights come from.
        more: Markdown to put at the end.
    """
    template = _ADAPTER if (folder / "adapter_config.json").is_file() else _MODEL
    return template.format(title=folder.name, base=base, folder=folder, state=state) + more
