"""Training checkpoints: their tensors get official keys, and nothing in them is ever executed."""

import io
import json
import os
import pickle
import runpy
import sys
import types
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.codes import raises_code

from vesalius.conversion.training_checkpoint import Alpha, Inert, official_name, open_training_checkpoint
from vesalius.errors import CheckpointError, SettingError

LAYER = "mllm.model.language_model.base_model.model.model.layers.0.self_attn.q_proj"
HEAD = "mllm.model.language_model.base_model.model.lm_head"
CONFIG = "llm_lora=dict(\n    lora_alpha=16,\n    lora_dropout=0.05,\n    r=8,\n    type='peft.LoraConfig')\nlr = 4e-05"


@pytest.fixture
def history_buffer(monkeypatch: pytest.MonkeyPatch) -> Iterator[type]:
    """The trainer's class, importable while a checkpoint is written, but not when it is read."""

    class HistoryBuffer:
        def __init__(self) -> None:
            self._log_history = np.linspace(2, 1, 5)
            self._count_history = np.ones(5, dtype=np.int64)
            self.statistics_methods = {"min": HistoryBuffer.min, "max": HistoryBuffer.max}

        def min(self) -> float:
            return float(self._log_history.min())

        def max(self) -> float:
            return float(self._log_history.max())

    HistoryBuffer.__module__, HistoryBuffer.__qualname__ = "mmengine.logging.history_buffer", "HistoryBuffer"
    for name in (HistoryBuffer.min, HistoryBuffer.max):
        name.__module__, name.__qualname__ = HistoryBuffer.__module__, f"HistoryBuffer.{name.__name__}"
    packages = ("mmengine", "mmengine.logging", "mmengine.logging.history_buffer")
    with monkeypatch.context() as patch:
        for name in packages:
            patch.setitem(sys.modules, name, types.ModuleType(name))
        sys.modules[packages[-1]].HistoryBuffer = HistoryBuffer  # type: ignore[attr-defined]
        yield HistoryBuffer


def weights(rank: int = 8) -> dict[str, torch.Tensor]:
    return {
        f"{LAYER}.lora_A.default.weight": torch.randn(rank, 6),
        f"{LAYER}.lora_B.default.weight": torch.randn(4, rank),
        f"{HEAD}.modules_to_save.default.weight": torch.randn(9, 6),
        "mllm.model.mlp1.0.weight": torch.randn(5, dtype=torch.bfloat16),
        "text_hidden_fcs.0.weight": torch.randn(6, 6),
    }


def save(path: Path, state: Any, **others: Any) -> Path:
    others = {"meta": {"iter": 12, "cfg": CONFIG}} | others
    torch.save({"state_dict": state, **others}, path)
    return path


def test_names_and_tensors_come_out_as_the_official_ones(tmp_path: Path) -> None:
    state = weights()
    checkpoint = open_training_checkpoint(save(tmp_path / "iter_12.pth", OrderedDict(state)))
    assert checkpoint.full.keys() == {"language_model.lm_head.weight", "mlp1.0.weight", "text_hidden_fcs.0.weight"}
    assert checkpoint.full["mlp1.0.weight"].dtype is torch.bfloat16
    (name, lora), *others = checkpoint.lora.items()
    assert (name, others) == ("language_model.model.layers.0.self_attn.q_proj.weight", [])
    assert torch.equal(lora.a, state[f"{LAYER}.lora_A.default.weight"])
    assert torch.equal(lora.b, state[f"{LAYER}.lora_B.default.weight"])
    assert (lora.shape, checkpoint.rank, checkpoint.step) == ((4, 6), 8, 12)
    assert checkpoint.renamed.keys() == state.keys()
    assert checkpoint.dropped == {}


