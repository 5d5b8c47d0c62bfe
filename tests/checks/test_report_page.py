"""The report page of a check: contents, limits, anonymity, and thumbnails."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.checks.datasets import write_broken, write_data
from tests.codes import raises_code
from tests.html_pages import Tags

from vesalius.checks import report_page, thumbnails
from vesalius.checks.inspection import Report, inspect
from vesalius.checks.report_page import MAX_FLAGGED, MAX_GOOD, find_flagged, write_page
from vesalius.cli import main
from vesalius.colors import PHRASE_COLORS
from vesalius.errors import ImageError, OutputError, SettingError
from vesalius.masks import encode_rle, rasterize
from vesalius.types import MaskFile, Polygons, RleMask, Sample


def make(data: Path, out: Path) -> tuple[Report, Tags]:
    report = inspect(data, num_workers=0)
    page = write_page(report, out, num_workers=0)
    assert page == out / "check.html"
    return report, Tags(page.read_text(encoding="utf-8"))


@pytest.fixture(autouse=True)
def few_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_page, "EXAMPLES", 4)


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    return write_broken(tmp_path)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Report, Tags, Path]:
    """The page of `write_broken`."""
    folder = tmp_path_factory.mktemp("made")
    return *make(write_broken(folder), folder / "out"), folder / "out"


def test_the_page_has_findings_remedies_counts_and_pictures(made: tuple[Report, Tags, Path]) -> None:
    report, page, out = made
    assert sorted(path.name for path in out.iterdir()) == ["augmented.png", "check.html", "findings.json"]
    text = " ".join(page.text.split())
    assert "data Format vesalius" in text
    for finding in report.findings:
        assert finding.code in text
        assert " ".join(finding.remedy.split()) in text
        assert " ".join(finding.message.split()) in text
    assert "as stated" in text and "rescaled to the image" in text
    assert "0 bytes" in text
    assert [each["id"] for each in page.named("section")] == [
        *("findings", "flagged", "good", "distributions", "augmented")
    ]
    # a picture of each readable sample except the empty file, and one of augmented samples
    assert len(page.named("img")) == 6
    assert len([each for each in page.named("div") if each.get("class") == "none"]) == 1


def test_findings_json_is_strict_and_complete(made: tuple[Report, Tags, Path]) -> None:
    report, _, out = made
    text = (out / "findings.json").read_text(encoding="utf-8")
    saved = json.loads(text, parse_constant=pytest.fail)
    assert saved["formats"] == ["vesalius"] and saved["counts"] == report.counts
    assert [each["code"] for each in saved["findings"]] == [each.code for each in report.findings]
    assert set(saved["findings"][0]) == {*("code", "severity", "file", "location", "message", "remedy", "samples")}


def test_phrases_and_file_names_in_any_script_are_shown(made: tuple[Report, Tags, Path]) -> None:
    _, page, _ = made
    assert "冠状动脉左前降支" in page.text and "左冠 & <b>1" in page.text


def test_thumbnails_are_small(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", [{}, {"size": [300, 1800]}], size=(300, 900))
    _, page = make(data, tmp_path / "out")
    for picture in page.named("img")[:2]:
        coded = (picture["src"] or "").partition(",")[2]
        assert max(Image.open(io.BytesIO(base64.b64decode(coded))).size) == thumbnails.SIDE


def test_samples_beyond_the_limit_are_counted_and_codes_take_turns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    n = MAX_FLAGGED + 10
    rows: list[dict[str, Any]] = [{"size": [128, 192]} for _ in range(n)]
    rows += [{"mask": [[[1.0, 1.0, 1.1, 1.0, 1.0, 1.1]]]}, *({} for _ in range(MAX_GOOD + 5))]
    data = write_data(tmp_path / "data", rows, size=(16, 24))
    # the square exceeds these images, but the finding is about the size
    report = inspect(data, num_workers=0)
    order = list(find_flagged(report).values())
    assert ("empty_mask",) in order[:3] and len(order) > n
    monkeypatch.setattr(thumbnails, "SIDE", 16)
    _, page = make(data, tmp_path / "out")
    text = " ".join(page.text.split())
    assert f"{MAX_FLAGGED} of {len(order)} are shown, round-robin over the codes" in text
    assert "The first 50 of" in text
    shown = len([each for each in page.named("img") if (each["alt"] or "").endswith("with its masks")])
    assert shown <= MAX_FLAGGED + MAX_GOOD


def test_errors_come_before_warnings(tmp_path: Path) -> None:
    border = {"mask": [[[-0.5, 5.0, 30.0, 5.0, 30.0, 30.0]]]}
    rows: list[dict[str, Any]] = [border, border, {"size": [128, 192]}, {"size": [32, 48]}]
    order = find_flagged(inspect(write_data(tmp_path / "data", rows), num_workers=0))
    assert list(order.values()) == [
        ("size_mismatch",),
        ("size_mismatch",),
        ("border_overshoot",),
        ("border_overshoot",),
    ]


def test_the_seed_determines_the_samples_without_findings(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", [{} for _ in range(MAX_GOOD + 8)], size=(40, 48))
    report = inspect(data, num_workers=0)
    pages = [
        write_page(report, tmp_path / str(i), num_workers=0, seed=seed).read_text() for i, seed in enumerate((0, 0, 1))
    ]
    assert pages[0] == pages[1] != pages[2]
    assert f"{MAX_GOOD} samples, chosen at random" in pages[0]


def test_names_of_persons_are_hidden_in_captions(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", [{"image": "WANG_Li.png"}, {"image": "Müller_Jan.png", "size": [9, 9]}])
    _, page = make(data, tmp_path / "out")
    (data / "WANG_Li.png").write_bytes(b"")
    _, cut = make(data, tmp_path / "cut")
    for each in (page, cut):
        assert "W***_L***" in each.text
        assert not any(name in each.text for name in ("WANG", "Müller"))
        assert not any(name in str(picture["alt"]) for picture in each.named("img") for name in ("WANG", "Müller"))


def test_summaries_are_not_counted(tmp_path: Path) -> None:
    _, page = make(write_data(tmp_path / "data", [{"size": [128, 192]}] * 3), tmp_path / "out")
    assert "size_mismatch × 3" in " ".join(page.text.split())


def test_a_clean_dataset_has_a_page_without_findings(tmp_path: Path) -> None:
    _, page = make(write_data(tmp_path / "data", [{}, {}]), tmp_path / "out")
    assert "No findings." in page.text
    assert "Samples with findings" not in page.text


def test_a_dataset_without_readable_images_has_a_page(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", [{}])
    (data / "000.png").write_bytes(b"")
    _, page = make(data, tmp_path / "out")
    assert "nothing to augment" in page.text and "Every sample has findings." in page.text
    assert not (tmp_path / "out" / "augmented.png").exists()


def test_samples_show_their_split(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", [{}, {"size": [128, 192]}])
    entries = json.loads((data / "annotations.json").read_text())
    for split in ("train", "val"):
        (data / f"annotations.{split}.json").write_text(json.dumps(entries))
    (data / "annotations.json").unlink()
    report, page = make(data, tmp_path / "out")
    assert set(find_flagged(report)) == {(split, i) for split in ("train", "val") for i in (0, 1)}
    assert page.text.count("· train") == page.text.count("· val") == 2
    assert "data/train, data/val" in page.text and "images in val" in page.text


def test_only_an_older_report_is_replaced(broken: Path, tmp_path: Path) -> None:
    make(broken, tmp_path / "out")
    make(broken, tmp_path / "out")
    (tmp_path / "out" / "mine.txt").touch()
    with raises_code(OutputError, "not_replaceable", "mine.txt"):
        make(broken, tmp_path / "out")
    assert main(["check", str(broken), "--report", str(broken), "--num-workers", "0"]) == 1
    assert not (broken / "check.html").exists()


def test_the_command_prints_the_path_of_the_page(
    broken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(broken), "--report", str(tmp_path / "out"), "--num-workers", "0"]) == 1
    assert f"report: {tmp_path / 'out' / 'check.html'}" in capsys.readouterr().out


def test_a_failed_report_leaves_no_files(broken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    report = inspect(broken, num_workers=0)
    monkeypatch.setattr(report_page, "write_text", fail)
    with raises_code(OutputError, "write_failed"):
        write_page(report, tmp_path / "out", num_workers=0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]


def gray(path: Path, size: tuple[int, int] = (64, 96)) -> Path:
    Image.fromarray(np.full(size, 90, np.uint8)).save(path)
    return path


def where(picture: Image.Image, color: tuple[int, int, int]) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of the pixels of this color, relative to the picture."""
    near = np.abs(np.asarray(picture, dtype=int) - color).max(axis=2) < 50
    rows, columns = np.nonzero(near)
    height, width = near.shape
    return columns.min() / width, rows.min() / height, columns.max() / width, rows.max() / height


