"""Conversion: a round trip keeps every byte, and a failed conversion leaves no files."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.codes import raises_code

from vesalius.cli import main
from vesalius.conversion import convert as convert_module
from vesalius.conversion import parity
from vesalius.conversion.convert import convert
from vesalius.conversion.prepare import COPIED, Conversion
from vesalius.conversion.proof import summarize
from vesalius.errors import CheckpointError, OutputError, SettingError
from vesalius.files import write_json
from vesalius.lineage import fingerprint_weights
from vesalius.models.cards import CARD, read_card
from vesalius.models.checkpoint import open_model
from vesalius.models.config_files import CONFIG, PROOF
from vesalius.models.families.tokenizers import byte_tokenizer
from vesalius.models.layout_mapping import to_official
from vesalius.models.presets import find_spec
from vesalius.models.sam_config import sam2
from vesalius.models.specs import ModelSpec
from vesalius.models.stored_model import check_fit, expected_shapes, fingerprint_model, hash_weights
from vesalius.models.weights import TORCH_TYPES, open_weights
from vesalius.progress import Progress
from vesalius.tensorfiles import TensorType, find_shards, read_header, write_shards, write_tensors

INDEX = "model.safetensors.index.json"

DTYPES = {"vision_model": "BF16", "mlp1": "BF16", "language_model": "F32", "text_hidden_fcs": "F32"}
"""First word of an official key -> dtype, as in a real mixed checkpoint; SAM 2 is float16 here."""

SMALL_FILES = {
    "README.md": b"# A model \xe8\xa1\x80\n",
    "modeling_sa2va_chat.py": b"import os\nos.mkdir('executed')\n",
    "chat_template.jinja": b"{{ 1 }}",
    "assets/nested/figure.bytes": bytes(range(256)),
    "empty.txt": b"",
}


def small_spec(chat: str) -> ModelSpec:
    """InternVL of two layers, with the language model of the chat template, and a small SAM 2."""
    internlm = chat == "internlm2_chat"
    spec = find_spec("Sa2VA-8B" if internlm else "Sa2VA-1B")
    text = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    vision = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    spec.vlm["text_config"] |= {**text, "intermediate_size": 48, "vocab_size": 270}
    spec.vlm["vision_config"] |= {
        **vision,
        "norm_type": "rms_norm" if internlm else "layer_norm",
        "use_qk_norm": internlm,
        "attention_bias": not internlm,
    }
    sam = sam2(
        1024,
        hidden=8,
        heads=1,
        blocks=(1, 2, 2, 1),
        windows=(8, 4, 16, 8),
        global_blocks=(4,),
        width=64,
        memory=(1, 32, 1),
        decoder=(32, 8),
    )
    return spec.changed(sam=sam)


def official_config(spec: ModelSpec) -> dict[str, Any]:
    vision, text = dict(spec.vlm["vision_config"]), dict(spec.text)
    rope = text.pop("rope_parameters")
    vision |= {"image_size": 448, "patch_size": 14}
    vision["qkv_bias"], vision["qk_normalization"] = vision.pop("attention_bias"), vision.pop("use_qk_norm")
    architecture = {"llama": "InternLM2ForCausalLM", "qwen2": "Qwen2ForCausalLM"}[text.pop("model_type")]
    scaling = {"type": rope["rope_type"], "factor": rope["factor"]} if "factor" in rope else None
    return {
        "model_type": "sa2va_chat",
        "auto_map": {"AutoModel": "modeling_sa2va_chat.Sa2VAChatModel"},
        "template": spec.prompt.chat,
        "vision_config": vision,
        "llm_config": {
            "architectures": [architecture],
            **text,
            "rope_theta": rope["rope_theta"],
            "rope_scaling": scaling,
        },
    }


def make_official(folder: Path, chat: str) -> Path:
    """An official folder with seeded random weights, in several shards."""
    spec = small_spec(chat)
    generator = torch.Generator().manual_seed(0)
    types, data = {}, {}
    for name, assembly in to_official(spec, expected_shapes(spec)).items():
        dtype = DTYPES.get(name.partition(".")[0], "F16")
        tensor = (0.1 * torch.randn(assembly.shape, generator=generator)).to(TORCH_TYPES[dtype])
        types[name] = TensorType(dtype, assembly.shape)
        data[name] = tensor.view(torch.uint8).numpy().tobytes()
    folder.mkdir(parents=True)
    write_shards(folder, types, lambda name: [data[name]], shard_bytes=300_000)
    (folder / CONFIG).write_text(json.dumps(official_config(spec), indent=3))
    byte_tokenizer().save_pretrained(folder)
    for name, content in SMALL_FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    (folder / "modeling_sa2va_chat.py").chmod(0o755)
    return folder


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An official folder for each language model; tests copy it before they change it."""
    root = tmp_path_factory.mktemp("official")
    return {chat: make_official(root / chat, chat) for chat in ("qwen_chat", "internlm2_chat")}


