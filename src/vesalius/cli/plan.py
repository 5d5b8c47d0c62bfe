"""Estimate memory and choose devices, dtype and batch size."""

from __future__ import annotations

import argparse
from typing import get_args

from vesalius.cli.arguments import MODEL, Result, given
from vesalius.cli.parser import change


def add_arguments(command: argparse.ArgumentParser) -> None:
    from vesalius.segmenter import Purpose

    add = command.add_argument
    add("model", metavar="MODEL", help=f"{MODEL}; a published model need not be downloaded")
    add(
        "--gpus",
        metavar="4x24GiB",
        help="number and memory of the GPUs, or a list such as 24GiB,48GiB; default: the GPUs or CPU of this machine",
    )
    add("--for", dest="purpose", choices=get_args(Purpose), default="predict", help="use of the model")
    add(
        "--set",
        type=change,
        metavar="a=b",
        nargs="+",
        action="extend",
        dest="changes",
        help="settings of the plan: batch_size, prompts, image=[H,W], text_tokens, dtype; for predict: "
        "quantization=8bit or 4bit, cpu_memory=64GiB; for train: trainable as in a recipe, sharded=true (FSDP2)",
    )


def run(args: argparse.Namespace) -> Result:
    """Print the plan with the reason for each number; `failed` is true if the model does not fit in memory."""
    from vesalius.inference.plan import make_plan, summarize

    plan = make_plan(args.model, **given(args, "gpus purpose changes"))
    print("\n".join(summarize(plan)))
    return {**plan.as_json(), "failed": plan.device_map is None}
