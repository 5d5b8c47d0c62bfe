"""Arguments that several commands share: dataset, model, prediction and mask options.

A flag has the name of the function parameter that it sets; `plan --for` and `plan --set` are exceptions. A flag that is
not given is missing from the namespace, so the default of the called function applies.
"""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

from vesalius.cli.parser import Parser

Result = dict[str, Any]
"""Result of a command, printed by `--json`; a value of `failed` other than 0 gives exit code 1."""

MODEL = "bundle, run folder, official Sa2VA folder or hub id, or `tiny`"
MODEL_OR_BASELINE = f"{MODEL}; ensemble: output of `train --folds`; baselines: a U-Net run, or `frangi`"
DATA = "dataset: an annotation file, or a folder of images and masks"
OUT = "new folder for the result"


def given(args: argparse.Namespace, names: str) -> dict[str, Any]:
    """The arguments among `names` (separated by spaces) that were given or have a default in the parser."""
    return {name: getattr(args, name) for name in names.split() if name in args}


def defaults_of(function: Callable[..., Any]) -> dict[str, Any]:
    """Parameter name -> default value, as the default of the flag of the same name."""
    parameters = inspect.signature(function).parameters.values()
    return {each.name: each.default for each in parameters if each.default is not each.empty}


def add_overwrite(command: argparse.ArgumentParser) -> None:
    """Add --overwrite."""
    command.add_argument(
        "--overwrite",
        action="store_true",
        help="replace an earlier result of this command in the output folder, when the new one is complete",
    )


def add_dataset_options(command: argparse.ArgumentParser) -> None:
    """Add --prompt, --split and --group: the options of `open_dataset`."""
    add = command.add_argument_group("dataset").add_argument
    add("--prompt", help="use this prompt instead of the phrases in the dataset")
    add("--split", metavar="NAME", help="read annotations.NAME.json of the folder")
    add(
        "--group",
        metavar="G",
        help="patient or sequence of an image: an annotation field, a DICOM tag such as PatientID, `folder`, or a "
        "regular expression on the id with one capture group",
    )


class _WindowAction(argparse.Action):
    """Reads the words of a window; other words are wrong usage."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option: str | None = None) -> None:
        from vesalius.window import Window

        try:
            setattr(namespace, self.dest, Window.parse(values).plain)
        except ValueError as error:
            raise argparse.ArgumentError(self, str(error)) from error


def add_window(command: argparse.ArgumentParser, default: str) -> None:
    """Add --window."""
    command.add_argument(
        "--window",
        nargs="+",
        action=_WindowAction,
        metavar=("auto", "LOW HIGH | percentile P Q"),
        help="pixel values shown as black and white. auto: images of more than 8 bits from their lowest to their highest "
        f"value, DICOM and NIfTI as their headers say; LOW HIGH, or percentile P Q, also for 8 bits; {default}",
    )


def add_num_workers(command: argparse.ArgumentParser, task: str) -> None:
    """Add --num-workers; `task` completes the help text "number of processes that ..."."""
    command.add_argument(
        "--num-workers", type=int, metavar="N", help=f"number of processes that {task}; default: one per core"
    )


def add_prediction_options(command: Parser) -> None:
    """Add the options of `load_predictor` about answers, batches, tiles and the cache."""
    from vesalius.jobs.opening import load_predictor
    from vesalius.segmenter import AnswerMode

    default = defaults_of(load_predictor)
    add = command.add_argument_group("prediction").add_argument
    add(
        "--answer",
        choices=get_args(AnswerMode),
        default=default["answer"],
        help="verify: draft the usual answer and accept it if greedy decoding agrees (speculative decoding); "
        "generate: greedy decoding, token by token; force: always use the answer of the prompt template",
    )
    add("--batch-size", type=int, default=default["batch_size"], metavar="N", help="images per batch")
    add(
        "--tiles",
        type=int,
        nargs="*",
        metavar="SIDE",
        help="sliding windows with these side lengths in pixels, for thin structures in large images; without SIDE: half "
        "the segmenter's input size",
    )
    add(
        "--strict-phrases",
        action="store_true",
        help="refuse prompts that are none of the phrases in the model's card, before any image is read; without it they "
        "are asked and marked as unknown",
    )
    add("--cache", type=Path, metavar="DIR", help="cache SAM 2 image embeddings in DIR")
    add(
        "--cache-size",
        metavar="SIZE",
        help="size limit of the cache, such as 8GiB; least recently used entries are evicted",
    )
    command.needs("--cache-size", "--cache")
    add_window(command, "default: the window of training")


def add_mask_options(command: argparse.ArgumentParser) -> None:
    """Add --threshold, --tta, --fill-holes and --drop-specks."""
    add = command.add_argument_group("masks").add_argument
    add(
        "--threshold",
        type=float,
        metavar="T",
        help="probability above which a pixel belongs to the mask; default: the threshold of the model",
    )
    add(
        "--tta",
        action="store_true",
        help="test-time augmentation: average over views of the image; allowed if `tune --tta` measured a gain",
    )
    add("--fill-holes", type=int, metavar="PX", help="fill holes of up to PX pixels in each object's mask")
    add("--drop-specks", type=int, metavar="PX", help="remove specks of up to PX pixels, after filling holes")


def open_segmenter(args: argparse.Namespace, model: str) -> Any:
    """The segmenter of `model`, with the prediction and mask options."""
    from vesalius.jobs.opening import load_predictor
    from vesalius.models.cpu_allocator import keep_freed_memory

    keep_freed_memory()
    return load_predictor(model, **prediction_settings(args))


def prediction_settings(args: argparse.Namespace) -> dict[str, Any]:
    """The keyword arguments for `load_predictor`."""
    from vesalius.cleaning import Cleaning
    from vesalius.config import make_settings
    from vesalius.inference.feature_cache import CacheSettings, check_no_overlap
    from vesalius.inference.placement import parse_size
    from vesalius.inference.tiles import TileSettings

    settings = given(args, "answer threshold batch_size tta gpus strict_phrases window")
    if "tiles" in args:
        settings["tiles"] = make_settings(TileSettings, {"sides": args.tiles}, "--tiles")
    if "cache" in args:
        check_no_overlap(args.cache, vars(args).get("out"))
        limit = {"max_bytes": parse_size(args.cache_size, "--cache-size")} if "cache_size" in args else {}
        settings["cache"] = CacheSettings(folder=args.cache, **limit)
    if cleaning := given(args, "fill_holes drop_specks"):
        settings["cleaning"] = make_settings(Cleaning, cleaning, "mask clean-up")
    return settings
