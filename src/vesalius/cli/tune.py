"""Find the best threshold of a model on validation data, and store it in a bundle."""

from __future__ import annotations

import argparse
from pathlib import Path

from vesalius.cli import arguments
from vesalius.cli.arguments import Result, defaults_of, given
from vesalius.cli.parser import Parser
from vesalius.progress import Progress


def add_arguments(command: Parser) -> None:
    from vesalius.scoring.tune import TUNABLE, find_threshold

    add = command.add_argument
    add("model", metavar="MODEL", help=arguments.MODEL)
    add("data", type=Path, metavar="DATA", help=arguments.DATA)
    add("--metric", choices=TUNABLE, default=defaults_of(find_threshold)["metric"], help="metric to maximize")
    add(
        "--out",
        type=Path,
        metavar="BUNDLE",
        help="new bundle to write; default: the model card of MODEL is changed in place",
    )
    add(
        "--tta",
        type=lambda text: text.split(","),
        metavar="flip,scale_0.75,scale_1.33",
        help="also measure test-time augmentation with each subset of these views; the best subset is enabled if its "
        "gain is significant",
    )
    arguments.add_overwrite(command)
    arguments.add_dataset_options(command)
    arguments.add_prediction_options(command)


def run(args: argparse.Namespace) -> Result:
    """Tune the threshold and write the bundle; returns the score of each threshold."""
    from vesalius.data.dataset import open_dataset
    from vesalius.models.threshold_store import check_target, store_threshold
    from vesalius.scoring.tune import as_json, find_threshold, summarize

    target = check_target(args.model, vars(args).get("out"), **given(args, "overwrite"))
    dataset = open_dataset(args.data, **given(args, "split prompt group window"))
    predictor = arguments.open_segmenter(args, args.model)
    with Progress(len(dataset.samples), "tune") as progress:
        tuned = find_threshold(predictor, dataset, **given(args, "metric tta"), on_progress=progress.reach)
    store_threshold(args.model, target, tuned.threshold, tuned.origin, tuned.images, tuned.tta_gain)
    for line in summarize(tuned, target, had_gain=predictor.model_card.tta is not None):
        print(line)
    if note := predictor.description.window_note:
        print(f"{note} Predict with the same --window, because the threshold was tuned under it.")
    return {**as_json(tuned), "window": predictor.window.plain, "bundle": str(target)}
