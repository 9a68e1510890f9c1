"""Holes that were found elsewhere: each is shown open in an unsafe variant, and closed here.

docs/safety.md lists them with the names of these tests.
"""

from __future__ import annotations

import ast
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import tomllib
from pathlib import Path

import jinja2
import pytest
import torch
import yaml
from lightning.pytorch import Trainer
from packaging.requirements import Requirement
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from datamodules import PreferenceDataModule, PromptDataModule, open_image
from datamodules.encoding.tokenizers import load_tokenizer
from lit_rlhf import DPOModule
from lit_rlhf.cli import main
from lit_rlhf.commands.trust import ALLOWED
from lit_rlhf.models.building import build_policy
from lit_rlhf.models.heads.head_files import read_head
from lit_rlhf.models.loading import load_causal_lm
from lit_rlhf.models.options import BackboneConfig
from lit_rlhf.rewards.http import HttpReward
from tests.tiny_vision import draw

ROOT = Path(__file__).parents[2]
PACKAGES = ("lit_rlhf", "datamodules")
ANY_PICKLE, ANY_CODE = {"weights_only": not True}, {"trust_remote_code": not False}  # spelt so as nobody should


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


@pytest.fixture
def mark(tmp_path):
    """What a bomb leaves behind."""
    return tmp_path / "exploded"


@pytest.fixture
def model(tiny_llama, tmp_path):
    """A copy of the tiny model, to be tampered with."""
    return Path(shutil.copytree(tiny_llama(), tmp_path / "model"))


def went_off(mark):
    """Whether the bomb went off, which is forgotten."""
    if mark.exists():
        mark.rmdir()
        return True
    return False


def refused(words, capsys):
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in words])
    assert end.value.code == 2
    return capsys.readouterr().err


def calls():
    """Every call in our packages: its file, its function as written, and its node."""
    for package in PACKAGES:
        for file in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call):
                    yield file, ast.unparse(node.func), node


def test_floors_lie_above_every_release_with_a_known_hole():
    """GHSA-w37p-236h-pfx3, CVE-2026-58659, CVE-2025-32434, CVE-2026-24747, CVE-2026-4372, CVE-2026-5241, and older."""
    needs = [
        Requirement(line) for line in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    ]
    specifiers = {need.name: need.specifier for need in needs}
    bad = {
        "lightning": ("1.5.7", "2.6.0", "2.6.2", "2.6.3", "2.6.5"),
        "torch": ("2.5.1", "2.9.1"),
        "transformers": ("4.56.0", "5.2.0", "5.4.0"),
    }
    unsafe = Requirement("lightning>=2.6").specifier
    assert unsafe.contains("2.6.3")
    for name, versions in bad.items():
        assert not any(specifiers[name].contains(version) for version in versions), name


def test_every_locked_file_has_a_hash():
    """GHSA-w37p-236h-pfx3: a package that was replaced on the index is not installed."""
    locks = list((ROOT / "requirements").glob("*.txt"))
    assert locks
    pinned = [block for lock in locks for block in lock.read_text().replace("\\\n", " ").splitlines() if "==" in block]
    assert any("--hash=sha256:" in block for block in pinned)
    hashed = [lock for lock in locks if "--hash=sha256:" in lock.read_text()]
    for lock in hashed:
        for block in lock.read_text().replace("\\\n", " ").splitlines():
            assert "--hash=sha256:" in block or "==" not in block, block


@pytest.mark.parametrize("name", ["value_head.bin", "pytorch_model.bin"])
def test_a_head_that_is_a_pickle_bomb(name, mark, tmp_path):
    """CVE-2025-53002, CVE-2024-3568, CVE-2023-6730, CVE-2025-50472."""
    file = tmp_path / name
    torch.save({"v_head.summary.weight": torch.ones(1, 4), "x": Bomb(mark)}, file)
    torch.load(file, **ANY_PICKLE)
    assert went_off(mark)
    with pytest.raises(ValueError, match=f"{name} cannot be read as tensors alone"):
        read_head(tmp_path)
    assert not went_off(mark)


