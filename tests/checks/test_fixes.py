"""Corrected copies: unambiguous faults are corrected, other faulty objects dropped, and all changes listed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import binary_dilation
from tests.checks.datasets import SQUARE, write_data
from tests.codes import raises_code

from vesalius.checks.fixes import Fixes, check_folder, write_fixed
from vesalius.checks.inspection import Report, inspect
from vesalius.cli import main
from vesalius.data.dataset import load_item, load_samples
from vesalius.errors import AnnotationError, OutputError, SettingError
from vesalius.masks import EIGHT_CONNECTED, encode_rle, rasterize
from vesalius.types import Polygons

OTHER = [[20.0, 20.0, 50.0, 20.0, 50.0, 40.0, 20.0, 40.0]]
FIXED = set(
    "size_mismatch outside_image too_few_points not_finite zero_area invalid_rle empty_mask unreadable_image "
    "missing_image invalid_annotation phrase_count_mismatch no_phrase duplicate_id unpaired_file repeated_phrase "
    "mixed_nesting".split()
)
"""Codes without findings in a corrected copy."""
COUNTS = {
    **{"kept": 7, "rescaled": 1, "merged": 1, "clipped": 1},
    **{"images dropped": 9, "phrases dropped": 4, "parts dropped": 3},
}
ONE_SHAPE = {"shape_type": "polygon", "group_id": None, "flags": {}}


def picture(path: Path, value: int, size: tuple[int, int] = (64, 96)) -> None:
    """An image of noise, so that no two are similar."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(value).integers(0, 256, size, np.uint8)).save(path)


def fix(data: Path, out: Path, **options: Any) -> tuple[Report, Fixes]:
    report = inspect(data, num_workers=0, **options)
    return report, write_fixed(report, out, num_workers=0)


def listed(out: Path) -> dict[str, Any]:
    return json.loads((out / "fixes.json").read_text(encoding="utf-8"))


def codes(report: Report | Fixes) -> Counter[str]:
    findings = report.findings if isinstance(report, Report) else report.remaining
    return Counter(finding.code for finding in findings)


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """Sixteen entries, most of them with faults; see `test_every_fault_is_fixed_or_dropped_and_listed`."""
    data = tmp_path / "data"
    for value, name in enumerate("abcdefghijklmnop"):
        picture(data / "images" / f"{name}.png", value)
    shutil.copy(data / "images" / "a.png", data / "images" / "b.png")
    (data / "images" / "g.png").write_bytes(b"")
    whole = dict(encode_rle(rasterize(OTHER, (64, 96))))
    over = [[80.0, 10.0, 98.0, 10.0, 98.0, 50.0]]
    far = [[80.0, 10.0, 120.0, 10.0, 120.0, 50.0]]
    nothing = [[3.1, 3.1, 3.2, 3.1, 3.1, 3.2]]
    rows: list[tuple[str, list[Any], list[str], dict[str, Any]]] = [
        ("a", [SQUARE], ["v"], {}),
        ("b", [SQUARE], ["v"], {}),  # the same image with the same mask
        ("c", [SQUARE], ["v"], {"size": [128, 192]}),
        ("d", [over], ["v"], {"size": [64, 96]}),
        ("e", [far, SQUARE], ["v", "w"], {}),  # the size it was drawn on is unknown
        ("f", [SQUARE, whole, SQUARE], ["v", "v", "w"], {}),
        ("g", [SQUARE], ["v"], {}),
        ("h", [[*SQUARE, [1.0, 2.0], [5.0, 5.0, 6.0, 6.0, 7.0, 7.0]]], ["v"], {}),
        ("i", [nothing], ["v"], {}),
        ("j", [SQUARE, None], ["v", "w"], {"group": "p1"}),
        ("k", [SQUARE], ["v", "w"], {}),  # one text too many
        ("l", [{"size": [64, 96], "counts": [7]}], ["v"], {}),
        ("m", [SQUARE[0]], ["v"], {}),  # flat
        ("n", [[[1.0, 1.0, float("nan"), 5.0]]], ["v"], {}),
        ("o", [SQUARE], ["v"], {"size": [96, 64]}),  # rotated
        ("none", [SQUARE], ["v"], {}),
    ]
    entries = [{"image": f"{name}.png", "mask": m, "text": t, **more} for name, m, t, more in rows]
    (data / "annotations.json").write_text(json.dumps(entries), encoding="utf-8")
    return data


