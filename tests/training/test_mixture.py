"""The training mixture: examples of an epoch and their order."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.codes import raises_code

from vesalius.config import make_settings
from vesalius.data.dataset import epoch_order
from vesalius.errors import ImageError, SettingError
from vesalius.lineage import fingerprint_samples
from vesalius.training.conversations import Conversation, ConversationFile
from vesalius.training.mixture import Mixture, TaskSettings, load_clip, open_mixture
from vesalius.types import Absent, Item, MaskFile, MaskReference, Polygons, Sample

SQUARE = Polygons(((1.0, 1.0, 6.0, 1.0, 6.0, 6.0, 1.0, 6.0),))


def sample(
    folder: Path, name: str, masks: dict[str, MaskReference], sequence: str | None = None, width: int = 16
) -> Sample:
    path = folder / f"{name}.png"
    if not path.exists():
        Image.new("L", (width, 12), int(name[1:]) + 1).save(path)
    return Sample(name, path, tuple(masks), tuple((each,) for each in masks.values()), sequence=sequence)


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    """Three frames of one sequence, one frame of another, and two single images."""
    return [
        sample(tmp_path, "f0", {"vessel": Absent(), "wire": SQUARE}, "run"),
        sample(tmp_path, "f1", {"wire": SQUARE, "vessel": SQUARE, "stent": SQUARE}, "run"),
        sample(tmp_path, "f2", {"vessel": SQUARE, "wire": SQUARE}, "run"),
        sample(tmp_path, "f3", {"vessel": SQUARE}, "short"),
        sample(tmp_path, "f4", {"vessel": Absent()}),
        sample(tmp_path, "f5", {"vessel": SQUARE, "wire": Absent(), "stent": Absent()}),
    ]


def talks(folder: Path, n: int) -> ConversationFile:
    image = Sample("talk", folder / "f0.png", (), None)
    found = tuple(Conversation(image, ((f"question {i}", f"answer {i}"),)) for i in range(n))
    return ConversationFile(folder / "talk.json", found, ())


def load_all(mixture: Mixture, epoch: int = 0, seed: int = 3) -> list[Item]:
    return [
        mixture.load(number, seed, epoch, np.random.default_rng([seed, epoch, number]))
        for number in mixture.order(seed, epoch).tolist()
    ]


def words(**weights: float) -> TaskSettings:
    return TaskSettings(absent="words", **weights)


def test_without_other_tasks_an_epoch_is_the_samples_in_their_order(samples: list[Sample]) -> None:
    mixture = Mixture(samples, TaskSettings())
    order = mixture.order(3, 1)
    np.testing.assert_array_equal(order, epoch_order(6, 3, 1))
    items = load_all(mixture, epoch=1)
    assert [item.id for item in items] == [samples[i].id for i in order]
    assert not any(item.absent or item.turns for item in items)
    assert mixture.notes() == []


def test_weights_are_examples_per_sample_spread_over_the_epoch(samples: list[Sample], tmp_path: Path) -> None:
    tasks = words(negatives=0.5, clips=0.01, conversations=2)
    mixture = Mixture(samples, tasks, talks(tmp_path, 5))
    assert mixture.counts == {"segment": 6, "negatives": 3, "clips": 1, "conversations": 12}
    order = mixture.order(3, 0)
    assert sorted(order.tolist()) == list(range(22))
    named = [mixture.task_of(number)[0] for number in order.tolist()]
    assert named[0] == "segment"
    assert Counter(named[:11])["conversations"] == Counter(named[11:])["conversations"] == 6
    # the order of the samples does not depend on other tasks
    np.testing.assert_array_equal(order[order < 6], epoch_order(6, 3, 0))


def test_examples_depend_only_on_seed_epoch_and_number(samples: list[Sample], tmp_path: Path) -> None:
    tasks = words(negatives=1, clips=1, conversations=1)
    one, two = (Mixture(samples, tasks, talks(tmp_path, 5)) for _ in range(2))
    load_all(one, epoch=0)  # examples loaded earlier must not affect later ones
    for a, b in zip(load_all(one, epoch=1), load_all(two, epoch=1), strict=True):
        assert (a.id, a.prompts, a.turns, a.absent) == (b.id, b.prompts, b.turns, b.absent)
        np.testing.assert_array_equal(a.frames, b.frames)
    assert [item.id for item in load_all(one, 1)] != [item.id for item in load_all(one, 1, seed=4)]


def test_negatives_are_phrases_that_the_image_lacks(samples: list[Sample]) -> None:
    mixture = Mixture(samples, words(negatives=10))
    phrases = {each.id: set(each.prompts) for each in samples}
    negatives = [
        item
        for number, item in zip(mixture.order(3, 0).tolist(), load_all(mixture), strict=True)
        if mixture.task_of(number)[0] == "negatives"
    ]
    assert len(negatives) == 60
    for item in negatives:
        assert item.absent == {0}
        assert item.masks is not None
        assert not item.masks.any()
        assert item.prompts[0] not in phrases[item.id]
    # f1 and f5 have all phrases; the other images are equally frequent, and each phrase that they lack occurs
    assert {(item.id, item.prompts[0]) for item in negatives} == {
        ("f0", "stent"), ("f2", "stent"), ("f3", "wire"), ("f3", "stent"), ("f4", "wire"), ("f4", "stent")
    }  # fmt: skip
    assert set(Counter(item.id for item in negatives).values()) == {15}


def test_conversations_are_used_evenly_across_epochs(samples: list[Sample], tmp_path: Path) -> None:
    mixture = Mixture(samples, TaskSettings(conversations=0.5), talks(tmp_path, 5))
    heard = [item.turns[0][0] for epoch in range(5) for item in load_all(mixture, epoch) if item.turns]
    assert len(heard) == 15
    assert set(Counter(heard).values()) == {3}
    assert heard[:5] != heard[5:10]


def test_clips_have_frames_in_order_and_common_phrases(samples: list[Sample]) -> None:
    mixture = Mixture(samples, words(clips=2, frames=2))
    clips = [item for item in load_all(mixture) if len(item.frames) > 1]
    assert len(clips) == 12
    assert {item.id for item in clips} == {"run (f0, f1)", "run (f0, f2)", "run (f1, f2)"}
    for item in clips:
        levels = item.frames[:, 0, 0, 0].tolist()
        assert levels == sorted(levels)
        assert item.masks is not None
        numbers = [int(name[1:]) for name in item.id[5:-1].split(", ")]
        for prompt, masks in zip(item.prompts, item.masks, strict=True):
            there = [bool(mask.any()) for mask in masks]
            assert there == [not (prompt == "vessel" and number == 0) for number in numbers]
        assert item.absent == frozenset()  # present in at least one frame
    assert load_clip([samples[1], samples[0]]).prompts == ("wire", "vessel")
    longer = Mixture(samples, TaskSettings(clips=1, frames=5))
    assert {len(item.frames) for item in load_all(longer)} == {1, 3}  # 3: all frames of the sequence


def test_absent_phrases_are_answered_with_words_or_an_empty_mask(samples: list[Sample]) -> None:
    def absent(tasks: TaskSettings) -> dict[str, list[str]]:
        items = load_all(Mixture(samples, tasks))
        return {item.id: [item.prompts[index] for index in sorted(item.absent)] for item in items if item.absent}

    assert absent(TaskSettings()) == {}
    assert absent(words()) == {"f0": ["vessel"], "f4": ["vessel"], "f5": ["wire", "stent"]}


def test_an_empty_mask_file_means_absent_and_an_empty_polygon_does_not(tmp_path: Path) -> None:
    Image.new("L", (16, 12)).save(tmp_path / "empty.png")
    tiny = Polygons(((1.1, 1.1, 1.2, 1.1, 1.2, 1.2),))
    one = sample(tmp_path, "f0", {"file": MaskFile(tmp_path / "empty.png"), "dot": tiny})
    (item,) = load_all(Mixture([one], words()))
    assert item.masks is not None
    assert not item.masks.any()
    assert item.absent == {0}


def test_notes_count_examples_and_state_assumptions(samples: list[Sample], tmp_path: Path) -> None:
    mixture = Mixture(samples, words(negatives=0.5, clips=0.5, conversations=0.5), talks(tmp_path, 5))
    assert mixture.notes() == [
        "phrases annotated as absent, answered without [SEG]: 4 of 12",
        "negatives: 3 per epoch besides 6 samples, from 4 images that lack one of 3 phrases; assumes that phrases "
        "without annotation are absent",
        "clips: 3 per epoch besides 6 samples, of at most 5 frames, from 1 sequences; skipped (one frame or no common "
        "phrase): 1",
        "conversations: 3 per epoch besides 6 samples, from 5 conversations about 1 images",
    ]


def test_an_overfit_test_uses_only_the_samples(samples: list[Sample], tmp_path: Path) -> None:
    tasks = words(negatives=1, conversations=1)
    mixture = open_mixture(samples[:1], tasks, tmp_path / "absent.json", overfit=True)
    assert len(mixture) == 1
    assert load_all(mixture)[0].absent == {0}


def test_frames_of_several_sizes_are_refused_before_the_run(tmp_path: Path) -> None:
    frames = [sample(tmp_path, f"f{i}", {"a": SQUARE}, "run", width=16 + i) for i in range(2)]
    numbers = "f1: has 12 x 17", "f0 of the same sequence has 12 x 16"
    with raises_code(ImageError, "size_mismatch", *numbers):
        Mixture(frames, TaskSettings(clips=1)).check_sizes({"f0": (12, 16), "f1": (12, 17)})
    with raises_code(ImageError, "size_mismatch", *numbers):
        load_clip(frames)
    Mixture(frames, TaskSettings()).check_sizes({"f0": (12, 16), "f1": (12, 17)})


def test_the_fingerprint_covers_the_data_of_all_tasks(samples: list[Sample], tmp_path: Path) -> None:
    assert Mixture(samples, words(negatives=1)).fingerprint() == fingerprint_samples(samples)
    clips = TaskSettings(clips=1)
    other = [*samples[:3], sample(tmp_path, "f3", {"vessel": SQUARE}, "run"), *samples[4:]]
    assert fingerprint_samples(other) == fingerprint_samples(samples)
    assert Mixture(other, clips).fingerprint() != Mixture(samples, clips).fingerprint()
    talk = TaskSettings(conversations=1)
    prints = {Mixture(samples, talk, talks(tmp_path, n)).fingerprint() for n in (1, 2)}
    assert len(prints) == 2


@pytest.mark.parametrize(
    ("weights", "field"),
    [
        ({"clips": 1}, "tasks.clips"),
        ({"negatives": 1}, "tasks.negatives"),
        ({"conversations": 1}, "tasks.conversations"),
    ],
)
def test_a_task_without_examples_is_refused(samples: list[Sample], weights: dict[str, float], field: str) -> None:
    with raises_code(SettingError, "no_examples") as caught:
        Mixture(samples[5:], words(**weights))
    assert caught.value.field == field


def test_conversations_without_a_weight_are_refused(samples: list[Sample], tmp_path: Path) -> None:
    with raises_code(SettingError, "conflicting_settings"):
        Mixture(samples, TaskSettings(), talks(tmp_path, 1))


def test_negatives_are_answered_like_annotated_absent_phrases(samples: list[Sample]) -> None:
    for absent, indices in (("mask", frozenset()), ("words", frozenset({0}))):
        tasks = make_settings(TaskSettings, {"negatives": 1, "absent": absent}, "recipe")
        mixture = Mixture(samples, tasks)
        drawn = [number for number in range(len(mixture)) if mixture.task_of(number)[0] == "negatives"]
        item = mixture.load(drawn[0], 0, 0, np.random.default_rng(0))
        assert item.masks is not None and not item.masks.any()
        assert item.absent == indices
