"""Plans: counted memory, placement on devices, and remedies if a model does not fit."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.codes import raises_code

from vesalius.cli import main
from vesalius.errors import CheckpointError, SettingError
from vesalius.inference.fitting import PlanTask, PredictionSettings, TrainingSettings
from vesalius.inference.footprint import (
    PassMemory,
    Workload,
    measure_prediction,
    measure_training,
    shard_bytes,
    trainable_model,
    weight_bytes,
)
from vesalius.inference.placement import GIB, RESERVE, Device, parse_gpus, parse_size
from vesalius.inference.plan import Plan, device_and_dtype, make_plan, plan_task, summarize
from vesalius.inference.predictor import MAX_NEW_TOKENS
from vesalius.jobs.opening import load_predictor
from vesalius.models.checkpoint import new_model, save_bundle
from vesalius.models.device_map import find_device
from vesalius.models.families.table import family_of
from vesalius.models.parameter_groups import PARTS, part_of
from vesalius.models.presets import find_spec
from vesalius.models.sam2 import encode_images
from vesalius.models.specs import ModelSpec
from vesalius.models.stored_model import empty_model
from vesalius.models.token_rows import new_tokens
from vesalius.models.trainable import CHECKPOINTABLE, TrainableSettings, set_trainable

CPU = Device("cpu", 64 * GIB)
COSTS: dict[tuple[str, ...], PassMemory] = {}
"""Measurements of `wide`, shared by the tests."""


@pytest.fixture(scope="module")
def wide() -> ModelSpec:
    """`tiny` with a language model of 8 layers and 330 M parameters, which is never allocated."""
    spec = find_spec("tiny")
    text = spec.text | {"hidden_size": 2048, "num_hidden_layers": 8, "intermediate_size": 4096}
    vlm = spec.vlm | {"text_config": text | {"num_attention_heads": 16, "num_key_value_heads": 4}}
    return spec.changed(name="wide", vlm=vlm)


def plan_of(spec: ModelSpec, gpus: str, *, cpu: Device = CPU, on_disk: bool = True, **settings: Any) -> Plan:
    task = PlanTask(spec, PredictionSettings(**settings), parse_gpus(gpus) if gpus else (), cpu, COSTS)
    return plan_task(task, spec.name, on_disk)


def mib(count: float) -> str:
    return f"{RESERVE / 2**20 + count:.0f}MiB"


@pytest.mark.parametrize("name", ["tiny", "Sa2VA-8B", "Sa2VA-Qwen2_5-VL-3B", "Sa2VA-Qwen3-VL-4B"])
def test_each_tensor_of_each_published_model_belongs_to_one_component(name: str) -> None:
    model = empty_model(find_spec(name))
    sizes = weight_bytes(model)
    assert sum(sizes.values()) == sum(p.nbytes for p in model.parameters())
    assert set(sizes) == set(PARTS)
    assert all(sizes.values())


def test_a_tensor_of_no_component_is_an_error() -> None:
    with pytest.raises(KeyError):
        part_of("head.weight")


def task_of(spec: ModelSpec, what: Any, gpus: str = "", **settings: Any) -> PlanTask:
    asked = TrainingSettings(trainable=what, **settings)
    return PlanTask(spec, asked, parse_gpus(gpus) if gpus else (), CPU)


@pytest.mark.parametrize("preset", CHECKPOINTABLE)
def test_a_plan_counts_the_parameters_that_training_trains(preset: str) -> None:
    opened = new_model("tiny", seed=0)
    trained = set_trainable(opened.model, TrainableSettings(preset=preset), new_tokens(opened.processor.tokenizer))
    task = task_of(opened.card.spec, preset)
    expected = {group: 2 * sum(p.nbytes for p in parameters) for group, parameters in trained.items()}
    rows = task.optimizer_state.pop("new tokens", 0)
    assert rows >= expected.pop("new tokens", 0)  # a tokenizer may lack some of the words
    assert task.optimizer_state == expected
    weights = sum(p.nbytes for p in opened.model.parameters())
    assert sum(task.weights.values()) == pytest.approx(weights, rel=1e-3)


def test_four_bit_weights_have_the_size_of_bitsandbytes() -> None:
    pytest.importorskip("bitsandbytes", reason="needs the extra quantization")
    opened, what = new_model("tiny", seed=0), {"preset": "vision", "quantization": "4bit"}
    set_trainable(opened.model, TrainableSettings.model_validate(what), new_tokens(opened.processor.tokenizer))
    buffers = (buffer.nbytes for name, buffer in opened.model.named_buffers() if name.endswith(".scales"))
    weights = sum(p.nbytes for p in opened.model.parameters()) + sum(buffers)
    assert sum(task_of(opened.card.spec, what).weights.values()) == pytest.approx(weights, rel=1e-3)


def test_shards_divide_weights_and_copies_add_gradients(wide: ModelSpec) -> None:
    what = {"preset": "lora", "quantization": "4bit"}
    whole, two, four = (
        task_of(wide, what, gpus, sharded=sharded, batch_size=1)
        for gpus, sharded in (("1x24GiB", False), ("2x24GiB", True), ("4x24GiB", True))
    )
    scales = sum(
        p.nbytes
        for name, p in trainable_model(wide, TrainableSettings.model_validate(what))[0].named_parameters()
        if name.endswith(".scales")
    )
    for task, count in ((two, 2), (four, 4)):
        assert task.resident - scales == pytest.approx((whole.resident - scales) / count, rel=0.01)
    # the gathered layers come on top, the gradients of the others' layers do not
    assert four.cost(1).peak > 1.02 * whole.cost(1).peak
    assert four.cost(1).peaks["optimizer step"] < 0.3 * whole.cost(1).peaks["optimizer step"]
    together = task_of(wide, what, "2x24GiB")
    assert together.optimizer_state == {group: size * 3 // 2 for group, size in whole.optimizer_state.items()}
    made = plan_task(four, "wide", True)
    assert [load.device.name for load in made.loads] == [f"GPU {i}" for i in range(4)]
    assert len({load.total for load in made.loads}) == 1


def test_tensors_are_sharded_by_rows() -> None:
    assert shard_bytes(torch.empty(5, 3), 2) == 3 * 3 * 4
    assert shard_bytes(torch.empty(1, 8), 4) == 8 * 4
    assert shard_bytes(torch.empty(()), 4) == 4


def test_kv_cache_has_the_size_of_the_formula() -> None:
    spec = find_spec("Sa2VA-8B")
    cost = measure_prediction(spec, torch.bfloat16, Workload(2, 1, (448, 448), 64), MAX_NEW_TOKENS)
    # 32 layers, keys and values of 8 heads of 128 values of 2 bytes
    a_token = 32 * 2 * 8 * 128 * 2
    assert cost.tokens == 256 + 64 + 8
    assert cost.tiles == 1
    assert cost.cache == pytest.approx(2 * (cost.tokens + MAX_NEW_TOKENS) * a_token, rel=0.001)
    assert cost.cache < cost.peaks["language model"] < cost.cache + 200 * 2**20


def test_features_have_the_size_that_the_encoder_gives() -> None:
    spec = find_spec("tiny")
    model = new_model("tiny", seed=0).model.eval()
    with torch.no_grad():
        features = encode_images(model.sam, torch.zeros(2, 3, 512, 512))
    size = sum(level.nbytes for level in vars(features).values())
    assert measure_prediction(spec, torch.float32, Workload(2, 1, (64, 64), 64), 0).features == size


@pytest.mark.parametrize("name", ["tiny", "Sa2VA-4B", "Sa2VA-Qwen2_5-VL-3B", "Sa2VA-Qwen3-VL-4B"])
def test_the_largest_image_gives_the_most_tokens(name: str) -> None:
    from PIL import Image

    spec = find_spec(name)
    sizes = [
        family_of(spec.family).largest_image(spec),
        (300, 400),
        (1000, 1000),
        (3000, 2000),
        (2336, 3504),
        (200, 1500),
    ]
    tokens = [sum(family_of(spec.family).read_image(Image.new("RGB", size[::-1]), spec).tokens) for size in sizes]
    assert max(tokens) == tokens[0]


def test_memory_grows_with_images_and_prompts_and_halves_in_16_bits(wide: ModelSpec) -> None:
    def peak(images: int, prompts: int, dtype: torch.dtype) -> int:
        return measure_prediction(wide, dtype, Workload(images, prompts, (448, 448), 64), MAX_NEW_TOKENS).peak

    one, two, three = (peak(n, 1, torch.float32) for n in (1, 2, 3))
    assert three - two == pytest.approx(two - one, rel=0.02)
    assert peak(1, 4, torch.float32) > one
    assert peak(2, 1, torch.bfloat16) == pytest.approx(two / 2, rel=0.1)


def test_memory_of_training_grows_with_the_preset(wide: ModelSpec) -> None:
    work = Workload(1, 1, (448, 448), 64)

    def cost(preset: str, dtype: torch.dtype = torch.float32, **more: Any) -> PassMemory:
        return measure_training(wide, dtype, work, TrainableSettings(preset=preset, **more))

    full, again, lora, decoder = (
        cost("full"),
        cost("full", gradient_checkpointing=("language model",)),
        cost("lora"),
        cost("decoder"),
    )
    assert decoder.peak <= lora.peak <= full.peak
    trained = sum(
        p.nbytes for group in trainable_model(wide, TrainableSettings(preset="full"))[1].values() for p in group
    )
    assert full.peaks["optimizer step"] == trained
    # the gradients are alive at the end of the backward pass
    assert full.peaks["backward pass"] >= trained
    assert again.peaks["language model"] < 0.5 * full.peaks["language model"]
    assert decoder.peaks["language model"] < 0.5 * lora.peaks["language model"]


def test_autocast_copies_of_frozen_weights_are_counted_below_lora_and_not_when_recomputed(wide: ModelSpec) -> None:
    work = Workload(1, 1, (448, 448), 64)
    language = sum(p.numel() for p in empty_model(wide).vlm.model.language_model.layers.parameters())

    def kept(**more: Any) -> int:
        what = TrainableSettings(preset="lora", **more)
        return measure_training(wide, torch.bfloat16, work, what).peaks["SAM encoder"]

    plain = kept()
    assert plain > 2 * language
    assert kept(quantization="4bit") < plain - 1.9 * language
    assert kept(gradient_checkpointing=("language model",)) < plain - 1.9 * language


def test_a_model_that_fits_one_gpu_is_copied_to_each(wide: ModelSpec) -> None:
    made = plan_of(wide, f"3x{mib(2000)}", batch_size=1)
    assert made.device_map == {"": 0}
    assert made.copies == 3
    assert made.remedies == ()
    (load,) = made.loads
    assert load.weights == sum(amount.size for amount in made.amounts if amount.kind == "weights")
    assert load.total == made.need + RESERVE <= load.device.size


def test_layers_are_split_over_the_fewest_gpus(wide: ModelSpec) -> None:
    made = plan_of(wide, f"6x{mib(330)}", batch_size=1)
    assert made.device_map is not None
    assert 2 < len(made.loads) < 6
    assert made.offloaded == {}
    assert made.copies == 6 // len(made.loads)
    for name in ("sam", "projector", "vlm.model.vision_tower"):
        assert find_device(made.device_map, name) == 0
        assert not any(key.startswith(f"{name}.") for key in made.device_map)
    devices = [find_device(made.device_map, f"vlm.model.language_model.layers.{i}") for i in range(8)]
    assert devices == sorted(devices, key=str)
    assert all(load.total <= load.device.size for load in made.loads)
    whole = plan_of(wide, "80GiB", batch_size=1).loads[0]
    assert sum(load.weights for load in made.loads) == whole.weights
    assert sum(load.cache for load in made.loads) == pytest.approx(whole.cache, rel=0.01)


def test_weights_are_offloaded_to_the_cpu_and_then_to_disk(wide: ModelSpec) -> None:
    made = plan_of(wide, mib(400), batch_size=1)
    assert set(made.offloaded) == {"cpu"}
    assert any("GPUs of" in remedy for remedy in made.remedies)
    small = Device("cpu", 200 * 2**20)
    spilled = plan_of(wide, mib(400), cpu=small, batch_size=1)
    assert set(spilled.offloaded) == {"cpu", "disk"}
    assert spilled.offloaded["cpu"] <= small.size
    assert plan_of(wide, mib(400), cpu=small, batch_size=1, on_disk=False).device_map is None
    assert plan_of(wide, "", cpu=Device("cpu", 800 * 2**20), batch_size=1).offloaded.keys() == {"disk"}


def test_a_plan_that_does_not_fit_lists_remedies(wide: ModelSpec) -> None:
    none = plan_of(wide, mib(20), batch_size=2)
    assert (none.device_map, none.loads) == (None, ())
    assert f"one device with {(none.need + RESERVE) / GIB:.1f} GiB" in none.remedies
    assert "does not fit" in "\n".join(summarize(none))
    smaller = plan_of(wide, mib(670), batch_size=8)
    assert any(remedy.startswith("batch_size=") for remedy in smaller.remedies)
    narrower = plan_of(wide, mib(900), batch_size=1, dtype="float32")
    assert "dtype=bfloat16 instead of float32" in narrower.remedies
    quantized = plan_of(wide, mib(500), batch_size=1).remedies
    assert any(remedy.startswith("quantization=8bit") for remedy in quantized)


def test_batch_size_is_the_largest_that_fits_without_more_gpus(wide: ModelSpec) -> None:
    made = plan_of(wide, f"4x{mib(900)}")
    assert made.batch_size > 1
    assert math.log2(made.batch_size).is_integer()
    assert made.device_map == {"": 0}
    assert plan_of(wide, "80GiB").batch_size == 32
    assert plan_of(wide, "").batch_size == 4


def test_quantized_weights_are_smaller(wide: ModelSpec) -> None:
    sizes = {
        kind: plan_of(wide, "80GiB", batch_size=1, quantization=kind).loads[0].weights for kind in ("8bit", "4bit")
    }
    plain = plan_of(wide, "80GiB", batch_size=1).loads[0].weights
    assert sizes["8bit"] == pytest.approx(plain / 2, rel=0.1)
    assert sizes["4bit"] == pytest.approx(0.5625 * plain / 2, rel=0.15)


@pytest.mark.slow
def test_the_26b_model_is_split_over_three_of_four_gpus_of_24_gib() -> None:
    made = make_plan("Sa2VA-26B", "4x24GiB", changes=["batch_size=1"])
    assert len(made.loads) == 3
    assert made.dtype == "bfloat16"
    assert made.device_map is not None
    assert made.device_map["sam"] == made.device_map["vlm.model.vision_tower"] == 0
    text = "\n".join(summarize(made))
    assert "GPU 2" in text
    assert "5,652,925,824 values of 2 bytes" in text


def test_training_on_one_device_counts_the_optimizer() -> None:
    spec, costs = find_spec("tiny"), dict[tuple[str, ...], PassMemory]()

    def trained(size: int, **settings: Any) -> Plan:
        asked = TrainingSettings(trainable="full", batch_size=2, **settings)
        return plan_task(PlanTask(spec, asked, parse_gpus(mib(size)), CPU, costs), "tiny", True)

    made = trained(4000)
    by_kind: dict[str, int] = {}
    for amount in made.amounts:
        by_kind[amount.kind] = by_kind.get(amount.kind, 0) + amount.size
    assert made.dtype == "float32"
    assert by_kind["optimizer"] == pytest.approx(2 * by_kind["weights"], rel=0.2)
    assert any(remedy.startswith("trainable=") for remedy in trained(200).remedies)
    # of tiny SAM's encoder keeps the most
    assert (
        "trainable.gradient_checkpointing=[language model, vision encoder, SAM encoder], a third more time per step"
        in (trained(240).remedies)
    )


def test_folders_are_planned_from_their_files(shared: Path, tmp_path: Path) -> None:
    for folder in ("internvl_internlm2", "qwen3_vl"):
        made = make_plan(shared / "oracle" / folder, "1x24GiB", changes=["batch_size=1"])
        assert made.device_map == {"": 0}
    save_bundle(tmp_path / "bundle", new_model("tiny", seed=0))
    by_name, by_folder = (
        make_plan(name, "1x24GiB", changes=["batch_size=2"]) for name in ("tiny", tmp_path / "bundle")
    )
    assert by_name.amounts == by_folder.amounts
    (tmp_path / "bundle" / "adapter").mkdir()
    with raises_code(CheckpointError, "wrong_model_kind"):
        make_plan(tmp_path / "bundle")


@given(
    st.lists(
        st.tuples(st.integers(1, 9), st.integers(1, 999), st.sampled_from(["GiB", "GB", "MiB", "MB", "gib"])),
        min_size=1,
        max_size=4,
    )
)
def test_gpus_are_parsed(groups: list[tuple[int, int, str]]) -> None:
    units = {"gib": 2**30, "gb": 10**9, "mib": 2**20, "mb": 10**6}
    found = parse_gpus(",".join(f"{count}x{size}{unit}" for count, size, unit in groups))
    assert [gpu.size for gpu in found] == [
        size * units[unit.lower()] for count, size, unit in groups for _ in range(count)
    ]
    assert [gpu.index for gpu in found] == list(range(len(found)))


@given(st.text(max_size=20))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    try:
        gpus = parse_gpus(text)
    except SettingError as error:
        assert "--gpus" in str(error)
    else:
        assert all(gpu.size > 0 for gpu in gpus)


@pytest.mark.parametrize(
    "text", ["4x24", "0x24GiB", "2x24GiB,1023x24GiB", "x24GiB", "24GiB,", "1x0GiB", "1x1e400GiB", f"1x{'9' * 400}GiB"]
)
def test_gpus_without_number_or_memory_are_refused(text: str) -> None:
    with raises_code(SettingError, "bad_value", "--gpus"):
        parse_gpus(text)


def test_sizes_may_have_decimals() -> None:
    assert parse_size("1.5GiB", "--gpus") == 3 * 2**29


@pytest.mark.parametrize(
    ("model", "gpus", "purpose", "changes", "code", "part"),
    [
        ("Sa2VA-9B", None, "predict", [], "unknown_model", "Sa2VA-8B"),
        ("tiny", None, "predict", ["batch_size=0"], "bad_value", "batch_size: "),
        ("tiny", None, "predict", ["batsh_size=1"], "unknown_setting", "batch_size"),
        ("tiny", None, "predict", ["trainable=full"], "unknown_setting", "trainable"),
        ("tiny", None, "train", ["quantization=4bit"], "unknown_setting", "quantization"),
        ("tiny", None, "train", ["trainable=decode"], "bad_value", "trainable.preset"),
        ("tiny", "1x24GiB", "train", ["sharded=true"], "conflicting_settings", "there are 1"),
        ("tiny", None, "train", ["dtype=float16"], "bad_value", "loss scaling"),
        ("tiny", None, "predict", ["batch_size=16", "prompts=32"], "bad_value", "256"),
        ("tiny", None, "predict", ["image=[0, 5]"], "bad_value", "20000"),
        ("tiny", None, "predict", ["text_tokens=5000"], "context_too_long", "tokens"),
        ("tiny", None, "predict", ["cpu_memory=64G"], "bad_value", "64G"),
        ("Sa2VA-Qwen3-VL-4B", None, "predict", ["image=[10, 9000]"], "extreme_aspect_ratio", ""),
    ],
)
def test_wrong_requests_are_refused(
    model: str, gpus: str, purpose: Any, changes: list[str], code: str, part: str
) -> None:
    with raises_code(SettingError, code, part):
        make_plan(model, gpus, purpose, changes)


def test_a_predictor_is_opened_as_planned_or_not_at_all() -> None:
    for settings, code in (
        ({"gpus": "2x24GiB"}, "no_device"),
        ({"device": "cpu", "gpus": "2x24GiB"}, "conflicting_settings"),
        ({"gpus": "1x1GiB"}, "does_not_fit"),
    ):
        with raises_code(SettingError, code):
            load_predictor("tiny", **settings)
    assert device_and_dtype(make_plan("tiny", changes=["batch_size=1"])) == ("cpu", torch.float32)


def test_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "tiny", "--gpus", "2x24GiB", "--set", "batch_size=2", "prompts=2", "--json"]) == 0
    made = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (made["fits"], made["batch_size"], made["copies"]) == (True, 2, 2)
    assert made["loads"][0]["device"] == "GPU 0"
    assert all(amount["reason"] for amount in made["amounts"])
    assert main(["plan", "tiny", "--gpus", "1x1GiB", "--for", "train", "--set", "batch_size=1"]) == 1
    assert "does not fit" in capsys.readouterr().out
    assert main(["plan", "tiny", "--gpus", "4x24"]) == 1
    assert "write it as 24GiB" in capsys.readouterr().err


def test_both_purposes_share_common_settings() -> None:
    assert set(PredictionSettings.model_fields) & set(TrainingSettings.model_fields) == {
        "batch_size",
        "prompts",
        "image",
        "text_tokens",
        "dtype",
    }