def test_every_fault_is_fixed_or_dropped_and_listed(broken: Path, tmp_path: Path) -> None:
    before = sorted((path, path.stat().st_mtime_ns) for path in broken.rglob("*") if path.is_file())
    report, fixes = fix(broken, tmp_path / "out")
    found = "size_mismatch outside_image unreadable_image too_few_points zero_area empty_mask invalid_rle"
    assert set(found.split()) <= codes(report).keys()

    fixes_json = listed(tmp_path / "out")
    assert {action: [each["id"] for each in fixes_json[action]] for action in ("rescaled", "merged", "clipped")} == {
        "rescaled": ["c"],
        "merged": ["f"],
        "clipped": ["d"],
    }
    dropped = [(each["id"], each["part"]) for each in fixes_json["dropped"]]
    assert dropped == [
        ("", dropped[0][1]),
        ("", dropped[1][1]),
        ("b", "image"),
        ("e", "image"),
        ("g", "image"),
        ("h", "'v', polygon 1"),
        ("h", "'v', polygon 2"),
        *[("i", "'v'"), ("i", "image"), ("l", "'v'"), ("l", "image")],
        *[("n", "'v', polygon 0"), ("n", "'v'"), ("n", "image"), ("o", "'v'"), ("o", "image")],
    ]
    assert "k.png" in dropped[0][1] and "none" in dropped[1][1] + fixes_json["dropped"][1]["reason"]
    assert all(each["reason"] for action in ("rescaled", "merged", "clipped", "dropped") for each in fixes_json[action])
    assert fixes_json["kept"] == fixes.kept == 7
    assert fixes.counts == COUNTS

    after = inspect(tmp_path / "out", num_workers=0)
    assert not codes(after).keys() & FIXED
    assert codes(after) == codes(fixes) and fixes.errors == 0
    assert [sample.id for sample in after.parts[""].samples] == list("acdfhjm")
    assert fixes_json["remaining"] == [
        {**vars(finding), "samples": list(finding.samples)} for finding in after.findings
    ]
    assert sorted((path, path.stat().st_mtime_ns) for path in broken.rglob("*") if path.is_file()) == before


def test_kept_samples_have_their_original_masks(broken: Path, tmp_path: Path) -> None:
    fix(broken, tmp_path / "out")
    kept = {sample.id: sample for sample in load_samples(tmp_path / "out")}
    assert {name for name, sample in kept.items() if sample.group == "p1"} == {"j"}
    expected = {
        "a": [SQUARE],
        "c": [[[value / 2 for value in SQUARE[0]]]],
        "d": [[[80.0, 10.0, 98.0, 10.0, 98.0, 50.0]]],
        "f": [[*SQUARE, *OTHER], SQUARE],
        "h": [SQUARE],
        "j": [SQUARE, []],
        "m": [SQUARE],
    }
    assert kept.keys() == expected.keys()
    for name, sample in kept.items():
        truth = np.stack([rasterize(parts, (64, 96)) for parts in expected[name]])
        masks = load_item(sample).masks
        assert masks is not None
        np.testing.assert_array_equal(masks[:, 0], truth, err_msg=name)


def test_fixing_a_copy_changes_nothing(broken: Path, tmp_path: Path) -> None:
    fix(broken, tmp_path / "out")
    _, again = fix(tmp_path / "out", tmp_path / "again")
    assert again.changes == ()
    first, second = ((tmp_path / name / "annotations.json").read_text(encoding="utf-8") for name in ("out", "again"))
    assert first == second


def write_labelme(folder: Path, shapes: Sequence[tuple[str, Sequence[float]]], name: str, scale: float) -> None:
    """A LabelMe file for an image of 512 x 512 that was annotated at `scale` times its size."""
    side = round(512 * scale)
    value = {
        "version": "5.5.0",
        "flags": {},
        "shapes": [
            {"label": label, "points": (np.reshape(part, (-1, 2)) * scale).round(3).tolist(), **ONE_SHAPE}
            for label, part in shapes
        ],
        "imagePath": name,
        "imageData": None,
        "imageHeight": side,
        "imageWidth": side,
    }
    (folder / name).with_suffix(".json").write_text(json.dumps(value), encoding="utf-8")


