"""Score a model, or stored predictions, against the ground truth of a dataset; write figures and a report."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vesalius.cli import arguments
from vesalius.cli.arguments import Result, given
from vesalius.cli.parser import Parser
from vesalius.errors import UsageError
from vesalius.progress import Progress

FOR_MODELS = "tiles tta cache fill_holes drop_specks strict_phrases"


def add_arguments(command: Parser) -> None:
    add = command.add_argument
    add(
        "model_and_data",
        nargs="+",
        metavar="[MODEL] DATA",
        help=f"MODEL: {arguments.MODEL_OR_BASELINE}; DATA: {arguments.DATA}",
    )
    add(
        "--predictions",
        type=Path,
        metavar="DIR",
        help="score stored predictions instead of a model: the output of `predict`, or mask files named by id",
    )
    add("--out", type=Path, required=True, help=arguments.OUT)
    add("--limit", type=int, metavar="N", help="evaluate only the first N images")
    add("--roi", type=Path, metavar="DIR", help="ROI masks named by id; pixels outside them are not scored")
    add(
        "--allow-training-samples",
        action="store_true",
        help="also evaluate images that the model was trained on; the report marks it",
    )
    arguments.add_num_workers(command, "score and draw")
    arguments.add_dataset_options(command)
    arguments.add_prediction_options(command)
    arguments.add_mask_options(command)


def run(args: argparse.Namespace) -> Result:
    """Write the evaluation; returns its metrics, and as `failed` the number of predictions that failed."""
    from vesalius.data.dataset import open_dataset
    from vesalius.scoring.evaluate import evaluate
    from vesalius.scoring.summary import list_numbers

    model, data = _model_and_data(args)
    dataset = open_dataset(data, **given(args, "split prompt group window"))
    samples = dataset.samples[: vars(args).get("limit")]
    segmenter = _open(args, model, samples)
    with Progress(len(samples), "evaluate") as progress:
        options = given(args, "limit roi allow_training_samples num_workers")
        metrics = evaluate(segmenter, dataset, args.out, **options, on_progress=progress.reach)
    for line in list_numbers(metrics):
        print(line)
    print(f"report: {args.out / 'report.html'}")
    return {**metrics, "failed": metrics["coverage"]["failed"]}


def _model_and_data(args: argparse.Namespace) -> tuple[str | None, Path]:
    """The model and the dataset; the model is None with --predictions."""
    names = args.model_and_data
    if len(names) != (1 if "predictions" in args else 2):
        expected = "--predictions DIR DATA" if "predictions" in args else "MODEL DATA"
        message = f"evaluate: expected {expected}, got {' '.join(names)}"
        raise UsageError(message, code="wrong_usage", field="[MODEL] DATA")
    if len(names) == 2:
        return names[0], Path(names[1])
    if wrong := list(given(args, FOR_MODELS)):
        flag = f"--{wrong[0].replace('_', '-')}"
        raise UsageError(
            f"evaluate: {flag} requires a MODEL; remove it, or --predictions", code="wrong_usage", field=flag
        )
    return None, Path(names[0])


def _open(args: argparse.Namespace, model: str | None, samples: Sequence[Any]) -> Any:
    if model is not None:
        return arguments.open_segmenter(args, model)
    from vesalius.scoring.stored import StoredPredictions

    return StoredPredictions(args.predictions, samples, **given(args, "threshold"))
