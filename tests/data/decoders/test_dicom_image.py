import logging
import sys
import traceback
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import Dataset
from tests.codes import raises_code

from vesalius.data import images
from vesalius.data.decoders import dicom_image as dicom
from vesalius.data.decoders import frame_files
from vesalius.data.image_files import find_images
from vesalius.errors import ImageError, MissingExtraError

from ... import dicom_files
from ...dicom_files import PATIENT, make_xa, write, write_report, write_xa

SHIPPED = Path(pydicom.__file__).parent / "data" / "test_files"
"""Test files that pydicom installs; it downloads all others."""

REFUSED = {
    "ExplVR_BigEndNoMeta.dcm": "not_dicom",
    "ExplVR_LitEndNoMeta.dcm": "not_dicom",
    "JPEG-lossy.dcm": "damaged_file",
    "JPEG2000-embedded-sequence-delimiter.dcm": "header_mismatch",
    "MR_truncated.dcm": "truncated_file",
    "SC_rgb_rle_32bit.dcm": "invalid_bit_depth",
    "SC_rgb_rle_32bit_2frame.dcm": "invalid_bit_depth",
    "UN_sequence.dcm": "no_pixel_data",
    "badVR.dcm": "damaged_file",
    "empty_charset_LEI.dcm": "no_pixel_data",
    "image_dfl.dcm": "unsupported_transfer_syntax",
    "liver_1frame.dcm": "invalid_bit_depth",
    "liver_expb_1frame.dcm": "invalid_bit_depth",
    "meta_missing_tsyntax.dcm": "unsupported_transfer_syntax",
    "nested_priv_SQ.dcm": "no_pixel_data",
    "no_meta.dcm": "not_dicom",
    "no_meta_group_length.dcm": "no_pixel_data",
    "priv_SQ.dcm": "no_pixel_data",
    "reportsi.dcm": "no_pixel_data",
    "reportsi_with_empty_number_tags.dcm": "no_pixel_data",
    "rtdose.dcm": "invalid_bit_depth",
    "rtdose_1frame.dcm": "invalid_bit_depth",
    "rtdose_expb.dcm": "invalid_bit_depth",
    "rtdose_expb_1frame.dcm": "invalid_bit_depth",
    "rtdose_rle.dcm": "invalid_bit_depth",
    "rtdose_rle_1frame.dcm": "invalid_bit_depth",
    "rtplan.dcm": "no_pixel_data",
    "rtplan_truncated.dcm": "no_pixel_data",
    "rtstruct.dcm": "not_dicom",
    "test-SR.dcm": "no_pixel_data",
    "waveform_ecg.dcm": "no_pixel_data",
}
"""Test file of pydicom -> code of its error; all others are read."""
SEVERAL = {"SC_rgb_rle_2frame.dcm": 2, "SC_rgb_rle_16bit_2frame.dcm": 2, "examples_ybr_color.dcm": 30}


def ramp(*values: int, dtype: str = "uint16") -> np.ndarray:
    """Stored values (1, 1, n) of a single-row frame."""
    return np.array([[values]], dtype=dtype)


def grays(path: Path, frame: int = 0) -> list[int]:
    """Gray levels of the first row; its three channels must be equal."""
    pixels = dicom.read_frame(path, frame).pixels
    assert pixels.dtype == np.uint8 and (pixels == pixels[:, :, :1]).all()
    return pixels[0, :, 0].tolist()


def refusal(path: Path) -> str:
    with pytest.raises(ImageError) as caught:
        dicom.read_frame(path, 0)
    assert str(caught.value).startswith(str(path))
    return caught.value.code


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.dcm")), ids=lambda path: path.name)
def test_files_of_pydicom_are_read_or_have_a_code(path: Path) -> None:
    if path.name in REFUSED:
        assert refusal(path) == REFUSED[path.name]
    else:
        n = dicom.count_frames(path)
        pixels = dicom.read_frame(path, n - 1).pixels
        facts = dicom.read_facts(path)
        assert (n, facts.frames) == (SEVERAL.get(path.name, 1),) * 2
        assert pixels.dtype == np.uint8 and pixels.shape == (*facts.size, 3)


