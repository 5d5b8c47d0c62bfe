"""Merging: trained tensors in place of the base's, LoRA added, and the check of the merge."""

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.codes import raises_code

from vesalius.conversion import lora as lora_module
from vesalius.conversion.lora import MergedWeights, TensorWeights, check_merge, find_candidates, read_rows
from vesalius.conversion.training_checkpoint import Lora, TrainingCheckpoint, open_training_checkpoint
from vesalius.errors import CheckpointError
from vesalius.models.layout_mapping import to_bundle
from vesalius.models.presets import PRESETS, find_spec
from vesalius.models.specs import ModelSpec
from vesalius.models.weights import AssembledWeights, load_tensor, open_weights

QUERY = "language_model.model.layers.0.self_attn.q_proj.weight"
HEAD = "language_model.lm_head.weight"
FIRST = "text_hidden_fcs.0.weight"


def checkpoint_of(full: dict[str, torch.Tensor], lora: dict[str, Lora]) -> TrainingCheckpoint:
    return TrainingCheckpoint(Path("iter_7.pth"), full, lora, {}, {}, "", 7)


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def pair(rows: int, columns: int, rank: int = 2, seed: int = 3, dtype: torch.dtype = torch.float32) -> Lora:
    return Lora(draw(rank, columns, seed=seed, dtype=dtype), draw(rows, rank, seed=seed + 1, dtype=dtype))


def test_a_merged_weight_worked_out_on_paper() -> None:
    base = TensorWeights({QUERY: torch.tensor([[1.0, 0.0], [0.0, 1.0]]), HEAD: torch.zeros(2)})
    change = Lora(a=torch.tensor([[1.0, 2.0]]), b=torch.tensor([[1.0], [10.0]]))
    merged = MergedWeights(base, checkpoint_of({HEAD: torch.ones(2)}, {QUERY: change}), alpha=2)
    # alpha / rank = 2; B @ A = [[1, 2], [10, 20]]
    assert load_tensor(merged, QUERY).tolist() == [[3, 4], [20, 41]]
    assert load_tensor(merged, HEAD).tolist() == [1, 1]


def test_without_alpha_the_lora_is_left_out_and_whole_tensors_are_not() -> None:
    base = TensorWeights({QUERY: draw(4, 6), HEAD: torch.zeros(2)})
    weights = MergedWeights(base, checkpoint_of({HEAD: torch.ones(2)}, {QUERY: pair(4, 6)}), alpha=None)
    assert torch.equal(load_tensor(weights, QUERY), draw(4, 6))
    assert load_tensor(weights, HEAD).tolist() == [1, 1]
    assert check_merge(weights).merged == ()


@pytest.mark.parametrize(
    ("base", "lora", "expected"),
    [
        (torch.float16, torch.float32, "F32"),
        (torch.bfloat16, torch.bfloat16, "BF16"),
        (torch.bfloat16, torch.float16, "F32"),
        (torch.float32, torch.bfloat16, "F32"),
    ],
)
def test_a_merged_weight_has_a_dtype_that_holds_base_and_lora_exactly(
    base: torch.dtype, lora: torch.dtype, expected: str
) -> None:
    weights = TensorWeights({QUERY: draw(4, 6, dtype=base)})
    change = pair(4, 6, dtype=lora)
    merged = MergedWeights(weights, checkpoint_of({}, {QUERY: change}), alpha=4)
    exact = draw(4, 6, dtype=base).double() + 2 * change.b.double() @ change.a.double()
    precision = {"F32": 1e-6, "BF16": 2**-8}[expected]
    assert merged.tensors[QUERY].dtype == expected
    assert (load_tensor(merged, QUERY).double() - exact).abs().max() <= precision * exact.abs().max()
    assert check_merge(merged).error <= precision


def test_whole_tensors_keep_the_dtype_of_the_file_and_scalars_pass() -> None:
    base = TensorWeights({HEAD: torch.zeros(3), FIRST: torch.tensor(1.0)})
    full = {HEAD: torch.ones(3, dtype=torch.bfloat16), FIRST: torch.tensor(2.0)}
    merged = MergedWeights(base, checkpoint_of(full, {}), alpha=None)
    assert (merged.tensors[HEAD].dtype, load_tensor(merged, FIRST).item()) == ("BF16", 2)


def test_lora_on_a_tensor_that_the_checkpoint_holds_whole_is_added_to_that_one() -> None:
    base = TensorWeights({QUERY: torch.zeros(2, 2)})
    change = Lora(a=torch.ones(1, 2), b=torch.ones(2, 1))
    merged = MergedWeights(base, checkpoint_of({QUERY: torch.full((2, 2), 5.0)}, {QUERY: change}), alpha=1)
    assert load_tensor(merged, QUERY).tolist() == [[6, 6], [6, 6]]
    assert check_merge(merged).error < 1e-6


