"""Video files: exact frames in any order, and one sentence for every kind of broken file."""

from __future__ import annotations

import os
import random
import time
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vesalius.data.dataset import load_item, open_dataset
from vesalius.data.decoders import frame_files, video
from vesalius.data.decoders.containers import container_of, stated_bytes
from vesalius.data.images import read_image
from vesalius.errors import AnnotationError, DataError, ImageError

av = pytest.importorskip("av", reason="needs the extra video")

SIZE = (48, 64)
N = 30


def picture(i: int) -> np.ndarray:
    """A frame that moves and that tells its own number."""
    base = np.random.default_rng(0).integers(0, 255, (6, 8, 3)).repeat(8, 0).repeat(8, 1).astype(np.uint8)
    moved = np.roll(base, 3 * i, axis=1)
    moved[:16, :16] = 8 * i % 256
    return moved


def write(
    path: Path, codec: str, pixels: str, n: int = N, kind: str | None = None, first: int = 0, **options: str
) -> Path:
    """A clip of `n` pictures with a key frame at every tenth; `first` > 0 is an edit that hides those
    before."""
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
    for i in (0, 1, 2, 29, 13, 13, 12, 5, 6):
        np.testing.assert_array_equal(video.read_frame(path, i), picture(i))
    assert all((frame == picture(i)).all() for i, frame in enumerate(video.iter_frames(path)))


@pytest.mark.parametrize("name", LOSSY)
def test_lossy_frames_are_those_asked_for_in_any_order(clips: Path, name: str) -> None:
    path = clips / name
    in_order = list(video.iter_frames(path))
    assert len(in_order) == video.count_frames(path) == N
    for i, frame in enumerate(in_order):
        assert frame.shape == (*SIZE, 3)
        assert frame.dtype == np.uint8
        assert abs(float(frame[3:13, 3:13].mean()) - min(8 * i, 255)) < 4  # the number of the frame
    for i in random.Random(0).choices(range(N), k=25):
        np.testing.assert_array_equal(video.read_frame(path, i), in_order[i])


def test_a_file_is_known_by_its_bytes_whatever_its_name(clips: Path, tmp_path: Path) -> None:
    copy = tmp_path / "IM0001"
    copy.write_bytes((clips / "ffv1.mkv").read_bytes())
    assert video.recognize(copy, copy.read_bytes()[:512])
    np.testing.assert_array_equal(read_image(copy, 7), picture(7))
    with pytest.raises(ImageError, match="has 30 frames; name one"):
        read_image(copy)
    with pytest.raises(ImageError, match="there is no frame 30"):
        read_image(copy, 30)
    with pytest.raises(ImageError, match="has 30 frames, so there is no frame 31"):
        video.read_frame(copy, 31)


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
def test_containers_are_told_apart(head: bytes, container: str | None) -> None:
    assert container_of(head) == container


def test_time_between_frames_is_that_of_the_file(clips: Path, tmp_path: Path) -> None:
    assert video.frame_time_ms(clips / "h264.mp4") == pytest.approx(40)
    assert video.frame_time_ms(clips / "h264.avi") == pytest.approx(40)
    assert video.frame_time_ms(write(tmp_path / "one.mkv", "ffv1", "bgr0", n=1)) is None


def test_single_frame_needs_no_number(tmp_path: Path) -> None:
    np.testing.assert_array_equal(read_image(write(tmp_path / "one.mkv", "ffv1", "bgr0", n=1)), picture(0))


def test_frames_that_an_edit_hides_do_not_count(tmp_path: Path) -> None:
    path = write(tmp_path / "cut.mp4", "libx264rgb", "rgb24", first=5, qp="0", bf="0")
    assert video.count_frames(path) == N - 5
    for i in (3, 0, 24, 10):
        np.testing.assert_array_equal(video.read_frame(path, i), picture(i + 5))


