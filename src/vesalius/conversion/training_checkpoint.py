"""A training checkpoint (`iter_NNNN.pth` of mmengine and xtuner), read without running anything that it holds.

Such a file holds the part of a model that was trained, under the trainer's names, and objects of the trainer beside it.
Here it becomes tensors under official names: whole ones, which take the place of the base's, and LoRA pairs.
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
    """Stands in for what the trainer pickled beside the weights: takes any arguments and state, and does nothing.

    Called, it gives only another of its kind, so that a pickled `getattr(module, name)` reaches nothing. It has no
    `__dict__` that a pickle could fill, hence no method that a pickle could replace.
    """

    __slots__ = ()

    def __new__(cls, *arguments: Any) -> Inert:
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        """Nothing is kept."""

    def __repr__(self) -> str:
        return "<an object of the trainer>"


INERT = (
    "builtins.getattr",
    "mmengine.logging.history_buffer.HistoryBuffer",
    "numpy.dtype",
    "numpy.ndarray",
    "numpy.core.multiarray._reconstruct",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray._reconstruct",
    "numpy._core.multiarray.scalar",
)
"""All that a file may name beside torch's own list: curves of losses and the like, which nothing here needs."""

PREFIXES = {
    "mllm.model.language_model.": "language_model.",
    "mllm.model.vision_model.": "vision_model.",
    "mllm.model.mlp1.": "mlp1.",
    "mllm.model.": "model.",  # a family whose names the official layout keeps
    "grounding_encoder.": "grounding_encoder.",
    "text_hidden_fcs.": "text_hidden_fcs.",
}
"""How the trainer's names begin -> how the official ones do; the first that fits."""

LORA_NAME = re.compile(r"(.+)\.lora_([AB])(?:\.default)?\.weight")
REPLACED = (".original_module.", ".modules_to_save.default.")
PEFT_MARK = re.compile(r"lora_|base_model\.|base_layer\.|modules_to_save|original_module")

# in the training config's text, which is searched and never run
ALPHA_TEXT = re.compile(r"""\blora_alpha['"]?\s*[=:]\s*(\d+(?:\.\d+)?)""")
RANK_TEXT = re.compile(r"""(?<![\w.])r['"]?\s*[=:]\s*(\d+)\b""")
RSLORA_TEXT = re.compile(r"""\buse_rslora['"]?\s*[=:]\s*True\b""")


class Lora(NamedTuple):
    """A change of a weight (rows, columns): alpha / rank times `b @ a`."""

    a: torch.Tensor
    """(rank, columns)."""
    b: torch.Tensor
    """(rows, rank)."""

    @property
    def shape(self) -> tuple[int, int]:
        """Of the weight that it changes."""
        return self.b.shape[0], self.a.shape[1]

    @property
    def rank(self) -> int:
        return self.a.shape[0]


class Alpha(NamedTuple):
    """LoRA's alpha, which no tensor tells, and where it comes from."""

    value: float
    origin: str


@dataclass(frozen=True)
class TrainingCheckpoint:
    """The trained part of a model. Tensors are mapped from the file: a page is read when it is used."""

    path: Path
    full: Mapping[str, torch.Tensor]
    """Official name -> the tensor that takes the base's place."""
    lora: Mapping[str, Lora]
    """Official name of a weight -> what is added to it. All have the same rank."""
    renamed: Mapping[str, str]
    """Name in the file -> official name, for each tensor that is used."""
    dropped: Mapping[str, str]
    """Name in the file -> why it is not used."""
    config: str
    """Text of the training config; empty where the file has none."""
    step: int | None
    """Training step; None where the file does not say."""

    @property
    def rank(self) -> int | None:
        """Of every LoRA pair; None where there is none."""
        return next((lora.rank for lora in self.lora.values()), None)

    def find_alpha(self, given: float | None) -> Alpha | None:
        """LoRA's alpha: `given`, else from the text of the training config; None where there is no LoRA.

        SettingError where it is given for nothing or is no number to scale by. CheckpointError where neither tells it.
        """
        if self.rank is None:
            if given is not None:
                raise SettingError(f"{self.path}: holds no LoRA, so a LoRA alpha says nothing; leave it out")
            return None
        if given is not None and not (given > 0 and math.isfinite(given)):
            raise SettingError(f"LoRA alpha {given} is not a positive number; the official value is 2 x rank")
        found = {float(text) for text in ALPHA_TEXT.findall(self.config)}
        if given is not None:
            other = sorted(found - {given})
            differs = f", though the training config says {' and '.join(f'{each:g}' for each in other)}"
            return Alpha(given, "given" + (differs if other else ""))
        doubt = self._doubt(found)
        if doubt:
            raise CheckpointError(
                f"{self.path}: LoRA alpha is not known: {doubt}; give it (--lora-alpha), "
                f"officially 2 x rank, which is {2 * self.rank} here"
            )
        return Alpha(found.pop(), "text of the training config in the checkpoint")

    def _doubt(self, alphas: set[float]) -> str | None:
        """Why the training config does not tell alpha."""
        ranks = {int(text) for text in RANK_TEXT.findall(self.config)}
        if not self.config:
            return "the file has no training config"
        if not alphas:
            return "the training config in the file does not name it"
        if len(alphas) > 1:
            return f"the training config in the file names {len(alphas)}"
        if ranks and self.rank not in ranks:
            return f"the training config in the file has rank {min(ranks)}, the tensors {self.rank}"
        if RSLORA_TEXT.search(self.config):
            return "the training used rsLoRA, which scales by alpha / sqrt(rank)"
        return None


