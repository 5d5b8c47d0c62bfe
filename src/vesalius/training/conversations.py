"""Conversations about images, in the form of LLaVA's training files: they keep a model talking while it learns masks.

[{"id": "1", "image": "a.png", "conversations": [{"from": "human", "value": "<image>\\nWhat is this?"},
                                                 {"from": "gpt", "value": "An angiogram."}, ...]}, ...]
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vesalius.data.dataset import load_image
from vesalius.data.readers.fields import find_image, kind
from vesalius.data.source import Location, read_json
from vesalius.errors import AnnotationError
from vesalius.lineage import fingerprint_samples
from vesalius.types import Item, Sample, Turn

IMAGE, SEG = "<image>", "[SEG]"
SPEAKERS = ("human", "gpt")
KEYS = ("id", "image", "conversations")


@dataclass(frozen=True)
class Conversation:
    """Questions and answers about one image."""

    sample: Sample
    """The image; without prompts."""
    turns: tuple[Turn, ...]

    def load(self) -> Item:
        """With the pixels uint8 (1, h, w, 3); ImageError as for `load_image`."""
        return Item(self.sample.id, load_image(self.sample)[None], (), turns=self.turns)


@dataclass(frozen=True)
class ConversationFile:
    """The conversations of a file, in its order, and notes on unread keys."""

    path: Path
    conversations: tuple[Conversation, ...]
    notes: tuple[str, ...]

    def fingerprint(self) -> str:
        """SHA-256 over images and words; ImageError, naming the file, where an image cannot be read."""
        images = fingerprint_samples([each.sample for each in self.conversations])
        words = json.dumps([each.turns for each in self.conversations])
        return hashlib.sha256(f"{images}\n{words}".encode()).hexdigest()


def read_conversations(path: Path) -> ConversationFile:
    """The conversations of a file; images lie beside it or in `images/` beside it.

    A turn is a value of `human` and the next one of `gpt`. `<image>` stands once, in the first question, and is left
    out: the image comes first whatever its place. Raises AnnotationError, naming the entry (counted from 0), for
    anything else, an entry without an image, and an answer with `[SEG]`, which has no mask here.
    """
    entries = read_json(path)
    if not isinstance(entries, list) or not entries:
        found = "an empty list" if entries == [] else kind(entries)
        raise AnnotationError(f"{path}: must hold a list of conversations, not {found}")
    read = [_read_entry(entry, index, path) for index, entry in enumerate(entries)]
    others = Counter(key for entry in entries for key in entry if key not in KEYS)
    notes = []
    if others:
        counted = ", ".join(f"{key} ({count})" for key, count in others.items())
        notes.append(f"{path.name}: further keys, which nothing reads: {counted}")
    return ConversationFile(path, tuple(read), tuple(notes))


def _read_entry(entry: Any, index: int, path: Path) -> Conversation:
    place = f"{path}, entry {index}"
    if not isinstance(entry, dict):
        raise AnnotationError(f"{place}: must be an object with image and conversations, not {kind(entry)}")
    if "image" not in entry:
        raise AnnotationError(
            f"{place}: has no image; questions without one are not trained on: remove the entry"
        )
    image, _ = find_image(entry["image"], Location(path, f"entry {index}"), path.parent)
    place = f"{place} ({entry['image']})"
    turns = _read_turns(entry.get("conversations"), place)
    # the place is part of the id, and so of the fingerprint: which conversation comes when depends on it
    return Conversation(Sample(f"{path.stem}, entry {index}", image, (), None, place), turns)


def _read_turns(messages: Any, place: str) -> tuple[Turn, ...]:
    if not isinstance(messages, list) or not messages:
        raise AnnotationError(f"{place}: conversations must be a list of messages, each with from and value")
    texts = [_read_message(message, i, place) for i, message in enumerate(messages)]
    if len(texts) % 2:
        raise AnnotationError(f"{place}: ends with a question; give its answer or remove it")
    if texts[0].count(IMAGE) != 1 or any(IMAGE in text for text in texts[1:]):
        raise AnnotationError(f"{place}: {IMAGE} must stand once, in the first question")
    texts[0] = texts[0].replace(IMAGE, "").strip()
    if not texts[0]:
        raise AnnotationError(f"{place}: the first question holds nothing but {IMAGE}")
    return tuple(zip(texts[::2], texts[1::2], strict=True))


def _read_message(message: Any, index: int, place: str) -> str:
    speaker = SPEAKERS[index % 2]
    if not isinstance(message, dict) or not message.keys() == {"from", "value"}:
        raise AnnotationError(f"{place}: message {index} must be an object with from and value alone")
    if message["from"] != speaker:
        raise AnnotationError(
            f"{place}: message {index} must be from {speaker}, not {message['from']!r}; human and gpt take turns"
        )
    text = message["value"]
    if not isinstance(text, str) or not text.strip():
        raise AnnotationError(f"{place}: message {index} has no text")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise AnnotationError(f"{place}: message {index} is not valid text") from error
    if SEG in text:
        raise AnnotationError(
            f"{place}: message {index} holds {SEG}, for which a conversation has no mask; "
            "objects with masks belong into the training dataset"
        )
    return text.strip()
