"""What each verb of the command line takes."""

from __future__ import annotations

import argparse
from importlib.metadata import version
from pathlib import Path
from typing import Any

MODEL = "a bundle, a run folder, an official Sa2VA folder or its hub name, or tiny; a U-Net run is a baseline"
BASELINES = f"{MODEL}, and so is frangi, a filter"


def build_parser(verbs: dict[str, Any]) -> argparse.ArgumentParser:
    """The parser of all verbs: name -> the function that runs it, whose docstring is its summary."""
    parser = argparse.ArgumentParser(
        prog="vesalius", description="Text-prompted segmentation of your own images."
    )
    parser.add_argument("--version", action="version", version=version("vesalius"))
    subparsers = parser.add_subparsers(metavar="VERB", required=True)
    for name, run in verbs.items():
        summary = (run.__doc__ or "").strip()
        verb = subparsers.add_parser(name, help=summary, description=summary)
        verb.set_defaults(run=run)
        ARGUMENTS[name](verb)
        verb.add_argument(
            "--json", action="store_true", help="the result as one line of JSON, last on stdout"
        )
        verb.add_argument(
            "-v", "--verbose", action="store_true", help="more messages, and a traceback of errors"
        )
    return parser


def _synth(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("out", type=Path, metavar="OUT", help="folder to make")
    verb.add_argument("--n", type=int, default=48, help="images, or clips (default 48)")
    verb.add_argument("--frames", type=int, default=1, help="of each clip (default 1: still images)")
    verb.add_argument("--seed", type=int, default=0, help="the same seed gives the same images (default 0)")
    verb.add_argument("--size", type=int, default=512, help="side in pixels (default 512)")
    verb.add_argument(
        "--kind",
        choices=("coronary", "retina", "mixed"),
        default="coronary",
        help="what to draw; mixed alternates (default coronary)",
    )
    verb.add_argument(
        "--phrases",
        choices=("default", "all"),
        default="default",
        help="all: those too that need reading, such as 'the widest vessel' or 'stenosis'",
    )
    verb.add_argument("--workers", type=int, metavar="N", help="processes that draw (default: one a core)")


def _check(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("data", type=Path, metavar="DATA", help=DATA)
    _data(verb)
    verb.add_argument(
        "--workers", type=int, metavar="N", help="processes that read images (default: one a core)"
    )
    verb.add_argument(
        "--report",
        type=Path,
        metavar="DIR",
        help="write check.html with pictures of what was found, findings.json and augmented.png into DIR",
    )
    verb.add_argument(
        "--fix",
        type=Path,
        metavar="OUT",
        help="write a copy in OUT, corrected where that is certain: masks of another size rescaled, objects of a "
        "phrase united, coordinates outside clipped; what cannot be corrected is dropped; fixes.json lists all. "
        "Exit status 1 then means that the copy still has errors",
    )


def _split(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("data", type=Path, metavar="DATA", help=DATA)
    verb.add_argument("out", type=Path, metavar="OUT", help="folder to make")
    how = verb.add_mutually_exclusive_group(required=True)
    how.add_argument(
        "--fractions",
        type=float,
        nargs="+",
        default=(),
        metavar="F",
        help="shares of the images, which sum to 1: TRAIN VAL TEST, or TRAIN VAL",
    )
    how.add_argument(
        "--folds", type=int, default=0, metavar="K", help="K folds instead: fold1.train, fold1.val, ..."
    )
    verb.add_argument("--seed", type=int, default=0, help="decides between equal choices (default 0)")
    _data(verb)


def _import(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("source", type=Path, metavar="SOURCE", help=f"{DATA}, or images without annotation")
    verb.add_argument("out", type=Path, metavar="OUT", help="folder to make")
    verb.add_argument(
        "--to",
        choices=("house", "coco", "labelme", "masks"),
        default="house",
        help="format to write (default house)",
    )
    verb.add_argument(
        "--pseudonymize",
        action="store_true",
        help="no names, no metadata: the key and what is what go to OUT.key.json, for its owner alone",
    )
    verb.add_argument(
        "--key",
        type=Path,
        metavar="FILE",
        help="a .key.json: the same patients get the same pseudonyms again",
    )
    _data(verb)


def _train(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("recipe", type=Path, metavar="RECIPE.yaml", nargs="?", help="settings of the run")
    verb.add_argument(
        "--set", metavar="a.b=c", nargs="+", action="extend", default=[], help="change settings"
    )
    kind = verb.add_mutually_exclusive_group()
    kind.add_argument("--resume", type=Path, metavar="RUN", help="continue the run in this folder")
    kind.add_argument("--overfit", type=int, metavar="N", help="learn N samples by heart, as a test")
    kind.add_argument(
        "--find-lr",
        type=Path,
        metavar="FILE.png",
        help="train a little with rising learning rates, suggest one, draw it into FILE.png, and keep nothing else",
    )


def _runs(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("folder", type=Path, metavar="DIR", help="a run, or a folder with runs below it")


def _predict(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("model", metavar="MODEL", help=BASELINES)
    verb.add_argument(
        "images",
        type=Path,
        metavar="IMAGE_OR_VIDEO_OR_FOLDER",
        nargs="+",
        help="images, DICOM files, volumes, videos, or folders of them",
    )
    verb.add_argument("--prompt", action="append", required=True, help="what to segment; may be given again")
    verb.add_argument("--out", type=Path, required=True, help="folder to make")
    verb.add_argument(
        "--save",
        default="masks,rle",
        metavar="masks,probs,overlay,rle,dicom,films",
        help="what to write (default masks,rle)",
    )
    verb.add_argument(
        "--propagation",
        choices=("frames", "official", "sam2"),
        default="frames",
        help="of clips: each frame by itself (default); first frames seen, the rest by Sa2VA's memory; frames from "
        "all over the clip seen, the rest by SAM 2's memory",
    )
    verb.add_argument(
        "--reprompt-every", type=int, metavar="N", help="sam2: decode the answer anew on each Nth frame"
    )
    where = verb.add_mutually_exclusive_group()
    where.add_argument(
        "--devices",
        metavar="cuda:0,cuda:1",
        help="a process on each of these, which share the images (default: here, on a GPU if there is one)",
    )
    where.add_argument(
        "--gpus",
        metavar="2x24GiB",
        help="one model over GPUs of this memory, also 24GiB,48GiB, placed and in the dtype as `vesalius plan` says",
    )
    _prediction(verb)
    _threshold(verb)


def _evaluate(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "model_and_data", nargs="+", metavar="[MODEL] DATA", help=f"MODEL: {BASELINES}; DATA: {DATA}"
    )
    verb.add_argument(
        "--predictions",
        type=Path,
        metavar="DIR",
        help="score stored predictions instead of a MODEL: what predict wrote, or mask files named by id",
    )
    _data(verb)
    verb.add_argument("--out", type=Path, required=True, help="folder to make")
    verb.add_argument("--limit", type=int, help="only the first so many images")
    verb.add_argument(
        "--roi", type=Path, metavar="DIR", help="masks named by id; nothing counts outside of them"
    )
    verb.add_argument(
        "--allow-training-samples",
        action="store_true",
        help="score images that the model was trained on, and say so",
    )
    verb.add_argument(
        "--workers", type=int, metavar="N", help="processes that score and draw (default: one a core)"
    )
    _prediction(verb)
    _threshold(verb)


def _tune(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("model", metavar="MODEL", help=MODEL)
    verb.add_argument("data", type=Path, metavar="DATA", help=DATA)
    _data(verb)
    verb.add_argument(
        "--metric", default="dice", choices=("dice", "iou"), help="what to raise (default dice)"
    )
    verb.add_argument(
        "--out", type=Path, metavar="BUNDLE", help="bundle to make (default: change MODEL's card)"
    )
    verb.add_argument(
        "--tta",
        dest="views",
        type=lambda text: text.split(","),
        default=(),
        metavar="flip,smaller,larger",
        help="also measure test-time augmentation with each choice of these views; the best is allowed from then on, "
        "if it is surely a gain",
    )
    _prediction(verb)


def _compare(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "evaluations",
        type=Path,
        metavar="EVALUATION",
        nargs="+",
        help="folders that evaluate wrote; the first is the reference",
    )
    verb.add_argument("--out", type=Path, required=True, help="folder to make")
    verb.add_argument(
        "--metric",
        action="append",
        default=[],
        metavar="NAME",
        help="compare only this one; may be given again (default: all)",
    )


def _plan(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "model", metavar="MODEL", help=f"{MODEL}; or a published name, whose weights need not be here"
    )
    verb.add_argument(
        "--gpus",
        metavar="4x24GiB",
        help="GPUs and their memory, also as 24GiB,48GiB (default: those of this machine, else its CPU)",
    )
    verb.add_argument(
        "--for",
        dest="purpose",
        choices=("predict", "train"),
        default="predict",
        help="what the model is to do (default predict)",
    )
    verb.add_argument(
        "--set",
        metavar="a=b",
        nargs="+",
        action="extend",
        default=[],
        help="batch, prompts, image=[H,W], text_tokens, dtype; predict: quantize=8bit or 4bit, cpu_memory=64GiB; "
        "train: trainable as in a recipe, sharded=true (FSDP2)",
    )


def _info(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("model", metavar="MODEL", help=MODEL)


def _convert(verb: argparse.ArgumentParser) -> None:
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


DATA = "annotation file, or folder with images and masks"


def _data(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--prompt", help="map every phrase to this one")
    verb.add_argument("--split", metavar="NAME", help="which annotations.NAME.json of a folder")
    verb.add_argument(
        "--group",
        metavar="G",
        help="patient or sequence: a field, folder, PatientID and the like of DICOM files, or a regular expression on the id",
    )


def _prediction(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--answer",
        choices=("verify", "generate", "force"),
        default="verify",
        help="verify: the model's own answer, guessed and then proved (default); generate: the same, token by token; "
        "force: the template's answer",
    )
    verb.add_argument("--batch", type=int, default=4, metavar="N", help="images at once (default 4)")
    verb.add_argument(
        "--tiles",
        type=int,
        nargs="*",
        metavar="SIDE",
        help="decode masks in windows of these sides in pixels, for thin structures on large images (alone: half of "
        "what the segmenter sees)",
    )
    verb.add_argument(
        "--cache",
        type=Path,
        metavar="DIR",
        help="keep what SAM 2's encoder makes of each image in DIR, for the next time with this model",
    )
    verb.add_argument(
        "--cache-size",
        default="8GiB",
        metavar="SIZE",
        help="of that folder; beyond it what was not used for longest is removed (default 8GiB)",
    )


def _threshold(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--threshold",
        type=float,
        metavar="T",
        help="probability above which a pixel belongs (default: the model's)",
    )
    verb.add_argument(
        "--tta",
        action="store_true",
        help="test-time augmentation: the mean over several views of each image, which tune --tta measured to help",
    )
    verb.add_argument(
        "--fill-holes",
        type=int,
        default=0,
        metavar="PX",
        help="fill holes of up to so many pixels in each object's mask (default 0)",
    )
    verb.add_argument(
        "--drop-specks",
        type=int,
        default=0,
        metavar="PX",
        help="then drop pieces of up to so many pixels (default 0)",
    )


ARGUMENTS = {
    "synth": _synth,
    "check": _check,
    "split": _split,
    "import": _import,
    "train": _train,
    "runs": _runs,
    "predict": _predict,
    "evaluate": _evaluate,
    "tune": _tune,
    "compare": _compare,
    "plan": _plan,
    "info": _info,
    "convert": _convert,
}