def test_an_adapter_that_is_a_pickle_bomb(mark, tiny_llama, tmp_path):
    """CVE-2025-50461 and its like: merging tools that load pickles."""
    folder = tmp_path / "adapter"
    backbone = build_policy(BackboneConfig(str(tiny_llama())))
    backbone.save(folder)
    (folder / "adapter_model.safetensors").unlink()
    torch.save({"base_model.model.x": Bomb(mark)}, folder / "adapter_model.bin")
    torch.load(folder / "adapter_model.bin", **ANY_PICKLE)
    assert went_off(mark)
    with pytest.raises(ValueError, match=r"holds no adapter_model\.safetensors; weights in a pickle"):
        build_policy(BackboneConfig(str(tiny_llama()), adapter=str(folder)))
    assert not went_off(mark)


def test_a_model_that_is_a_pickle_bomb(mark, model):
    """CVE-2025-32434, CVE-2025-50472."""
    (model / "model.safetensors").unlink()
    torch.save({"lm_head.weight": Bomb(mark)}, model / "pytorch_model.bin")
    torch.load(model / "pytorch_model.bin", **ANY_PICKLE)
    assert went_off(mark)
    with pytest.raises(ValueError, match="cannot be loaded"):
        load_causal_lm(BackboneConfig(str(model)))
    assert not went_off(mark)


def test_torch_load_is_told_that_weights_are_all():
    """CVE-2026-31221, VU#252619, CVE-2026-37572, CVE-2026-1839, GHSA-2vj5-px25-gjrp: wherever pickles could come in."""
    loads = [(file, node) for file, name, node in calls() if name in ("torch.load", "load_from_checkpoint")]
    assert loads
    for file, node in loads:
        told = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        assert told.get("weights_only") == "True", f"{file}:{node.lineno}"
    unpicklers = ("pickle.", "dill.", "joblib.", "cloudpickle.", "marshal.", "shelve.", "numpy.load", "np.load")
    assert not [f"{file}: {name}" for file, name, _ in calls() if name.startswith(unpicklers)]


def test_a_sparse_tensor_is_not_written_out(tmp_path):
    """CVE-2025-62164: indices of a sparse tensor may point anywhere."""
    indices = torch.tensor([[0], [10**6]])
    outside = torch.sparse_coo_tensor(indices, torch.ones(1), (1, 4), check_invariants=False)
    assert int(outside.indices().max()) >= outside.shape[1], "without a check it is made"
    for tensor in (outside, torch.ones(1, 4).to_sparse()):
        torch.save({"v_head.summary.weight": tensor}, tmp_path / "value_head.bin")
        with pytest.raises(ValueError, match=r"value_head\.bin (cannot be read|holds the sparse)"):
            read_head(tmp_path)


MODELLING = """
import os
os.mkdir({mark!r})
from transformers import LlamaConfig, LlamaForCausalLM
class StrangeConfig(LlamaConfig):
    model_type = "strange"
class Strange(LlamaForCausalLM):
    config_class = StrangeConfig
"""


