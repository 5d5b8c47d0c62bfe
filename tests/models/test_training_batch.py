"""Losses and gradients equal those of the official code for a batch of two images, the second with two turns."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from vesalius.models.batch import Batch
from vesalius.models.checkpoint import open_model
from vesalius.models.families.table import family_of
from vesalius.training.losses import binary_cross_entropy, point_sample, sample_uncertain_points, soft_dice_loss


@pytest.fixture(scope="module")
def computed(oracle: Path) -> dict[str, Any]:
    folder = oracle
    opened = open_model(folder / "internvl_qwen2")
    facts = json.loads((folder / "internvl_qwen2/train/train_expected.json").read_text())
    stored = np.load(folder / "internvl_qwen2/train/train_expected.npz")
    pictures = [Image.open(folder / "inputs" / each["image"]).convert("RGB") for each in facts["batch"]]
    pixels = [
        family_of(opened.processor.spec.family).read_image(picture, opened.processor.spec) for picture in pictures
    ]
    batch = Batch(
        input_ids=torch.from_numpy(stored["input_ids"]).long(),
        attention_mask=torch.from_numpy(stored["attention_mask"]).long(),
        labels=torch.from_numpy(stored["labels"]).long(),
        pixel_values=torch.cat([each.values for each in pixels]),
        image_grid_thw=torch.cat([each.grid for each in pixels]),
        g_pixel_values=[opened.processor.for_segmenter(picture) for picture in pictures],
        masks=[],
        image_of_row=torch.tensor([0, 1]),
        tiles_of_image=[each.parts for each in pixels],
        frames_per_batch=[1, 1],
        sizes=[picture.size[::-1] for picture in pictures],
    )
    output = opened.model(batch)
    masks = []
    for i, shape in enumerate((facts["gt_mask0_shape"], facts["gt_mask1_shape"])):
        bits = np.unpackbits(stored[f"gt_mask{i}_packed"], axis=1)[:, : shape[1] * shape[2]]
        truth = torch.from_numpy(bits.reshape(shape)).float()[None]
        masks.append(functional.interpolate(truth, size=(256, 256), mode="nearest")[0])
    # the official code fills each image up to five objects by repeating them
    five = [[0] * 5, [1, 2, 1, 2, 1]]
    logits = torch.stack([output.masks.logits[rows] for rows in five])
    truth = torch.stack([masks[0][[0] * 5], masks[1][[0, 1, 0, 1, 0]]])
    return {"model": opened.model, "facts": facts, "stored": stored, "output": output, "logits": logits, "truth": truth}


def test_text_loss(computed: dict[str, Any]) -> None:
    output = computed["output"]
    loss = functional.cross_entropy(output.text_logits, output.text_labels)
    assert loss.item() == pytest.approx(computed["facts"]["full"]["llm_loss"], rel=1e-5)


def test_maps_of_the_first_objects(computed: dict[str, Any]) -> None:
    difference = computed["logits"][:, 0].detach() - torch.from_numpy(
        computed["stored"]["pred_masks_lowres_obj0_of_each"]
    )
    assert difference.abs().max() <= 1e-3


def test_mask_losses_on_whole_maps(computed: dict[str, Any]) -> None:
    mask, dice = losses(computed["logits"].flatten(0, 1), computed["truth"].flatten(0, 1))
    assert mask.item() == pytest.approx(computed["facts"]["full"]["loss_mask"], rel=1e-5)
    assert dice.item() == pytest.approx(computed["facts"]["full"]["loss_dice"], rel=1e-5)


def test_mask_losses_on_sampled_points(computed: dict[str, Any]) -> None:
    mask, dice = losses(*at_stored_points(computed))
    assert mask.item() == pytest.approx(computed["facts"]["points"]["loss_mask"], rel=1e-4)
    assert dice.item() == pytest.approx(computed["facts"]["points"]["loss_dice"], rel=1e-4)


def test_points_are_as_uncertain_as_the_official_ones(computed: dict[str, Any]) -> None:
    logits = computed["logits"].flatten(0, 1).detach()
    stored = torch.from_numpy(computed["stored"]["points/point_coords"])
    drawn = sample_uncertain_points(logits, 2048, 3.0, 0.75, torch.Generator().manual_seed(0))
    assert drawn.shape == stored.shape
    for part in (slice(1536), slice(1536, None)):  # the uncertain ones come first
        ours, theirs = (point_sample(logits, points[:, part]).abs().mean(dim=1) for points in (drawn, stored))
        torch.testing.assert_close(ours, theirs, rtol=0.1, atol=0)


@pytest.mark.parametrize("where", ["full", "points"])
def test_gradients(computed: dict[str, Any], where: str) -> None:
    output, model = computed["output"], computed["model"]
    model.zero_grad()
    whole = computed["logits"].flatten(0, 1), computed["truth"].flatten(0, 1)
    mask, dice = losses(*(whole if where == "full" else at_stored_points(computed)))
    text = functional.cross_entropy(output.text_logits, output.text_labels)
    (mask + dice + text).backward(retain_graph=True)
    names = {
        "text_hidden_fcs.0.weight": model.projector.linear_1.weight,
        "text_hidden_fcs.2.weight": model.projector.linear_2.weight,
        "grounding_encoder.sam2_model.sam_mask_decoder.mask_tokens.weight": model.sam.mask_decoder.mask_tokens.weight,
        "grounding_encoder.sam2_model.sam_mask_decoder.conv_s0.weight": model.sam.mask_decoder.conv_s0.weight,
        "mllm.model.mlp1.1.weight": model.vlm.model.multi_modal_projector.linear_1.weight,
        "mllm.model.language_model.model.layers.1.mlp.down_proj.weight": (
            model.vlm.model.language_model.layers[1].mlp.down_proj.weight
        ),
        "mllm.model.language_model.lm_head.weight": model.vlm.lm_head.weight,
        "mllm.model.language_model.model.embed_tokens.weight": model.vlm.get_input_embeddings().weight,
    }
    for name, parameter in names.items():
        expected = computed["facts"][f"{where}_grads"][name]["norm"]
        assert parameter.grad.norm().item() == pytest.approx(expected, rel=1e-3), name


def at_stored_points(computed: dict[str, Any]) -> list[torch.Tensor]:
    points = torch.from_numpy(computed["stored"]["points/point_coords"])
    return [point_sample(computed[name].flatten(0, 1), points) for name in ("logits", "truth")]


def losses(logits: torch.Tensor, truth: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The official mask losses with their weights."""
    mask = binary_cross_entropy(logits, truth, False).mean()
    return 2 * mask, 0.5 * soft_dice_loss(logits, truth).mean()