def test_a_turned_video_is_read_as_it_is_stored(clips: Path, tmp_path: Path) -> None:
    turned = tmp_path / "turned.mp4"
    with av.open(str(clips / "rgb264.mp4")) as source, av.open(str(turned), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        stream.set_display_rotation(90)
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                target.mux(packet)
    assert video.stored_turned(turned)
    assert not video.stored_turned(clips / "rgb264.mp4")
    np.testing.assert_array_equal(video.read_frame(turned, 4), picture(4))


def test_frames_in_order_are_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "long.mp4", "libx264rgb", "rgb24", n=200, g="200", qp="18", preset="ultrafast")
    calls: list[int] = []
    seek = video.Clip._seek
    monkeypatch.setattr(video.Clip, "_seek", lambda clip, key: calls.append(key) or seek(clip, key))
    for i in range(200):
        read_image(path, i)
    read_image(path, 199)
    assert calls == []
    read_image(path, 100)
    assert calls == [0]


def test_a_file_written_anew_is_read_anew(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mkv", "ffv1", "bgr0", n=4)
    assert video.count_frames(path) == 4
    video.read_frame(path, 2)
    write(tmp_path / "b.mkv", "ffv1", "bgr0", n=9)
    (tmp_path / "b.mkv").replace(path)
    assert video.count_frames(path) == 9
    np.testing.assert_array_equal(video.read_frame(path, 8), picture(8))


def test_threads_read_beside_one_another(clips: Path) -> None:
    jobs = random.Random(1).choices(range(N), k=80)
    with ThreadPoolExecutor(4) as pool:
        frames = list(pool.map(lambda i: video.read_frame(clips / "rgb264.mp4", i), jobs))
    assert all((frame == picture(i)).all() for i, frame in zip(jobs, frames, strict=True))


@pytest.mark.parametrize("share", [0.02, 0.3, 0.7, 0.98])
@pytest.mark.parametrize("name", ["h264.mp4", "ffv1.mkv", "raw.avi", "qtrle.mov", "vp9.webm", "mpeg4.avi"])
def test_a_video_cut_short_is_refused(clips: Path, tmp_path: Path, name: str, share: float) -> None:
    data = (clips / name).read_bytes()
    path = tmp_path / name
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(ImageError, match="is cut short: by its headers"):
        video.count_frames(path)


def test_a_transport_stream_cut_inside_of_a_packet_is_not_read_as_whole(clips: Path, tmp_path: Path) -> None:
    data = (clips / "h264.ts").read_bytes()
    path = tmp_path / "cut.ts"
    path.write_bytes(data[: len(data) // 2 // 188 * 188 + 100])
    with pytest.raises(ImageError, match="is cut short"):
        video.count_frames(path)


def test_lengths_that_a_header_does_not_state_are_not_guessed(clips: Path, tmp_path: Path) -> None:
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


def test_damage_inside_of_a_frame_is_an_error_until_the_next_key_frame(clips: Path, tmp_path: Path) -> None:
    data = bytearray((clips / "mpeg4.avi").read_bytes())
    with av.open(str(clips / "mpeg4.avi")) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    start = packets[13].pos + 20
    data[start : start + 40] = bytes(40)
    path = tmp_path / "damaged.avi"
    path.write_bytes(data)
    with pytest.raises(ImageError, match=r"damaged\.avi"):
        list(video.iter_frames(path))


def test_frames_around_a_damaged_one_are_not_concealed(clips: Path, tmp_path: Path) -> None:
    with av.open(str(clips / "h264.mp4")) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    keys = [i for i, packet in enumerate(packets) if packet.is_keyframe]
    data = bytearray((clips / "h264.mp4").read_bytes())
    hurt = packets[keys[1] + 1]  # what the rest of the second group builds on
    data[hurt.pos + 12 : hurt.pos + hurt.size] = bytes(hurt.size - 12)
    path = tmp_path / "damaged.mp4"
    path.write_bytes(data)
    assert keys[1] == 10
    for i in (0, 5, 20, 25, 29):
        np.testing.assert_array_equal(video.read_frame(path, i), video.read_frame(clips / "h264.mp4", i))
    for i in (14, 17, 19):
        with pytest.raises(ImageError, match="frame"):
            video.read_frame(path, i)


def test_what_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ImageError, match="there is no such file"):
        video.count_frames(tmp_path / "none.mp4")
    with pytest.raises(ImageError, match="is a folder"):
        video.count_frames(tmp_path)
    (tmp_path / "words.mp4").write_text("not a film")
    with pytest.raises(ImageError, match="is no video that is read"):
        video.count_frames(tmp_path / "words.mp4")
    with pytest.raises(ImageError, match=r"has more than 8 bits a channel \(gray16le\)"):
        video.read_frame(write(tmp_path / "deep.mkv", "ffv1", "gray16le", n=2), 0)
    film = write(tmp_path / "film.mkv", "ffv1", "bgr0", n=3)
    monkeypatch.setattr("vesalius.data.decoders.video.MAX_FRAMES", 2)
    with pytest.raises(ImageError, match="has more than 2 frames"):
        video.count_frames(film)
    monkeypatch.setattr("vesalius.data.decoders.limits.MAX_PIXELS", 1000)
    os.utime(film, (1, 1))
    with pytest.raises(ImageError, match="megapixels a picture"):
        video.count_frames(film)


def test_a_frame_that_is_partly_transparent_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "glass.mov"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("qtrle", rate=25)
        stream.height, stream.width, stream.pix_fmt = *SIZE, "argb"
        pixels = np.full((*SIZE, 4), 200, np.uint8)
        pixels[:10, :, 3] = 100
        container.mux(
            stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgba").reformat(format="argb"))
        )
        container.mux(stream.encode())
    with pytest.raises(ImageError, match="frame 0: is partly transparent"):
        video.read_frame(path, 0)


def test_sound_alone_and_two_pictures_side_by_side_are_refused(tmp_path: Path) -> None:
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
        with pytest.raises(ImageError, match=f"has {n} video streams"):
            video.count_frames(path)


def test_a_playlist_with_the_name_of_a_video_opens_nothing(clips: Path, tmp_path: Path) -> None:
    playlist = tmp_path / "list.mp4"
    playlist.write_text(f"ffconcat version 1.0\nfile {clips / 'ffv1.mkv'}\n")
    assert frame_files.kind_of(playlist) is None
    with pytest.raises(ImageError, match="is no video"):
        video.read_frame(playlist, 0)


def test_any_damage_is_an_image_error_and_never_hangs(clips: Path, tmp_path: Path) -> None:
    rng = random.Random(0)
    names = (
        "h264.mp4",
        "h264.mkv",
        "h264.ts",
        "mpeg4.avi",
        "mpeg2.mpg",
        "vp9.webm",
        "qtrle.mov",
        "mjpeg.avi",
    )
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
            for i in (0, n // 2, n - 1):
                video.read_frame(path, i)
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
    assert any("ignored beside the videos, by suffix: .txt (1)" in note for note in data.notes)
    np.testing.assert_array_equal(load_item(sample).frames[0], picture(7))
    assert [each.id for each in open_dataset(tmp_path / "p1" / "a.mkv").samples][:2] == [
        "a__0000",
        "a__0001",
    ]


def test_a_broken_video_in_a_folder_is_one_problem(clips: Path, tmp_path: Path) -> None:
    (tmp_path / "a.mkv").write_bytes((clips / "ffv1.mkv").read_bytes())
    (tmp_path / "a.avi").write_bytes((clips / "raw.avi").read_bytes())
    (tmp_path / "b.mkv").write_bytes((clips / "ffv1.mkv").read_bytes()[:-50])
    with pytest.raises(AnnotationError, match=r"a\.mkv: has the same id a as a\.avi"):
        open_dataset(tmp_path)
    problems: list[DataError] = []
    assert len(open_dataset(tmp_path, problems=problems).samples) == N
    assert [problem.code for problem in problems] == ["duplicate_id", "unreadable_image"]


def test_missing_library_is_named_with_its_command(clips: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from vesalius.errors import MissingExtraError

    os.utime(clips / "raw.avi", (5, 5))
    absent: Any = None
    monkeypatch.setitem(sys.modules, "av", absent)
    with pytest.raises(MissingExtraError, match=r'pip install "vesalius\[video\]"'):
        video.count_frames(clips / "raw.avi")
