"""Memory that `vesalius plan` estimates for a prediction or training step, compared with that of a real process.

    .venv/bin/python benchmarks/plan.py [--for train] [--image 512x512 ...] [--json FILE]

A bundle of 360 M random parameters (1.4 GB in float32) is built in one process and opened in others, in float32 on the
CPU. Each process first predicts with `tiny`; its memory afterwards, with all libraries loaded, is the idle memory. The result
is the peak of resident memory above idle (VmHWM of /proc/self/status, reset at the start of each phase) while one image
with one prompt is predicted a second time. Weights are memory-mapped and read on demand, so only the second prediction has
all of them in memory. Two allocators are measured: one that returns freed memory, so that the peak follows live tensors,
and that of the command line, with `keep_freed_memory`.

`--for train`: the peak of the second step of AdamW on one image, with the allocator that returns freed memory, for several
settings of `trainable`; the weights are copied from their files first.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

MIB = 2**20
PHASES = ("vision encoder", "language model", "SAM encoder", "SAM decoder")
CHECKPOINTED = {
    "preset": "vision",
    "quantization": "4bit",
    "gradient_checkpointing": ["language model", "vision encoder"],
}
TRAINED: dict[str, tuple[dict[str, Any], str]] = {
    "lora": ({"preset": "lora", "lora": {"language": {"rank": 64}}}, "float32"),
    "lora, 4bit": ({"preset": "lora", "quantization": "4bit"}, "float32"),
    "lora, bf16": ({"preset": "lora", "lora": {"language": {"rank": 64}}}, "bfloat16"),
    "vision, 4bit, bf16, checkpointing": (CHECKPOINTED, "bfloat16"),
    "full, bf16": ({"preset": "full"}, "bfloat16"),
}
"""Name -> the setting `trainable` and the dtype of activations."""


def make_spec() -> Any:
    """Spec of an enlarged `tiny`: InternVL's width with 8 layers, a language model of 6 layers, SAM's smallest trunk at 1024."""
    from vesalius.models.presets import find_spec
    from vesalius.models.sam_config import sam2

    tiny = find_spec("tiny")
    vision = tiny.vlm["vision_config"] | {
        "hidden_size": 1024,
        "num_hidden_layers": 8,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
        "patch_size": [14, 14],
    }
    text = tiny.text | {
        "hidden_size": 1536,
        "num_hidden_layers": 6,
        "num_attention_heads": 12,
        "intermediate_size": 6144,
    }
    sam = sam2(
        1024,
        hidden=96,
        heads=1,
        blocks=(1, 2, 7, 2),
        windows=(8, 4, 14, 7),
        global_blocks=(5, 7, 9),
        width=256,
        memory=(4, 2048, 2),
        decoder=(2048, 8),
    )
    vlm = tiny.vlm | {"vision_config": vision, "text_config": text, "image_seq_length": 256}
    return tiny.changed(name="widened", vlm=vlm, sam=sam, max_tiles=12)


def build(folder: Path) -> None:
    """Write the bundle."""
    import torch

    from vesalius.models.cards import Card
    from vesalius.models.checkpoint import OpenedModel, save_bundle
    from vesalius.models.families.tokenizers import byte_tokenizer
    from vesalius.models.processor import Processor
    from vesalius.models.textseg import build as build_model

    spec = make_spec()
    processor = Processor(spec, byte_tokenizer())
    torch.manual_seed(0)
    save_bundle(folder, OpenedModel(build_model(spec, processor.seg_id), processor, Card(spec=spec)))


def read_status(name: str) -> int:
    """Bytes of a field of /proc/self/status."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return 1024 * int(line.split()[1])
    raise KeyError(name)


