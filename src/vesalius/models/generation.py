"""Answers of the language model: forced, generated token by token, or drafted and verified (speculative decoding).

Verification appends the most frequent answer so far to the prompt as a draft. One forward pass over both finds the first
draft token that greedy decoding would not choose, and decoding continues from there, so the answer is exactly that of
greedy decoding. After Leviathan et al. 2023 (arXiv 2211.17192), with a table of answers in place of a draft model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from transformers.cache_utils import DynamicCache

from vesalius.models.batch import IGNORE_INDEX, Batch
from vesalius.models.sam2 import SegPrompts
from vesalius.models.textseg import TextSegModel
from vesalius.models.vlm import (
    LanguageInputs,
    embed_batch,
    embed_token,
    exceeds_context,
    freeze_rope,
    prefill,
    reset_rope,
    run_language_model,
)

AnswerOrigin = Literal["forced", "verified", "generated"]
"""forced: given in advance; verified: a draft confirmed by greedy decoding; generated: decoded token by token."""

HALF_PRECISION_MARGIN = 0.25
"""Minimum top-2 logit gap to accept a draft token in half precision; below it the parallel and the sequential pass may
differ in their argmax."""


@dataclass(frozen=True)
class Answer:
    """The answers to the prompts of a batch."""

    ids: list[list[int]]
    """Token ids of each answer, including the stop token."""
    seg: SegPrompts
    says_seg: torch.Tensor
    """bool (b,): whether greedy decoding outputs [SEG]; for a forced answer, whether it outputs all tokens up to [SEG]."""
    origins: list[AnswerOrigin]


class DraftTable:
    """Counts of the answers so far, starting with the template's answer; the most frequent one is the next draft."""

    def __init__(self, first: Sequence[int]) -> None:
        self._counts: Counter[tuple[int, ...]] = Counter([tuple(first)])

    def best(self) -> tuple[int, ...]:
        """The most frequent answer; ties go to the earliest."""
        return self._counts.most_common(1)[0][0]

    def update(self, answers: Sequence[Sequence[int]], stop_id: int) -> None:
        """Count the complete answers, which end with the stop token."""
        self._counts.update(tuple(ids) for ids in answers if ids[-1:] == [stop_id])


@torch.no_grad()
def force_answer(model: TextSegModel, batch: Batch) -> Answer:
    """The answers that a batch already contains, evaluated in one forward pass."""
    reset_rope(model.vlm)
    inputs, cache = embed_batch(model.vlm, batch), DynamicCache()
    states, _ = prefill(model.vlm, inputs, batch, model.seg_before_norm, cache)
    labels = batch.labels[:, -states.last.shape[1] :]
    at = labels == model.seg_id
    # greedy decoding outputs [SEG] if each token up to it is the argmax
    target = labels[:, 1:]
    is_seg = (target == model.seg_id).long()
    checked = (target != IGNORE_INDEX) & (is_seg.cumsum(dim=1) - is_seg == 0)
    agrees = model.vlm.lm_head(states.last[:, :-1][checked]).argmax(dim=-1) == target[checked]
    says_seg = torch.ones(len(at), dtype=torch.bool, device=at.device)
    says_seg[checked.nonzero()[:, 0][~agrees]] = False
    ids = [row[row != IGNORE_INDEX].tolist() for row in batch.labels]
    return Answer(ids, model.seg_prompts(states.seg[at], at.nonzero()[:, 0], batch), says_seg, ["forced"] * len(ids))


@torch.no_grad()
def generate_answer(
    model: TextSegModel, batch: Batch, stop_id: int, max_new_tokens: int, official: bool = False
) -> Answer:
    """Answers by greedy decoding, of at most `max_new_tokens` tokens each; an answer may lack [SEG].

    `official` reproduces the errors of the official code (docs/decisions/0006-official-numbers.md).
    """
    return _decode_with_draft(model, batch, (), stop_id, max_new_tokens, official)


@torch.no_grad()
def verify_answer(model: TextSegModel, batch: Batch, drafts: DraftTable, stop_id: int, max_new_tokens: int) -> Answer:
    """The answers of `generate_answer`, computed by speculative decoding; `drafts` is updated with them.

    In float32 the tokens are identical. In half precision the batch is decoded without a draft if any checked top-2
    logit gap is below `HALF_PRECISION_MARGIN`.
    """
    draft = drafts.best()[:max_new_tokens]
    reach = batch.attention_mask.new_ones(1, batch.attention_mask.shape[1] + len(draft))
    if exceeds_context(model.vlm, reach):
        draft = ()  # there the total length, draft included, changes all hidden states
    answer = _decode_with_draft(model, batch, draft, stop_id, max_new_tokens, official=False)
    drafts.update(answer.ids, stop_id)
    return answer


