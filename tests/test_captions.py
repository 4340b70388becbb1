"""Captions from files, names and the prompt, each source alone and all of them in order."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trainers.data.captions import (
    Captions,
    find_captions,
    own_captions,
    word_notices,
    words_of,
)
from trainers.data.listing import list_folder
from trainers.errors import DatasetError
from trainers.settings.dataset import DatasetConfig


def folder_with(root: Path, files: dict[str, str | bytes]) -> Path:
    """A folder named `dog`; captions are never decided by what is in a picture."""
    for name, content in files.items():
        path = root / "dog" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return root / "dog"


def captions_of(folder: Path, captions: str = "auto", prompt: str = "the prompt") -> Captions:
    return find_captions(list_folder(folder), DatasetConfig(captions=captions, prompt=prompt))


def metadata(*entries: object) -> str:
    return "\n".join(json.dumps(entry) for entry in entries)


def test_auto_takes_the_first_source(tmp_path: Path) -> None:
    line = {"file_name": "a.png", "text": "from metadata"}
    folder = folder_with(tmp_path, {
        "a.png": "", "a.txt": "not this", "metadata.jsonl": metadata(line),
        "b.png": "", "b.txt": "from txt", "b.caption": "not this",
        "c.png": "", "c.caption": "from caption",
        "d.png": "",
    })  # fmt: skip
    found = captions_of(folder)
    assert found.texts == ("from metadata", "from txt", "from caption", "the prompt")
    assert found.source == (
        "1 of 4 from metadata.jsonl, 1 from .txt files, 1 from .caption files, 1 from the prompt"
    )
    assert found.notices == ()


def test_auto_says_what_it_found(tmp_path: Path) -> None:
    texts = {f"{n}.txt": "a dog" for n in range(5)}
    folder = folder_with(tmp_path, {f"{n}.png": "" for n in range(6)} | texts)
    assert captions_of(folder).source == "5 of 6 from .txt files, 1 from the prompt"
    assert captions_of(folder, "prompt").source == "all 6 from the prompt"


def test_text_is_clean_and_keeps_its_lines(tmp_path: Path) -> None:
    raw = b"\xef\xbb\xbf  a dog,\r\n\r\n  on  a  beach \n"
    folder = folder_with(tmp_path, {"a.png": "", "a.TXT": raw})
    assert captions_of(folder, "txt").texts == ("a dog,\non a beach",)


def test_empty_file_counts_as_none(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, {"a.png": "", "a.txt": " \n"})
    assert captions_of(folder).texts == ("the prompt",)
    with pytest.raises(DatasetError, match=r"1 of 1 images have no caption from \.txt files: a"):
        captions_of(folder, "txt")


def test_same_stem_shares_the_caption(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, {"A.png": "", "a.jpg": "", "a.txt": "both"})
    assert captions_of(folder).texts == ("both", "both")


@pytest.mark.parametrize("source", ["txt", "caption", "metadata.jsonl", "file name"])
def test_chosen_source_missing_lists_all(tmp_path: Path, source: str) -> None:
    folder = folder_with(tmp_path, {
        "a_dog.png": "", "a_dog.txt": "x", "a_dog.caption": "x", "1.png": "", "2.png": "",
        "metadata.jsonl": metadata({"file_name": "a_dog.png", "text": "x"}),
    })  # fmt: skip
    with pytest.raises(DatasetError, match=r"2 of 3 images have no caption .*: 1\.png, 2\.png\."):
        captions_of(folder, source)


def test_not_utf8_lists_all(tmp_path: Path) -> None:
    files: dict[str, str | bytes] = {f"{n}.png": "" for n in "abc"}
    files |= {"a.txt": b"caf\xe9", "b.txt": "café", "c.txt": "café".encode("utf-16")}
    folder = folder_with(tmp_path, files)
    with pytest.raises(DatasetError) as error:
        captions_of(folder)
    assert str(error.value) == (
        "Dataset 'dog': 2 caption files are not UTF-8 text: a.txt, c.txt.\n"
        "Save them again with the encoding UTF-8."
    )


def test_not_utf8_in_a_source_not_chosen(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, {"a.png": "", "a.txt": b"caf\xe9"})
    assert captions_of(folder, "prompt").texts == ("the prompt",)


@pytest.mark.parametrize("key", ["text", "caption", "prompt"])
def test_metadata_keys(tmp_path: Path, key: str) -> None:
    lines = "\ufeff" + metadata({"file_name": "a.png", key: " a  dog "}) + "\n\n"
    folder = folder_with(tmp_path, {"a.png": "", "metadata.jsonl": lines})
    assert captions_of(folder, "metadata.jsonl").texts == ("a dog",)


@pytest.mark.parametrize("name", ["10_dog/a.png", "10_dog\\a.png", "./10_dog/a.png"])
def test_metadata_names_in_sub_folders(tmp_path: Path, name: str) -> None:
    folder = folder_with(tmp_path, {
        "10_dog/a.png": "", "metadata.jsonl": metadata({"file_name": name, "text": "root"}),
        "10_dog/metadata.jsonl": metadata({"file_name": "a.png", "text": "not this"}),
    })  # fmt: skip
    assert captions_of(folder).texts == ("root",)
    (folder / "metadata.jsonl").unlink()
    assert captions_of(folder).texts == ("not this",)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{'file_name': 'a.png'}", "is not JSON"),
        ("[]", "has no file_name"),
        ('{"text": "a dog"}', "has no file_name"),
        ('{"file_name": "a.png", "text": ["a dog"]}', "has a text that is no text"),
    ],
)
def test_metadata_bad_line_has_its_number(tmp_path: Path, line: str, problem: str) -> None:
    good = metadata({"file_name": "a.png", "text": "a dog"})
    folder = folder_with(tmp_path, {"a.png": "", "metadata.jsonl": f"{good}\n\n{line}\n"})
    with pytest.raises(DatasetError, match=f"line 3 of metadata.jsonl {problem}"):
        captions_of(folder)


def test_metadata_names_nothing_gives_a_notice(tmp_path: Path) -> None:
    lines = metadata({"file_name": "gone.png", "text": "x"}, {"file_name": "a.png", "text": "y"})
    folder = folder_with(tmp_path, {"a.png": "", "metadata.jsonl": lines})
    assert captions_of(folder).notices == (
        "metadata.jsonl names files that are not there: gone.png",
    )


@pytest.mark.parametrize(
    ("stem", "words"),
    [
        ("sks_dog_001", "sks dog"),
        ("sks dog (2)", "sks dog"),
        ("sks dog(2)", "sks dog"),
        ("sks-dog-3", "sks-dog"),
        ("a dog on 5th avenue", "a dog on 5th avenue"),
        ("dog2", "dog2"),
        ("0042", ""),
    ],
)
def test_words_of_file_name(stem: str, words: str) -> None:
    assert words_of(stem) == words


def test_folder_name_only_without_prompt(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, {"a.png": "", "10_sks_dog/b.png": ""})
    assert captions_of(folder).texts == ("the prompt", "the prompt")
    found = captions_of(folder, prompt="")
    assert found.texts == ("", "sks dog")
    assert found.source == "1 of 2 from the folder's name, 1 empty"


def test_rare_word_that_no_file_says_is_missed(tmp_path: Path) -> None:
    folder = folder_with(
        tmp_path, {"a.png": "", "a.txt": "a dog", "b.png": "", "b.txt": "a cat", "c.png": ""}
    )
    notices = captions_of(folder, prompt="a photo of sks dog").notices
    assert notices == (
        "none of 2 captions from files says 'sks', the prompt's rare word "
        "(they replace the prompt)",
    )
    assert captions_of(folder, prompt="a photo of a black labrador").notices == ()
    assert captions_of(folder, "prompt", "a photo of sks dog").notices == ()


@pytest.mark.parametrize("said", ["SKS on a beach", "an ohwx dog", "<sks>"])
def test_rare_word_is_not_missed_where_a_file_has_one(tmp_path: Path, said: str) -> None:
    folder = folder_with(tmp_path, {"a.png": "", "a.txt": said, "b.png": "", "b.txt": "a cat"})
    assert captions_of(folder, prompt="a photo of sks dog").notices == ()


def test_own_captions_are_those_of_files_and_problems_are_told(tmp_path: Path) -> None:
    line = {"file_name": "a.png", "text": "from metadata"}
    folder = folder_with(tmp_path, {
        "a.png": "", "metadata.jsonl": metadata(line), "b.png": "", "b.txt": "from txt",
        "c.png": "", "c.txt": b"\xff\xfe", "10_sks dog/d.png": "",
    })  # fmt: skip
    found, problems = own_captions(list_folder(folder), "auto")
    assert found == [("from metadata", "metadata.jsonl"), ("from txt", ".txt files"), ("", ""),
                     ("", "")]  # fmt: skip
    assert problems == ["Not UTF-8 text: c.txt.\nSave them again as UTF-8."]
    (folder / "metadata.jsonl").write_text("no")
    found, problems = own_captions(list_folder(folder), "auto")
    assert found[0] == ("", "")
    assert "line 1 of metadata.jsonl is not JSON" in problems[0]


def test_notices_on_words() -> None:
    texts = ["long", "long", "short", "longer, embedding:dog embedding:gone"]
    notices = word_notices(texts, [76, 76, 75, 151], lambda name: name == "dog")
    assert notices == [
        "no such embedding, left out unless the clip learned it: embedding:gone",
        "2 captions are longer than 75 CLIP tokens: read whole, in several windows; nothing is cut",
    ]
    assert word_notices(["a", "b"], [75, 3], lambda name: False) == []