@pytest.mark.parametrize("core", ["numpy.core.multiarray", "numpy._core.multiarray"])
def test_objects_of_the_trainer_are_ignored(tmp_path: Path, core: str, history_buffer: type) -> None:
    hub = {"log_scalars": OrderedDict(loss=history_buffer()), "runtime_info": {"best": np.float64(0.5)}}
    path = save(tmp_path / "iter_12.pth", weights(), message_hub=hub, param_schedulers=[{"last_step": 12}])
    with_pickle(path, path, old=b"numpy._core.multiarray", new=core.encode())
    del sys.modules["mmengine.logging.history_buffer"]
    checkpoint = open_training_checkpoint(path)
    assert checkpoint.find_alpha(None) == Alpha(16.0, "text of the training config in the checkpoint")
    assert not any(name.startswith("mmengine.logging.") for name in sys.modules)


def with_pickle(source: Path, target: Path, old: bytes, new: bytes) -> None:
    """Copy an archive with `old` replaced in its pickle, or with the pickle `new` if `old` is empty."""
    with zipfile.ZipFile(source) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for name, data in records.items():
            changed = data.replace(old, new) if old else new
            archive.writestr(name, changed if name.endswith("/data.pkl") else data)


@pytest.mark.parametrize(
    ("trainers", "official"),
    [
        (
            "mllm.model.language_model.base_model.model.model.embed_tokens.modules_to_save.default.weight",
            "language_model.model.embed_tokens.weight",
        ),
        (
            "mllm.model.language_model.base_model.model.model.layers.3.attention.wqkv.lora_A.default.weight",
            "language_model.model.layers.3.attention.wqkv.lora_A.default.weight",
        ),
        (
            "mllm.model.vision_model.base_model.model.encoder.layers.0.attn.qkv.base_layer.bias",
            "vision_model.encoder.layers.0.attn.qkv.bias",
        ),
        ("mllm.model.language_model.model.norm.weight", "language_model.model.norm.weight"),
        (
            "mllm.model.base_model.model.model.language_model.layers.0.mlp.up_proj.lora_B.default.weight",
            "model.model.language_model.layers.0.mlp.up_proj.lora_B.default.weight",
        ),
        ("mllm.model.base_model.model.lm_head.modules_to_save.default.weight", "model.lm_head.weight"),
        ("mllm.model.model.visual.merger.mlp.0.bias", "model.model.visual.merger.mlp.0.bias"),
        (
            "grounding_encoder.sam2_model.memory_encoder.fuser.layers.0.gamma",
            "grounding_encoder.sam2_model.memory_encoder.fuser.layers.0.g_weight",
        ),
        ("text_hidden_fcs.2.bias", "text_hidden_fcs.2.bias"),
        ("distill_projector.weight", None),
    ],
)
def test_official_key_of_a_key_of_the_trainer(trainers: str, official: str | None) -> None:
    assert official_name(trainers) == official


def test_keys_of_qwen_checkpoints_are_those_of_the_official_layout(shared: Path) -> None:
    for size in ("sa2va_qwen2_5_vl_3b", "sa2va_qwen3_vl_4b"):
        keys = json.loads((shared / f"oracle/keys/{size}.json").read_text(encoding="utf-8"))
        inside = [key for key in keys if key.startswith("model.")]
        assert len(inside) > 700
        assert [official_name(f"mllm.{key}") for key in inside] == inside
        wrapped = [key.replace("model.", "mllm.model.base_model.model.", 1) for key in inside]
        assert [official_name(key) for key in wrapped] == inside


def test_the_original_of_a_replaced_module_is_dropped_with_the_reason(tmp_path: Path) -> None:
    state = weights() | {f"{HEAD}.original_module.weight": torch.zeros(9, 6)}
    checkpoint = open_training_checkpoint(save(tmp_path / "all.pth", state))
    assert checkpoint.dropped == {f"{HEAD}.original_module.weight": "replaced by modules_to_save"}
    assert checkpoint.full["language_model.lm_head.weight"].any()


def test_a_flat_file_as_zero_to_fp32_makes_it_is_read(tmp_path: Path) -> None:
    torch.save(weights(), tmp_path / "flat.pth")
    checkpoint = open_training_checkpoint(tmp_path / "flat.pth")
    assert (len(checkpoint.full), len(checkpoint.lora), checkpoint.step) == (3, 1, None)


# ---- LoRA alpha


