"""Synthetic datasets: reproducible bytes, written completely or not at all, and read back unchanged."""

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.codes import raises_code

from vesalius.cli import main
from vesalius.data.dataset import load_item, load_samples
from vesalius.errors import OutputError, SettingError
from vesalius.synth import PROMPTS, draw, draw_clip, write_dataset
from vesalius.synth.series import Kind
from vesalius.types import Absent


def mode_of(path: Path) -> str:
    with Image.open(path) as image:
        return image.mode


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_same_seed_and_index_give_the_same_bytes() -> None:
    first, again = draw(5, 2, 96), draw(5, 2, 96)
    assert first.frames.tobytes() == again.frames.tobytes()
    assert first.masks is not None and again.masks is not None
    assert first.masks.tobytes() == again.masks.tobytes()


def test_another_process_gives_the_same_bytes() -> None:
    code = "import hashlib; from vesalius.synth import draw; i = draw(5, 2, 96)"
    code += "; print(hashlib.sha256(i.frames.tobytes() + i.masks.tobytes()).hexdigest())"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    there = subprocess.check_output([sys.executable, "-c", code], env=environment, text=True).strip()
    item = draw(5, 2, 96)
    assert item.masks is not None
    assert there == hashlib.sha256(item.frames.tobytes() + item.masks.tobytes()).hexdigest()


@pytest.mark.parametrize("kind", ["coronary", "retina"])
def test_another_seed_or_index_gives_another_frame(kind: Kind) -> None:
    frames = {draw(seed, index, 64, kind=kind).frames.tobytes() for seed in range(3) for index in range(3)}
    assert len(frames) == 9


@pytest.mark.parametrize(
    "settings",
    [{"n": 4, "kind": "mixed", "phrases": "all"}, {"n": 2, "frames": 11, "phrases": "all"}],
    ids=["stills", "clips"],
)
def test_bytes_do_not_depend_on_the_number_of_processes(settings: dict[str, object], tmp_path: Path) -> None:
    for num_workers in (0, 2):
        write_dataset(tmp_path / str(num_workers), seed=3, size=64, num_workers=num_workers, **settings)  # type: ignore[arg-type]
    first, other = (bytes_of(tmp_path / str(num_workers)) for num_workers in (0, 2))
    assert len(first) == 2 + settings["n"] * settings.get("frames", 1)  # type: ignore[operator]
    assert other == first


def test_a_dataset_reads_back_as_it_was_drawn(tmp_path: Path) -> None:
    done: list[int] = []
    out = tmp_path / "new" / "out"
    written = write_dataset(out, n=3, seed=4, size=96, on_progress=done.append)
    assert done == [1, 2, 3]
    assert (written.images, written.masks, written.absent) == (3, 6, 0)
    assert sorted(path.name for path in out.iterdir()) == ["annotations.json", "images", "synth.json"]
    samples = load_samples(out)
    assert [sample.group for sample in samples] == ["tree_00000", "tree_00001", "tree_00002"]
    for index, sample in enumerate(samples):
        item, read = draw(4, index, 96), load_item(sample)
        assert (sample.id, sample.prompts, sample.size) == (item.id, PROMPTS, (96, 96))
        assert sample.sequence is None
        assert mode_of(sample.image) == "L"
        np.testing.assert_array_equal(read.frames, item.frames)
        np.testing.assert_array_equal(read.masks, item.masks)


def test_frames_of_a_clip_share_group_sequence_and_spacing(tmp_path: Path) -> None:
    written = write_dataset(tmp_path / "out", n=2, seed=1, size=64, frames=10, phrases="all")
    assert written.images == 20 and written.absent > 0
    samples = load_samples(tmp_path / "out")
    assert [sample.id for sample in samples[:2]] == ["synth_00000_000", "synth_00000_001"]
    assert [sample.sequence for sample in samples] == ["synth_00000"] * 10 + ["synth_00001"] * 10
    assert [sample.group for sample in samples] == ["tree_00000"] * 10 + ["tree_00001"] * 10
    for clip, index in ((samples[:10], 0), (samples[10:], 1)):
        assert len({sample.spacing_mm for sample in clip}) == 1
        spacing = clip[0].spacing_mm
        # 0.2 to 0.31 mm at 512 pixels
        assert spacing is not None and spacing[0] == spacing[1] and 1.6 < spacing[0] < 2.5
        for sample, item in zip(clip, draw_clip(1, index, 10, 64, phrases="all"), strict=True):
            read = load_item(sample)
            assert read.prompts == item.prompts
            np.testing.assert_array_equal(read.frames, item.frames)
            np.testing.assert_array_equal(read.masks, item.masks)
    vessel = [sample.masks[sample.prompts.index("blood vessel")] for sample in samples if sample.masks]
    assert vessel[0] == (Absent(),), "before the contrast agent arrives"
    assert vessel[5] != (Absent(),)


