"""Images in parallel on the cores of a CPU: the predictions are unchanged, and the number of threads is restored."""

from __future__ import annotations

import copy
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from vesalius.inference.predictor import Predictor
from vesalius.models.checkpoint import OpenedModel
from vesalius.models.cpu_parallel import decode_on_cores, map_on_cores, train_on_cores
from vesalius.models.sam2 import MaskLogits, SegPrompts
from vesalius.types import Item, Prediction


@pytest.fixture
def use_cores() -> Iterator[Callable[[int], None]]:
    """Sets PyTorch's threads for one test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def opened(small_predictor: Predictor) -> OpenedModel:
    small = small_predictor
    return OpenedModel(small.model, small.processor, small.model_card)


def threads_of_libraries() -> set[int]:
    """Threads that an operation begun here takes, as PyTorch, OpenMP and MKL tell."""
    told = torch.__config__.parallel_info()
    return {int(found) for found in re.findall(r"(?:at::get_num|omp_get_max|mkl_get_max)_threads\(\) : (\d+)", told)}


@pytest.mark.parametrize(
    ("jobs", "cores", "threads"), [(4, 2, 2), (4, 8, 4), (4, 6, 2), (3, 2, 1), (1, 4, 1), (4, 1, 1), (0, 2, 1)]
)
def test_as_many_at_once_as_divide_jobs_and_cores(
    use_cores: Callable[[int], None], jobs: int, cores: int, threads: int
) -> None:
    use_cores(cores)
    together = threading.Barrier(threads, timeout=30)

    def work(job: int) -> tuple[int, int, bool]:
        together.wait()  # breaks unless `threads` jobs are here at once
        return job, torch.get_num_threads(), torch.is_inference_mode_enabled()

    assert map_on_cores(work, range(jobs)) == [(job, cores // threads, True) for job in range(jobs)]


@pytest.mark.parametrize("fails", [False, True])
def test_cores_are_given_back_to_this_thread_and_to_new_ones(use_cores: Callable[[int], None], fails: bool) -> None:
    use_cores(4)
    told: list[set[int]] = []

    def work(job: int) -> None:
        told.append(threads_of_libraries())
        if fails and job == 1:
            raise MemoryError("job 1")

    with pytest.raises(MemoryError, match="job 1") if fails else nullcontext():
        map_on_cores(work, range(4))
    assert told and all(each == {1} for each in told)
    new = threading.Thread(target=work, args=(4,))
    new.start()
    new.join()
    work(5)
    assert told[-2:] == [{4}, {4}]


@contextmanager
def watched(opened: OpenedModel, most: int = 9) -> Iterator[list[tuple[int, int, bool]]]:
    """Of each call of SAM's encoder: images, threads, and whether it was made in this thread."""
    calls: list[tuple[int, int, bool]] = []
    here = threading.get_ident()

    def note(_: Any, arguments: tuple[torch.Tensor]) -> None:
        calls.append((len(arguments[0]), torch.get_num_threads(), threading.get_ident() == here))
        if len(arguments[0]) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")

    hook = opened.model.sam.vision_encoder.backbone.register_forward_pre_hook(note)
    try:
        yield calls
    finally:
        hook.remove()


@pytest.fixture(scope="module")
def items() -> list[Item]:
    """Five images, of one or two questions each."""
    rng = np.random.default_rng(0)
    prompts = ("blood vessel", "血管")
    return [
        Item(str(i), rng.integers(0, 256, (1, 40 + i, 60, 3), dtype=np.uint8), prompts[: 1 + i % 2]) for i in range(5)
    ]


def values(predictions: Sequence[Prediction]) -> list[tuple[Any, ...]]:
    return [(p.id, p.prompt, p.status, p.text, p.answered, p.logits.tolist(), p.scores) for p in predictions]


def test_predictions_are_those_of_one_thread_and_the_same_each_time(
    opened: OpenedModel, items: list[Item], use_cores: Callable[[int], None]
) -> None:
    use_cores(1)
    alone = Predictor(opened, answer="force").predict(items)
    use_cores(2)
    with watched(opened) as calls:
        predictor = Predictor(opened, answer="force")
        shared = predictor.predict([predictor.prepare(items[0]), *items[1:]])
    assert calls[:2] == [(2, 1, False)] * 2
    assert calls[2:] == [(1, 2, True)], "an image that is left alone has all cores"
    assert values(shared) == values(Predictor(opened, answer="force").predict(items))
    for one, other in zip(alone, shared, strict=True):
        assert (one.id, one.prompt, one.text) == (other.id, other.prompt, other.text)
        np.testing.assert_allclose(one.logits, other.logits, atol=1e-4)
        np.testing.assert_array_equal(one.mask, other.mask)


