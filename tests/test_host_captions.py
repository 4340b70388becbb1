"""The routes for captions in a real ComfyUI: what is read, what is written, and every refusal."""

from __future__ import annotations

import io
import json
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.dataset_files import noise, save
from tests.host import Host

ROUTE = "/personalize/captions"
HOSTILE = [
    "<img src=x onerror=alert(1)>",
    "a <sks> dog, [[label|javascript:alert(1)]]",
    "\u202ea dog\u200f\u061c \u2067 \u05db\u05dc\u05d1",
    "emoji \U0001f436, \x07 bell",
]


@pytest.fixture(params=["host", "old_host"])
def running(request: pytest.FixtureRequest) -> Host:
    host: Host = request.getfixturevalue(request.param)
    return host


def dog(host: Host, name: str = "routes/dog") -> Path:
    """A folder with three pictures, of which one has a caption; all else is deleted."""
    folder = host.base / "input" / name
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    save(folder / "a b#%?.png")
    save(folder / "c.png")
    save(folder / "10_sks dog" / "d.jpg")
    (folder / "c.txt").write_text("a dog\non a beach", encoding="utf-8")
    return folder


def read(host: Host, folder: str = "routes/dog", **asked: str) -> dict[str, Any]:
    return host.get(f"{ROUTE}?{urllib.parse.urlencode({'folder': folder, **asked})}")


def captions(answer: dict[str, Any]) -> dict[str, str | None]:
    return {one["name"]: one["caption"] for one in answer["pictures"]}


