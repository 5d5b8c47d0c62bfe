"""Chat templates of the language models, as in the official code, without a system prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ChatName = Literal["qwen_chat", "internlm2_chat", "phi3_chat"]
DEFAULT_CHAT: ChatName = "qwen_chat"


@dataclass(frozen=True)
class Chat:
    """The markup of one turn of a conversation."""

    turn: str
    """Text up to the start of the answer, with the placeholder `{question}`."""
    stop: str
    """Token that ends an answer."""
    spaced: bool = False
    """Whether the official tokenizer decodes a special token with a space on each side."""


CHATS: dict[ChatName, Chat] = {
    "qwen_chat": Chat("<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>"),
    "internlm2_chat": Chat(
        "<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>", spaced=True
    ),
    "phi3_chat": Chat("<|user|>\n{question}<|end|>\n<|assistant|>\n", "<|end|>"),
}
