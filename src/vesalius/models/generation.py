"""What the language model says: read where it is given, written token by token, or drafted and then verified.

Verification: the answer that was said most often so far is put behind the question, and one pass over both tells
where the model would have gone on differently. Where it would not, this is what it would have written, for a greedy
choice depends on the tokens before it alone. After Leviathan et al. 2023 (arXiv 2211.17192), with a table of answers
in place of a small model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from transformers.cache_utils import DynamicCache

from vesalius.models.batch import NOT_LEARNED, Batch
from vesalius.models.segmenter import SegPrompts
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

Origin = Literal["forced", "verified", "generated"]
"""forced: the answer was given; verified: it was drafted, and the model agrees; generated: the model wrote it."""

HALF_PRECISION_MARGIN = 0.25
"""Difference of the two best logits below which a draft proves nothing in 16 bits: whether tokens are read together
or one by one then decides which is larger."""


@dataclass(frozen=True)
class Answer:
    """What the language model said to each question of a batch."""

    ids: list[list[int]]
    """Tokens of each answer, the closing one included."""
    seg: SegPrompts
    says_seg: torch.Tensor
    """bool (b,): the model itself writes [SEG]; where the answer was given, it agrees with all of it up to there."""
    origins: list[Origin]


class DraftTable:
    """Answers heard so far, the first of which is the template's; the commonest is the next draft."""

    def __init__(self, first: Sequence[int]) -> None:
        self._heard: Counter[tuple[int, ...]] = Counter([tuple(first)])

    def best(self) -> tuple[int, ...]:
        """The commonest, of equally common ones that heard first."""
        return self._heard.most_common(1)[0][0]

    def hear(self, answers: Sequence[Sequence[int]], stop_id: int) -> None:
        """Count answers that came to their end."""
        self._heard.update(tuple(ids) for ids in answers if ids[-1:] == [stop_id])


@torch.no_grad()
def force_answer(model: TextSegModel, batch: Batch) -> Answer:
    """The answers that the rows of a batch hold already, read in one pass."""
    reset_rope(model.vlm)
    inputs, cache = embed_batch(model.vlm, batch), DynamicCache()
    states, _ = prefill(model.vlm, inputs, batch, model.seg_before_norm, cache)
    labels = batch.labels[:, -states.last.shape[1] :]
    at = labels == model.seg_id
    # the model would write so itself if each token up to [SEG] is its own first choice
    target = labels[:, 1:]
    is_seg = (target == model.seg_id).long()
    checked = (target != NOT_LEARNED) & (is_seg.cumsum(dim=1) - is_seg == 0)
    agrees = model.vlm.lm_head(states.last[:, :-1][checked]).argmax(dim=-1) == target[checked]
    says_seg = torch.ones(len(at), dtype=torch.bool, device=at.device)
    says_seg[checked.nonzero()[:, 0][~agrees]] = False
    ids = [row[row != NOT_LEARNED].tolist() for row in batch.labels]
    return Answer(
        ids, model.seg_prompts(states.seg[at], at.nonzero()[:, 0], batch), says_seg, ["forced"] * len(ids)
    )


@torch.no_grad()
def generate_answer(
    model: TextSegModel, batch: Batch, stop_id: int, most_tokens: int, official: bool = False
) -> Answer:
    """Answers that the model writes greedily, of up to `most_tokens` tokens each; it may well not say [SEG].

    `official` keeps what the official code gets wrong there (docs/decisions/0006-official-numbers.md).
    """
    return _write(model, batch, (), stop_id, most_tokens, official)


@torch.no_grad()
def verify_answer(
    model: TextSegModel, batch: Batch, drafts: DraftTable, stop_id: int, most_tokens: int
) -> Answer:
    """The answers of `generate_answer`, each of them drafted first; `drafts` hears what they became.

    In float32 the tokens are equal. In 16 bits the batch is asked again without a draft where the two best logits lie
    within `HALF_PRECISION_MARGIN` of each other in it.
    """
    draft = drafts.best()[:most_tokens]
    reach = batch.attention_mask.new_ones(1, batch.attention_mask.shape[1] + len(draft))
    if exceeds_context(
        model.vlm, reach
    ):  # there the length of the whole changes every state: a draft would too
        draft = ()
    answer = _write(model, batch, draft, stop_id, most_tokens, official=False)
    drafts.hear(answer.ids, stop_id)
    return answer


