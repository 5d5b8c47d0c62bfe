"""Mask images as they are written, and what is said of what they cannot hold."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vesalius.data.dataset import load_item, load_samples, open_dataset
from vesalius.data.writers import masks
from vesalius.data.writers.formats import WRITERS
from vesalius.errors import AnnotationError
from vesalius.masks import encode_rle, rasterize
from vesalius.names import result_stems
from vesalius.types import Absent, MaskReference, Polygons, RleMask, Sample

SIZE = (8, 10)
SQUARE = Polygons(((1.0, 1.0, 5.0, 1.0, 5.0, 5.0, 1.0, 5.0),))
DIAGONAL = RleMask(encode_rle(np.eye(*SIZE, dtype=bool)))


def make(root: Path, name: str, *phrases: str, objects: tuple[MaskReference, ...] = (SQUARE,)) -> Sample:
    image = root / "images" / name
    image.parent.mkdir(exist_ok=True, parents=True)
    Image.new("L", SIZE[::-1]).save(image)
    stem = "__".join(Path(name).with_suffix("").parts)
    return Sample(stem, image, phrases, (objects,) * len(phrases) if phrases else None)


def test_one_phrase_reads_back_as_a_folder_of_images_and_masks(tmp_path: Path) -> None:
    samples = [
        make(tmp_path, "a.png", "vessel", objects=(SQUARE, DIAGONAL)),
        make(tmp_path, "p1/b.jpg", "vessel", objects=(Absent(),)),
        make(tmp_path, "p1/图.png", "vessel"),
    ]
    assert masks.write(tmp_path, samples) == [
        "no file says what the masks show: name 'vessel' when the folder is read",
        "masks that join several objects of a phrase: 1",
        "empty masks of phrases that are not in the image: 1",
    ]
    assert open_dataset(tmp_path, prompt="vessel").format == "maskfolder"
    for sample, back in zip(samples, load_samples(tmp_path, prompt="vessel"), strict=True):
        assert (back.id, back.image, back.prompts) == (sample.id, sample.image, sample.prompts)
        before, after = load_item(sample).masks, load_item(back).masks
        assert before is not None
        assert after is not None
        assert (before == after).all()
    with Image.open(tmp_path / "masks" / "a.png") as image:
        assert image.mode == "L"
        assert sorted(set(np.asarray(image).ravel().tolist())) == [0, 255]


def test_several_phrases_are_files_named_as_results_are(tmp_path: Path) -> None:
    sample = make(tmp_path, "a.png", "blood vessel", "冠状动脉")
    sample = replace(sample, masks=((SQUARE,), (DIAGONAL,)))
    assert WRITERS["masks"](tmp_path, [sample]) == [
        "2 phrases: they stand in the names of files, and no reader pairs these again"
    ]
    stems = result_stems("a", sample.prompts)
    assert {path.stem for path in (tmp_path / "masks").iterdir()} == set(stems)
    for stem, expected in zip(stems, (rasterize(SQUARE.parts, SIZE), np.eye(*SIZE, dtype=bool)), strict=True):
        with Image.open(tmp_path / "masks" / f"{stem}.png") as image:
            assert ((np.asarray(image) == 255) == expected).all()


def test_a_phrase_in_several_rows_is_one_file(tmp_path: Path) -> None:
    sample = replace(make(tmp_path, "a.png", "v", "v"), masks=((SQUARE,), (Absent(),)))
    notes = masks.write(tmp_path, [sample])
    assert [path.name for path in (tmp_path / "masks").iterdir()] == ["a.png"]
    assert len(notes) == 1


def test_what_is_lost_is_counted(tmp_path: Path) -> None:
    full = replace(make(tmp_path, "a.png", "v"), group="p1", spacing_mm=(1.0, 1.0), metadata={"study": 3})
    bare = replace(make(tmp_path, "b.png"), group="p2")
    assert masks.write(tmp_path, [full, bare]) == [
        "no file says what the masks show: name 'v' when the folder is read",
        "images without annotation, which have no mask file and so cannot be read back: 1",
        "not kept: group (2), spacing_mm (1), study (1)",
    ]
    assert [path.name for path in (tmp_path / "masks").iterdir()] == ["a.png"]


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    sample = make(tmp_path, "a.png", "v")
    for wrong, reason in (
        ([], "there is no sample to write"),
        ([replace(sample, masks=(), prompts=())], "names no phrase"),
        ([replace(sample, image=tmp_path.parent / "a.png")], "lies outside of"),
        ([replace(sample, masks=((RleMask(encode_rle(np.eye(3, dtype=bool))),),))], "was made at 3 x 3"),
    ):
        with pytest.raises(AnnotationError, match=reason):
            masks.write(tmp_path, wrong)