@pytest.mark.parametrize("block_bytes", [1, 40, 1 << 20])
def test_rows_in_small_chunks_are_the_rows_of_the_whole(monkeypatch: pytest.MonkeyPatch, block_bytes: int) -> None:
    base = TensorWeights({QUERY: draw(7, 5), HEAD: draw(7, 5)})
    merged = MergedWeights(base, checkpoint_of({HEAD: draw(7, 5, seed=9)}, {QUERY: pair(7, 5)}), alpha=4)
    whole = {name: load_tensor(merged, name) for name in (QUERY, HEAD)}
    monkeypatch.setattr(lora_module, "BLOCK_BYTES", block_bytes)
    for name, tensor in whole.items():
        assert torch.allclose(load_tensor(merged, name), tensor, rtol=0, atol=1e-6)
        assert torch.allclose(read_rows(merged, name, 2, 3), tensor[2:5], rtol=0, atol=1e-6)


# ---- the check


def test_error_of_a_correct_merge_is_at_the_precision_of_float32() -> None:
    base = TensorWeights({QUERY: draw(40, 60), HEAD: draw(4, 6), FIRST: draw(6, 6)})
    checkpoint = checkpoint_of({HEAD: draw(4, 6), FIRST: draw(6, 6, seed=5)}, {QUERY: pair(40, 60)})
    proof = check_merge(MergedWeights(base, checkpoint, alpha=4))
    assert 0 < proof.error < 1e-6
    assert (proof.worst, proof.merged) == (QUERY, (QUERY,))
    assert (proof.changed, proof.unchanged) == ((QUERY, FIRST), (HEAD,))
    assert proof.remarks == ["1 of the checkpoint's 3 tensors equal those of the base"]


def test_a_wrong_merge_has_a_large_error() -> None:
    base = TensorWeights({QUERY: draw(40, 60)})
    merged = MergedWeights(base, checkpoint_of({}, {QUERY: pair(40, 60)}), alpha=4)
    wrong = {QUERY: load_tensor(merged, QUERY).roll(1, dims=0)}
    merged._merge = lambda name, first, count: wrong[name][first : first + count]  # type: ignore[method-assign]
    assert check_merge(merged).error > 0.1


def test_lora_that_changes_nothing_is_remarked() -> None:
    base = TensorWeights({QUERY: draw(4, 6), FIRST: draw(6, 6)})
    still = Lora(draw(2, 6), torch.zeros(4, 2))
    proof = check_merge(MergedWeights(base, checkpoint_of({FIRST: draw(6, 6)}, {QUERY: still}), alpha=4))
    assert proof.remarks == [
        "LoRA changes nothing: all 1 merged weights equal those of the base",
        "all tensors of the checkpoint equal those of the base",
    ]


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_numbers_that_are_not_finite_are_refused(number: float) -> None:
    base = TensorWeights({QUERY: draw(4, 6), FIRST: draw(6, 6)})
    change = pair(4, 6)
    change.b[0, 0] = number
    with raises_code(CheckpointError, "not_finite_weights", "q_proj.weight"):
        check_merge(MergedWeights(base, checkpoint_of({}, {QUERY: change}), alpha=4))
    with raises_code(CheckpointError, "not_finite_weights", "text_hidden_fcs"):
        check_merge(MergedWeights(base, checkpoint_of({FIRST: torch.full((6, 6), number)}, {}), alpha=None))


# ---- tensors that do not fit


def test_a_wrong_base_is_refused_with_the_table_of_differences() -> None:
    base = TensorWeights({QUERY: draw(4, 6), FIRST: draw(6, 6)})
    full = {FIRST: draw(8, 8), **{f"mlp1.{i}.weight": torch.ones(2) for i in range(12)}}
    shapes = (f"{QUERY} [4, 8] instead of [4, 6]", f"{FIRST} [8, 8] instead of [6, 6]")
    with raises_code(
        CheckpointError, "wrong_base", "iter_7.pth", "12 unknown: mlp1.0.weight, ", "2 misshapen", *shapes
    ):
        MergedWeights(base, checkpoint_of(full, {QUERY: pair(4, 8)}), alpha=4)


def official_shapes(name: str) -> dict[str, tuple[int, ...]]:
    """A few tensors of a published model, as LoRA on its last layer and the projector show them."""
    text = find_spec(name).text
    hidden, last = text["hidden_size"], text["num_hidden_layers"] - 1
    layer = {
        "qwen2": f"language_model.model.layers.{last}.mlp.up_proj.weight",
        "llama": f"language_model.model.layers.{last}.feed_forward.w1.weight",
    }.get(text["model_type"], f"model.model.language_model.layers.{last}.mlp.up_proj.weight")
    return {FIRST: (hidden, hidden), layer: (text["intermediate_size"], hidden)}


