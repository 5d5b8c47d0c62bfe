"""The proof of a conversion: the entries of `conversion.json`, and their summary for a terminal."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

from vesalius.conversion.lora import check_merge
from vesalius.conversion.prepare import Conversion, Training
from vesalius.lineage import TensorHash, fingerprint_hashes, hash_file
from vesalius.models.cards import CARD, read_card
from vesalius.models.tensor_differences import SHOWN
from vesalius.phrases import list_phrases


def describe(conversion: Conversion) -> dict[str, Any]:
    """Entries of the proof on key mapping, sizes, dtypes and configuration files."""
    renamed, dropped = conversion.key_mapping
    components: Counter[str] = Counter()
    dtypes: Counter[str] = Counter()
    for name, tensor in conversion.canonical.tensors.items():
        components[name.partition(".")[0]] += math.prod(tensor.shape)
        dtypes[tensor.dtype] += 1
    return {
        "model": conversion.model.spec.name,
        "keys": {
            "read": len(renamed) + len(dropped),
            "written": len({*conversion.outgoing.tensors} | {name for names in renamed.values() for name in names}),
            "renamed": renamed,
            "dropped": dropped,
        },
        "parameters": {**components, "total": components.total()},
        "tensors_of_dtype": dict(dtypes),
        "bytes": conversion.n_weight_bytes,
        "config_files": {"verbatim": conversion.config_files.names, "left_out": conversion.config_files.left_out},
        "not_kept": _not_kept(conversion),
    }


def _not_kept(conversion: Conversion) -> dict[str, Any]:
    """Entries of a bundle's card that the official layout cannot hold."""
    if conversion.to == "vesalius" or not (conversion.model.folder / CARD).is_file():
        return {}
    card = read_card(conversion.model.folder)
    facts = {
        "threshold": None if card.threshold == 0.5 else card.threshold,
        "phrases": list(card.phrases or ()),
        "training_images": len(card.training_images or ()),
        "tuning_images": len(card.tuning_images),
    }
    return {name: value for name, value in facts.items() if value}


def compare(before: Mapping[str, TensorHash], after: Mapping[str, TensorHash]) -> dict[str, Any]:
    """Numbers of changed, unchanged, removed and added tensors by hash, and the first changed names."""
    changed = sorted(name for name in before.keys() & after.keys() if before[name][1:] != after[name][1:])
    return {
        "fingerprint": fingerprint_hashes(before),
        "changed": len(changed),
        "unchanged": len(before.keys() & after.keys()) - len(changed),
        "only_in_base": len(before.keys() - after.keys()),
        "only_in_result": len(after.keys() - before.keys()),
        "first_changed": changed[:SHOWN],
    }


def describe_training(training: Training) -> dict[str, Any]:
    """Entries of the proof on a training checkpoint: step, LoRA rank and alpha, merge error on random inputs."""
    checkpoint, alpha = training.checkpoint, training.alpha
    merge = check_merge(training.merged)
    return {
        "sha256": hash_file(checkpoint.path),
        "step": checkpoint.step,
        "lora_rank": checkpoint.rank,
        "lora_alpha": None if alpha is None else alpha.value,
        "lora_alpha_from": None if alpha is None else alpha.origin,
        "lora": "kept as an adapter" if training.keeps_adapter else f"merged into {len(merge.merged)} weights",
        "merged_weights": len(merge.merged),
        "largest_relative_merge_error": merge.error,
        "worst_merged": merge.worst,
        "remarks": merge.remarks,
    }


def summarize(proof: Mapping[str, Any]) -> list[str]:
    """The proof as text lines for the terminal."""
    keys = proof["keys"]
    lines = [
        f"{proof['result']}: {proof['model']}, {proof['bytes'] / 1e9:.2f} GB of weights",
        f"keys: {keys['read']} read, {len(keys['renamed'])} renamed, {len(keys['dropped'])} dropped, {keys['written']} written",
        *_by_reason("dropped", keys["dropped"]),
        "parameters: " + ", ".join(f"{name} {count:,}" for name, count in proof["parameters"].items()),
        "tensors: " + ", ".join(f"{count} {dtype}" for dtype, count in proof["tensors_of_dtype"].items()),
        f"configuration files: {len(proof['config_files']['verbatim'])} copied verbatim",
        *_by_reason("left out", proof["config_files"]["left_out"]),
        *(
            f"not kept, because the official layout cannot store it: {name} "
            f"{list_phrases(value) if name == 'phrases' else value}"
            for name, value in proof["not_kept"].items()
        ),
    ]
    if training := proof["training"]:
        lines += _summarize_training(training)
    if base := proof["base"]:
        others = base["changed"] + base["only_in_base"] + base["only_in_result"]
        lines.append(
            f"compared with {base['model']}: {base['changed']} tensors changed, {base['unchanged']} unchanged, "
            f"{base['only_in_base']} removed, {base['only_in_result']} added"
            if others
            else f"equal to {base['model']}: no tensor differs"
        )
    probed = proof["parity"].get("largest_difference")
    lines.append(
        f"parity check: skipped, because {proof['parity']['skipped']}"
        if probed is None
        else f"parity check: largest difference of the outputs {max(probed.values()):.1e}"
    )
    prints = proof["fingerprints"]
    if prints["source"] == prints["result"]:
        return [*lines, f"fingerprint of source and result: {prints['result']}"]
    return [*lines, f"fingerprint of the result, adapter included: {prints['result']}"]


def _by_reason(verb: str, reasons: Mapping[str, str]) -> list[str]:
    """One line per reason, with the first names."""
    names: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        names.setdefault(reason, []).append(name)
    return [
        f"{verb}: {', '.join(found[:SHOWN])}{' ...' if len(found) > SHOWN else ''} ({reason})"
        for reason, found in names.items()
    ]


def _summarize_training(training: Mapping[str, Any]) -> list[str]:
    if training["lora_rank"] is None:
        return ["LoRA: none", *training["remarks"]]
    error = f"; merge error {training['largest_relative_merge_error']:.1e} of the largest output"
    return [
        f"LoRA: rank {training['lora_rank']}, alpha {training['lora_alpha']:g} ({training['lora_alpha_from']}), "
        f"{training['lora']}{error if training['merged_weights'] else ''}",
        *training["remarks"],
    ]
