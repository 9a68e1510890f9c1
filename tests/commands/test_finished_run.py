"""What a folder must hold to be opened."""

from __future__ import annotations

import json

import pytest

from lit_rlhf.commands.finished_run import backbone_config, base_of, is_adapter, load_tokenizer
from lit_rlhf.models.building import build_backbone


def test_a_run_names_its_base(finished_run, tiny_llama):
    assert is_adapter(finished_run)
    assert base_of(finished_run) == str(tiny_llama())
    config = backbone_config(finished_run, None, "bfloat16", "nf4")
    assert (config.name_or_path, config.adapter) == (str(tiny_llama()), str(finished_run))
    assert (config.dtype, config.quantization) == ("bfloat16", "nf4")


def test_a_whole_model_is_its_own_base(tiny_llama):
    config = backbone_config(tiny_llama(), None, "auto")
    assert (config.name_or_path, config.adapter, config.lora.enabled) == (str(tiny_llama()), None, False)


def test_a_missing_folder_or_an_empty_one_is_refused(tmp_path):
    with pytest.raises(ValueError, match="nope: there is no such folder"):
        backbone_config(tmp_path / "nope", None, "auto")
    with pytest.raises(ValueError, match=r"holds neither adapter_config\.json nor config\.json: no run has finished"):
        backbone_config(tmp_path, None, "auto")
    with pytest.raises(ValueError, match="holds no tokenizer"):
        load_tokenizer(tmp_path)


def test_a_base_that_has_moved_is_asked_for(finished_run, tmp_path):
    gone = {"base_model_name_or_path": str(tmp_path / "gone")}
    (tmp_path / "adapter_config.json").write_text(json.dumps(gone))
    with pytest.raises(ValueError, match=r"its base model '.*gone' is not there; say where it is with --base"):
        backbone_config(tmp_path, None, "auto")


def test_an_adapter_for_another_base_is_refused(finished_run, tiny_llama):
    other = str(tiny_llama(hidden_size=32))
    with pytest.raises(ValueError, match="does not fit"):
        build_backbone(backbone_config(finished_run, other, "auto"), reference="none")
