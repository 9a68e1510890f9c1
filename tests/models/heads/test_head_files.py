"""Heads out of folders: every form in the wild, and messages for what is broken, ambiguous or of another model."""

from __future__ import annotations

import json
import os

import pytest
import torch
from safetensors.torch import save_file

from lit_rlhf.models.heads import head_files
from lit_rlhf.models.heads.head_files import HeadFile, check_head, read_head

WEIGHT = torch.linspace(-1, 1, 16)[None]
BIAS = torch.tensor([0.25])
OTHERS = {"model.layers.0.score.weight": torch.zeros(1, 16), "lm_head.weight": torch.zeros(4, 16)}


def write(file, tensors, **options):
    """A checkpoint with other tensors in it, in the format that its name says."""
    save = save_file if file.suffix == ".safetensors" else torch.save
    save({**OTHERS, **tensors}, file, **options)


def values(weight=WEIGHT, bias=BIAS, prefix=""):
    return {f"{prefix}v_head.summary.weight": weight, f"{prefix}v_head.summary.bias": bias}


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("adapter_model.safetensors", "base_model.model.score.weight"),
        ("adapter_model.safetensors", "base_model.model.score.modules_to_save.weight"),
        ("adapter_model.safetensors", "base_model.model.score.modules_to_save.default.weight"),
        ("adapter_model.bin", "base_model.model.score.weight"),
        ("model.safetensors", "score.weight"),
        ("model.safetensors", "pretrained_model.score.weight"),
        ("pytorch_model.bin", "module.score.weight"),
        ("value_head.safetensors", "v_head.summary.weight"),
        ("model.safetensors", "v_head.summary.weight"),
        ("value_head.bin", "v_head.summary.weight"),
        ("pytorch_model.bin", "v_head.summary.weight"),
        ("pytorch_model.bin", "base_model.model.v_head.modules_to_save.default.summary.weight"),
    ],
)
def test_every_form_is_read(tmp_path, name, key):
    write(tmp_path / name, {key: WEIGHT.clone()})
    head = read_head(tmp_path)
    assert (head.file, head.key, head.bias) == (tmp_path / name, key, None)
    assert torch.equal(head.weight, WEIGHT)
    write(tmp_path / name, {key: WEIGHT.bfloat16(), key.replace("weight", "bias"): BIAS.bfloat16()})
    head = read_head(tmp_path)
    assert head.weight.dtype == head.bias.dtype == torch.float32
    assert torch.equal(head.weight, WEIGHT.bfloat16().float())
    assert torch.equal(head.bias, BIAS)


def test_files_that_torch_wrote_before_zip(tmp_path):
    write(tmp_path / "pytorch_model.bin", values(), _use_new_zipfile_serialization=False)
    assert torch.equal(read_head(tmp_path).bias, BIAS)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_in_parts(tmp_path, name):
    first, second = (tmp_path / name.replace(".", f"-0000{part}-of-00002.") for part in (1, 2))
    write(first, {"v_head.summary.weight": WEIGHT})
    write(second, {"v_head.summary.bias": BIAS})
    index = tmp_path / f"{name}.index.json"
    files = {"lm_head.weight": first.name, "v_head.summary.weight": first.name, "v_head.summary.bias": second.name}
    index.write_text(json.dumps({"metadata": {}, "weight_map": files}))
    head = read_head(tmp_path)
    assert (head.file, head.bias.item()) == (first, 0.25)
    second.unlink()
    with pytest.raises(ValueError, match=f"{second.name} cannot be read"):
        read_head(tmp_path)
    for broken in ("{", "[]", '{"weight_map": 3}', "{}"):
        index.write_text(broken)
        with pytest.raises(ValueError, match=rf"{index.name} cannot be read: .*'weight_map'"):
            read_head(tmp_path)


