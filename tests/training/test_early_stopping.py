"""Decisions from validation scores: best checkpoint, early stopping, overfit test, prompt collapse."""

from typing import Any

from tests.codes import raises_code

from vesalius.errors import TrainingError
from vesalius.training.early_stopping import (
    best_line,
    check_changed,
    compare_with_baseline,
    find_prompt_collapse,
    is_best,
    overfit_result,
    validations_since_best,
)


def lines(*values: float | None, metric: str = "dice", first: int = 10) -> list[dict[str, Any]]:
    return [{"step": first + 10 * i, metric: value, "n": 8} for i, value in enumerate(values)]


def test_the_best_is_the_highest_dice_and_the_lowest_distance() -> None:
    values = (0.3, 0.7, 0.5)
    assert best_line(lines(*values), "dice")["step"] == 20  # type: ignore[index]
    assert best_line(lines(*values, metric="hd95_px"), "hd95_px")["step"] == 10  # type: ignore[index]


def test_the_first_of_equal_validations_is_best_and_undefined_values_are_ignored() -> None:
    assert best_line(lines(None, 0.7, 0.7), "dice")["step"] == 20  # type: ignore[index]
    assert best_line(lines(None, None), "dice") is None
    assert is_best(lines(0.1, 0.2), "dice")
    assert not is_best(lines(0.2, 0.2), "dice")
    assert not is_best(lines(0.2, None), "dice")
    assert is_best(lines(None, None), "dice")


def test_step_0_is_never_the_best_but_is_the_baseline() -> None:
    found = lines(0.8, 0.5, 0.6, first=0)
    assert best_line(found, "dice")["step"] == 20  # type: ignore[index]
    assert (compare_with_baseline(found, "dice") or "").startswith(
        "NOT better than before training: Dice 0.6 at step 20, 0.8 before training; "
    )
    assert compare_with_baseline(lines(9.0, 4.0, metric="hd95_px", first=0), "hd95_px") == (
        "better than before training: HD95 4 at step 10, 9 before training"
    )
    assert compare_with_baseline(lines(0.4, 0.5), "dice") is None


def test_patience_counts_validations_after_the_best() -> None:
    assert validations_since_best(lines(0.5, 0.7, 0.6, 0.7), "dice") == 2
    assert validations_since_best(lines(0.5, 0.7), "dice") == 0
    assert validations_since_best(lines(None, None), "dice") == 0
    assert validations_since_best(lines(0.9, 0.5, first=0), "dice") == 0


def test_identical_validations_stop_the_run() -> None:
    found = [{"step": 0, "fingerprint": "ab"}, {"step": 5, "fingerprint": "ab"}]
    with raises_code(TrainingError, "unchanged_predictions", "step 0 and step 5"):
        check_changed(found)
    check_changed(found[:1])
    check_changed([*found, {"step": 9, "fingerprint": "cd"}])
    check_changed([found[0], {"step": 0, "fingerprint": "ab"}])  # nothing was trained between them


def test_the_overfit_test_passes_from_a_dice_of_0_9_on() -> None:
    assert overfit_result(lines(0.2, 0.93)).startswith("overfit test passed: mean Dice 0.930 on 8 answers at step 20")
    assert overfit_result(lines(0.2, 0.89)).startswith("overfit test failed: mean Dice 0.890 on 8 answers")
    assert overfit_result(lines(None)).startswith("overfit test failed: Dice is undefined")


def test_prompt_collapse_is_reported_where_it_lasts() -> None:
    def warning(*similarities: tuple[float | None, float | None], **about: bool) -> str | None:
        found = [
            {"step": 10 * number, "prediction_similarity": predictions, "target_similarity": targets}
            for number, (predictions, targets) in enumerate(similarities)
        ]
        return find_prompt_collapse(found, **{"refitted": False, "from_random": False, **about})

    one, different = (0.97, 0.02), (0.89, 0.02)
    assert warning(one) is None and warning(one, one) is None, "usual in the first validations"
    assert warning((0.9, 0.5), (0.9, 0.5), (0.9, 0.5)) == (
        "prompt collapse from step 0 to 20: different phrases give the same mask (Dice between predictions 0.90, between "
        "targets 0.50); for phrases that are new to the model set projector: fitted and trainable: decoder"
    )
    assert "from step 10 to 30" in (warning(different, one, one, one) or "")
    assert warning(one, one, one, one) is None, "already reported"
    assert warning(one, one, different) is None
    assert warning((0.97, 0.51), (0.97, 0.51), (0.97, 0.51)) is None, "synonyms"
    assert warning((None, None), (None, None), (None, None)) is None, "one phrase per image"

    assert "prompt collapse at step 0:" in (warning(one, ended=True) or "")
    assert "from step 0 to 30" in (warning(one, one, one, one, ended=True) or "")
    assert warning(one, one, one, ended=True) is None, "reported a moment ago"
    assert warning(one, one, different, ended=True) is None and warning(ended=True) is None

    def advice(**about: bool) -> str:
        return (warning(one, one, one, **about) or "").partition("; ")[2]

    assert (
        advice(from_random=True)
        == "train more steps, which random weights need until phrases differ, or set projector: fitted"
    )
    assert advice(from_random=True, refitted=True) == "train more steps"
    assert advice(refitted=True) == "train more steps, and keep the language model frozen (trainable: decoder)"
