"""A plan counts what is there, puts it where there is room, and says what would fit where there is none."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vesalius.cli import main
from vesalius.errors import CheckpointError, SettingError
from vesalius.inference import plan as planning
from vesalius.inference.fitting import NEW_TOKENS, PredictionSettings, Task, TrainingSettings
from vesalius.inference.footprint import (
    Pass,
    Work,
    measure_prediction,
    measure_training,
    prepared,
    share,
    weigh,
)
from vesalius.inference.placement import GIB, RESERVE, Device, parse_gpus, parse_size
from vesalius.inference.plan import Plan, make_plan, place_of, summarize
from vesalius.inference.predictor import MAX_NEW_TOKENS
from vesalius.jobs.opening import load_predictor
from vesalius.models.checkpoint import new_model, save_bundle
from vesalius.models.device_map import find_device
from vesalius.models.families.table import family_of
from vesalius.models.parameter_groups import PARTS, part_of
from vesalius.models.presets import find_spec
from vesalius.models.segmenter import encode_images
from vesalius.models.specs import ModelSpec
from vesalius.models.stored_model import empty_model
from vesalius.models.token_rows import new_tokens
from vesalius.models.trainable import CHECKPOINTABLE, TrainableSettings, set_trainable

CPU = Device("cpu", 64 * GIB)
COSTS: dict[tuple[str, ...], Pass] = {}
"""What tests measured of `wide`, for those after them."""


@pytest.fixture(scope="module")
def wide() -> ModelSpec:
    """tiny with a language model of 8 layers and 330 M parameters, of which nothing is ever made."""
    spec = find_spec("tiny")
    text = spec.text | {"hidden_size": 2048, "num_hidden_layers": 8, "intermediate_size": 4096}
    vlm = spec.vlm | {"text_config": text | {"num_attention_heads": 16, "num_key_value_heads": 4}}
    return spec.changed(name="wide", vlm=vlm)


def plan_of(spec: ModelSpec, gpus: str, *, cpu: Device = CPU, on_disk: bool = True, **settings: Any) -> Plan:
    task = Task(spec, PredictionSettings(**settings), parse_gpus(gpus) if gpus else (), cpu, COSTS)
    return planning._plan(task, spec.name, on_disk)


def mib(count: float) -> str:
    return f"{RESERVE / 2**20 + count:.0f}MiB"


@pytest.mark.parametrize("name", ["tiny", "Sa2VA-8B", "Sa2VA-Qwen2_5-VL-3B", "Sa2VA-Qwen3-VL-4B"])
def test_each_tensor_of_each_published_model_is_in_one_part(name: str) -> None:
    model = empty_model(find_spec(name))
    sizes = weigh(model)
    assert sum(sizes.values()) == sum(p.nbytes for p in model.parameters())
    assert set(sizes) == set(PARTS)
    assert all(sizes.values())


def test_a_name_of_no_part_is_an_error() -> None:
    with pytest.raises(KeyError):
        part_of("head.weight")


def task_of(spec: ModelSpec, what: Any, gpus: str = "", **settings: Any) -> Task:
    asked = TrainingSettings(trainable=what, **settings)
    return Task(spec, asked, parse_gpus(gpus) if gpus else (), CPU)


@pytest.mark.parametrize("preset", CHECKPOINTABLE)
def test_what_a_plan_lets_train_is_what_training_does(preset: str) -> None:
    opened = new_model("tiny", seed=0)
    trained = set_trainable(
        opened.model, TrainableSettings(preset=preset), new_tokens(opened.processor.tokenizer)
    )
    task = task_of(opened.card.spec, preset)
    expected = {group: 2 * sum(p.nbytes for p in parameters) for group, parameters in trained.items()}
    rows = task.remembered.pop("new tokens", 0)
    assert rows >= expected.pop("new tokens", 0)  # a tokenizer may lack some of the words
    assert task.remembered == expected
    weights = sum(p.nbytes for p in opened.model.parameters())
    assert sum(task.weights.values()) == pytest.approx(weights, rel=1e-3)


def test_four_bits_are_counted_as_bitsandbytes_makes_them() -> None:
    pytest.importorskip("bitsandbytes", reason="needs the extra quantized")
    opened, what = new_model("tiny", seed=0), {"preset": "vision", "quantization": "4bit"}
    set_trainable(
        opened.model, TrainableSettings.model_validate(what), new_tokens(opened.processor.tokenizer)
    )
    buffers = (buffer.nbytes for name, buffer in opened.model.named_buffers() if name.endswith(".scales"))
    weights = sum(p.nbytes for p in opened.model.parameters()) + sum(buffers)
    assert sum(task_of(opened.card.spec, what).weights.values()) == pytest.approx(weights, rel=1e-3)


def test_shards_divide_what_is_held_and_copies_add_what_is_sent(wide: ModelSpec) -> None:
    what = {"preset": "lora", "quantization": "4bit"}
    whole, two, four = (
        task_of(wide, what, gpus, sharded=sharded, batch_size=1)
        for gpus, sharded in (("1x24GiB", False), ("2x24GiB", True), ("4x24GiB", True))
    )
    scales = sum(
        p.nbytes
        for name, p in prepared(wide, TrainableSettings.model_validate(what))[0].named_parameters()
        if name.endswith(".scales")
    )
    for task, count in ((two, 2), (four, 4)):
        assert task.held - scales == pytest.approx((whole.held - scales) / count, rel=0.01)
    # the gathered layers come on top, the gradients of the others' layers do not
    assert four.cost(1).peak > 1.02 * whole.cost(1).peak
    assert four.cost(1).peaks["optimizer step"] < 0.3 * whole.cost(1).peaks["optimizer step"]
    together = task_of(wide, what, "2x24GiB")
    assert together.remembered == {group: size * 3 // 2 for group, size in whole.remembered.items()}
    made = planning._plan(four, "wide", True)
    assert [load.device.name for load in made.loads] == [f"GPU {i}" for i in range(4)]
    assert len({load.total for load in made.loads}) == 1


def test_a_tensor_is_shared_out_by_rows() -> None:
    assert share(torch.empty(5, 3), 2) == 3 * 3 * 4
    assert share(torch.empty(1, 8), 4) == 8 * 4
    assert share(torch.empty(()), 4) == 4


def test_the_cache_is_that_of_the_formula() -> None:
    spec = find_spec("Sa2VA-8B")
    cost = measure_prediction(spec, torch.bfloat16, Work(2, 1, (448, 448), 64), NEW_TOKENS)
    # 32 layers, keys and values of 8 heads of 128 values of 2 bytes
    a_token = 32 * 2 * 8 * 128 * 2
    assert cost.tokens == 256 + 64 + 8
    assert cost.tiles == 1
    assert cost.cache == pytest.approx(2 * (cost.tokens + NEW_TOKENS) * a_token, rel=0.001)
    assert cost.cache < cost.peaks["language model"] < cost.cache + 200 * 2**20


def test_features_are_those_that_the_encoder_gives() -> None:
    spec = find_spec("tiny")
    model = new_model("tiny", seed=0).model.eval()
    with torch.no_grad():
        features = encode_images(model.sam, torch.zeros(2, 3, 512, 512))
    size = sum(level.nbytes for level in vars(features).values())
    assert measure_prediction(spec, torch.float32, Work(2, 1, (64, 64), 64), 0).features == size


def test_an_answer_grows_as_far_as_the_predictor_lets_it() -> None:
    assert NEW_TOKENS == MAX_NEW_TOKENS


@pytest.mark.parametrize("name", ["tiny", "Sa2VA-4B", "Sa2VA-Qwen2_5-VL-3B", "Sa2VA-Qwen3-VL-4B"])
def test_no_image_becomes_more_tokens_than_the_largest(name: str) -> None:
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
    tokens = [
        sum(family_of(spec.family).read_image(Image.new("RGB", size[::-1]), spec).tokens) for size in sizes
    ]
    assert max(tokens) == tokens[0]


def test_memory_grows_with_images_and_prompts_and_halves_with_the_width(wide: ModelSpec) -> None:
    def peak(images: int, prompts: int, dtype: torch.dtype) -> int:
        return measure_prediction(wide, dtype, Work(images, prompts, (448, 448), 64), NEW_TOKENS).peak

    one, two, three = (peak(n, 1, torch.float32) for n in (1, 2, 3))
    assert three - two == pytest.approx(two - one, rel=0.02)
    assert peak(1, 4, torch.float32) > one
    assert peak(2, 1, torch.bfloat16) == pytest.approx(two / 2, rel=0.1)


def test_training_keeps_more_the_more_trains(wide: ModelSpec) -> None:
    work = Work(1, 1, (448, 448), 64)

    def cost(preset: str, dtype: torch.dtype = torch.float32, **more: Any) -> Pass:
        return measure_training(wide, dtype, work, TrainableSettings(preset=preset, **more))

    full, again, lora, decoder = (
        cost("full"),
        cost("full", gradient_checkpointing=("language model",)),
        cost("lora"),
        cost("decoder"),
    )
    assert decoder.peak <= lora.peak <= full.peak
    trained = sum(
        p.nbytes for group in prepared(wide, TrainableSettings(preset="full"))[1].values() for p in group
    )
    assert full.peaks["optimizer step"] == trained
    # the gradients are alive at the end of the backward pass
    assert full.peaks["backward pass"] >= trained
    assert again.peaks["language model"] < 0.5 * full.peaks["language model"]
    assert decoder.peaks["language model"] < 0.5 * lora.peaks["language model"]


def test_autocast_keeps_a_copy_of_frozen_weights_below_lora_but_not_of_layers_done_again(
    wide: ModelSpec,
) -> None:
    work = Work(1, 1, (448, 448), 64)
    language = sum(p.numel() for p in empty_model(wide).vlm.model.language_model.layers.parameters())

    def kept(**more: Any) -> int:
        what = TrainableSettings(preset="lora", **more)
        return measure_training(wide, torch.bfloat16, work, what).peaks["SAM encoder"]

    plain = kept()
    assert plain > 2 * language
    assert kept(quantization="4bit") < plain - 1.9 * language
    assert kept(gradient_checkpointing=("language model",)) < plain - 1.9 * language


def test_a_model_that_fits_one_gpu_is_whole_there_and_once_on_each(wide: ModelSpec) -> None:
    made = plan_of(wide, f"3x{mib(2000)}", batch_size=1)
    assert made.device_map == {"": 0}
    assert made.copies == 3
    assert made.remedies == ()
    (load,) = made.loads
    assert load.weights == sum(amount.size for amount in made.amounts if amount.kind == "weights")
    assert load.total == made.need + RESERVE <= load.device.size


def test_layers_are_split_over_the_fewest_gpus_and_all_else_is_whole(wide: ModelSpec) -> None:
    made = plan_of(wide, f"6x{mib(330)}", batch_size=1)
    assert made.device_map is not None
    assert 2 < len(made.loads) < 6
    assert made.waiting == {}
    assert made.copies == 6 // len(made.loads)
    for name in ("sam", "projector", "vlm.model.vision_tower"):
        assert find_device(made.device_map, name) == 0
        assert not any(key.startswith(f"{name}.") for key in made.device_map)
    places = [find_device(made.device_map, f"vlm.model.language_model.layers.{i}") for i in range(8)]
    assert places == sorted(places, key=str)
    assert all(load.total <= load.device.size for load in made.loads)
    whole = plan_of(wide, "80GiB", batch_size=1).loads[0]
    assert sum(load.weights for load in made.loads) == whole.weights
    assert sum(load.cache for load in made.loads) == pytest.approx(whole.cache, rel=0.01)


def test_what_no_gpu_holds_waits_in_the_memory_of_the_cpu_and_then_on_disk(wide: ModelSpec) -> None:
    made = plan_of(wide, mib(400), batch_size=1)
    assert set(made.waiting) == {"cpu"}
    assert any("GPUs of" in remedy for remedy in made.remedies)
    small = Device("cpu", 200 * 2**20)
    spilled = plan_of(wide, mib(400), cpu=small, batch_size=1)
    assert set(spilled.waiting) == {"cpu", "disk"}
    assert spilled.waiting["cpu"] <= small.size
    assert plan_of(wide, mib(400), cpu=small, batch_size=1, on_disk=False).device_map is None
    assert plan_of(wide, "", cpu=Device("cpu", 800 * 2**20), batch_size=1).waiting.keys() == {"disk"}


def test_where_nothing_fits_the_plan_says_what_would(wide: ModelSpec) -> None:
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


def test_the_batch_is_the_largest_that_fits_without_more_gpus(wide: ModelSpec) -> None:
    made = plan_of(wide, f"4x{mib(900)}")
    assert made.batch_size > 1
    assert math.log2(made.batch_size).is_integer()
    assert made.device_map == {"": 0}
    assert plan_of(wide, "80GiB").batch_size == 32
    assert plan_of(wide, "").batch_size == 4


def test_quantized_weights_are_smaller(wide: ModelSpec) -> None:
    sizes = {
        kind: plan_of(wide, "80GiB", batch_size=1, quantization=kind).loads[0].weights
        for kind in ("8bit", "4bit")
    }
    plain = plan_of(wide, "80GiB", batch_size=1).loads[0].weights
    assert sizes["8bit"] == pytest.approx(plain / 2, rel=0.1)
    assert sizes["4bit"] == pytest.approx(0.5625 * plain / 2, rel=0.15)


@pytest.mark.slow
def test_the_26b_model_goes_over_three_of_four_gpus_of_24_gib() -> None:
    made = make_plan("Sa2VA-26B", "4x24GiB", changes=["batch_size=1"])
    assert len(made.loads) == 3
    assert made.dtype == "bfloat16"
    assert made.device_map is not None
    assert made.device_map["sam"] == made.device_map["vlm.model.vision_tower"] == 0
    text = "\n".join(summarize(made))
    assert "GPU 2" in text
    assert "5,652,925,824 values of 2 bytes" in text


def test_training_on_one_device_counts_the_optimizer() -> None:
    spec, costs = find_spec("tiny"), dict[tuple[str, ...], Pass]()

    def trained(size: int, **settings: Any) -> Plan:
        asked = TrainingSettings(trainable="full", batch_size=2, **settings)
        return planning._plan(Task(spec, asked, parse_gpus(mib(size)), CPU, costs), "tiny", True)

    made = trained(4000)
    by_kind: dict[str, int] = {}
    for amount in made.amounts:
        by_kind[amount.kind] = by_kind.get(amount.kind, 0) + amount.size
    assert made.dtype == "float32"
    assert by_kind["optimizer"] == pytest.approx(2 * by_kind["weights"], rel=0.2)
    assert any(remedy.startswith("trainable=") for remedy in trained(200).remedies)
    # of tiny SAM's encoder keeps the most
    assert (
        "trainable.gradient_checkpointing=[language model, vision encoder, SAM encoder], a third more time a step"
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
    with pytest.raises(CheckpointError, match="of a run, merge it"):
        make_plan(tmp_path / "bundle")


@given(
    st.lists(
        st.tuples(st.integers(1, 9), st.integers(1, 999), st.sampled_from(["GiB", "GB", "MiB", "MB", "gib"])),
        min_size=1,
        max_size=4,
    )
)
def test_gpus_are_read_as_they_are_written(groups: list[tuple[int, int, str]]) -> None:
    units = {"gib": 2**30, "gb": 10**9, "mib": 2**20, "mb": 10**6}
    found = parse_gpus(",".join(f"{count}x{size}{unit}" for count, size, unit in groups))
    assert [gpu.size for gpu in found] == [
        size * units[unit.lower()] for count, size, unit in groups for _ in range(count)
    ]
    assert [gpu.place for gpu in found] == list(range(len(found)))


@given(st.text(max_size=20))
def test_any_other_text_is_refused_in_a_sentence(text: str) -> None:
    try:
        gpus = parse_gpus(text)
    except SettingError as error:
        assert "--gpus" in str(error)
    else:
        assert all(gpu.size > 0 for gpu in gpus)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("4x24", "no amount of memory with a unit; write it as 24GiB"),
        ("0x24GiB", "between 1 and 1024"),
        ("2x24GiB,1023x24GiB", "between 1 and 1024"),
        ("x24GiB", "no number of GPUs"),
        ("24GiB,", "with a unit"),
        ("1x0GiB", "none at all"),
        ("1x1e400GiB", "with a unit"),
        (f"1x{'9' * 400}GiB", "more memory than there is"),
    ],
)
def test_gpus_that_are_none_are_refused(text: str, words: str) -> None:
    with pytest.raises(SettingError, match=words):
        parse_gpus(text)


def test_a_gpu_may_be_of_part_of_a_gib() -> None:
    assert parse_size("1.5GiB", "--gpus") == 3 * 2**29


@pytest.mark.parametrize(
    ("model", "gpus", "purpose", "changes", "words"),
    [
        ("Sa2VA-9B", None, "predict", [], "did you mean Sa2VA-8B"),
        ("tiny", None, "predict", ["batch_size=0"], "batch_size: .*greater than or equal to 1"),
        ("tiny", None, "predict", ["batsh=1"], "did you mean batch"),
        ("tiny", None, "predict", ["trainable=full"], "unknown key trainable"),
        ("tiny", None, "train", ["quantization=4bit"], "unknown key quantization"),
        ("tiny", None, "train", ["trainable=decode"], "trainable.preset"),
        ("tiny", "1x24GiB", "train", ["sharded=true"], "between several GPUs, and here are 1"),
        ("tiny", None, "train", ["dtype=float16"], "loss scaling"),
        ("tiny", None, "predict", ["batch_size=16", "prompts=32"], "must not exceed"),
        ("tiny", None, "predict", ["image=[0, 5]"], "between 1 and 20000"),
        ("tiny", None, "predict", ["text_tokens=5000"], "longer than the model's context"),
        ("tiny", None, "predict", ["cpu_memory=64G"], "with a unit"),
        ("Sa2VA-Qwen3-VL-4B", None, "predict", ["image=[10, 9000]"], "too long for Qwen-VL"),
    ],
)
def test_what_is_wrong_is_said(model: str, gpus: str, purpose: Any, changes: list[str], words: str) -> None:
    with pytest.raises(SettingError, match=words):
        make_plan(model, gpus, purpose, changes)


def test_a_predictor_is_opened_as_planned_or_not_at_all() -> None:
    with pytest.raises(SettingError, match="this machine has 0 GPUs"):
        load_predictor("tiny", gpus="2x24GiB")
    with pytest.raises(SettingError, match="not both"):
        load_predictor("tiny", device="cpu", gpus="2x24GiB")
    with pytest.raises(SettingError, match=r"does not fit; would fit: .*one device with"):
        load_predictor("tiny", gpus="1x1GiB")
    assert place_of(make_plan("tiny", changes=["batch_size=1"])) == ("cpu", torch.float32)


def test_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "tiny", "--gpus", "2x24GiB", "--set", "batch_size=2", "prompts=2", "--json"]) == 0
    made = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (made["fits"], made["batch"], made["copies"]) == (True, 2, 2)
    assert made["loads"][0]["device"] == "GPU 0"
    assert all(amount["reason"] for amount in made["amounts"])
    assert main(["plan", "tiny", "--gpus", "1x1GiB", "--for", "train", "--set", "batch_size=1"]) == 1
    assert "does not fit" in capsys.readouterr().out
    assert main(["plan", "tiny", "--gpus", "4x24"]) == 1
    assert "write it as 24GiB" in capsys.readouterr().err


def test_settings_of_both_purposes_share_what_is_common() -> None:
    assert set(PredictionSettings.model_fields) & set(TrainingSettings.model_fields) == {
        "batch",
        "prompts",
        "image",
        "text_tokens",
        "dtype",
    }
