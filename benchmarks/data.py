"""Speed and memory of checking, reading and loading data.

    .venv/bin/python benchmarks/data.py [--images 5000] [--annotations 100000] [--json FILE]

Each measurement runs in a separate process:
check    `vesalius check` of 512 x 512 angiograms with masks of two phrases, with two processes; total memory for a fifth
         of the images and for all, because it must not grow with their number.
read     annotations in the formats vesalius and COCO, 20 polygons of 30 points per image.
frames   sequential frames of a video and of a compressed NIfTI volume.
load     augmented training batches, prepared by one thread, compared with a training step of the tiny model.
The images are synthetic; 50 are rendered, and the others are variants with different background blocks.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

from vesalius.data.augment import AugmentSettings
from vesalius.data.dataset import load_image, load_samples, open_dataset
from vesalius.data.decoders.frame_files import FrameReader
from vesalius.data.image_files import find_images
from vesalius.files import write_json

DRAWN = 50
POINTS, POLYGONS = 30, 20


def make_images(folder: Path, n: int) -> None:
    """A dataset of `n` different images in `folder`."""
    from vesalius.synth import write_dataset

    write_dataset(folder, min(n, DRAWN), seed=5)
    entries = json.loads((folder / "annotations.json").read_text())
    rng = np.random.default_rng(0)
    for i in range(len(entries), n):
        entry = entries[i % DRAWN]
        pixels = np.array(Image.open(folder / entry["image"]))
        # other background blocks, so that no two images are near duplicates
        blocks = rng.integers(0, 60, (8, 8), dtype=np.uint8).repeat(64, 0).repeat(64, 1)
        name = f"images/copy_{i:06d}.png"
        Image.fromarray(pixels // 2 + blocks).save(folder / name, compress_level=1)
        entries.append({**entry, "image": name, "group": f"copy_{i}"})
    (folder / "annotations.json").write_text(json.dumps(entries))


class PeakMemory:
    """Peak memory of this process and its children together, sampled ten times per second."""

    def __init__(self) -> None:
        self.peak_bytes = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        me = psutil.Process()
        while not self._ended.wait(0.1):
            held = 0
            for process in (me, *me.children(recursive=True)):
                try:
                    held += process.memory_full_info().uss
                except psutil.Error:  # the process has ended
                    continue
            self.peak_bytes = max(self.peak_bytes, held)


def measure_check(folder: Path) -> dict[str, Any]:
    """Images per second and memory of a check by two processes."""
    from vesalius.checks.inspection import inspect

    with PeakMemory() as memory:
        started = time.perf_counter()
        report = inspect(folder, num_workers=2)
        took_s = time.perf_counter() - started
    n = len(report.measurements)
    return {
        "images": n,
        "took_s": took_s,
        "images_per_s": n / took_s,
        "peak_mib": memory.peak_bytes / 2**20,
        "findings": sorted({finding.code for finding in report.findings}),
    }


def make_annotations(folder: Path, annotations: int, kind: str) -> Path:
    """An annotation file of one format; its images are empty files, because reading does not open them."""
    rng = np.random.default_rng(0)
    n = annotations // POLYGONS
    (folder / "images").mkdir(parents=True, exist_ok=True)
    shapes = rng.uniform(0, 512, (n, POLYGONS, 2 * POINTS)).round(2)
    names = [f"{i:06d}.png" for i in range(n)]
    for name in names:
        (folder / "images" / name).touch()
    if kind == "vesalius":
        value: Any = [
            {"image": name, "mask": [[row] for row in shapes[i].tolist()], "text": [f"v{j}" for j in range(POLYGONS)]}
            for i, name in enumerate(names)
        ]
    else:
        images = [{"id": i, "file_name": name, "width": 512, "height": 512} for i, name in enumerate(names)]
        rows = [
            {"id": POLYGONS * i + j, "image_id": i, "category_id": j, "segmentation": [row], "iscrowd": 0}
            for i in range(n)
            for j, row in enumerate(shapes[i].tolist())
        ]
        categories = [{"id": j, "name": f"v{j}"} for j in range(POLYGONS)]
        value = {"images": images, "annotations": rows, "categories": categories}
    path = folder / "annotations.json"
    path.write_text(json.dumps(value))
    return path


def measure_reading(path: Path) -> dict[str, Any]:
    """Seconds and peak memory of reading an annotation file."""
    started = time.perf_counter()
    dataset = open_dataset(path)
    took_s = time.perf_counter() - started
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    objects = sum(len(sample.masks or ()) for sample in dataset.samples)
    return {"format": dataset.format, "annotations": objects, "took_s": took_s, "peak_mib": peak_mib}


def make_frames(folder: Path, n: int = 200) -> list[Path]:
    """`n` moving frames of 512 x 512 as H.264 in MP4, with a key frame every 250, and as a compressed NIfTI volume."""
    import av
    import nibabel

    noise = np.random.default_rng(0).normal(100, 25, (512, 512 + n)).clip(0, 255).astype(np.uint8)
    frames = [noise[:, i : i + 512] for i in range(n)]
    folder.mkdir(parents=True, exist_ok=True)
    with av.open(str(folder / "frames.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=15, options={"g": "250", "crf": "23"})
        stream.height, stream.width, stream.pix_fmt = 512, 512, "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.repeat(frame[..., None], 3, 2), "rgb24")))
        container.mux(stream.encode())
    nibabel.Nifti1Image(np.stack(frames, axis=2), np.eye(4)).to_filename(folder / "frames.nii.gz")
    return [folder / "frames.mp4", folder / "frames.nii.gz"]


def measure_frames(path: Path) -> dict[str, Any]:
    """Frames per second of a file that is read in order."""
    with FrameReader() as reader:
        samples = find_images([path])
        started = time.perf_counter()
        for sample in samples:
            load_image(sample, reader)
        took_s = time.perf_counter() - started
    return {"file": path.name, "frames": len(samples), "took_s": took_s, "frames_per_s": len(samples) / took_s}


def measure_loading(folder: Path, steps: int) -> dict[str, Any]:
    """Images per second prepared by one thread, and used by training steps of the tiny model, in one process."""
    import torch

    from vesalius.models.checkpoint import new_model
    from vesalius.models.cpu_allocator import keep_freed_memory
    from vesalius.models.trainable import set_trainable
    from vesalius.training.learner import TextSegLearner
    from vesalius.training.loader import Loader
    from vesalius.training.losses import LossSettings
    from vesalius.training.mixture import Mixture, TaskSettings

    keep_freed_memory()
    torch.set_num_threads(1)
    opened = new_model("tiny", seed=0)
    groups = set_trainable(opened.model, "full")
    optimizer = torch.optim.AdamW([p for group in groups.values() for p in group], lr=1e-4)
    augment = AugmentSettings(flip=0.5, rotate_degrees=30, scale=0.2, shift=0.05, gamma=0.4, contrast=0.2, noise=4)
    batch = 4
    learner = TextSegLearner(opened, groups, LossSettings())
    loader = Loader(Mixture(load_samples(folder), TaskSettings()), learner, augment, batch, seed=0)
    loading, training = [], []
    steps_of_epoch = loader.steps(0)
    for _ in range(steps):
        started = time.perf_counter()
        prepared: Any = next(steps_of_epoch).microbatches[0].batch
        loading.append(time.perf_counter() - started)
        started = time.perf_counter()
        learner.losses(opened.model, prepared)["total"].backward()
        optimizer.step()
        optimizer.zero_grad()
        training.append(time.perf_counter() - started)
    loaded, trained = (batch / statistics.median(seconds[2:]) for seconds in (loading, training))
    return {"loaded_images_per_s": loaded, "trained_images_per_s": trained, "ratio": loaded / trained}


def main() -> None:
    """Run all measurements and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--annotations", type=int, default=100_000)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--one", nargs=2, metavar=("MEASUREMENT", "PATH"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        name, path = args.one[0], Path(args.one[1])
        measurements = {
            "check": measure_check,
            "read": measure_reading,
            "frames": measure_frames,
            "load": lambda p: measure_loading(p, args.steps),
        }
        print(json.dumps(measurements[name](path)))
        return
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for n in (args.images // 5, args.images):
            make_images(Path(scratch) / f"check_{n}", n)
            rows.append(_measure("check", Path(scratch) / f"check_{n}", args.steps))
        for kind in ("vesalius", "coco"):
            path = make_annotations(Path(scratch) / kind, args.annotations, kind)
            rows.append(_measure("read", path, args.steps))
        for path in make_frames(Path(scratch) / "frames"):
            rows.append(_measure("frames", path, args.steps))
        rows.append(_measure("load", Path(scratch) / f"check_{args.images // 5}", args.steps))
    if args.json:
        machine = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()}
        write_json(args.json, {"machine": machine, "rows": rows})


def _measure(name: str, path: Path, steps: int) -> dict[str, Any]:
    """The result of one measurement in a separate process, printed."""
    command = [sys.executable, __file__, "--one", name, str(path), "--steps", str(steps)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    row = {"measurement": name, **json.loads(done.stdout)}
    shown = (f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items())
    print("  ".join(shown), flush=True)
    return row


if __name__ == "__main__":
    main()
