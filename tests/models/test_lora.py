"""LoRA and vocabulary rows over the vision-language model of each family: targets, files, merging."""

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from peft import PeftModel
from tests.codes import raises_code
from transformers import PreTrainedModel

from vesalius.errors import CheckpointError, SettingError
from vesalius.models.adapter import CONFIG, TENSORS, apply_adapter, layers_of, write_adapter
from vesalius.models.components import own_weights
from vesalius.models.families.table import family_of
from vesalius.models.families.tokenizers import byte_tokenizer
from vesalius.models.lora import LoraSettings, add_lora, find_targets, merge_adapter
from vesalius.models.presets import find_spec
from vesalius.models.stored_model import empty_model
from vesalius.models.textseg import configs
from vesalius.models.token_rows import TokenRows, find_rows, new_tokens

FAMILIES = {"internvl": "Sa2VA-8B", "qwen2_5_vl": "Sa2VA-Qwen2_5-VL-3B", "qwen3_vl": "Sa2VA-Qwen3-VL-4B"}
IDS = (3, 9, 11)


def small(family: str = "internvl", tied: bool = False) -> PreTrainedModel:
    """A vision-language model of that family with random weights and two or three narrow layers."""
    config = configs(find_spec(FAMILIES[family]))[0] if family != "internvl" else configs(find_spec("tiny"))[0]
    text, vision = config.text_config, config.vision_config
    text.vocab_size, text.hidden_size, text.num_hidden_layers, text.intermediate_size = 64, 32, 2, 48
    text.num_attention_heads, text.num_key_value_heads, text.head_dim = 2, 1, 16
    config.tie_word_embeddings = text.tie_word_embeddings = tied
    if family == "internvl":
        vision.num_hidden_layers = 1
    else:
        text.rope_parameters = {**text.rope_parameters, "mrope_section": [4, 2, 2]}
        vision.depth, vision.hidden_size, vision.intermediate_size, vision.num_heads = 1, 32, 40, 2
        vision.out_hidden_size = 32
        if family == "qwen2_5_vl":
            text.layer_types, vision.fullatt_block_indexes = ["full_attention"] * 2, [0]
        else:
            vision.deepstack_visual_indexes = [0]
    torch.manual_seed(0)
    return family_of(family).model_class(config).eval()


def adapted(vlm: PreTrainedModel, rows: bool = True) -> PreTrainedModel:
    """Adds LoRA of two sizes to both parts, and rows, with random numbers."""
    add_lora(vlm, {"language model": LoraSettings(rank=4), "vision encoder": LoraSettings(rank=2, alpha=3)})
    if rows:
        TokenRows(vlm, IDS).attach_to(vlm)
    with torch.no_grad():
        for name, parameter in vlm.named_parameters():
            if ".lora_" in name or name.startswith("token_rows."):
                parameter.normal_(std=0.3)
    return vlm.eval()


