"""Trainable rows of the embeddings and of the language head, for the tokens that Sa2VA adds to a vocabulary.

The rows are separate parameters that replace rows of the frozen matrices, so that weight decay affects no other row. They
are stored in the adapter as PEFT's trainable tokens. PEFT's own `trainable_token_indices` is not used, since it copies the
whole matrix in each forward pass: 522 ms instead of 4 ms at 151,674 x 896.
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
"""Prefix of the names of these parameters in the vision-language model."""


def new_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Ids of the tokens that Sa2VA adds, except the image tokens."""
    vocabulary = tokenizer.get_vocab()
    words = (token for token in ADDED_TOKENS if token not in ("<img>", "</img>", IMAGE_TOKEN))
    return tuple(sorted(vocabulary[token] for token in words if token in vocabulary))


class TokenRows(nn.Module):
    """Trainable rows that replace the rows of the tokens `ids` in a model's embeddings and head."""

    ids: torch.Tensor

    def __init__(self, vlm: PreTrainedModel, ids: Sequence[int]) -> None:
        super().__init__()
        embeddings, head = vlm.get_input_embeddings().weight, vlm.lm_head.weight
        self.register_buffer("ids", torch.tensor(ids, device=embeddings.device), persistent=False)
        self.embedding = nn.Parameter(embeddings.detach()[list(ids)].clone())
        self.head = None if head is embeddings else nn.Parameter(head.detach()[list(ids)].clone())
        """None if head and embeddings share one matrix; the head then uses `embedding`."""

    def attach_to(self, vlm: PreTrainedModel) -> None:
        """Add these rows to the model as a submodule and make the model use them."""
        vlm.add_module(PREFIX[:-1], self)
        # bound methods, so that a copy of the model uses its own rows
        self._hooks = [
            vlm.get_input_embeddings().register_forward_hook(self._embed),
            vlm.lm_head.register_forward_hook(self._score),
        ]

    def merge_into(self, vlm: PreTrainedModel) -> None:
        """Write the rows into the model's own matrices and remove the submodule."""
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
    """The trainable rows of a model; None if it has none."""
    return getattr(vlm, PREFIX[:-1], None)
