"""Training runs that mix segmentation, clips, absent phrases and conversations."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tests.codes import raises_code
from tests.training.run_files import lines

from vesalius.config import make_settings
from vesalius.data.dataset import load_item, load_samples
from vesalius.errors import AnnotationError, SettingError, TrainingError
from vesalius.jobs.opening import load_predictor
from vesalius.models.cards import read_card
from vesalius.synth import write_dataset
from vesalius.training.run import resume, train
from vesalius.training.settings import RunSettings

TASKS = {"negatives": 0.2, "clips": 0.2, "frames": 2, "conversations": 0.2, "absent": "words"}

pytestmark = pytest.mark.usefixtures("small")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sequences of two frames; the second has no annotated catheter."""
    folder = tmp_path_factory.mktemp("multitask") / "set"
    write_dataset(folder, 2, seed=7, size=64, frames=2, num_workers=0)
    path = folder / "annotations.json"
    entries = json.loads(path.read_text())
    for entry in entries[2:]:
        entry["mask"], entry["text"] = entry["mask"][:1], entry["text"][:1]
    path.write_text(json.dumps(entries))
    Image.new("RGB", (40, 30), (200, 30, 30)).save(folder / "red.png")
    talk(folder / "talk.json", "Red.")
    return folder


def talk(path: Path, answer: str) -> None:
    messages = [{"from": "human", "value": "<image>\nWhich color?"}, {"from": "gpt", "value": answer}]
    path.write_text(json.dumps([{"image": "red.png", "conversations": messages}]))


def settings(folder: Path, out: Path, **changes: Any) -> RunSettings:
    values = {
        "model": "tiny",
        "init": "random",
        "trainable": "lora",
        "data": {"train": folder / "annotations.json", "conversations": folder / "talk.json"},
        "tasks": TASKS,
        "steps": 4,
        "batch_size": 4,
        "num_workers": 2,
        "augment": {"flip": 0.5},
        "out": out,
    }
    return make_settings(RunSettings, {**values, **changes}, "test")


def test_a_run_with_all_tasks_resumes_only_with_unchanged_tasks_and_conversations(data: Path, tmp_path: Path) -> None:
    notes: list[str] = []
    # 4 samples and one example of each other task: an epoch is one batch
    run = train(settings(data, tmp_path / "run", steps=1, batch_size=7), on_note=notes.append)
    assert [note.partition(":")[0] for note in notes if " per epoch besides 4 samples" in note] == [
        "negatives",
        "clips",
        "conversations",
    ]
    manifest = json.loads((run / "manifest.json").read_text())
    assert {sample.id for sample in load_samples(data / "annotations.json")} < manifest["train"]["samples"].keys()
    assert "talk, entry 0" in manifest["train"]["samples"]
    assert len(read_card(run / "last").training_images) == 5  # images of conversations count as training images
    with raises_code(TrainingError, "changed_setting", "tasks.clips (it was 0.2)"):
        resume(settings(data, run, batch_size=7, tasks={**TASKS, "clips": 0.4}))
    talk(data / "talk.json", "Blue.")
    with raises_code(TrainingError, "changed_data"):
        resume(settings(data, run, steps=2, batch_size=7))
    talk(data / "talk.json", "Red.")
    resume(settings(data, run, steps=2, batch_size=7))
    assert [(line["step"], line["epoch"]) for line in lines(run)] == [(1, 0), (2, 1)]


def test_conversations_are_checked_before_the_run(data: Path, tmp_path: Path) -> None:
    path = data / "bad.json"
    values = {"train": data / "annotations.json", "conversations": path}
    talk(path, "It is [SEG].")
    with raises_code(AnnotationError, "invalid_annotation", "bad.json, entry 0 (red.png): message 1"):
        train(settings(data, tmp_path / "run", data=values))
    talk(path, "It <|im_end|> is.")
    with raises_code(SettingError, "invalid_prompt", "bad.json, entry 0 (red.png): ", "<|im_end|>"):
        train(settings(data, tmp_path / "run", data=values))
    assert not (tmp_path / "run").exists()


def test_a_u_net_refuses_other_tasks(data: Path, tmp_path: Path) -> None:
    with raises_code(SettingError, "conflicting_settings", "tasks:"):
        train(settings(data, tmp_path / "run", model="unet"))


@pytest.mark.slow
def test_a_model_learns_to_answer_absent_phrases_without_seg(tmp_path: Path) -> None:
    """Overfit test on two images, both with vessels and without a stent."""
    write_dataset(tmp_path / "set", 2, seed=7, size=128, num_workers=0)
    path = tmp_path / "set/annotations.json"
    entries = json.loads(path.read_text())
    for entry in entries:
        index = entry["text"].index("blood vessel")
        entry["mask"], entry["text"] = [entry["mask"][index], None], ["blood vessel", "stent"]
    path.write_text(json.dumps(entries))
    changes = {
        "data": {"train": tmp_path / "set", "val": tmp_path / "set"},
        "init": "pretrained",
        "trainable": "full",
        "optim": {"lr": 1e-3, "weight_decay": 0.0},
        "tasks": {"absent": "words"},
        "augment": {},
        "steps": 60,
        "batch_size": 2,
        "validate": {"every_epochs": 1000},
    }
    run = train(settings(tmp_path / "set", tmp_path / "run", **changes))
    before, after = lines(run, "validation.jsonl")
    assert before["absent_seg_rate"] == 1.0
    assert (after["seg_rate"], after["absent_seg_rate"]) == (0.5, 0.0)
    assert after["dice"] > 0.9
    predictor = load_predictor(run, answer="generate", device="cpu")
    items = [load_item(sample) for sample in load_samples(tmp_path / "set")]
    said = {(each.prompt, each.status) for each in predictor.predict(items)}
    assert said == {("blood vessel", "ok"), ("stent", "no_seg")}
