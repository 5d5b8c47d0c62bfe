"""Video files: exact frames in any order, and an ImageError for every kind of damage."""

from __future__ import annotations

import os
import random
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.codes import raises_code
from tests.video_files import read_video, read_video_frame

from vesalius.data.dataset import load_item, open_dataset
from vesalius.data.decoders import frame_files, video
from vesalius.data.decoders.containers import container_of, stated_bytes
from vesalius.data.decoders.frame_files import FrameReader
from vesalius.data.images import read_image
from vesalius.errors import AnnotationError, DataError, ImageError

av = pytest.importorskip("av", reason="needs the extra video")

SIZE = (48, 64)
N = 30


def picture(i: int) -> np.ndarray:
    """A frame of a moving pattern that encodes the frame index as a gray level."""
    base = np.random.default_rng(0).integers(0, 255, (6, 8, 3)).repeat(8, 0).repeat(8, 1).astype(np.uint8)
    moved = np.roll(base, 3 * i, axis=1)
    moved[:16, :16] = 8 * i % 256
    return moved


def write(
    path: Path, codec: str, pixels: str, n: int = N, kind: str | None = None, first: int = 0, **options: str
) -> Path:
    """Write a video of `n` pictures, every tenth a key frame; an edit list hides the pictures before `first`."""
    with av.open(str(path), "w", format=kind) as container:
        stream = container.add_stream(codec, rate=25, options={"g": "10", **options})
        stream.height, stream.width = SIZE
        stream.pix_fmt = pixels
        for i in range(n):
            frame = av.VideoFrame.from_ndarray(picture(i), format="rgb24")
            frame.pts, frame.time_base = i - first, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


LOSSLESS = {
    "ffv1.mkv": ("ffv1", "bgr0", {}),
    "raw.avi": ("rawvideo", "bgr24", {}),
    "raw_alpha.avi": ("rawvideo", "bgra", {}),
    "qtrle.mov": ("qtrle", "rgb24", {}),
    "rgb264.mp4": ("libx264rgb", "rgb24", {"qp": "0", "bf": "3"}),
}
LOSSY = {
    "h264.mp4": ("libx264", "yuv420p", {"bf": "3", "crf": "12"}),
    "h264.mkv": ("libx264", "yuv420p", {"bf": "3", "crf": "12"}),
    "h264.ts": ("libx264", "yuv420p", {"bf": "3", "crf": "12"}),
    "h264.avi": ("libx264", "yuv420p", {"bf": "3", "crf": "12"}),
    "open.mp4": ("libx264", "yuv420p", {"x264-params": "open-gop=1:bframes=3:keyint=10:min-keyint=10"}),
    "mpeg4.avi": ("mpeg4", "yuv420p", {"bf": "2", "qmin": "1", "qmax": "3"}),
    "mjpeg.avi": ("mjpeg", "yuvj420p", {"qmin": "1", "qmax": "3"}),
    "mpeg2.mpg": ("mpeg2video", "yuv420p", {"kind": "vob", "bf": "2", "qmin": "1", "qmax": "3"}),
    "vp9.webm": ("libvpx-vp9", "yuv420p", {"crf": "10", "cpu-used": "8", "deadline": "realtime"}),
}


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    for name, (codec, pixels, options) in {**LOSSLESS, **LOSSY}.items():
        write(folder / name, codec, pixels, **options)
    return folder


@pytest.mark.parametrize("name", LOSSLESS)
def test_lossless_frames_come_back_exactly(clips: Path, name: str) -> None:
    path = clips / name
    assert video.count_frames(path) == N
    with closing(video.VideoDecoder(path)) as decoder:
        for i in (0, 1, 2, 29, 13, 13, 12, 5, 6):
            np.testing.assert_array_equal(decoder.read(i).pixels, picture(i))
    assert all((frame == picture(i)).all() for i, frame in enumerate(read_video(path)))