def measure(folder: Path, image: tuple[int, int], keep: bool) -> dict[str, Any]:
    """Bytes of this process above idle after opening, and at the peak of each phase of a prediction."""
    import gc

    import numpy as np

    from vesalius.inference.predictor import Predictor
    from vesalius.jobs.opening import load_predictor
    from vesalius.models.cpu_allocator import keep_freed_memory
    from vesalius.models.vlm import vision_encoder_of

    if keep:
        keep_freed_memory()
    frame = np.random.default_rng(0).integers(0, 256, (*image, 3), dtype=np.uint8)
    load_predictor("tiny", answer="force", device="cpu")(frame, "blood vessel")
    gc.collect()
    idle = read_status("VmRSS")
    predictor = load_predictor(folder, answer="force", device="cpu")
    assert isinstance(predictor, Predictor)
    opened = read_status("VmRSS") - idle
    predictor(frame, "blood vessel")
    model = predictor.model
    held = read_status("VmRSS") - idle
    peaks: dict[str, int] = {}
    phase = ["inputs"]

    def begin(name: str) -> None:
        peaks[phase[0]] = max(peaks.get(phase[0], 0), read_status("VmHWM") - idle)
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        phase[0] = name

    modules = (
        vision_encoder_of(model.vlm),
        model.vlm.model.language_model,
        model.sam.vision_encoder.backbone,
        model.sam.mask_decoder,
    )
    for name, module in zip(PHASES, modules, strict=True):
        module.register_forward_pre_hook(lambda *_, name=name: begin(name))
    begin("inputs")
    peaks.clear()
    predictor(frame, "blood vessel")
    begin("end")
    return {"opened": opened, "held": held, "anonymous": read_status("RssAnon"), "peaks": peaks}


def estimate(image: tuple[int, int]) -> dict[str, Any]:
    """The plan's estimate for the same prediction."""
    import torch

    from vesalius.inference.footprint import Workload, measure_prediction, weight_bytes
    from vesalius.models.stored_model import empty_model

    spec = make_spec()
    cost = measure_prediction(spec, torch.float32, Workload(1, 1, image, 64), 0)
    weights = sum(weight_bytes(empty_model(spec)).values())
    return {"weights": weights, "peaks": cost.peaks, "tokens": cost.tokens, "tiles": cost.tiles}


def measure_step(folder: Path, image: tuple[int, int], name: str) -> dict[str, Any]:
    """Bytes of this process above idle between steps, and at the peak of the second step."""
    import gc

    import numpy as np
    import torch

    from vesalius.models.checkpoint import open_model
    from vesalius.models.token_rows import new_tokens
    from vesalius.models.trainable import TrainableSettings, set_trainable
    from vesalius.training.losses import LossSettings, compute_losses
    from vesalius.types import Item

    choice, dtype = TRAINED[name]
    rng = np.random.default_rng(0)
    item = Item(
        "a", rng.integers(0, 256, (1, *image, 3), dtype=np.uint8), ("vessel",), rng.random((1, 1, *image)) > 0.5
    )

    def prepare(model: str | Path, steps: int) -> Any:
        opened = open_model(Path(model))
        for parameter in opened.model.parameters():
            parameter.data = parameter.data.clone()
        tokens = new_tokens(opened.processor.tokenizer)
        groups = set_trainable(opened.model, TrainableSettings(**choice), tokens)
        optimizer = torch.optim.AdamW([{"params": group} for group in groups.values()])
        opened.model.train()

        def step() -> None:
            batch = opened.processor([item], answered=True)
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
                output = opened.model(batch)
            compute_losses(output, batch.masks, LossSettings()).total.backward()
            del output
            optimizer.step()
            optimizer.zero_grad()

        for _ in range(steps):
            step()
        return step

    from vesalius.models.reference import resolve_model

    prepare(resolve_model("tiny").folder, 2)
    gc.collect()
    idle = read_status("VmRSS")
    step = prepare(folder, 1)
    gc.collect()
    held = read_status("VmRSS") - idle
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    step()
    return {"held": held, "peak": read_status("VmHWM") - idle}


def estimate_step(image: tuple[int, int], name: str) -> dict[str, Any]:
    """The plan's estimate for the same step."""
    from vesalius.inference.fitting import PlanTask, TrainingSettings
    from vesalius.inference.placement import find_cpu

    choice, dtype = TRAINED[name]
    settings = TrainingSettings.model_validate({"trainable": choice, "dtype": dtype, "image": image, "batch_size": 1})
    task = PlanTask(make_spec(), settings, (), find_cpu())
    cost = task.cost(1)
    return {"held": task.resident, "peak": task.resident + cost.peak, "phases": cost.peaks, "tokens": cost.tokens}


