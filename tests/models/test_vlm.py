"""The vision-language model of each family gives the outputs of the official code, from files in the repository."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.models.numbers import close

from vesalius.models.families.base import count_positions
from vesalius.models.families.table import family_of
from vesalius.models.families.tokenizers import official_tokenizer
from vesalius.models.layout_mapping import to_bundle
from vesalius.models.official_config import read_spec
from vesalius.models.official_prompt import official_text, read_official_prompt
from vesalius.models.processor import Processor
from vesalius.models.specs import ModelSpec
from vesalius.models.stored_model import shapes_of
from vesalius.models.textseg import Projector, configs
from vesalius.models.vlm import embed_batch, embed_token, run_language_model
from vesalius.models.weights import AssembledWeights, FileWeights, load_tensor, open_weights

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
MODELS = ("internvl_qwen2", "internvl_internlm2", "qwen2_5_vl", "qwen3_vl")
SEGMENTER_SHAPES = {
    "grounding_encoder.sam2_model.image_encoder.trunk.patch_embed.proj.weight": (16, 3, 7, 7),
    "grounding_encoder.sam2_model.image_encoder.trunk.pos_embed": (1, 16, 7, 7),
    "grounding_encoder.sam2_model.image_encoder.neck.convs.0.conv.weight": (256, 128, 1, 1),
    "grounding_encoder.sam2_model.memory_attention.layers.0.linear1.weight": (256, 256),
    "grounding_encoder.sam2_model.sam_mask_decoder.transformer.layers.0.mlp.layers.0.weight": (256, 256),
    **{f"grounding_encoder.sam2_model.image_encoder.trunk.blocks.{i}.norm1.bias": (16,) for i in range(6)},
    **{f"grounding_encoder.sam2_model.image_encoder.trunk.blocks.{i}.proj.weight": (16, 16) for i in (1, 3, 5)},
}
"""Shapes from which the size of the segmenter is read; the stored models lack it."""


class StoredVlm:
    """The vision-language model and projector of a stored model, with the results of the official code."""

    def __init__(self, name: str) -> None:
        folder = GOLDEN / "official" / name
        weights = open_weights(folder)
        self.spec: ModelSpec = read_spec(folder, shapes_of(weights) | SEGMENTER_SHAPES)
        self.processor = Processor(self.spec, official_tokenizer(folder))
        names, dropped = to_bundle(self.spec, shapes_of(weights))
        assert dropped == {}
        state = self._state(weights, names, "vlm.")
        self.vlm, info = family_of(self.spec.family).model_class.from_pretrained(
            None, config=configs(self.spec)[0], state_dict=state, dtype=torch.float32, output_loading_info=True
        )
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]
        self.vlm.eval()
        self.projector = Projector(self.spec.text["hidden_size"], 256)
        self.projector.load_state_dict(self._state(weights, names, "projector."))
        self.facts = json.loads((folder / "expected.json").read_text())
        self.expected = np.load(folder / "expected.npz")
        image = Image.open(GOLDEN / "preprocessing" / self.facts["image"]).convert("RGB")
        self.batch = read_official_prompt(self.processor, self.facts["text"], image)

    def _state(self, weights: FileWeights, names: dict, prefix: str) -> dict[str, torch.Tensor]:
        view = AssembledWeights(weights, {name: names[name] for name in names if name.startswith(prefix)})
        return {name.removeprefix(prefix): load_tensor(view, name).float() for name in view.tensors}


@pytest.fixture(scope="module", params=MODELS)
def stored(request: pytest.FixtureRequest) -> StoredVlm:
    return StoredVlm(request.param)


def test_tokens_are_the_official_ones(stored: StoredVlm) -> None:
    assert stored.batch.input_ids[0].tolist() == stored.expected["prompt_ids"].tolist()
    answer = stored.processor.tokenizer.encode(stored.facts["answer"], add_special_tokens=False)
    assert answer == stored.expected["answer_ids"].tolist()


@torch.inference_mode()
def test_states_and_logits_are_the_official_ones(stored: StoredVlm) -> None:
    answer = torch.from_numpy(stored.expected["answer_ids"][:-1].astype(np.int64))[None]
    ids = torch.cat([stored.batch.input_ids, answer], dim=1)
    batch = replace(stored.batch, input_ids=ids, attention_mask=torch.ones_like(ids))
    states = run_language_model(stored.vlm, embed_batch(stored.vlm, batch), stored.spec.seg_before_norm)
    at = ids[0] == stored.processor.seg_id
    # float32 against an independent float32 computation
    close(stored.vlm.lm_head(states.last[0, -8:]), stored.expected["logits_last8"], 1e-4)
    close(states.seg[0, at], stored.expected["seg_hidden"], 1e-4)
    close(stored.projector(states.seg[0, at]), stored.expected["seg_embeds"], 2e-4)


@torch.inference_mode()
def test_token_by_token_gives_the_states_of_one_pass(stored: StoredVlm) -> None:
    from transformers.cache_utils import DynamicCache

    answer = stored.expected["answer_ids"][:-1]
    cache, inputs, states = DynamicCache(), embed_batch(stored.vlm, stored.batch), []
    run_language_model(stored.vlm, inputs, stored.spec.seg_before_norm, cache)
    for token in answer.tolist():
        inputs = embed_token(stored.vlm, inputs, torch.tensor([token]))
        states.append(run_language_model(stored.vlm, inputs, stored.spec.seg_before_norm, cache).seg[0, -1])
    at = answer == stored.processor.seg_id
    close(torch.stack(states)[torch.from_numpy(at)], stored.expected["seg_hidden"], 2e-4)


def test_an_answer_has_the_text_of_the_official_tokenizer(stored: StoredVlm) -> None:
    said = official_text(stored.processor, stored.expected["answer_ids"].tolist())
    spaced = {"It is [SEG] and [SEG].<|im_end|>": "It is  [SEG]  and  [SEG] . <|im_end|>"}
    internlm2 = stored.spec.prompt.chat == "internlm2_chat"
    assert said == (spaced[stored.facts["answer"]] if internlm2 else stored.facts["answer"])


def test_padding_on_the_left_has_no_position() -> None:
    attention = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    assert count_positions(attention).tolist() == [[0, 0, 0, 1], [0, 1, 2, 3]]
