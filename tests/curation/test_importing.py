"""Import: every format converts to every other, sources are recorded, and pseudonyms leave names only in the key file."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin
from pydicom import dcmread
from tests.codes import raises_code

from vesalius.cli import main
from vesalius.curation.importing import import_dataset
from vesalius.data.copying import copy_images, write_png
from vesalius.data.dataset import load_item, load_samples
from vesalius.data.images import read_image
from vesalius.data.writers import vesalius_json
from vesalius.errors import OutputError, SettingError, UsageError

from ..dicom_files import write_xa

NAMES = ("Vogelweide", "Walther", "PID4711", "19510429", "1.2.826.1951")
"""Names planted in every part of a file that can contain text; none may appear in the output."""
PATIENT = "Vogelweide^Walther"
BOX = [[1, 1, 9, 1, 9, 9, 1, 9]]


def texture(seed: int, side: int = 24) -> np.ndarray:
    return np.random.default_rng(seed).integers(60, 90, (side, side), np.uint8)


def annotated(root: Path) -> Path:
    """Two patients with two images each, PNG with a text chunk and JPEG with EXIF, in folders named like the patients."""
    rows = []
    for i in range(4):
        folder = root / "images" / f"Vogelweide_Walther_{i // 2}"
        folder.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(texture(i))
        if i % 2:
            exif = Image.Exif()
            exif[0x010E] = "Vogelweide"
            image.save(folder / f"PID4711_{i}.jpg", exif=exif)
        else:
            chunk = PngImagePlugin.PngInfo()
            chunk.add_text("Patient", PATIENT)
            image.save(folder / f"PID4711_{i}.png", pnginfo=chunk)
        name = f"{folder.name}/PID4711_{i}.{'jpg' if i % 2 else 'png'}"
        row = {
            "Vogelweide": name,
            "image": name,
            "mask": [BOX, None],
            "text": ["vessel", "wire"],
            "patient": f"Vogelweide{i // 2}",
        }
        rows.append(row | {"birth": "19510429", "segment": [str(i)], "size": [24, 24], "spacing_mm": [0.3, 0.3]})
    (root / "annotations.json").write_text(json.dumps(rows))
    return root


def dicom_folder(root: Path) -> Path:
    """DICOM files: a cine and a single frame of one patient, and a single frame of another."""
    root.mkdir(parents=True)
    tags: dict[str, Any] = {"PatientName": PATIENT, "PatientID": "PID4711", "PatientBirthDate": "19510429"}
    tags |= {"PatientComments": "Vogelweide", "InstitutionName": "Walther"}
    cine = np.stack([texture(i) for i in range(3)])
    for name, frames, uid, patient, burned_in in (
        ("Vogelweide_cine", cine, "1", "PID4711", "YES"),
        ("Vogelweide.still", texture(5)[None], "2", "PID4711", None),
        ("Walther.dcm", texture(6)[None], "3", "PID4711b", "NO"),
    ):
        uids = {
            "SOPInstanceUID": f"1.2.826.1951.{uid}", "SeriesInstanceUID": f"1.2.826.1951.7.{uid}",
            "StudyInstanceUID": f"1.2.826.1951.8.{len(patient)}",
        }  # fmt: skip
        write_xa(root / name, frames, **tags | uids | {"PatientID": patient, "BurnedInAnnotation": burned_in})
    return root


def cli(*arguments: str | Path) -> int:
    return main([str(argument) for argument in arguments])


def written(out: Path, to: str) -> Path:
    """The path to read back; LabelMe files are beside the images."""
    return out / "images" if to == "labelme" else out


def leaks(out: Path, text: str) -> list[str]:
    """Planted names in `text`, in file names and in files of `out`, with PNG files decompressed."""
    found = [name for name in NAMES if name.lower() in text.lower()]
    for path in out.rglob("*"):
        data = str(path.relative_to(out)).encode() + b"\n" + (path.read_bytes() if path.is_file() else b"")
        if path.suffix == ".png":
            with Image.open(path) as image:
                data += repr(image.info).encode() + image.tobytes()
        found += [f"{path}: {name}" for name in NAMES if name.lower().encode() in data.lower()]
    return found


def test_import_converts_a_mask_folder_and_records_the_source_of_each_image(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for side, values in (("images", texture(1)), ("masks", np.eye(24, dtype=np.uint8) * 255)):
        (tmp_path / "in" / side / "p1").mkdir(parents=True)
        Image.fromarray(values).save(tmp_path / "in" / side / "p1" / "a.png")
    done = cli("import", tmp_path / "in", tmp_path / "out", "--prompt", "vessel", "--group", "folder", "--json")
    assert done == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (result["format"], result["to"], result["pseudonymized"]) == ("maskfolder", "vesalius", False)
    assert result["counts"] == {"images": 1, "files": 1, "annotated": 1, "groups": 1}
    assert result["converted"] == {"images": {}, "mask files to RLE": 1}
    (sample,) = load_samples(tmp_path / "out")
    assert (sample.id, sample.group) == ("p1__a", "p1")
    np.testing.assert_array_equal(load_item(sample).masks[0, 0], np.eye(24, dtype=bool))  # type: ignore[index]
    image = tmp_path / "in" / "images" / "p1" / "a.png"
    assert sample.image.samefile(image)
    record = json.loads((tmp_path / "out" / "import.json").read_text())
    assert record["samples"] == [
        {
            "id": "p1__a",
            "group": "p1",
            "image": "images/p1__a.png",
            "frame": None,
            "source_sha256": hashlib.sha256(image.read_bytes()).hexdigest(),
        }
    ]
    assert "vesalius" in record["versions"]
    assert cli("check", tmp_path / "out") == 0


@pytest.mark.parametrize("to", ["vesalius", "coco", "labelme"])
def test_an_import_and_an_import_back_lose_nothing(tmp_path: Path, to: str) -> None:
    source = annotated(tmp_path / "in")
    assert cli("import", source, tmp_path / "there", "--to", to, "--group", "patient") == 0
    assert cli("import", written(tmp_path / "there", to), tmp_path / "back") == 0
    before, after = load_samples(source, group="patient"), load_samples(tmp_path / "back")
    key = {sample.id: sample for sample in after}
    assert sorted(key) == sorted(sample.id for sample in before)
    for sample in before:
        found = key[sample.id]
        assert (found.prompts, found.group, found.metadata) == (sample.prompts, sample.group, sample.metadata)
        one, two = load_item(sample), load_item(found)
        np.testing.assert_array_equal(one.frames, two.frames)
        np.testing.assert_array_equal(one.masks, two.masks)


def test_masks_are_written_for_other_programs(tmp_path: Path) -> None:
    source = annotated(tmp_path / "in")
    assert cli("import", source, tmp_path / "out", "--to", "masks", "--prompt", "vessel") == 0
    assert len(load_samples(tmp_path / "out", prompt="vessel")) == 4


def test_frames_of_dicom_files_become_images_with_their_group_and_order(tmp_path: Path) -> None:
    source = dicom_folder(tmp_path / "in")
    result = import_dataset(source, tmp_path / "out")
    assert result["counts"] == {"images": 5, "files": 3, "annotated": 0, "groups": 2}
    assert result["converted"]["images"] == {".dcm to .png": 1, "other to .png": 4}
    samples = {sample.id: sample for sample in load_samples(tmp_path / "out")}
    cine = [samples[f"Vogelweide_cine__{i:04d}"] for i in range(3)]
    assert len({sample.sequence for sample in cine}) == 1
    assert cine[0].metadata["frame_time_ms"] == pytest.approx(66.7)
    for before, after in zip(load_samples(source), load_samples(tmp_path / "out"), strict=True):
        np.testing.assert_array_equal(load_item(before).frames, load_item(after).frames)
        assert (before.group, before.spacing_mm) == (after.group, after.spacing_mm)


def test_a_folder_of_images_alone_is_imported_without_annotation(tmp_path: Path) -> None:
    (tmp_path / "in" / "p1").mkdir(parents=True)
    write_png(tmp_path / "in" / "p1" / "a.png", np.repeat(texture(1)[:, :, None], 3, 2))
    result = import_dataset(tmp_path / "in", tmp_path / "out", group="folder")
    assert result["format"] == "images"
    assert "no annotation was found: 1 images without masks" in result["notes"]
    (sample,) = load_samples(tmp_path / "out")
    assert (sample.id, sample.masks, sample.group) == ("p1__a", None, "p1")
    for name in ("README.txt", "p1/ages.csv", "p1/settings.yaml"):
        (tmp_path / "in" / name).write_text("no annotation")
    assert import_dataset(tmp_path / "in", tmp_path / "two")["format"] == "images"
    result = import_dataset(tmp_path / "in" / "p1" / "a.png", tmp_path / "one")
    assert result["counts"]["images"] == 1


@pytest.mark.parametrize("name", ["instances.json", "p1/a.json", "labels.xml"])
def test_images_beside_an_unknown_annotation_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (tmp_path / "in" / "p1").mkdir(parents=True)
    write_png(tmp_path / "in" / "p1" / "a.png", np.repeat(texture(1)[:, :, None], 3, 2))
    (tmp_path / "in" / name).write_text('{"nothing": "known"}')
    assert cli("import", tmp_path / "in", tmp_path / "out") == 1
    assert f"is not a dataset: neither annotations*.json nor images/ with masks/ was found; if {name} is" in (
        capsys.readouterr().err
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("to", ["vesalius", "coco", "labelme"])
def test_annotated_images_leak_no_name(tmp_path: Path, capfd: pytest.CaptureFixture[str], to: str) -> None:
    source = annotated(tmp_path / "Vogelweide")
    assert leaks(source, "") != []
    arguments = ("--pseudonymize", "--group", "patient", "--to", to, "--json", "-v")
    assert cli("import", source, tmp_path / "out", *arguments) == 0
    told = capfd.readouterr()
    assert leaks(tmp_path / "out", told.out + told.err) == []
    assert "metadata removed because it may identify a person: 3 other keys" in told.out + told.err
    before, after = load_samples(source, group="patient"), load_samples(written(tmp_path / "out", to))
    assert len({sample.group for sample in after}) == 2
    table = json.loads((tmp_path / "out.key.json").read_text())
    origin = {new: row["id"] for new, row in table["samples"].items()}
    by_id = {sample.id: sample for sample in before}
    for sample in after:
        old = by_id[origin[sample.id]]
        assert table["groups"][sample.group] == old.group
        assert (sample.prompts, sample.spacing_mm) == (old.prompts, old.spacing_mm)
        assert sample.metadata == {"segment": old.metadata["segment"]}
        np.testing.assert_array_equal(load_item(sample).masks, load_item(old).masks)
        np.testing.assert_array_equal(read_image(sample.image), read_image(old.image))
        assert not sample.image.samefile(old.image)


def test_dicom_files_leak_no_name(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source = dicom_folder(tmp_path / "Vogelweide")
    assert leaks(source, "") != []
    assert cli("import", source, tmp_path / "out", "--pseudonymize", "--json", "-v") == 0
    told = capfd.readouterr()
    assert leaks(tmp_path / "out", told.out + told.err) == []
    result = json.loads(told.out.splitlines()[-1])
    assert sorted((row["burned_in"] for row in result["dicom"]), key=str) == [False, None, True]
    assert any("that state burned-in annotations: 1 (p" in note for note in result["notes"])
    files = [dcmread(path) for path in sorted((tmp_path / "out" / "dicom").iterdir())]
    assert len(files) == 3
    assert len({file.PatientID for file in files}) == 2
    assert len({file.StudyInstanceUID for file in files}) == 2
    assert {file.PatientID for file in files} == {sample.group for sample in load_samples(tmp_path / "out")}
    table = json.loads((tmp_path / "out.key.json").read_text())["groups"]
    assert sorted(table.values()) == ["PID4711", "PID4711b"]
    assert sum(file.get("NumberOfFrames", 1) for file in files) == 5
    stems = {path.stem for path in (tmp_path / "out" / "dicom").iterdir()}
    assert all(any(sample.id.startswith(stem) for stem in stems) for sample in load_samples(tmp_path / "out"))


def test_a_patient_has_one_pseudonym_per_key(tmp_path: Path) -> None:
    source = annotated(tmp_path / "in")
    groups = []
    for name, key in (("one", None), ("two", tmp_path / "one.key.json"), ("three", None)):
        import_dataset(source, tmp_path / name, pseudonymize=True, group="patient", key=key)
        groups.append([sample.group for sample in load_samples(tmp_path / name)])
    assert groups[0] == groups[1]
    assert not set(groups[0]) & set(groups[2])
    for name in ("one", "two", "three"):
        assert (tmp_path / f"{name}.key.json").stat().st_mode & 0o777 == 0o600
        key = json.loads((tmp_path / f"{name}.key.json").read_text())["key"]
        everything = b"".join(path.read_bytes() for path in (tmp_path / name).rglob("*") if path.is_file())
        assert key.encode() not in everything and bytes.fromhex(key) not in everything


def test_a_patient_has_one_pseudonym_in_dicom_files_and_annotations(tmp_path: Path) -> None:
    import_dataset(dicom_folder(tmp_path / "dicom"), tmp_path / "one", pseudonymize=True)
    Image.fromarray(texture(1)).save(tmp_path / "a.png")
    row = {"image": "a.png", "mask": [BOX], "text": ["vessel"], "PatientID": "PID4711"}
    (tmp_path / "annotations.json").write_text(json.dumps([row]))
    key = tmp_path / "one.key.json"
    source = tmp_path / "annotations.json"
    import_dataset(source, tmp_path / "two", pseudonymize=True, key=key, group="PatientID")
    groups = [{sample.group for sample in load_samples(tmp_path / name)} for name in ("one", "two")]
    assert len(groups[0]) == 2 and groups[1] < groups[0]


def test_source_hashes_are_keyed_and_sorted_by_pseudonym(tmp_path: Path) -> None:
    source = annotated(tmp_path / "in")
    for name, pseudonymize in (("plain", False), ("deidentified", True)):
        import_dataset(source, tmp_path / name, group="patient", pseudonymize=pseudonymize)
    plain, deidentified = (
        json.loads((tmp_path / name / "import.json").read_text())["samples"] for name in ("plain", "deidentified")
    )
    assert [row["id"] for row in deidentified] == sorted(row["id"] for row in deidentified)
    assert not {row["source_sha256"] for row in plain} & {row["source_hmac_sha256"] for row in deidentified}
    assert all("source_sha256" not in row for row in deidentified)
    ids = [sample.id for sample in load_samples(tmp_path / "deidentified")]
    assert ids == sorted(ids)


def test_errors_about_arguments_name_the_arguments_under_pseudonyms_too(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source = annotated(tmp_path / "in")
    for arguments, told in (
        ((source / "no", tmp_path / "out"), f"{source / 'no'}: does not exist"),
        ((source, source / "out"), f"{source / 'out'}: lies in the dataset"),
        ((source, tmp_path / "out", "--group", "(x)"), "--group '(x)' does not match the source"),
    ):
        assert cli("import", *arguments, "--pseudonymize") == 1
        assert told in capfd.readouterr().err
    (source / "annotations.json").rename(source / "annotations.train.json")
    (source / "annotations.val.json").write_text("[]")
    assert cli("import", source, tmp_path / "out", "--pseudonymize") == 1
    assert "the source needs --split" in capfd.readouterr().err
    assert cli("import", source, tmp_path / "out", "--pseudonymize", "--split", "tset") == 1
    assert "--split 'tset' does not match the source" in capfd.readouterr().err


def test_an_unreadable_image_is_reported_by_its_number_under_pseudonyms(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    for i in range(3):
        Image.fromarray(texture(i)).save(tmp_path / "in" / f"Vogelweide{i}.png")
    (tmp_path / "in" / "Vogelweide1.png").write_bytes(b"cut")
    assert cli("import", tmp_path / "in", tmp_path / "out", "--pseudonymize") == 1
    told = capfd.readouterr().err
    assert "image 2 of 3 in the order of their names" in told
    assert "Vogelweide" not in told and "vesalius check" not in told


def test_errors_quote_nothing_of_a_deidentified_source(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for fault in ("image", "json", "group", "prompt", "dicom"):
        source = tmp_path / f"Vogelweide_{fault}"
        arguments: tuple[str, ...] = ()
        if fault == "dicom":
            dicom_folder(source)
            cine = (source / "Vogelweide_cine").read_bytes()
            (source / "Vogelweide_cine").write_bytes(cine[:-700])
        else:
            annotated(source)
            if fault == "image":
                next(source.rglob("*.png")).write_bytes(b"Vogelweide")
            if fault == "json":
                (source / "annotations.json").write_text("Vogelweide")
            if fault == "group":
                arguments = ("--group", "(nothing)")
            if fault == "prompt":
                (source / "masks").mkdir()
                (source / "annotations.json").unlink()
        capfd.readouterr()
        assert cli("import", source, tmp_path / "out", "--pseudonymize", "-v", *arguments) == 1, fault
        told = capfd.readouterr()
        assert leaks(tmp_path / "none", told.out + told.err) == [], told
        assert {"group": "does not match the source", "prompt": "the source needs --prompt"}.get(
            fault, "the source cannot be imported"
        ) in told.err
        assert "run vesalius check" in told.err
        left = sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith("Vogelweide"))
        assert left == [], fault


def test_burned_in_text_is_reported_under_the_pseudonym(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for i in range(2):
        image = Image.fromarray(texture(i, 120))
        if i:
            ImageDraw.Draw(image).text((5, 90), "VOGELWEIDE", fill=255, font=ImageFont.load_default(14))
        image.save(tmp_path / "in" / f"{i}.png")
    result = import_dataset(tmp_path / "in", tmp_path / "out", pseudonymize=True)
    ((name, boxes),) = result["burned_in_text"].items()
    assert boxes[0][1] > 85
    assert any(f"1 image may contain burned-in text; inspect it: {name}" in note for note in result["notes"])


def test_an_existing_output_is_refused_before_anything_is_done(tmp_path: Path) -> None:
    source = annotated(tmp_path / "in")
    import_dataset(source, tmp_path / "out", pseudonymize=True)
    with raises_code(OutputError, "output_exists"):
        import_dataset(source, tmp_path / "out")
    with raises_code(SettingError, "output_inside_data"):
        import_dataset(source, tmp_path)
    with raises_code(OutputError, "output_exists", "out.key.json"):
        import_dataset(source, tmp_path / "out", pseudonymize=True, overwrite=True)
    import_dataset(source, tmp_path / "plain", to="masks")
    import_dataset(source, tmp_path / "plain", overwrite=True)
    assert {each.name for each in (tmp_path / "plain").iterdir()} == {"images", "annotations.json", "import.json"}
    (tmp_path / "plain" / "notes.txt").touch()
    with raises_code(OutputError, "not_replaceable", "notes.txt"):
        import_dataset(source, tmp_path / "plain", overwrite=True)
    for inside in (source, source / "out"):
        with raises_code(SettingError, "output_inside_data"):
            import_dataset(source, inside)
    with raises_code(UsageError, "conflicting_settings"):
        import_dataset(source, tmp_path / "two", key=tmp_path / "out.key.json")
    with raises_code(SettingError, "bad_value", "yolo"):
        import_dataset(source, tmp_path / "two", to="yolo")
    key = (tmp_path / "out.key.json").read_bytes()
    (tmp_path / "out").rename(tmp_path / "moved")
    with raises_code(OutputError, "output_exists", "out.key.json"):
        import_dataset(source, tmp_path / "out", pseudonymize=True)
    assert (tmp_path / "out.key.json").read_bytes() == key


def test_real_angiograms_keep_their_pixels_and_masks_under_pseudonyms(shared: Path, tmp_path: Path) -> None:
    few = load_samples(shared / "data" / "arcade", split="val")[:4]
    vesalius_json.write(tmp_path / "in" / "annotations.json", copy_images(few, tmp_path / "in"))
    result = import_dataset(tmp_path / "in", tmp_path / "out", pseudonymize=True)
    assert (result["counts"]["images"], result["burned_in_text"]) == (4, {})
    table = json.loads((tmp_path / "out.key.json").read_text())["samples"]
    before = {sample.id: sample for sample in few}
    for sample in load_samples(tmp_path / "out"):
        old = load_item(before[table[sample.id]["id"]])
        np.testing.assert_array_equal(load_item(sample).frames, old.frames)
        np.testing.assert_array_equal(load_item(sample).masks, old.masks)
