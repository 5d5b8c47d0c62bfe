"""Rows of the embeddings and of the head that train alone: those of the tokens that Sa2VA adds to a vocabulary.

The rows are parameters of their own, laid over the frozen matrices; an optimizer that lets weights decay sees no other
row. On disk they lie in the adapter, as PEFT's trainable tokens do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.functional import embedding, linear
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from vesalius.models.specs import ADDED_TOKENS, IMAGE_TOKEN

PREFIX = "token_rows."
"""How the names of these parameters begin in the vision-language half."""


def new_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Ids of the tokens that Sa2VA adds and that are words: not those in whose place an image's features stand."""
    vocabulary = tokenizer.get_vocab()
    words = (token for token in ADDED_TOKENS if token not in ("<img>", "</img>", IMAGE_TOKEN))
    return tuple(sorted(vocabulary[token] for token in words if token in vocabulary))


class TokenRows(nn.Module):
    """Rows that stand in the place of a model's own, for the tokens `ids`."""

    ids: torch.Tensor

    def __init__(self, vlm: PreTrainedModel, ids: Sequence[int]) -> None:
        super().__init__()
        embeddings, head = vlm.get_input_embeddings().weight, vlm.lm_head.weight
        self.register_buffer("ids", torch.tensor(ids, device=embeddings.device), persistent=False)
        self.embedding = nn.Parameter(embeddings.detach()[list(ids)].clone())
        self.head = None if head is embeddings else nn.Parameter(head.detach()[list(ids)].clone())
        """None where the head is the embeddings: then the rows are the same too."""

    def lay_over(self, vlm: PreTrainedModel) -> None:
        """Let the half use these rows from now on; they become a part of it."""
        vlm.add_module(PREFIX[:-1], self)
        # methods, and not functions, so that a copy of the model uses its own rows
        self._hooks = [
            vlm.get_input_embeddings().register_forward_hook(self._embed),
            vlm.lm_head.register_forward_hook(self._score),
        ]

    def merge_into(self, vlm: PreTrainedModel) -> None:
        """Write the rows into the half's own matrices, and vanish from it."""
        for hook in self._hooks:
            hook.remove()
        with torch.no_grad():
            for weight, rows in (
                (vlm.get_input_embeddings().weight, self.embedding),
                (vlm.lm_head.weight, self.embedding if self.head is None else self.head),
            ):
                weight[self.ids] = rows.to(weight)
        del vlm.token_rows

    def _embed(self, module: nn.Module, inputs: Any, made: torch.Tensor) -> torch.Tensor:
        same = inputs[0].unsqueeze(-1) == self.ids
        rows = embedding(same.int().argmax(dim=-1), self.embedding)
        return torch.where(same.any(dim=-1, keepdim=True), rows.to(made), made)

    def _score(self, module: nn.Module, inputs: Any, made: torch.Tensor) -> torch.Tensor:
        rows = self.embedding if self.head is None else self.head
        return made.index_copy(-1, self.ids, linear(inputs[0], rows.to(inputs[0].dtype)).to(made.dtype))


def find_rows(vlm: PreTrainedModel) -> TokenRows | None:
    """The rows that lie over a half's own, where there are any."""
    return getattr(vlm, PREFIX[:-1], None)
