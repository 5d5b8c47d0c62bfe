"""Tokenizers of official folders give the official tokens without running the folder's code."""

import json
import shutil
from pathlib import Path

import pytest
from tests.codes import raises_code
from transformers import PreTrainedTokenizerFast

from vesalius.errors import CheckpointError
from vesalius.models.families.tokenizers import official_tokenizer

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "official"


@pytest.mark.parametrize("model", ["internvl_qwen2", "internvl_internlm2"])
def test_tokens_and_texts_are_the_official_ones(model: str) -> None:
    tokenizer = official_tokenizer(GOLDEN / model)
    stored = json.loads((GOLDEN / model / "tokenizer_cases.json").read_text())
    assert len(stored["cases"]) == 10
    for case in stored["cases"]:
        assert tokenizer.encode(case["text"]) == case["ids"], case["text"]
        assert tokenizer.encode(case["text"], add_special_tokens=False) == case["ids_no_special"]
        if not any(token in case["text"] for token in tokenizer.get_added_vocab()):
            assert tokenizer.decode(case["ids_no_special"]) == case["decoded"]
    for token, number in stored["specials"].items():
        assert tokenizer.convert_tokens_to_ids(token) == number
    assert len(tokenizer) == stored["len"]


def test_sentencepiece_tokenizer_survives_a_bundle(tmp_path: Path) -> None:
    tokenizer = official_tokenizer(GOLDEN / "internvl_internlm2")
    tokenizer.save_pretrained(tmp_path)
    again = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    for text in ("Please segment the 血管.", "  two  spaces [SEG]\n", "😀 ﬁ <img><IMG_CONTEXT></img>"):
        assert again.encode(text) == tokenizer.encode(text)


def test_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with raises_code(CheckpointError, "no_tokenizer", "tokenizer.json, vocab.json or tokenizer.model"):
        official_tokenizer(tmp_path)


@pytest.mark.parametrize("file", ["tokenizer.json", "vocab.json"])
def test_broken_tokenizer_is_refused_by_folder(tmp_path: Path, file: str) -> None:
    (tmp_path / file).write_text("{")
    with raises_code(CheckpointError, "damaged_model"):
        official_tokenizer(tmp_path)


def test_added_token_out_of_place_is_refused(tmp_path: Path) -> None:
    for name in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copyfile(GOLDEN / "internvl_internlm2" / name, tmp_path / name)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    del settings["added_tokens_decoder"]["902"]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    with raises_code(CheckpointError, "damaged_model", "903"):
        official_tokenizer(tmp_path)
