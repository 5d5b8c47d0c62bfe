"""The command line: one short function a verb. It imports inside each, so that `--help` needs no torch."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from vesalius.errors import SettingError, VesaliusError
from vesalius.files import to_json
from vesalius.progress import Progress

Result = dict[str, Any]
"""What a verb found out: printed as JSON with `--json`. `failed` counts what went wrong and makes exit 1."""

MODEL = "a bundle, a run folder, an official Sa2VA folder, the hub name of one that is here, or tiny"


def synth(args: argparse.Namespace) -> Result:
    """Write synthetic angiograms with exact masks."""
    from vesalius.data.synth import write_data_set

    with Progress(args.n, "synth") as progress:
        write_data_set(args.out, args.n, seed=args.seed, size=args.size, on_progress=progress.reach)
    print(f"{args.out}: {args.n} images, {2 * args.n} masks")
    return {"out": str(args.out), "n": args.n, "seed": args.seed, "size": args.size}


def check(args: argparse.Namespace) -> Result:
    """Say what is wrong with a data set, before any computing time is spent on it."""
    from vesalius.data import checks

    data_set, findings = checks.inspect(args.data, split=args.split, prompt=args.prompt, group=args.group)
    counts = checks.counts(data_set)
    print(f"{data_set.root}: format {data_set.format}")
    for note in data_set.notes:
        print(note)
    for name, count in counts.items():
        print(f"{name}: {count}")
    for finding in findings:
        print(f"{finding.severity}: {finding.place}: {finding.message} [{finding.code}]")
    errors = sum(finding.severity == "error" for finding in findings)
    print(f"{errors} errors, {len(findings) - errors} warnings")
    return {
        "format": data_set.format,
        "counts": counts,
        "findings": [vars(finding) for finding in findings],
        "failed": errors,
    }


def train(args: argparse.Namespace) -> Result:
    """Fine-tune a model by a recipe."""
    from vesalius.models.allocator import keep_freed_memory
    from vesalius.training.run import read_run_settings
    from vesalius.training.run import train as run_training

    if (args.recipe is None) == (args.resume is None):
        raise SettingError("give a recipe, or --resume RUN to continue a run")
    keep_freed_memory()
    settings = read_run_settings(args.resume or args.recipe, args.set)
    if args.resume is not None:  # the run may have been moved since
        settings = settings.changed(out=args.resume)
    with Progress(1.0, "train", unit="run") as progress:
        run = run_training(
            settings,
            resume=args.resume is not None,
            overfit=args.overfit,
            on_note=print,
            on_step=lambda line: progress.reach(
                min(1.0, line["progress"]), f"step {line['step']} loss {line['loss']:.3f}"
            ),
            on_validation=lambda line: print(_validation_line(line), flush=True),
        )
    print(f"{run}: best and last checkpoint, log.jsonl, curves.png")
    return {"run": str(run), "best": str((run / "best").resolve())}


def _validation_line(line: dict[str, Any]) -> str:
    shown = ("dice", "iou", "precision", "recall", "seg_rate")
    scores = "  ".join(f"{name} {line[name]:.3f}" for name in shown if line[name] is not None)
    return f"validation at step {line['step']}: {scores}{'  (best so far)' if line['best'] else ''}"


def predict(args: argparse.Namespace) -> Result:
    """Write masks for images."""
    from vesalius.data.dataset import find_images
    from vesalius.inference.folder import write_predictions
    from vesalius.inference.predictor import load_predictor
    from vesalius.models.allocator import keep_freed_memory

    keep_freed_memory()
    images = find_images(args.images)
    predictor = load_predictor(args.model, answer=args.answer, threshold=args.threshold, batch=args.batch)
    with Progress(len(images), "predict") as progress:
        summary = write_predictions(
            predictor, images, args.prompt, args.out, save=args.save.split(","), on_progress=progress.reach
        )
    print(f"{args.out}: " + ", ".join(f"{count} {status}" for status, count in summary["coverage"].items()))
    for line in summary["failures"]:
        print(f"failed: {line}", file=sys.stderr)
    return {**summary, "failed": summary["coverage"]["failed"]}


def evaluate(args: argparse.Namespace) -> Result:
    """Predict, score against the ground truth, draw, and report."""
    from vesalius.data.dataset import open_data_set
    from vesalius.inference.predictor import load_predictor
    from vesalius.models.allocator import keep_freed_memory
    from vesalius.scoring import evaluate as run_evaluation

    keep_freed_memory()
    data_set = open_data_set(args.data, split=args.split, prompt=args.prompt, group=args.group)
    predictor = load_predictor(args.model, answer=args.answer, threshold=args.threshold, batch=args.batch)
    total = min(len(data_set.samples), args.limit or len(data_set.samples))
    with Progress(total, "evaluate") as progress:
        metrics = run_evaluation(
            predictor,
            data_set,
            args.out,
            limit=args.limit,
            allow_training_samples=args.allow_training_samples,
            on_progress=progress.reach,
        )
    for name, value in metrics["mean"].items():
        interval = metrics["ci95"].get(name)
        bounds = f"  (95 % {interval[0]:.3f} to {interval[1]:.3f})" if interval else ""
        print(f"{name:<12}{'undefined' if value is None else f'{value:.4f}'}{bounds}")
    print("  ".join(f"{status} {count}" for status, count in metrics["coverage"].items()))
    print(f"report: {args.out / 'report.html'}")
    return {**metrics, "failed": metrics["coverage"]["failed"]}


def info(args: argparse.Namespace) -> Result:
    """Say what a model is."""
    from vesalius.models.info import describe

    facts = describe(args.model)
    for name, value in facts.items():
        if name != "warnings":
            print(f"{name}: {value}")
    for warning in facts["warnings"]:
        print(f"warning: {warning}")
    return facts


def convert(args: argparse.Namespace) -> Result:
    """Write a model in the other layout, or a training checkpoint as a whole model, and prove it."""
    from vesalius.models.allocator import keep_freed_memory
    from vesalius.models.convert import convert as run_conversion
    from vesalius.models.proof import summarise

    keep_freed_memory()
    with Progress(1.0, "convert", unit="model") as progress:
        proof = run_conversion(
            args.source,
            args.out,
            to=args.to,
            base=args.base,
            keep_adapter=args.keep_adapter,
            lora_alpha=args.lora_alpha,
            on_bytes=lambda done, total: progress.reach(
                done / total, f"{done / 1e9:.1f} of {total / 1e9:.1f} GB"
            ),
        )
    for line in summarise(proof):
        print(line)
    return proof


def build_parser() -> argparse.ArgumentParser:
    """All verbs with their arguments."""
    parser = argparse.ArgumentParser(
        prog="vesalius", description="Text-prompted segmentation of your own images."
    )
    parser.add_argument("--version", action="version", version=version("vesalius"))
    verbs = parser.add_subparsers(metavar="VERB", required=True)

    verb = _add(verbs, synth)
    verb.add_argument("out", type=Path, metavar="OUT", help="folder to make")
    verb.add_argument("--n", type=int, default=48, help="images (default 48)")
    verb.add_argument("--seed", type=int, default=0, help="the same seed gives the same images (default 0)")
    verb.add_argument("--size", type=int, default=512, help="side in pixels (default 512)")

    verb = _add(verbs, check)
    _add_data(verb)

    verb = _add(verbs, train)
    verb.add_argument("recipe", type=Path, metavar="RECIPE.yaml", nargs="?", help="settings of the run")
    verb.add_argument(
        "--set", metavar="a.b=c", nargs="+", action="extend", default=[], help="change settings"
    )
    verb.add_argument("--resume", type=Path, metavar="RUN", help="continue the run in this folder")
    verb.add_argument("--overfit", type=int, metavar="N", help="learn N samples by heart, as a test")

    verb = _add(verbs, predict)
    verb.add_argument("model", metavar="MODEL", help=MODEL)
    verb.add_argument("images", type=Path, metavar="IMAGE_OR_FOLDER", nargs="+")
    verb.add_argument("--prompt", action="append", required=True, help="what to segment; may be given again")
    verb.add_argument("--out", type=Path, required=True, help="folder to make")
    verb.add_argument(
        "--save",
        default="masks,rle",
        metavar="masks,probs,overlay,rle",
        help="what to write (default masks,rle)",
    )
    _add_prediction(verb)

    verb = _add(verbs, evaluate)
    verb.add_argument("model", metavar="MODEL", help=MODEL)
    _add_data(verb)
    verb.add_argument("--out", type=Path, required=True, help="folder to make")
    verb.add_argument("--limit", type=int, help="only the first so many images")
    verb.add_argument(
        "--allow-training-samples",
        action="store_true",
        help="score images that the model was trained on, and say so",
    )
    _add_prediction(verb)

    verb = _add(verbs, info)
    verb.add_argument("model", metavar="MODEL", help=MODEL)

    _add_convert(verbs)
    return parser


def _add(verbs: Any, run: Callable[[argparse.Namespace], Result]) -> argparse.ArgumentParser:
    summary = (run.__doc__ or "").strip()
    verb: argparse.ArgumentParser = verbs.add_parser(run.__name__, help=summary, description=summary)
    verb.set_defaults(run=run)
    verb.add_argument("--json", action="store_true", help="the result as one line of JSON, last on stdout")
    verb.add_argument("-v", "--verbose", action="store_true", help="more messages, and a traceback of errors")
    return verb


def _add_convert(verbs: Any) -> None:
    verb = _add(verbs, convert)
    verb.add_argument("source", metavar="SOURCE", help="an official folder, a bundle, or a training .pth")
    verb.add_argument("out", type=Path, metavar="OUT", help="folder to make")
    verb.add_argument(
        "--to",
        choices=("vesalius", "sa2va"),
        default="vesalius",
        help="a bundle, or the official layout (default vesalius)",
    )
    verb.add_argument(
        "--base",
        metavar="MODEL",
        help="the model that a .pth belongs to; of any other source, a model to compare with",
    )
    verb.add_argument("--keep-adapter", action="store_true", help="keep LoRA beside the weights, unmerged")
    verb.add_argument(
        "--lora-alpha", type=float, metavar="A", help="LoRA's alpha, where the .pth does not tell it"
    )


def _add_data(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "data", type=Path, metavar="DATA", help="annotation file, or folder with images and masks"
    )
    verb.add_argument("--prompt", help="map every phrase to this one")
    verb.add_argument("--split", metavar="NAME", help="which annotations.NAME.json of a folder")
    verb.add_argument(
        "--group", metavar="G", help="patient or sequence: a field, or a regular expression on the id"
    )


def _add_prediction(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--answer", choices=("generate", "force"), default="generate", help="who writes the answer"
    )
    verb.add_argument(
        "--threshold",
        type=float,
        metavar="T",
        help="probability above which a pixel belongs (default: the model's)",
    )
    verb.add_argument("--batch", type=int, default=4, metavar="N", help="images at once (default 4)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; 0 for success, 1 for a refused or failed job, 2 for wrong usage."""
    args = build_parser().parse_args(arguments)
    level = logging.INFO if args.verbose else logging.WARNING
    logging.basicConfig(stream=sys.stderr, level=level, format="%(levelname)s: %(message)s")
    # a cancelled job cleans up as after Ctrl-C
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    stdout = sys.stdout
    if args.json:
        sys.stdout = sys.stderr
    try:
        result = args.run(args)
    except VesaliusError as error:
        if args.verbose:
            traceback.print_exc()
        print(f"vesalius: {error}", file=sys.stderr)
        return 1
    except Exception as error:
        if args.verbose:
            traceback.print_exc()
        reason = " ".join(str(error).split())
        print(f"vesalius: unexpected {type(error).__name__}: {reason} (-v shows where)", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("vesalius: interrupted", file=sys.stderr)
        return 1
    finally:
        sys.stdout = stdout
    if args.json:
        print(to_json(result))
    return 1 if result.get("failed") else 0
