"""Memory of a model, computed from its configuration: weights by component, and peaks of a pass over a batch.

No weights are loaded. Activations are counted while the model's code runs on the meta device (`inference/meter.py`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from PIL import Image
from transformers.cache_utils import DynamicCache

from vesalius.inference.meter import META, Meter
from vesalius.masks import Size
from vesalius.models.batch import IGNORE_INDEX, Batch
from vesalius.models.families.table import family_of
from vesalius.models.memory import PROMPTED_FRAMES
from vesalius.models.module_replacement import replace_module
from vesalius.models.parameter_groups import PARTS, part_of
from vesalius.models.quantization import BLOCK, Product4bit, Quantized, QuantizedLinear
from vesalius.models.specs import ADDED_TOKENS, ModelSpec
from vesalius.models.stored_model import empty_model
from vesalius.models.textseg import TextSegModel
from vesalius.models.token_rows import PREFIX as ROWS
from vesalius.models.trainable import NEW_TOKENS, TrainableSettings, set_trainable
from vesalius.models.vlm import embed_batch, prefill, vision_encoder_of

GATHERED = 3
"""FSDP2 blocks unsharded at a time: the computing block, and the next one twice, while it is gathered and copied."""
ANSWER = 8
"""Tokens of an answer such as "Sure, [SEG].", with its end token."""


@dataclass(frozen=True)
class Workload:
    """Numbers and sizes of the images and prompts in a batch."""

    images: int
    prompts: int
    """Prompts for each image."""
    size: Size
    """(h, w) of each image in pixels."""
    text_tokens: int
    """Tokens of each prompt without its image."""


@dataclass(frozen=True)
class PassMemory:
    """Bytes of one pass over a batch, in addition to the weights."""

    peaks: dict[str, int]
    """Phase -> peak bytes; phases run in sequence, so only the largest counts."""
    cache: int
    """KV cache, included in the language model's peak."""
    features: int
    """SAM features of the images, included in the SAM decoder's peak."""
    tokens: int
    """Tokens of each prompt, with its image and answer."""
    tiles: int
    """Tiles per image, thumbnail included; 1 for a family without tiles."""

    @property
    def peak(self) -> int:
        """Bytes of the largest phase."""
        return max(self.peaks.values())

    def extrapolated(self, other: PassMemory, steps: int) -> PassMemory:
        """This pass plus `steps` times the difference between `other` and it."""

        def at(here: int, there: int) -> int:
            return here + steps * (there - here)

        peaks = {phase: at(size, other.peaks[phase]) for phase, size in self.peaks.items()}
        cache, features = at(self.cache, other.cache), at(self.features, other.features)
        return replace(self, peaks=peaks, cache=cache, features=features)


def weight_bytes(model: TextSegModel, shards: int = 1) -> dict[str, int]:
    """Component -> bytes of its weights, with LoRA, in each of `shards` processes; scales are not sharded."""
    sizes = dict.fromkeys(PARTS, 0)
    for name, parameter in model.named_parameters():
        part = NEW_TOKENS if name.startswith(f"vlm.{ROWS}") else part_of(name)
        whole = name.endswith(".scales")
        sizes[part] = sizes.get(part, 0) + shard_bytes(parameter, 1 if whole else shards)
    return sizes


def shard_bytes(tensor: torch.Tensor, shards: int) -> int:
    """Bytes of a tensor in each process; FSDP2 shards tensors by rows."""
    rows = len(tensor) if tensor.ndim else 1
    return tensor.nbytes // max(1, rows) * math.ceil(rows / shards)


