"""Read a training checkpoint (`iter_NNNN.pth` of mmengine and xtuner) without executing any of its pickled code.

The file holds a state dict of the trained tensors, under the trainer's keys, and pickled objects of the trainer. Its
tensors are read under official keys: full tensors, which replace the base's, and LoRA pairs.
"""

from __future__ import annotations

import math
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple

import torch

from vesalius.errors import CheckpointError, SettingError
from vesalius.models.weights import TORCH_TYPES
from vesalius.names import list_names


class Inert:
    """Placeholder for the trainer's pickled objects: accepts any arguments and state, and ignores them.

    Calling the class only creates another placeholder, so that a pickled `getattr(module, name)` reaches nothing. It
    has no `__dict__`, so that a pickle cannot replace its methods.
    """

    __slots__ = ()

    def __new__(cls, *arguments: Any) -> Inert:
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        """Ignore the state."""

    def __repr__(self) -> str:
        return "<ignored object of the trainer>"


INERT = tuple(
    """
    builtins.getattr mmengine.logging.history_buffer.HistoryBuffer numpy.dtype numpy.ndarray
    numpy.core.multiarray._reconstruct numpy.core.multiarray.scalar
    numpy._core.multiarray._reconstruct numpy._core.multiarray.scalar
    """.split()
)
"""Classes and functions allowed in a pickle besides torch's own allowlist; `Inert` replaces them."""

PREFIXES = {
    "mllm.model.language_model.": "language_model.",
    "mllm.model.vision_model.": "vision_model.",
    "mllm.model.mlp1.": "mlp1.",
    "mllm.model.": "model.",  # families that the official layout leaves unrenamed
    "grounding_encoder.": "grounding_encoder.",
    "text_hidden_fcs.": "text_hidden_fcs.",
}
"""Prefix of the trainer's keys -> official prefix; the first match applies."""

LORA_NAME = re.compile(r"(.+)\.lora_([AB])(?:\.default)?\.weight")
REPLACED = (".original_module.", ".modules_to_save.default.")
PEFT_MARK = re.compile(r"lora_|base_model\.|base_layer\.|modules_to_save|original_module")

# patterns in the text of the training config, which is never executed
ALPHA_TEXT = re.compile(r"""\blora_alpha['"]?\s*[=:]\s*(\d+(?:\.\d+)?)""")
RANK_TEXT = re.compile(r"""(?<![\w.])r['"]?\s*[=:]\s*(\d+)\b""")
RSLORA_TEXT = re.compile(r"""\buse_rslora['"]?\s*[=:]\s*True\b""")


class Lora(NamedTuple):
    """Low-rank change of a weight (rows, columns): alpha / rank * `b @ a`."""

    a: torch.Tensor
    """(rank, columns)."""
    b: torch.Tensor
    """(rows, rank)."""

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the weight that LoRA changes."""
        return self.b.shape[0], self.a.shape[1]

    @property
    def rank(self) -> int:
        return self.a.shape[0]


class Alpha(NamedTuple):
    """LoRA's alpha, which the tensors do not determine, and its origin."""

    value: float
    origin: str