@pytest.mark.parametrize("name", ["RLE", "bigendian", "expb", "implicit", "jp2klossless", "jpeg_ls_lossless", "padded"])
def test_an_image_is_the_same_in_every_transfer_syntax(name: str) -> None:
    expected = dicom.read_frame(SHIPPED / "MR_small.dcm", 0).pixels
    np.testing.assert_array_equal(dicom.read_frame(SHIPPED / f"MR_small_{name}.dcm", 0).pixels, expected)


def test_colors_are_the_same_in_both_byte_orders_and_with_color_transforms() -> None:
    little, big = (dicom.read_frame(SHIPPED / f"SC_rgb_small_odd{end}.dcm", 0).pixels for end in ("", "_big_endian"))
    np.testing.assert_array_equal(little, big)
    eight, sixteen = (dicom.read_frame(SHIPPED / f"SC_rgb_rle{end}.dcm", 0).pixels for end in ("", "_16bit"))
    np.testing.assert_array_equal(eight, sixteen)
    jpeg = dicom.read_frame(SHIPPED / "SC_rgb_jpeg_dcmtk.dcm", 0).pixels.astype(int)
    ybr = dicom.read_frame(SHIPPED / "SC_ybr_full_422_uncompressed.dcm", 0).pixels.astype(int)
    assert np.abs(jpeg - ybr).max() <= 1


@pytest.mark.parametrize("syntax", dicom_files.SYNTAXES)
def test_a_cine_is_read_frame_by_frame_in_every_syntax(syntax: str, tmp_path: Path) -> None:
    y, x = np.mgrid[:40, :36]
    frames = np.stack([np.clip(5 * y + i * x, 0, 255) for i in range(3)]).astype(np.uint8)
    path = write_xa(tmp_path / "cine.dcm", frames, syntax)
    assert dicom.count_frames(path) == 3
    for i in (2, 0, 1):
        apart = np.abs(dicom.read_frame(path, i).pixels[:, :, 0].astype(int) - frames[i]).max()
        assert apart <= {"jpeg baseline": 8, "jpeg 2000": 4}.get(syntax, 0)


@pytest.mark.parametrize("syntax", ["explicit", "implicit", "big endian", "rle", "jpeg 2000 lossless"])
@pytest.mark.parametrize("dtype", ["uint16", "int16"])
def test_deep_values_are_the_same_in_every_syntax(syntax: str, dtype: str, tmp_path: Path) -> None:
    values = np.arange(40 * 36, dtype=dtype).reshape(1, 40, 36) * 2 - (900 if dtype == "int16" else 0)
    path = write_xa(tmp_path / "a.dcm", values, syntax, BitsStored=12, WindowCenter=300, WindowWidth=256)
    expected = np.clip((values[0] - 299.5) / 255 + 0.5, 0, 1) * 255
    np.testing.assert_array_equal(dicom.read_frame(path, 0).pixels[:, :, 0], np.floor(expected + 0.5))


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        # (127 - 127.5) / 2 + 0.5 = 0.25; the lower border is inside the window, the upper one is white
        ({"WindowCenter": 128, "WindowWidth": 3}, [0, 64, 191, 255, 255]),
        ({"WindowCenter": 128, "WindowWidth": 1}, [0, 0, 255, 255, 255]),
        ({"WindowCenter": [128, 5], "WindowWidth": [3, 5]}, [0, 64, 191, 255, 255]),
        ({"WindowCenter": 128, "WindowWidth": 4, "VOILUTFunction": "LINEAR_EXACT"}, [0, 64, 128, 191, 255]),
        # 255 / (1 + exp(-4 (129 - 128) / 4)) = 186.4
        ({"WindowCenter": 128, "WindowWidth": 4, "VOILUTFunction": "SIGMOID"}, [30, 69, 128, 186, 225]),
        # the window applies after the slope: 2 * 128 - 100 = 156
        (
            {"RescaleSlope": 2, "RescaleIntercept": -100, "WindowCenter": 156.5, "WindowWidth": 9},
            [0, 64, 128, 191, 255],
        ),
    ],
)
def test_windows_give_the_gray_levels_of_the_standard(tags: dict, expected: list[int], tmp_path: Path) -> None:
    path = write_xa(tmp_path / "a.dcm", ramp(126, 127, 128, 129, 130), **tags)
    assert grays(path) == expected


