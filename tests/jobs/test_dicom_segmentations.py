from pathlib import Path

import numpy as np
import pydicom
from PIL import Image
from tests.codes import raises_code

from vesalius.cli import main
from vesalius.data.image_files import find_images
from vesalius.data.images import frame_id
from vesalius.errors import SettingError
from vesalius.jobs.folder import write_predictions
from vesalius.mask_maps import LowRes
from vesalius.masks import decode_rle
from vesalius.segmenter import ModelDescription, Segmenter
from vesalius.types import Item, Prediction

from ..dicom_files import angiogram, read_masks

VESSEL, CATHETER = "blood vessel", "catheter"


def test_a_cine_goes_through_the_command_line_to_a_segmentation(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    angiogram(tmp_path / "in" / "cine", 3, (40, 48))
    angiogram(tmp_path / "in" / "single.dcm", 1, (40, 48), SOPInstanceUID="1.2.8")
    out = tmp_path / "out"
    prompts = ["--prompt", VESSEL, "--prompt", CATHETER, "--out", str(out), "--save", "masks,dicom"]
    assert main(["predict", "tiny", str(tmp_path / "in"), *prompts]) == 0
    assert sorted(file.name for file in (out / "dicom").iterdir()) == ["cine.dcm", "single.dcm"]
    for name, uid, n in (("cine", "1.2.3.4.1", 3), ("single", "1.2.8", 1)):
        found = read_masks(out / "dicom" / f"{name}.dcm", uid)
        for prompt, slug in ((VESSEL, "blood-vessel"), (CATHETER, "catheter")):
            for frame in range(n):
                stem = frame_id(name, frame) if n > 1 else name
                written = np.asarray(Image.open(out / "masks" / f"{stem}--{slug}.png")) > 0
                read = found[prompt].get(frame)
                np.testing.assert_array_equal(written, np.zeros_like(written) if read is None else decode_rle(read))
    assert any(found.values()), "no mask at all proves nothing"


class Halves(Segmenter):
    """Gives the left half of each image as mask; fails on the named frames."""

    description = ModelDescription("halves", "test", "f" * 64, batch_size=2)

    def __init__(self, *failing: str) -> None:
        self.failing = failing

    def predict(self, items: list[Item]) -> list[Prediction]:
        if any(item.id in self.failing for item in items):
            raise RuntimeError("out of memory")
        logits = np.array([[[9, -9], [9, -9]]], dtype=np.float32)
        return [
            Prediction(item.id, prompt, "ok", item.size, LowRes(logits, 2)) for item in items for prompt in item.prompts
        ]


def test_failed_frames_are_listed_and_a_failed_file_has_no_segmentation(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    angiogram(tmp_path / "in" / "cine.dcm", 3)
    angiogram(tmp_path / "in" / "one.dcm", 1, SOPInstanceUID="1.2.8")
    segmenter = Halves("cine__0001", "one")
    summary = write_predictions(segmenter, find_images([tmp_path / "in"]), [VESSEL], tmp_path / "out", save=["dicom"])
    assert summary["coverage"] == {"ok": 2, "no_seg": 0, "failed": 2}
    assert [file.name for file in (tmp_path / "out" / "dicom").iterdir()] == ["cine.dcm"]
    assert read_masks(tmp_path / "out" / "dicom" / "cine.dcm")[VESSEL].keys() == {0, 2}
    comment = pydicom.dcmread(tmp_path / "out" / "dicom" / "cine.dcm").ImageComments
    assert comment.endswith("not empty: 2")
    lines = (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()
    assert ['"dicom": "dicom/cine.dcm"' in line for line in lines] == [True, False, True, False]


def test_other_images_are_refused_before_anything_is_predicted(tmp_path: Path) -> None:
    cine = angiogram(tmp_path / "cine.dcm", 3)
    picture = tmp_path / "picture.png"
    Image.new("L", (9, 9)).save(picture)
    with raises_code(SettingError, "conflicting_settings", "picture.png"):
        write_predictions(Halves(), find_images([cine, picture]), [VESSEL], tmp_path / "out", save=["dicom"])
    assert not (tmp_path / "out").exists()
