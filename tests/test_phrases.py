"""Prompts are compared with the phrases that a model knows: the same, spelled otherwise, or unknown."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.codes import raises_code
from tests.segmenters import Bright, draw_squares

from vesalius.cli.main import main
from vesalius.data.image_files import find_images
from vesalius.errors import SettingError
from vesalius.jobs.folder import write_predictions
from vesalius.jobs.opening import load_predictor
from vesalius.models.reference import resolve_model
from vesalius.phrases import describe_prompts, match, refuse_unknown
from vesalius.segmenter import ModelDescription
from vesalius.synth import write_dataset
from vesalius.types import Item, Prediction

TINY = ("blood vessel", "catheter", "optic disc")
KNOWN = {phrase: phrase for phrase in TINY}
RESPELLED = {
    "Blood Vessel": "blood vessel",
    "BLOOD VESSELS": "blood vessel",
    "blood vessels": "blood vessel",
    "blood-vessel": "blood vessel",
    "blood_vessels": "blood vessel",
    "  blood   vessel ": "blood vessel",
    "bloodvessel": "blood vessel",
    "blood\u200bvessel": "blood vessel",
    "the blood vessel.": "blood vessel",
    "a catheter": "catheter",
    "Catheters!": "catheter",
    "“optic discs”": "optic disc",
    "ｏｐｔｉｃ　ｄｉｓｃ": "optic disc",
}
UNKNOWN = (
    *("vessel", "vessels", "artery", "arteries", "coronary artery", "vein", "vasculature", "blood vesel"),
    *("guide wire", "optic disk", "the vessel on the left", "blood vessel and catheter", "not a blood vessel"),
    *("liver", "heart", "tumor", "血管", "导管", "unicorn", "asdf", "❤️", "?!", "123", "blood"),
)
"""Synonyms, a typing error, other structures, other languages and nonsense."""


def test_the_table_has_forty_prompts() -> None:
    assert len({*KNOWN, *RESPELLED, *UNKNOWN}) == 40


@pytest.mark.parametrize(("prompt", "asked"), [*KNOWN.items(), *RESPELLED.items()])
def test_a_known_phrase_in_any_spelling_is_asked(prompt: str, asked: str) -> None:
    found = match(prompt, TINY)
    assert (found.asked, found.unknown, found.phrase) == (asked, False, "" if prompt == asked else asked)


@pytest.mark.parametrize("prompt", UNKNOWN)
def test_an_unknown_phrase_is_asked_as_it_is_and_marked(prompt: str) -> None:
    found = match(prompt, TINY)
    assert (found.asked, found.unknown, found.phrase) == (prompt, True, "")
    with raises_code(SettingError, "unknown_phrase", f'"{prompt}"', '"optic disc"'):
        refuse_unknown([*TINY, prompt], TINY, "tiny")
    assert match(prompt, None) == match(prompt, [prompt])  # an open vocabulary


@pytest.mark.parametrize(
    ("prompt", "phrases", "asked"),
    [
        ("vessel", ["vessels"], "vessels"),  # the model's phrase may be the plural
        ("branches", ["branch"], "branch"),
        ("artery", ["arteries"], "arteries"),
        ("stenoses", ["stenosis"], "stenosis"),
        ("Vessels on the left", ["the vessel on the left"], "the vessel on the left"),
        ("veins", ["vein", "veins"], "veins"),
        ("VEINS", ["vein", "veins"], "veins"),  # the spelling counts before the plural
        ("血 管", ["血管"], "血管"),
        ("STRASSE", ["Straße"], "Straße"),
    ],
)
def test_plurals_and_spellings_match_in_both_directions(prompt: str, phrases: list[str], asked: str) -> None:
    assert (match(prompt, phrases).asked, match(prompt, phrases).unknown) == (asked, False)


@pytest.mark.parametrize("phrases", [["Vein", "vein"], ["vein", "the vein"]])
def test_a_prompt_that_could_mean_two_phrases_is_unknown(phrases: list[str]) -> None:
    assert match("VEIN", phrases).unknown


def test_a_model_that_knows_nothing_marks_everything() -> None:
    assert match("vessel", []).unknown
    assert "no phrase" in describe_prompts(["vessel"], [], "new")[0]


def test_notes_name_the_nearest_phrase_and_count_long_lists() -> None:
    (note,) = describe_prompts(["blood vesel", "unicorn", "blood vesel"], TINY, "tiny")
    assert '"blood vesel" (nearest: "blood vessel")' in note
    [sentence] = describe_prompts(["segment the Blood Vessels please"], ["blood vessel"], "tiny")
    assert '(nearest: "blood vessel")' in sentence
    assert '"unicorn";' in note
    assert note.count("vesel") == 1
    many = [f"phrase {index}" for index in range(30)]
    assert "and 20 more" in describe_prompts(many, TINY, "tiny")[0]
    assert describe_prompts(TINY, TINY, "tiny") == []
    assert describe_prompts(UNKNOWN, None, "official") == []


def test_help_and_readmes_list_the_phrases_of_tiny(capsys: pytest.CaptureFixture[str]) -> None:
    card = resolve_model("tiny").card
    assert card is not None
    assert card.phrases == TINY
    with pytest.raises(SystemExit):
        main(["predict", "--help"])
    help_text = " ".join(capsys.readouterr().out.split())
    root = Path(__file__).parents[1]
    texts = [help_text, *((root / name).read_text(encoding="utf-8") for name in ("README.md", "README.zh-CN.md"))]
    for text in texts:
        assert [phrase for phrase in TINY if phrase not in text] == []


@pytest.fixture(scope="module")
def angiograms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phrases") / "data"
    write_dataset(folder, 2, size=128, num_workers=0)
    return folder


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, dict[str, object], str]:
    """Exit code, JSON result and stderr of a command."""
    code = main([*map(str, arguments), "--json"])
    out, err = capsys.readouterr()
    return code, json.loads(out.splitlines()[-1]), err


def lines_of(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


ASKED = ("Blood Vessels", "unicorn", "血管", "catheter")


def test_predict_marks_counts_and_evaluates_unknown_phrases(
    angiograms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    prompts = [word for prompt in ASKED for word in ("--prompt", prompt)]
    code, summary, _ = run(
        capsys, "predict", "tiny", angiograms / "images", *prompts, "--save", "rle", "--out", tmp_path / "masks"
    )
    assert code == 0
    assert [record.levelname for record in caplog.records if "does not know" in record.getMessage()] == ["WARNING"]
    assert [record for record in caplog.records if 'asked as "blood vessel"' in record.getMessage()]
    assert summary["unknown_phrases"] == {"unicorn": 2, "血管": 2}
    lines = lines_of(tmp_path / "masks" / "predictions.jsonl")
    assert [line.get("unknown_phrase", False) for line in lines] == [False, True, True, False] * 2
    assert [line.get("phrase") for line in lines] == ["blood vessel", None, None, None] * 2
    written = json.loads((tmp_path / "masks" / "run.json").read_text(encoding="utf-8"))
    assert (written["unknown_phrases"], written["same_masks"]) == (summary["unknown_phrases"], summary["same_masks"])

    caplog.clear()
    stored = ("--predictions", tmp_path / "masks", angiograms, "--prompt", "unicorn", "--num-workers", 0)
    code, metrics, _ = run(capsys, "evaluate", *stored, "--out", tmp_path / "stored")
    assert (code, metrics["unknown_phrases"]) == (0, {"unicorn": 2})
    assert "does not know" in caplog.text


def test_evaluate_tune_and_compare_mark_unknown_phrases(
    angiograms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    data = (angiograms, "--prompt", "liver", "--num-workers", 0, "--limit", 1)
    code, metrics, _ = run(capsys, "evaluate", "tiny", *data, "--out", tmp_path / "liver")
    assert (code, metrics["unknown_phrases"]) == (0, {"liver": 1})
    shutil.copytree(tmp_path / "liver", tmp_path / "again")
    rows = lines_of(tmp_path / "liver" / "samples.jsonl")
    assert [row["unknown_phrase"] for row in rows] == [True]
    page = (tmp_path / "liver" / "report.html").read_text(encoding="utf-8")
    assert "phrases that the model does not know" in page
    assert "· unknown phrase" in page
    code, compared, _ = run(capsys, "compare", tmp_path / "liver", tmp_path / "again", "--out", tmp_path / "compared")
    assert sum("does not know" in note for note in compared["notes"]) == 2

    caplog.clear()
    tune = ("tune", "tiny", angiograms, "--prompt", "liver", "--out", tmp_path / "bundle")
    code, tuned, err = run(capsys, *tune)
    assert (code, tuned["unknown_phrases"]) == (0, ["liver"])
    assert "tuned on phrases that the model does not know" in err
    assert "does not know" in caplog.text


@pytest.mark.parametrize("verb", ["predict", "evaluate", "tune"])
def test_strict_phrases_refuse_before_any_image_is_read(
    verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(b"not an image")  # reading it would fail with another code
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "a.png").write_bytes(b"not an image")
    data = tmp_path / "images" if verb == "predict" else tmp_path
    command = (verb, "tiny", data, "--prompt", "unicorn", "--strict-phrases", "--out", tmp_path / "out")
    code, result, _ = run(capsys, *command)
    assert (code, result["error"]["code"]) == (1, "unknown_phrase")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_devices_warn_once(angiograms: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    command = ["predict", "tiny", str(angiograms / "images"), "--prompt", "unicorn", "--out", str(tmp_path / "out")]
    assert main([*command, "--devices", "cpu,cpu", "--batch-size", "1", "--save", "rle"]) == 0
    out, err = capfd.readouterr()
    assert (out + err).count("does not know") <= 1  # the parent's logger warns; the processes do not
    assert "2 for unknown phrases" in out


def test_python_marks_predictions_and_warns_once(caplog: pytest.LogCaptureFixture) -> None:
    predictor = load_predictor("tiny", device="cpu")
    image = Image.fromarray(np.full((64, 64, 3), 128, np.uint8))
    known, respelled, unknown = predictor(image, ["catheter", "Catheters", "unicorn"])
    assert (known.prompt, known.phrase, known.unknown_phrase) == ("catheter", "", False)
    assert (respelled.prompt, respelled.phrase, respelled.unknown_phrase) == ("Catheters", "catheter", False)
    assert (unknown.prompt, unknown.phrase, unknown.unknown_phrase) == ("unicorn", "", True)
    np.testing.assert_array_equal(known.logits, respelled.logits)
    assert (known.label, unknown.label) == ("catheter", "unicorn (unknown phrase)")
    assert [", unknown phrase>" in repr(each) for each in (known, unknown)] == [False, True]
    assert caplog.text.count("does not know") == 1
    predictor(image, "unicorn")
    assert caplog.text.count("does not know") == 1
    with raises_code(SettingError, "unknown_phrase"):
        load_predictor("tiny", device="cpu", strict_phrases=True)(image, "unicorn")


class KnowsVessels(Bright):
    """Gives every prompt the same mask, and lists one phrase."""

    @property
    def description(self) -> ModelDescription:
        return replace(super().description, phrases=("vessel",))

    def answer(self, item: Item, prompt: str) -> Prediction:
        return super().answer(item, prompt).labeled(match(prompt, ("vessel",)))


def test_counts_of_a_continued_job_are_those_of_the_whole_job(tmp_path: Path) -> None:
    draw_squares(tmp_path / "in", 5)
    (tmp_path / "in" / "001.png").write_bytes(b"broken")
    images = find_images([tmp_path / "in"])
    prompts = ("vessels", "liver")
    with pytest.raises(KeyboardInterrupt):
        write_predictions(KnowsVessels(1, stop_at="003"), images, prompts, tmp_path / "out")
    continued = write_predictions(KnowsVessels(1), images, prompts, tmp_path / "out")
    whole = write_predictions(KnowsVessels(1), images, prompts, tmp_path / "whole")
    for summary in (continued, whole):
        assert summary["unknown_phrases"] == {"liver": 5}  # also where the image is broken
        assert summary["same_masks"] == [{"prompts": ["vessels", "liver"], "same": 4, "images": 4}]
    failed = [line for line in lines_of(tmp_path / "out" / "predictions.jsonl") if line["status"] == "failed"]
    assert [(line.get("phrase"), line.get("unknown_phrase")) for line in failed] == [("vessel", None), (None, True)]


def test_prompts_with_the_same_mask_are_reported_for_every_model(
    angiograms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ("--prompt", "vessel", "--prompt", "bone", "--save", "rle")
    code, summary, err = run(capsys, "predict", "frangi", angiograms / "images", *asked, "--out", tmp_path / "masks")
    expected = [{"prompts": ["vessel", "bone"], "same": 2, "images": 2}]
    assert (code, summary["same_masks"], summary["unknown_phrases"]) == (0, expected, {})
    assert '"vessel" and "bone" on 2 of 2 images' in err
    command = ("evaluate", "frangi", angiograms, "--num-workers", 0, "--limit", 1, "--out", tmp_path / "scores")
    code, metrics, _ = run(capsys, *command)
    assert metrics["same_masks"] == [{"prompts": ["blood vessel", "catheter"], "same": 1, "images": 1}]
    assert any("same mask" in note for note in metrics["notes"])
    assert "same_mask_as" in (tmp_path / "scores" / "samples.csv").read_text(encoding="utf-8-sig")