def open_training_checkpoint(path: Path) -> TrainingCheckpoint:
    """Read a checkpoint of training; nothing in it is executed, and its tensors stay in the file.

    Raises CheckpointError where the file is damaged, where it names code beyond a closed list (by the name), where it
    has no weights, and where a tensor's name or shape has no place in a model.
    """
    _check_archive(path)
    loaded = _load(path)
    state = _state_dict(loaded, path)
    full, halves, renamed, dropped = _sort(state, path)
    holder = loaded if "state_dict" in loaded else {}
    return TrainingCheckpoint(
        path=path,
        full=full,
        lora=_pairs(halves, path),
        renamed=renamed,
        dropped=dropped,
        config=_config(holder),
        step=_step(holder),
    )


def _check_archive(path: Path) -> None:
    """Refuse what is no archive of torch.save, or a damaged one: mapped tensors would be read as they are."""
    if path.is_dir():
        raise CheckpointError(f"{path}: {_folder_advice(path)}")
    try:
        with path.open("rb") as file:
            start = file.read(2)
        with zipfile.ZipFile(path) as archive:
            packed = next((each.filename for each in archive.infolist() if each.compress_type), None)
            damaged = packed or archive.testzip()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    except Exception as error:  # a broken archive makes zipfile raise nearly anything
        problem = "is cut short or damaged; copy it again"
        if start != b"PK":
            problem = "is empty" if not start else "is not a file of torch.save (of torch 1.6 or later)"
        raise CheckpointError(f"{path}: {problem}; nothing in it was executed") from error
    if packed:
        raise CheckpointError(f"{path}: {packed} is compressed, which torch.save never does; copy it again")
    if damaged:
        raise CheckpointError(f"{path}: {damaged} is damaged (its checksum is wrong); copy it again")


def _folder_advice(folder: Path) -> str:
    script, tag = "zero_to_fp32.py", ""
    root = next((each for each in (folder, folder.parent) if (each / script).is_file()), None)
    if root is None and not any(folder.glob("*_states.pt")):
        return "is a folder and not a training checkpoint, which is one .pth file"
    root = root or folder.parent
    if root != folder:
        tag = f" --tag {folder.name}"
    return (
        "is a DeepSpeed checkpoint in parts, which is not supported; make one file of it with DeepSpeed's own "
        f"script: python {root / script} {root} OUT.pth{tag}"
    )


def _load(path: Path) -> dict[str, Any]:
    with torch.serialization.safe_globals([(Inert, name) for name in INERT]):
        try:
            named = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
            if not named:
                loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except UnpicklingError as error:
            raise CheckpointError(
                f"{path}: is pickled in a way that cannot be read without running it "
                f"({_sentence(error)}); refused, nothing was executed"
            ) from error
        except Exception as error:  # a broken file makes torch raise nearly anything
            raise CheckpointError(f"{path}: cannot be read ({_sentence(error)}); copy it again") from error
    if named:
        raise CheckpointError(
            f"{path}: holds {list_names(named, 10)}, which would run code; refused, nothing was executed"
        )
    if not isinstance(loaded, dict):
        raise CheckpointError(
            f"{path}: holds a {type(loaded).__name__} and no state_dict; is it a checkpoint?"
        )
    return _plain(loaded)


