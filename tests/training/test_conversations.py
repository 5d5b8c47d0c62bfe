"""Reading of conversations in LLaVA's format; errors name the file and the entry."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vesalius.errors import AnnotationError
from vesalius.training.conversations import ConversationFile, read_conversations


def entry(*texts: str, **others: Any) -> dict[str, Any]:
    messages = [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]
    return {"id": "1", "image": "a.png", "conversations": messages, **others}


def write(folder: Path, *entries: Any) -> Path:
    (folder / "images").mkdir(exist_ok=True)
    Image.new("RGB", (12, 8), (9, 9, 9)).save(folder / "images/a.png")
    path = folder / "talk.json"
    path.write_text(json.dumps(list(entries)))
    return path


def read(folder: Path, *entries: Any) -> ConversationFile:
    return read_conversations(write(folder, *entries))


def test_turns_and_pixels_are_read_without_the_image_token(tmp_path: Path) -> None:
    found = read(
        tmp_path, entry("<image>\nWhat is this?", "A heart.", "Whose?", " Unknown. "), entry("Why? <image>", "So.")
    )
    first, second = found.conversations
    assert first.turns == (("What is this?", "A heart."), ("Whose?", "Unknown."))
    assert second.turns == (("Why?", "So."),)
    item = first.load()
    assert item.id == "talk, entry 0"
    np.testing.assert_array_equal(item.frames, np.full((1, 8, 12, 3), 9))
    assert item.prompts == ()
    assert item.turns == first.turns


def test_unknown_keys_are_ignored_and_counted_in_a_note(tmp_path: Path) -> None:
    found = read(tmp_path, entry("<image> a", "b", model="x"), entry("<image> a", "b", model="y", source=1))
    assert found.notes == ("talk.json: ignored keys: model (2), source (1)",)
    assert read(tmp_path, entry("<image> a", "b")).notes == ()


def test_the_fingerprint_covers_text_pixels_and_order(tmp_path: Path) -> None:
    one, two = entry("<image> a", "b"), entry("<image> c", "d")
    marks = {read(tmp_path, *some).fingerprint() for some in ([one], [two], [one, two], [two, one])}
    assert len(marks) == 4
    before = read(tmp_path, one).fingerprint()
    assert read(tmp_path, {**one, "id": "other"}).fingerprint() == before
    Image.new("RGB", (12, 8), (1, 1, 1)).save(tmp_path / "images/a.png")
    assert read_conversations(tmp_path / "talk.json").fingerprint() != before


def wrong_turn(**message: Any) -> dict[str, Any]:
    return {**entry("<image> a", "b"), "conversations": [message, {"from": "gpt", "value": "b"}]}


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("text", "entry 1: must be an object"),
        ({"id": "2", "conversations": []}, r"entry 1, image: is missing"),
        (entry("<image> a", "b", image="../a.png"), r"entry 1: image .*\.\./a\.png.* is outside"),
        (entry("<image> a", "b", image="/etc/a.png"), "entry 1: image .*/etc/a.png.* is outside"),
        (entry("<image> a", "b", image="b.png"), r"entry 1: image .*b\.png.* is not in .* or its images/"),
        (entry(), "entry 1, conversations: "),
        (entry("<image> a"), r"entry 1 \(a\.png\): ends with a question"),
        (entry("a", "b"), "<image> must occur once, in the first question"),
        (entry("<image> a <image>", "b"), "<image> must occur once"),
        (entry("<image> a", "b", "<image> c", "d"), "<image> must occur once"),
        (entry("<image>\n", "b"), "the first question is only <image>"),
        (entry("<image> a", "Sure, [SEG]."), r"message 1 contains \[SEG\], but a conversation has no masks"),
        (entry("<image> a", " "), r"entry 1, conversations\[1\]\.value: .*is empty"),
        (entry("<image> a", "\ud800"), r"entry 1, conversations\[1\]\.value: "),
        (wrong_turn(**{"from": "gpt", "value": "<image>"}), "message 0 is from gpt, not human"),
        (wrong_turn(**{"from": "human"}), r"entry 1, conversations\[0\]\.value: is missing"),
        (wrong_turn(**{"from": "human", "value": "<image> a", "more": 1}), r"entry 1, conversations\[0\]\.more: "),
        (wrong_turn(**{"from": "human", "value": 3}), r"entry 1, conversations\[0\]\.value: "),
    ],
)
def test_a_wrong_entry_is_refused_with_its_location(tmp_path: Path, bad: Any, message: str) -> None:
    with pytest.raises(AnnotationError, match=message):
        read(tmp_path, entry("<image> a", "b"), bad)


@pytest.mark.parametrize(
    ("text", "message"), [("[]", "not an empty list"), ("{}", "not an object"), ("[", "is not JSON")]
)
def test_a_file_without_a_list_of_conversations_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "talk.json").write_text(text)
    with pytest.raises(AnnotationError, match=message):
        read_conversations(tmp_path / "talk.json")
