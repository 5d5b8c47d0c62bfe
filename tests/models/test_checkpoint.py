"""Bundles are unchanged by writing and opening, and damaged ones are refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from tests.codes import raises_code

from vesalius.errors import CheckpointError, OutputError, SettingError
from vesalius.lineage import fingerprint_weights
from vesalius.models.cards import read_card
from vesalius.models.checkpoint import OpenedModel, new_model, open_model, save_bundle
from vesalius.models.info import describe
from vesalius.models.reference import resolve_model


@pytest.fixture(scope="module")
def opened() -> OpenedModel:
    return new_model("tiny", seed=0)


@pytest.fixture(scope="module")
def stored(opened: OpenedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "模型"
    save_bundle(folder, replace(opened, card=opened.card.changed(threshold=0.3, step=7)))
    return folder


@pytest.fixture
def bundle(stored: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(stored, tmp_path / "bundle"))


def test_every_tensor_survives_writing_and_opening(opened: OpenedModel, stored: Path) -> None:
    again = open_model(stored)
    assert again.card.threshold == 0.3
    assert again.card.step == 7
    expected, came = opened.model.state_dict(), again.model.state_dict()
    assert expected.keys() == came.keys()
    assert [name for name in expected if not torch.equal(expected[name], came[name])] == []
    assert again.processor.tokenizer.encode("血管 [SEG]") == opened.processor.tokenizer.encode("血管 [SEG]")


def test_same_seed_gives_same_weights_and_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    first = torch.rand(1)
    torch.manual_seed(5)
    a, b = new_model("tiny", seed=3).model, new_model("tiny", seed=3).model
    assert torch.equal(torch.rand(1), first)
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def test_the_fingerprint_depends_on_weights_and_not_on_the_card(stored: Path, bundle: Path) -> None:
    card = json.loads((bundle / "vesalius.json").read_text())
    (bundle / "vesalius.json").write_text(json.dumps({**card, "threshold": 0.9}))
    assert fingerprint_weights(bundle) == fingerprint_weights(stored)


def test_info_counts_the_tensors_in_the_files(opened: OpenedModel, stored: Path) -> None:
    facts = describe(stored)
    state = opened.model.state_dict()
    assert facts["parameters"]["total"] == sum(tensor.numel() for tensor in state.values())
    assert facts["dtypes"] == {"F32": facts["parameters"]["total"]}
    assert facts["fingerprint"] == fingerprint_weights(stored)


def drop_tensor(path: Path) -> None:
    tensors = safetensors.torch.load_file(path)
    del tensors[sorted(tensors)[0]]
    safetensors.torch.save_file(tensors, path, metadata={"format": "pt"})


def misshape_tensor(path: Path) -> None:
    tensors = safetensors.torch.load_file(path)
    tensors[sorted(tensors)[0]] = torch.zeros(3, 5)
    safetensors.torch.save_file(tensors, path, metadata={"format": "pt"})


def add_tensor(path: Path) -> None:
    tensors = {**safetensors.torch.load_file(path), "stranger": torch.zeros(2)}
    safetensors.torch.save_file(tensors, path, metadata={"format": "pt"})


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("damage", "code"),
    [
        (drop_tensor, "weights_mismatch"),
        (misshape_tensor, None),
        (add_tensor, "weights_mismatch"),
        (truncate, "damaged_model"),
        (Path.unlink, "damaged_model"),
    ],
)
@pytest.mark.parametrize("file", ["vlm/model.safetensors", "sam/model.safetensors", "projector.safetensors"])
def test_damaged_weights_are_refused_by_name(bundle: Path, file: str, damage: object, code: str | None) -> None:
    damage(bundle / file)  # type: ignore[operator]
    with pytest.raises(CheckpointError, match=file.partition("/")[0].removesuffix(".safetensors")) as caught:
        open_model(bundle)
    # transformers itself raises for a misshapen tensor
    assert caught.value.code in ((code,) if code else ("weights_mismatch", "damaged_model"))


def test_missing_component_is_refused(bundle: Path) -> None:
    shutil.rmtree(bundle / "sam")
    with raises_code(CheckpointError, "incomplete_model", "sam"):
        open_model(bundle)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"spec": 3}', '{"kind": "unet"}'])
def test_broken_card_is_refused_by_name(bundle: Path, text: str) -> None:
    (bundle / "vesalius.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"vesalius\.json") as caught:
        read_card(bundle)
    assert caught.value.code in ("invalid_card", "wrong_model_kind")


def test_a_model_is_found_by_folder_run_or_name(stored: Path, tmp_path: Path) -> None:
    assert resolve_model(stored).folder == stored
    run = tmp_path / "run"
    run.mkdir()
    (run / "best").symlink_to(stored)
    assert resolve_model(run).folder == run / "best"
    assert (resolve_model("tiny").folder / "vesalius.json").is_file()
    with raises_code(CheckpointError, "no_model"):
        resolve_model(tmp_path)
    (tmp_path / "iter_12.pth").touch()
    with raises_code(CheckpointError, "no_model", "vesalius convert", "iter_12.pth OUT --base MODEL"):
        resolve_model(tmp_path / "iter_12.pth")
    with raises_code(CheckpointError, "not_downloaded", "Sa2VA-4B"):
        resolve_model("ByteDance/Sa2VA-4B")
    with raises_code(SettingError, "unknown_model", "'tyni'", "tiny"):
        resolve_model("tyni")


def test_random_weights_of_a_model_without_tokenizer_are_refused() -> None:
    with raises_code(SettingError, "no_tokenizer"):
        new_model("Sa2VA-1B", seed=0)


def test_a_failed_write_leaves_the_old_bundle_unchanged(
    opened: OpenedModel, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = fingerprint_weights(bundle)

    def no_space(folder: Path, **more: object) -> None:
        folder.mkdir()
        (folder / "half").write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(opened.model.sam, "save_pretrained", no_space)
    (bundle.parent / "elsewhere").mkdir()
    with pytest.raises(OutputError, match="No space left on device"):
        save_bundle(bundle, opened)
    assert fingerprint_weights(bundle) == before
    assert {path.name for path in bundle.parent.iterdir()} == {"bundle", "elsewhere"}


def test_shipped_tiny_opens_and_is_small() -> None:
    folder = resolve_model("tiny").folder
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert size <= 16 * 2**20
    facts = describe("tiny")
    assert facts["parameters"]["total"] <= 4_000_000
    assert facts["trained_on_images"] > 0
    assert (folder / "README.md").is_file()
