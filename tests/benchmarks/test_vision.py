"""What the benchmark of pictures says of its settings, and how it counts. Measuring TRL itself needs TRL."""

import argparse
import base64
import json

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor


@pytest.fixture(scope="module")
def script(load_script):
    return load_script("vision.py")


@pytest.fixture
def pictures(tmp_path):
    """Rows of two pictures, of which one is asked about twice."""
    for name, colour in (("a", "red"), ("b", "blue")):
        Image.new("RGB", (40, 30), colour).save(tmp_path / f"{name}.png")
    rows = [
        {"image": f"{name}.png", "prompt": "Which?", "chosen": f"{name}.", "rejected": f"{number}."}
        for number, name in enumerate("aab")
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "rows.jsonl"


def run(seconds, pictures, peak_mib=100, real=50):
    return {"seconds": seconds, "steps": 2, "pictures": pictures, "peak_mib": peak_mib, "tokens": {"real": real}}


def test_medians_and_ratios_by_hand(script):
    options = argparse.Namespace(batch_size=4, warmup=1)
    names = [script.named("light", way) for way in (script.DEFAULT, script.CAREFUL, script.LIVE)]
    heavy = [script.named("heavy", way) for way in (script.DEFAULT, script.LIVE)]
    runs = {
        names[0]: [run(8.0, 48, 200), run(9.0, 48, 200), run(80.0, 48, 200)],
        names[1]: [run(6.0, 48, 400)],
        names[2]: [run(3.0, 12, 50)],
        heavy[0]: [run(40.0, 48)],
        heavy[1]: [run(4.0, 12)],
    }
    default, careful, ours, heavy_default, heavy_ours = script.summarise(script.VISION, options, runs)
    assert (default["pictures_per_pair"], ours["pictures_per_pair"]) == (4.0, 1.0)
    assert (default["seconds_per_pair"], careful["seconds_per_pair"]) == (9 / 8, 6 / 8)
    assert (ours["times_default"], ours["times_careful"]) == (3.0, 2.0)
    assert (ours["memory_of_default"], ours["memory_of_careful"]) == (0.25, 0.125)
    assert (heavy_default["times_default"], heavy_ours["times_default"]) == (1.0, 10.0)
    assert heavy_ours["times_careful"] is None
    with pytest.raises(ValueError, match="on the same tokens"):
        script.summarise(script.VISION, options, {**runs, names[1]: [run(6.0, 48, real=51)]})


def test_what_is_compared_with_is_measured(script):
    assert {script.VISION.default, script.VISION.careful} <= set(script.SETTINGS)
    assert script.SETTINGS[script.VISION.default] == {"side": "trl", "gradient_checkpointing": True, "tower": "light"}
    assert {setting["tower"] for setting in script.SETTINGS.values()} == set(script.SHARES)


def test_each_picture_is_asked_about_once(load_script, pictures):
    rows = list(load_script("nlvr_rows.py").read_rows(pictures))
    assert [row["rejected"][0]["content"] for row in rows] == ["0.", "2."]
    assert base64.b64decode(rows[1]["images"][0]["bytes"]) == (pictures.parent / "b.png").read_bytes()


def test_too_few_pictures_are_refused(script, pictures, tmp_path):
    options = argparse.Namespace(data=pictures, batch_size=2, steps=1, warmup=1)
    with pytest.raises(ValueError, match="shows 2 pictures, 4 are needed"):
        script.write_plan(options, tmp_path / "work")


def test_the_towers_of_a_table_read_the_same_pictures(script):
    for of_arch in script.TOWERS.values():
        assert len({(tower.side, tower.patch) for tower in of_arch.values()}) == 1


def test_shares_of_the_work(script, load_script):
    hidden, layers, _, mlp, _ = load_script("proxy_model.py").ARCHITECTURES["small"]
    decoder = layers * (4 * hidden**2 + 3 * hidden * mlp) * (196 + 35)
    shares = {name: 12 * t.layers * t.hidden**2 * 197 / decoder for name, t in script.TOWERS["small"].items()}
    assert shares == pytest.approx({"light": 0.04, "heavy": 1.9}, rel=0.1)


def test_pictures_are_counted_at_the_tower(load_script, tmp_path):
    load_script("llava_model.py").make_llava("tiny", "light", ["Which one?", "The red one."], tmp_path)
    model = AutoModelForImageTextToText.from_pretrained(tmp_path)
    count = load_script("sides/vision_tower.py").TowerCount()
    count.watch(model)
    pictures = [Image.new("RGB", (40, 30), colour) for colour in ("red", "blue", "red")]
    processor = AutoProcessor.from_pretrained(tmp_path)
    inputs = processor(text=["<image>"] * 3, images=pictures, return_tensors="pt")
    assert (inputs["input_ids"] == model.config.image_token_id).sum() == 3 * 16
    with torch.no_grad():
        model(**inputs)
        model.get_image_features(inputs["pixel_values"][:2])
    assert count.said() == {"pictures": 5}
