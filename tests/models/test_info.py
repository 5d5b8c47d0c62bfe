"""The description of a model comes from its files, not from the name of its folder."""

import json
import os
import shutil
from pathlib import Path

import pytest

from vesalius.models.info import _false_claims, describe, summarize
from vesalius.models.presets import find_spec
from vesalius.models.reference import resolve_model
from vesalius.models.stored_model import fingerprint_model


@pytest.mark.parametrize(
    ("folder", "size", "parameters", "warns"),
    [
        ("Sa2VA-8B", "Sa2VA-8B", 8317666866, False),
        ("my-angio-8B-v2", "Sa2VA-8B", 8317666866, False),
        ("Sa2VA-26B", "Sa2VA-8B", 8317666866, True),
        ("sa2va_26B_finetuned", "Sa2VA-8B", 8317666866, True),
        ("Sa2VA-4B", "Sa2VA-InternVL3-8B", 8182606386, True),
        ("Sa2VA-InternVL3-8B", "Sa2VA-8B", 8317666866, True),
        ("vessels", "Sa2VA-8B", 8317666866, False),
        ("run_2B_or_not", "Sa2VA-InternVL3-2B", 2316157490, False),
    ],
)
def test_a_wrong_size_in_the_folder_name_gives_a_warning(
    tmp_path: Path, folder: str, size: str, parameters: int, warns: bool
) -> None:
    warnings = _false_claims(tmp_path / folder, find_spec(size), parameters)
    assert bool(warnings) == warns
    assert all(folder in warning and size in warning for warning in warnings)


def test_an_official_folder_is_described_like_its_bundle(shared: Path) -> None:
    folder = shared / "oracle" / "internvl_internlm2"
    facts = describe(folder)
    assert facts["layout"] == "official (config.json)"
    assert facts["family"] == "internvl"
    assert facts["published_size"] is None
    assert facts["language_model"] == {"type": "llama", "layers": 2, "hidden_size": 64, "vocabulary": 920}
    assert facts["segmenter"] == {"encoder_blocks": 6, "hidden_size": 16, "input_size": 1024}
    assert facts["dtypes"] == {"F16": facts["parameters"]["total"]}
    assert facts["fingerprint"] == fingerprint_model(folder)


def test_hub_name_is_found_where_it_was_downloaded(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # as the hub's own cache lays it out: files are links into a store
    source, cache = shared / "oracle" / "qwen3_vl", tmp_path / "models--ByteDance--Sa2VA-Qwen3-VL-4B"
    commit = "0123456789012345678901234567890123456789"
    (cache / "snapshots" / commit).mkdir(parents=True)
    (cache / "blobs").mkdir()
    for path in source.iterdir():
        shutil.copyfile(path, cache / "blobs" / f"blob-{path.name}")
        (cache / "snapshots" / commit / path.name).symlink_to(
            os.path.relpath(cache / "blobs" / f"blob-{path.name}", cache / "snapshots" / commit)
        )
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    found = resolve_model("ByteDance/Sa2VA-Qwen3-VL-4B").folder
    assert found == cache / "snapshots" / commit
    assert describe(found)["fingerprint"] == fingerprint_model(source)


def test_lines_for_a_terminal_hold_the_facts() -> None:
    facts = describe("tiny")
    lines = summarize(facts)
    assert f"{facts['parameters']['total']:,} parameters" in lines[0]
    assert lines[-1] == f"fingerprint: {facts['fingerprint']}"
    assert len(lines) <= 10
    assert f"phrases: {', '.join(facts['phrases'])}" in lines
    (provenance,) = [line for line in lines if line.startswith("provenance: ")]
    assert provenance.startswith("provenance: random weights, seed 0 > tiny > this model")
    whole = "\n".join(summarize(facts, all=True))
    assert "lr: 0.0008" in whole and "lr: 0.001" in whole
    json.dumps(facts)
    assert describe("tiny")["lineage"]["settings"]["optim"]["lr"] == 0.0008
    facts["warnings"] = ["the folder lies"]
    assert summarize(facts)[-1] == "WARNING: the folder lies"