def compare_steps(folder: str, image: str) -> list[dict[str, Any]]:
    """Estimated and measured bytes of training steps, printed as a table."""
    results = []
    print(f"{image}\n{'':<36}{'planned':>10}{'measured':>10}{'ratio':>8}   MiB above idle")
    for name in TRAINED:
        planned = run_in_process("estimate step", folder, image, name)
        took = run_in_process("step", folder, image, name)
        ratio = planned["peak"] / took["peak"]
        print(f"{name:<36}{planned['peak'] / MIB:>10,.0f}{took['peak'] / MIB:>10,.0f}{ratio:>8.3f}", flush=True)
        held = f"{planned['held'] / MIB:>10,.0f}{took['held'] / MIB:>10,.0f}{planned['held'] / took['held']:>8.3f}"
        print(f"{'  between steps':<36}{held}", flush=True)
        results.append({"image": image, "what": name, "planned": planned, "measured": took, "ratio": ratio})
    return results


def run_in_process(step: str, folder: str, image: str, what: str = "") -> dict[str, Any]:
    """Run one step of the benchmark in a new process."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    if step in ("follow", "step"):  # freed blocks of 64 KiB and more are returned to the system
        environment |= {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    command = [sys.executable, __file__, "--step", step, "--folder", folder, "--image", image]
    command += ["--what", what] if what else []
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def compare(folder: str, image: str) -> dict[str, Any]:
    """Estimated and measured bytes for images of one size, printed as a table."""
    steps = {step: run_in_process(step, folder, image) for step in ("estimate", "follow", "keep")}
    planned = steps["estimate"]
    print(f"{image}: {planned['tiles']} tiles, {planned['tokens']} tokens; weights {planned['weights'] / MIB:,.0f} MiB")
    print(f"{'':<18}{'planned':>10}{'measured':>10}{'ratio':>8}   MiB above idle")
    for phase in PHASES:
        says = planned["weights"] + planned["peaks"][phase]
        took = steps["follow"]["peaks"][phase]
        print(f"{phase:<18}{says / MIB:>10,.0f}{took / MIB:>10,.0f}{says / took:>8.3f}")
    largest = max(planned["peaks"].values())
    ratios = {}
    # the plan's reserve on a CPU is for an allocator that keeps freed memory
    for step, title, times in (("follow", "whole", 1), ("keep", "keeping freed", 2)):
        says = planned["weights"] + times * largest
        took = max(steps[step]["peaks"].values())
        ratios[step] = says / took
        print(f"{title:<18}{says / MIB:>10,.0f}{took / MIB:>10,.0f}{ratios[step]:>8.3f}")
    return {"image": image, **steps, "ratio": ratios["follow"], "ratio_keeping_freed_memory": ratios["keep"]}


def main() -> None:
    """Run the benchmark, or one step of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", nargs="+", default=["512x512", "1344x1792"], help="sizes, height x width")
    parser.add_argument("--for", dest="purpose", choices=("predict", "train"), default="predict")
    parser.add_argument("--json", type=Path)
    steps = ("build", "estimate", "follow", "keep", "estimate step", "step")
    parser.add_argument("--step", choices=steps, help=argparse.SUPPRESS)
    parser.add_argument("--what", choices=tuple(TRAINED), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.step is None:
        with tempfile.TemporaryDirectory() as scratch:
            folder = f"{scratch}/bundle"
            run_in_process("build", folder, "1x1")
            if args.purpose == "train":
                results = [row for image in args.image for row in compare_steps(folder, image)]
            else:
                results = [compare(folder, image) for image in args.image]
        if args.json:
            args.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
        return
    height, width = map(int, args.image[0].split("x"))
    match args.step:
        case "build":
            build(args.folder)
            print("{}")
        case "estimate":
            print(json.dumps(estimate((height, width))))
        case "estimate step":
            print(json.dumps(estimate_step((height, width), args.what)))
        case "step":
            print(json.dumps(measure_step(args.folder, (height, width), args.what)))
        case step:
            print(json.dumps(measure(args.folder, (height, width), keep=step == "keep")))


if __name__ == "__main__":
    main()
