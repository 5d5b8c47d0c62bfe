"""The setting `trainable`: trained and frozen parameters, saved adapters, gradient checkpointing, and refusals."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.codes import raises_code

from vesalius.config import Settings, make_settings
from vesalius.errors import SettingError, TrainingError
from vesalius.models.adapter import layers_of
from vesalius.models.batch import Batch
from vesalius.models.checkpoint import OpenedModel, merged, new_model, open_model, save_bundle, write_bundle
from vesalius.models.parameter_groups import TRAINABLE_PARTS
from vesalius.models.presets import find_spec
from vesalius.models.stored_model import empty_model
from vesalius.models.token_rows import new_tokens
from vesalius.models.trainable import CHECKPOINTABLE, GROUPS, TrainableSettings, set_trainable
from vesalius.models.vlm import vision_encoder_of
from vesalius.training.losses import LossSettings, compute_losses
from vesalius.training.sanity import GradientCheck
from vesalius.types import Item

PRESETS = {
    "projector": {"projector"},
    "decoder": {"projector", "SAM decoder"},
    "lora": {"projector", "SAM decoder", "language model"},
    "tokens": {"projector", "SAM decoder", "language model", "new tokens"},
    "vision": {"projector", "SAM decoder", "language model", "new tokens", "vision encoder"},
    "full": set(TRAINABLE_PARTS["full"]),
}
CHOICES: dict[str, dict[str, Any]] = {
    **{preset: {"preset": preset} for preset in PRESETS},
    "vision, 4bit": {"preset": "vision", "quantization": "4bit"},
    "other sizes": {
        "preset": "vision",
        "lora": {"language": {"rank": 4, "targets": ["q_proj", "v_proj"]}, "vision": {"rank": 2, "alpha": 1}},
    },
}


def prepared(choice: dict[str, Any]) -> tuple[OpenedModel, dict[str, list[torch.nn.Parameter]]]:
    if "quantization" in choice:
        pytest.importorskip("bitsandbytes", reason="needs the extra quantization")
    opened = new_model("tiny", seed=0)
    return opened, make_trainable(opened, choice)


def make_trainable(opened: OpenedModel, choice: dict[str, Any]) -> dict[str, list[torch.nn.Parameter]]:
    settings = make_settings(TrainableSettings, choice, "test")
    return set_trainable(opened.model, settings, new_tokens(opened.processor.tokenizer), seed=1)


@torch.no_grad()
def stir(opened: OpenedModel) -> None:
    """Make LoRA effective: its matrix B starts at zero, so that A would have no gradient."""
    torch.manual_seed(2)
    for layer in layers_of(opened.model.vlm).values():
        layer.lora_B["default"].weight.normal_(std=0.1)


def batch_of(opened: OpenedModel) -> Batch:
    rng = np.random.default_rng(0)
    pixels, masks = rng.integers(0, 256, (1, 64, 64, 3), dtype=np.uint8), rng.random((1, 1, 64, 64)) > 0.5
    return opened.processor([Item("a", pixels, ("vessel",), masks)], answered=True)


def adamw(groups: dict[str, list[torch.nn.Parameter]], lr: float = 1e-2) -> torch.optim.Optimizer:
    return torch.optim.AdamW([{"params": group} for group in groups.values()], lr=lr, weight_decay=0.1)


def loss_of(opened: OpenedModel, seed: int = 0) -> torch.Tensor:
    torch.manual_seed(seed)
    batch = batch_of(opened)
    return compute_losses(opened.model(batch), batch.masks, LossSettings(iou=1.0)).total


def take_steps(
    opened: OpenedModel, optimizer: torch.optim.Optimizer, steps: range, then: Callable[[], object] = int
) -> None:
    opened.model.train()
    for step in steps:
        loss_of(opened, step).backward()
        then()
        optimizer.step()
        optimizer.zero_grad()


def bytes_of(opened: OpenedModel) -> dict[str, bytes]:
    tensors = {**dict(opened.model.named_parameters()), **dict(opened.model.named_buffers())}
    return {name: each.detach().reshape(-1).view(torch.uint8).numpy().tobytes() for name, each in tensors.items()}


@pytest.mark.parametrize("choice", CHOICES)
def test_exactly_the_trainable_parameters_have_gradients_change_and_are_saved(choice: str) -> None:
    opened, groups = prepared(CHOICES[choice])
    stir(opened)
    assert set(groups) == PRESETS[CHOICES[choice]["preset"]]
    assert set(groups) == set(make_settings(TrainableSettings, CHOICES[choice], "test").groups)
    trained = {id(each) for group in groups.values() for each in group}
    names = {name for name, each in opened.model.named_parameters() if id(each) in trained}
    assert names == {name for name, each in opened.model.named_parameters() if each.requires_grad}
    before, check, optimizer = bytes_of(opened), GradientCheck(groups), adamw(groups)
    idle = set()

    def look() -> None:
        check.note_gradients(True)
        gradients = {name: each.grad for name, each in opened.model.named_parameters() if each.grad is not None}
        assert gradients.keys() == names
        idle.update(name for name, gradient in gradients.items() if not gradient.any())

    take_steps(opened, optimizer, range(1), look)
    check.verify()
    # of three maps one is chosen, and what only makes the others stays
    assert all(name.startswith("sam.mask_decoder.output_hypernetworks_mlps.") for name in idle)
    after = bytes_of(opened)
    changed = {name for name in before if before[name] != after[name]}
    assert names - idle <= changed <= names
    assert {id(each) for each in optimizer.state} == trained


def test_a_preset_name_selects_its_defaults() -> None:
    settings = TrainableSettings.model_validate("vision")
    assert settings.model_dump(exclude_none=True) == {
        "preset": "vision",
        "lora": {
            "language": {"rank": 16, "alpha": 32.0, "dropout": 0.05},
            "vision": {"rank": 16, "alpha": 32.0, "dropout": 0.05},
        },
        "gradient_checkpointing": (),
        "save": "merged",
    }
    assert TrainableSettings.model_validate(settings.model_dump(mode="json")) == settings
    assert TrainableSettings.model_validate({"preset": "lora", "quantization": "4bit"}).save == "adapter"
    assert TrainableSettings.model_validate("decoder").lora.language is None


@pytest.mark.parametrize(
    ("choice", "code", "names"),
    [
        ("all", "bad_value", "preset: "),
        ({"preset": ["full"]}, "bad_value", "preset: "),
        ({"preset": "full", "lora": {"language": {}}}, "bad_value", "remove lora.language"),
        ({"preset": "tokens", "lora": {"vision": {}}}, "bad_value", "use a preset that does: vision"),
        ({"preset": "lora", "lora": {"language": {"rank": 0}}}, "bad_value", "lora.language.rank: "),
        ({"preset": "lora", "lora": {"language": {"alpha": 0}}}, "bad_value", "lora.language.alpha: "),
        ({"preset": "lora", "lora": {"tongue": {}}}, "unknown_setting", "did you mean trainable.lora.language"),
        ({"preset": "full", "quantization": "4bit"}, "bad_value", "use preset vision"),
        ({"preset": "lora", "quantization": "8bit"}, "bad_value", "quantization: "),
        ({"preset": "decoder", "save": "merged"}, "bad_value", "remove save"),
        ({"preset": "lora", "gradient_checkpointing": ["SAM encoder"]}, "bad_value", "SAM encoder"),
        ({"quantization": "4bit"}, "bad_value", "preset: "),
    ],
)
def test_inconsistent_settings_are_refused(choice: Any, code: str, names: str) -> None:
    class Recipe(Settings):
        trainable: TrainableSettings

    with raises_code(SettingError, code, names):
        make_settings(Recipe, {"trainable": choice}, "recipe")


def test_unknown_layers_are_refused() -> None:
    choice = {"preset": "lora", "lora": {"language": {"targets": ["qkv"]}}}
    with pytest.raises(SettingError, match="language model: no linear layer is called 'qkv'; known: down_proj"):
        prepared(choice)
    with raises_code(TrainingError, "adapter_mismatch", "tokenizer"):
        set_trainable(new_model("tiny", seed=0).model, "tokens")


def test_frozen_encoders_store_no_activations() -> None:
    opened, _ = prepared({"preset": "decoder"})
    model, traced = opened.model, []
    for module in (vision_encoder_of(model.vlm), model.vlm.model.language_model, model.sam.vision_encoder.backbone):
        module.register_forward_hook(lambda _, inputs, made: traced.append(made[0].requires_grad))
    kept = [loss_and_kept(opened)[1]]
    assert traced == [False, False, False]
    kept += [loss_and_kept(prepared({"preset": preset})[0])[1] for preset in ("lora", "vision", "full")]
    assert kept == sorted(kept)
    assert kept[0] < kept[1] < 0.2 * kept[3]


def loss_and_kept(opened: OpenedModel) -> tuple[torch.Tensor, int]:
    """The loss, and the bytes that autograd stores for the backward pass, without weights."""
    sizes: dict[int, int] = {}
    own = {each.untyped_storage().data_ptr() for each in opened.model.parameters()}

    def count(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    opened.model.train()
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        loss = loss_of(opened)
    return loss, sum(sizes.values())


@pytest.mark.parametrize(
    ("preset", "parts"), [("vision", CHECKPOINTABLE["vision"]), ("full", CHECKPOINTABLE["full"][-1:])]
)
def test_gradient_checkpointing_changes_no_gradient_and_stores_less(preset: str, parts: tuple[str, ...]) -> None:
    plain = step_with(preset, [])
    for part in parts:
        loss, gradients, kept = step_with(preset, [part])
        assert loss == plain[0]
        assert all(torch.equal(a, b) for a, b in zip(gradients, plain[1], strict=True))
        assert kept < plain[2], part


def step_with(preset: str, parts: list[str]) -> tuple[float, list[torch.Tensor], int]:
    opened, groups = prepared({"preset": preset, "gradient_checkpointing": parts})
    stir(opened)
    loss, kept = loss_and_kept(opened)
    loss.backward()
    return (loss.item(), [each.grad for group in groups.values() for each in group if each.grad is not None], kept)


@pytest.mark.parametrize("choice", ["vision, 4bit"])
def test_training_resumes_from_a_bundle_byte_for_byte(choice: str, tmp_path: Path) -> None:
    # from a file as what goes on is: memory that begins elsewhere is summed in another order
    save_bundle(tmp_path / "start", new_model("tiny", seed=0))
    opened = open_model(tmp_path / "start")
    optimizer = adamw(make_trainable(opened, CHOICES[choice]))
    take_steps(opened, optimizer, range(1))
    save_bundle(tmp_path / "step", opened)
    state = copy.deepcopy(optimizer.state_dict())
    take_steps(opened, optimizer, range(1, 2))
    resumed = open_model(tmp_path / "step")
    assert resumed.has_adapter
    optimizer = adamw(make_trainable(resumed, CHOICES[choice]))
    optimizer.load_state_dict(state)
    take_steps(resumed, optimizer, range(1, 2))
    assert bytes_of(resumed) == bytes_of(opened)


@pytest.mark.parametrize("choice", ["vision, 4bit", "other sizes"])
def test_reopened_and_merged_models_equal_the_trained_one(choice: str, tmp_path: Path) -> None:
    opened, groups = prepared(CHOICES[choice])
    stir(opened)
    with torch.no_grad():
        for rows in groups["new tokens"]:
            rows.normal_()
    expected = outputs(opened)
    save_bundle(tmp_path / "kept", opened)
    kept = open_model(tmp_path / "kept")
    assert kept.card.quantized == CHOICES[choice].get("quantization")
    assert (outputs(kept) - expected).abs().max() <= 1e-5
    plain = merged(kept)
    assert (plain.has_adapter, plain.card.quantized, plain.folder) == (False, None, None)
    save_bundle(tmp_path / "merged", plain)
    again = open_model(tmp_path / "merged")
    assert not (tmp_path / "merged" / "adapter").exists()
    names = {name for name, _ in empty_model(find_spec("tiny")).named_parameters()}
    assert {name for name, _ in again.model.named_parameters()} == names
    assert (outputs(again) - expected).abs().max() <= 1e-5 * expected.abs().max()


def outputs(opened: OpenedModel) -> torch.Tensor:
    opened.model.eval()
    with torch.no_grad():
        made = opened.model(batch_of(opened))
    return torch.cat([made.text_logits.flatten(), made.masks.logits.flatten()])


def test_a_frozen_component_is_linked_between_checkpoints_and_copied_from_other_bundles(tmp_path: Path) -> None:
    start = tmp_path / "start"
    save_bundle(start, new_model("tiny", seed=0))
    opened = open_model(start)
    groups = make_trainable(opened, CHOICES["vision"])
    assert opened.folder == start
    first, second = tmp_path / "run" / "step-1", tmp_path / "run" / "step-2"
    write_bundle(first, opened, opened.card, like=opened.folder)
    take_steps(opened, adamw(groups), range(1))
    write_bundle(second, opened, opened.card, like=first)
    inode = {folder: (folder / "vlm" / "model.safetensors").stat().st_ino for folder in (start, first, second)}
    assert inode[start] != inode[first] == inode[second]
    assert (first / "sam/model.safetensors").read_bytes() != (second / "sam/model.safetensors").read_bytes()
    assert (start / "vlm/model.safetensors").read_bytes() == (second / "vlm/model.safetensors").read_bytes()
    assert (outputs(open_model(second)) - outputs(opened)).abs().max() <= 1e-5


def test_an_adapter_continues_with_the_same_sizes_or_after_merging() -> None:
    opened, _ = prepared({"preset": "lora"})
    with raises_code(SettingError, "adapter_mismatch"):
        make_trainable(opened, {"preset": "lora", "lora": {"language": {"rank": 4}}})
    with raises_code(TrainingError, "adapter_mismatch", "preset full"):
        make_trainable(opened, {"preset": "full"})
    make_trainable(merged(opened), {"preset": "lora", "lora": {"language": {"rank": 4}}})
    assert {each.r["default"] for each in layers_of(opened.model.vlm).values()} == {4}


def test_groups_are_disjoint() -> None:
    names = {
        name
        for known in ("tiny", "Sa2VA-Qwen3-VL-4B")  # InternVL and Qwen-VL name their image encoders otherwise
        for name, _ in empty_model(find_spec(known)).named_parameters()
    }
    for starts in GROUPS.values():
        for start in starts:
            assert any(name.startswith(start) for name in names), start
    assert all(sum(name.startswith(starts) for starts in GROUPS.values()) <= 1 for name in names)


def test_a_group_without_gradient_is_named() -> None:
    opened = new_model("tiny", seed=0)
    check = GradientCheck(set_trainable(opened.model, "projector"))
    with raises_code(TrainingError, "no_gradient", "projector"):
        check.verify()


def test_a_group_that_does_not_change_is_named() -> None:
    opened, groups = prepared({"preset": "projector"})
    check = GradientCheck(groups)
    take_steps(opened, adamw(groups, lr=0.0), range(1), lambda: check.note_gradients(True))
    with raises_code(TrainingError, "unchanged_weights", "projector"):
        check.verify()