def test_code_beside_a_model_is_not_run(mark, model, monkeypatch, tmp_path):
    """CVE-2026-58116, CVE-2026-86169, CVE-2026-27893, CVE-2026-5241."""
    (model / "modelling.py").write_text(MODELLING.format(mark=str(mark)))
    config = json.loads((model / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "modelling.StrangeConfig", "AutoModelForCausalLM": "modelling.Strange"}
    config["model_type"] = "strange"
    config["trust_remote_code"] = True
    (model / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    AutoModelForCausalLM.from_pretrained(model, **ANY_CODE)
    assert went_off(mark)
    with pytest.raises(ValueError, match="cannot be loaded"):
        load_causal_lm(BackboneConfig(str(model)))
    assert not went_off(mark)


def test_code_beside_a_tokenizer_is_not_run(mark, model):
    (model / "tokenizing.py").write_text(f"import os\nos.mkdir({str(mark)!r})\nclass Strange:\n    pass\n")
    config = json.loads((model / "tokenizer_config.json").read_text())
    config["auto_map"] = {"AutoTokenizer": [None, "tokenizing.Strange"]}
    config["tokenizer_class"] = "Strange"
    (model / "tokenizer_config.json").write_text(json.dumps(config))
    try:
        tokenizer = load_tokenizer(str(model))
    except (ValueError, OSError):
        pass
    else:
        assert isinstance(tokenizer, PreTrainedTokenizerFast)
    assert not went_off(mark)


def test_nothing_is_trusted_by_leaving_it_open():
    """CVE-2026-86169: None is not False. Every loader of an Auto class is told so."""
    loaders = ("from_pretrained", "from_config")
    seen = 0
    for file, name, node in calls():
        owner, _, method = name.rpartition(".")
        if method in loaders and "Auto" in owner:
            seen += 1
            told = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            assert told.get("trust_remote_code") == "False", f"{file}:{node.lineno}"
    assert seen > 3


def test_attention_named_in_a_config_is_not_fetched(model, monkeypatch):
    """CVE-2026-4372: the implementation of attention is what our config says, not what the model's does."""
    config = json.loads((model / "config.json").read_text())
    config["_attn_implementation_internal"] = config["attn_implementation"] = "stranger/kernel"
    (model / "config.json").write_text(json.dumps(config))
    fetched = []
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *a, **k: fetched.append(a))
    loaded = load_causal_lm(BackboneConfig(str(model)))
    assert "stranger" not in loaded.config._attn_implementation
    assert not fetched


def test_a_configuration_makes_no_objects_of_python(mark, tmp_path, capsys):
    """CVE-2025-50460."""
    file = tmp_path / "dpo.yaml"
    file.write_text(f"model: !!python/object/apply:os.mkdir ['{mark}']\n")
    yaml.unsafe_load(file.read_text())
    assert went_off(mark)
    assert str(file) in refused(["fit", "--config", file], capsys)
    assert not went_off(mark)


def test_a_folder_is_no_command(mark, tmp_path, monkeypatch, capsys):
    """CVE-2024-52803."""
    name = f"run; mkdir {mark}"
    subprocess.run(f"true {name}", shell=True, check=True)
    assert went_off(mark)
    monkeypatch.chdir(tmp_path)
    refused(["export", name, "--out", name], capsys)
    assert not went_off(mark)
    shells = [f"{file}: {name}" for file, name, node in calls() if any(k.arg == "shell" for k in node.keywords)]
    assert not shells
    assert not [name for _, name, _ in calls() if name in ("os.system", "os.popen")]


TEMPLATE = "{{ cycler.__init__.__globals__.os.mkdir('MARK') }}"


@pytest.mark.parametrize("data", ["pairs", "prompts"])
def test_a_chat_template_is_rendered_in_a_sandbox(data, mark, tiny_tokenizer, model):
    """CVE-2026-5760, CVE-2024-34359."""
    template = TEMPLATE.replace("MARK", str(mark))
    jinja2.Environment(autoescape=False).from_string(template).render()
    assert went_off(mark)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(model)
    tokenizer.chat_template = template
    asked, answer = [{"role": "user", "content": "Hi"}], [{"role": "assistant", "content": "Hello"}]
    if data == "pairs":
        row = {"prompt": asked, "chosen": answer, "rejected": [{"role": "assistant", "content": "No"}]}
        module = PreferenceDataModule(train=[row], tokenizer=tokenizer)
    else:
        module = PromptDataModule(train=[{"prompt": asked}], tokenizer=tokenizer)
    with pytest.raises(ValueError, match=r"template"):
        list(module.train_dataloader())
    assert not went_off(mark)


class Answers(http.server.BaseHTTPRequestHandler):
    """Answers with whatever it was given, and counts its visitors."""

    body = b""
    visits = 0

    def _answer(self):
        type(self).visits += 1
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    do_GET = do_POST = _answer  # noqa: N815 - names that the server looks for

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    """A server on loopback whose answers a test chooses."""
    handler = type("Handler", (Answers,), {})
    served = http.server.HTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=served.serve_forever, daemon=True)
    thread.start()
    yield handler, f"http://127.0.0.1:{served.server_port}"
    served.shutdown()
    thread.join()


def test_a_reward_server_cannot_send_a_pickle(mark, server, tmp_path):
    """CVE-2026-25873."""
    handler, url = server
    torch.save(Bomb(mark), tmp_path / "answer")
    handler.body = (tmp_path / "answer").read_bytes()
    torch.load(tmp_path / "answer", **ANY_PICKLE)
    assert went_off(mark)
    with pytest.raises(ValueError, match='no JSON object with "scores"'):
        HttpReward(f"{url}/score").score([{"prompt": "a", "response": "b"}])
    assert not went_off(mark)


