"""Conversations about images in LLaVA's training format; they preserve the language ability of a model that learns masks.

[{"id": "1", "image": "a.png", "conversations": [{"from": "human", "value": "<image>\\nWhat is this?"},
                                                 {"from": "gpt", "value": "An angiogram."}, ...]}, ...]
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from vesalius.data.dataset import load_image
from vesalius.data.readers.fields import ForeignObject, find_image, kind, parse
from vesalius.data.source import read_json
from vesalius.lineage import fingerprint_samples
from vesalius.types import Item, Location, Sample, Turn
from vesalius.window import AUTO, Window

IMAGE, SEG = "<image>", "[SEG]"


class Message(BaseModel):
    """One message, from the user (`human`) or the model (`gpt`)."""

    model_config = ConfigDict(strict=True, extra="forbid")

    speaker: Literal["human", "gpt"] = Field(alias="from")
    value: str

    @field_validator("value")
    @classmethod
    def _is_text(cls, value: str) -> str:
        value.encode()  # lone surrogates, which JSON allows, raise UnicodeEncodeError, a ValueError
        if not value.strip():
            raise ValueError("is empty")
        return value.strip()


class Entry(ForeignObject):
    """One conversation of the file; other keys are ignored, and a note gives their number."""

    id: Any = None
    image: Any
    conversations: list[Message] = Field(min_length=1)


@dataclass(frozen=True)
class Conversation:
    """Questions and answers about one image."""

    sample: Sample
    """The image, without prompts."""
    turns: tuple[Turn, ...]

    def load(self) -> Item:
        """The item with pixels uint8 (1, h, w, 3) and turns. Raises ImageError if the image cannot be read."""
        return Item(self.sample.id, load_image(self.sample)[None], (), turns=self.turns)


@dataclass(frozen=True)
class ConversationFile:
    """The conversations of a file in file order, and notes on ignored keys."""

    path: Path
    conversations: tuple[Conversation, ...]
    notes: tuple[str, ...]

    def fingerprint(self) -> str:
        """SHA-256 of images and texts. Raises ImageError naming an image that cannot be read."""
        images = fingerprint_samples([each.sample for each in self.conversations])
        texts = json.dumps([each.turns for each in self.conversations])
        return hashlib.sha256(f"{images}\n{texts}".encode()).hexdigest()


def read_conversations(path: Path, window: Window = AUTO) -> ConversationFile:
    """Read a file of conversations; images are in its folder or in the subfolder `images/`.

    Messages must alternate between `human` and `gpt`. `<image>` must occur once, in the first message, and is removed,
    because the model always gets the image first. Raises AnnotationError with the index of the entry for any other
    content, for an entry without an image, and for `[SEG]`, because a conversation has no masks.
    """
    values = read_json(path)
    if not isinstance(values, list) or not values:
        found = "an empty list" if values == [] else kind(values)
        raise Location(path).error(f"must be a list of conversations, not {found}", "invalid_annotation")
    unread: Counter[str] = Counter()
    conversations = []
    for index, value in enumerate(values):
        where = Location(path, f"entry {index}")
        entry = parse(Entry, value, where)
        unread.update(list(entry.unknown))
        image, _ = find_image(entry.image, where, path.parent)
        where = Location(path, f"entry {index} ({entry.image})")
        # the file name and index are part of the id, and so of the fingerprint, because they determine the order
        sample = Sample(f"{path.stem}, entry {index}", image, (), None, where, window=window)
        conversations.append(Conversation(sample, _turns(entry.conversations, where)))
    counted = ", ".join(f"{key} ({count})" for key, count in unread.items())
    notes = (f"{path.name}: ignored keys: {counted}",) if unread else ()
    return ConversationFile(path, tuple(conversations), notes)


def _turns(messages: list[Message], where: Location) -> tuple[Turn, ...]:
    texts = [message.value for message in messages]
    for index, message in enumerate(messages):
        speaker = ("human", "gpt")[index % 2]
        if message.speaker != speaker:
            raise where.error(
                f"message {index} is from {message.speaker}, not {speaker}; human and gpt must alternate",
                "invalid_annotation",
            )
        if SEG in message.value:
            raise where.error(
                f"message {index} contains {SEG}, but a conversation has no masks",
                "invalid_annotation",
                "put objects with masks into the training dataset",
            )
    if len(texts) % 2:
        raise where.error("ends with a question", "invalid_annotation", "add its answer, or remove it")
    if texts[0].count(IMAGE) != 1 or any(IMAGE in text for text in texts[1:]):
        raise where.error(f"{IMAGE} must occur once, in the first question", "invalid_annotation")
    texts[0] = texts[0].replace(IMAGE, "").strip()
    if not texts[0]:
        raise where.error(f"the first question is only {IMAGE}", "invalid_annotation")
    return tuple(zip(texts[::2], texts[1::2], strict=True))
