"""Agreement with MONAI, torchmetrics, pycocotools, trackeval, and stored results of surface-distance and panoptica.

If a library defines a metric differently, its definition is computed here from our distances, so that the distances are
compared and the difference in definition is explicit.
"""

from __future__ import annotations

import base64
import json
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools import mask as coco
from scipy.ndimage import binary_dilation, distance_transform_edt
from skimage.measure import label
from skimage.morphology import diamond, skeletonize

from vesalius.evaluation import surface, video
from vesalius.evaluation.calibration import average_precision, brier_score, expected_calibration_error, histogram
from vesalius.evaluation.centerline import cldice
from vesalius.evaluation.metrics import score
from vesalius.evaluation.overlap import ReferringMetrics, confusion
from vesalius.evaluation.shape import Shape
from vesalius.evaluation.surface import surface_distances

with warnings.catch_warnings():  # they use deprecated functions
    warnings.simplefilter("ignore")
    import monai.metrics as monai
    from torchmetrics.functional import classification as torchmetrics

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "distances.json").read_text(encoding="utf-8"))
SPACINGS = (None, (0.3, 0.3), (0.5, 0.25))

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:monai"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


def batch(mask: np.ndarray) -> torch.Tensor:
    # not bool: MONAI adds both masks and looks for 2; True + True is not 2, and it silently returns 0
    return torch.from_numpy(mask.astype(np.float32))[None, None]


def unpacked(text: str, size: tuple[int, int]) -> np.ndarray:
    bits = np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype=np.uint8)
    return np.unpackbits(bits, count=size[0] * size[1]).reshape(size).astype(bool)


def test_monai_has_the_same_overlap(vessel_pairs):
    names = ["precision", "recall", "specificity", "accuracy", "balanced accuracy"]
    for target, prediction in vessel_pairs:
        ours = score(target, prediction)
        counts = monai.get_confusion_matrix(batch(prediction), batch(target))
        theirs = {name: float(monai.compute_confusion_matrix_metric(name, counts)) for name in names}
        theirs["dice"] = float(monai.compute_dice(batch(prediction), batch(target)))
        theirs["iou"] = float(monai.compute_iou(batch(prediction), batch(target)))
        for name, value in theirs.items():
            assert ours[name.replace(" ", "_")] == pytest.approx(value, abs=1e-6), name


def test_torchmetrics_has_the_same_overlap(vessel_pairs):
    theirs = {
        "dice": torchmetrics.binary_f1_score,
        "iou": torchmetrics.binary_jaccard_index,
        "precision": torchmetrics.binary_precision,
        "recall": torchmetrics.binary_recall,
        "specificity": torchmetrics.binary_specificity,
        "accuracy": torchmetrics.binary_accuracy,
    }
    for target, prediction in vessel_pairs:
        ours = score(target, prediction)
        for name, metric in theirs.items():
            value = float(metric(batch(prediction).int(), batch(target).int()))
            assert ours[name] == pytest.approx(value, abs=1e-6), name


@pytest.mark.parametrize("spacing", SPACINGS)
def test_monai_has_the_same_distances(vessel_pairs, spacing):
    unit = "px" if spacing is None else "mm"
    for target, prediction in vessel_pairs:
        ours = score(target, prediction, spacing_mm=spacing)
        masks, options = (batch(prediction), batch(target)), {"spacing": spacing}
        theirs = {
            "hd_": monai.compute_hausdorff_distance(*masks, **options),
            "hd95_": monai.compute_hausdorff_distance(*masks, percentile=95, **options),
            "assd_": monai.compute_average_surface_distance(*masks, symmetric=True, **options),
            "nsd_1": monai.compute_surface_dice(*masks, [1.0], **options),
            "nsd_2": monai.compute_surface_dice(*masks, [2.0], **options),
        }
        for name, value in theirs.items():
            assert ours[name + unit] == pytest.approx(float(value), rel=1e-5), name


@pytest.mark.parametrize("golden", GOLDEN["pairs"], ids=range(len(GOLDEN["pairs"])))
def test_panoptica_has_the_same_distances_and_other_averages(golden):
    target, prediction = (unpacked(golden[name], golden["size"]) for name in ("target", "prediction"))
    distances = surface_distances(Shape(target), Shape(prediction), spacing=tuple(golden["spacing"]))
    both = np.concatenate([distances.from_target, distances.from_prediction])
    theirs = golden["panoptica"]

    assert surface.hd(distances) == pytest.approx(theirs["hd"])
    assert np.percentile(both, 95) == pytest.approx(theirs["hd95"])  # over both directions together
    assert (distances.from_target.mean() + distances.from_prediction.mean()) / 2 == pytest.approx(theirs["assd"])
    for tolerance, value in zip(GOLDEN["tolerances"], theirs["nsd"], strict=True):  # mean of both directions
        shares = [(each <= tolerance).mean() for each in (distances.from_target, distances.from_prediction)]
        assert np.mean(shares) == pytest.approx(value)
    if theirs["cldice"] is not None:
        assert cldice(Shape(target), Shape(prediction)) == pytest.approx(theirs["cldice"])