@pytest.mark.parametrize("name", PRESETS)
def test_every_published_size_is_known_by_a_few_of_its_tensors(name: str) -> None:
    assert find_candidates(official_shapes(name)) == [name]


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("sa2va_1b_internvl2_5_qwen2_5_0_5b", "Sa2VA-1B"),
        ("sa2va_26b_internvl2_5_internlm2_5_20b", "Sa2VA-26B"),
        ("sa2va_internvl3_8b", "Sa2VA-InternVL3-8B"),
        ("sa2va_qwen2_5_vl_7b", "Sa2VA-Qwen2_5-VL-7B"),
        ("sa2va_qwen3_vl_4b", "Sa2VA-Qwen3-VL-4B"),
    ],
)
def test_every_published_size_is_known_by_all_of_its_tensors(shared: Path, file: str, name: str) -> None:

    keys = json.loads((shared / f"oracle/keys/{file}.json").read_text(encoding="utf-8"))
    assert find_candidates({key: tuple(shape) for key, (shape, _) in keys.items()}) == [name]


def test_a_wrong_base_and_the_right_one_are_named() -> None:
    def weights(name: str) -> dict[str, torch.Tensor]:
        shapes = official_shapes(name)
        return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}

    with raises_code(CheckpointError, "wrong_base", "fit Sa2VA-8B", "base is Sa2VA-4B"):
        MergedWeights(TensorWeights(weights("Sa2VA-4B")), checkpoint_of(weights("Sa2VA-8B"), {}), alpha=None)
    more_words = {**weights("Sa2VA-8B"), HEAD: torch.empty(5, 6)}
    with raises_code(CheckpointError, "wrong_base", "both have the size of Sa2VA-8B"):
        MergedWeights(TensorWeights(weights("Sa2VA-8B")), checkpoint_of(more_words, {}), alpha=None)


# ---- fused weights


def internlm2(queries: int, groups: int) -> ModelSpec:
    spec = find_spec("Sa2VA-8B")
    text = {**spec.text, "num_attention_heads": queries * groups, "num_key_value_heads": groups}
    return spec.changed(vlm={**spec.vlm, "text_config": text})


@given(
    queries=st.integers(1, 4),
    groups=st.integers(1, 3),
    head=st.integers(1, 4),
    columns=st.integers(1, 6),
    rank=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_merging_then_splitting_is_splitting_then_merging(
    queries: int, groups: int, head: int, columns: int, rank: int, seed: int
) -> None:
    spec = internlm2(queries, groups)
    fused = {
        "language_model.model.layers.0.attention.wqkv.weight": groups * (queries + 2) * head,
        "vision_model.encoder.layers.0.attn.qkv.weight": 3 * head,
    }
    base = {name: draw(rows, columns, seed=seed) for name, rows in fused.items()}
    loras = {name: pair(rows, columns, rank, seed) for name, rows in fused.items()}
    merged = MergedWeights(TensorWeights(base), checkpoint_of({}, loras), alpha=2 * rank)
    split = AssembledWeights(merged, to_bundle(spec, {name: t.shape for name, t in merged.tensors.items()})[0])

    def parts(tensors: dict[str, torch.Tensor]) -> AssembledWeights:
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        return AssembledWeights(TensorWeights(tensors), to_bundle(spec, shapes)[0])

    weights, b_rows = parts(base), parts({name: lora.b for name, lora in loras.items()})
    assert len(split.tensors) == 6
    for name in split.tensors:
        lora = loras[next(rows.source for rows in to_bundle(spec, {k: v.shape for k, v in base.items()})[0][name].rows)]
        expected = load_tensor(weights, name) + 2 * load_tensor(b_rows, name) @ lora.a
        assert torch.allclose(load_tensor(split, name), expected, rtol=0, atol=1e-5)


# ---- the stored merge of the official code


def test_real_checkpoint_over_its_base_is_the_stored_merge(shared: Path) -> None:
    oracle = shared / "oracle"
    checkpoint = open_training_checkpoint(oracle / "iter12/iter_12.pth")
    alpha = checkpoint.find_alpha(None)
    assert alpha is not None
    merged = MergedWeights(open_weights(oracle / "internvl_qwen2"), checkpoint, alpha.value)
    stored = open_weights(oracle / "iter12/merged")
    assert merged.tensors.keys() == stored.tensors.keys()
    differences = {
        name: (load_tensor(merged, name).double() - load_tensor(stored, name).double()).abs().max().item()
        for name in stored.tensors
    }
    assert len(differences) == 465
    assert max(differences.values()) <= 1e-6
    proof = check_merge(merged)
    assert proof.error < 1e-6
    assert (len(proof.merged), len(proof.changed), proof.unchanged, proof.remarks) == (14, 157, (), [])


def test_real_checkpoint_over_another_base_is_refused(shared: Path) -> None:
    checkpoint = open_training_checkpoint(shared / "oracle/iter12/iter_12.pth")
    with raises_code(CheckpointError, "wrong_base", "16 unknown", "3 misshapen"):
        MergedWeights(open_weights(shared / "oracle/internvl_internlm2"), checkpoint, 16)
