"""The command line: one short function a verb. It imports inside each, so that `--help` needs no torch."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vesalius.cli.arguments import build_parser
from vesalius.errors import SettingError, VesaliusError
from vesalius.files import to_json
from vesalius.progress import Progress

Result = dict[str, Any]
"""What a verb found out: printed as JSON with `--json`. `failed` counts what went wrong and makes exit 1."""


def synth(args: argparse.Namespace) -> Result:
    """Write synthetic angiograms or retinas with exact masks."""
    from vesalius.synth import write_dataset

    settings = {name: getattr(args, name) for name in ("seed", "size", "frames", "kind", "phrases")}
    with Progress(args.n * args.frames, "synth") as progress:
        written = write_dataset(
            args.out, args.n, on_progress=progress.reach, num_workers=args.workers, **settings
        )
    missing = f", {written.absent} phrases that are not there" if written.absent else ""
    print(f"{args.out}: {written.images} images, {written.masks} masks{missing}")
    return {"out": str(args.out), "n": args.n, **settings, **vars(written)}


def check(args: argparse.Namespace) -> Result:
    """Say what is wrong with a dataset, before any computing time is spent on it."""
    from vesalius.checks import fixes, report_page
    from vesalius.checks.inspection import inspect
    from vesalius.checks.terminal_report import as_json, summarize

    if args.report is not None:
        report_page.check_folder(args.report, args.data)
    if args.fix is not None:
        fixes.check_folder(args.fix, args.data)
    with Progress(1.0, "check", unit="dataset") as progress:
        report = inspect(
            args.data,
            split=args.split,
            prompt=args.prompt,
            group=args.group,
            num_workers=args.workers,
            on_progress=progress.reach,
        )
    for line in summarize(report, every=args.verbose):
        print(line)
    result = as_json(report)
    if args.report is not None:
        with Progress(1.0, "report", unit="page") as progress:
            page = report_page.write_page(
                report, args.report, num_workers=args.workers, on_progress=progress.reach
            )
        print(f"report: {page}")
    return result if args.fix is None else result | _fix(args, report, result["failed"])


def _fix(args: argparse.Namespace, report: Any, errors: int) -> Result:
    """Write the corrected copy; the job fails only where errors are left in it."""
    from vesalius.checks.fixes import write_fixed

    with Progress(1.0, "fix", unit="copy") as progress:
        fixes = write_fixed(report, args.fix, num_workers=args.workers, on_progress=progress.reach)
    done = ", ".join(f"{n} {action}" for action, n in fixes.counts.items())
    print(f"{args.fix}: {done}; fixes.json lists them")
    print(f"errors: {errors} in {args.data}, {fixes.errors} in {args.fix}")
    return {"out": str(args.fix), "fixes": fixes.counts, "failed": fixes.errors}


def split(args: argparse.Namespace) -> Result:
    """Cut a dataset into parts, or folds, of whole patients or sequences."""
    from vesalius.curation.splits import split_dataset, summarize
    from vesalius.data.dataset import open_dataset

    dataset = open_dataset(args.data, split=args.split, prompt=args.prompt, group=args.group)
    with Progress(len(dataset.samples), "split") as progress:
        result = split_dataset(
            dataset,
            args.out,
            fractions=args.fractions,
            folds=args.folds,
            seed=args.seed,
            group=args.group,
            on_progress=progress.reach,
        )
    for line in summarize(result):
        print(line)
    print(f"{args.out}: open a part with --split NAME")
    return result


def import_(args: argparse.Namespace) -> Result:
    """Bring annotation exports, DICOM files and videos into one dataset, under pseudonyms if asked for."""
    from vesalius.curation.importing import import_dataset

    with Progress(1.0, "import", unit="dataset") as progress:
        result = import_dataset(
            args.source,
            args.out,
            to=args.to,
            pseudonymize=args.pseudonymize,
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
    from vesalius.models.cpu_allocator import keep_freed_memory
    from vesalius.training.run import read_run_settings
    from vesalius.training.run import train as run_training
    from vesalius.training.validation import summarize

    if (args.recipe is None) == (args.resume is None):
        raise SettingError("give a recipe, or --resume RUN to continue a run")
    keep_freed_memory()
    settings = read_run_settings(args.resume or args.recipe, args.set)
    if args.find_lr is not None:
        return _find_rate(args, settings)
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
            on_validation=lambda line: print(summarize(line), flush=True),
        )
    return {"run": str(run), "best": str((run / "best").resolve())}


def _find_rate(args: argparse.Namespace, settings: Any) -> Result:
    from vesalius.training.run import search_rate

    with Progress(1.0, "find-lr", unit="search") as progress:
        found = search_rate(settings, args.find_lr, on_note=print, on_progress=progress.reach)
    return {"picture": str(args.find_lr), **found.as_json()}


def runs(args: argparse.Namespace) -> Result:
    """List runs: how far each came, how good it became, and in which settings they differ."""
    from vesalius.training.runs import as_json, list_runs, tabulate

    found = list_runs(args.folder)
    for line in tabulate(found):
        print(line)
    return as_json(found)


def predict(args: argparse.Namespace) -> Result:
    """Write masks for images."""
    from vesalius.data.image_files import find_images
    from vesalius.jobs.clip_folder import ask_clips
    from vesalius.jobs.folder import check_request, write_predictions

    saves = args.save.split(",")
    check_request(args.prompt, saves)
    images = find_images(args.images)
    clips = {"propagation": args.propagation, "reprompt_every": args.reprompt_every}
    with _answering(args) as loaded, Progress(len(images), "predict") as progress:
        segmenter, asked, answer = ask_clips(*loaded, images, args.prompt, saves, **clips)
        summary = write_predictions(
            segmenter, asked, args.prompt, args.out, save=saves, answer=answer, on_progress=progress.reach
        )
    print(f"{args.out}: " + ", ".join(f"{count} {status}" for status, count in summary["coverage"].items()))
    if summary["answers"]:
        print("answers: " + ", ".join(f"{count} {origin}" for origin, count in summary["answers"].items()))
    for line in summary["failures"]:
        print(f"failed: {line}", file=sys.stderr)
    return {**summary, "failed": summary["coverage"]["failed"]}


@contextmanager
def _answering(args: argparse.Namespace) -> Iterator[tuple[Any, Any]]:
    """The segmenter, and who answers in its place where it lives in other processes."""
    if args.devices is None:
        yield _load(args, args.model), None
        return
    from vesalius.jobs.processes import Processes, order_predictors

    with Processes(order_predictors(args.model, args.devices.split(","), _asked(args))) as processes:
        yield processes.description, processes.answer_samples


def _load(args: argparse.Namespace, model: str) -> Any:
    from vesalius.inference.predictor import load_predictor
    from vesalius.models.cpu_allocator import keep_freed_memory

    keep_freed_memory()
    return load_predictor(model, **_asked(args))


def _asked(args: argparse.Namespace) -> Result:
    """How a model is asked: arguments of `load_predictor`."""
    from vesalius.cleaning import Cleaning
    from vesalius.config import make_settings
    from vesalius.inference.feature_cache import CacheSettings, check_apart
    from vesalius.inference.placement import parse_size
    from vesalius.inference.tiles import TileSettings

    names = ("answer", "threshold", "batch", "tta", "gpus")
    asked = {name: vars(args)[name] for name in names if name in args}
    mended = {name: vars(args)[name] for name in ("fill_holes", "drop_specks") if vars(args).get(name)}
    if args.tiles is not None:
        asked["tiles"] = make_settings(TileSettings, {"sides": args.tiles}, "--tiles")
    if args.cache is not None:
        check_apart(args.cache, args.out)
        asked["cache"] = CacheSettings(
            folder=args.cache, most_bytes=parse_size(args.cache_size, "--cache-size")
        )
    return asked | ({"cleaning": make_settings(Cleaning, mended, "mending masks")} if mended else {})


def evaluate(args: argparse.Namespace) -> Result:
    """Predict, or read stored predictions, and score against the ground truth, draw, and report."""
    from vesalius.data.dataset import open_dataset
    from vesalius.scoring.evaluate import evaluate as run_evaluation
    from vesalius.scoring.summary import list_numbers

    model, data = _model_and_data(args)
    dataset = open_dataset(data, split=args.split, prompt=args.prompt, group=args.group)
    samples = dataset.samples[: args.limit]
    with Progress(len(samples), "evaluate") as progress:
        metrics = run_evaluation(
            _segmenter(args, model, samples),
            dataset,
            args.out,
            limit=args.limit,
            roi=args.roi,
            workers=args.workers,
            allow_training_samples=args.allow_training_samples,
            on_progress=progress.reach,
        )
    for line in list_numbers(metrics):
        print(line)
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

        for_models = ("tiles", "tta", "cache", "fill_holes", "drop_specks")
        if given := [name for name in for_models if getattr(args, name) not in (None, False, 0)]:
            raise SettingError(f"--{given[0].replace('_', '-')} is for a MODEL, not for --predictions")
        return StoredPredictions(args.predictions, samples, threshold=args.threshold)
    return _load(args, model)


def tune(args: argparse.Namespace) -> Result:
    """Find the threshold that scores best on validation data, and store it in a bundle."""
    from vesalius.data.dataset import open_dataset
    from vesalius.models.threshold import check_target, store_threshold
    from vesalius.scoring.tune import as_json, find_threshold, summarize

    target = check_target(args.model, args.out)
    dataset = open_dataset(args.data, split=args.split, prompt=args.prompt, group=args.group)
    predictor = _load(args, args.model)
    with Progress(len(dataset.samples), "tune") as progress:
        tuned = find_threshold(predictor, dataset, args.metric, views=args.views, on_progress=progress.reach)
    store_threshold(args.model, target, tuned.threshold, tuned.origin, tuned.images, tuned.tta_gain)
    for line in summarize(tuned, target, had_gain=predictor.bundle_card.tta is not None):
        print(line)
    return {**as_json(tuned), "bundle": str(target)}


def compare(args: argparse.Namespace) -> Result:
    """Say whether evaluations of the same samples differ, by how much, and how sure that is."""
    from vesalius.scoring.compare import compare as run_comparison
    from vesalius.scoring.compare import summarize

    result = run_comparison(args.evaluations, args.out, only=args.metric)
    for line in summarize(result):
        print(line)
    for row in result["failed_rows"]:
        print(f"failed: {row['id']} ({row['prompt']}) in {', '.join(row['errors'])}", file=sys.stderr)
    print(f"report: {args.out / 'report.html'}")
    return {**result, "failed": result["coverage"]["failed"]}


def plan(args: argparse.Namespace) -> Result:
    """Say what fits where, with the reason for each number."""
    from vesalius.inference.plan import make_plan, summarize

    made = make_plan(args.model, args.gpus, args.purpose, args.set)
    print("\n".join(summarize(made)))
    return {**made.as_json(), "failed": made.device_map is None}


def info(args: argparse.Namespace) -> Result:
    """Say what a model is."""
    from vesalius.models.info import describe, summarize

    facts = describe(args.model)
    for line in summarize(facts):
        print(line)
    return facts


def convert(args: argparse.Namespace) -> Result:
    """Write a model in the other layout, or a training checkpoint as a whole model, and prove it."""
    from vesalius.conversion.convert import convert as run_conversion
    from vesalius.conversion.proof import summarize
    from vesalius.models.cpu_allocator import keep_freed_memory

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
    for line in summarize(proof):
        print(line)
    return proof


MAKING = (synth, check, split, import_, train, runs)
USING = (predict, evaluate, tune, compare, plan, info, convert)
VERBS = {verb.__name__.rstrip("_"): verb for verb in (*MAKING, *USING)}  # import is a word of Python's own


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
        return error.exit_code
    except BrokenPipeError:  # whoever read the output, such as head, has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), stdout.fileno())
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