BOX = Polygons(((24.0, 16.0, 72.0, 16.0, 72.0, 48.0, 24.0, 48.0),))


def test_outlines_lie_where_the_mask_is(tmp_path: Path) -> None:
    mask = rasterize(BOX.parts, (64, 96))
    Image.fromarray(mask).save(tmp_path / "m.png")
    for reference in (BOX, RleMask(encode_rle(mask)), MaskFile(tmp_path / "m.png")):
        drawn = thumbnails.draw(Sample("a", gray(tmp_path / "a.png"), ("v",), ((reference,),)))
        assert drawn.picture.size == (320, 213)
        assert drawn.legend == ((PHRASE_COLORS[0], "v"),) and drawn.undrawn == ()
        assert where(drawn.picture, PHRASE_COLORS[0]) == pytest.approx((0.25, 0.25, 0.75, 0.75), abs=0.02)


def test_masks_of_another_size_are_drawn_as_stated_and_rescaled(tmp_path: Path) -> None:
    twice = Polygons((tuple(2 * value for value in BOX.parts[0]),))
    rle = RleMask(encode_rle(rasterize(twice.parts, (128, 192))))
    for reference, size in ((twice, (128, 192)), (rle, None)):
        drawn = thumbnails.draw(Sample("a", gray(tmp_path / "a.png"), ("v",), ((reference,),), size=size))
        assert [words for _, words in drawn.legend] == ["as stated", "rescaled to the image"]
        left, top, right, bottom = where(drawn.picture, thumbnails.RESCALED)
        right_most, lowest = where(drawn.picture, thumbnails.AS_STATED)[2:]
        # the canvas extends to the stated coordinates
        assert (right / right_most, bottom / lowest) == pytest.approx((0.5, 0.5), abs=0.03)
        assert (left / right, top / bottom) == pytest.approx((1 / 3, 1 / 3), abs=0.03)