@pytest.mark.parametrize(
    "tags",
    [
        {"WindowCenter": 5, "WindowWidth": 0},
        {"WindowCenter": 5, "WindowWidth": 0.5},
        {"WindowCenter": 5, "WindowWidth": -3, "VOILUTFunction": "SIGMOID"},
        {"WindowCenter": 5},
        {"WindowCenter": 5, "WindowWidth": 3, "VOILUTFunction": "CUBIC"},
    ],
)
def test_a_window_that_cannot_be_applied_is_refused(tags: dict, tmp_path: Path) -> None:
    assert refusal(write_xa(tmp_path / "a.dcm", ramp(1, 2), **tags)) == "invalid_window"


def lut(first: int, bits: int, *entries: int) -> list[Dataset]:
    item = Dataset()
    item.LUTDescriptor = [len(entries), first, bits]
    item.add_new("LUTData", "US", list(entries))
    return [item]


def test_lookup_tables_extend_their_first_and_last_entries(tmp_path: Path) -> None:
    path = write_xa(tmp_path / "a.dcm", ramp(9, 10, 11, 12, 13), VOILUTSequence=lut(10, 8, 0, 102, 255))
    assert grays(path) == [0, 0, 102, 255, 255]
    path = write_xa(
        tmp_path / "b.dcm",
        ramp(0, 1, 2),
        ModalityLUTSequence=lut(0, 16, 50, 1050, 3050),
        WindowCenter=550.5,
        WindowWidth=1001,
    )
    assert grays(path) == [0, 255, 255]
    short = lut(0, 16, 1, 2)
    short[0].LUTDescriptor = [9, 0, 16]
    assert refusal(write_xa(tmp_path / "c.dcm", ramp(0, 1), VOILUTSequence=short)) == "invalid_lut"


def test_a_transform_to_x_ray_intensity_is_not_displayed(tmp_path: Path) -> None:
    tags = {"ModalityLUTSequence": lut(0, 8, 255, 0, 0), "WindowCenter": 1.5, "WindowWidth": 3}
    assert grays(write_xa(tmp_path / "a.dcm", ramp(0, 1, 2), PixelIntensityRelationship="LOG", **tags)) == [0, 128, 255]
    assert grays(write_xa(tmp_path / "b.dcm", ramp(0, 1, 2), **tags)) == [255, 0, 0]


def test_monochrome1_is_inverted(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (1, 9, 7), dtype=np.uint8)
    window = {"WindowCenter": 100, "WindowWidth": 77}
    plain = dicom.read_frame(write_xa(tmp_path / "a.dcm", frames, **window), 0).pixels
    inverse = dicom.read_frame(
        write_xa(tmp_path / "b.dcm", frames, PhotometricInterpretation="MONOCHROME1", **window), 0
    ).pixels
    shape = dicom.read_frame(write_xa(tmp_path / "c.dcm", frames, PresentationLUTShape="INVERSE", **window), 0).pixels
    assert (np.abs(255 - plain.astype(int) - inverse) <= 1).all()  # halves are rounded up on both sides
    np.testing.assert_array_equal(inverse, shape)


def test_eight_bits_without_a_window_are_unchanged(tmp_path: Path) -> None:
    assert grays(write_xa(tmp_path / "a.dcm", ramp(0, 1, 128, 200, dtype="uint8"))) == [0, 1, 128, 200]
    six = write_xa(tmp_path / "b.dcm", ramp(0, 21, 63, dtype="uint8"), BitsStored=6)
    assert grays(six) == [0, 85, 255]
    signed = write_xa(tmp_path / "c.dcm", ramp(-128, -1, 127, dtype="int8"))
    assert grays(signed) == [0, 127, 255]


def test_deep_values_without_a_window_have_one_range_for_the_whole_cine(tmp_path: Path) -> None:
    frames = np.concatenate([ramp(100, 200, 300), ramp(200, 300, 600)])
    path = write_xa(tmp_path / "a.dcm", frames, BitsStored=12)
    assert grays(path, 0) == [0, 51, 102]
    assert grays(path, 1) == [51, 102, 255]
    flat = write_xa(tmp_path / "b.dcm", ramp(7, 7))
    assert grays(flat) == [0, 0]


