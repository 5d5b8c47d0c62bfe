"""Key tables at real sizes: every tensor has a counterpart in both directions. No weights are needed."""

import gzip
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.codes import raises_code

from vesalius.errors import CheckpointError
from vesalius.models.families.table import family_of
from vesalius.models.layout_mapping import to_bundle, to_official
from vesalius.models.presets import find_spec
from vesalius.models.specs import ModelSpec
from vesalius.models.textseg import build

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "official_keys.json.gz"
OFFICIAL = {
    name: {key: tuple(shape) for key, shape in keys.items()}
    for name, keys in json.loads(gzip.decompress(GOLDEN.read_bytes())).items()
}


def native_tensors(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Name in `save_pretrained` -> shape of each tensor of the native classes."""
    with torch.device("meta"):
        model = build(spec, seg_id=0)
    halves = {
        "vlm": {family_of(spec.family).saved_name(name): tensor for name, tensor in model.vlm.state_dict().items()},
        "sam": model.sam.state_dict(),
        "projector": model.projector.state_dict(),
    }
    return {f"{half}.{name}": tuple(tensor.shape) for half, state in halves.items() for name, tensor in state.items()}


@pytest.mark.parametrize("name", OFFICIAL)
def test_official_tensors_are_exactly_those_of_the_native_model(name: str) -> None:
    spec = find_spec(name)
    bundle, dropped = to_bundle(spec, OFFICIAL[name])
    assert dropped == {}
    assert {key: assembly.shape for key, assembly in bundle.items()} == native_tensors(spec)


@pytest.mark.parametrize("name", OFFICIAL)
def test_the_reverse_mapping_gives_every_official_tensor(name: str) -> None:
    spec = find_spec(name)
    bundle, _ = to_bundle(spec, OFFICIAL[name])
    back = to_official(spec, {key: assembly.shape for key, assembly in bundle.items()})
    assert {key: assembly.shape for key, assembly in back.items()} == OFFICIAL[name]


@pytest.mark.parametrize("name", ["Sa2VA-8B", "Sa2VA-26B", "Sa2VA-1B", "Sa2VA-Qwen3-VL-4B"])
def test_every_row_survives_a_round_trip(name: str) -> None:
    spec = find_spec(name)
    there, _ = to_bundle(spec, OFFICIAL[name])
    back = to_official(spec, {key: assembly.shape for key, assembly in there.items()})
    for key, assembly in back.items():
        place = 0
        for rows in assembly.rows:
            at = 0
            for origin in there[rows.source].rows:
                if at == rows.first:
                    assert (origin.source, origin.first, origin.count) == (key, place, rows.count)
                at += origin.count
            place += rows.count
        assert place == OFFICIAL[name][key][0]


@given(groups=st.integers(1, 4), queries=st.integers(1, 3), head=st.integers(1, 5))
def test_fused_projection_is_split_by_groups(groups: int, queries: int, head: int) -> None:
    spec = find_spec("Sa2VA-8B")
    text = {**spec.text, "num_attention_heads": groups * queries, "num_key_value_heads": groups}
    spec = spec.changed(vlm={**spec.vlm, "text_config": text})
    name = "language_model.model.layers.0.attention.wqkv.weight"
    fused = torch.arange(groups * (queries + 2) * head)
    bundle, _ = to_bundle(spec, {name: (len(fused), 7)})
    split = {
        key.removesuffix("_proj.weight")[-1]: torch.cat([fused[r.first : r.first + r.count] for r in part.rows])
        for key, part in bundle.items()
    }
    # as the official code has it: (groups, queries + 2, head), the last two of each group being key and value
    reference = fused.reshape(groups, queries + 2, head)
    assert torch.equal(split["q"], reference[:, :-2].flatten())
    assert torch.equal(split["k"], reference[:, -2].flatten())
    assert torch.equal(split["v"], reference[:, -1].flatten())


def test_unknown_names_are_refused_by_name() -> None:
    shapes = OFFICIAL["Sa2VA-1B"] | {"language_model.head2.weight": (3, 4), "extra": (1,)}
    with raises_code(CheckpointError, "weights_mismatch", "extra"):
        to_bundle(find_spec("Sa2VA-1B"), shapes)
    with raises_code(CheckpointError, "weights_mismatch", "sam.what"):
        to_official(find_spec("Sa2VA-1B"), {"sam.what": (1,)})


def test_half_a_fused_tensor_is_refused() -> None:
    spec = find_spec("Sa2VA-8B")
    bundle, _ = to_bundle(spec, OFFICIAL["Sa2VA-8B"])
    shapes = {key: assembly.shape for key, assembly in bundle.items()}
    del shapes["vlm.language_model.model.layers.3.self_attn.v_proj.weight"]
    with raises_code(CheckpointError, "weights_mismatch", "layers.3.self_attn.v_proj"):
        to_official(spec, shapes)


def test_rotary_frequencies_of_old_files_are_dropped_with_a_reason() -> None:
    name = "language_model.model.layers.0.attention.rotary_emb.inv_freq"
    bundle, dropped = to_bundle(find_spec("Sa2VA-8B"), {name: (64,)})
    assert bundle == {}
    assert dropped == {name: "computed from the configuration"}
