"""READMEs: what they say to type does load what lies in the folder."""

from __future__ import annotations

import ast
import re

import pytest

from lit_rlhf.callbacks.readme import policy_readme, reward_readme


@pytest.fixture(params=[False, True], ids=["whole", "adapter"])
def folder(request, tmp_path):
    if request.param:
        (tmp_path / "adapter_config.json").write_text("{}")
    return tmp_path


def python_of(text):
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    return ast.parse(code)


@pytest.mark.parametrize("of_run", [False, True])
def test_of_a_policy(folder, of_run):
    text = policy_readme(folder, "owner/base", "finished", of_run=of_run)
    is_adapter = (folder / "adapter_config.json").is_file()
    assert ("PeftModel" in ast.dump(python_of(text))) == is_adapter
    assert text.startswith(f"# {folder.name}\n")
    assert "State: finished." in text
    assert "owner/base" in text
    assert ("lit-rlhf generate" in text) == ("samples.jsonl" in text) == of_run
    assert "score" not in text
    assert "{" not in text


@pytest.mark.parametrize("of_run", [False, True])
def test_of_a_reward_model(folder, of_run):
    text = reward_readme(folder, "owner/base", "finished", num_labels=2, pad=7, of_run=of_run)
    is_adapter = (folder / "adapter_config.json").is_file()
    code = ast.dump(python_of(text))
    assert ("PeftModel" in code) == is_adapter
    assert "AutoModelForSequenceClassification" in code
    assert "num_labels=2, pad_token_id=7)" in text
    assert f"lit-rlhf score {folder} rows.jsonl" in text
    assert "it is 7 here" in text
    assert ("reward_model.json" in text) == ("--serve" in text) == of_run
    assert "bias" not in text
    assert "generate" not in text
    assert "{" not in text


def test_what_transformers_cannot_do_is_said(folder):
    text = reward_readme(folder, "owner/base", "finished", bias=0.75)
    assert "are lower by\n0.75." in text
    assert "score rows one by one" in text
    python_of(text)


def test_a_value_model_beside_the_policy_is_told_of(tmp_path):
    folder = tmp_path / "run"
    (folder / "critic").mkdir(parents=True)
    assert f'from_pretrained("{folder}/critic")' in policy_readme(folder, "owner/base", "finished", of_run=True)
    assert "critic" not in policy_readme(folder, "owner/base", "exported")
    (folder / "critic").rmdir()
    assert "critic" not in policy_readme(folder, "owner/base", "finished", of_run=True)