@pytest.fixture
def official(kept: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(kept["internlm2_chat"], tmp_path / "official"))


@pytest.fixture(autouse=True)
def no_probe(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the parity check, which takes seconds at 1024 x 1024, in all tests but its own."""
    if "probe" not in request.node.name:
        monkeypatch.setattr(parity, "MAX_BYTES", 0)


def bytes_of(folder: Path) -> list[Any]:
    """Name, dtype, shape and hash of each tensor of an official folder."""
    return sorted(hash_weights(open_weights(folder)))


def config_files_of(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and ".safetensors" not in path.name and path.name != PROOF
    }


def assert_round_trip(source: Path, folder: Path) -> None:
    there = convert(source, folder / "bundle")
    assert fingerprint_weights(folder / "bundle") == fingerprint_model(source)
    assert there["fingerprints"] == dict.fromkeys(("source", "result"), fingerprint_model(source))
    back = convert(folder / "bundle", folder / "back", to="sa2va")
    assert back["fingerprints"] == there["fingerprints"]
    assert bytes_of(folder / "back") == bytes_of(source)
    assert config_files_of(folder / "back") == config_files_of(source)
    assert fingerprint_model(folder / "back") == fingerprint_model(source)


@pytest.mark.parametrize("chat", ["qwen_chat", "internlm2_chat"])
def test_a_round_trip_changes_no_byte(kept: dict[str, Path], tmp_path: Path, chat: str) -> None:
    assert_round_trip(kept[chat], tmp_path)


def test_a_round_trip_with_many_shards_changes_no_byte(
    kept: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convert_module, "write_shards", partial(write_shards, shard_bytes=20_000))
    assert_round_trip(kept["internlm2_chat"], tmp_path)
    assert len(find_shards(tmp_path / "bundle" / "sam")) > 9 < len(find_shards(tmp_path / "back"))


@pytest.mark.parametrize("name", ["internvl_qwen2", "internvl_internlm2", "qwen2_5_vl", "qwen3_vl"])
def test_a_round_trip_of_stored_official_models_changes_no_byte(shared: Path, tmp_path: Path, name: str) -> None:
    assert_round_trip(shared / "oracle" / name, tmp_path)


def test_source_and_result_give_equal_outputs_for_a_probe(official: Path, tmp_path: Path) -> None:
    proof = convert(official, tmp_path / "bundle")
    assert set(proof["parity"]["largest_difference"].values()) == {0.0}
    opened = open_model(tmp_path / "bundle")
    assert opened.card.spec == open_model(official).card.spec
    assert opened.card.lineage["fingerprint"] == fingerprint_weights(tmp_path / "bundle")


def test_a_result_with_other_outputs_for_a_probe_is_not_kept(
    official: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def configs_of_another_model(job: Conversion, folder: Path, **dtypes: torch.dtype) -> None:
        write_configs(job, folder, **dtypes)
        path = folder / "vlm" / CONFIG
        path.write_text(path.read_text().replace('"hidden_act": "silu"', '"hidden_act": "relu"'))

    write_configs = convert_module._write_configs
    monkeypatch.setattr(convert_module, "_write_configs", configs_of_another_model)
    with raises_code(CheckpointError, "parity_failed"):
        convert(official, tmp_path / "bundle")
    assert_nothing_left(tmp_path, official)


def assert_nothing_left(folder: Path, *known: Path) -> None:
    assert sorted(folder.iterdir()) == sorted(known)


def test_nan_on_both_sides_is_no_difference() -> None:
    none, some = torch.tensor([torch.nan, torch.inf]), torch.tensor([1.0, torch.inf])
    assert parity._largest_difference(none, none) == 0.0
    assert parity._largest_difference(none, some) == parity._largest_difference(some, none) == torch.inf


def test_the_proof_accounts_for_every_key_and_parameter(official: Path, tmp_path: Path) -> None:
    proof = convert(official, tmp_path / "bundle")
    assert json.loads((tmp_path / "bundle" / PROOF).read_text()) == json.loads(json.dumps(proof))
    keys, source = proof["keys"], open_weights(official).tensors
    assert keys["renamed"].keys() == source.keys()
    assert (keys["read"], keys["dropped"]) == (len(source), {})
    assert keys["renamed"]["language_model.model.layers.1.attention.wqkv.weight"] == tuple(
        f"vlm.language_model.model.layers.1.self_attn.{each}_proj.weight" for each in "qkv"
    )
    spec = read_card(tmp_path / "bundle").spec
    written = {name for names in keys["renamed"].values() for name in names}
    assert written == expected_shapes(spec).keys()
    assert keys["written"] == len(written) == sum(proof["tensors_of_dtype"].values())
    n_parameters = sum(torch.Size(shape).numel() for shape in expected_shapes(spec).values())
    assert proof["parameters"]["total"] == n_parameters
    assert proof["base"] is None
    card = read_card(tmp_path / "bundle")
    assert card.phrases is None
    write_json(tmp_path / "bundle" / CARD, card.changed(phrases=("vessel",)).model_dump(mode="json"))
    back = convert(tmp_path / "bundle", tmp_path / "back", to="sa2va", base=official)
    assert back["not_kept"]["phrases"] == ["vessel"]
    assert any('cannot store it: phrases "vessel"' in line for line in summarize(back))
    assert set(back["keys"]["dropped"].values()) == {COPIED}
    assert back["keys"]["read"] == len(expected_shapes(spec))
    assert (back["base"]["changed"], back["base"]["unchanged"]) == (0, len(written))


def test_a_dropped_key_has_its_reason(official: Path, tmp_path: Path) -> None:
    name = "language_model.model.layers.0.attention.rotary_emb.inv_freq"
    add_tensor(official, name, torch.ones(4))
    proof = convert(official, tmp_path / "bundle")
    assert proof["keys"]["dropped"] == {name: "computed from the configuration"}


def test_changed_tensors_are_counted_and_named(kept: dict[str, Path], official: Path, tmp_path: Path) -> None:
    name = "text_hidden_fcs.0.bias"
    change_tensor(official, name, lambda tensor: tensor + 1)
    proof = convert(official, tmp_path / "bundle", base=kept["internlm2_chat"])
    assert (proof["base"]["changed"], proof["base"]["first_changed"]) == (1, ["projector.linear_1.bias"])
    assert proof["base"]["fingerprint"] == fingerprint_model(kept["internlm2_chat"])


def shard_with(folder: Path, name: str) -> Path:
    return next(path for path in find_shards(folder) if name in read_header(path))


def rewrite(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)


def change_tensor(folder: Path, name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    rewrite(shard_with(folder, name), lambda tensors: tensors.update({name: change(tensors[name])}))


def add_tensor(folder: Path, name: str, tensor: torch.Tensor) -> None:
    path = find_shards(folder)[0]
    rewrite(path, lambda tensors: tensors.update({name: tensor}))
    change_json(folder / INDEX, lambda index: index["weight_map"].update({name: path.name}))


def change_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def test_code_in_the_folder_is_neither_executed_nor_executable(
    official: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    convert(official, tmp_path / "bundle")
    assert not (tmp_path / "executed").exists()
    assert (tmp_path / "bundle" / "source" / "modeling_sa2va_chat.py").stat().st_mode & 0o111 == 0


def test_files_that_are_not_part_of_the_model_are_left_out_and_named(official: Path, tmp_path: Path) -> None:
    for name in (".git/config", "pytorch_model.bin", "conversion.json"):
        (official / name).parent.mkdir(exist_ok=True)
        (official / name).write_text("x")
    with (official / "video.mp4").open("wb") as file:
        file.truncate(65 << 20)
    left_out = convert(official, tmp_path / "bundle")["config_files"]["left_out"]
    assert {".git", "pytorch_model.bin", "conversion.json", "video.mp4"} <= left_out.keys()
    assert sorted(path.name for path in (tmp_path / "bundle" / "source").iterdir()) == sorted(
        [*{Path(name).parts[0] for name in SMALL_FILES}, CONFIG, "tokenizer.json", "tokenizer_config.json"]
    )


def test_a_hub_cache_folder_of_links_is_converted(official: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--A--B" / "snapshots" / "abc"
    blobs = tmp_path / "models--A--B" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for path in sorted(official.iterdir()):
        if path.is_file():
            path.rename(blobs / path.name)
            (snapshot / path.name).symlink_to(Path("../../blobs") / path.name)
    convert(snapshot, tmp_path / "bundle")
    source = tmp_path / "bundle" / "source"
    assert (source / CONFIG).is_file() and not (source / CONFIG).is_symlink()


@pytest.mark.parametrize("kind", ["file", "folder", "pipe", "nowhere"])
def test_links_that_leave_the_folder_are_refused(official: Path, tmp_path: Path, kind: str) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "key").write_text("secret")
    targets = {"file": "../secret/key", "folder": "../secret", "nowhere": "gone"}
    if kind == "pipe":
        os.mkfifo(official / "notes.txt")
    else:
        (official / "notes.txt").symlink_to(targets[kind])
    with pytest.raises(CheckpointError, match=r"notes\.txt: "):
        convert(official, tmp_path / "bundle")
    assert_nothing_left(tmp_path, official, tmp_path / "secret")


def test_a_bundle_without_source_takes_the_configuration_files_of_a_base(
    kept: dict[str, Path], official: Path, tmp_path: Path
) -> None:
    convert(official, tmp_path / "bundle")
    shutil.rmtree(tmp_path / "bundle" / "source")
    with raises_code(SettingError, "missing_base", "--base"):
        convert(tmp_path / "bundle", tmp_path / "back", to="sa2va")
    with raises_code(CheckpointError, "wrong_base"):
        convert(tmp_path / "bundle", tmp_path / "back", to="sa2va", base=kept["qwen_chat"])
    other = Path(shutil.copytree(official, tmp_path / "other"))
    change_json(other / CONFIG, lambda config: config["llm_config"].update(rope_theta=5.0))
    with raises_code(CheckpointError, "wrong_base", "rope_theta is 5.0 there and 1000000.0 here"):
        convert(tmp_path / "bundle", tmp_path / "back", to="sa2va", base=other)
    convert(tmp_path / "bundle", tmp_path / "back", to="sa2va", base=official)
    assert bytes_of(tmp_path / "back") == bytes_of(official)
    assert config_files_of(tmp_path / "back") == config_files_of(official)


def test_copies_of_a_tensor_that_differ_are_refused(official: Path, tmp_path: Path) -> None:
    convert(official, tmp_path / "bundle")
    name = "prompt_encoder.shared_embedding.positional_embedding"
    change_tensor(tmp_path / "bundle" / "sam", name, lambda tensor: tensor + 1)
    with raises_code(CheckpointError, "verification_failed", "1 tensors", f"sam.{name}"):
        convert(tmp_path / "bundle", tmp_path / "back", to="sa2va")
    assert_nothing_left(tmp_path, official, tmp_path / "bundle")


def test_a_disk_that_corrupts_a_file_is_detected(
    official: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_badly(path: Path, *arguments: Any, **options: Any) -> None:
        write_tensors(path, *arguments, **options)
        with path.open("r+b") as file:
            file.seek(-1, os.SEEK_END)
            last = file.read(1)[0]
            file.seek(-1, os.SEEK_END)
            file.write(bytes([last ^ 1]))

    monkeypatch.setattr(convert_module, "write_tensors", write_badly)
    with raises_code(CheckpointError, "verification_failed", "1 tensors", "projector."):
        convert(official, tmp_path / "bundle")
    assert_nothing_left(tmp_path, official)


@pytest.fixture
def trained(official: Path) -> Path:
    """A training checkpoint of the official folder: LoRA of rank 2 on `wqkv`, and the first projector whole."""
    prefix = "mllm.model.language_model.base_model.model.model.layers.1.attention.wqkv.lora_"
    generator = torch.Generator().manual_seed(1)
    state = {
        f"{prefix}A.default.weight": torch.randn(2, 32, generator=generator),
        f"{prefix}B.default.weight": torch.randn(64, 2, generator=generator),
        "text_hidden_fcs.0.bias": torch.ones(32),
    }
    path = official.parent / "iter_7.pth"
    torch.save({"state_dict": state, "meta": {"iter": 7}}, path)
    return path


def test_a_training_checkpoint_becomes_a_whole_model_in_either_layout(
    official: Path, trained: Path, tmp_path: Path
) -> None:
    proof = convert(trained, tmp_path / "bundle", base=official, lora_alpha=4.0)
    assert proof["training"]["lora"] == "merged into 1 weights"
    assert proof["training"]["lora_alpha_from"] == "given"
    assert proof["training"]["largest_relative_merge_error"] < 1e-6
    assert proof["base"]["changed"] == 4, "query, key, value and one bias"
    assert proof["keys"]["read"] == 3
    assert read_card(tmp_path / "bundle").step == 7
    assert config_files_of(tmp_path / "bundle" / "source") == config_files_of(official)
    convert(official, tmp_path / "base")
    for base in (official, tmp_path / "base"):
        out = tmp_path / f"official-{base.name}"
        there = convert(trained, out, to="sa2va", base=base, lora_alpha=4.0)
        assert there["fingerprints"] == proof["fingerprints"]
        assert config_files_of(out) == config_files_of(official)
    before = bytes_of(official)
    changed = {line[0] for line in bytes_of(out) if line not in before}
    assert changed == {"language_model.model.layers.1.attention.wqkv.weight", "text_hidden_fcs.0.bias"}


def test_lora_can_be_kept_as_an_adapter(official: Path, trained: Path, tmp_path: Path) -> None:
    proof = convert(trained, tmp_path / "bundle", base=official, keep_adapter=True, lora_alpha=4.0)
    assert proof["base"]["changed"] == 1 and proof["base"]["only_in_result"] == 6
    assert proof["fingerprints"]["result"] == fingerprint_weights(tmp_path / "bundle")
    assert {name.partition(".")[0] for names in proof["keys"]["renamed"].values() for name in names} == {
        "adapter",
        "projector",
    }
    with raises_code(CheckpointError, "wrong_model_kind"):
        convert(tmp_path / "bundle", tmp_path / "back", to="sa2va")
    with raises_code(SettingError, "conflicting_settings"):
        convert(trained, tmp_path / "x", to="sa2va", base=official, keep_adapter=True, lora_alpha=4.0)


def test_a_training_checkpoint_of_another_model_is_refused(
    kept: dict[str, Path], trained: Path, official: Path, tmp_path: Path
) -> None:
    with raises_code(CheckpointError, "wrong_base", "1 unknown", "wqkv"):
        convert(trained, tmp_path / "out", base=kept["qwen_chat"], lora_alpha=4.0)
    with raises_code(CheckpointError, "unknown_lora_alpha"):
        convert(trained, tmp_path / "out", base=official)
    assert_nothing_left(tmp_path, trained, official)


@pytest.mark.parametrize(
    ("source", "options", "code"),
    [
        ("official", {"to": "sa2va"}, "conflicting_settings"),
        ("tiny", {}, "conflicting_settings"),
        ("official", {"keep_adapter": True}, "conflicting_settings"),
        ("official", {"lora_alpha": 16.0}, "conflicting_settings"),
        ("iter_1.pth", {}, "missing_base"),
    ],
)
def test_conflicting_arguments_are_refused(
    official: Path, tmp_path: Path, source: str, options: dict[str, Any], code: str
) -> None:
    (tmp_path / "iter_1.pth").write_bytes(b"PK")
    with raises_code(SettingError, code):
        convert("tiny" if source == "tiny" else tmp_path / source, tmp_path / "out", **options)


def test_only_a_new_or_empty_folder_is_written_to(official: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "mine").mkdir(parents=True)
    with raises_code(OutputError, "output_exists"):
        convert(official, out)
    assert [path.name for path in out.iterdir()] == ["mine"]
    with raises_code(OutputError, "output_inside_data"):
        convert(official, official / "bundle")
    (out / "mine").rmdir()
    convert(official, out)
    assert (out / PROOF).is_file()


def test_the_command_line_prints_the_proof(official: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "bundle"
    assert main(["convert", str(official), str(out), "--json"]) == 0
    captured = capsys.readouterr()
    proof = json.loads(captured.out)
    assert proof == json.loads((out / PROOF).read_text())
    assert f"fingerprint of source and result: {proof['fingerprints']['result']}" in captured.err
    assert f"total {proof['parameters']['total']:,}" in captured.err


def truncate(folder: Path) -> None:
    path = find_shards(folder)[1]
    os.truncate(path, path.stat().st_size - 1)


def spoil_header(folder: Path) -> None:
    path = find_shards(folder)[1]
    path.write_bytes(path.read_bytes().replace(b'"dtype"', b'"dtypo"', 1))


def cut_vocabulary(folder: Path) -> None:
    for name in ("language_model.model.tok_embeddings.weight", "language_model.output.weight"):
        change_tensor(folder, name, lambda tensor: tensor[:-1])


def lose(folder: Path, name: str) -> None:
    path = shard_with(folder, name)
    rewrite(path, lambda tensors: tensors.pop(name))
    change_json(folder / INDEX, lambda index: index["weight_map"].pop(name))


def replace_text(path: Path, old: str, new: str) -> None:
    path.write_text(path.read_text().replace(old, new))


FAULTS: dict[str, tuple[Callable[[Path], object], str, str]] = {  # what to damage, code, name in the message
    "cut short": (truncate, "damaged_weights", "model-00002-of-"),
    "corrupt header": (spoil_header, "damaged_weights", "model-00002-of-"),
    "shard missing": (lambda folder: find_shards(folder)[1].unlink(), "shard_index_mismatch", "model-00002-of-"),
    "shard not in the index": (
        lambda folder: shutil.copy(find_shards(folder)[0], folder / "x.safetensors"),
        "shard_index_mismatch",
        "x.safetensors",
    ),
    "no weights": (
        lambda folder: [path.unlink() for path in [*find_shards(folder), folder / INDEX]],
        "no_weights",
        "official: ",
    ),
    "unknown architecture": (
        lambda folder: change_json(
            folder / CONFIG, lambda config: config["llm_config"].update(architectures=["GPT2LMHeadModel"])
        ),
        "invalid_model_config",
        "GPT2LMHeadModel",
    ),
    "invalid configuration": (
        lambda folder: change_json(folder / CONFIG, lambda config: config["vision_config"].update(hidden_size="wide")),
        "invalid_model_config",
        "hidden_size",
    ),
    "a scalar in place of rows": (
        lambda folder: change_tensor(folder, "mlp1.0.bias", lambda tensor: tensor.sum()),
        "weights_mismatch",
        "mlp1.0.bias",
    ),
    "another kind of model": (
        lambda folder: change_json(folder / CONFIG, lambda config: config.update(model_type="llava")),
        "no_model",
        "official: ",
    ),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), "no_tokenizer", "tokenizer"),
    "no token [SEG]": (
        lambda folder: replace_text(folder / "tokenizer.json", "[SEG]", "[GES]"),
        "no_tokenizer",
        "[SEG]",
    ),
    "unknown tensor": (
        lambda folder: add_tensor(folder, "extra.weight", torch.ones(2)),
        "weights_mismatch",
        "extra.weight",
    ),
    "tensor lost": (
        lambda folder: lose(folder, "language_model.model.norm.weight"),
        "weights_mismatch",
        "1 missing: vlm.language_model.model.norm.weight",
    ),
    "wrong shape": (
        cut_vocabulary,
        "weights_mismatch",
        "2 misshapen: vlm.language_model.lm_head.weight [269, 32] instead of",
    ),
}


@pytest.mark.parametrize(("damage", "code", "name"), FAULTS.values(), ids=FAULTS)
def test_a_fault_is_one_line_and_leaves_no_files(
    official: Path, tmp_path: Path, damage: Callable[[Path], object], code: str, name: str
) -> None:
    damage(official)
    with raises_code(CheckpointError, code, name) as caught:
        convert(official, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert_nothing_left(tmp_path, official)


def test_the_published_size_that_would_fit_is_named() -> None:
    shapes = expected_shapes(find_spec("Sa2VA-4B"))
    with raises_code(CheckpointError, "weights_mismatch", "(Sa2VA-1B): 144 unknown: ", "Sa2VA-4B"):
        check_fit(find_spec("Sa2VA-1B"), shapes, Path("here"))


def test_a_full_disk_is_one_line_and_leaves_no_files(
    official: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))
    try:
        assert main(["convert", str(official), str(tmp_path / "out")]) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert capfd.readouterr().err == f"vesalius: {tmp_path / 'out'}: cannot be written (File too large)\n"
    assert_nothing_left(tmp_path, official)


def test_a_disk_without_room_is_refused_before_anything_is_written(official: Path, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(small)]
    if os.geteuid() or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a small disk")
    try:
        with raises_code(OutputError, "no_space", "0.07 GB", "0.01 GB"):
            convert(official, small / "out")
        assert_nothing_left(small)
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_an_interrupted_conversion_leaves_no_files(official: Path, tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        if done > total / 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(official, tmp_path / "out", on_bytes=interrupt)
    assert_nothing_left(tmp_path, official)


def test_a_cancelled_conversion_removes_its_files(
    official: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Progress, "reach", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert main(["convert", str(official), str(tmp_path / "out")]) == 1
    finally:
        signal.signal(signal.SIGTERM, before)
    assert capfd.readouterr().err.startswith("vesalius: interrupted;")
    assert_nothing_left(tmp_path, official)


def test_a_killed_conversion_leaves_nothing_that_looks_finished(official: Path, tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from vesalius.conversion.convert import convert\n"
        "convert(sys.argv[1], Path(sys.argv[2]), on_bytes=lambda *_: os.kill(os.getpid(), 9))"
    )
    out = tmp_path / "out"
    done = subprocess.run([sys.executable, "-c", code, str(official), str(out)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert not out.exists()
    [rest] = [path for path in tmp_path.iterdir() if path != official]
    assert rest.name.startswith(".out.") and rest.name.endswith(".partial")
    assert not (rest / "vesalius.json").exists()
    convert(official, out)
    assert fingerprint_weights(out) == fingerprint_model(official)