@pytest.mark.parametrize(
    ("images", "parts"), [([0, 0, 2, 3, 3, 3, 5], [[0, 0, 2], [3, 3, 3, 5]]), ([1, 1], [[1, 1]]), ([], [[]])]
)
def test_images_that_nobody_asked_a_mask_of_take_no_core(
    use_cores: Callable[[int], None], images: list[int], parts: list[list[int]]
) -> None:
    use_cores(2)
    asked: list[list[int]] = []

    def decode(squares: Sequence[torch.Tensor], seg: SegPrompts) -> MaskLogits:
        asked.append(seg.image.tolist())
        return MaskLogits(seg.embedding, seg.row, seg.embedding, seg.row)

    rows = torch.arange(len(images))
    prompts = SegPrompts(torch.rand(len(images), 3), rows, torch.tensor(images, dtype=torch.int64))
    decoded = decode_on_cores(decode, [torch.zeros(3, 8, 8)] * 6, prompts)
    assert sorted(asked) == parts
    assert torch.equal(decoded.logits, prompts.embedding) and torch.equal(decoded.scores, rows)


def test_memory_that_runs_out_on_one_core_halves_the_batch(
    opened: OpenedModel, items: list[Item], use_cores: Callable[[int], None]
) -> None:
    use_cores(2)
    expected = Predictor(opened, answer="force", batch_size=2).predict(items[:4])
    with watched(opened, most=1) as calls:
        predictor = Predictor(opened, answer="force", batch_size=4)
        found = predictor.predict(items[:4])
    assert (predictor.batch_size, predictor.usage.batch_halved) == (2, 1)
    assert calls[0][0] == 2 and [images for images, _, _ in calls].count(1) == 4
    assert values(found) == values(expected)
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("trains", ["all", "SAM alone", "[SEG] alone"])
def test_gradients_are_those_of_one_thread_and_the_same_each_time(
    opened: OpenedModel, items: list[Item], use_cores: Callable[[int], None], trains: str
) -> None:
    sam = copy.deepcopy(opened.model).sam.requires_grad_(trains != "[SEG] alone")
    model = copy.deepcopy(opened.model)
    model.sam = sam
    batch = opened.processor(items[:4], answered=True)
    draw = torch.Generator().manual_seed(0)
    channels = sam.config.mask_decoder_config.hidden_size
    drawn = torch.randn(len(batch.image_of_row), channels, generator=draw)

    def learn() -> tuple[list[torch.Tensor], dict[str, torch.Tensor], list[tuple[int, int, bool]]]:
        embedding = drawn.clone().requires_grad_(trains != "SAM alone")
        prompts = SegPrompts(embedding, torch.arange(len(drawn)), batch.image_of_row)
        with watched(replace(opened, model=model)) as calls:
            masks = train_on_cores(model.decode, batch.g_pixel_values, prompts, sam.parameters())
        sum(part.square().mean() for part in (masks.logits, masks.candidate_scores)).backward()
        found = {name: p.grad for name, p in sam.named_parameters() if p.grad is not None}
        if embedding.grad is not None:
            found["[SEG]"] = embedding.grad
        sam.zero_grad()
        return list(vars(masks).values()), found, calls

    use_cores(1)
    masks, gradients, calls = learn()
    assert calls == [(4, 1, True)]
    use_cores(2)
    shared_masks, shared, calls = learn()
    assert calls == [(2, 1, False)] * 2
    again = learn()[1]
    assert gradients.keys() == shared.keys() == again.keys()
    assert ("[SEG]" in shared, len(shared) > 1) == {
        "all": (True, True),
        "SAM alone": (False, True),
        "[SEG] alone": (True, False),
    }[trains]
    for one, other in zip(masks, shared_masks, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, shared[name], rtol=1e-3, atol=1e-6, msg=name)
        assert torch.equal(shared[name], again[name])


def test_precision_is_that_of_the_thread_that_asks(use_cores: Callable[[int], None]) -> None:
    use_cores(2)
    weight = torch.nn.Parameter(torch.ones(3, 3))

    def decode(squares: Sequence[torch.Tensor], seg: SegPrompts) -> MaskLogits:
        maps = seg.embedding @ weight
        return MaskLogits(maps, maps, maps, maps)

    prompts = SegPrompts(torch.rand(2, 3), torch.arange(2), torch.arange(2))
    for dtype in (torch.bfloat16, torch.float32):
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            masks = train_on_cores(decode, [], prompts, [weight])
        assert masks.logits.dtype == dtype and masks.logits.requires_grad
    with torch.no_grad():
        assert not train_on_cores(decode, [], prompts, [weight]).logits.requires_grad


@pytest.mark.parametrize("learns", [False, True])
def test_masks_of_two_phrases_of_a_clip_stay_in_order(use_cores: Callable[[int], None], learns: bool) -> None:
    use_cores(2)

    def decode(squares: Sequence[torch.Tensor], seg: SegPrompts) -> MaskLogits:
        return MaskLogits(*[seg.embedding * 2] * 4)

    embedding = torch.arange(8.0).reshape(8, 1).requires_grad_()
    prompts = SegPrompts(embedding, torch.arange(8) // 4, torch.tensor([0, 1, 2, 3] * 2))
    masks = train_on_cores(decode, [], prompts, []) if learns else decode_on_cores(decode, [], prompts)
    assert masks.logits.flatten().tolist() == [0, 2, 4, 6, 8, 10, 12, 14]
    if learns:
        (masks.logits.flatten() * torch.arange(8)).sum().backward()
        assert embedding.grad is not None
        assert embedding.grad.flatten().tolist() == [0, 2, 4, 6, 8, 10, 12, 14]