def test_a_given_alpha_is_used_and_a_contradiction_is_reported(tmp_path: Path) -> None:
    checkpoint = open_training_checkpoint(save(tmp_path / "a.pth", weights()))
    assert checkpoint.find_alpha(16) == Alpha(16, "given")
    assert checkpoint.find_alpha(32) == Alpha(32, "given, though the training config says 16")
    with raises_code(SettingError, "bad_value", "-1"):
        checkpoint.find_alpha(-1)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ("", "no training config"),
        ("lr = 1e-4", "does not state it"),
        ("a=dict(lora_alpha=16, r=8), b=dict(lora_alpha=32, r=8)", "states 2"),
        ("lora_alpha=256, r=128", "has rank 128, the tensors 8"),
        ("lora_alpha=16, r=8, use_rslora=True", "rsLoRA"),
    ],
)
def test_alpha_that_is_not_stored_must_be_given(tmp_path: Path, config: str, reason: str) -> None:
    checkpoint = open_training_checkpoint(save(tmp_path / "a.pth", weights(), meta={"cfg": config}))
    with raises_code(CheckpointError, "unknown_lora_alpha", reason, "--lora-alpha", "2 x rank, 16 here"):
        checkpoint.find_alpha(None)
    assert checkpoint.find_alpha(16) is not None


def test_the_config_is_found_in_the_other_place_too_and_quotes_are_read(tmp_path: Path) -> None:
    hub = {"runtime_info": OrderedDict(cfg="{'lora_alpha': 12.5, 'r': 8}")}
    checkpoint = open_training_checkpoint(save(tmp_path / "a.pth", weights(), meta={}, message_hub=hub))
    assert checkpoint.find_alpha(None) == Alpha(12.5, "text of the training config in the checkpoint")


def test_alpha_without_lora_is_refused(tmp_path: Path) -> None:
    checkpoint = open_training_checkpoint(save(tmp_path / "a.pth", {"mllm.model.mlp1.0.weight": torch.ones(2)}))
    assert checkpoint.find_alpha(None) is None
    with raises_code(SettingError, "conflicting_settings"):
        checkpoint.find_alpha(16)


# ---- tensors that belong to no model


@pytest.mark.parametrize(
    ("code", "change", "names"),
    [
        ("invalid_lora", {f"{LAYER}.lora_B.default.weight": None}, ("q_proj.weight", "lora_A without lora_B")),
        ("invalid_lora", {f"{LAYER}.lora_A.default.weight": None}, ("q_proj.weight", "lora_B without lora_A")),
        ("invalid_lora", {f"{LAYER}.lora_B.default.weight": torch.ones(4, 7)}, ("(8, 6)", "(4, 7)")),
        ("invalid_lora", {f"{LAYER}.lora_A.default.weight": torch.ones(8, 6, 1, 1)}, ("(8, 6, 1, 1)",)),
        (
            "invalid_lora",
            {
                f"{LAYER.replace('q_proj', 'k_proj')}.lora_A.default.weight": torch.ones(4, 6),
                f"{LAYER.replace('q_proj', 'k_proj')}.lora_B.default.weight": torch.ones(4, 4),
            },
            ("4 (", "k_proj.weight), 8 (", "q_proj.weight)"),
        ),
        ("unknown_tensor", {f"{LAYER}.lora_magnitude_vector.default.weight": torch.ones(4)}, ("lora_magnitude",)),
        ("unknown_tensor", {f"{HEAD}.original_modules.weight": torch.ones(4)}, ("original_modules",)),
        ("unknown_tensor", {"mllm.hca_queries": torch.ones(4)}, ("mllm.hca_queries",)),
        ("unknown_tensor", {f"other.{i:02d}": torch.ones(1) for i in range(12)}, ("other.00, ", "other.09 and 2 more")),
        ("repeated_tensor", {f"{HEAD}.weight": torch.ones(9, 6)}, ("lm_head",)),
        ("invalid_tensor", {"mllm.model.mlp1.1.weight": torch.ones(2, 2).to_sparse()}, ("mlp1.1.weight",)),
        ("invalid_tensor", {"mllm.model.mlp1.1.weight": "text"}, ("mlp1.1.weight",)),
    ],
)
def test_a_tensor_that_belongs_to_no_model_is_named(
    tmp_path: Path, code: str, change: dict[str, Any], names: tuple[str, ...]
) -> None:
    state = {name: value for name, value in (weights() | change).items() if value is not None}
    with raises_code(CheckpointError, code, *names):
        open_training_checkpoint(save(tmp_path / "a.pth", state))