@pytest.mark.parametrize("golden", GOLDEN["pairs"], ids=range(len(GOLDEN["pairs"])))
def test_surface_distance_differs_little_by_its_contour_length(golden):
    # its contour runs along pixel corners: half a pixel further out, and weighted by length
    target, prediction = (unpacked(golden[name], golden["size"]) for name in ("target", "prediction"))
    distances = surface_distances(Shape(target), Shape(prediction), spacing=tuple(golden["spacing"]))
    theirs, pixel = golden["surface_distance"], max(golden["spacing"])

    assert surface.hd(distances) == pytest.approx(theirs["hd"], abs=1.5 * pixel)
    assert surface.hd95(distances) == pytest.approx(theirs["hd95"], abs=2 * pixel)
    means = [distances.from_target.mean(), distances.from_prediction.mean()]
    assert means == pytest.approx(theirs["asd"], abs=0.75 * pixel)
    for tolerance, value in zip(GOLDEN["tolerances"], theirs["nsd"], strict=True):
        assert surface.nsd(distances, tolerance) == pytest.approx(value, abs=0.15)


def test_centerline_metrics_agree_with_scikit_image(vessel_pairs):
    for target, prediction in vessel_pairs:
        ours = score(target, prediction)
        line, other = skeletonize(target), skeletonize(prediction)
        sensitivity, precision = prediction[line].mean(), target[other].mean()
        width = 2 * distance_transform_edt(target)
        thin = line & (width <= 2)

        assert ours["topology_sensitivity"] == ours["skeleton_recall"] == sensitivity
        assert ours["topology_precision"] == precision
        assert ours["cldice"] == pytest.approx(2 * precision * sensitivity / (precision + sensitivity))
        assert ours["skeleton_recall_over_8px"] == pytest.approx(prediction[line & (width > 8)].mean())
        assert ours["skeleton_recall_to_2px"] == (pytest.approx(prediction[thin].mean()) if thin.any() else None)


def test_betti_errors_and_breaks_agree_with_scikit_image_labels(vessel_pairs):
    for target, prediction in vessel_pairs:
        ours = score(target, prediction)
        components = [label(mask, connectivity=2, return_num=True)[1] for mask in (target, prediction)]
        holes = [label(~np.pad(mask, 1), connectivity=1, return_num=True)[1] - 1 for mask in (target, prediction)]

        assert ours["betti0_error"] == abs(components[0] - components[1])
        assert ours["betti1_error"] == abs(holes[0] - holes[1])
        vessels, line = label(target, connectivity=2), skeletonize(target)
        near = label(prediction & binary_dilation(target, diamond(2)), connectivity=2)
        met = [np.unique(near[line & (vessels == vessel) & (near > 0)]) for vessel in range(1, components[0] + 1)]
        assert ours["breaks"] == sum(abs(len(each) - 1) for each in met)


def test_pycocotools_has_the_same_giou_and_ciou(vessel_pairs):
    referring = ReferringMetrics()
    ious, shared, union = [], 0, 0
    for target, prediction in vessel_pairs:
        referring.add(confusion(target, prediction))
        runs = [coco.encode(np.asfortranarray(mask, dtype=np.uint8)) for mask in (target, prediction)]
        ious.append(coco.iou(runs[:1], runs[1:], [0])[0, 0])
        shared += int(coco.area(coco.merge(runs, intersect=True)))
        union += int(coco.area(coco.merge(runs)))

    assert referring.giou == pytest.approx(np.mean(ious))
    assert referring.ciou == pytest.approx(shared / union)


@pytest.mark.parametrize("sharpness", [0.2, 2.0, 8.0, 30.0])
def test_torchmetrics_has_the_same_calibration_up_to_binning(sharpness):
    rng = np.random.default_rng(0)
    target = rng.random((300, 300)) < 0.1
    logits = sharpness * (rng.normal(size=target.shape) + 2.0 * target - 1.5)
    probabilities = (1 / (1 + np.exp(-logits))).astype(np.float32)
    tensors = torch.from_numpy(probabilities).ravel(), torch.from_numpy(target).ravel().int()

    counts = histogram(probabilities, target)

    exact = float(torchmetrics.binary_average_precision(*tensors))
    assert average_precision(counts) == pytest.approx(exact, abs=1e-3)
    error = float(torchmetrics.binary_calibration_error(*tensors, n_bins=10, norm="l1"))
    assert expected_calibration_error(counts) == pytest.approx(error, abs=1e-3)
    brier = float(((tensors[0] - tensors[1]) ** 2).mean())
    assert brier_score(counts) == pytest.approx(brier, abs=1e-3)


def test_trackeval_has_the_same_j_and_f(vessel_pairs):
    metrics = pytest.importorskip("trackeval.metrics", reason="trackeval is not installed (extra `dev`)")
    target = np.stack([pair[0] for pair in vessel_pairs] + [np.zeros((128, 128), bool)] * 2)
    prediction = np.stack([pair[1] for pair in vessel_pairs] + [np.zeros((128, 128), bool), vessel_pairs[0][1]])

    theirs = metrics.JAndF().eval_sequence(tracks(target, prediction))
    ours = video.score(target, prediction)

    assert ours["j"] == pytest.approx(theirs["J-Mean"])
    assert ours["f"] == pytest.approx(theirs["F-Mean"])
    assert ours["j_and_f"] == pytest.approx(theirs["J&F"])


def tracks(target: np.ndarray, prediction: np.ndarray) -> dict:
    """One object in the format of trackeval."""
    runs = [
        [[coco.encode(np.asfortranarray(frame, dtype=np.uint8))] for frame in clip] for clip in (target, prediction)
    ]
    ids = [np.array([0]) for _ in target]
    return {
        "num_timesteps": len(target),
        "num_gt_ids": 1,
        "num_tracker_ids": 1,
        "gt_ids": ids,
        "tracker_ids": ids,
        "gt_dets": runs[0],
        "tracker_dets": runs[1],
    }