def _state_dict(loaded: dict[str, Any], path: Path) -> dict[str, torch.Tensor]:
    """The weights, by the trainer's names: under `state_dict`, or at the top as zero_to_fp32.py writes them."""
    state = _plain(loaded.get("state_dict", loaded))
    if not any(isinstance(value, torch.Tensor) for value in state.values()):
        keys = ", ".join(sorted(map(str, loaded))[:10]) or "nothing"
        raise CheckpointError(
            f"{path}: has no state_dict with tensors (it holds {keys}); is it a checkpoint?"
        )
    odd = [str(name) for name, value in state.items() if not (isinstance(name, str) and _is_plain(value))]
    if odd:
        raise CheckpointError(f"{path}: {list_names(odd, 10)} in the state_dict: not a plain tensor")
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
    """Whole tensors, the halves of LoRA pairs (weight -> A and B), new names, and what is dropped and why."""
    full: dict[str, torch.Tensor] = {}
    halves: dict[str, dict[str, torch.Tensor]] = {}
    renamed: dict[str, str] = {}
    dropped: dict[str, str] = {}
    unknown, twice = [], []
    for name, tensor in state.items():
        official = official_name(name)
        lora = LORA_NAME.fullmatch(official or "")
        target, place = (halves.setdefault(f"{lora[1]}.weight", {}), lora[2]) if lora else (full, official)
        if ".original_module." in name and name.replace(*REPLACED) in state:
            dropped[name] = "what modules_to_save replaced"
        elif place is None or PEFT_MARK.search(place):
            unknown.append(name)
        elif place in target:
            twice.append(name)
        else:
            target[place] = tensor
            renamed[name] = official or name
    if unknown:
        raise CheckpointError(f"{path}: not names of Sa2VA's training: {list_names(unknown, 10)}")
    if twice:
        raise CheckpointError(
            f"{path}: tensors that are there under another name too: {list_names(twice, 10)}"
        )
    return full, halves, renamed, dropped


def official_name(name: str) -> str | None:
    """Official name of a tensor of the trainer, LoRA's own endings kept; None where it is of no part of Sa2VA.

    PEFT wraps the language model and the vision encoder each on its own, or the vision-language model as a whole.
    """
    name = name.replace("base_model.model.", "", 1)
    name = name.replace(".base_layer.", ".").replace(".modules_to_save.default.", ".")
    for trainers, official in PREFIXES.items():
        if name.startswith(trainers):
            name = official + name.removeprefix(trainers)
            # the one word in which the training code's SAM 2 and the official model's differ
            return re.sub(r"^(grounding_encoder\..+)\.gamma$", r"\1.g_weight", name)
    return None


def _pairs(halves: Mapping[str, Mapping[str, torch.Tensor]], path: Path) -> dict[str, Lora]:
    pairs: dict[str, Lora] = {}
    for name, found in halves.items():
        if found.keys() != {"A", "B"}:
            here = "lora_A without lora_B" if "A" in found else "lora_B without lora_A"
            raise CheckpointError(f"{path}: {name} has {here}; the file is incomplete")
        a, b = found["A"], found["B"]
        if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1] or not a.shape[0]:
            raise CheckpointError(
                f"{path}: {name} has lora_A of shape {tuple(a.shape)} and lora_B of {tuple(b.shape)}, "
                "which are not (rank, columns) and (rows, rank)"
            )
        pairs[name] = Lora(a, b)
    ranks = {lora.rank: name for name, lora in reversed(pairs.items())}
    if len(ranks) > 1:
        each = ", ".join(f"{rank} ({name})" for rank, name in sorted(ranks.items()))
        raise CheckpointError(f"{path}: LoRA of several ranks is not supported, and it has {each}")
    return pairs


def _config(holder: Mapping[str, Any]) -> str:
    """Text of the training config, as mmengine stores it in either of two places."""
    hub = _plain(holder.get("message_hub"))
    texts = (_plain(holder.get("meta")).get("cfg"), _plain(hub.get("runtime_info")).get("cfg"))
    return next((text for text in texts if isinstance(text, str)), "")


def _step(holder: Mapping[str, Any]) -> int | None:
    step = _plain(holder.get("meta")).get("iter")
    return step if isinstance(step, int) else None


def _plain(value: Any) -> dict[str, Any]:
    """A mapping's own entries, none for anything else: a pickle may give an OrderedDict other methods than its own."""
    return dict(dict.items(value)) if isinstance(value, dict) else {}


def _sentence(error: Exception) -> str:
    """The part of an error of torch that says what is wrong, without its advice to switch safety off."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text.rpartition("WeightsUnpickler error: ")[2].partition(" Check the documentation")[0][:200]