def ask(
    host: Host, path: str, content: bytes | None = None, **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """(status, headers, content) of an answer, be it a refusal."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(host.url + path, content, named)
    try:
        with urllib.request.urlopen(request, timeout=60) as reply:
            return reply.status, dict(reply.headers), reply.read()
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers), error.read()


def write(host: Host, **asked: Any) -> tuple[int, dict[str, Any]]:
    body = json.dumps({"folder": "routes/dog", "picture": "c.png"} | asked).encode()
    status, _, content = ask(host, ROUTE, body, Content_Type="application/json")
    found: dict[str, Any] = json.loads(content)
    return status, found


# Reading


def test_captions_of_a_folder_are_listed(running: Host) -> None:
    dog(running)
    answer = read(running)
    assert captions(answer) == {"a b#%?.png": None, "c.png": "a dog\non a beach",
                                "10_sks dog/d.jpg": None}  # fmt: skip
    without, own, repeated = answer["pictures"]
    assert (own["source"], own["tokens"], own["editable"]) == (".txt files", 5, True)
    assert (without["source"], without["tokens"], repeated["words"]) == (None, 0, "sks dog")
    assert (answer["problems"], answer["writable"]) == ([], True)


def test_long_captions_are_counted_whole(host: Host) -> None:
    folder = dog(host)
    (folder / "c.txt").write_text("(dog:1.5) " + "dog " * 100)
    assert read(host)["pictures"][1]["tokens"] == 107, "parentheses are text"


def test_why_a_caption_is_not_editable(host: Host) -> None:
    folder = dog(host)
    (folder / "metadata.jsonl").write_text('{"file_name": "c.png", "text": "from metadata"}')
    other, own, _ = read(host)["pictures"]
    assert (own["caption"], own["editable"], other["editable"]) == ("from metadata", False, True)
    assert "metadata.jsonl has a line for it" in own["why"]
    assert read(host, captions="txt")["pictures"][1]["caption"] == "a dog\non a beach"
    for choice in ("caption", "metadata.jsonl", "file name", "prompt"):
        assert not any(one["editable"] for one in read(host, captions=choice)["pictures"])
    assert write(host, caption="new")[0] == 400
    assert write(host, caption="new", captions="prompt")[0] == 400


def test_problems_are_told_and_the_rest_is_read(host: Host) -> None:
    folder = dog(host)
    (folder / "a b#%?.txt").write_bytes(b"\xff\xfe")
    answer = read(host)
    assert captions(answer)["c.png"] == "a dog\non a beach"
    assert answer["problems"] == ["Not UTF-8 text: a b#%?.txt.\nSave them again as UTF-8."]
    unread = answer["pictures"][0]
    assert (unread["editable"], "not UTF-8" in unread["why"]) == (False, True)
    for was in ({"was": None}, {}):
        assert write(host, picture="a b#%?.png", caption="over it", **was)[0] == 400
    assert (folder / "a b#%?.txt").read_bytes() == b"\xff\xfe", "nobody has seen what it says"


@pytest.mark.parametrize(
    ("folder", "problem"),
    [
        ("../secret", "is not inside"), ("link", "is not inside"), ("/etc", "is not inside"),
        ("a\0b", "is not inside"), ("gone", "does not exist"), ("", "No folder is chosen"),
        ("..\\secret", "does not exist"), ("a" * 5000, "does not exist"),
    ],
)  # fmt: skip
def test_folders_outside_the_input_folder_are_refused(
    host: Host, folder: str, problem: str
) -> None:
    save(host.base / "secret" / "a.png")
    link = host.base / "input" / "link"
    if not link.is_symlink():
        link.symlink_to(host.base / "secret")
    asked = urllib.parse.urlencode({"folder": folder, "picture": "a.png"})
    answer = host.get(f"{ROUTE}?{asked}")
    assert (answer["pictures"], answer["writable"]) == ([], False)
    assert problem in answer["problems"][0]
    status, _, content = ask(host, f"/personalize/thumbnail?{asked}")
    assert (status, problem in json.loads(content)["error"]) == (400, True)
    status, refusal = write(host, folder=folder, picture="a.png", caption="x")
    assert (status, problem in refusal["error"]) == (400, True)
    assert not (host.base / "secret" / "a.txt").exists()


def test_listing_of_500_pictures_is_quick(host: Host) -> None:
    folder = host.base / "input" / "many"
    folder.mkdir(exist_ok=True)
    for number in range(500):
        (folder / f"{number}.png").write_bytes(b"no picture")  # none is decoded
        (folder / f"{number}.txt").write_text(f"a photo of sks dog, number {number}")
    read(host, "routes/dog" if dog(host) else "")  # which loads the tokenizer
    start = time.monotonic()
    assert len(read(host, "many")["pictures"]) == 500
    assert time.monotonic() - start < 3, "0.3 s on an idle core"


# Writing


def test_caption_is_written_beside_its_picture(running: Host) -> None:
    folder = dog(running)
    status, answer = write(running, picture="a b#%?.png", caption=" a  dog\n", was=None)
    assert (status, captions(answer)["a b#%?.png"]) == (200, "a dog")
    assert (folder / "a b#%?.txt").read_bytes() == b"a dog\n"
    status, answer = write(running, picture="10_sks dog/d.jpg", caption="sks", was=None)
    assert (folder / "10_sks dog" / "d.txt").read_bytes() == b"sks\n"
    lines = {"caption": " tags, of it\n\na  dog ", "was": "a dog\non a beach"}
    status, answer = write(running, picture="c.png", **lines)
    assert (status, captions(answer)["c.png"]) == (200, "tags, of it\na dog")
    assert (folder / "c.txt").read_bytes() == b"tags, of it\na dog\n"
    assert not list(folder.rglob("*.part"))


@pytest.mark.parametrize("caption", HOSTILE)
def test_hostile_captions_stay_as_they_are(host: Host, caption: str) -> None:
    folder = dog(host)
    status, answer = write(host, caption=caption)
    assert status == 200
    assert captions(answer)["c.png"] == caption
    assert (folder / "c.txt").read_text(encoding="utf-8") == caption + "\n"


def test_file_that_is_there_is_written_whatever_its_case(host: Host) -> None:
    folder = dog(host)
    (folder / "c.txt").rename(folder / "C.TXT")
    assert write(host, caption="new")[0] == 200
    assert sorted(path.name for path in folder.glob("[cC].*")) == ["C.TXT", "c.png"]
    assert (folder / "C.TXT").read_text() == "new\n"


def test_empty_caption_deletes_the_file(host: Host) -> None:
    folder = dog(host)
    status, answer = write(host, caption=" \n", was="a dog\non a beach")
    assert (status, captions(answer)["c.png"]) == (200, None)
    assert not (folder / "c.txt").exists()
    assert write(host, caption="", was=None)[0] == 200, "there is none to delete"


def test_caption_that_was_changed_elsewhere_is_not_overwritten(host: Host) -> None:
    folder = dog(host)
    (folder / "c.txt").write_text("by another tab")
    status, answer = write(host, caption="mine", was="a dog\non a beach")
    assert (status, answer["caption"]) == (409, "by another tab")
    assert "changed elsewhere" in answer["error"]
    assert (folder / "c.txt").read_text() == "by another tab"
    assert write(host, caption="mine", was="by another tab")[0] == 200
    assert write(host, caption="without a look")[0] == 200


def test_length_of_a_caption_is_limited(host: Host) -> None:
    folder = dog(host)
    assert write(host, caption="\u05db" * 20_000)[0] == 200
    status, answer = write(host, caption="x" * 20_001)
    assert (status, "20,001 characters" in answer["error"]) == (400, True)
    assert write(host, caption="x" * 300_000)[0] == 413
    assert (folder / "c.txt").read_text(encoding="utf-8") == "\u05db" * 20_000 + "\n"
    deep = ask(host, ROUTE, b"[" * 100_000, Content_Type="application/json")
    assert (deep[0], b"is not JSON" in deep[2]) == (400, True)


@pytest.mark.parametrize(
    "picture",
    ["../a.png", "/etc/passwd", "gone.png", "c.txt", "c.png\0", "..\\c.png", "./c.png", "C.PNG",
     "10_sks dog/../c.png", ""],
)  # fmt: skip
def test_only_listed_pictures_get_a_caption(host: Host, picture: str) -> None:
    folder = dog(host)
    before = sorted(host.base.rglob("*.txt"))
    status, answer = write(host, picture=picture, caption="x")
    assert (status, "There is no picture" in answer["error"]) == (400, True)
    assert sorted(host.base.rglob("*.txt")) == before
    assert (folder / "c.txt").read_text() == "a dog\non a beach"


def test_links_out_of_the_input_folder_are_not_written_through(host: Host) -> None:
    folder, outside = dog(host), host.base / "outside"
    save(outside / "p.png")
    save(outside / "5_x" / "q.png")
    (outside / "notes.txt").write_text("mine")
    (folder / "p.png").symlink_to(outside / "p.png")
    (folder / "5_x").symlink_to(outside / "5_x")
    (folder / "c.txt").unlink()
    (folder / "c.txt").symlink_to(outside / "notes.txt")
    for picture in ("p.png", "5_x/q.png", "c.png"):
        status, answer = write(host, picture=picture, caption="x")
        assert (status, "lies outside" in answer["error"]) == (400, True)
    assert sorted(path.name for path in outside.rglob("*.txt")) == ["notes.txt"]
    assert (outside / "notes.txt").read_text() == "mine"
    assert not (folder / "p.txt").exists()


@pytest.mark.parametrize(
    "body",
    [b"", b"no", b"[]", b"null", b'{"folder": "routes/dog"}', b'{"folder": 1, "picture": 2}',
     b'{"folder": "routes/dog", "picture": "c.png", "caption": "\\ud800"}',
     b'{"folder": "routes/dog", "picture": "c.png", "caption": "x", "captions": "no such"}',
     b'{"folder": "routes/dog", "picture": "c.png", "caption": null}', b"\xff"],
)  # fmt: skip
def test_other_bodies_are_refused_with_a_sentence(host: Host, body: bytes) -> None:
    folder = dog(host)
    status, _, content = ask(host, ROUTE, body, Content_Type="application/json")
    assert status == 400
    assert json.loads(content)["error"]
    assert (folder / "c.txt").read_text() == "a dog\non a beach"


def test_pages_of_other_sites_cannot_write(running: Host) -> None:
    folder = dog(running)
    body = json.dumps({"folder": "routes/dog", "picture": "c.png", "caption": "x"}).encode()
    plain = ask(running, ROUTE, body, Content_Type="text/plain")
    form = ask(running, ROUTE, body, Content_Type="application/x-www-form-urlencoded")
    other = {"Content_Type": "application/json", "Origin": "http://evil.example"}
    assert [plain[0], form[0], ask(running, ROUTE, body, **other)[0]] == [415, 415, 403]
    assert ask(running, f"{ROUTE}/all", body, Content_Type="text/plain")[0] == 415
    assert (folder / "c.txt").read_text() == "a dog\non a beach"


def write_all(host: Host, changes: Any) -> tuple[int, dict[str, Any]]:
    body = json.dumps({"folder": "routes/dog", "changes": changes}).encode()
    status, _, content = ask(host, f"{ROUTE}/all", body, Content_Type="application/json")
    found: dict[str, Any] = json.loads(content)
    return status, found


def test_several_captions_are_written_together_or_not_at_all(running: Host) -> None:
    folder = dog(running)
    first = {"picture": "a b#%?.png", "caption": "new", "was": None}
    second = {"picture": "c.png", "caption": "", "was": "a dog\non a beach"}
    for wrong, status, told in (
        ({**second, "was": "other"}, 409, "changed elsewhere"),
        ({**second, "picture": "../c.png"}, 400, "There is no picture"),
        ({**second, "caption": "x" * 20_001}, 400, "20,001 characters"),
        ({"picture": "c.png"}, 400, "caption is missing"),
        ("c.png", 400, "A change is none"),
    ):
        refused, answer = write_all(running, [first, wrong])
        assert (refused, told in answer["error"]) == (status, True), answer
        assert [path.name for path in folder.glob("*.txt")] == ["c.txt"]
    assert write_all(running, [{**second, "was": "other"}])[1]["captions"] == {
        "c.png": "a dog\non a beach"
    }
    assert [write_all(running, wrong)[0] for wrong in ([], None, "x", {})] == [400] * 4
    status, answer = write_all(running, [first, second])
    assert (status, captions(answer)["a b#%?.png"], captions(answer)["c.png"]) == (200, "new", None)
    assert [path.name for path in folder.glob("*.txt")] == ["a b#%?.txt"]


# Thumbnails


def thumbnail(host: Host, picture: str, **settings: Any) -> tuple[int, dict[str, str], bytes]:
    asked = {"folder": "routes/dog", "picture": picture, "settings": json.dumps(settings)}
    return ask(host, f"/personalize/thumbnail?{urllib.parse.urlencode(asked)}")


def test_thumbnail_is_small_and_cut_as_trained(running: Host) -> None:
    folder = dog(running)
    noise(2000, 1000).save(folder / "a b#%?.png")
    status, headers, content = thumbnail(running, "a b#%?.png", resolution=512)
    assert (status, headers["Content-Type"]) == (200, "image/jpeg")
    assert headers["Cache-Control"] == "private, max-age=86400"
    assert len(content) < 30_000
    with Image.open(io.BytesIO(content)) as image:
        assert image.size == (208, 95)  # 704x320
    asked = {"folder": "routes/dog", "picture": "a b#%?.png", "large": "1"}
    large = ask(running, f"/personalize/thumbnail?{urllib.parse.urlencode(asked)}")[2]
    with Image.open(io.BytesIO(large)) as image:
        assert image.size == (704, 320), "as large as it trains"
    square = thumbnail(running, "a b#%?.png", buckets=False)[2]
    with Image.open(io.BytesIO(square)) as image:
        assert image.size == (208, 208)


def test_thumbnails_that_cannot_be_are_refused(host: Host) -> None:
    folder = dog(host)
    (folder / "c.png").write_bytes(b"no picture")
    assert thumbnail(host, "c.png")[0] == 404
    assert thumbnail(host, "../c.png")[0] == 400
    assert thumbnail(host, "10_sks dog/d.jpg", resolution=7)[0] == 400
    assert thumbnail(host, "10_sks dog/d.jpg", resolution="x")[0] == 400
    assert ask(host, "/personalize/thumbnail")[0] == 400


def test_stamp_changes_with_the_picture(host: Host) -> None:
    folder = dog(host)
    before = read(host)["pictures"][1]["stamp"]
    save(folder / "c.png", (256, 256))
    assert read(host)["pictures"][1]["stamp"] != before


# Uploads, by the host's own route


@pytest.mark.parametrize("folder", ["../../outside", "/etc", "..", "a/../../.."])
def test_uploads_stay_in_the_input_folder(host: Host, folder: str) -> None:
    def upload(**headers: str) -> int:
        parts = [("image", '; filename="up.txt"', "x"), ("subfolder", "", folder)]
        body = "".join(
            f'--b\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n{text}\r\n'
            for name, more, text in [*parts, ("type", "", "input")]
        )
        content = f"{body}--b--\r\n".encode()
        kind = "multipart/form-data; boundary=b"
        return ask(host, "/upload/image", content, Content_Type=kind, **headers)[0]

    assert upload() == 400
    assert upload(Origin="http://evil.example") == 403
    inside = host.base / "input"
    assert not [path for path in host.base.rglob("up.txt") if inside not in path.parents]


def test_control_images_are_shown_and_what_is_wrong_with_them(running: Host) -> None:
    folder = dog(running)
    before = running.base / "input" / "routes" / "before"
    for name in ("a b#%?.png", "c.jpg", "10_sks dog/d.png"):
        save(before / name, (300, 150), (0, 0, 255))
    asked = {"control_folder": "routes/before"}
    answer = read(running, **asked)
    named = {one["name"]: one["controls"] for one in answer["pictures"]}
    assert named == {
        "a b#%?.png": ["a b#%?.png"], "c.png": ["c.jpg"], "10_sks dog/d.jpg": ["d.png"]
    }  # fmt: skip
    assert answer["problems"] == []
    one = {"folder": "routes/dog", "picture": "c.png", "control": "0", **asked}
    status, _, jpeg = ask(running, f"/personalize/thumbnail?{urllib.parse.urlencode(one)}")
    with Image.open(io.BytesIO(jpeg)) as image:
        assert (status, image.size) == (200, (69, 35))
        assert image.getpixel((30, 15))[2] > 250
    for wrong in ("1", "-1", "x"):
        path = f"/personalize/thumbnail?{urllib.parse.urlencode({**one, 'control': wrong})}"
        assert ask(running, path)[0] == 400
    stamp = {one["name"]: one["stamp"] for one in answer["pictures"]}
    save(before / "c.jpg", (300, 150))
    (before / "10_sks dog" / "d.png").unlink()
    answer = read(running, **asked)
    assert "1 of 3 images have no control image: 10_sks dog/d.jpg" in answer["problems"][0]
    assert len(answer["pictures"]) == 3
    save(before / "10_sks dog" / "d.png")
    again = {one["name"]: one["stamp"] for one in read(running, **asked)["pictures"]}
    assert again["c.png"] != stamp["c.png"]
    assert again["a b#%?.png"] == stamp["a b#%?.png"]
    assert "is not inside" in read(running, control_folder="../..")["problems"][0]
    save(folder / "c.control.png")
    assert [len(one["controls"]) for one in read(running)["pictures"]] == [0, 0, 0]