def test_padding_is_black_and_outside_the_value_range(tmp_path: Path) -> None:
    values = ramp(0, 900, 1140, 1200, 60000)
    path = write_xa(tmp_path / "a.dcm", values, PixelPaddingValue=0, PixelPaddingRangeLimit=899)
    assert grays(path) == [0, 0, 1, 1, 255]
    path = write_xa(tmp_path / "b.dcm", values, PixelPaddingValue=60000, PhotometricInterpretation="MONOCHROME1")
    assert grays(path) == [255, 64, 13, 0, 0]


def test_an_enhanced_image_has_a_window_for_each_frame(tmp_path: Path) -> None:
    frames = np.concatenate([ramp(126, 127, 128), ramp(126, 127, 128)])
    xa = make_xa(frames)
    windows, shared = [], Dataset()
    for center in (127, 128):
        window, group = Dataset(), Dataset()
        window.WindowCenter, window.WindowWidth = center, 3
        group.FrameVOILUTSequence = [window]
        windows.append(group)
    measures = Dataset()
    measures.PixelSpacing = [0.3, 0.2]
    shared.PixelMeasuresSequence = [measures]
    xa.PerFrameFunctionalGroupsSequence, xa.SharedFunctionalGroupsSequence = windows, [shared]
    path = write(tmp_path / "a.dcm", xa, frames)
    assert [grays(path, 0), grays(path, 1)] == [[64, 191, 255], [0, 64, 191]]
    assert dicom.read_facts(path).spacing_mm == (0.3, 0.2)


def test_palettes_and_colors_become_rgb(tmp_path: Path) -> None:
    palette = {
        f"{color}PaletteColorLookupTable{part}": value
        for color, table in (("Red", b"\0\xff"), ("Green", b"\x10\x20"), ("Blue", b"\0\0"))
        for part, value in (("Descriptor", [2, 0, 8]), ("Data", table))
    }
    path = write_xa(
        tmp_path / "a.dcm", ramp(0, 1, 7, dtype="uint8"), PhotometricInterpretation="PALETTE COLOR", **palette
    )
    assert dicom.read_frame(path, 0).pixels[0].tolist() == [[0, 16, 0], [255, 32, 0], [255, 32, 0]]
    rgb = np.array([[[[1, 2, 3], [200, 100, 0]]]], dtype=np.uint8)
    np.testing.assert_array_equal(dicom.read_frame(write_xa(tmp_path / "b.dcm", rgb), 0).pixels, rgb[0])
    cmyk = write_xa(tmp_path / "c.dcm", rgb, PhotometricInterpretation="CMYK")
    assert refusal(cmyk) == "unsupported_color_model"


def test_the_header_is_checked_before_pixels_are_decoded(tmp_path: Path) -> None:
    frames = np.zeros((3, 4, 4), dtype=np.uint8)
    path = write_xa(tmp_path / "a.dcm", frames, NumberOfFrames=2**31 - 1)
    assert refusal(path) == "truncated_file"
    assert refusal(write_xa(tmp_path / "b.dcm", frames, NumberOfFrames=2)) == "frame_count_mismatch"
    assert refusal(write_xa(tmp_path / "c.dcm", frames, Rows=65535, Columns=65535)) == "image_too_large"
    assert refusal(write_xa(tmp_path / "d.dcm", frames, BitsStored=9)) == "invalid_bit_depth"
    assert refusal(write_xa(tmp_path / "i.dcm", frames, PhotometricInterpretation="RGB")) == "header_mismatch"
    assert refusal(write_xa(tmp_path / "e.dcm", frames, BitsAllocated=None)) == "missing_tag"
    with raises_code(ImageError, "frame_count_mismatch", "9 frames", "has 3"):
        packed = write_xa(tmp_path / "f.dcm", frames, "rle")
        tags = pydicom.dcmread(packed)
        tags.NumberOfFrames = 9
        tags.save_as(packed)
        dicom.count_frames(packed)
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    assert refusal(path) == "truncated_file"
    xa = make_xa(frames)
    bare = write(tmp_path / "g.dcm", xa, frames)
    tags = pydicom.dcmread(bare)
    del tags.PixelData
    tags.save_as(bare)
    assert refusal(bare) == "no_pixel_data"
    with raises_code(ImageError, "frame_count_mismatch", "frame 3"):
        dicom.read_frame(write_xa(tmp_path / "h.dcm", frames), 3)