def _write(
    model: TextSegModel, batch: Batch, draft: Sequence[int], stop_id: int, most_tokens: int, official: bool
) -> Answer:
    """Each row reads its question with the draft behind it, and is written on from where it would differ."""
    reset_rope(model.vlm)
    n = len(draft)
    drafted, cache = _append(batch, draft), DynamicCache()
    inputs = embed_batch(model.vlm, drafted)
    states, inputs = prefill(model.vlm, inputs, drafted, model.seg_before_norm, cache)
    if not official:
        freeze_rope(model.vlm)
    # said[:, i] is what the model says after i tokens of the draft
    said, sure = _choose(model, states.last[:, -n - 1 :])
    given = torch.tensor(draft, dtype=said.dtype, device=said.device)
    agreed = (said[:, :n] == given).long().cumprod(dim=1).sum(dim=1)
    decided = torch.arange(n, device=said.device) <= agreed[:, None]
    if (decided & ~sure[:, :n]).any():
        return _write(model, batch, (), stop_id, most_tokens, official)
    counts = agreed.tolist()
    ids = [list(draft[:count]) for count in counts]
    heard = [
        [states.seg[row, i - n] for i in range(count) if draft[i] == model.seg_id]
        for row, count in enumerate(counts)
    ]
    # a whole draft is an answer where it ends by itself, or at the limit
    whole = draft[-1:] == (stop_id,) or n == most_tokens
    rest = [row for row, count in enumerate(counts) if not (count == n and whole)]
    if rest:
        inputs = _reject(inputs, agreed, n, rest)
        if len(rest) < len(ids):
            cache.batch_select_indices(torch.tensor(rest))
        token = said.gather(1, agreed[:, None])[rest, 0]
        written, states_of = [ids[row] for row in rest], [heard[row] for row in rest]
        inputs = _go_on(model, inputs, cache, token, written, states_of, stop_id, most_tokens)
        if not official and exceeds_context(model.vlm, inputs.attention):
            return _read_again(model, batch, ids)
    origins: list[Origin] = ["generated" if row in rest else "verified" for row in range(len(ids))]
    states_heard = [state for row in heard for state in row]
    row_of = torch.tensor(
        [row for row, found in enumerate(heard) for _ in found], dtype=torch.int64, device=said.device
    )
    hidden = torch.stack(states_heard) if states_heard else states.seg[:0, 0]
    says_seg = torch.tensor([bool(found) for found in heard], device=said.device)
    return Answer(ids, model.seg_prompts(hidden, row_of, batch), says_seg, origins)


def _go_on(
    model: TextSegModel,
    inputs: LanguageInputs,
    cache: DynamicCache,
    token: torch.Tensor,
    ids: list[list[int]],
    heard: list[list[torch.Tensor]],
    stop_id: int,
    most_tokens: int,
) -> LanguageInputs:
    """Write each row on from `token` (b,), to its end or to `most_tokens`; `ids` and the states of [SEG] grow.

    The state of a [SEG] that is the very last token allowed is never computed: the answer was cut there.
    """
    open_rows = set(range(len(ids)))
    while True:
        for row, each in enumerate(token.tolist()):
            if row in open_rows:
                ids[row].append(each)
                if each == stop_id or len(ids[row]) >= most_tokens:
                    open_rows.remove(row)
        if not open_rows:
            return inputs
        inputs = embed_token(model.vlm, inputs, token)
        states = run_language_model(model.vlm, inputs, model.seg_before_norm, cache)
        for row in open_rows:
            if ids[row][-1] == model.seg_id:
                heard[row].append(states.seg[row, -1])
        token = model.vlm.lm_head(states.last[:, -1]).argmax(dim=-1)


def _append(batch: Batch, draft: Sequence[int]) -> Batch:
    """The batch with the draft behind each question."""
    rows = len(batch.input_ids)
    ids = torch.tensor([draft] * rows, dtype=torch.int64, device=batch.input_ids.device).reshape(rows, -1)
    return replace(
        batch,
        input_ids=torch.cat([batch.input_ids, ids], dim=1),
        attention_mask=torch.cat([batch.attention_mask, torch.ones_like(ids)], dim=1),
        labels=torch.cat([batch.labels, ids], dim=1),
    )


def _choose(model: TextSegModel, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(b, k): the model's choice after each of the states (b, k, hidden), and whether it is sure of it."""
    logits = model.vlm.lm_head(states.flatten(0, 1)).unflatten(0, states.shape[:2])
    best = logits.topk(2, dim=-1)
    if logits.dtype == torch.float32:
        return best.indices[..., 0], torch.ones_like(best.indices[..., 0], dtype=torch.bool)
    return best.indices[..., 0], best.values[..., 0] - best.values[..., 1] >= HALF_PRECISION_MARGIN


def _reject(inputs: LanguageInputs, agreed: torch.Tensor, n: int, rest: Sequence[int]) -> LanguageInputs:
    """What the rows `rest` have read, without what the draft of `n` tokens said after `agreed` (b,) of them."""
    if not n:
        return inputs
    wrong = torch.arange(n, device=agreed.device) >= agreed[:, None]
    attention, positions = inputs.attention.clone(), inputs.positions.clone()
    attention[:, -n:].masked_fill_(wrong, 0)
    # the next token follows the last that was kept: its place is one past the largest of those
    positions[..., -n:].masked_fill_(wrong, 0)
    return LanguageInputs(inputs.embeddings[rest], positions[..., rest, :], attention[rest])


def _read_again(model: TextSegModel, batch: Batch, ids: list[list[int]]) -> Answer:
    """The answer to one question that is longer than the trained context, read in one pass.

    There the turn of each key depends on the length of the whole, which was not known when the cache was filled.
    """
    answer = force_answer(model, _append(batch, ids[0]))
    says_seg = torch.tensor([model.seg_id in ids[0]], device=answer.says_seg.device)
    return replace(answer, says_seg=says_seg, origins=["generated"])