@pytest.mark.parametrize("name", LOSSY)
def test_lossy_frames_are_the_requested_ones_in_any_order(clips: Path, name: str) -> None:
    path = clips / name
    in_order = read_video(path)
    assert len(in_order) == video.count_frames(path) == N
    for i, frame in enumerate(in_order):
        assert frame.shape == (*SIZE, 3)
        assert frame.dtype == np.uint8
        assert abs(float(frame[3:13, 3:13].mean()) - min(8 * i, 255)) < 4  # the number of the frame
    with closing(video.VideoDecoder(path)) as decoder:
        for i in random.Random(0).choices(range(N), k=25):
            np.testing.assert_array_equal(decoder.read(i).pixels, in_order[i])


def test_a_video_is_recognized_by_its_bytes_under_any_name(clips: Path, tmp_path: Path) -> None:
    copy = tmp_path / "IM0001"
    copy.write_bytes((clips / "ffv1.mkv").read_bytes())
    assert video.recognize(copy, copy.read_bytes()[:512])
    np.testing.assert_array_equal(read_image(copy, 7), picture(7))
    with raises_code(ImageError, "multi_frame_file", "has 30 frames"):
        read_image(copy)
    for read in (read_image, read_video_frame):
        with raises_code(ImageError, "frame_count_mismatch", "has 30 frames", "frame 30"):
            read(copy, 30)


@pytest.mark.parametrize(
    ("head", "container"),
    [
        (b"\0\0\0\x20ftypisom", "mov"),
        (b"\0\0\0\x08wide\0\0\0\x10mdat", "mov"),
        (b"\0\0\0\x20ftypheic", None),
        (b"\0\0\0\x20ftypM4A ", None),
        (b"RIFF\0\0\0\0WAVEfmt ", None),
        (b"RIFF\0\0\0\0AVI LIST", "avi"),
        (b"\x1aE\xdf\xa3\xa3", "matroska"),
        (b"GIF89a" + bytes(506), None),
        ((b"G" + bytes(187)) * 3, "mpegts"),
        (b"\0\0\x01\xba\x44", "mpeg"),
        (b"\x89PNG\r\n\x1a\n", None),
        (b"#EXTM3U\nhttp://", None),
        (b"", None),
    ],
)
def test_containers_are_recognized(head: bytes, container: str | None) -> None:
    assert container_of(head) == container


def test_the_time_between_frames_is_read(clips: Path, tmp_path: Path) -> None:
    assert video.frame_time_ms(clips / "h264.mp4") == pytest.approx(40)
    assert video.frame_time_ms(clips / "h264.avi") == pytest.approx(40)
    assert video.frame_time_ms(write(tmp_path / "one.mkv", "ffv1", "bgr0", n=1)) is None


def test_single_frame_needs_no_number(tmp_path: Path) -> None:
    np.testing.assert_array_equal(read_image(write(tmp_path / "one.mkv", "ffv1", "bgr0", n=1)), picture(0))


def test_frames_hidden_by_an_edit_list_do_not_count(tmp_path: Path) -> None:
    path = write(tmp_path / "cut.mp4", "libx264rgb", "rgb24", first=5, qp="0", bf="0")
    assert video.count_frames(path) == N - 5
    for i in (3, 0, 24, 10):
        np.testing.assert_array_equal(read_video_frame(path, i), picture(i + 5))


def test_the_rotation_of_a_video_is_not_applied(clips: Path, tmp_path: Path) -> None:
    turned = tmp_path / "turned.mp4"
    with av.open(str(clips / "rgb264.mp4")) as source, av.open(str(turned), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        stream.set_display_rotation(90)
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                target.mux(packet)
    np.testing.assert_array_equal(read_video_frame(turned, 4), picture(4))


def test_frames_read_in_order_are_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "long.mp4", "libx264rgb", "rgb24", n=200, g="200", qp="18", preset="ultrafast")
    seeks: list[int] = []
    opened: list[Path] = []
    seek, start = video.VideoDecoder._seek, video.VideoDecoder.__init__
    monkeypatch.setattr(video.VideoDecoder, "_seek", lambda own, key: seeks.append(key) or seek(own, key))
    monkeypatch.setattr(video.VideoDecoder, "__init__", lambda own, file: opened.append(file) or start(own, file))
    with FrameReader() as reader:
        for i in range(200):
            read_image(path, i, reader)
        read_image(path, 199, reader)
        assert (seeks, opened) == ([], [path])
        read_image(path, 100, reader)
        assert (seeks, opened) == ([0], [path])