@pytest.mark.parametrize("images", ["see", "ignore"])
def test_a_picture_named_in_a_row_is_not_fetched(server, tiny_llava, tmp_path, images):
    """CVE-2025-61784: rows name pictures; addresses are not asked for, nor files outside of the folder opened."""
    handler, url = server
    secret, inside = draw(tmp_path / "secret.png"), tmp_path / "rows"
    draw(inside / "a.png")
    (inside / "link.png").symlink_to(secret)
    pictures = ["a.png", f"{url}/a.png", f"file://{secret}", str(secret), "../secret.png", "link.png"]
    rows = [
        {"prompt": f"<image>What is it, {n}?", "chosen": "A fox", "rejected": "A spider", "images": [picture]}
        for n, picture in enumerate(pictures)
    ]
    options = {"tokenizer": str(tiny_llava), "on_bad_row": "drop", "images": images, "image_dir": str(inside)}
    (batch,) = PreferenceDataModule(train=rows, **options).train_dataloader()
    assert not handler.visits
    seen = [picture for part in batch.micro_batches for picture in part.forest.pictures]
    if images == "see":
        assert (len(seen), batch.num_pairs) == (1, 1)
        assert (batch.notes["dropped/image_outside"], batch.notes["dropped/remote_image"]) == (4, 1)
        assert open_image(secret).size == (40, 30), "it could be opened"
    else:
        assert (len(seen), batch.num_pairs) == (0, 6)


def test_servers_listen_on_loopback(capsys):
    """Reward servers that listen everywhere: ours does so only where it is told to."""
    flags = [node for _, _, node in calls() if node.args and ast.unparse(node.args[0]) == "'--host'"]
    hosts = [ast.unparse(k.value) for node in flags for k in node.keywords if k.arg == "default"]
    hosts += [ast.unparse(k.value) for _, _, node in calls() for k in node.keywords if k.arg == "host"]
    assert "'127.0.0.1'" in hosts
    assert not [host for host in hosts if host in ("'0.0.0.0'", "'::'", "''")]


def test_a_checkpoint_names_nothing_to_call(mark, tiny_llama, tiny_tokenizer, tmp_path):
    """CVE-2026-58659: a function named in the hyper-parameters was imported and called, in spite of weights_only."""
    (tmp_path / "strange_maker.py").write_text(f"import os\ndef make(*_, **__):\n    os.mkdir({str(mark)!r})\n")
    code = "import sys; sys.path.insert(0, sys.argv[1]); import strange_maker; strange_maker.make()"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    assert went_off(mark)
    pairs = [{"prompt": f"What is it, {n}?", "chosen": "A fox", "rejected": "A spider"} for n in range(4)]
    data = PreferenceDataModule(train=pairs, tokenizer=tiny_tokenizer, batch_size=2)
    options = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "default_root_dir": tmp_path}
    trainer = Trainer(**options, max_steps=1, enable_checkpointing=False)
    trainer.fit(DPOModule(BackboneConfig(str(tiny_llama()))), datamodule=data)
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    checkpoint = torch.load(tmp_path / "one.ckpt", weights_only=True)
    names = {"_instantiator": "strange_maker.make", "_class_path": "strange_maker.make"}
    torch.save({**checkpoint, "hyper_parameters": {"_class_path": "x", **names}}, tmp_path / "two.ckpt")
    sys.path.insert(0, str(tmp_path))
    try:
        again = Trainer(**options, max_steps=2, enable_checkpointing=False)
        again.fit(DPOModule(BackboneConfig(str(tiny_llama()))), datamodule=data, ckpt_path=tmp_path / "two.ckpt")
        with pytest.raises((ValueError, TypeError)):
            DPOModule.load_from_checkpoint(tmp_path / "two.ckpt", weights_only=True)
    finally:
        sys.path.remove(str(tmp_path))
    assert again.global_step == 2
    assert not went_off(mark)


def test_the_page_names_tests_that_are_there():
    page = (ROOT / "docs" / "safety.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(test_\w+)`", page))
    files = (Path(__file__), ROOT / "tests" / "commands" / "test_trust.py")
    there = set(re.findall(r"^def (test_\w+)", "\n".join(file.read_text() for file in files), re.MULTILINE))
    assert named <= there
    holes = set(re.findall(r"(?:CVE-\d+-\d+|GHSA(?:-\w{4}){3}|VU#\d+)", Path(__file__).read_text()))
    assert holes <= set(re.findall(r"(?:CVE-\d+-\d+|GHSA(?:-\w{4}){3}|VU#\d+)", page))
    assert set(ALLOWED) >= {"lit_rlhf", "datamodules", "torch.optim", "bitsandbytes.optim", "torchmetrics"}
