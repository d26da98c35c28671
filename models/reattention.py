"""Local re-attention in row form (paper section 4, spec section 2).

The attention maps P_0 ... P_{K-1} of a stage's K blocks are chained, A = Q_{K-1} ... Q_0, to score the patches by how
they reach the class token. Only row 0 of A is ever needed, so the chain is taken from the left: a row vector times one
map at a time. The maps are made again from queries and keys in blocks of rows and never stored, so that memory is
linear in the number of tokens; the published form multiplies whole maps and keeps one row of the N x N result.
`tests/oracle.py` has that form; both give the same scores.

Shapes: B images, N query tokens, M key tokens (both with the class token first), d channels a head.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

# Elements of a block of rows of the map, over all images and heads: on a CPU a block stays in the second-level cache,
# elsewhere it is large enough to fill the device.
BLOCK_ELEMENTS = {"cpu": 2**18}
BLOCK_ELEMENTS_ELSEWHERE = 2**25
MIN_BLOCK_ROWS = 32


@torch.no_grad()
def class_token_scores(queries: Sequence[Tensor], keys: Sequence[Tensor], *, last_stage: bool) -> Tensor:
    """Scores every patch of a stage by the chained attention between it and the class token.

    Args:
        queries: for each block of the stage, in order, (B, heads, N, d).
        keys: likewise, (B, heads, M, d).
        last_stage: stage 4, where M = N and A = P_{K-1} ... P_0. In stages 1-3 the maps are not square and
            Q_k = P_k for odd k, P_k^T for even k.

    Returns:
        (B, heads, N - 1): row 0 of A without its first column. No gradient.
    """
    row = None
    with torch.autocast(queries[0].device.type, enabled=False):
        for k in reversed(range(len(queries))):
            transposed = not last_stage and k % 2 == 0
            q, scaled_keys = queries[k], keys[k] * keys[k].shape[-1] ** -0.5
            if row is None:
                row = class_column(q, scaled_keys) if transposed else class_row(q, scaled_keys)
            else:
                row = map_times(q, scaled_keys, row) if transposed else times_map(row, q, scaled_keys)
    return row[..., 1:]


def select_patches(scores: Tensor, count: int) -> Tensor:
    """The `count` best patches of each head in falling order: (B, heads, N - 1) to (B, heads, count) indices."""
    return scores.topk(count, dim=-1, sorted=True).indices


def gather_patches(patches: Tensor, selected: Tensor) -> Tensor:
    """Patches (B, N - 1, C) at indices (B, heads, k), one head after the other: (B, heads * k, C)."""
    indices = selected.flatten(1).unsqueeze(2)  # (B, heads * k, 1)
    return torch.take_along_dim(patches, indices, dim=1)


def class_row(queries: Tensor, scaled_keys: Tensor) -> Tensor:
    """Row 0 of P, how the class token's query sees the keys: (B, heads, M)."""
    return softmax(queries[:, :, :1] @ scaled_keys.mT).squeeze(2)


def class_column(queries: Tensor, scaled_keys: Tensor) -> Tensor:
    """Column 0 of P, how the queries see the class token's key: (B, heads, N)."""
    return torch.cat([probabilities[..., 0] for _, probabilities in row_blocks(queries, scaled_keys)], dim=2)


def map_times(queries: Tensor, scaled_keys: Tensor, vector: Tensor) -> Tensor:
    """P w for a vector w over the keys, (B, heads, M) to (B, heads, N)."""
    blocks = row_blocks(queries, scaled_keys)
    return torch.cat([(probabilities @ vector.unsqueeze(3)).squeeze(3) for _, probabilities in blocks], dim=2)


def times_map(vector: Tensor, queries: Tensor, scaled_keys: Tensor) -> Tensor:
    """w^T P for a vector w over the queries, (B, heads, N) to (B, heads, M)."""
    total = vector.new_zeros(*scaled_keys.shape[:3])
    for rows, probabilities in row_blocks(queries, scaled_keys):
        total += (vector[:, :, None, rows] @ probabilities).squeeze(2)
    return total


def row_blocks(queries: Tensor, scaled_keys: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """P = softmax(q k^T) in blocks of rows: (the rows, their probabilities (B, heads, rows, M)), one after another."""
    elements = BLOCK_ELEMENTS.get(queries.device.type, BLOCK_ELEMENTS_ELSEWHERE)
    elements_a_row = queries.shape[0] * queries.shape[1] * scaled_keys.shape[2]
    step = max(MIN_BLOCK_ROWS, elements // elements_a_row)
    for start in range(0, queries.shape[2], step):
        rows = slice(start, min(start + step, queries.shape[2]))
        yield rows, softmax(queries[:, :, rows] @ scaled_keys.mT)


def softmax(logits: Tensor) -> Tensor:
    """Softmax over the keys, in float32 at least: the chain multiplies many small probabilities."""
    return logits.softmax(dim=-1, dtype=torch.promote_types(logits.dtype, torch.float32))