def test_a_reader_keeps_eight_files_open_and_closes_all_at_its_end(clips: Path, tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.mkv" for i in range(10)]
    for path in paths:
        path.write_bytes((clips / "ffv1.mkv").read_bytes())

    def open_files() -> int:
        return sum(each.readlink() in paths for each in Path("/proc/self/fd").iterdir() if each.is_symlink())

    with FrameReader() as reader:
        for path in paths:
            np.testing.assert_array_equal(reader.read(path, 3).pixels, picture(3))
        assert open_files() == reader.MAX_OPEN == 8
    assert open_files() == 0


def test_a_replaced_file_is_read_again(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mkv", "ffv1", "bgr0", n=4)
    with FrameReader() as reader:
        assert video.count_frames(path) == 4
        reader.read(path, 2)
        write(tmp_path / "b.mkv", "ffv1", "bgr0", n=9)
        (tmp_path / "b.mkv").replace(path)
        assert video.count_frames(path) == 9
        np.testing.assert_array_equal(reader.read(path, 8).pixels, picture(8))


def test_threads_share_a_reader(clips: Path) -> None:
    jobs = random.Random(1).choices(range(N), k=80)
    with FrameReader() as reader, ThreadPoolExecutor(4) as pool:
        frames = list(pool.map(lambda i: reader.read(clips / "rgb264.mp4", i).pixels, jobs))
    assert all((frame == picture(i)).all() for i, frame in zip(jobs, frames, strict=True))


@pytest.mark.parametrize("share", [0.02, 0.3, 0.7, 0.98])
@pytest.mark.parametrize("name", ["h264.mp4", "ffv1.mkv", "raw.avi", "qtrle.mov", "vp9.webm", "mpeg4.avi"])
def test_a_truncated_video_is_refused(clips: Path, tmp_path: Path, name: str, share: float) -> None:
    data = (clips / name).read_bytes()
    path = tmp_path / name
    path.write_bytes(data[: int(share * len(data))])
    with raises_code(ImageError, "truncated_file", f"it has {int(share * len(data))};"):
        video.count_frames(path)


def test_a_transport_stream_cut_within_a_packet_is_refused(clips: Path, tmp_path: Path) -> None:
    data = (clips / "h264.ts").read_bytes()
    path = tmp_path / "cut.ts"
    path.write_bytes(data[: len(data) // 2 // 188 * 188 + 100])
    with raises_code(ImageError, "truncated_file"):
        video.count_frames(path)


@pytest.mark.parametrize("name", ["mpeg4.avi", "raw.avi", "ffv1.mkv", "fast.mp4"])
def test_a_video_cut_between_two_packets_is_refused(clips: Path, tmp_path: Path, name: str) -> None:
    """FFmpeg opens such a file with fewer frames and no error."""
    whole = clips / name
    if name == "fast.mp4":  # the index comes first
        with (
            av.open(str(clips / "h264.mp4")) as source,
            av.open(str(whole), "w", options={"movflags": "faststart"}) as target,
        ):
            stream = target.add_stream_from_template(source.streams.video[0])
            for packet in source.demux(video=0):
                if packet.size:
                    packet.stream = stream
                    target.mux(packet)
    with av.open(str(whole)) as container:
        starts = [packet.pos for packet in container.demux(video=0) if packet.size]
    path = tmp_path / name
    path.write_bytes(whole.read_bytes()[: starts[20]])
    with av.open(str(path)) as container:
        assert sum(packet.size > 0 and not packet.is_corrupt for packet in container.demux(video=0)) == 20
    with raises_code(ImageError, "truncated_file"):
        video.count_frames(path)


def test_a_length_that_no_header_states_is_unknown(clips: Path, tmp_path: Path) -> None:
    for name in ("h264.mp4", "ffv1.mkv", "raw.avi"):
        container = container_of((clips / name).read_bytes()[:512])
        assert container is not None
        size = (clips / name).stat().st_size
        assert stated_bytes(clips / name, container) == size
        longer = tmp_path / name
        longer.write_bytes((clips / name).read_bytes() + b"zeros\0\0\0and more")
        assert stated_bytes(longer, container) == size
        assert video.count_frames(longer) == N
    assert stated_bytes(clips / "mpeg2.mpg", "mpeg") is None
    data = bytearray((clips / "raw.avi").read_bytes())
    data[4:8] = bytes(4)  # a recorder that was switched off before it wrote the length
    (tmp_path / "open.avi").write_bytes(data)
    assert stated_bytes(tmp_path / "open.avi", "avi") is None


def test_damage_within_a_frame_is_an_error_until_the_next_key_frame(clips: Path, tmp_path: Path) -> None:
    data = bytearray((clips / "mpeg4.avi").read_bytes())
    with av.open(str(clips / "mpeg4.avi")) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    start = packets[13].pos + 20
    data[start : start + 40] = bytes(40)
    path = tmp_path / "damaged.avi"
    path.write_bytes(data)
    with pytest.raises(ImageError, match=r"damaged\.avi"):
        read_video(path)


def test_frames_around_a_damaged_one_are_not_concealed(clips: Path, tmp_path: Path) -> None:
    with av.open(str(clips / "h264.mp4")) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    keys = [i for i, packet in enumerate(packets) if packet.is_keyframe]
    data = bytearray((clips / "h264.mp4").read_bytes())
    hurt = packets[keys[1] + 1]  # the rest of the second group depends on it
    data[hurt.pos + 12 : hurt.pos + hurt.size] = bytes(hurt.size - 12)
    path = tmp_path / "damaged.mp4"
    path.write_bytes(data)
    assert keys[1] == 10
    for i in (0, 5, 20, 25, 29):
        np.testing.assert_array_equal(read_video_frame(path, i), read_video_frame(clips / "h264.mp4", i))
    for i in (14, 17, 19):
        with pytest.raises(ImageError, match="frame"):
            read_video_frame(path, i)


def test_files_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with raises_code(ImageError, "not_found"):
        video.count_frames(tmp_path / "none.mp4")
    with raises_code(ImageError, "unreadable_file"):
        video.count_frames(tmp_path)
    (tmp_path / "words.mp4").write_text("not a video")
    with raises_code(ImageError, "unsupported_file_type", "words.mp4"):
        video.count_frames(tmp_path / "words.mp4")
    with raises_code(ImageError, "invalid_bit_depth", "gray16le"):
        read_video_frame(write(tmp_path / "deep.mkv", "ffv1", "gray16le", n=2), 0)
    path = write(tmp_path / "short.mkv", "ffv1", "bgr0", n=3)
    monkeypatch.setattr("vesalius.data.decoders.video.MAX_FRAMES", 2)
    with raises_code(ImageError, "image_too_large", "more than 2 frames"):
        video.count_frames(path)
    monkeypatch.setattr("vesalius.data.decoders.limits.MAX_PIXELS", 1000)
    os.utime(path, (1, 1))
    with raises_code(ImageError, "image_too_large", "megapixels"):
        video.count_frames(path)


def test_a_frame_that_is_partly_transparent_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "glass.mov"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("qtrle", rate=25)
        stream.height, stream.width, stream.pix_fmt = *SIZE, "argb"
        pixels = np.full((*SIZE, 4), 200, np.uint8)
        pixels[:10, :, 3] = 100
        container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgba").reformat(format="argb")))
        container.mux(stream.encode())
    with raises_code(ImageError, "transparent_image", "frame 0"):
        read_video_frame(path, 0)


def test_a_file_with_no_video_stream_or_two_is_refused(tmp_path: Path) -> None:
    sound = tmp_path / "sound.mkv"
    with av.open(str(sound), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    two = tmp_path / "two.mkv"
    with av.open(str(two), "w") as container:
        streams = [container.add_stream("ffv1", rate=25) for _ in range(2)]
        for each in streams:
            each.height, each.width, each.pix_fmt = *SIZE, "bgr0"
        for each in streams:
            container.mux(each.encode(av.VideoFrame.from_ndarray(picture(0), format="rgb24")))
        for each in streams:
            container.mux(each.encode())
    for path, n in ((sound, 0), (two, 2)):
        with raises_code(ImageError, "unsupported_video", f"has {n} video streams"):
            video.count_frames(path)


def test_a_playlist_with_the_name_of_a_video_opens_nothing(clips: Path, tmp_path: Path) -> None:
    playlist = tmp_path / "list.mp4"
    playlist.write_text(f"ffconcat version 1.0\nfile {clips / 'ffv1.mkv'}\n")
    assert frame_files.kind_of(playlist) is None
    with raises_code(ImageError, "unsupported_file_type"):
        read_video_frame(playlist, 0)


def test_any_damage_is_an_image_error_and_never_hangs(clips: Path, tmp_path: Path) -> None:
    rng = random.Random(0)
    names = "h264.mp4 h264.mkv h264.ts mpeg4.avi mpeg2.mpg vp9.webm qtrle.mov mjpeg.avi".split()
    for trial in range(160):
        name = names[trial % len(names)]
        data = bytearray((clips / name).read_bytes())
        reach = len(data) if trial % 3 else 700
        for _ in range(rng.choice((1, 4, 30))):
            data[rng.randrange(reach)] = rng.randrange(256)
        if trial % 5 == 0:
            del data[rng.randrange(len(data)) :]
        path = tmp_path / f"{trial}{Path(name).suffix}"
        path.write_bytes(data)
        started = time.monotonic()
        try:
            n = video.count_frames(path)
            with closing(video.VideoDecoder(path)) as decoder:
                for i in (0, n // 2, n - 1):
                    decoder.read(i)
        except ImageError as error:
            assert str(path) in str(error)
        path.unlink()
        assert time.monotonic() - started < 10


def test_random_bytes_after_a_magic_are_an_image_error(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for i, head in enumerate((b"\0\0\0\x20ftypisom", b"\x1aE\xdf\xa3", b"RIFF\0\0\0\0AVI ", b"\0\0\x01\xba")):
        path = tmp_path / f"{i}.bin"
        path.write_bytes(head + rng.bytes(3000))
        with pytest.raises(ImageError):
            video.count_frames(path)


def test_a_folder_of_videos_is_a_dataset_without_masks(clips: Path, tmp_path: Path) -> None:
    for name, source in (("p1/a.mkv", "ffv1.mkv"), ("p2/b.mp4", "rgb264.mp4")):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes((clips / source).read_bytes())
    (tmp_path / "notes.txt").write_text("mine")
    data = open_dataset(tmp_path)
    assert data.format == "video"
    assert len(data.samples) == 2 * N
    sample = data.samples[N + 7]
    assert (sample.id, sample.frame, sample.group, sample.sequence) == ("p2__b__0007", 7, "p2__b", "p2__b")
    assert sample.masks is None
    assert any("ignored files beside the videos, by suffix: .txt (1)" in note for note in data.notes)
    np.testing.assert_array_equal(load_item(sample).frames[0], picture(7))
    assert [each.id for each in open_dataset(tmp_path / "p1" / "a.mkv").samples][:2] == ["a__0000", "a__0001"]


def test_a_broken_video_in_a_folder_is_one_problem(clips: Path, tmp_path: Path) -> None:
    (tmp_path / "a.mkv").write_bytes((clips / "ffv1.mkv").read_bytes())
    (tmp_path / "a.avi").write_bytes((clips / "raw.avi").read_bytes())
    (tmp_path / "b.mkv").write_bytes((clips / "ffv1.mkv").read_bytes()[:-50])
    with raises_code(AnnotationError, "duplicate_id", "a.mkv", "a.avi"):
        open_dataset(tmp_path)
    problems: list[DataError] = []
    assert len(open_dataset(tmp_path, problems=problems).samples) == N
    assert [problem.code for problem in problems] == ["duplicate_id", "truncated_file"]


def test_a_missing_library_is_named_with_its_command(clips: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from vesalius.errors import MissingExtraError

    os.utime(clips / "raw.avi", (5, 5))
    absent: Any = None
    monkeypatch.setitem(sys.modules, "av", absent)
    with pytest.raises(MissingExtraError, match=r'pip install "vesalius\[video\]"'):
        video.count_frames(clips / "raw.avi")
