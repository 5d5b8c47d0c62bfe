"""Tokenizers of `tiny` and of official folders, opened without running any of their code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sentencepiece import SentencePieceProcessor
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, Qwen2Tokenizer

from vesalius.errors import CheckpointError
from vesalius.models.specs import ADDED_TOKENS

SPACE = "\u2581"
"""The character that SentencePiece writes for a space."""


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer, which needs no vocabulary file.

    The vocabulary has 256 byte tokens, then `<|im_start|>`, `<|im_end|>` and the tokens added by Sa2VA, in its order."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>", *ADDED_TOKENS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|im_end|>", clean_up_tokenization_spaces=False
    )


def official_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of an official folder: `tokenizer.json`, else `vocab.json`, else InternLM2's `tokenizer.model`.

    CheckpointError if there is none or it cannot be read.
    """
    try:
        if (folder / "tokenizer.json").is_file():
            return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
        if (folder / "vocab.json").is_file():
            return Qwen2Tokenizer.from_pretrained(folder, local_files_only=True)
        if (folder / "tokenizer.model").is_file():
            return _sentencepiece_tokenizer(folder)
    except Exception as error:  # libraries raise many exception types for damaged files
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError.at(folder, f"the tokenizer cannot be opened ({reason})", code="damaged_model") from error
    raise CheckpointError.at(
        folder,
        "has no tokenizer (tokenizer.json, vocab.json or tokenizer.model); copy the model again",
        code="no_tokenizer",
    )


def _sentencepiece_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """InternLM2's SentencePiece tokenizer: byte-pair encoding without a prefix space, with `<s>` first.

    The merges are all pairs of pieces that form another piece, ordered by its score.
    """
    pieces = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    added = {int(number): token for number, token in settings["added_tokens_decoder"].items()}
    names = [pieces.id_to_piece(i) for i in range(len(pieces))]
    # chat tokens replace unused pieces
    names = [added[i]["content"] if i in added else name for i, name in enumerate(names)]
    vocabulary = {name: i for i, name in enumerate(names)}
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=_merges(vocabulary, [pieces.get_score(i) for i in range(len(pieces))]),
            unk_token=names[pieces.unk_id()],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    tokenizer.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    _add_tokens(tokenizer, added, folder)
    start = settings["bos_token"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start} $A", special_tokens=[(start, tokenizer.token_to_id(start))]
    )
    special = {name: settings[name] for name in ("bos_token", "eos_token", "pad_token", "unk_token")}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **special)


def _merges(vocabulary: dict[str, int], scores: list[float]) -> list[tuple[str, str]]:
    found = []
    for piece, number in vocabulary.items():
        splits = [(piece[:i], piece[i:]) for i in range(1, len(piece))]
        pairs = [(left, right) for left, right in splits if left in vocabulary and right in vocabulary]
        pairs.sort(key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
        found += [(scores[number], pair) for pair in pairs]
    return [pair for _, pair in sorted(found, key=lambda entry: -entry[0])]


def _add_tokens(tokenizer: Tokenizer, added: dict[int, dict[str, Any]], folder: Path) -> None:
    for number, token in sorted(added.items()):
        kind = {name: token[name] for name in ("lstrip", "rstrip", "normalized", "single_word", "special")}
        tokenizer.add_tokens([AddedToken(token["content"], **kind)])
        if tokenizer.token_to_id(token["content"]) != number:
            raise CheckpointError.at(
                folder / "tokenizer_config.json",
                f"{token['content']} should have id {number}, but tokens before it are missing",
                code="damaged_model",
            )