@pytest.mark.parametrize("content", [{"model": weights()}, [1, 2], {"state_dict": {}}, {}])
def test_a_file_without_weights_is_refused(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "a.pth")
    with raises_code(CheckpointError, "not_a_checkpoint", "a.pth"):
        open_training_checkpoint(tmp_path / "a.pth")


# ---- damaged files and other kinds of files


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_refused(tmp_path: Path, kept: float) -> None:
    path = save(tmp_path / "a.pth", weights())
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    with raises_code(CheckpointError, "damaged_checkpoint", "a.pth"):
        open_training_checkpoint(path)


def test_a_damaged_number_is_found_by_the_checksum(tmp_path: Path) -> None:
    path = save(tmp_path / "a.pth", {"mllm.model.mlp1.0.weight": torch.arange(100.0)})
    data = bytearray(path.read_bytes())
    data[data.index(torch.arange(100.0).numpy().tobytes()) + 40] ^= 1
    path.write_bytes(data)
    with raises_code(CheckpointError, "damaged_checkpoint", "data/0"):
        open_training_checkpoint(path)


def test_a_compressed_archive_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.pth", weights())
    with zipfile.ZipFile(path) as stored, zipfile.ZipFile(tmp_path / "b.pth", "w", zipfile.ZIP_DEFLATED) as packed:
        for name in stored.namelist():
            packed.writestr(name, stored.read(name))
    with raises_code(CheckpointError, "damaged_checkpoint", "compressed"):
        open_training_checkpoint(tmp_path / "b.pth")


