"""What prepares pictures lies beside what was trained on them."""

from __future__ import annotations

from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor

from lit_rlhf.models.processors import copy_processor, copy_processor_of


def test_a_processor_is_copied_and_loads(tiny_llava, tmp_path):
    model = AutoModelForImageTextToText.from_pretrained(tiny_llava)
    assert copy_processor_of(model, tmp_path)
    AutoConfig.from_pretrained(tiny_llava).save_pretrained(tmp_path)
    for file in tiny_llava.glob("*token*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    copied, own = (AutoProcessor.from_pretrained(folder, backend="pil") for folder in (tmp_path, tiny_llava))
    assert copied.image_processor.to_dict() == own.image_processor.to_dict()
    assert copied.patch_size == own.patch_size == 8


def test_a_folder_is_not_copied_onto_itself(tiny_llava):
    assert copy_processor(tiny_llava, tiny_llava)


def test_what_reads_text_alone_has_none(tiny_llama, tmp_path):
    assert not copy_processor_of(AutoModelForCausalLM.from_pretrained(tiny_llama()), tmp_path)
    assert not copy_processor(tiny_llama(), tmp_path)
    assert not list(tmp_path.iterdir())
