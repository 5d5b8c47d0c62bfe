"""Prediction folders of clips: the same lines and masks as for single images, and overlay videos."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.codes import raises_code
from tests.video_files import read_video

from vesalius.data.clips import frame_rate, group_clips, open_clip
from vesalius.data.decoders import video
from vesalius.data.image_files import find_images
from vesalius.data.writers.overlay_video import write_overlay
from vesalius.errors import SettingError, UsageError
from vesalius.inference.official import OfficialPredictor
from vesalius.jobs.clip_folder import prepare_clips
from vesalius.jobs.folder import write_predictions
from vesalius.jobs.overlay_videos import write_masks
from vesalius.masks import decode_rle
from vesalius.types import Sample

av = pytest.importorskip("av", reason="needs the extra video")

PROMPTS = ["blood vessel", "catheter"]


@pytest.fixture
def predictor(small_predictor: OfficialPredictor) -> OfficialPredictor:
    return small_predictor


@pytest.fixture(scope="module")
def cine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six frames of 40 x 50, 12.5 a second, without loss."""
    path = tmp_path_factory.mktemp("cine") / "cine.mkv"
    y, x = np.mgrid[:40, :50]
    write_masks(path, ((y - 20) ** 2 + (x - 10 - 5 * t) ** 2 > 60 for t in range(6)), (40, 50), 12.5)
    return path


