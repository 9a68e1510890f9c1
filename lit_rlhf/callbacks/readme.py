"""README of the folder of a run or an export: what lies in it and how to load it."""

from __future__ import annotations

from pathlib import Path

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

_REWARD_ADAPTER = """\
# {title}

A reward model: a LoRA adapter for `{base}` with its score head, trained with `lit_rlhf` as `config.yaml` says.
State: {state}.

```bash
lit-rlhf score {folder} rows.jsonl
```

```python
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer

base = AutoModelForSequenceClassification.from_pretrained("{base}", num_labels={num_labels}, pad_token_id={pad})
model = PeftModel.from_pretrained(base, "{folder}")
tokenizer = AutoTokenizer.from_pretrained("{folder}")
```
"""

_REWARD_MODEL = """\
# {title}

A reward model, trained from `{base}` with `lit_rlhf` as `config.yaml` says.
State: {state}.

```bash
lit-rlhf score {folder} rows.jsonl
```

```python
from transformers import AutoModelForSequenceClassification, AutoTokenizer

model = AutoModelForSequenceClassification.from_pretrained("{folder}", num_labels={num_labels}, pad_token_id={pad})
tokenizer = AutoTokenizer.from_pretrained("{folder}")
```
"""

_PAD = """
A score is read at the last token of prompt and response. Where rows of a batch are padded, transformers looks for the
last token that is not the pad token, so that token must never end a text: it is {pad} here, in the tokenizer too.
"""

_BIAS = """
The head came with a bias, which sequence classifiers of transformers have no place for: their scores are lower by
{bias}. `lit-rlhf score` adds it.
"""

_POLICY_RUN = """
| file | what it is |
|---|---|
| `adapter_model.safetensors`, `adapter_config.json` (or `model.safetensors`, `config.json`) | what was trained |
| `tokenizer.json`, `chat_template.jinja`, ... | the tokenizer it was trained with |
| `config.yaml` | every setting; `lit-rlhf fit --config config.yaml` does it again |
| `metrics.csv`, `tensorboard/`, `plots/` | the numbers on the way |
| `samples.jsonl` | answers before, during and after training |
| `checkpoints/` | where `--ckpt_path` goes on from |

```bash
lit-rlhf generate {folder} --prompt "..."
lit-rlhf export {folder} --out merged --merge
lit-rlhf fit --config dpo.yaml --model.backbone.{start}={folder}
```
"""

_CRITIC = """
`critic/` is the critic that PPO trained beside the policy. It loads as a model with a value head:

```python
from lit_rlhf import AutoModelForCausalLMWithValueHead

critic = AutoModelForCausalLMWithValueHead.from_pretrained("{folder}/critic")
```
"""

_REWARD_RUN = """
| file | what it is |
|---|---|
| `adapter_model.safetensors`, `adapter_config.json` (or `model.safetensors`, `config.json`) | adapter and score head |
| `reward_model.json` | objectives, and how scores spread on the validation data |
| `tokenizer.json`, `chat_template.jinja`, ... | the tokenizer it was trained with |
| `config.yaml` | every setting; `lit-rlhf fit --config config.yaml` does it again |
| `metrics.csv`, `tensorboard/`, `plots/` | the numbers; `plots/reliability.png`: how far to believe its probabilities |
| `checkpoints/` | where `--ckpt_path` goes on from |

```bash
lit-rlhf score {folder} rows.jsonl --normalise
lit-rlhf score {folder} --serve
lit-rlhf export {folder} --out merged --merge
```
"""


_SEEING = """\
It reads pictures, which sequence classifiers of transformers do not: `lit_rlhf` alone loads it.
"""

_NO_PAD = """
A score is read at the last token of prompt and response. Where rows of a batch are padded, transformers looks for the
last token that is not the pad token. This tokenizer has no token that could not end a text, so score rows one by one
there; `lit-rlhf score` does not pad.
"""


def policy_readme(folder: Path, base: str, state: str, *, of_run: bool = False, sees: bool = False) -> str:
    """README of a folder with an adapter, or with a whole model.

    Args:
        folder: what it is about.
        base: name of the model that training started from.
        state: where the weights come from.
        of_run: whether the folder holds all that a run leaves.
        sees: whether the model reads pictures, and its processor lies in the folder.
    """
    template = _ADAPTER if _is_adapter(folder) else _MODEL
    if sees:
        template = template.replace("ForCausalLM", "ForImageTextToText")
        template = template.replace("AutoTokenizer", "AutoProcessor").replace("tokenizer =", "processor =")
    start = "adapter" if _is_adapter(folder) else "name_or_path"
    more = _POLICY_RUN.format(folder=folder, start=start) if of_run else ""
    if of_run and (folder / "critic").is_dir():
        more += _CRITIC.format(folder=folder)
    return template.format(title=folder.name, base=base, folder=folder, state=state) + more


def reward_readme(
    folder: Path,
    base: str,
    state: str,
    *,
    num_labels: int = 1,
    pad: int | None = None,
    bias: float = 0.0,
    of_run: bool = False,
    sees: bool = False,
) -> str:
    """README of a folder with a reward model.

    Args:
        folder: what it is about.
        base: name of the model that training started from.
        state: where the weights come from.
        num_labels: outputs of the head.
        pad: id of the pad token of the tokenizer that lies in the folder.
        bias: of the score.
        of_run: whether the folder holds all that a run leaves.
        sees: whether the model reads pictures, which classifiers of transformers do not.
    """
    template = _REWARD_ADAPTER if _is_adapter(folder) else _REWARD_MODEL
    if sees:  # no code for transformers, and nothing of rows that it pads
        template = template.rpartition("```python")[0] + _SEEING
    text = template.format(title=folder.name, base=base, folder=folder, state=state, num_labels=num_labels, pad=pad)
    if not sees:
        text += _NO_PAD if pad is None else _PAD.format(pad=pad)
    if bias:
        text += _BIAS.format(bias=bias)
    return text + (_REWARD_RUN.format(folder=folder) if of_run else "")


def _is_adapter(folder: Path) -> bool:
    return (folder / "adapter_config.json").is_file()
