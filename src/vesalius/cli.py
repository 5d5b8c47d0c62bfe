"""The command line: one short function a verb. It imports inside each, so that `--help` needs no torch."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vesalius.arguments import build_parser
from vesalius.errors import SettingError, VesaliusError
from vesalius.files import to_json
from vesalius.progress import Progress

Result = dict[str, Any]
"""What a verb found out: printed as JSON with `--json`. `failed` counts what went wrong and makes exit 1."""


def synth(args: argparse.Namespace) -> Result:
    """Write synthetic angiograms or retinas with exact masks."""
    from vesalius.data.synth import write_data_set

    settings = {name: getattr(args, name) for name in ("seed", "size", "frames", "kind", "phrases")}
    with Progress(args.n * args.frames, "synth") as progress:
        written = write_data_set(
            args.out, args.n, on_progress=progress.reach, workers=args.workers, **settings
        )
    missing = f", {written.absent} phrases that are not there" if written.absent else ""
    print(f"{args.out}: {written.images} images, {written.masks} masks{missing}")
    return {"out": str(args.out), "n": args.n, **settings, **vars(written)}


def check(args: argparse.Namespace) -> Result:
    """Say what is wrong with a data set, before any computing time is spent on it."""
    from vesalius.data.checks import fixes, sheet
    from vesalius.data.checks.inspection import inspect
    from vesalius.data.checks.listing import list_findings

    if args.report is not None:
        sheet.check_target(args.report)
    if args.fix is not None:
        fixes.check_target(args.fix, args.data)
    with Progress(1.0, "check", unit="data set") as progress:
        report = inspect(
            args.data,
            split=args.split,
            prompt=args.prompt,
            group=args.group,
            workers=args.workers,
            on_progress=progress.reach,
        )
    for name, part in report.parts.items():
        print(f"{part.root}{name and f', {name}'}: format {part.format}")
        for note in part.notes:
            print(note)
    for name, count in report.counts.items():
        print(f"{name}: {count}")
    for line in list_findings(report.findings, every=args.verbose):
        print(line)
    result: Result = {
        "format": ", ".join(dict.fromkeys(part.format for part in report.parts.values())),
        "counts": report.counts,
        "findings": [vars(finding) for finding in report.findings],
        "failed": sum(finding.severity == "error" for finding in report.findings),
    }
    if args.report is not None:
        with Progress(1.0, "report", unit="page") as progress:
            page = sheet.write_sheet(report, args.report, workers=args.workers, on_progress=progress.reach)
        print(f"report: {page}")
    return result if args.fix is None else result | _fix(args, report, result["failed"])


def _fix(args: argparse.Namespace, report: Any, errors: int) -> Result:
    """Write the corrected copy; the job fails only where errors are left in it."""
    from vesalius.data.checks.fixes import write_fixed

    with Progress(1.0, "fix", unit="copy") as progress:
        fixes = write_fixed(report, args.fix, workers=args.workers, on_progress=progress.reach)
    done = ", ".join(f"{n} {deed}" for deed, n in fixes.counts.items())
    print(f"{args.fix}: {done}; fixes.json lists them")
    print(f"errors: {errors} in {args.data}, {fixes.errors} in {args.fix}")
    return {"out": str(args.fix), "fixes": fixes.counts, "failed": fixes.errors}


def split(args: argparse.Namespace) -> Result:
    """Cut a data set into parts, or folds, of whole patients or sequences."""
    from vesalius.data.dataset import open_data_set
    from vesalius.data.splits import split_data_set

    data_set = open_data_set(args.data, split=args.split, prompt=args.prompt, group=args.group)
    with Progress(len(data_set.samples), "split") as progress:
        result = split_data_set(
            data_set,
            args.out,
            fractions=args.fractions,
            folds=args.folds,
            seed=args.seed,
            group=args.group,
            on_progress=progress.reach,
        )
    for name, part in result["parts"].items():
        area = "" if part["mean_area"] is None else f"  mean area {part['mean_area']:.4f}"
        phrases = "  ".join(f"{phrase} {n}" for phrase, n in part["phrases"].items())
        print(f"{name:<12}{part['images']} images  {part['groups']} groups{area}  {phrases}".rstrip())
    for note in result["notes"]:
        print(note)
    print(f"{args.out}: open a part with --split NAME")
    return result


def import_(args: argparse.Namespace) -> Result:
    """Bring annotation exports, DICOM files and videos into one data set, under pseudonyms if asked for."""
    from vesalius.data.importing import import_data_set

    with Progress(1.0, "import", unit="data set") as progress:
        result = import_data_set(
            args.source,
            args.out,
            to=args.to,
            pseudonymise=args.pseudonymise,
            key=args.key,
            prompt=args.prompt,
            split=args.split,
            group=args.group,
            on_progress=progress.reach,
        )
    for note in result["notes"]:
        print(note)
    print(f"{args.out}: {result['counts']['images']} images, format {args.to}")
    return result


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
    from vesalius.data.search import find_images
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
    """Predict, or read stored predictions, and score against the ground truth, draw, and report."""
    from vesalius.data.dataset import open_data_set
    from vesalius.scoring.evaluate import evaluate as run_evaluation

    model, data = _model_and_data(args)
    data_set = open_data_set(data, split=args.split, prompt=args.prompt, group=args.group)
    samples = data_set.samples[: args.limit]
    with Progress(len(samples), "evaluate") as progress:
        metrics = run_evaluation(
            _segmenter(args, model, samples),
            data_set,
            args.out,
            limit=args.limit,
            roi=args.roi,
            workers=args.workers,
            allow_training_samples=args.allow_training_samples,
            on_progress=progress.reach,
        )
    for name, value in metrics["mean"].items():
        interval = metrics["ci95"].get(name)
        bounds = f"  (95 % {interval[0]:.3f} to {interval[1]:.3f})" if interval else ""
        print(f"{name:<28}{'undefined' if value is None else f'{value:.4f}'}{bounds}")
    print("  ".join(f"{status} {count}" for status, count in metrics["coverage"].items()))
    for note in metrics["notes"]:
        print(note)
    print(f"report: {args.out / 'report.html'}")
    return {**metrics, "failed": metrics["coverage"]["failed"]}


def _model_and_data(args: argparse.Namespace) -> tuple[str | None, Path]:
    """The two names of `evaluate`, of which there is one with `--predictions`."""
    given = args.model_and_data
    if len(given) != (1 if args.predictions else 2):
        wanted = "--predictions DIR DATA" if args.predictions else "MODEL DATA"
        print(f"vesalius evaluate: takes {wanted}; got {' '.join(given)}", file=sys.stderr)
        raise SystemExit(2)  # wrong usage, as argparse has it
    return (None, Path(given[0])) if args.predictions else (given[0], Path(given[1]))


def _segmenter(args: argparse.Namespace, model: str | None, samples: Sequence[Any]) -> Any:
    if model is None:
        from vesalius.scoring.stored import StoredPredictions

        return StoredPredictions(args.predictions, samples, threshold=args.threshold)
    from vesalius.inference.predictor import load_predictor
    from vesalius.models.allocator import keep_freed_memory

    keep_freed_memory()
    return load_predictor(model, answer=args.answer, threshold=args.threshold, batch=args.batch)


def tune(args: argparse.Namespace) -> Result:
    """Find the threshold that scores best on validation data, and store it in a bundle."""
    from vesalius.data.dataset import open_data_set
    from vesalius.inference.predictor import load_predictor
    from vesalius.models.allocator import keep_freed_memory
    from vesalius.models.checkpoint import ThresholdOrigin
    from vesalius.models.threshold import check_target, store_threshold
    from vesalius.scoring.tune import find_threshold

    target = check_target(args.model, args.out)
    keep_freed_memory()
    data_set = open_data_set(args.data, split=args.split, prompt=args.prompt, group=args.group)
    predictor = load_predictor(args.model, answer=args.answer, batch=args.batch)
    with Progress(len(data_set.samples), "tune") as progress:
        tuned = find_threshold(predictor, data_set, args.metric, on_progress=progress.reach)
    origin = ThresholdOrigin(
        how="tuned",
        data=tuned.data,
        data_fingerprint=tuned.data_fingerprint,
        metric=tuned.metric,
        value=tuned.value,
        n_samples=tuned.n_samples,
    )
    store_threshold(args.model, target, tuned.threshold, origin, tuned.images)
    print(
        f"threshold {tuned.threshold:.2f}: mean {tuned.metric} {tuned.value:.4f} on {tuned.n_samples} images "
        f"({tuned.at_default:.4f} at 0.50)"
    )
    print(f"{target}: evaluate it on other images than these")
    return {**vars(tuned), "images": len(tuned.images), "bundle": str(target)}


def compare(args: argparse.Namespace) -> Result:
    """Say whether evaluations of the same samples differ, by how much, and how sure that is."""
    from vesalius.scoring.compare import compare as run_comparison

    result = run_comparison(args.evaluations, args.out, only=args.metric)
    for row in result["comparisons"]:
        if row["prompt"] is None and row["n"]:
            bounds = "  (95 % {:+.4f} to {:+.4f})".format(*row["ci95"]) if row["ci95"] else ""
            corrected = "" if row["p_holm"] is None else f"  p {row['p_holm']:.2g}"
            print(
                f"{row['evaluation']}  {row['metric']:<28}{row['difference']:+.4f}{bounds}{corrected}"
                f"  {row['verdict'] or 'not tested'}"
            )
    for note in result["notes"]:
        print(note)
    for row in result["failed_rows"]:
        print(f"failed: {row['id']} ({row['prompt']}) in {', '.join(row['errors'])}", file=sys.stderr)
    print(f"report: {args.out / 'report.html'}")
    return {**result, "failed": result["coverage"]["failed"]}


def info(args: argparse.Namespace) -> Result:
    """Say what a model is."""
    from vesalius.models.info import describe, summarise

    facts = describe(args.model)
    for line in summarise(facts):
        print(line)
    return facts


def convert(args: argparse.Namespace) -> Result:
    """Write a model in the other layout, or a training checkpoint as a whole model, and prove it."""
    from vesalius.conversion.convert import convert as run_conversion
    from vesalius.conversion.proof import summarise
    from vesalius.models.allocator import keep_freed_memory

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


VERBS = {
    verb.__name__.rstrip("_"): verb  # import is a word of Python's own
    for verb in (synth, check, split, import_, train, predict, evaluate, tune, compare, info, convert)
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; 0 for success, 1 for a refused or failed job, 2 for wrong usage."""
    args = build_parser(VERBS).parse_args(arguments)
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