def test_an_index_that_lies(tmp_path):
    write(tmp_path / "part.safetensors", {})
    index = {"weight_map": {"score.weight": "part.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"part\.safetensors cannot be read: .*score\.weight"):
        read_head(tmp_path)


def test_no_head(tmp_path):
    assert read_head(tmp_path) is None
    frozen = {"base_model.model.score.original_module.weight": WEIGHT, "layers.0.v_head.summary.weight": 2 * WEIGHT}
    write(tmp_path / "model.safetensors", frozen)
    assert read_head(tmp_path) is None, "neither a frozen twin nor a layer that happens to be called so"
    with pytest.raises(ValueError, match=r"no folder '.*nowhere'"):
        read_head(tmp_path / "nowhere")


def test_only_the_kinds_that_are_asked_for(tmp_path):
    write(tmp_path / "adapter_model.safetensors", {"base_model.model.score.weight": WEIGHT})
    write(tmp_path / "value_head.safetensors", values(2 * WEIGHT))
    assert read_head(tmp_path, kinds=["score"]).key == "base_model.model.score.weight"
    assert torch.equal(read_head(tmp_path, kinds=["v_head"]).weight, 2 * WEIGHT)
    with pytest.raises(ValueError, match=r"differ: .*score.weight' in .*adapter_model.*v_head.*in .*value_head\.saf"):
        read_head(tmp_path)


@pytest.mark.parametrize("other", [values(2 * WEIGHT), values(bias=BIAS + 1), values(WEIGHT[:, :8].clone())])
def test_two_heads_that_differ(tmp_path, other):
    write(tmp_path / "value_head.safetensors", values())
    write(tmp_path / "pytorch_model.bin", values())
    assert read_head(tmp_path).file.name == "value_head.safetensors", "twice the same is no harm"
    write(tmp_path / "pytorch_model.bin", other)
    with pytest.raises(ValueError, match=r"differ: .*in .*value_head\.safetensors and .*in .*pytorch_model\.bin"):
        read_head(tmp_path)


def test_a_bias_of_zero_is_no_difference(tmp_path):
    write(tmp_path / "value_head.safetensors", values(bias=0 * BIAS))
    write(tmp_path / "adapter_model.safetensors", {"base_model.model.score.weight": WEIGHT})
    assert read_head(tmp_path).file.name == "adapter_model.safetensors"


def test_how_many_numbers_it_gives(tmp_path):
    write(tmp_path / "model.safetensors", {"score.weight": torch.ones(3, 16)})
    assert read_head(tmp_path, num_objectives=3).weight.shape == (3, 16)
    assert read_head(tmp_path, num_objectives=None).weight.shape == (3, 16)
    for expected in (1, 2):
        with pytest.raises(ValueError, match=rf"\(3, 16\): it gives 3 .* {expected} is expected.*per objective"):
            read_head(tmp_path, num_objectives=expected)


@pytest.mark.parametrize("key", ["classifier.weight", "base_model.model.classifier.out_proj.weight"])
def test_a_classifier_is_refused(tmp_path, key):
    write(tmp_path / "model.safetensors", {key: torch.ones(2, 16)})
    with pytest.raises(ValueError, match=rf"'{key}' in .*model\.safetensors is \(2, 16\): .*objective"):
        read_head(tmp_path)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (values(WEIGHT / 0), r"'v_head\.summary\.weight' in .*not finite"),
        (values(bias=BIAS * torch.nan), r"'v_head\.summary\.bias' in .*not finite"),
        (values(WEIGHT[0]), r"is \(16,\) with a bias of \(1,\)"),
        (values(bias=torch.ones(2)), r"is \(1, 16\) with a bias of \(2,\)"),
        ({"score.weight": WEIGHT[0]}, r"is \(16,\);"),
        ({"score.weight": torch.ones(0, 16)}, r"is \(0, 16\);"),
        ({"score.weight": torch.ones(8, 1, dtype=torch.uint8)}, "holds torch.uint8; a head must be saved as float"),
    ],
)
def test_heads_that_are_none(tmp_path, tensors, message):
    write(tmp_path / "model.safetensors", tensors)
    with pytest.raises(ValueError, match=message):
        read_head(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "adapter_model.safetensors", "value_head.bin"])
@pytest.mark.parametrize("broken", ["empty", "text", "half"])
def test_broken_files(tmp_path, name, broken):
    file = tmp_path / name
    write(file, values())
    content = file.read_bytes()
    file.write_bytes({"empty": b"", "text": b"version https://git-lfs", "half": content[: len(content) // 2]}[broken])
    with pytest.raises(ValueError, match=rf"{name} cannot be read"):
        read_head(tmp_path)


def test_a_pickle_that_runs_code_is_refused(tmp_path):
    torch.save({"v_head.summary.weight": os.system}, tmp_path / "value_head.bin")
    with pytest.raises(ValueError, match=r"value_head\.bin cannot be read as tensors alone"):
        read_head(tmp_path)
    torch.save(WEIGHT, tmp_path / "value_head.bin")
    with pytest.raises(ValueError, match=r"value_head\.bin holds a Tensor; a dict"):
        read_head(tmp_path)


def test_nothing_but_the_head_is_read(tmp_path, monkeypatch):
    read = []

    class Spy:
        def __init__(self, *args):
            self.file = opened(*args)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def keys(self):
            return self.file.keys()

        def get_tensor(self, key):
            read.append(key)
            return self.file.get_tensor(key)

    opened = head_files.safe_open
    monkeypatch.setattr(head_files, "safe_open", Spy)
    write(tmp_path / "model.safetensors", values())
    read_head(tmp_path)
    assert sorted(read) == ["v_head.summary.bias", "v_head.summary.weight"]


@pytest.mark.parametrize("name", ["value_head.bin", "value_head.safetensors"])
def test_a_head_outlives_its_file(tmp_path, name):
    write(tmp_path / name, values())
    head = read_head(tmp_path)
    with (tmp_path / name).open("r+b") as file:
        file.write(b"\xff" * (tmp_path / name).stat().st_size)
    assert torch.equal(head.weight, WEIGHT)


def test_a_head_of_another_backbone(tmp_path):
    head = HeadFile(WEIGHT, None, tmp_path / "value_head.bin", "v_head.summary.weight")
    check_head(head, 16, "base")
    with pytest.raises(ValueError, match=r"value_head\.bin reads .* size 16, and those of 'base' have 32"):
        check_head(head, 32, "base")