@pytest.mark.parametrize("syntax", ["jpeg baseline", "jpeg 2000 lossless"])
def test_a_stream_of_another_size_than_the_header_is_refused_before_it_is_decoded(syntax: str, tmp_path: Path) -> None:
    path = write_xa(tmp_path / "a.dcm", np.zeros((1, 40, 40), dtype=np.uint8), syntax)
    content = path.read_bytes()
    # the heights: after SOF0's length and precision, and in SIZ
    offset = content.find(b"\xff\xc0") + 5 if syntax == "jpeg baseline" else content.find(b"\xff\x51") + 10
    path.write_bytes(content[:offset] + b"\x7f\xff" + content[offset + 2 :])
    assert refusal(path) == "header_mismatch"
    offset = content.find(b"\xff\xd8\xff" if syntax == "jpeg baseline" else b"\xff\x4f\xff")
    path.write_bytes(content[:offset] + b"\0\0" + content[offset + 2 :])
    assert refusal(path) == "header_mismatch"


def test_an_unsupported_transfer_syntax_is_named(tmp_path: Path) -> None:
    path = write_xa(tmp_path / "a.dcm", np.zeros((1, 40, 40), dtype=np.uint8), "rle")
    tags = pydicom.dcmread(path)
    tags.file_meta.TransferSyntaxUID = pydicom.uid.MPEG2MPML
    tags.save_as(path)
    with raises_code(ImageError, "unsupported_transfer_syntax", "MPEG2 Main Profile"):
        dicom.read_frame(path, 0)
    tags.file_meta.TransferSyntaxUID = pydicom.uid.UID("1.2.3.4.5")
    tags.save_as(path)
    with raises_code(ImageError, "unsupported_transfer_syntax", "unknown"):
        dicom.read_frame(path, 0)


def test_a_missing_decoder_is_named_with_its_command() -> None:
    decoder = pydicom.pixels.get_decoder(pydicom.uid.JPEGLSLossless)
    plugins = {name: decoder._available.pop(name) for name in decoder.available_plugins}
    try:
        with raises_code(ImageError, "undecodable_pixels", "JPEG-LS", 'pip install "vesalius[dicom]"'):
            dicom.read_frame(SHIPPED / "MR_small_jpeg_ls_lossless.dcm", 0)
    finally:
        decoder._available.update(plugins)


def test_without_pydicom_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_xa(tmp_path / "a.dcm", ramp(1))
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(MissingExtraError, match=r"vesalius\[dicom\]"):
        dicom.count_frames(path)


def test_facts_are_those_of_the_header(tmp_path: Path) -> None:
    frames = np.zeros((3, 4, 5), dtype=np.uint16)
    facts = dicom.read_facts(
        write_xa(
            tmp_path / "a.dcm",
            frames,
            BitsStored=12,
            BurnedInAnnotation="NO",
            InstitutionName="Spital",
            PatientBirthDate="19500101",
        )
    )
    assert (facts.frames, facts.size, facts.photometric) == (3, (4, 5), "MONOCHROME2")
    assert (facts.spacing_mm, facts.spacing_of, facts.frame_time_ms) == ((0.25, 0.25), "ImagerPixelSpacing", 66.7)
    assert (facts.patient_id, facts.study_uid, facts.series_uid) == ("17", "1.2.3.4.2", "1.2.3.4.3")
    assert facts.sop_instance_uid == "1.2.3.4.1"
    assert (facts.instance_number, facts.burned_in_annotation) == (1, False)
    assert facts.personal_tags == ("PatientName", "PatientID", "PatientBirthDate", "InstitutionName", "StudyID")
    assert "'17'" not in repr(facts)


