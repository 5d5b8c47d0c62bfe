"""The exponential moving average of weights: values by hand, and bit-exact restoration."""

import io

import numpy as np
import torch

from vesalius.training.ema import WeightAverage


def parameters() -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((3, 4), (5,))]


def walk(weights: list[torch.nn.Parameter], average: WeightAverage, steps: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _ in range(steps):
            for each in weights:
                each.add_(torch.randn(each.shape, generator=generator))
            average.update()


def test_the_average_by_hand() -> None:
    (weight,) = [torch.nn.Parameter(torch.tensor([1.0], dtype=torch.float64))]
    average = WeightAverage([weight], decay=0.5)
    expected, values = 1.0, np.linspace(2, 9, 30)
    for number, value in enumerate(values, start=1):
        with torch.no_grad():
            weight.fill_(value)
        average.update()
        kept = min(0.5, (1 + number) / (10 + number))
        expected = kept * expected + (1 - kept) * value
    with average.applied():
        assert abs(weight.item() - expected) < 1e-12
    assert weight.item() == values[-1]


def test_weights_are_restored_exactly_after_an_error() -> None:
    weights = parameters()
    average = WeightAverage(weights, 0.9)
    walk(weights, average, 5, seed=1)
    before = [each.detach().clone() for each in weights]
    try:
        with average.applied():
            assert not torch.equal(weights[0], before[0])
            raise KeyError
    except KeyError:
        pass
    assert all(torch.equal(a, b) for a, b in zip(weights, before, strict=True))


def test_a_state_saved_while_the_average_is_applied_resumes_exactly() -> None:
    weights = parameters()
    average = WeightAverage(weights, 0.9)
    walk(weights, average, 4, seed=1)
    file = io.BytesIO()
    with average.applied():
        torch.save(average.state_dict(), file)
    walk(weights, average, 4, seed=2)

    file.seek(0)
    others = parameters()
    resumed = WeightAverage(others, 0.9)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    walk(others, resumed, 4, seed=2)
    for mine, theirs in zip(average.state_dict()["average"], resumed.state_dict()["average"], strict=True):
        assert torch.equal(mine, theirs)
    assert all(torch.equal(a, b) for a, b in zip(weights, others, strict=True))