@dataclass(frozen=True)
class TrainingCheckpoint:
    """The trained tensors of a model, memory-mapped from the file."""

    path: Path
    full: Mapping[str, torch.Tensor]
    """Official key -> tensor that replaces the base's."""
    lora: Mapping[str, Lora]
    """Official key of a weight -> its LoRA; all have the same rank."""
    renamed: Mapping[str, str]
    """Key in the file -> official key, for each tensor that is used."""
    dropped: Mapping[str, str]
    """Key in the file -> reason why it is not used."""
    config: str
    """Text of the training config; empty if the file has none."""
    step: int | None
    """Training step; None if the file does not store it."""

    @property
    def rank(self) -> int | None:
        """Rank of every LoRA pair; None without LoRA."""
        return next((lora.rank for lora in self.lora.values()), None)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Official key -> shape of each tensor that the checkpoint replaces or changes by LoRA."""
        whole = {name: tuple(tensor.shape) for name, tensor in self.full.items()}
        return whole | {name: lora.shape for name, lora in self.lora.items()}

    def find_alpha(self, given: float | None) -> Alpha | None:
        """LoRA's alpha: `given`, else from the text of the training config; None without LoRA.

        SettingError if alpha is given without LoRA or not positive; CheckpointError if neither given nor stored.
        """
        if self.rank is None:
            if given is not None:
                raise SettingError.at(
                    self.path,
                    "holds no LoRA; leave out the LoRA alpha",
                    code="conflicting_settings",
                    field="lora_alpha",
                )
            return None
        if given is not None and not (given > 0 and math.isfinite(given)):
            raise SettingError(
                f"LoRA alpha {given} is not a positive number; the official value is 2 x rank",
                code="bad_value",
                field="lora_alpha",
            )
        found = {float(text) for text in ALPHA_TEXT.findall(self.config)}
        if given is not None:
            other = sorted(found - {given})
            differs = f", though the training config says {' and '.join(f'{each:g}' for each in other)}"
            return Alpha(given, "given" + (differs if other else ""))
        doubt = self._doubt(found)
        if doubt:
            raise CheckpointError.at(
                self.path,
                f"LoRA alpha is unknown: {doubt}; give it with --lora-alpha (officially 2 x rank, "
                f"{2 * self.rank} here)",
                code="unknown_lora_alpha",
                field="lora_alpha",
            )
        return Alpha(found.pop(), "text of the training config in the checkpoint")

    def _doubt(self, alphas: set[float]) -> str | None:
        """Reason why the training config does not determine alpha; None if alpha is certain."""
        ranks = {int(text) for text in RANK_TEXT.findall(self.config)}
        if not self.config:
            return "the file has no training config"
        if not alphas:
            return "the training config in the file does not state it"
        if len(alphas) > 1:
            return f"the training config in the file states {len(alphas)} values"
        if ranks and self.rank not in ranks:
            return f"the training config in the file has rank {min(ranks)}, the tensors {self.rank}"
        if RSLORA_TEXT.search(self.config):
            return "the training used rsLoRA, which scales by alpha / sqrt(rank)"
        return None


def open_training_checkpoint(path: Path) -> TrainingCheckpoint:
    """Read a training checkpoint; nothing in it is executed, and its tensors are memory-mapped.

    CheckpointError if the file is damaged, names code outside an allowlist, or has no weights, and if the key or shape
    of a tensor does not belong to a Sa2VA model.
    """
    _check_archive(path)
    loaded = _load(path)
    state = _state_dict(loaded, path)
    full, factors, renamed, dropped = _sort(state, path)
    holder = loaded if "state_dict" in loaded else {}
    return TrainingCheckpoint(
        path=path,
        full=full,
        lora=_pairs(factors, path),
        renamed=renamed,
        dropped=dropped,
        config=_config(holder),
        step=_step(holder),
    )


def _check_archive(path: Path) -> None:
    """Refuse a file that is not a torch.save archive or fails its checksums, which memory mapping does not verify."""
    if path.is_dir():
        raise _refusal(path, _folder_advice(path), code="not_a_checkpoint")
    try:
        with path.open("rb") as file:
            start = file.read(2)
        with zipfile.ZipFile(path) as archive:
            packed = next((each.filename for each in archive.infolist() if each.compress_type), None)
            damaged = packed or archive.testzip()
    except OSError as error:
        raise _refusal(path, f"cannot be read ({error.strerror})", code="unreadable_file") from error
    except Exception as error:  # zipfile raises arbitrary exceptions for a damaged archive
        if start == b"PK":
            raise _refusal(path, "is truncated or damaged; copy it again") from error
        problem = "is not a torch.save file (of torch 1.6 or later)" if start else "is empty"
        raise _refusal(path, f"{problem}; nothing in it was executed", code="not_a_checkpoint") from error
    if packed:
        raise _refusal(path, f"{packed} is compressed, which torch.save never does; copy it again")
    if damaged:
        raise _refusal(path, f"{damaged} is damaged (wrong checksum); copy it again")


def _refusal(path: Path, problem: str, *, code: str = "damaged_checkpoint") -> CheckpointError:
    return CheckpointError.at(path, problem, code=code)


def _folder_advice(folder: Path) -> str:
    script, tag = "zero_to_fp32.py", ""
    root = next((each for each in (folder, folder.parent) if (each / script).is_file()), None)
    if root is None and not any(folder.glob("*_states.pt")):
        return "is a folder; name the .pth file of a training checkpoint"
    root = root or folder.parent
    if root != folder:
        tag = f" --tag {folder.name}"
    return (
        "is a sharded DeepSpeed checkpoint, which is not supported; merge it with DeepSpeed's own script: "
        f"python {root / script} {root} OUT.pth{tag}"
    )


def _load(path: Path) -> dict[str, Any]:
    with torch.serialization.safe_globals([(Inert, name) for name in INERT]):
        try:
            named = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
            if not named:
                loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except UnpicklingError as error:
            problem = f"its pickle cannot be read without executing it ({_sentence(error)}); nothing was executed"
            raise _refusal(path, problem, code="unsafe_pickle") from error
        except Exception as error:  # torch raises arbitrary exceptions for a damaged file
            raise _refusal(path, f"cannot be read ({_sentence(error)}); copy it again") from error
    if named:
        problem = f"its pickle would execute {list_names(named, 10)}; nothing was executed"
        raise _refusal(path, problem, code="unsafe_pickle")
    if not isinstance(loaded, dict):
        raise _refusal(path, f"holds a {type(loaded).__name__} instead of a state dict", code="not_a_checkpoint")
    return _plain(loaded)


def _state_dict(loaded: dict[str, Any], path: Path) -> dict[str, torch.Tensor]:
    """The trainer's state dict: the entry `state_dict`, or the whole file if zero_to_fp32.py wrote it."""
    state = _plain(loaded.get("state_dict", loaded))
    if not any(isinstance(value, torch.Tensor) for value in state.values()):
        keys = ", ".join(sorted(map(str, loaded))[:10]) or "nothing"
        raise _refusal(path, f"has no state dict with tensors (it holds {keys})", code="not_a_checkpoint")
    odd = [str(name) for name, value in state.items() if not (isinstance(name, str) and _is_plain(value))]
    if odd:
        raise _refusal(path, f"has values that are no dense CPU tensors: {list_names(odd, 10)}", code="invalid_tensor")
    return {name: torch.Tensor.detach(value) for name, value in state.items()}


