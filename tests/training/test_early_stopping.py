"""What the validations of a run say, by hand."""

from typing import Any

import pytest

from vesalius.errors import TrainingError
from vesalius.training.early_stopping import (
    best_line,
    check_changed,
    compare_with_start,
    is_best,
    judge_overfit,
    judge_phrases,
    validations_since_best,
)


def lines(*values: float | None, metric: str = "dice", first: int = 10) -> list[dict[str, Any]]:
    return [{"step": first + 10 * i, metric: value, "n": 8} for i, value in enumerate(values)]


def test_the_best_is_the_highest_dice_and_the_lowest_distance() -> None:
    values = (0.3, 0.7, 0.5)
    assert best_line(lines(*values), "dice")["step"] == 20  # type: ignore[index]
    assert best_line(lines(*values, metric="hd95_px"), "hd95_px")["step"] == 10  # type: ignore[index]


def test_of_equal_validations_the_first_is_best_and_one_without_a_value_is_not() -> None:
    assert best_line(lines(None, 0.7, 0.7), "dice")["step"] == 20  # type: ignore[index]
    assert best_line(lines(None, None), "dice") is None
    assert is_best(lines(0.1, 0.2), "dice")
    assert not is_best(lines(0.2, 0.2), "dice")
    assert not is_best(lines(0.2, None), "dice")
    assert is_best(lines(None, None), "dice")


def test_the_start_does_not_compete_but_is_compared_with() -> None:
    told = lines(0.8, 0.5, 0.6, first=0)
    assert best_line(told, "dice")["step"] == 20  # type: ignore[index]
    assert (
        compare_with_start(told, "dice")
        == "NOT better than its start: Dice 0.6 at step 20, 0.8 before training; train longer, lower optim.lr, or look at the data with "
        "vesalius check"
    )
    assert compare_with_start(lines(9.0, 4.0, metric="hd95_px", first=0), "hd95_px") == (
        "better than its start: HD95 4 at step 10, 9 before training"
    )
    assert compare_with_start(lines(0.4, 0.5), "dice") is None


def test_patience_counts_validations_after_the_best() -> None:
    assert validations_since_best(lines(0.5, 0.7, 0.6, 0.7), "dice") == 2
    assert validations_since_best(lines(0.5, 0.7), "dice") == 0
    assert validations_since_best(lines(None, None), "dice") == 0
    assert validations_since_best(lines(0.9, 0.5, first=0), "dice") == 0


def test_validations_that_agree_to_the_bit_stop_the_run() -> None:
    told = [{"step": 0, "fingerprint": "ab"}, {"step": 5, "fingerprint": "ab"}]
    with pytest.raises(
        TrainingError, match="step 0 and step 5 agree to the last bit: training does not reach"
    ):
        check_changed(told)
    check_changed(told[:1])
    check_changed([*told, {"step": 9, "fingerprint": "cd"}])
    check_changed([told[0], {"step": 0, "fingerprint": "ab"}])  # nothing was trained between them


def test_overfit_ends_with_a_verdict() -> None:
    assert judge_overfit(lines(0.2, 0.93)).startswith(
        "learned by heart: mean Dice 0.930 on 8 answers at step 20"
    )
    assert judge_overfit(lines(0.2, 0.89)).startswith("not learned by heart: mean Dice 0.890 on 8 answers")
    assert judge_overfit(lines(None)).startswith("not learned by heart: no Dice could be computed")


def test_a_phrase_that_decides_nothing_is_told_of_once() -> None:
    def line(answers: float | None, truths: float | None) -> dict[str, Any]:
        return {"step": 30, "prediction_similarity": answers, "target_similarity": truths}

    def told(*lines: dict[str, Any], fitted: bool = False) -> str | None:
        return judge_phrases(lines, fitted)

    assert told(line(0.9, 0.5)) == (
        "THE PHRASE DECIDES NOTHING at step 30: the masks of two phrases of an image agree to a Dice of 0.90, their truths "
        "to 0.50; for phrases that the model has not learned set projector: fitted and trainable: decoder"
    )
    assert "give it more steps" in (told(line(0.97, 0.02), fitted=True) or "")
    assert told(line(0.89, 0.02)) is None
    assert told(line(0.97, 0.51)) is None, "two words for one thing"
    assert told(line(None, None)) is None, "one phrase an image"
    assert told(line(0.97, 0.02), line(0.97, 0.02)) is None, "it was told of"
    assert told(line(0.5, 0.02), line(0.97, 0.02)) is not None
    assert told({"step": 30}, line(0.97, 0.02)) is not None, "a run that an earlier version began"