def test_other_kinds_of_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.pth").touch()
    (tmp_path / "text.pth").write_text("iter_12.pth", encoding="utf-8")
    torch.save({"state_dict": weights()}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    with zipfile.ZipFile(tmp_path / "other.pth", "w") as archive:
        archive.writestr("readme", "x")
    for name, code in {
        "empty": "not_a_checkpoint",
        "text": "not_a_checkpoint",
        "old": "not_a_checkpoint",
        "other": "damaged_checkpoint",
        "absent": "unreadable_file",
    }.items():
        with raises_code(CheckpointError, code, f"{name}.pth"):
            open_training_checkpoint(tmp_path / f"{name}.pth")


def test_a_deepspeed_folder_is_refused_with_the_command_that_joins_it(tmp_path: Path) -> None:
    folder = tmp_path / "iter_12.pth"
    folder.mkdir()
    with raises_code(CheckpointError, "not_a_checkpoint"):
        open_training_checkpoint(folder)
    (folder / "mp_rank_00_model_states.pt").touch()
    with raises_code(CheckpointError, "not_a_checkpoint", f"zero_to_fp32.py {tmp_path} OUT.pth --tag iter_12.pth"):
        open_training_checkpoint(folder)
    (tmp_path / "zero_to_fp32.py").touch()
    with raises_code(CheckpointError, "not_a_checkpoint", f"{tmp_path}/zero_to_fp32.py {tmp_path} OUT.pth"):
        open_training_checkpoint(tmp_path)


# ---- pickles that would execute code


class Runs:
    """Pickles as a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def test_a_pickle_that_would_execute_code_is_refused_and_named(tmp_path: Path) -> None:
    touched = tmp_path / "touched"
    for function, name in ((os.system, "posix.system"), (runpy.run_path, "runpy.run_path"), (eval, "builtins.eval")):
        path = save(tmp_path / "a.pth", weights(), extra=Runs(function, f"touch {touched}"))
        with raises_code(CheckpointError, "unsafe_pickle", name):
            open_training_checkpoint(path)
        in_the_weights = save(tmp_path / "a.pth", {"mllm.model.mlp1.0.weight": Runs(function, f"touch {touched}")})
        with raises_code(CheckpointError, "unsafe_pickle", name):
            open_training_checkpoint(in_the_weights)
    with (tmp_path / "plain.pth").open("wb") as file:
        pickle.dump({"state_dict": Runs(os.system, f"touch {touched}")}, file)
    with raises_code(CheckpointError, "not_a_checkpoint"):
        open_training_checkpoint(tmp_path / "plain.pth")
    assert not touched.exists()


def test_a_newer_pickle_that_would_execute_code_is_refused_unread(tmp_path: Path) -> None:
    touched = tmp_path / "touched"
    torch.save({"x": Runs(os.system, f"touch {touched}")}, tmp_path / "a.pth", pickle_protocol=4)
    with raises_code(CheckpointError, "unsafe_pickle"):
        open_training_checkpoint(tmp_path / "a.pth")
    assert not touched.exists()


def test_getattr_in_a_pickle_reaches_nothing(tmp_path: Path) -> None:
    touched = tmp_path / "touched"
    history = b"cmmengine.logging.history_buffer\nHistoryBuffer\n"
    get = b"c__builtin__\ngetattr\n"
    command = f"(X{chr(len(f'touch {touched}'))}\0\0\0touch {touched}t".encode("latin1")
    name = {text: b"X" + len(text).to_bytes(4, "little") + text for text in (b"__globals__", b"__setstate__")}
    attacks = {
        "getattr(os, 'system')('touch')": get + b"(cos\nsystem\n" + name[b"__globals__"] + b"tR" + command + b"R",
        "getattr(HistoryBuffer, '__globals__')('touch')": (
            get + b"(" + history + name[b"__globals__"] + b"tR" + command + b"R"
        ),
        "a stand-in whose __setstate__ is replaced": (
            history + b")\x81}" + name[b"__setstate__"] + get + b"sb" + command + b"b"
        ),
        "numpy's reconstruct of another class": (
            b"cnumpy._core.multiarray\n_reconstruct\n(" + get + command + b"tR" + command + b"R"
        ),
    }
    save(tmp_path / "good.pth", weights())
    for attack, body in attacks.items():
        with_pickle(tmp_path / "good.pth", tmp_path / "a.pth", b"", b"\x80\x02" + body + b".")
        with pytest.raises(CheckpointError) as caught:
            open_training_checkpoint(tmp_path / "a.pth")
        assert caught.value.code in ("unsafe_pickle", "not_a_checkpoint"), attack
    assert not touched.exists()


def test_methods_that_a_pickle_gives_to_a_mapping_are_not_called(tmp_path: Path) -> None:
    state = OrderedDict(weights())
    state.xtems = state.values = state.keys = state.get = torch.Size  # type: ignore[assignment, method-assign]
    path = save(tmp_path / "a.pth", state)
    with_pickle(path, path, old=b"xtems", new=b"items")
    checkpoint = open_training_checkpoint(path)
    assert len(checkpoint.renamed) == 5


def test_a_stand_in_takes_anything_and_keeps_nothing() -> None:
    inert = Inert(os, "system")
    inert.__setstate__({"__setstate__": os.system})
    assert not hasattr(inert, "__dict__")
    assert not callable(inert)
    with pytest.raises(AttributeError):
        inert.anything = 1  # type: ignore[attr-defined]


def test_torchs_own_loading_is_as_strict_as_before(tmp_path: Path, history_buffer: type) -> None:
    path = save(tmp_path / "a.pth", weights(), message_hub={"log_scalars": {"loss": history_buffer()}})
    open_training_checkpoint(path)
    with pytest.raises(pickle.UnpicklingError, match=r"HistoryBuffer|getattr|multiarray"):
        torch.load(io.BytesIO(path.read_bytes()), weights_only=True)


def test_real_checkpoint_opens_with_every_key_used(shared: Path) -> None:
    checkpoint = open_training_checkpoint(shared / "oracle/iter12/iter_12.pth")
    assert (len(checkpoint.full), len(checkpoint.lora), len(checkpoint.renamed)) == (143, 14, 171)
    assert (checkpoint.rank, checkpoint.step, checkpoint.dropped) == (8, 12, {})
    assert checkpoint.find_alpha(None) == Alpha(16.0, "text of the training config in the checkpoint")
