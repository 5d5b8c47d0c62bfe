"""A predictor that several tests share: as fast as can be, with random weights."""

import pytest
import torch

from vesalius.inference.predictor import Predictor
from vesalius.models.checkpoint import Card, OpenedModel
from vesalius.models.processor import Processor
from vesalius.models.specs import find_spec, sam2
from vesalius.models.textseg import build
from vesalius.models.tokenizers import byte_tokenizer


@pytest.fixture(scope="module")
def small_predictor() -> Predictor:
    """tiny's language model and a segmenter of 128 x 128 pixels, whose objects are always there and never alike."""
    sam = sam2(
        image_size=128,
        hiera={
            "hidden_size": 16,
            "num_attention_heads": 1,
            "blocks_per_stage": [1, 1, 2, 1],
            "embed_dim_per_stage": [16, 32, 64, 128],
            "num_attention_heads_per_stage": [1, 2, 4, 8],
            "window_size_per_stage": [8, 4, 8, 4],
            "global_attention_blocks": [3],
        },
        width=128,
        memory={"layers": 1, "mlp": 128, "fuser_layers": 1},
        decoder={"mlp_dim": 128, "num_attention_heads": 4},
    )
    spec = find_spec("tiny").changed(name="small", sam=sam)
    processor = Processor(spec, byte_tokenizer())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build(spec, processor.seg_id).eval()
        with torch.no_grad():
            model.sam.mask_decoder.pred_obj_score_head.proj_out.bias.add_(100)
            for name, parameter in model.sam.named_parameters():
                if name.startswith(("no_", "memory_temporal_")):
                    parameter.normal_()
            for layer in model.sam.memory_attention.layers:
                layer.cross_attn_image.o_proj.weight.mul_(10)
    return Predictor(OpenedModel(model, processor, Card(spec=spec)), answer="force", batch=2)
