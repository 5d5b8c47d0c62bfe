"""Numerical parity with the official Sa2VA code.

    python benchmarks/parity.py FOLDER [FOLDER ...] [--inputs IMAGES]

Each FOLDER has a model with random weights in the official layout and the float32 results of the official code for it
(`expected.json`, `expected.npz`). The largest difference and the tolerance of each quantity are printed and written to
`results/parity.json`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from vesalius.inference.official import OfficialPredictor
from vesalius.models.batch import Batch
from vesalius.models.checkpoint import open_model
from vesalius.models.generation import force_answer
from vesalius.models.memory import VideoSession
from vesalius.models.official_prompt import read_official_prompt
from vesalius.models.vlm import embed_batch, run_language_model

EXACT = 0.0


class Row(NamedTuple):
    """One compared quantity: its largest absolute difference, or for tolerance 0 the number of different entries."""

    model: str
    case: str
    quantity: str
    difference: float
    tolerance: float


class Case:
    """One prompt for a stored model, and the results of the official code for it."""

    def __init__(
        self, predictor: OfficialPredictor, model: str, name: str, facts: Any, stored: Any, inputs: Path
    ) -> None:
        self.predictor, self.model, self.name, self.facts = predictor, model, name, facts
        self.stored = {key.removeprefix(f"{name}/"): stored[key] for key in stored.files if key.startswith(f"{name}/")}
        self.arguments: dict[str, Any] = {"text": facts["text"]}
        if facts.get("image"):
            self.arguments["image"] = Image.open(inputs / facts["image"]).convert("RGB")
        if facts.get("video"):
            frames = sorted((inputs / facts["video"]).glob("*.png"))
            self.arguments["video"] = [Image.open(frame).convert("RGB") for frame in frames]
        if facts.get("mask_prompts"):
            masks = [np.asarray(Image.open(inputs / name)) > 0 for name in facts["mask_prompts"]]
            self.arguments["mask_prompts"] = [np.stack(masks)]

    def row(self, quantity: str, ours: Any, tolerance: float, theirs: str | None = None) -> Row:
        expected = self.stored[theirs or quantity]
        ours = np.asarray(ours)
        assert ours.shape == expected.shape, f"{self.name} {quantity}: {ours.shape} instead of {expected.shape}"
        far = (ours != expected).sum() if tolerance == EXACT else np.abs(ours.astype(np.float64) - expected).max()
        return Row(self.model, self.name, quantity, float(far), tolerance)

    @torch.inference_mode()
    def compare(self) -> Iterator[Row]:
        batch = read_official_prompt(self.predictor.processor, **self.arguments)
        yield self.row("prompt_ids", batch.input_ids[0], EXACT)
        yield from self._pixels(batch)
        answered = self._answered(batch)
        yield from self._language(batch, answered)
        if "seg_embeds" in self.stored:
            yield from self._masks(answered)
        yield from self._end_to_end()

    def _answered(self, batch: Batch) -> Batch:
        """The batch with the official answer appended, without its stop token."""
        answer = torch.from_numpy(self.stored["answer_ids"][:-1].astype(np.int64))[None]
        return replace(
            batch,
            input_ids=torch.cat([batch.input_ids, answer], dim=1),
            labels=torch.cat([batch.labels, answer], dim=1),
            attention_mask=torch.ones(1, batch.input_ids.shape[1] + answer.shape[1], dtype=torch.int64),
        )

    def _pixels(self, batch: Batch) -> Iterator[Row]:
        if "image_grid_thw" in self.stored:
            yield self.row("image_grid_thw", batch.image_grid_thw, EXACT)
            yield self.row("pixel_values_sample", batch.pixel_values[3::23, ::5], 1e-6)
        elif "pixel_values_sample" in self.stored:
            yield self.row("pixel_values_sample", batch.pixel_values[:, :, 5::32, 5::32], 1e-6)
        if "g_pixel_sample" in self.stored:
            yield self.row("g_pixel_sample", torch.stack(batch.g_pixel_values)[:, :, 7::64, 7::64], 1e-6)

    def _language(self, batch: Batch, answered: Batch) -> Iterator[Row]:
        model = self.predictor.model
        if "vit_embeds_sample" in self.stored:
            features = model.vlm.get_image_features(pixel_values=batch.pixel_values).pooler_output
            yield self.row("vit_embeds_sample", features[:, ::16], 1e-4)
        if "image_embeds_sample" in self.stored:
            features = model.vlm.model.get_image_features(batch.pixel_values, batch.image_grid_thw).pooler_output
            yield self.row("image_embeds_sample", torch.cat(features)[::16], 1e-4)
        inputs = embed_batch(model.vlm, answered)
        if "mrope_position_ids" in self.stored:
            yield self.row("mrope_position_ids", inputs.positions[:, 0], EXACT)
        if "inputs_embeds_sample" in self.stored:
            prompt = embed_batch(model.vlm, batch)
            yield self.row("inputs_embeds_sample", prompt.embeddings[0, ::37], 1e-4)
        states = run_language_model(model.vlm, inputs, model.seg_before_norm)
        yield self.row("logits_last8", model.vlm.lm_head(states.last[0, -8:]), 1e-4)
        yield self.row("last_hidden_last8", states.seg[0, -8:], 1e-4)
        yield self.row("last_hidden_sample", states.seg[0, ::37], 1e-4)
        if "seg_hidden" in self.stored:
            at = (answered.input_ids[0] == model.seg_id) & (answered.labels[0] == model.seg_id)
            yield self.row("seg_hidden", states.seg[0, at], 1e-4)

    def _masks(self, answered: Batch) -> Iterator[Row]:
        model = self.predictor.model
        seg = force_answer(model, answered).seg
        yield self.row("seg_embeds", seg.embedding, 2e-4)
        session = VideoSession(model.sam, seg.embedding)
        frames = [session.segment(pixels[None]) for pixels in answered.g_pixel_values]
        propagated = 2e-3 if len(frames) > 5 else 1e-3
        for i in range(len(seg.row)):
            yield self.row(f"seg{i}/ious", torch.stack([frame.scores[i] for frame in frames]), 1e-3)
            scores = torch.stack([frame.object_scores[i] for frame in frames])
            yield self.row(f"seg{i}/object_score_logits", scores, 1e-3)
            yield self.row(f"seg{i}/obj_ptr", torch.stack([frame.pointers[i] for frame in frames]), 1e-3)
            logits = torch.stack([frame.logits[i] for frame in frames])
            yield self.row(f"seg{i}/lowres_best", logits, propagated)

    def _end_to_end(self) -> Iterator[Row]:
        """`predict_forward` with a generated answer."""
        said = self.predictor.predict_forward(**self.arguments, official=True)
        differs = said["prediction"] != self.facts["e2e_prediction"]
        yield Row(self.model, self.name, "predict_forward text", float(differs), EXACT)
        masks = said["prediction_masks"]
        assert len(masks) == self.facts["e2e_n_masks"]
        for i, mask in enumerate(masks):
            own_cache = "e2e_kvcache/mask_packed" in self.stored
            packed = self.stored["e2e_kvcache/mask_packed" if own_cache else f"seg{i}/mask_packed"]
            bits = np.unpackbits(packed.reshape(len(mask), -1), axis=1)[:, : mask[0].size]
            different = (bits.astype(bool) != mask.reshape(len(mask), -1)).sum(axis=1).max()
            # pixels with a logit within 1e-3 of the threshold
            near = max(self.facts[f"seg{i}"]["near_zero_pixels_1e3"])
            yield Row(self.model, self.name, f"predict_forward mask {i}, pixels", float(different), float(near))


def compare(folder: Path, inputs: Path, only: str | None = None, expected: Path | None = None) -> Iterator[Row]:
    """Rows of all cases of one stored model, or of the case `only`; `expected` is the path of the results without suffix."""
    expected = expected or folder / "expected"
    predictor = OfficialPredictor(open_model(folder))
    facts = json.loads(expected.with_suffix(".json").read_text())
    stored = np.load(expected.with_suffix(".npz"))
    for name in [name for name in facts if name != "_meta" and only in (None, name)]:
        yield from Case(predictor, folder.name, name, facts[name], stored, inputs).compare()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER")
    parser.add_argument("--inputs", type=Path, help="images (default: inputs/ beside the first folder)")
    args = parser.parse_args()
    inputs = args.inputs or args.folders[0].parent / "inputs"
    rows = [row for folder in args.folders for row in compare(folder, inputs)]
    for row in rows:
        mark = "" if row.difference <= row.tolerance else "  TOO FAR"
        print(f"{row.model:<20}{row.case:<16}{row.quantity:<28}{row.difference:<10.2g}{row.tolerance:g}{mark}")
    out = Path(__file__).parent / "results" / "parity.json"
    out.write_text(json.dumps([row._asdict() for row in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