@pytest.mark.parametrize(
    ("tags", "field", "expected"),
    [
        ({"PixelSpacing": [0.2, 0.1]}, "spacing_mm", (0.2, 0.1)),
        ({"PixelSpacing": [0.2, 0.1]}, "spacing_of", "PixelSpacing"),
        ({"ImagerPixelSpacing": [0, 0]}, "spacing_mm", None),
        ({"ImagerPixelSpacing": None}, "spacing_mm", None),
        ({"FrameTime": None, "CineRate": 15}, "frame_time_ms", pytest.approx(66.67, abs=0.01)),
        ({"FrameTime": None, "FrameTimeVector": [0, 60, 80]}, "frame_time_ms", 70.0),
        ({"FrameTime": None}, "frame_time_ms", None),
        ({"BurnedInAnnotation": "YES"}, "burned_in_annotation", True),
        ({"PatientIdentityRemoved": "YES"}, "personal_tags", ("StudyID",)),
        ({"InstanceNumber": None}, "instance_number", None),
    ],
)
def test_facts_are_read_from_alternative_attributes(tags: dict, field: str, expected: object, tmp_path: Path) -> None:
    path = write_xa(tmp_path / "a.dcm", np.zeros((3, 4, 5), dtype=np.uint8), **tags)
    assert getattr(dicom.read_facts(path), field) == expected


def test_objects_without_an_image_are_ignored_in_a_folder(tmp_path: Path) -> None:
    write_xa(tmp_path / "1.2.840.17", np.zeros((2, 4, 4), dtype=np.uint8))
    report = write_report(tmp_path / "state.dcm")
    assert [sample.id for sample in find_images([tmp_path])] == ["1.2.840.17__0000", "1.2.840.17__0001"]
    assert frame_files.kind_of(report) is None
    assert refusal(report) == "no_pixel_data"
    assert images.read_image(tmp_path / "1.2.840.17", 1).shape == (4, 4, 3)


@pytest.mark.parametrize("name", ["JPEG-lossy.dcm", "badVR.dcm", "SC_rgb_jpeg.dcm", "rtplan_truncated.dcm"])
def test_warnings_of_pydicom_are_suppressed(
    name: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture
) -> None:
    levels = {each: logging.getLogger(each).level for each in ("pydicom", "pylibjpeg", "openjpeg")}
    if name in REFUSED:
        refusal(SHIPPED / name)
    else:
        dicom.read_frame(SHIPPED / name, 0)
    assert caplog.records == [] and capfd.readouterr() == ("", "")
    assert {each: logging.getLogger(each).level for each in levels} == levels


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[bytes]]:
    """A path for a file, and contents to damage."""
    folder = tmp_path_factory.mktemp("fuzz")
    frames = np.random.default_rng(0).integers(0, 256, (2, 40, 36), dtype=np.uint8)
    tags = {"WindowCenter": [100, 20], "WindowWidth": [50, 3], "VOILUTSequence": lut(0, 8, 1, 2, 3)}
    syntaxes = ("explicit", "implicit", "rle", "jpeg 2000 lossless", "jpeg baseline")
    files = [write_xa(folder / syntax, frames, syntax, **tags) for syntax in syntaxes]
    files.append(write_xa(folder / "deep", frames.astype(np.uint16) * 9))
    return folder / "damaged.dcm", [file.read_bytes() for file in files]


@settings(max_examples=200)
@given(data=st.data())
def test_damage_gives_an_image_error_that_names_no_patient(data: st.DataObject, small) -> None:
    path, files = small
    content = bytearray(data.draw(st.sampled_from(files)))
    at = st.integers(0, len(content) - 1) | st.integers(128, min(1800, len(content) - 1))
    for offset, value in data.draw(st.lists(st.tuples(at, st.integers(0, 255)), min_size=1, max_size=8)):
        content[offset] = value
    path.write_bytes(content[: data.draw(st.just(len(content)) | at)])
    for read in (dicom.count_frames, lambda file: dicom.read_frame(file, 1).pixels.shape, dicom.read_facts):
        try:
            found = read(path)
            assert not isinstance(found, tuple) or (len(found) == 3 and found[2] == 3)
        except ImageError as error:
            assert PATIENT.split("^")[0] not in "".join(traceback.format_exception(error))
