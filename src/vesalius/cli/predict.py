"""Segment images, videos or folders by text prompts, and write the masks."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

from vesalius.cli import arguments
from vesalius.cli.arguments import Result, defaults_of, given
from vesalius.cli.parser import Parser, several_of
from vesalius.names import count_of
from vesalius.progress import Progress

RESULTS = (
    *("combined_overlays", "overlays", "masks", "labelmaps", "probs", "dicom", "volumes", "videos"),
    *("areas.csv", "predictions.jsonl"),
)
"""Results in a prediction folder, in the order in which they are listed."""

SCORABLE = frozenset({"masks", "probs", "rle"})
"""Output types from which `evaluate --predictions` reads masks."""


def add_arguments(command: Parser) -> None:
    from vesalius.jobs.folder import write_predictions
    from vesalius.jobs.outputs import OUTPUT_KINDS

    add = command.add_argument
    add("model", metavar="MODEL", help=arguments.MODEL_OR_BASELINE)
    add(
        "images",
        type=Path,
        metavar="IMAGE_OR_VIDEO_OR_FOLDER",
        nargs="+",
        help="images, DICOM files, volumes, videos, or folders of them",
    )
    add(
        "--prompt",
        action="append",
        required=True,
        help="text prompt: what to segment; may be repeated. `tiny` knows 'blood vessel', 'catheter' and 'optic disc'",
    )
    add("--out", type=Path, required=True, help=arguments.OUT)
    add(
        "--save",
        type=several_of(OUTPUT_KINDS),
        default=",".join(defaults_of(write_predictions)["save"]),
        metavar="TYPE,...",
        help=f"output types to write, separated by commas: {', '.join(OUTPUT_KINDS)}",
    )
    arguments.add_overwrite(command)
    _add_video_options(command)
    command.needs("--reprompt-every", "--propagation", "sam2")
    devices = command.add_argument_group("devices").add_mutually_exclusive_group()
    devices.add_argument(
        "--devices",
        metavar="cuda:0,cuda:1",
        help="data parallel: one process per device; default: one process, on the GPU if there is one",
    )
    devices.add_argument(
        "--gpus",
        metavar="2x24GiB",
        help="model parallel: split one model over GPUs of this memory, or 24GiB,48GiB; see `vesalius plan`",
    )
    arguments.add_prediction_options(command)
    arguments.add_mask_options(command)


def _add_video_options(command: argparse.ArgumentParser) -> None:
    from vesalius.jobs.clip_folder import prepare_clips
    from vesalius.segmenter import Propagation

    group = command.add_argument_group("videos")
    group.add_argument(
        "--propagation",
        choices=("frames", *get_args(Propagation)),
        default=defaults_of(prepare_clips)["propagation"],
        help="how masks propagate in videos. frames: each frame independently; official: prompt on the first 5 "
        "frames, then Sa2VA's memory; sam2: prompt on key frames, then SAM 2's memory",
    )
    group.add_argument("--reprompt-every", type=int, metavar="N", help="with sam2: prompt again every N frames")


def run(args: argparse.Namespace) -> Result:
    """Write the predictions; `failed` is the number of images without a prediction."""
    from vesalius.data.image_files import find_images
    from vesalius.jobs.clip_folder import prepare_clips
    from vesalius.jobs.folder import check_request, write_predictions

    check_request(args.prompt, args.save)
    images = find_images(args.images)
    clips, options = given(args, "propagation reprompt_every"), given(args, "overwrite")
    with _open(args) as opened, Progress(len(images), "predict") as progress:
        segmenter, samples, worker = prepare_clips(*opened, images, args.prompt, args.save, **clips)
        summary = write_predictions(
            segmenter,
            samples,
            args.prompt,
            args.out,
            save=args.save,
            worker=worker,
            on_progress=progress.reach,
            **options,
        )
    for line in summary["failures"]:
        print(f"failed: {line}", file=sys.stderr)
    _report(summary, args.out, scorable=not SCORABLE.isdisjoint(args.save))
    return {**summary, "failed": summary["coverage"]["failed"]}


def _report(summary: Result, out: Path, *, scorable: bool) -> None:
    """Print coverage, where the results are, and what to do next; `scorable` if `evaluate` can read the masks."""
    from vesalius.evaluation.same_masks import describe_same
    from vesalius.window import describe_ranges

    if summary["already_done"]:
        print(f"already done: {out} has the predictions of this command; --overwrite makes them again")
    counts = ", ".join(f"{count} {status}" for status, count in summary["coverage"].items())
    if unknown := sum(summary["unknown_phrases"].values()):
        counts += f", {unknown} for unknown phrases"
    print(f"{out}: {count_of(summary['n_images'], 'image')}: {counts}")
    if same := describe_same(summary["same_masks"]):
        print(same)
    if "windows" in summary:
        print(describe_ranges(summary["windows"], summary["window"]))
    if summary["window_note"]:
        print(summary["window_note"])
    if summary["answers"]:
        answers = ", ".join(f"{count} {origin}" for origin, count in summary["answers"].items())
        print(f"text answers: {answers} (the words, not the masks)")
    spacing = summary.get("spacing", {})
    if spacing:
        found = {name or "no source, so mm are left empty": n for name, n in spacing.items()}
        print("pixel spacing from: " + ", ".join(f"{name} ({count_of(n, 'image')})" for name, n in found.items()))
    if "ImagerPixelSpacing" in spacing:
        print("ImagerPixelSpacing is measured at the detector, so mm are larger than in the patient")
    written = [f"{out / name}" for name in RESULTS if (out / name).exists()]
    print(f"written: {', '.join(written)}")
    if summary["segmented"]:
        score = f"; score them with: vesalius evaluate --predictions {out} DATA --out evaluation"
        print(f"next: look at {written[0]}{score if scorable else ''}")
    elif summary["coverage"]["failed"] < sum(summary["coverage"].values()):
        print(_explain_nothing(summary))


def _explain_nothing(summary: Result) -> str:
    """The last line of a job that segmented nothing."""
    coverage, total = summary["coverage"], sum(summary["coverage"].values())
    line = f"nothing was segmented: 0 of {count_of(total, 'prediction')} have a mask"
    if coverage["no_seg"] >= coverage["ok"]:
        answer = f", for example {summary['refusal'][:40]!r}" if summary["refusal"] else ""
        return f"{line}; the model answered without [SEG]{answer}: try another phrase, or --answer force"
    return f"{line}; no pixel is above the threshold: try another phrase, or a lower --threshold"


@contextmanager
def _open(args: argparse.Namespace) -> Iterator[tuple[Any, Any]]:
    """A segmenter in this process and None; or, with --devices, worker processes and their `predict_and_write`."""
    if "devices" not in args:
        yield arguments.open_segmenter(args, args.model), None
        return
    from vesalius.jobs.processes import predictor_processes

    devices, settings = args.devices.split(","), arguments.prediction_settings(args)
    with predictor_processes(args.model, devices, settings) as processes:
        yield processes, processes.predict_and_write
