"""The command line from a synthetic DICOM cine to its segmentation: import, predict, read back, check."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from vesalius.cli import main
from vesalius.data.dataset import load_image, load_item, load_samples
from vesalius.data.images import read_image

from .dicom_files import PATIENT, write_xa

VESSEL = "blood vessel"


def test_a_cine_as_dicom_is_deidentified_segmented_and_read_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["synth", tmp_path / "synth", "--n", "1", "--frames", "5", "--size", "128", "--seed", "4"]
    assert main(list(map(str, line))) == 0
    drawn = load_samples(tmp_path / "synth")
    frames = np.stack([load_image(sample)[..., 0] for sample in drawn])
    (tmp_path / "hospital").mkdir()
    write_xa(tmp_path / "hospital" / "vogel_greta.dcm", frames, "jpeg 2000 lossless")

    imported = tmp_path / "imported"
    assert main(["import", str(tmp_path / "hospital"), str(imported), "--pseudonymize"]) == 0
    pictures = sorted((imported / "images").iterdir())
    assert len(pictures) == 5
    for picture, frame in zip(pictures, frames, strict=True):
        np.testing.assert_array_equal(read_image(picture)[..., 0], frame)
    family, given = PATIENT.encode().split(b"^")
    for file in imported.rglob("*"):
        content = file.read_bytes().lower() if file.is_file() else b""
        assert not any(name.lower() in content + file.name.lower().encode() for name in (family, given))

    out = tmp_path / "out"
    prompts = ["--prompt", VESSEL, "--answer", "force", "--save", "masks,dicom"]
    assert main(["predict", "tiny", str(imported / "dicom"), *prompts, "--out", str(out)]) == 0
    (segmentation,) = (out / "dicom").iterdir()
    masks = [read_image(file)[..., 0] > 0 for file in sorted((out / "masks").iterdir())]
    assert len(masks) == 5
    assert any(mask.any() for mask in masks)

    shutil.copy(segmentation, imported / "dicom" / "segmentation.dcm")
    back = load_samples(imported / "dicom")
    for sample, mask in zip(back, masks, strict=True):
        read = load_item(sample).masks
        assert read is not None
        np.testing.assert_array_equal(read[0, 0], mask)
    capsys.readouterr()
    assert main(["check", str(imported / "dicom"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["format"] == "dicom"
    assert PATIENT.split("^")[0].lower() not in capsys.readouterr().err.lower()
    validator = shutil.which("dciodvfy")
    if validator is None:
        pytest.skip("dciodvfy of dicom3tools is not installed: the segmentation was not validated")
    said = subprocess.run([validator, "-new", str(segmentation)], capture_output=True, text=True, check=False)
    assert "Error" not in said.stdout + said.stderr, said.stderr
