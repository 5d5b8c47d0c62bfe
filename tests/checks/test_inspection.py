"""Checks of whole datasets: splits, summaries, counts, measurements, and terminal output."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageEnhance
from tests.codes import raises_code
from tests.dicom_files import write_xa

from vesalius.checks import inspection
from vesalius.checks.duplicates import near_clusters
from vesalius.checks.inspection import families, inspect
from vesalius.checks.phrases import counts
from vesalius.checks.terminal_report import list_findings
from vesalius.cli import main
from vesalius.codes import CODES
from vesalius.data.dataset import load_item
from vesalius.data.perceptual_hash import ImageHashes, hash_image
from vesalius.errors import AnnotationError, SettingError
from vesalius.types import Finding, MaskFile, Sample


def codes(report: Any) -> list[tuple[str, str]]:
    return [(each.code, each.severity) for each in report.findings]


def in_two_splits(set_: Any) -> None:
    set_.write("train", set_.entries[:3])
    set_.write("test", set_.entries[3:])


def test_clean_splits_have_no_findings_and_common_counts(clean: Any) -> None:
    in_two_splits(clean)
    report = clean.check()
    assert report.findings == ()
    assert {name: len(part.samples) for name, part in report.parts.items()} == {"test": 3, "train": 3}
    assert report.counts["images"] == 6
    assert report.counts["splits"] == {"test": 3, "train": 3}
    assert [measurement.split for measurement in report.measurements] == ["test"] * 3 + ["train"] * 3


def test_the_same_image_in_two_splits_is_a_leak(clean: Any) -> None:
    shutil.copy(clean.image(0), clean.root / "images" / f"again{clean.image(0).suffix}")
    again = {**clean.entries[0], "image": f"images/again{clean.image(0).suffix}", "group": "other"}
    clean.write("train", clean.entries[:3])
    clean.write("test", [*clean.entries[3:], again])
    (finding,) = clean.findings()
    assert (finding.code, finding.severity) == ("image_leak", "error")
    assert "test: again" in finding.location
    assert "train: " in finding.location
    assert finding.message == "2 images have the same pixels and are in 2 splits"


def test_an_almost_equal_image_in_two_splits_is_a_leak(clean: Any) -> None:
    image = Image.open(clean.image(0)).convert("RGB")
    ImageEnhance.Brightness(image).enhance(0.85).save(clean.root / "images" / "again.png")
    again = {**clean.entries[0], "image": "images/again.png", "group": "other"}
    clean.write("train", clean.entries[:3])
    clean.write("test", [*clean.entries[3:], again])
    (finding,) = clean.findings()
    assert (finding.code, finding.severity) == ("image_leak", "error")
    assert finding.message == "2 images look almost the same and are in 2 splits"


def test_a_group_in_two_splits_is_a_leak(clean: Any) -> None:
    clean.entries[5]["group"] = clean.entries[0]["group"]
    in_two_splits(clean)
    (finding,) = clean.findings()
    assert (finding.code, finding.severity) == ("group_leak", "error")
    assert finding.message == "is in 2 splits: 1 image in test, 1 image in train"
    assert len(finding.samples) == 2
    assert clean.findings(split="train") == ()


def test_an_unreadable_split_is_a_finding_beside_the_others(clean: Any) -> None:
    clean.write("train")
    (clean.root / "annotations.test.json").write_text("[{")
    report = clean.check()
    assert codes(report) == [("unreadable_file", "error")]
    assert list(report.parts) == ["train"]


def test_a_folder_without_a_dataset_raises(tmp_path: Path) -> None:
    with pytest.raises(AnnotationError):
        inspect(tmp_path)
    with raises_code(SettingError, "bad_value", "num_workers", "-1"):
        inspect(tmp_path, num_workers=-1)


def test_the_official_splits_of_arcade_have_no_errors(shared: Path) -> None:
    report = inspect(shared / "data" / "arcade", num_workers=0)
    assert {finding.code for finding in report.findings} == {"self_intersection", "overlapping_objects", "no_groups"}
    assert all(finding.severity == "warning" for finding in report.findings)
    assert sum(finding.code == "self_intersection" for finding in report.findings) == 14
    assert report.counts["splits"] == {"test": 100, "train": 160, "val": 40}


def test_retinas_are_no_duplicates_and_their_vessels_are_thin(shared: Path) -> None:
    report = inspect(shared / "data" / "chase_db1", prompt="blood vessel", group=r"Image_(\d+)")
    assert codes(report) == [("thin_structures", "warning")]
    assert report.counts["groups"] == 14


def test_entries_drawn_at_another_size_are_summarized(drawn: Any) -> None:
    for entry in drawn.entries[:4]:
        entry.update(mask=[[[1, 1, 190, 1, 190, 190]]], text=["thing"], size=[200, 200])
    found = drawn.findings()
    assert [each.code for each in found] == ["size_mismatch"] * 5
    assert found[4].message == "4 of 6 entries were drawn at 200 x 200 for an image of 128 x 128 (h x w), ratio 1.5625"
    assert found[4].samples == tuple(f"synth_0000{i}" for i in range(4))
    assert list_findings(found) == [
        "error    size_mismatch      4  entry 0 (images/synth_00000.png); entry 1 (images/synth_00001.png); "
        "entry 2 (images/synth_00002.png); entry 3 (images/synth_00003.png)",
        "  4 of 6 entries were drawn at 200 x 200 for an image of 128 x 128 (h x w), ratio 1.5625",
        f"  {CODES['size_mismatch'].remedy}",
        "4 errors, 0 warnings",
    ]


def test_entries_outside_the_image_without_a_stated_size_are_summarized(drawn: Any) -> None:
    for entry in drawn.entries[:3]:
        del entry["size"]
        entry.update(mask=[[[1, 1, 160, 1, 160, 190]]], text=["thing"])
    found = drawn.findings()
    assert [each.code for each in found] == ["outside_image"] * 4
    assert found[3].message.startswith("3 of 6 entries have coordinates outside their image, up to 1.484 times its")


def test_phrases_that_overlap_by_nature_are_counted_without_a_warning(drawn: Any) -> None:
    report = drawn.check()
    assert report.findings == ()
    assert report.counts["overlapping"] == {"'blood vessel' and 'catheter'": 6}


def test_measurements_are_those_of_the_masks_and_pixels(drawn: Any) -> None:
    report = drawn.check()
    for sample, measurement in zip(report.parts[""].samples, report.measurements, strict=True):
        item = load_item(sample)
        assert (measurement.id, measurement.size, measurement.group) == (sample.id, item.size, sample.group)
        assert measurement.hashes == hash_image(item.frames[0])
        assert item.masks is not None
        assert [target.phrase for target in measurement.targets] == list(sample.prompts)
        assert [target.area_fraction for target in measurement.targets] == [mask.mean() for mask in item.masks]


def test_unreadable_images_have_no_measurements(drawn: Any) -> None:
    drawn.image(0).write_bytes(b"")
    measurement = drawn.check().measurements[0]
    assert (measurement.size, measurement.hashes, measurement.targets) == (None, None, ())


def test_findings_do_not_depend_on_the_number_of_processes(drawn: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn.entries[1]["mask"] = [[[1, 1, 5, 5]], None]
    drawn.write()
    monkeypatch.setattr(inspection, "SAMPLES_PER_JOB", 2)
    counts: list[tuple[int, int]] = []
    one, two = (inspect(drawn.root, num_workers=n, on_progress=lambda *numbers: counts.append(numbers)) for n in (0, 2))
    assert one == two
    assert counts == [(2, 6), (4, 6), (6, 6)] * 2


def test_mask_files_are_checked_for_values_and_type(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    for side in ("images", "masks"):
        (tmp_path / side).mkdir()
    for name, values, kind in (("a", 2, "png"), ("b", 3, "png"), ("c", 2, "jpg"), ("d", 1, "png")):
        Image.fromarray(rng.integers(0, 255, (64, 64, 3), np.uint8)).save(tmp_path / "images" / f"{name}.png")
        mask = np.zeros((64, 64), np.uint8)
        for level in range(1, values):
            mask[10 * level : 10 * level + 9, 5:60] = 255 // level
        Image.fromarray(mask).save(tmp_path / "masks" / f"{name}.{kind}")
    found = inspect(tmp_path, prompt="thing", group="(.)").findings
    assert [(each.code, each.location) for each in found] == [
        ("gray_mask", "b.png: 'thing'"),
        ("lossy_mask", "c.png: 'thing'"),
        ("empty_mask", "d.png: 'thing'"),
    ]
    assert found[0].message == "b.png has 3 values (0, 127, 255)"
    Image.new("L", (32, 64), 255).save(tmp_path / "masks" / "d.png")
    found = inspect(tmp_path, prompt="thing", group="(.)").findings
    assert found[2].code == "size_mismatch"
    unlike = ", unequal in height and width: stretched, cropped or padded"
    assert found[2].remedy == "use the image that was annotated, or draw the masks again"
    assert found[2].message == f"was drawn at 64 x 32 for an image of 64 x 64 (h x w), ratio 1 x 0.5{unlike}"


def test_personal_dicom_tags_give_a_warning_without_their_values(drawn: Any) -> None:
    pixels = np.asarray(Image.open(drawn.image(0)).convert("L"))
    drawn.image(0).unlink()
    write_xa(drawn.root / "images" / "a.dcm", pixels[None], PatientName="Wang^Xiaoming", StudyID=None)
    drawn.entries[0]["image"] = "images/a.dcm"
    (finding,) = drawn.findings()
    assert (finding.code, finding.location) == ("personal_name", "entry 0 (images/a.dcm)")
    assert finding.message == "the DICOM tags PatientName, PatientID are filled in"


def test_counts_of_images_pairs_objects_and_groups(drawn: Any) -> None:
    entries = drawn.entries
    square = [[9, 9, 60, 9, 60, 60, 9, 60]]
    entries[0].update(mask=[square, [[70, 70, 90, 70, 90, 90]], None], text=["v", "v", "w"])
    entries[1].update(mask=[square], text=["v"], group=entries[0]["group"])
    del entries[2:]
    drawn.write()
    assert counts(inspect(drawn.root, num_workers=0).parts[""].samples) == {
        "images": 2,
        "pairs": 3,
        "objects": 3,
        "absent": 1,
        "groups": 1,
        "phrases": {"v": 2, "w": 1},
    }


def test_frames_of_one_clip_may_be_similar(drawn: Any) -> None:
    names = []
    for i in range(3):
        shutil.copy(drawn.image(0), drawn.root / "images" / f"frame{i}.png")
        names.append(f"images/frame{i}.png")
    masks = [[mask] * 3 for mask in drawn.entries[0]["mask"]]
    clip = {"video": names, "mask": masks, "text": drawn.entries[0]["text"], "group": "clip"}
    drawn.write(entries=[clip, *drawn.entries[1:]])
    drawn.image(0).unlink()
    assert drawn.findings() == ()


def in_two_folds(set_: Any) -> None:
    for number in (1, 2):
        held = set_.entries[3 * (number - 1) : 3 * number]
        set_.write(f"fold{number}.train", [entry for entry in set_.entries if entry not in held])
        set_.write(f"fold{number}.val", held)


def test_splits_are_compared_within_folds_and_images_are_counted_once(drawn: Any) -> None:
    in_two_folds(drawn)
    report = drawn.check()
    assert report.findings == ()
    assert report.counts["images"] == 6 and len(report.counts["splits"]) == 4
    drawn.entries[0]["group"] = drawn.entries[5]["group"]
    in_two_folds(drawn)
    leaks = [each.message for each in drawn.findings() if each.code == "group_leak"]
    assert leaks == [f"is in 2 splits: 1 image in fold{n}.train, 1 image in fold{n}.val" for n in (1, 2)]


def test_names_of_splits_determine_which_must_be_disjoint() -> None:
    assert families(["train", "val", "test"]) == [{"train", "val", "test"}]
    folds = ["f1.train", "f1.val", "f2.train", "f2.val"]
    assert families([*folds, "test"]) == [{"f1.train", "f1.val", "test"}, {"f2.train", "f2.val", "test"}]
    assert families(["train.v1", "val.v1"]) == [{"train.v1", "val.v1"}]


def test_images_of_other_splits_are_not_unlisted(drawn: Any) -> None:
    in_two_splits(drawn)
    assert inspect(drawn.root / "annotations.train.json", num_workers=0).findings == ()


def test_similar_images_in_one_group_give_no_finding(drawn: Any) -> None:
    image = Image.open(drawn.image(0)).convert("RGB")
    ImageEnhance.Brightness(image).enhance(0.85).save(drawn.root / "images" / "again.png")
    again = {**drawn.entries[0], "image": "images/again.png"}
    drawn.write(entries=[*drawn.entries, again])
    assert drawn.findings() == ()
    drawn.write(entries=[*drawn.entries, {**again, "group": "other"}])
    assert [each.code for each in drawn.findings()] == ["near_duplicate"]


def test_an_unknown_mask_value_is_reported_once_per_file(tmp_path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (8, 8, 3), np.uint8)).save(tmp_path / "a.png")
    levels = np.arange(64, dtype=np.uint8).reshape(8, 8) % 4
    Image.fromarray(levels).save(tmp_path / "m.png")
    masks = tuple((MaskFile(tmp_path / "m.png", (value,), (1, 2)),) for value in (1, 2))
    (found,) = inspection.inspect_sample(Sample("a", tmp_path / "a.png", ("v", "w"), masks)).findings
    assert found.code == "unknown_mask_value"


def clusters(perceptual: np.ndarray, textures: np.ndarray) -> list[list[int]]:
    hashes = [
        ImageHashes(str(i), bits.tobytes().hex(), texture.tobytes())
        for i, (bits, texture) in enumerate(zip(perceptual, textures, strict=True))
    ]
    return near_clusters(hashes, [each.pixel_hash for each in hashes])


def test_near_duplicates_among_thousands_are_those_of_a_comparison_of_all_pairs() -> None:
    rng = np.random.default_rng(0)
    n = 1500
    perceptual = rng.integers(0, 256, (n, 32), dtype=np.uint8)
    textures = rng.integers(-100, 100, (n, 400)).astype(np.int8)
    for copy, original, bits in ((700, 3, 24), (1400, 700, 20), (900, 5, 25), (1000, 6, 24)):
        perceptual[copy] = perceptual[original]
        perceptual[copy, : bits // 8] ^= 255
        perceptual[copy, 31] ^= (1 << bits % 8) - 1
        textures[copy] = textures[original]
    textures[1000] = -textures[6]
    assert clusters(perceptual, textures) == [[3, 700, 1400]]


def test_equal_images_form_one_cluster() -> None:
    perceptual, textures = np.zeros((600, 32), np.uint8), np.ones((600, 400), np.int8)
    assert clusters(perceptual, textures) == [list(range(600))]
    assert clusters(perceptual, 0 * textures) == []


def test_the_command_prints_a_table_and_fails_for_errors(drawn: Any, capsys: pytest.CaptureFixture[str]) -> None:
    drawn.entries[1]["mask"][0] = [[1, 1, 5, 5]]
    drawn.entries[2]["mask"][0] = [[1, 1, 5, 5]]
    del drawn.entries[3]["group"]
    drawn.write()
    assert main(["check", str(drawn.root)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{drawn.root}: format vesalius"
    assert lines[-7:] == [
        "error    too_few_points      2  entry 1 (images/synth_00001.png): 'blood vessel'; "
        "entry 2 (images/synth_00002.png): 'blood vessel'",
        "  has 2 points; at least 3 are needed",
        f"  {CODES['too_few_points'].remedy}",
        "warning  no_groups           1  annotations.json",
        "  1 of 6 images has no patient or sequence: each is its own group, and splits cannot keep frames of one "
        "patient together",
        f"  {CODES['no_groups'].remedy}",
        "2 errors, 1 warning",
    ]
    assert main(["check", str(drawn.root), "-v"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "  entry 2 (images/synth_00002.png): 'blood vessel': has 2 points; at least 3 are needed" in lines
    assert main(["check", str(drawn.root), "--json"]) == 1
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (result["format"], result["failed"], result["counts"]["images"]) == ("vesalius", 2, 6)
    assert list(result["findings"][0]) == ["code", "severity", "file", "location", "message", "remedy", "samples"]


def test_each_remedy_has_a_row_and_each_file_its_name() -> None:
    def about(file: str, location: str, remedy: str = "mend") -> Finding:
        return Finding("unreadable_image", "error", file, location, f"{file} is odd", remedy)

    assert list_findings([about("d/A.dcm", "frame 0"), about("d/B.dcm", "entry 11 (b.png)", "turn")]) == [
        *("error    unreadable_image      1  A.dcm, frame 0", "  d/A.dcm is odd", "  mend"),
        *("error    unreadable_image      1  entry 11 (b.png)", "  d/B.dcm is odd", "  turn"),
        "2 errors, 0 warnings",
    ]
    many = list_findings([about(f"{i}.json", "") for i in range(7)])
    assert many[0].endswith("  0.json; 1.json; 2.json; 3.json; 4.json and 2 more")
    assert many[1:3] == ["  0.json: 0.json is odd", "  1.json: 1.json is odd"]


def test_a_short_rle_is_a_finding_with_numbers(drawn: Any) -> None:
    drawn.entries[0]["mask"][0] = {"size": [128, 128], "counts": [7]}
    (found,) = [each for each in drawn.findings() if each.code == "invalid_rle"]
    assert found.remedy == "encode the mask again"
    assert found.message == "the RLE runs cover 7 pixels, but the stated size 128 x 128 has 16384"


def test_a_long_list_of_locations_is_truncated(drawn: Any) -> None:
    for entry in drawn.entries:
        entry["mask"][0] = [[1, 1, 5, 5]]
    (row, *_) = list_findings(drawn.findings())
    assert row.count("entry") == 5
    assert row.endswith(" and 1 more")
    assert list_findings([]) == ["0 errors, 0 warnings"]