def _is_plain(value: Any) -> bool:
    return (
        isinstance(value, torch.Tensor)
        and value.device.type == "cpu"
        and value.layout is torch.strided
        and value.dtype in TORCH_TYPES.values()
    )


def _sort(
    state: Mapping[str, torch.Tensor], path: Path
) -> tuple[dict[str, torch.Tensor], dict[str, dict[str, torch.Tensor]], dict[str, str], dict[str, str]]:
    """Full tensors, LoRA factors (weight -> A and B), renamed keys, and dropped keys with the reason."""
    full: dict[str, torch.Tensor] = {}
    factors: dict[str, dict[str, torch.Tensor]] = {}
    renamed: dict[str, str] = {}
    dropped: dict[str, str] = {}
    unknown, twice = [], []
    for name, tensor in state.items():
        official = official_name(name)
        lora = LORA_NAME.fullmatch(official or "")
        target, key = (factors.setdefault(f"{lora[1]}.weight", {}), lora[2]) if lora else (full, official)
        if ".original_module." in name and name.replace(*REPLACED) in state:
            dropped[name] = "replaced by modules_to_save"
        elif key is None or PEFT_MARK.search(key):
            unknown.append(name)
        elif key in target:
            twice.append(name)
        else:
            target[key] = tensor
            renamed[name] = official or name
    if unknown:
        raise _refusal(path, f"has keys unknown to Sa2VA's training: {list_names(unknown, 10)}", code="unknown_tensor")
    if twice:
        raise _refusal(
            path, f"these tensors are stored under two keys: {list_names(twice, 10)}", code="repeated_tensor"
        )
    return full, factors, renamed, dropped


def official_name(name: str) -> str | None:
    """Official key of a trainer's key, LoRA suffix included; None if it belongs to no component of Sa2VA.

    PEFT wraps the language model and the vision encoder separately, or the whole vision-language model.
    """
    name = name.replace("base_model.model.", "", 1)
    name = name.replace(".base_layer.", ".").replace(".modules_to_save.default.", ".")
    for trainers, official in PREFIXES.items():
        if name.startswith(trainers):
            name = official + name.removeprefix(trainers)
            # the only SAM 2 parameter with different names in the training code and in the official model
            return re.sub(r"^(grounding_encoder\..+)\.gamma$", r"\1.g_weight", name)
    return None


def _pairs(factors: Mapping[str, Mapping[str, torch.Tensor]], path: Path) -> dict[str, Lora]:
    pairs: dict[str, Lora] = {}
    for name, found in factors.items():
        if found.keys() != {"A", "B"}:
            here = "lora_A without lora_B" if "A" in found else "lora_B without lora_A"
            raise _refusal(path, f"{name} has {here}; the file is incomplete", code="invalid_lora")
        a, b = found["A"], found["B"]
        if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1] or not a.shape[0]:
            raise _refusal(
                path,
                f"{name} has lora_A of shape {tuple(a.shape)} and lora_B of {tuple(b.shape)} instead of "
                "(rank, columns) and (rows, rank)",
                code="invalid_lora",
            )
        pairs[name] = Lora(a, b)
    ranks = {lora.rank: name for name, lora in reversed(pairs.items())}
    if len(ranks) > 1:
        each = ", ".join(f"{rank} ({name})" for rank, name in sorted(ranks.items()))
        raise _refusal(path, f"LoRA of several ranks is not supported; it has {each}", code="invalid_lora")
    return pairs


def _config(holder: Mapping[str, Any]) -> str:
    """Text of the training config, which mmengine stores in one of two entries."""
    hub = _plain(holder.get("message_hub"))
    texts = (_plain(holder.get("meta")).get("cfg"), _plain(hub.get("runtime_info")).get("cfg"))
    return next((text for text in texts if isinstance(text, str)), "")


def _step(holder: Mapping[str, Any]) -> int | None:
    step = _plain(holder.get("meta")).get("iter")
    return step if isinstance(step, int) else None


def _plain(value: Any) -> dict[str, Any]:
    """The entries of a dict, by dict's own methods, since a pickle may replace those of an OrderedDict; else {}."""
    return dict(dict.items(value)) if isinstance(value, dict) else {}


def _sentence(error: Exception) -> str:
    """The message of a torch error, without its advice to disable safe loading."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text.rpartition("WeightsUnpickler error: ")[2].partition(" Check the documentation")[0][:200]
