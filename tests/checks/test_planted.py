"""Each fault added to a clean dataset gives one finding with its code and location, and no other."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from vesalius.checks.findings import CODES

# `set_` is the `Spoiled` of conftest.py; faults are planted into entry 1
Plant = Callable[[Any], None]


def pixels_of(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def add(set_: Any, image: Image.Image | np.ndarray, name: str = "images/extra.png", **more: Any) -> None:
    """Add an entry with the masks of entry 1 and a separate group."""
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(set_.root / name)
    set_.entries.append({**set_.entries[1], "image": name, "group": "extra", **more})


def redrawn(*mask: Any, text: tuple[str, ...] = ("thing",), **more: Any) -> Plant:
    def plant(set_: Any) -> None:
        set_.entries[1].update(mask=list(mask), text=list(text), **more)

    return plant


def cut_short(set_: Any) -> None:
    set_.image(1).write_bytes(set_.image(1).read_bytes()[:2000])


def no_bytes(set_: Any) -> None:
    set_.image(1).write_bytes(b"")


def no_image(set_: Any) -> None:
    set_.image(1).write_text("<html>404</html>")


def no_number(set_: Any) -> None:
    deep = pixels_of(set_.image(1))[:, :, 0].astype(np.float32)
    deep[0, 0] = np.nan
    rename(set_, "images/deep.tif", Image.fromarray(deep))


def transparent(set_: Any) -> None:
    rename(set_, "images/hole.png", with_alpha(set_, 100))


def opaque(set_: Any) -> None:
    rename(set_, "images/opaque.png", with_alpha(set_, 255))


def with_alpha(set_: Any, least: int) -> Image.Image:
    pixels = pixels_of(set_.image(1))
    alpha = np.full((*pixels.shape[:2], 1), 255, np.uint8)
    alpha[0, 0] = least
    return Image.fromarray(np.concatenate([pixels, alpha], axis=2))


def rename(set_: Any, name: str, image: Image.Image, **saving: Any) -> None:
    """Replace the image of entry 1 by this one, with this name."""
    image.load()
    set_.image(1).unlink()
    image.save(set_.root / name, **saving)
    set_.entries[1]["image"] = name


def turned(set_: Any) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    rename(set_, "images/turned.png", Image.open(set_.image(1)), exif=exif)


def named_for_a_patient(set_: Any) -> None:
    rename(set_, "images/WANG_Xiaoming.png", Image.open(set_.image(1)))


def lost(set_: Any) -> None:
    set_.image(1).unlink()


def elsewhere(set_: Any) -> None:
    set_.image(1).rename(set_.root.parent / "a.png")
    set_.entries[1]["image"] = "../a.png"


def forgotten(set_: Any) -> None:
    Image.fromarray(pixels_of(set_.image(1))[::-1].copy()).save(set_.root / "images" / "forgotten.png")


def other_size(set_: Any) -> None:
    height, width = pixels_of(set_.image(1)).shape[:2]
    set_.entries[1].update(mask=[[[1, 1, 30, 1, 30, 30]]], text=["thing"], size=[2 * height, 2 * width])


def flat_and_nested(set_: Any) -> None:
    for index, mask in enumerate([[10, 10, 60, 10, 60, 60], [[10, 10, 60, 10, 60, 60]], [[20, 9, 70, 9, 70, 60]]]):
        set_.entries[index].update(mask=[mask], text=["thing"])


def no_masks(set_: Any) -> None:
    del set_.entries[1]["mask"], set_.entries[1]["text"]


def no_group(set_: Any) -> None:
    del set_.entries[1]["group"]


def one_text_too_few(set_: Any) -> None:
    set_.entries[1]["text"] = set_.entries[1]["text"][:-1]


def twice_in_the_file(set_: Any) -> None:
    set_.entries.insert(2, dict(set_.entries[1]))


def copied(set_: Any) -> None:
    add(set_, Image.fromarray(pixels_of(set_.image(1))))


def brightened(set_: Any) -> None:
    add(set_, ImageEnhance.Brightness(Image.fromarray(pixels_of(set_.image(1)))).enhance(1.2))


def compressed(set_: Any) -> None:
    image = Image.fromarray(pixels_of(set_.image(1)))
    add(set_, image.resize((image.width * 3 // 4, image.height * 3 // 4)), mask=[None], text=["thing"])
    image.save(set_.root / "images" / "extra.jpg", quality=50)
    set_.image(-1).unlink()
    set_.entries[-1]["image"] = "images/extra.jpg"


def nothing_drawn(set_: Any) -> None:
    redrawn(runs_of(set_, 0))(set_)


def too_few_runs(set_: Any) -> None:
    redrawn(runs_of(set_, -10))(set_)


def runs_of(set_: Any, more: int) -> dict[str, Any]:
    height, width = pixels_of(set_.image(1)).shape[:2]
    return {"size": [height, width], "counts": [height * width + more]}


SQUARE = [10, 10, 60, 10, 60, 60, 10, 60]
PLANTS: dict[str, tuple[Plant, str, str]] = {
    "cut short": (cut_short, "unreadable_image", "entry 1"),
    "no bytes": (no_bytes, "unreadable_image", "entry 1"),
    "no image": (no_image, "unreadable_image", "entry 1"),
    "a pixel without a number": (no_number, "not_finite_pixels", "entry 1"),
    "transparent": (transparent, "transparent_image", "entry 1"),
    "lost": (lost, "missing_image", "entry 1"),
    "elsewhere": (elsewhere, "outside_path", "entry 1"),
    "drawn at another size": (other_size, "size_mismatch", "entry 1"),
    "RLE of another size": (redrawn({"size": [9, 9], "counts": [40, 20, 21]}), "size_mismatch", "entry 1"),
    "far outside": (redrawn([[0, 0, 3000, 0, 0, 50]]), "outside_image", "entry 1 "),
    "far above": (redrawn([[0, -1.5, 50, 0, 0, 50]]), "outside_image", "entry 1 "),
    "a pixel outside": (redrawn([[-1, 0, 50, 0, 0, 50]]), "border_overshoot", "entry 1 "),
    "two points": (redrawn([[1, 1, 5, 5]]), "too_few_points", "'thing'"),
    "odd numbers": (redrawn([[1, 1, 5, 5, 9, 1, 4]]), "too_few_points", "'thing'"),
    "NaN": (redrawn([SQUARE, [1, 1, 5, math.nan, 9, 1]]), "not_finite", "'thing', polygon 1"),
    "Infinity": (redrawn([[1, 1, 5, math.inf, 9, 1]]), "not_finite", "'thing'"),
    "on one line": (redrawn([[5, 5, 20, 20, 40, 40]]), "zero_area", "'thing'"),
    "one point thrice": (redrawn([[5, 5, 5, 5, 5, 5]]), "zero_area", "'thing'"),
    "between pixels": (redrawn([[5.1, 5.1, 5.2, 5.1, 5.1, 5.2]]), "empty_mask", "'thing'"),
    "RLE without a pixel": (nothing_drawn, "empty_mask", "'thing'"),
    "RLE too short": (too_few_runs, "invalid_rle", "'thing'"),
    "bow tie": (redrawn([[10, 10, 60, 60, 60, 10, 10, 60]]), "self_intersection", "'thing'"),
    "over itself": (redrawn([SQUARE], [SQUARE], text=("thing", "copy")), "overlapping_objects", "'thing' and 'copy'"),
    "twice one phrase": (redrawn([SQUARE], [[70, 70, 90, 70, 90, 90]], text=("thing", "thing")), "repeated_phrase", ""),
    "flat and nested": (flat_and_nested, "mixed_nesting", ""),
    "no masks": (no_masks, "unlabeled_image", "entry 1"),
    "no text": (one_text_too_few, "phrase_count_mismatch", "entry 1"),
    "twice in the file": (twice_in_the_file, "duplicate_id", "entry 2"),
    "no group": (no_group, "no_groups", ""),
    "turned": (turned, "exif_rotation", "entry 1"),
    "opaque": (opaque, "alpha_channel", "entry 1"),
    "a patient's name": (named_for_a_patient, "personal_name", "images/W***_X***.png"),
    "copied": (copied, "duplicate_image", ", extra"),
    "brightened": (brightened, "near_duplicate", ", extra"),
    "compressed": (compressed, "near_duplicate", ", extra"),
    "forgotten": (forgotten, "unlisted_image", "images/forgotten.png"),
}


OWN_REMEDIES = {"elsewhere": "give a path relative to the annotation file"}
"""Remedies of readers that are more specific than the table of codes."""


def test_a_clean_dataset_has_no_findings(clean: Any) -> None:
    assert clean.findings() == ()


def test_twenty_real_angiograms_have_no_findings(twenty: Any) -> None:
    assert twenty.findings() == ()
    assert len(twenty.check().measurements) == 20


@pytest.mark.parametrize("fault", PLANTS)
def test_a_fault_gives_its_finding_and_no_other(clean: Any, fault: str) -> None:
    plant, code, location = PLANTS[fault]
    plant(clean)
    (finding,) = clean.findings()
    assert (finding.code, finding.severity) == (code, CODES[code].severity)
    assert location in finding.location
    assert finding.message
    assert finding.remedy == OWN_REMEDIES.get(fault, CODES[code].remedy)
    assert str(clean.root) in finding.file
    assert str(clean.root) not in finding.location


def test_several_faults_are_all_found(twenty: Any) -> None:
    def on(index: int, plant: Plant) -> None:
        entries = twenty.entries
        entries[1], entries[index] = entries[index], entries[1]
        plant(twenty)
        entries[1], entries[index] = entries[index], entries[1]

    chosen = [name for name in PLANTS if name not in ("flat and nested", "twice in the file", "transparent")]
    single = [
        name
        for name in chosen
        if PLANTS[name][1] in ("unreadable_image", "outside_image", "too_few_points", "overlapping_objects")
    ]
    for index, name in enumerate(single):
        on(index, PLANTS[name][0])
    found = sorted((each.code, each.samples) for each in twenty.findings() if each.location)
    assert [code for code, _ in found] == sorted(PLANTS[name][1] for name in single)
    assert len({samples for _, samples in found}) == len(single)


@pytest.mark.parametrize("exif", [b"garbage!", b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\xff\xff", b""])
def test_damaged_exif_gives_no_finding(drawn: Any, exif: bytes) -> None:
    rename(drawn, "images/odd.png", Image.fromarray(pixels_of(drawn.image(1))), exif=exif)
    assert drawn.findings() == ()