def _decode_with_draft(
    model: TextSegModel, batch: Batch, draft: Sequence[int], stop_id: int, max_new_tokens: int, official: bool
) -> Answer:
    """Run the prompts with the draft appended, then decode each row from its first rejected draft token."""
    reset_rope(model.vlm)
    n = len(draft)
    drafted, cache = _append(batch, draft), DynamicCache()
    inputs = embed_batch(model.vlm, drafted)
    states, inputs = prefill(model.vlm, inputs, drafted, model.seg_before_norm, cache)
    if not official:
        freeze_rope(model.vlm)
    # chosen[:, i] is the token after i tokens of the draft
    chosen, sure = _choose(model, states.last[:, -n - 1 :])
    given = torch.tensor(draft, dtype=chosen.dtype, device=chosen.device)
    agreed = (chosen[:, :n] == given).long().cumprod(dim=1).sum(dim=1)
    decided = torch.arange(n, device=chosen.device) <= agreed[:, None]
    if (decided & ~sure[:, :n]).any():
        return _decode_with_draft(model, batch, (), stop_id, max_new_tokens, official)
    counts = agreed.tolist()
    ids = [list(draft[:count]) for count in counts]
    seg_states = [
        [states.seg[row, i - n] for i in range(count) if draft[i] == model.seg_id] for row, count in enumerate(counts)
    ]
    # an accepted draft is complete if it ends with the stop token or at the limit
    complete = draft[-1:] == (stop_id,) or n == max_new_tokens
    rest = [row for row, count in enumerate(counts) if not (count == n and complete)]
    if rest:
        inputs = _reject(inputs, agreed, n, rest)
        if len(rest) < len(ids):
            cache.batch_select_indices(torch.tensor(rest))
        token = chosen.gather(1, agreed[:, None])[rest, 0]
        written, states_of = [ids[row] for row in rest], [seg_states[row] for row in rest]
        inputs = _continue(model, inputs, cache, token, written, states_of, stop_id, max_new_tokens)
        if not official and exceeds_context(model.vlm, inputs.attention):
            return _rerun_in_one_pass(model, batch, ids)
    origins: list[AnswerOrigin] = ["generated" if row in rest else "verified" for row in range(len(ids))]
    all_states = [state for row in seg_states for state in row]
    row_of = torch.tensor(
        [row for row, found in enumerate(seg_states) for _ in found], dtype=torch.int64, device=chosen.device
    )
    hidden = torch.stack(all_states) if all_states else states.seg[:0, 0]
    says_seg = torch.tensor([bool(found) for found in seg_states], device=chosen.device)
    return Answer(ids, model.seg_prompts(hidden, row_of, batch), says_seg, origins)


def _continue(
    model: TextSegModel,
    inputs: LanguageInputs,
    cache: DynamicCache,
    token: torch.Tensor,
    ids: list[list[int]],
    seg_states: list[list[torch.Tensor]],
    stop_id: int,
    max_new_tokens: int,
) -> LanguageInputs:
    """Decode each row from `token` (b,) to its stop token or `max_new_tokens`; extends `ids` and `seg_states`.

    A [SEG] at the token limit gets no hidden state, since decoding stops there.
    """
    open_rows = set(range(len(ids)))
    while True:
        for row, each in enumerate(token.tolist()):
            if row in open_rows:
                ids[row].append(each)
                if each == stop_id or len(ids[row]) >= max_new_tokens:
                    open_rows.remove(row)
        if not open_rows:
            return inputs
        inputs = embed_token(model.vlm, inputs, token)
        states = run_language_model(model.vlm, inputs, model.seg_before_norm, cache)
        for row in open_rows:
            if ids[row][-1] == model.seg_id:
                seg_states[row].append(states.seg[row, -1])
        token = model.vlm.lm_head(states.last[:, -1]).argmax(dim=-1)


def _append(batch: Batch, draft: Sequence[int]) -> Batch:
    """The batch with the draft appended to each row."""
    rows = len(batch.input_ids)
    ids = torch.tensor([draft] * rows, dtype=torch.int64, device=batch.input_ids.device).reshape(rows, -1)
    return replace(
        batch,
        input_ids=torch.cat([batch.input_ids, ids], dim=1),
        attention_mask=torch.cat([batch.attention_mask, torch.ones_like(ids)], dim=1),
        labels=torch.cat([batch.labels, ids], dim=1),
    )


def _choose(model: TextSegModel, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The argmax token (b, k) after each hidden state (b, k, hidden), and whether its top-2 gap is large enough."""
    logits = model.vlm.lm_head(states.flatten(0, 1)).unflatten(0, states.shape[:2])
    best = logits.topk(2, dim=-1)
    if logits.dtype == torch.float32:
        return best.indices[..., 0], torch.ones_like(best.indices[..., 0], dtype=torch.bool)
    return best.indices[..., 0], best.values[..., 0] - best.values[..., 1] >= HALF_PRECISION_MARGIN


def _reject(inputs: LanguageInputs, agreed: torch.Tensor, n: int, rest: Sequence[int]) -> LanguageInputs:
    """The inputs of the rows `rest`, with all but the first `agreed` (b,) of the `n` draft tokens masked."""
    if not n:
        return inputs
    rejected = torch.arange(n, device=agreed.device) >= agreed[:, None]
    attention, positions = inputs.attention.clone(), inputs.positions.clone()
    attention[:, -n:].masked_fill_(rejected, 0)
    # the position of the next token is one past the largest kept position
    positions[..., -n:].masked_fill_(rejected, 0)
    return LanguageInputs(inputs.embeddings[rest], positions[..., rest, :], attention[rest])


def _rerun_in_one_pass(model: TextSegModel, batch: Batch, ids: list[list[int]]) -> Answer:
    """Recompute, in one forward pass, the hidden states of an answer beyond the trained context; for a single row.

    With dynamic RoPE the rotation of each key depends on the total length, unknown when the cache was filled.
    """
    answer = force_answer(model, _append(batch, ids[0]))
    says_seg = torch.tensor([model.seg_id in ids[0]], device=answer.says_seg.device)
    return replace(answer, says_seg=says_seg, origins=["generated"])
