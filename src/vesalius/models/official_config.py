"""The `ModelSpec` of an official Sa2VA folder, from `config.json` and tensor shapes, without running any of its code.

`config.json` does not describe SAM 2, which the official code builds in Python; its sizes are read from the tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vesalius.errors import CheckpointError
from vesalius.models.config_files import CONFIG, read_json
from vesalius.models.families.chats import CHATS
from vesalius.models.families.table import recognize
from vesalius.models.families.tokenizers import official_tokenizer
from vesalius.models.presets import identify
from vesalius.models.sam_config import read_sam
from vesalius.models.specs import ModelSpec, TensorShape


def read_spec(folder: Path, shapes: Mapping[str, TensorShape]) -> ModelSpec:
    """The spec of an official folder; `shapes` are its tensor shapes by official name.

    The spec is named after the published model of equal sizes, not after the folder. CheckpointError, naming the file and
    the field, for missing fields and for unsupported models.
    """
    path = folder / CONFIG
    config = read_json(path, "invalid_model_config")
    try:
        return _read_spec(config, folder, shapes)
    except CheckpointError:
        raise
    except KeyError as error:
        raise CheckpointError.at(
            path, f"lacks {error}, a required field", code="invalid_model_config", field=str(error.args[0])
        ) from error
    except Exception as error:  # values of a wrong type raise many exception types
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise CheckpointError.at(
            path, f"does not describe a supported model ({reason})", code="invalid_model_config"
        ) from error


def _read_spec(config: dict[str, Any], folder: Path, shapes: Mapping[str, TensorShape]) -> ModelSpec:
    source = str(folder / CONFIG)
    chat = str(config.get("template", "")).replace("-", "_")
    if chat not in CHATS:
        raise CheckpointError.at(
            source, f"template {chat!r} is not one of {', '.join(CHATS)}", code="invalid_model_config", field="template"
        )
    family = recognize(config, source)
    config = {**config, "template": chat}
    if "image_token_id" not in config:
        tokenizer = official_tokenizer(folder)
        config["image_token_id"] = tokenizer.convert_tokens_to_ids(family.image_marks[1])
    spec = family.make_spec(config, read_sam(shapes, folder), source)
    return spec.changed(name=identify(spec) or spec.name)
