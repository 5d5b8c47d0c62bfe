"""Splits: every image is in exactly one part, no patient is in two, and a seed determines all bytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tests.codes import raises_code

from vesalius.cli import main
from vesalius.curation.splits import ImageSummary, check_leaks, merge_groups, split_dataset, summarize_image
from vesalius.data.dataset import load_samples, open_dataset
from vesalius.data.images import list_images, read_image
from vesalius.data.perceptual_hash import ImageHashes
from vesalius.errors import DataError, OutputError, SettingError
from vesalius.lineage import hash_pixels
from vesalius.types import Sample

BOX = [0, 0, 9, 0, 9, 9, 0, 9]


def texture(seed: int) -> np.ndarray:
    """A smooth random image, uint8 (40, 40), different for each seed."""
    values = np.random.default_rng(seed).normal(size=(8, 8))
    field = np.asarray(Image.fromarray(values.astype(np.float32)).resize((40, 40)))
    return np.clip(128 + 60 * field, 0, 255).astype(np.uint8)


def make(root: Path, n: int = 12, per_patient: int = 2) -> Path:
    """Write a dataset of `n` images of n / per_patient patients; returns its folder."""
    (root / "images").mkdir(parents=True)
    rows = []
    for i in range(n):
        Image.fromarray(texture(i)).save(root / "images" / f"p{i // per_patient}_{i}.png")
        wide = [[value * (1 + i % 3) for value in BOX]]
        mask, text = ([wide, [BOX]], ["vessel", "wire"]) if i % 4 == 0 else ([wide], ["vessel"])
        rows.append({"image": f"p{i // per_patient}_{i}.png", "mask": mask, "text": text})
    (root / "annotations.json").write_text(json.dumps(rows), encoding="utf-8")
    return root


def parts_of(out: Path) -> dict[str, list[dict[str, str]]]:
    parts: dict[str, list[dict[str, str]]] = json.loads((out / "split.json").read_text())["parts"]
    return parts


def cli(*arguments: str | Path) -> int:
    return main([str(argument) for argument in arguments])


def test_split_writes_parts_that_open_and_share_no_patient(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = make(tmp_path / "data"), tmp_path / "out"
    done = cli("split", data, out, "--fractions", "0.5", "0.25", "0.25", "--group", r"(p\d+)_", "--json")
    assert done == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    images = {name: part["images"] for name, part in result["parts"].items()}
    assert images in ({"train": 6, "val": 2, "test": 4}, {"train": 6, "val": 4, "test": 2})
    assert all(part["groups"] * 2 == part["images"] for part in result["parts"].values())
    assert set(result["parts"]["train"]["phrases"]) == {"vessel", "wire"}
    before = {sample.id: sample for sample in load_samples(data)}
    found = [sample for part in ("train", "val", "test") for sample in load_samples(out, split=part)]
    assert sorted(sample.id for sample in found) == sorted(before)
    for sample in found:
        assert (sample.prompts, sample.masks) == (before[sample.id].prompts, before[sample.id].masks)
        assert sample.image.samefile(before[sample.id].image)
    for name, rows in parts_of(out).items():
        assert [row["id"] for row in rows] == [sample.id for sample in load_samples(out, split=name)]
        assert {row["group"] for row in rows} == {sample.group for sample in load_samples(out, split=name)}
    row = parts_of(out)["train"][0]
    assert row["image_sha256"] == hash_pixels(read_image(before[row["id"]].image))
    assert cli("check", out, "--split", "train") == 0


def test_the_same_samples_and_seed_give_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    data = make(tmp_path / "data")
    for name, seed in (("one", 3), ("two", 3), ("three", 4)):
        assert cli("split", data, tmp_path / name, "--fractions", "0.5", "0.5", "--seed", seed) == 0
    one, two, three = ((tmp_path / name / "split.json").read_bytes() for name in ("one", "two", "three"))
    assert one == two != three
    assert str(tmp_path).encode() not in one


def test_without_groups_the_output_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli("split", make(tmp_path / "data"), tmp_path / "out", "--fractions", "0.5", "0.5") == 0
    assert "no groups are stated: each image is its own group" in capsys.readouterr().out


def test_split_picks_folds_by_name_and_each_image_is_validated_once(tmp_path: Path) -> None:
    data, out = make(tmp_path / "data"), tmp_path / "out"
    assert cli("split", data, out, "--folds", "3", "--group", r"(p\d+)_") == 0
    everyone = sorted(sample.id for sample in load_samples(data))
    validated = []
    for fold in ("fold1", "fold2", "fold3"):
        train, val = (load_samples(out, split=f"{fold}.{part}") for part in ("train", "val"))
        assert sorted(sample.id for sample in (*train, *val)) == everyone
        assert not {sample.group for sample in train} & {sample.group for sample in val}
        validated += [sample.id for sample in val]
    assert sorted(validated) == everyone


def seen(pixels: str, vector: np.ndarray, phrases: tuple[str, ...], area: float | None) -> ImageSummary:
    perceptual = np.packbits(vector[:256] > 0).tobytes().hex()
    texture = np.resize(np.round(100 * vector / np.abs(vector).max()), 400).astype(np.int8)
    return ImageSummary(ImageHashes(pixels, perceptual, texture.tobytes()), area, phrases)


@given(st.data(), st.integers(3, 30), st.integers(0, 2**31))
def test_a_unit_contains_whole_groups_clips_and_duplicates(data: st.DataObject, n: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    names = st.one_of(st.none(), st.sampled_from("abcd"))
    samples = [Sample(str(i), Path("x"), (), None, group=data.draw(names), sequence=data.draw(names)) for i in range(n)]
    images = [seen(str(draw.integers(0, 2 * n)), draw.normal(size=1024), (), None) for _ in range(n)]
    units, _ = merge_groups(samples, images)
    assert sorted(set(units.tolist())) == list(range(int(units.max()) + 1))
    for i in range(n):
        for j in range(i):
            tied = (
                (samples[i].group is not None and samples[i].group == samples[j].group)
                or (samples[i].sequence is not None and samples[i].sequence == samples[j].sequence)
                or images[i].hashes.pixel_hash == images[j].hashes.pixel_hash
            )
            assert not tied or units[i] == units[j]
    alone = {f"part{unit}": np.flatnonzero(units == unit).tolist() for unit in set(units.tolist())}
    check_leaks(alone, samples, images)


def copies(root: Path, names: tuple[str, str] = ("p4_same.bmp", "p5_near.png")) -> None:
    """Add two copies of p0_0: one in another file format, one brighter and cropped."""
    image = texture(0)
    Image.fromarray(image).save(root / "images" / names[0])
    near = np.clip(image[1:, 1:] * 1.1 + 3, 0, 255).astype(np.uint8)
    Image.fromarray(near).save(root / "images" / names[1])
    rows = json.loads((root / "annotations.json").read_text())
    rows += [{"image": name, "mask": [None], "text": ["vessel"]} for name in names]
    (root / "annotations.json").write_text(json.dumps(rows))


def test_duplicates_inside_a_group_merge_no_groups(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = make(tmp_path / "data")
    copies(data, ("p0_same.bmp", "p0_near.png"))
    assert cli("split", data, tmp_path / "out", "--fractions", "0.5", "0.5", "--group", r"(p\d+)_") == 0
    told = capsys.readouterr().out
    assert "near-duplicate pairs: 2" in told and "merged into" not in told


def test_duplicates_and_near_duplicates_stay_in_one_part_with_their_patients(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = make(tmp_path / "data"), tmp_path / "out"
    copies(data)
    assert cli("split", data, out, "--fractions", "0.5", "0.5", "--group", r"(p\d+)_") == 0
    told = capsys.readouterr().out
    assert "duplicate images: 1; near-duplicate pairs: 2" in told
    assert "6 groups are merged into 4" in told
    part = {row["id"]: name for name, rows in parts_of(out).items() for row in rows}
    assert len({part[name] for name in ("p0_0", "p4_same", "p5_near", "p4_8", "p5_10")}) == 1


def test_parts_that_share_a_patient_or_an_image_are_refused(tmp_path: Path) -> None:
    data = make(tmp_path / "data", n=4)
    copies(data)
    samples = open_dataset(data, group=r"(p\d+)_").samples
    images = [summarize_image(sample) for sample in samples]
    for parts, code, names in (
        ({"train": [0, 2, 4, 5], "val": [1, 3]}, "group_leak", ("p0_0 in train", "p0_1 in val")),
        ({"train": [0, 1, 2, 3, 5], "val": [4]}, "image_leak", ("p4_same in val", "the same image")),
        ({"train": [0, 1, 2, 3, 4], "val": [5]}, "image_leak", ("p5_near in val", "perceptual hash")),
    ):
        with raises_code(DataError, code, *names):
            check_leaks(parts, samples, images)


@pytest.mark.parametrize(
    ("more", "group", "code", "holds"),
    [
        ({"fractions": (0.5, 0.4)}, None, "bad_value", "0.5 + 0.4 is 0.9"),
        ({"fractions": (1.2, -0.2)}, None, "bad_value", "above 0"),
        ({"fractions": (float("nan"), 1)}, None, "bad_value", "above 0"),
        ({"fractions": (1,)}, None, "bad_value", "2 fractions"),
        ({"folds": 1}, None, "bad_value", "at least 2"),
        ({"folds": -3}, None, "bad_value", "at least 2"),
        ({"folds": 7}, r"(p\d+)_", "too_few_groups", "6 independent groups"),
    ],
)
def test_impossible_splits_are_refused(
    tmp_path: Path, more: dict[str, Any], group: str | None, code: str, holds: str
) -> None:
    with raises_code(SettingError, code, holds):
        split_dataset(open_dataset(make(tmp_path / "data"), group=group), tmp_path / "out", **more)
    assert not (tmp_path / "out").exists()


def test_neither_or_both_of_fractions_and_folds_is_wrong_usage(tmp_path: Path) -> None:
    for arguments in ([], ["--folds", "2", "--fractions", "0.5", "0.5"]):
        assert cli("split", tmp_path, tmp_path / "out", *arguments) == 2
    with raises_code(SettingError, "conflicting_settings"):
        split_dataset(open_dataset(make(tmp_path / "data")), tmp_path / "out")


def test_only_a_split_is_replaced_and_never_the_dataset(tmp_path: Path) -> None:
    data, out = make(tmp_path / "data"), tmp_path / "out"
    assert cli("split", data, out, "--folds", "2") == 0
    assert cli("split", data, out, "--fractions", "0.5", "0.5") == 0
    assert not (out / "annotations.fold1.train.json").exists()
    (out / "mine.txt").touch()
    dataset = open_dataset(data)
    with raises_code(OutputError, "not_replaceable", "mine.txt"):
        split_dataset(dataset, out, folds=2)
    for folder in (data / "..", tmp_path):
        with raises_code(SettingError, "output_inside_data"):
            split_dataset(dataset, folder, folds=2)
    for folder in (data, data / "parts"):
        with raises_code(SettingError, "output_inside_data"):
            split_dataset(dataset, folder, folds=2)


def test_an_unreadable_image_stops_the_split_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make(tmp_path / "data")
    whole = (data / "images" / "p1_3.png").read_bytes()
    (data / "images" / "p1_3.png").write_bytes(whole[: len(whole) // 2])
    assert cli("split", data, tmp_path / "out", "--folds", "2") == 1
    assert "p1_3.png: cannot be decoded" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]


def test_images_without_annotation_are_split_too(tmp_path: Path) -> None:
    data = make(tmp_path / "data", n=6, per_patient=1)
    rows = json.loads((data / "annotations.json").read_text())
    for row in rows[:2]:
        del row["mask"], row["text"]
    (data / "annotations.json").write_text(json.dumps(rows))
    result = split_dataset(open_dataset(data), tmp_path / "out", fractions=(0.5, 0.5))
    for name in ("train", "val"):
        assert sum(sample.masks is None for sample in load_samples(tmp_path / "out", split=name)) == 1
        assert result["parts"][name]["images"] == 3


def test_angiograms_are_split_more_evenly_than_by_chance(shared: Path, tmp_path: Path) -> None:
    dataset = open_dataset(shared / "data" / "arcade", split="test")
    result = split_dataset(dataset, tmp_path / "out", fractions=(0.7, 0.1, 0.2))
    parts, whole = result["parts"], result["stratification"]["all"]
    assert [part["images"] for part in parts.values()] == [70, 10, 20]
    for part in parts.values():
        assert part["mean_area"] == pytest.approx(whole["mean_area"], rel=0.05)
        for phrase, n in whole["phrases"].items():
            share = part["phrases"].get(phrase, 0) / part["images"]
            assert share == pytest.approx(n / whole["images"], abs=0.1)
    assert len(list_images(tmp_path / "out")) == 100