def boundary_distance(a: np.ndarray, b: np.ndarray) -> int:
    """Largest distance between the boundaries of two masks in whole pixels (8-connected), up to 9."""
    edges = [mask & binary_dilation(~mask, EIGHT_CONNECTED, border_value=True) for mask in (a, b)]
    for distance in range(9):
        if all(not (edges[i] & ~edges[1 - i]).any() for i in (0, 1)) or distance == 8:
            return distance
        near = [binary_dilation(edge, EIGHT_CONNECTED, iterations=distance + 1) for edge in edges]
        if all(not (edges[i] & ~near[1 - i]).any() for i in (0, 1)):
            return distance + 1
    return 9


def check_labelme(data: Path, out: Path, truth: dict[str, dict[str, np.ndarray]], scaled: set[str]) -> None:
    """Half of the images were annotated at 800 x 800: check finds it, and --fix corrects it to within a pixel."""
    assert main(["check", str(data), "--num-workers", "0"]) == 1
    report = inspect(data, num_workers=0)
    found = {name for finding in report.findings if finding.code == "size_mismatch" for name in finding.samples}
    assert found == scaled

    assert main(["check", str(data), "--fix", str(out), "--num-workers", "0"]) == 0
    assert {each["id"] for each in listed(out)["rescaled"]} == scaled
    assert listed(out)["dropped"] == []
    samples = load_samples(out)
    assert {sample.id for sample in samples} == truth.keys()
    for sample in samples:
        item = load_item(sample)
        assert item.masks is not None and item.size == (512, 512)
        for prompt, mask in zip(item.prompts, item.masks[:, 0], strict=True):
            assert boundary_distance(mask, truth[sample.id][prompt]) <= 1
            if sample.id not in scaled:
                np.testing.assert_array_equal(mask, truth[sample.id][prompt])