def test_mixed_pictures_alternate_and_retinas_are_in_color(tmp_path: Path) -> None:
    write_dataset(tmp_path / "out", n=4, size=64, kind="mixed")
    samples = load_samples(tmp_path / "out")
    assert [mode_of(sample.image) for sample in samples] == ["L", "RGB", "L", "RGB"]
    assert [sample.prompts[1] for sample in samples] == ["catheter", "optic disc"] * 2
    read = load_item(samples[1])
    np.testing.assert_array_equal(read.frames, draw(0, 1, 64, kind="mixed").frames)


@pytest.mark.parametrize("size", [64, 333, 1024])
def test_datasets_of_any_size_load(size: int, tmp_path: Path) -> None:
    write_dataset(tmp_path / "out", n=2, size=size, kind="mixed", phrases="all", num_workers=0)
    for sample in load_samples(tmp_path / "out"):
        assert load_item(sample).size == (size, size)


def test_omitted_and_absent_phrases_are_so_in_the_file(tmp_path: Path) -> None:
    written = write_dataset(tmp_path / "out", n=12, seed=2, size=64, phrases="all")
    entries = json.loads((tmp_path / "out" / "annotations.json").read_text())
    texts = [text for entry in entries for text in entry["text"]]
    nulls = [mask for entry in entries for mask in entry["mask"] if mask is None]
    assert (written.masks + written.absent, written.absent) == (len(texts), len(nulls))
    assert texts.count("catheter") == 12 and texts.count("the vessel on the left") < 12
    assert any(
        mask is None and text == "catheter"
        for entry in entries
        for text, mask in zip(entry["text"], entry["mask"], strict=True)
    )


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"size": 63}, "size"),
        ({"size": -1}, "size"),
        ({"size": 8193}, "size"),
        ({"n": 0}, "n"),
        ({"seed": -1}, "seed"),
        ({"frames": 0}, "frames"),
        ({"frames": 2, "kind": "retina"}, None),
        ({"kind": "lung"}, "kind"),
        ({"phrases": "few"}, "phrases"),
        ({"num_workers": -1}, "num_workers"),
    ],
)
def test_settings_out_of_bounds_are_refused(settings: dict[str, object], field: str | None, tmp_path: Path) -> None:
    with raises_code(SettingError, "bad_value") as caught:
        write_dataset(tmp_path / "out", **{"n": 1, "size": 64, **settings})  # type: ignore[arg-type]
    assert caught.value.field == field
    assert list(tmp_path.iterdir()) == []


def test_same_dataset_is_not_drawn_again_and_another_one_replaces_it_on_request(tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = write_dataset(out, n=2, size=64, num_workers=0)
    changed = (out / "images" / "synth_00000.png").stat().st_mtime_ns
    again = write_dataset(out, n=2, size=64, num_workers=0)
    assert again == replace(first, already_done=True)
    assert (out / "images" / "synth_00000.png").stat().st_mtime_ns == changed
    with raises_code(OutputError, "output_exists"):
        write_dataset(out, n=3, size=64, num_workers=0)
    assert write_dataset(out, n=3, size=64, num_workers=0, overwrite=True).images == 3
    (out / "images" / "synth_00002.png").unlink()
    with raises_code(OutputError, "output_exists"):
        write_dataset(out, n=3, size=64, num_workers=0)
    (out / "notes.txt").touch()
    with raises_code(OutputError, "not_replaceable", "notes.txt"):
        write_dataset(out, n=3, size=64, num_workers=0, overwrite=True)


def test_dataset_of_the_user_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "annotations.json").write_text("[]")
    with raises_code(OutputError, "not_replaceable", "synth.json"):
        write_dataset(tmp_path, n=1, size=64, overwrite=True)
    assert (tmp_path / "annotations.json").read_text() == "[]"


def test_existing_content_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    for out in (tmp_path, tmp_path / "mine.txt"):
        with raises_code(OutputError, "output_exists"):
            write_dataset(out, n=1, size=64)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    write_dataset(tmp_path / "empty", n=1, size=64)
    write_dataset(tmp_path / "out", n=1, size=64)
    assert bytes_of(tmp_path / "empty") == bytes_of(tmp_path / "out")


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_interrupted_dataset_leaves_nothing(num_workers: int, tmp_path: Path) -> None:
    def interrupt(done: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_dataset(tmp_path / "out", n=3, size=64, on_progress=interrupt, num_workers=num_workers)
    assert list(tmp_path.iterdir()) == []


def test_the_command_writes_clips_and_reports_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["synth", str(tmp_path / "out"), *"--n 1 --frames 3 --size 64 --phrases all".split()]
    assert main([*arguments, "--num-workers", "0", "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (result["n"], result["frames"], result["images"]) == (1, 3, 3)
    assert result["masks"] > 0 and result["absent"] > 0
    assert main(["synth", str(tmp_path / "eyes"), "--n", "2", "--kind", "retina", "--frames", "2"]) == 1
    assert "use frames 1" in capsys.readouterr().err