class PackedLinear(QuantizedLinear):
    """A quantized layer on the meta device, without bitsandbytes; its scales are a parameter, so they are counted."""

    def __init__(self, layer: torch.nn.Linear, kind: Quantized, dtype: torch.dtype) -> None:
        torch.nn.Module.__init__(self)
        self.in_features, self.out_features, self.kind = layer.in_features, layer.out_features, kind
        self.dtype = dtype
        values = layer.weight.numel()
        size, scales = (values, layer.out_features) if kind == "8bit" else (-(-values // 2), math.ceil(values / BLOCK))
        packed = torch.empty(size, dtype=torch.uint8, device=META)
        self.weight = torch.nn.Parameter(packed, requires_grad=False)
        self.scales = torch.nn.Parameter(torch.empty(scales, device=META), requires_grad=False)
        self.bias = layer.bias

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Product with the dequantized 4-bit matrix; 8-bit matrices do not train."""
        product = Product4bit.apply(input.to(self.dtype), self)
        return product if self.bias is None else product + self.bias.to(self.dtype)

    def plain(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """The dequantized matrix (out, in)."""
        return torch.empty(self.out_features, self.in_features, dtype=dtype, device=META)


def quantize_empty(model: TextSegModel, quantize: Quantized, dtype: torch.dtype = torch.float32) -> TextSegModel:
    """Give the linear layers of an empty model's vision-language model their size in bitsandbytes.

    8bit: a byte per value and a float per row. 4bit (NF4): half a byte per value and a float per 64 values. Embeddings,
    head, norms and SAM are unchanged. The layers compute in `dtype`.
    """
    for path, module in list(model.vlm.model.named_modules()):
        if isinstance(module, torch.nn.Linear):
            replace_module(model.vlm.model, path, PackedLinear(module, quantize, dtype))
    return model


def trainable_model(
    spec: ModelSpec, what: TrainableSettings, dtype: torch.dtype = torch.float32
) -> tuple[TextSegModel, dict[str, list[torch.nn.Parameter]]]:
    """Empty model prepared for training, with LoRA, and its trainable parameters by group."""
    model = empty_model(spec)
    if what.quantization:
        quantize_empty(model, what.quantization, dtype)
    with torch.device("meta"):
        return model, set_trainable(model, what, range(len(ADDED_TOKENS)))


def measure_prediction(spec: ModelSpec, dtype: torch.dtype, work: Workload, new_tokens: int) -> PassMemory:
    """Memory of predicting a batch in `dtype`, with answers of up to `new_tokens` tokens."""
    model = empty_model(spec).to(dtype).eval()
    batch = _batch(spec, work, dtype)
    meter = _meter_of(model)
    with torch.no_grad(), meter.running():
        _count_inputs(meter, batch)
        inputs, cache = embed_batch(model.vlm, batch), DynamicCache()
        states, _ = prefill(model.vlm, inputs, batch, model.seg_before_norm, cache)
        # an answer is drafted, and all its tokens are verified at once
        model.vlm.lm_head(states.last[:, -ANSWER - 1 :])
        kept = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
        at = batch.input_ids[:, -states.last.shape[1] :] == model.seg_id
        seg = model.seg_prompts(states.seg[at], at.nonzero()[:, 0], batch)
        del inputs, states, cache
        model.decode(batch.g_pixel_values, seg)
    growth = kept // batch.input_ids.shape[1] * new_tokens
    meter.peaks["language model"] += growth
    return _pass_memory(meter.peaks, kept + growth, spec, dtype, batch)


def measure_training(
    spec: ModelSpec, dtype: torch.dtype, work: Workload, what: TrainableSettings, shards: int = 1
) -> PassMemory:
    """Memory of a training step in each process, in addition to weights and optimizer state.

    Activations saved for the backward pass count in all later phases. Weights and gradients are float32. With
    `dtype` bfloat16 autocast is counted, or with shards that FSDP2 gathers the weights in bfloat16.
    """
    model, groups = trainable_model(spec, what, dtype)
    trained = [parameter for group in groups.values() for parameter in group]
    gathered, in_blocks = gathered_bytes(model, dtype) if shards > 1 else (0, set[int]())
    gradients = sum(4 * shard_bytes(p, shards) // p.element_size() for p in trained)
    if shards > 1:
        model.to(dtype)
    meter = _meter_of(model)
    for parameter in trained:
        parameter.register_post_accumulate_grad_hook(
            lambda p: _keep_gradient(meter, p, shards if id(p) in in_blocks else 1)
        )
    model.train()
    batch = _batch(spec, work, dtype if shards > 1 else torch.float32)
    meter.add(gathered)
    with meter.running(autocast=dtype if shards == 1 and dtype != torch.float32 else None):
        _count_inputs(meter, batch)
        output = model(batch)
        # a stand-in for the losses, which allocate little compared to the model
        loss = output.text_logits.float().logsumexp(dim=-1).sum() + output.masks.candidates.float().sum()
        meter.end_forward()
        meter.enter("backward pass")
        loss.backward()
    # fused AdamW allocates nothing in addition to the gradients
    return _pass_memory(meter.peaks | {"optimizer step": gradients}, 0, spec, dtype, batch)


def _keep_gradient(meter: Meter, parameter: torch.nn.Parameter, shards: int) -> None:
    """Count a gradient in float32; for a sharded layer only this process's shard."""
    assert parameter.grad is not None
    kept = 4 * shard_bytes(parameter, shards) // parameter.element_size()
    if shards > 1:
        parameter.grad = None
        meter.add(kept)
    else:
        meter.add(kept - parameter.grad.nbytes)


def gathered_bytes(model: TextSegModel, dtype: torch.dtype) -> tuple[int, set[int]]:
    """Bytes of unsharded weights in each process (FSDP2), and the ids of the parameters inside its blocks.

    They are the weights outside of blocks, which stay gathered, and `GATHERED` times the largest block.
    """
    names = {name for part in model.modules() for name in getattr(part, "_no_split_modules", None) or ()}
    blocks = [part for part in model.modules() if type(part).__name__ in names]
    inside = {id(p) for block in blocks for p in block.parameters()}

    def size(parameters: Sequence[torch.nn.Parameter]) -> int:
        return sum(p.numel() * min(p.element_size(), dtype.itemsize) for p in parameters)

    largest = max(size(list(block.parameters())) for block in blocks)
    outside = [p for p in model.parameters() if id(p) not in inside]
    return size(outside) + GATHERED * largest, inside


def _meter_of(model: TextSegModel) -> Meter:
    meter = Meter()
    meter.enter("inputs")
    meter.ignore(model)
    meter.enter_with("vision encoder", vision_encoder_of(model.vlm))
    meter.enter_with("language model", model.vlm.model.language_model)
    meter.enter_with("SAM encoder", model.sam.vision_encoder.backbone)
    meter.enter_with("SAM decoder", model.sam.mask_decoder)
    return meter


def _count_inputs(meter: Meter, batch: Batch) -> None:
    for pixels in (batch.pixel_values, *batch.g_pixel_values):
        meter.count(pixels)


def _batch(spec: ModelSpec, work: Workload, dtype: torch.dtype) -> Batch:
    """A batch like the processor's, with pixels on the meta device; [SEG] is token 0."""
    pixels = family_of(spec.family).read_image(Image.new("RGB", work.size[::-1]), spec)
    image_tokens = sum(pixels.tokens)
    rows = work.images * work.prompts
    length = work.text_tokens + image_tokens + ANSWER
    ids = torch.full((rows, length), spec.vlm["image_token_id"] + 1)  # any ordinary token
    ids[:, 1 : 1 + image_tokens] = spec.vlm["image_token_id"]
    ids[:, -3] = 0
    labels = torch.full_like(ids, IGNORE_INDEX)
    labels[:, -ANSWER:] = ids[:, -ANSWER:]
    attention = torch.ones_like(ids)
    attention[1:, 0] = 0  # prompts of unequal length need a mask
    values = torch.empty((work.images * len(pixels.values), *pixels.values.shape[1:]), dtype=dtype, device=META)
    square = (3, spec.sam_size, spec.sam_size)
    return Batch(
        input_ids=ids,
        attention_mask=attention,
        labels=labels,
        pixel_values=values,
        image_grid_thw=pixels.grid.repeat(work.images, 1),
        g_pixel_values=[torch.empty(square, dtype=dtype, device=META) for _ in range(work.images)],
        masks=[],
        image_of_row=torch.arange(work.images).repeat_interleave(work.prompts),
        tiles_of_image=[pixels.parts] * work.images,
        frames_per_batch=[1] * work.images,
        sizes=[work.size] * work.images,
    )


def _pass_memory(peaks: dict[str, int], cache: int, spec: ModelSpec, dtype: torch.dtype, batch: Batch) -> PassMemory:
    """PassMemory with the size of `sam2.Features`: c / 8, c / 4 and c channels at strides 4, 8 and 16."""
    channels, side = spec.sam["vision_config"]["fpn_hidden_size"], spec.sam_size
    levels = ((channels // 8, 4), (channels // 4, 8), (channels, 16))
    values = sum(width * (side // stride) ** 2 for width, stride in levels)
    features = len(batch.sizes) * values * dtype.itemsize
    return PassMemory(peaks, cache, features, batch.input_ids.shape[1], batch.tiles_of_image[0])


def video_memory(model: TextSegModel) -> int:
    """Bytes of a `VideoSession` per object: SAM 2's memory of the prompted frames and of the last other frames."""
    config = model.sam.config
    cells = (config.image_size // 16) ** 2
    frames = PROMPTED_FRAMES + config.num_maskmem - 1
    return frames * cells * model.sam.mem_dim * model.sam.dtype.itemsize
