"""Time, memory and quality of predicting a clip, with independent frames and with each propagation.

    .venv/bin/python benchmarks/video.py [--model tiny] [--frames 50 150 300] [--json FILE]

A synthetic coronary cine of the largest length is rendered. Its first frames are predicted with two prompts, each
length in a new process. Results are the peak memory (VmHWM) and its growth since the first frame, milliseconds and
encoder passes per frame, and J&F over all frames. Predictions are not written to files.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from typing import Any

from vesalius.data.dataset import load_item, load_samples
from vesalius.evaluation import video
from vesalius.files import to_json, write_json
from vesalius.inference.predictor import Predictor
from vesalius.jobs.opening import load_predictor
from vesalius.synth import write_dataset
from vesalius.types import Item, Prediction, Sample

PROMPTS = ("blood vessel", "catheter")
WAYS = ("frames", "official", "sam2")


def peak_mb() -> float:
    """Peak memory of this process in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def predict(predictor: Predictor, samples: list[Sample], way: Any) -> Iterator[list[Prediction]]:
    """The predictions of each frame for both prompts."""
    if way != "frames":
        for frame in predictor.predict_video(samples, PROMPTS, propagation=way):
            yield frame.predictions
        return
    for start in range(0, len(samples), predictor.batch_size):
        some = [load_item(sample) for sample in samples[start : start + predictor.batch_size]]
        found = predictor.predict([Item(item.id, item.frames, PROMPTS) for item in some])
        for first in range(0, len(found), len(PROMPTS)):
            yield found[first : first + len(PROMPTS)]


def score(sample: Sample, predictions: list[Prediction]) -> list[tuple[float, float]]:
    """J and F of each annotated prompt of a frame."""
    item = load_item(sample)
    assert item.masks is not None
    targets = dict(zip(item.prompts, item.masks[:, 0], strict=True))
    pairs = [(targets[each.prompt], each.mask) for each in predictions if each.prompt in targets]
    return [(video.region(*pair) or 0.0, video.contour(*pair) or 0.0) for pair in pairs]


def measure(model: str, folder: Path, frames: int, way: str, scored: bool) -> dict[str, Any]:
    """One row of the table, measured in this process."""
    predictor = load_predictor(model, answer="force")
    assert isinstance(predictor, Predictor)
    samples = load_samples(folder)[:frames]
    passes: list[int] = []
    backbone = predictor.model.sam.vision_encoder.backbone
    backbone.register_forward_hook(lambda _, given, __: passes.append(len(given[0])))
    before, started, scores = peak_mb(), time.perf_counter(), []
    took = 0.0
    for sample, predictions in zip(samples, predict(predictor, samples, way), strict=True):
        took += time.perf_counter() - started
        if scored:
            scores += score(sample, predictions)
        started = time.perf_counter()
    row = {"way": way, "frames": frames, "ms_a_frame": 1000 * took / frames}
    row |= {"encoded_a_frame": sum(passes) / frames, "peak_mb": peak_mb(), "grown_mb": peak_mb() - before}
    return row | ({"j": mean(j for j, _ in scores), "f": mean(f for _, f in scores)} if scored else {})


def main() -> None:
    """Measure each propagation and length, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--frames", type=int, nargs="+", default=[50, 150, 300])
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        folder, frames, way, scored = args.one
        print(to_json(measure(args.model, Path(folder), int(frames), way, scored == "scored")))
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        write_dataset(Path(folder) / "cine", 1, frames=max(args.frames), num_workers=0)
        for way in WAYS:
            for scored, n in [*(("plain", n) for n in sorted(args.frames)), ("scored", max(args.frames))]:
                one = [str(Path(folder) / "cine"), str(n), way, scored]
                command = [sys.executable, __file__, "--model", args.model, "--one", *one]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                rows.append(row := json.loads(done.stdout.splitlines()[-1]))
                shown = "  ".join(f"{name} {value:.3f}" for name, value in list(row.items())[2:])
                print(f"{way:10}{n:5d} frames  {shown}", flush=True)
    if args.json:
        write_json(args.json, {"model": args.model, "rows": rows})


if __name__ == "__main__":
    main()