def test_outlines_outside_are_shown_up_to_one_side_of_the_image(tmp_path: Path) -> None:
    for far in (150.0, 1e5, 1e300):
        over = Polygons(((48.0, 16.0, far, 16.0, far, 48.0, 48.0, 48.0),))
        picture = thumbnails.draw(Sample("a", gray(tmp_path / "a.png"), ("v",), ((over,),))).picture
        shown = min(far, 192)
        assert picture.width / picture.height == pytest.approx(shown / 64, abs=0.05)
        gray_part = (np.abs(np.asarray(picture, dtype=int) - 90).max(axis=2) < 10)[-3]
        assert gray_part.mean() == pytest.approx(96 / shown, abs=0.02)


def test_outlines_far_to_the_left_and_above_are_clipped_too(tmp_path: Path) -> None:
    over = Polygons(((48.0, 16.0, -1e9, -1e9, 48.0, 48.0),))
    picture = thumbnails.draw(Sample("a", gray(tmp_path / "a.png"), ("v",), ((over,),))).picture
    assert picture.width / picture.height == pytest.approx(192 / 128, abs=0.02)
    assert np.asarray(picture)[-3, -3].tolist() == [90, 90, 90]


@pytest.mark.parametrize(
    "part", [(), (1.0,), (1.0, 2.0), (float("nan"),) * 6, (float("inf"), 1.0, 2.0, 2.0), (5.0, 5.0, 9.0, 9.0)]
)
def test_degenerate_polygons_are_ignored(tmp_path: Path, part: tuple[float, ...]) -> None:
    sample = Sample("a", gray(tmp_path / "a.png"), ("v",), ((Polygons((part, *BOX.parts)),),))
    assert thumbnails.draw(sample).undrawn == ()


def test_invalid_masks_are_listed_and_the_others_drawn(tmp_path: Path) -> None:
    bad = RleMask({"size": [64, 96], "counts": [5]})
    huge = RleMask({"size": [10**9, 10**9], "counts": [10**18]})
    gone = MaskFile(tmp_path / "none.png")
    drawn = thumbnails.draw(Sample("a", gray(tmp_path / "a.png"), ("v", "w"), ((bad, huge, gone), (BOX,))))
    assert [each[:3] for each in drawn.undrawn] == ["'v'"] * 3
    assert where(drawn.picture, PHRASE_COLORS[1]) == pytest.approx((0.25, 0.25, 0.75, 0.75), abs=0.02)


@pytest.mark.parametrize("size", [(1, 1), (1, 4000), (4000, 1)])
def test_images_of_any_shape_are_drawn(tmp_path: Path, size: tuple[int, int]) -> None:
    drawn = thumbnails.draw(Sample("a", gray(tmp_path / "a.png", size), (), None))
    assert max(drawn.picture.size) == thumbnails.SIDE


def test_an_unreadable_image_raises(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"x")
    with pytest.raises(ImageError):
        thumbnails.draw(Sample("a", tmp_path / "a.png", (), None))


def test_a_report_inside_the_data_is_refused(broken: Path) -> None:
    with raises_code(SettingError, "output_inside_data"):
        make(broken, broken / "report")