def test_labelme_at_another_size_is_found_and_corrected(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    truth, scaled = {}, set()
    for index in range(6):
        name = f"image_{index}"
        picture(tmp_path / "data" / f"{name}.png", index, (512, 512))
        x = np.linspace(60, 450, 40)
        y = 256 + 120 * np.sin(x / rng.uniform(40, 90))
        line = np.concatenate([np.stack([x, y - 4], 1), np.stack([x, y + 4], 1)[::-1]]).round(2)
        shapes = [("vessel", line.ravel().tolist()), ("扩张", (line.ravel() / 4 + 9).round(2).tolist())]
        truth[name] = {label: rasterize([part], (512, 512)) for label, part in shapes}
        write_labelme(tmp_path / "data", shapes, f"{name}.png", 800 / 512 if index % 2 else 1)
        scaled |= {name} if index % 2 else set()
    check_labelme(tmp_path / "data", tmp_path / "out", truth, scaled)


def test_real_angiograms_in_labelme_at_another_size_are_corrected(shared: Path, tmp_path: Path) -> None:
    samples = load_samples(shared / "data" / "arcade", split="train")[:20]
    (tmp_path / "data").mkdir()
    truth, scaled = {}, set()
    for index, sample in enumerate(samples):
        (tmp_path / "data" / sample.image.name).symlink_to(sample.image)
        shapes = [
            (prompt, part)
            for prompt, objects in zip(sample.prompts, sample.masks or (), strict=True)
            for each in objects
            if isinstance(each, Polygons)
            for part in each.parts
        ]
        truth[sample.id] = {
            prompt: rasterize([part for label, part in shapes if label == prompt], (512, 512))
            for prompt in sample.prompts
        }
        write_labelme(tmp_path / "data", shapes, sample.image.name, 800 / 512 if index % 2 else 1)
        scaled |= {sample.id} if index % 2 else set()
    check_labelme(tmp_path / "data", tmp_path / "out", truth, scaled)


def test_every_split_has_its_file_and_a_shared_image_is_copied_once(tmp_path: Path) -> None:
    data = tmp_path / "data"
    for value, name in enumerate(("a.png", "b.png", "images/b.png")):
        picture(data / name, value)
    parts = {"train": ["a.png", "b.png"], "val": ["a.png", "images/b.png"]}
    for split, names in parts.items():
        entries = [{"image": name, "mask": [SQUARE], "text": ["v"], "size": [128, 192]} for name in names]
        (data / f"annotations.{split}.json").write_text(json.dumps(entries))
    (data / "images" / "b.png").rename(data / "images" / "c.png")
    shutil.copy(data / "images" / "c.png", data / "images" / "b.png")
    _, fixes = fix(data, tmp_path / "out")
    out = tmp_path / "out"
    assert sorted(path.name for path in out.iterdir()) == [
        *("annotations.train.json", "annotations.val.json", "fixes.json", "images")
    ]
    assert codes(fixes)["image_leak"] >= 1  # the same image in two splits stays an error
    assert fixes.errors >= 1 and main(["check", str(data), "--fix", str(tmp_path / "two"), "--num-workers", "0"]) == 1
    for split, names in parts.items():
        samples = load_samples(out, split=split)
        assert [sample.image.read_bytes() for sample in samples] == [
            (data / ("b.png" if name == "b.png" else name)).read_bytes() for name in names
        ]


def test_different_images_with_equal_ids_in_two_splits_get_different_names(tmp_path: Path) -> None:
    for value, (split, name) in enumerate({"train": "a.png", "val": "a.bmp"}.items()):
        picture(tmp_path / "data" / name, value)
        entry = {"image": name, "mask": [SQUARE], "text": ["v"]}
        (tmp_path / "data" / f"annotations.{split}.json").write_text(json.dumps([entry]))
    fix(tmp_path / "data", tmp_path / "out")
    assert [sample.id for sample in load_samples(tmp_path / "out", split="train")] == ["a"]
    assert [sample.id for sample in load_samples(tmp_path / "out", split="val")] == ["a__val"]


def test_an_image_mask_folder_becomes_rle_and_keeps_findings_about_its_files(tmp_path: Path) -> None:
    mask = rasterize(SQUARE, (64, 96))
    for value, name in enumerate("abc"):
        picture(tmp_path / "data" / "images" / f"{name}.png", value)
        (tmp_path / "data" / "masks").mkdir(exist_ok=True)
        Image.fromarray(mask).save(tmp_path / "data" / "masks" / f"{name}.png")
    Image.fromarray(mask * np.uint8(255)).save(tmp_path / "data" / "masks" / "a.jpg")
    (tmp_path / "data" / "masks" / "a.png").unlink()
    (tmp_path / "data" / "masks" / "c.png").unlink()
    report, fixes = fix(tmp_path / "data", tmp_path / "out", prompt="blood vessel")
    assert codes(report)["unpaired_file"] == 1
    assert [(change.id, change.action) for change in fixes.changes] == [("", "dropped")]
    assert codes(fixes)["lossy_mask"] == 1
    a, b = load_samples(tmp_path / "out")
    assert (a.id, b.id) == ("a", "b") and b.prompts == ("blood vessel",)
    masks = load_item(b).masks
    assert masks is not None
    np.testing.assert_array_equal(masks[0, 0], mask)


def test_equal_frames_of_a_clip_are_kept(tmp_path: Path) -> None:
    picture(tmp_path / "data" / "clip" / "0.png", 0)
    shutil.copy(tmp_path / "data" / "clip" / "0.png", tmp_path / "data" / "clip" / "1.png")
    entry = {"video": ["clip/0.png", "clip/1.png"], "mask": [[SQUARE, SQUARE]], "text": ["v"]}
    (tmp_path / "data" / "annotations.json").write_text(json.dumps([entry]))
    _, fixes = fix(tmp_path / "data", tmp_path / "out")
    assert fixes.kept == 2
    assert [sample.sequence for sample in load_samples(tmp_path / "out")] == ["clip", "clip"]


def test_a_copy_without_images_is_an_error_and_not_written(tmp_path: Path) -> None:
    picture(tmp_path / "data" / "a.png", 0)
    entry = {"image": "a.png", "mask": [[[1.0, 2.0]]], "text": ["v"]}
    (tmp_path / "data" / "annotations.json").write_text(json.dumps([entry]))
    with raises_code(AnnotationError, "nothing_kept"):
        fix(tmp_path / "data", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]


def test_an_unreadable_annotation_file_is_an_error(broken: Path, tmp_path: Path) -> None:
    (broken / "annotations.json").rename(broken / "annotations.train.json")
    (broken / "annotations.val.json").write_text("{}")
    with pytest.raises(AnnotationError, match=r"annotations\.val\.json"):
        fix(broken, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_output_in_the_dataset_or_in_a_folder_with_content_is_refused(broken: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").touch()
    (tmp_path / "link").symlink_to(broken)
    for out in (broken, broken / "fixed", broken / "images" / ".." / "x", tmp_path / "link" / "x"):
        for data in (broken, broken / "annotations.json"):
            with raises_code(SettingError, "output_inside_data"):
                check_folder(out, data)
    for out in (tmp_path / "full", tmp_path / "full" / "mine.txt"):
        with raises_code(OutputError, "output_exists"):
            check_folder(out, broken)
    check_folder(tmp_path / "new" / "deep", broken)
    (tmp_path / "empty").mkdir()
    check_folder(tmp_path / "empty", broken)
    assert main(["check", str(broken), "--fix", str(broken / "x"), "--num-workers", "0"]) == 1
    assert not (broken / "x").exists()


def test_the_command_prints_the_changes_and_fails_for_remaining_errors(
    broken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(broken), "--fix", str(tmp_path / "out"), "--json", "--num-workers", "0"]) == 0
    out, logged = capsys.readouterr()
    result = json.loads(out.splitlines()[-1])
    assert result["fixes"] == COUNTS
    assert result["failed"] == 0 and result["out"] == str(tmp_path / "out")
    did = "7 kept, 1 rescaled, 1 merged, 1 clipped, 9 images dropped, 4 phrases dropped, 3 parts dropped"
    assert did in logged
    assert f"in {broken}, 0 in {tmp_path / 'out'}" in logged


@pytest.mark.parametrize("n", [1, 2])
def test_several_entries_of_unknown_scale_give_a_finding_about_the_others(tmp_path: Path, n: int) -> None:
    far = [[80.0, 10.0, 120.0, 10.0, 120.0, 50.0]]
    entries = []
    for value in range(4):
        picture(tmp_path / "data" / f"{value}.png", value)
        masks = [SQUARE, far] if value < n else [SQUARE]
        entries.append({"image": f"{value}.png", "mask": masks, "text": ["v", "w"][: len(masks)]})
    (tmp_path / "data" / "annotations.json").write_text(json.dumps(entries))
    code = main(["check", str(tmp_path / "data"), "--fix", str(tmp_path / "out"), "--num-workers", "0"])
    assert [sample.id for sample in load_samples(tmp_path / "out")] == [str(i) for i in range(n, 4)]
    doubts = [each for each in listed(tmp_path / "out")["remaining"] if each["code"] == "outside_image"]
    assert code == len(doubts) == n - 1
    for doubt in doubts:
        assert doubt["message"].startswith("2 of 4 entries") and "same wrong scale" in doubt["message"]
        assert doubt["file"] == str(tmp_path / "out" / "annotations.json")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 128 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a small disk")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_is_an_error_and_leaves_nothing(tmp_path: Path, small_disk: Path) -> None:
    write_data(tmp_path / "data", [{}] * 4, (256, 256))  # 64 KiB each
    report = inspect(tmp_path / "data", num_workers=0)
    with raises_code(OutputError, "write_failed"):
        write_fixed(report, small_disk / "out", num_workers=0)
    assert list(small_disk.iterdir()) == []


def test_a_killed_job_leaves_no_copy(tmp_path: Path) -> None:
    write_data(tmp_path / "data", [{}] * 40)
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from vesalius.checks import fixes, inspection\n"
        "report = inspection.inspect(sys.argv[1], num_workers=0)\n"
        "def slowly(share, note):\n    time.sleep(0.05)\n"
        "fixes.write_fixed(report, Path(sys.argv[2]), num_workers=0, on_progress=slowly)\n"
    )
    job = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "data"), str(tmp_path / "out")])
    while not list(tmp_path.glob(".out.*.partial/images/*")):
        assert job.poll() is None
        time.sleep(0.01)
    os.kill(job.pid, signal.SIGKILL)
    job.wait()
    assert not (tmp_path / "out").exists()
    fix(tmp_path / "data", tmp_path / "out")  # the next job can run
    assert listed(tmp_path / "out")["kept"] == 40


def test_the_copy_does_not_depend_on_the_number_of_processes(broken: Path, tmp_path: Path) -> None:
    report = inspect(broken, num_workers=0)
    for name, num_workers in (("here", 0), ("there", 1)):
        write_fixed(report, tmp_path / name, num_workers=num_workers)
    here, there = ((tmp_path / name / "annotations.json").read_bytes() for name in ("here", "there"))
    assert here == there


def test_the_copy_shares_no_file_with_the_data(broken: Path, tmp_path: Path) -> None:
    fix(broken, tmp_path / "out")
    before = {path.stat().st_ino for path in (broken / "images").iterdir()}
    after = {path.stat().st_ino for path in (tmp_path / "out" / "images").iterdir()}
    assert after and not before & after
