"""Official folders are read without running their code, and unsupported ones are refused."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.codes import raises_code

from vesalius.errors import CheckpointError
from vesalius.models.config_files import is_official
from vesalius.models.official_config import read_spec
from vesalius.models.presets import PRESETS, find_spec, identify, published_sizes
from vesalius.models.reference import resolve_model
from vesalius.models.stored_model import shapes_of
from vesalius.models.weights import open_weights

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "official"


@pytest.fixture
def folder(shared: Path, tmp_path: Path) -> Path:
    """A copy of an official folder that may be damaged."""
    target = tmp_path / "Sa2VA"
    shutil.copytree(shared / "oracle" / "internvl_qwen2", target)
    return target


def change(folder: Path, **values: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))


def read(folder: Path) -> None:
    read_spec(folder, shapes_of(open_weights(folder)))


def test_code_in_the_folder_is_not_run_and_stdin_is_not_read(folder: Path, tmp_path: Path) -> None:
    trap = f"from pathlib import Path\nPath({str(tmp_path / 'ran')!r}).touch()\n"
    for name in ("modeling_sa2va_chat", "configuration_sa2va_chat", "tokenization_internlm2", "__init__"):
        (folder / f"{name}.py").write_text(trap)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["auto_map"] = {"AutoTokenizer": ["tokenization_internlm2.Trap", None]}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    # reading from this stdin raises, as it is closed
    code = (
        "import sys; sys.stdin.close()\n"
        "from pathlib import Path; from vesalius.models.checkpoint import open_model\n"
        f"print(open_model(Path({str(folder)!r})).card.spec.family)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "internvl", done.stderr
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"template": "vicuna"}, "template 'vicuna' is not one of qwen_chat, internlm2_chat, phi3_chat"),
        ({"ps_version": "v1"}, "ps_version 'v1' is not supported"),
        ({"select_layer": -4}, "select_layer -4 is not supported"),
        ({"vision_config": {}}, "lacks '"),
        ({"vision_config": None}, "does not describe a supported model"),
        ({"template": None}, "template 'None' is not one of"),
        ({"architectures": [], "llm_config": {"architectures": []}}, "does not describe a supported model"),
        ({"llm_config": {"architectures": ["LlamaForCausalLM"]}}, "LlamaForCausalLM is not supported"),
    ],
)
def test_an_unsupported_configuration_is_refused(folder: Path, values: dict[str, object], message: str) -> None:
    change(folder, **values)
    with raises_code(CheckpointError, "invalid_model_config", message):
        read(folder)


def test_unknown_model_type_is_no_official_folder(folder: Path) -> None:
    change(folder, model_type="llava")
    assert not is_official(folder)
    with raises_code(CheckpointError, "no_model"):
        resolve_model(folder)


def test_a_damaged_configuration_is_refused(folder: Path) -> None:
    (folder / "config.json").write_text("{")
    assert not is_official(folder)
    with raises_code(CheckpointError, "invalid_model_config"):
        read(folder)


def test_rope_is_read_as_transformers_4_and_5_write_it(folder: Path) -> None:
    before = read_spec(folder, shapes_of(open_weights(folder)))
    text = json.loads((folder / "config.json").read_text())["llm_config"]
    scaling = text.pop("rope_scaling")
    text["rope_parameters"] = {
        "rope_theta": text.pop("rope_theta"),
        "rope_type": "dynamic",
        "factor": scaling["factor"],
    }
    change(folder, llm_config=text)
    assert read_spec(folder, shapes_of(open_weights(folder))) == before
    del text["rope_parameters"]["rope_theta"]
    change(folder, llm_config=text)
    with raises_code(CheckpointError, "invalid_model_config", "'rope_theta'"):
        read(folder)


def test_chat_template_may_be_written_with_a_hyphen(folder: Path) -> None:
    change(folder, template="internlm2-chat")
    assert read_spec(folder, shapes_of(open_weights(folder))).prompt.chat == "internlm2_chat"


def test_folder_without_a_segmenter_is_refused() -> None:
    folder = GOLDEN / "internvl_qwen2"
    with raises_code(CheckpointError, "weights_mismatch"):
        read_spec(folder, shapes_of(open_weights(folder)))


def test_published_sizes_differ_and_are_told_apart() -> None:
    assert len(set(published_sizes().values())) == len(PRESETS)
    for name in PRESETS:
        assert identify(find_spec(name)) == name
    spec = find_spec("Sa2VA-4B")
    changed = {**spec.vlm, "text_config": {**spec.text, "num_hidden_layers": 35}}
    assert identify(spec.changed(vlm=changed)) is None