def logits(vlm: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return vlm(input_ids=torch.arange(2, 14)[None]).logits


@pytest.mark.parametrize("family", FAMILIES)
def test_lora_covers_attention_and_mlp_of_the_layers_only(family: str) -> None:
    vlm = empty_model(find_spec(FAMILIES[family])).vlm
    text, vision = vlm.config.text_config, vlm.config.vision_config
    language = find_targets(vlm, "language model")
    names = {path.rpartition(".")[2] for path in language}
    assert names == {f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")}
    assert len(language) == 7 * text.num_hidden_layers
    of_layer = {"internvl": 6, "qwen2_5_vl": 5, "qwen3_vl": 4}[family]
    depth = vision.num_hidden_layers if family == "internvl" else vision.depth
    paths = find_targets(vlm, "vision encoder")
    assert len(paths) == of_layer * depth
    assert all(path.startswith(family_of(family).vision_layers) for path in paths)
    assert not any("merger" in path or "projector" in path for path in paths)
    assert len(find_targets(vlm, "language model", ("q_proj", "v_proj"))) == 2 * text.num_hidden_layers
    with raises_code(SettingError, "unknown_layer", "'wqkv'", "down_proj, gate_proj"):
        find_targets(vlm, "language model", ("wqkv",))


@pytest.mark.parametrize("family", FAMILIES)
def test_outputs_survive_writing_opening_and_merging(family: str, tmp_path: Path) -> None:
    plain, vlm = small(family), adapted(small(family))
    expected = logits(vlm)
    assert (logits(plain) - expected).abs().max() > 0.1
    write_adapter(vlm, tmp_path / "adapter")
    opened = small(family)
    apply_adapter(opened, tmp_path / "adapter")
    assert torch.equal(logits(opened), expected)
    assert {name: each.lora_alpha["default"] for name, each in layers_of(opened).items()} == {
        name: each.lora_alpha["default"] for name, each in layers_of(vlm).items()
    }
    # what lies below is written as if nothing lay over it
    below = own_weights(opened)
    assert below.keys() == plain.state_dict().keys()
    assert all(torch.equal(below[name], each) for name, each in plain.state_dict().items())
    merge_adapter(opened)
    assert not layers_of(opened)
    assert find_rows(opened) is None
    assert opened.state_dict().keys() == plain.state_dict().keys()
    assert (logits(opened) - expected).abs().max() <= 1e-5 * expected.abs().max()


# peft 0.21 asks transformers 5.23 by an old name
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("tied", [False, True])
def test_peft_opens_the_trained_adapter(tied: bool, tmp_path: Path) -> None:
    vlm = adapted(small(tied=tied))
    write_adapter(vlm, tmp_path / "adapter")
    theirs = PeftModel.from_pretrained(small(tied=tied), tmp_path / "adapter").eval()
    assert (logits(theirs) - logits(vlm)).abs().max() <= 1e-5 * logits(vlm).abs().max()


@pytest.mark.parametrize("tied", [False, True])
def test_rows_train_and_all_other_rows_stay_to_the_byte(tied: bool) -> None:
    vlm = small(tied=tied)
    before = {name: each.clone() for name, each in vlm.state_dict().items()}
    for parameter in vlm.parameters():
        parameter.requires_grad_(False)
    TokenRows(vlm, IDS).attach_to(vlm)
    rows = find_rows(vlm)
    assert rows is not None
    assert (rows.head is None) == tied
    optimizer = torch.optim.AdamW([p for p in vlm.parameters() if p.requires_grad], lr=0.01, weight_decay=0.5)
    for _ in range(3):
        vlm(input_ids=torch.arange(2, 14)[None]).logits.logsumexp(-1).sum().backward()
        assert all(bool(each.grad.any()) for each in rows.parameters())
        optimizer.step()
        optimizer.zero_grad()
    expected = logits(vlm)
    rows.merge_into(vlm)
    assert (logits(vlm) - expected).abs().max() <= 1e-6
    matrices = {"model.language_model.embed_tokens.weight", "lm_head.weight"}
    others = [i for i in range(64) if i not in IDS]
    for name, each in vlm.state_dict().items():
        if name in matrices:
            assert torch.equal(each[others], before[name][others])
            assert not torch.isclose(each[list(IDS)], before[name][list(IDS)]).any(dim=1).all()
        else:
            assert torch.equal(each, before[name])


def test_new_tokens_exclude_image_tokens() -> None:
    tokenizer = byte_tokenizer()
    names = tokenizer.convert_ids_to_tokens(list(new_tokens(tokenizer)))
    assert set(names) == {"[SEG]", "<p>", "</p>", "<vp>", "</vp>"}


FAULTS = {
    "other tokens of the head": ({"trainable_token_indices": {"model.language_model.embed_tokens": [1], "lm_head": [2]}}, "invalid_adapter"),
    "rows of another matrix": ({"trainable_token_indices": {"x": [1]}}, "invalid_adapter"),
    "a token that is not there": (
        {"trainable_token_indices": {"model.language_model.embed_tokens": [900], "lm_head": [900]}},
        "adapter_mismatch",
    ),
    "fewer tokens": (
        {"trainable_token_indices": {"model.language_model.embed_tokens": [1], "lm_head": [1]}},
        "adapter_mismatch",
    ),
    "another rank": ({"rank_pattern": {}}, "adapter_mismatch"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_an_adapter_that_does_not_fit_is_refused(fault: str, tmp_path: Path) -> None:
    changes, code = FAULTS[fault]
    write_adapter(adapted(small()), tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / CONFIG).read_text())
    (tmp_path / "adapter" / CONFIG).write_text(json.dumps({**config, **changes}))
    with raises_code(CheckpointError, code):
        apply_adapter(small(), tmp_path / "adapter")


def test_an_adapter_contains_exactly_the_trained_parameters(tmp_path: Path) -> None:
    vlm = adapted(small())
    write_adapter(vlm, tmp_path / "adapter")
    tensors = safetensors.torch.load_file(tmp_path / "adapter" / TENSORS)
    trained = sum(p.numel() for n, p in vlm.named_parameters() if ".lora_" in n or n.startswith("token_rows."))
    assert sum(each.numel() for each in tensors.values()) == trained
