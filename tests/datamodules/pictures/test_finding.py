"""References to pictures: what each kind stands for, and that no path and no address leads out of the folder."""

from __future__ import annotations

import base64
import os
from pathlib import Path

import pytest
from PIL import Image

from datamodules.pictures.finding import find_image
from datamodules.records import BadRowError


@pytest.fixture
def folder(tmp_path):
    """A folder with a picture, beside a file that nobody is to read."""
    (tmp_path / "rows" / "img").mkdir(parents=True)
    (tmp_path / "rows" / "img" / "a.png").write_bytes(b"picture")
    (tmp_path / "secret.png").write_bytes(b"secret")
    return tmp_path / "rows"


@pytest.mark.parametrize(
    "path", ["img/a.png", "./img/a.png", "img/../img/a.png", Path("img/a.png"), {"path": "img/a.png"}]
)
def test_a_path_inside_of_the_folder(folder, path):
    assert find_image(path, folder) == folder / "img" / "a.png"


def test_the_folder_itself_may_be_a_link_and_links_may_stay_inside(folder, tmp_path):
    (tmp_path / "link").symlink_to(folder)
    (folder / "b.png").symlink_to("img/a.png")
    assert find_image("b.png", tmp_path / "link") == folder / "img" / "a.png"


@pytest.mark.parametrize(
    "reference",
    [
        b"content",
        {"bytes": b"content", "path": "../secret.png"},
        {"bytes": base64.b64encode(b"content").decode(), "path": None},
        {"type": "base64", "media_type": "image/png", "data": base64.b64encode(b"content").decode()},
        "data:image/png;base64," + base64.b64encode(b"content").decode(),
        "DATA:;base64,Y29u\ndGVudA==",
    ],
)
def test_content_in_the_row(folder, reference):
    assert find_image(reference, folder) == b"content"


def test_a_picture_in_memory(folder):
    image = Image.new("L", (1, 1))
    assert find_image(image, folder) is image


@pytest.mark.parametrize(
    ("reference", "reason", "message"),
    [
        ("../secret.png", "image_outside", r"'\.\./secret\.png' leads out of '.*rows'.*set data\.image_dir"),
        ("img/../../secret.png", "image_outside", "leads out"),
        ("../../../../../../../../etc/passwd", "image_outside", "leads out"),
        ("/etc/passwd", "image_outside", "'/etc/passwd' is an absolute path; give it relative to '.*rows'"),
        (r"C:\secret.png", "image_outside", "is an absolute path"),
        ({"path": "/etc/passwd", "bytes": None}, "image_outside", "is an absolute path"),
        ("file:///etc/passwd", "image_outside", "is an address of a file; give a path relative"),
        ("FILE:a.png", "image_outside", "is an address of a file"),
        ("http://localhost/a.png", "remote_image", "addresses in rows are not asked for; download it first"),
        ("HTTPS://localhost/a.png", "remote_image", "download it first and give its path"),
        ("s3://bucket/a.png", "remote_image", "download it first"),
        ("img/b.png", "missing_image", r"no file 'img/b\.png' lies in '.*rows'"),
        ("img", "missing_image", "no file 'img' lies in"),
        ("", "missing_image", "no file '' lies in"),
        ("a\0b", "missing_image", "is no path that a file can have"),
        ("x" * 5000, "missing_image", r"x\.\.\.' is no path that a file can have"),
        ("data:image/png;base64,%%%", "broken_image", "is not base64"),
        ("data:image/png,abc", "broken_image", r"is no data: URL in base64"),
        (7, "wrong_type", "a picture is .*a path, bytes, a data: URL"),
        ({"path": None, "bytes": None}, "wrong_type", "a data: URL, {'bytes', 'path'} or a PIL image"),
    ],
)
def test_what_is_refused(folder, reference, reason, message):
    with pytest.raises(BadRowError, match=message) as raised:
        find_image(reference, folder)
    assert raised.value.reason == reason
    assert len(str(raised.value)) < 1000


@pytest.mark.parametrize("target", ["../../secret.png", "{top}/secret.png"])
def test_links_that_lead_out_are_refused(folder, tmp_path, target):
    (folder / "img" / "b.png").symlink_to(target.format(top=tmp_path))
    with pytest.raises(BadRowError, match="leads out of"):
        find_image("img/b.png", folder)


def test_a_link_in_the_middle_that_leads_out_is_refused(folder, tmp_path):
    (folder / "up").symlink_to("..")
    with pytest.raises(BadRowError, match="leads out of"):
        find_image("up/secret.png", folder)
    (folder / "round").symlink_to("round")
    with pytest.raises(BadRowError) as raised:
        find_image("round", folder)
    assert raised.value.reason == "missing_image"


def test_what_is_no_file_is_not_waited_for(folder):
    os.mkfifo(folder / "pipe.png")
    with pytest.raises(BadRowError, match=r"no file 'pipe\.png'"):
        find_image("pipe.png", folder)
