"""LoRA kept as an adapter: the model with the adapter gives the outputs of the merged model."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import safetensors.torch
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from tests.codes import raises_code
from transformers import PreTrainedModel

from vesalius.conversion.adapter import adapter_weights, write_adapter
from vesalius.conversion.lora import MergedWeights, TensorWeights
from vesalius.conversion.training_checkpoint import Lora, TrainingCheckpoint, open_training_checkpoint
from vesalius.errors import CheckpointError
from vesalius.models.adapter import CONFIG, TENSORS, apply_adapter
from vesalius.models.families.table import family_of
from vesalius.models.layout_mapping import to_bundle, to_official
from vesalius.models.official_config import read_spec
from vesalius.models.presets import find_spec
from vesalius.models.specs import ModelSpec
from vesalius.models.textseg import configs
from vesalius.models.weights import AssembledWeights, Weights, load_tensor, open_weights

RANK, ALPHA = 2, 6.0
ORACLES = ("internvl_qwen2", "internvl_internlm2", "qwen2_5_vl", "qwen3_vl")
TRAINED = re.compile(r"(language_model|vision_model|visual)\..*\b(layers|blocks)\.\d+\..*weight")


@dataclass(frozen=True)
class Case:
    """A base in the official layout, and random LoRA on all matrices of its layers."""

    spec: ModelSpec
    base: Weights
    checkpoint: TrainingCheckpoint

    def vlm(self, alpha: float | None) -> PreTrainedModel:
        """The native vision-language model with LoRA merged, or left out."""
        merged = MergedWeights(self.base, self.checkpoint, alpha)
        shapes = {name: tensor.shape for name, tensor in merged.tensors.items()}
        bundle = AssembledWeights(merged, to_bundle(self.spec, shapes)[0])
        vlm = family_of(self.spec.family).model_class(configs(self.spec)[0]).eval()
        names = {name: f"vlm.{family_of(self.spec.family).saved_name(name)}" for name in vlm.state_dict()}
        vlm.load_state_dict({name: load_tensor(bundle, saved).float() for name, saved in names.items()})
        return vlm


def case_of(spec: ModelSpec, base: Weights) -> Case:
    generator = torch.Generator().manual_seed(0)
    matrices = {
        name: tensor.shape for name, tensor in base.tensors.items() if TRAINED.search(name) and len(tensor.shape) == 2
    }
    lora = {
        name: Lora(
            torch.randn(RANK, columns, generator=generator) / columns**0.5, torch.randn(rows, RANK, generator=generator)
        )
        for name, (rows, columns) in matrices.items()
    }
    assert len(lora) > 10
    return Case(spec, base, TrainingCheckpoint(Path("iter_7.pth"), {}, lora, {}, {}, "", 7))


def tiny() -> Case:
    """The model `tiny` with random weights, in the official layout."""
    spec = find_spec("tiny")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vlm = family_of(spec.family).model_class(configs(spec)[0])
    tensors = {f"vlm.{family_of(spec.family).saved_name(name)}": each for name, each in vlm.state_dict().items()}
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    return case_of(spec, AssembledWeights(TensorWeights(tensors), to_official(spec, shapes)))


@pytest.fixture(scope="module")
def small() -> Case:
    return tiny()


@pytest.fixture(params=("tiny", *ORACLES))
def case(request: pytest.FixtureRequest, small: Case) -> Case:
    if request.param == "tiny":
        return small
    folder = request.getfixturevalue("shared") / "oracle" / request.param
    base = open_weights(folder)
    return case_of(read_spec(folder, {name: each.shape for name, each in base.tensors.items()}), base)


@pytest.fixture
def adapter(small: Case, tmp_path: Path) -> Path:
    write_adapter(tmp_path / "adapter", small.checkpoint, small.spec, ALPHA)
    return tmp_path / "adapter"


def logits(vlm: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return vlm(input_ids=torch.arange(3, 15)[None]).logits


def test_model_with_adapter_gives_the_outputs_of_the_merged_model(case: Case, tmp_path: Path) -> None:
    write_adapter(tmp_path / "adapter", case.checkpoint, case.spec, ALPHA)
    plain, merged, vlm = case.vlm(None), case.vlm(ALPHA), case.vlm(None)
    apply_adapter(vlm, tmp_path / "adapter")
    assert all((".lora_" in name) == each.requires_grad for name, each in vlm.named_parameters())
    layers = {path: each for path, each in vlm.named_modules() if isinstance(each, LoraLayer)}
    shapes = {name: tuple(lora.b.shape) for name, lora in case.checkpoint.lora.items()}
    assert len(layers) == len(to_bundle(case.spec, shapes)[0])
    for path, layer in layers.items():
        weight = layer.get_base_layer().weight + layer.get_delta_weight("default")
        assert torch.equal(layer.get_base_layer().weight, plain.get_submodule(path).weight), path
        assert torch.allclose(weight, merged.get_submodule(path).weight, rtol=0, atol=1e-5), path
    expected = logits(merged)
    scale = expected.abs().max().item()
    assert (logits(vlm) - expected).abs().max().item() <= 1e-4 * scale
    assert (logits(plain) - expected).abs().max().item() > 1e-2 * scale


# peft 0.21 asks transformers 5.23 by an old name
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_peft_itself_opens_the_adapter(small: Case, adapter: Path) -> None:
    vlm = PeftModel.from_pretrained(small.vlm(None), adapter).eval()
    expected = logits(small.vlm(ALPHA))
    assert (logits(vlm) - expected).abs().max().item() <= 1e-4 * expected.abs().max().item()


def test_real_checkpoint_as_an_adapter_gives_the_outputs_of_its_merge(shared: Path, tmp_path: Path) -> None:
    folder = shared / "oracle/internvl_qwen2"
    base = open_weights(folder)
    spec = read_spec(folder, {name: each.shape for name, each in base.tensors.items()})
    case = Case(spec, base, open_training_checkpoint(shared / "oracle/iter12/iter_12.pth"))
    write_adapter(tmp_path / "adapter", case.checkpoint, spec, 16.0)
    vlm, merged = case.vlm(None), logits(case.vlm(16.0))
    apply_adapter(vlm, tmp_path / "adapter")
    assert (logits(vlm) - merged).abs().max().item() <= 1e-5 * merged.abs().max().item()


def test_fused_weights_share_a_and_split_b(small: Case) -> None:
    weights = adapter_weights(small.checkpoint, small.spec)
    a, b = small.checkpoint.lora["vision_model.encoder.layers.1.attn.qkv.weight"]
    stem = "base_model.model.model.vision_tower.encoder.layer.1.attention"
    third = len(b) // 3
    for i, name in enumerate(("q_proj", "k_proj", "v_proj")):
        assert torch.equal(load_tensor(weights, f"{stem}.{name}.lora_A.weight"), a)
        assert torch.equal(load_tensor(weights, f"{stem}.{name}.lora_B.weight"), b[i * third : (i + 1) * third])


def test_lora_on_the_segmenter_cannot_be_kept(small: Case, tmp_path: Path) -> None:
    name = "grounding_encoder.sam2_model.sam_mask_decoder.transformer.layers.0.mlp.layers.0.weight"
    checkpoint = TrainingCheckpoint(
        Path("iter_7.pth"), {}, {name: Lora(torch.ones(2, 4), torch.ones(4, 2))}, {}, {}, "", 7
    )
    with raises_code(CheckpointError, "unsupported_adapter", "sam.mask_decoder"):
        write_adapter(tmp_path / "adapter", checkpoint, small.spec, ALPHA)
    assert not (tmp_path / "adapter").exists()


def changed_config(folder: Path, **values: object) -> None:
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8")) | values
    (folder / CONFIG).write_text(json.dumps(config), encoding="utf-8")


def changed_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = safetensors.torch.load_file(folder / TENSORS)
    change(tensors)
    safetensors.torch.save_file(tensors, folder / TENSORS)


FAULTS = {  # what to damage, the code, and a name or number in the message
    "no config": (lambda folder: (folder / CONFIG).unlink(), "invalid_adapter", CONFIG),
    "no JSON": (lambda folder: (folder / CONFIG).write_text("{"), "invalid_adapter", CONFIG),
    "other method": (lambda folder: changed_config(folder, peft_type="IA3"), "invalid_adapter", "lora_alpha"),
    "DoRA": (lambda folder: changed_config(folder, use_dora=True), "invalid_adapter", "use_dora"),
    "code by name": (
        lambda folder: changed_config(folder, megatron_config={"a": 1}),
        "invalid_adapter",
        "megatron_config",
    ),
    "unknown layers": (lambda folder: changed_config(folder, target_modules=["x"]), "adapter_mismatch", "x"),
    "rank": (lambda folder: changed_config(folder, r=3), "adapter_mismatch", "66 misshapen"),
    "no tensors": (lambda folder: (folder / TENSORS).unlink(), "damaged_model", TENSORS),
    "cut": (
        lambda folder: (folder / TENSORS).write_bytes((folder / TENSORS).read_bytes()[:-9]),
        "damaged_model",
        TENSORS,
    ),
    "one missing": (
        lambda folder: changed_tensors(folder, lambda tensors: tensors.pop(min(tensors))),
        "adapter_mismatch",
        "1 missing",
    ),
    "one too many": (
        lambda folder: changed_tensors(folder, lambda tensors: tensors.update(x=torch.ones(1))),
        "adapter_mismatch",
        "1 unknown: x",
    ),
}


@pytest.mark.parametrize(("damage", "code", "name"), FAULTS.values(), ids=FAULTS)
def test_a_faulty_adapter_is_refused(
    small: Case, adapter: Path, damage: Callable[[Path], object], code: str, name: str
) -> None:
    damage(adapter)
    with raises_code(CheckpointError, code, name):
        apply_adapter(small.vlm(None), adapter)
