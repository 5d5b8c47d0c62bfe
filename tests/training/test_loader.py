"""The training data loader: batches do not depend on `num_workers` or on the first batch index."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from PIL import Image

from vesalius.data.augment import AugmentSettings
from vesalius.data.dataset import load_item, load_samples
from vesalius.synth import write_dataset
from vesalius.training.conversations import read_conversations
from vesalius.training.loader import Loader
from vesalius.training.mixture import Mixture, TaskSettings
from vesalius.types import Item


@dataclass(frozen=True)
class Made:
    """The arguments of one `make_batch` call."""

    items: tuple[Item, ...]
    draws: tuple[int, ...]


class Recorder:
    """A learner whose batches are the arguments of `make_batch`."""

    def make_batch(self, items: Sequence[Item], draws: Sequence[int]) -> Made:
        return Made(tuple(items), tuple(draws))


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Mixture:
    folder = tmp_path_factory.mktemp("loader")
    write_dataset(folder / "set", 2, seed=7, size=64, frames=3, num_workers=0)
    Image.fromarray(np.arange(20 * 30 * 3, dtype=np.uint8).reshape(20, 30, 3)).save(folder / "a.png")
    messages = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "That."}]
    (folder / "talk.json").write_text(json.dumps([{"image": "a.png", "conversations": messages}]))
    tasks = TaskSettings(clips=0.5, frames=2, conversations=0.5, absent="words")
    return Mixture(load_samples(folder / "set"), tasks, read_conversations(folder / "talk.json"))


def made(mixture: Mixture, num_workers: int = 0, epoch: int = 1, start: int = 0) -> list[Made]:
    augment = AugmentSettings(rotate_degrees=30, flip=0.5, noise=5)
    loader = Loader(mixture, Recorder(), augment, 5, seed=2, accumulation=2, num_workers=num_workers)  # type: ignore[arg-type]
    return [each.batch for step in loader.steps(epoch, start) for each in step.microbatches]  # type: ignore[misc]


def assert_same(one: Sequence[Made], two: Sequence[Made]) -> None:
    assert [each.draws for each in one] == [each.draws for each in two]
    for a, b in zip((i for each in one for i in each.items), (i for each in two for i in each.items), strict=True):
        assert (a.id, a.prompts, a.turns, a.absent) == (b.id, b.prompts, b.turns, b.absent)
        np.testing.assert_array_equal(a.frames, b.frames)
        if a.masks is not None:
            np.testing.assert_array_equal(a.masks, b.masks)


def test_batches_do_not_depend_on_workers_or_the_first_batch_index(mixture: Mixture) -> None:
    whole = made(mixture)
    assert [len(each.items) for each in whole] == [5, 5, 2]
    assert_same(whole, made(mixture, num_workers=3))
    assert_same(whole[1:], made(mixture, start=1))


def test_each_sample_occurs_once_per_epoch(mixture: Mixture) -> None:
    items = [item for each in made(mixture) for item in each.items]
    stills = [item.id for item in items if len(item.frames) == 1 and not item.turns]
    assert sorted(stills) == sorted(sample.id for sample in mixture.samples)
    assert sum(len(item.frames) == 2 for item in items) == 3
    assert sum(bool(item.turns) for item in items) == 3


def test_images_of_conversations_are_not_augmented(mixture: Mixture) -> None:
    items = [item for each in made(mixture) for item in each.items]
    (talk, *_) = [item for item in items if item.turns]
    np.testing.assert_array_equal(talk.frames, mixture.conversations[0].load().frames)
    by_id = {sample.id: sample for sample in mixture.samples}
    for item in items:
        if item.id in by_id:
            assert (item.frames != load_item(by_id[item.id]).frames).any()


def test_absent_phrases_stay_absent_after_augmentation(mixture: Mixture) -> None:
    items = [item for each in made(mixture) for item in each.items]
    # the first frames of synthetic clips have no contrast medium
    found = {(item.id, item.prompts[index]) for item in items for index in item.absent}
    assert found >= {("synth_00000_000", "blood vessel"), ("synth_00001_000", "blood vessel")}


def test_each_prompt_has_a_draw_and_turns_have_none(mixture: Mixture) -> None:
    for each in made(mixture):
        assert len(each.draws) == sum(len(item.prompts) for item in each.items)