def predict(predictor: OfficialPredictor, samples: list[Sample], out: Path, **more: Any) -> list[dict[str, Any]]:
    save = more.pop("save", ["masks", "rle"])
    progress = more.pop("on_progress", lambda _: None)
    segmenter, asked, worker = prepare_clips(predictor, None, samples, PROMPTS, save, **more)
    write_predictions(segmenter, asked, PROMPTS, out, save=save, worker=worker, on_progress=progress)
    return [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("propagation", ["official", "sam2"])
def test_the_lines_of_a_clip_equal_the_predictions_of_its_frames(
    predictor: OfficialPredictor, cine: Path, tmp_path: Path, propagation: str
) -> None:
    rows = predict(predictor, find_images([cine]), tmp_path / "out", propagation=propagation)
    assert [(row["id"], row["prompt"]) for row in rows] == [
        (f"cine__{t:04d}", prompt) for t in range(6) for prompt in PROMPTS
    ]
    expected = list(predictor.predict_video(cine, PROMPTS, propagation=propagation))
    for t, frame in enumerate(expected):
        for row, prediction in zip(rows[2 * t : 2 * t + 2], frame.predictions, strict=True):
            np.testing.assert_array_equal(decode_rle(row["rle"]), prediction.mask)
            assert (np.asarray(Image.open(tmp_path / "out" / row["mask"])) > 0).sum() == prediction.mask.sum()
    settings = json.loads((tmp_path / "out" / "run.json").read_text())["settings"]
    assert settings["propagation"] == propagation


def test_a_job_that_stops_in_the_middle_of_a_clip_is_continued(
    predictor: OfficialPredictor, cine: Path, tmp_path: Path
) -> None:
    def stop(done: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    asked = {"propagation": "sam2", "save": ["masks", "rle", "video"]}
    samples = find_images([cine])
    with pytest.raises(KeyboardInterrupt):
        predict(predictor, samples, tmp_path / "stopped", on_progress=stop, **asked)
    continued = predict(predictor, samples, tmp_path / "stopped", **asked)
    assert continued == predict(predictor, samples, tmp_path / "whole", **asked)


def test_a_clip_that_cannot_be_read_fails_and_the_next_one_is_predicted(
    predictor: OfficialPredictor, cine: Path, tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "cut.png").write_bytes(b"not an image")
    samples = find_images([tmp_path / "data", cine])
    rows = predict(predictor, samples, tmp_path / "out", propagation="sam2")
    assert [row["status"] for row in rows] == ["failed"] * 2 + ["ok"] * 12
    assert "cut.png" in rows[0]["error"]


@pytest.mark.parametrize("propagation", ["frames", "sam2"])
def test_videos_show_each_prompt_at_the_frame_rate_of_the_clip(
    predictor: OfficialPredictor, cine: Path, tmp_path: Path, propagation: str
) -> None:
    save = ["masks", "rle", "video"]
    rows = predict(predictor, find_images([cine]), tmp_path / "out", propagation=propagation, save=save)
    videos = tmp_path / "out" / "videos"
    assert sorted(path.name for path in videos.iterdir()) == [
        f"cine--{slug}{suffix}" for slug in ("blood-vessel", "catheter") for suffix in (".masks.mkv", ".mp4")
    ]
    masks = np.stack(read_video(videos / "cine--blood-vessel.masks.mkv"))[..., 0]
    assert set(np.unique(masks)) <= {0, 255}
    np.testing.assert_array_equal(masks > 0, [decode_rle(row["rle"]) for row in rows[::2]])
    assert video.count_frames(videos / "cine--catheter.mp4") == 6
    assert video.frame_time_ms(videos / "cine--catheter.mp4") == pytest.approx(80)


def test_images_of_a_folder_are_a_clip_in_order_of_their_numbers(tmp_path: Path, cine: Path) -> None:
    for name in ("a/f_10.png", "a/f_2.png", "b/f_1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("L", (8, 8)).save(tmp_path / name)
    clips = group_clips(find_images([tmp_path, cine]))
    assert {name: [frame.id for frame in frames] for name, frames in clips.items() if name != "cine"} == {
        "a": ["a__f_2", "a__f_10"],
        "b": ["b__f_1"],
    }
    assert [frame.frame for frame in clips["cine"]] == list(range(6))
    assert frame_rate(clips["cine"][0]) == pytest.approx(12.5)
    assert frame_rate(clips["a"][0]) is None
    assert len(open_clip(tmp_path / "a")) == 2
    with raises_code(SettingError, "bad_value", "2 clips (a, b"):
        open_clip(tmp_path)


@pytest.mark.parametrize(
    ("settings", "code", "field"),
    [
        ({"reprompt_every": 3}, "conflicting_settings", "reprompt_every"),
        ({"propagation": "sam2", "reprompt_every": 0}, "bad_value", "reprompt_every"),
        ({"propagation": "official", "reprompt_every": 2}, "conflicting_settings", "propagation"),
        ({"save": ["video"]}, "conflicting_settings", "save"),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_anything_is_written(
    predictor: OfficialPredictor, cine: Path, tmp_path: Path, settings: dict[str, Any], code: str, field: str
) -> None:
    with raises_code(UsageError if field == "save" else SettingError, code) as caught:
        predict(predictor, find_images([cine]), tmp_path / "out", **settings)
    assert caught.value.field == field
    assert not (tmp_path / "out").exists()


def test_videos_of_still_images_are_refused(predictor: OfficialPredictor, tmp_path: Path) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "still.png")
    with raises_code(SettingError, "nothing_to_write"):
        predict(predictor, find_images([tmp_path]), tmp_path / "out", save=["masks", "video"])


def test_a_video_that_is_damaged_in_the_middle_keeps_all_its_rows(predictor: OfficialPredictor, tmp_path: Path) -> None:
    path = tmp_path / "cine.mp4"
    frames = np.random.default_rng(0).integers(0, 256, (8, 40, 50, 3), dtype=np.uint8)
    write_overlay(path, frames, np.zeros((8, 40, 50), dtype=bool), 15)
    with av.open(str(path)) as container:
        start, size = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size][5]
    damaged = bytearray(path.read_bytes())
    damaged[start + 5 : start + size] = bytes(size - 5)
    path.write_bytes(damaged)
    save = ["masks", "rle", "video"]
    rows = predict(predictor, find_images([path]), tmp_path / "out", propagation="sam2", save=save)
    failed = [t for t, row in enumerate(rows[::2]) if row["status"] == "failed"]
    assert len(rows) == 16
    assert 0 < len(failed) < 8
    assert all("cannot be decoded" in rows[2 * t]["error"] for t in failed)
    masks = read_video(tmp_path / "out" / "videos" / "cine--catheter.masks.mkv")
    assert len(masks) == 8
    assert not any(masks[t].any() for t in failed)
