"""Local re-attention in row form (paper section 4; docs/method.md).

The attention maps P_0 ... P_{K-1} of a stage's K blocks are chained, A = Q_{K-1} ... Q_0, to score the patches by how
they reach the class token. Only row 0 of A is used, so the chain is computed from the left: a row vector times one map
at a time. The maps are computed again from queries and keys in blocks of rows and never stored, so that memory is
linear in the number of tokens. The published form multiplies whole maps and keeps one row of the N x N result;
`models/textbook.py` has it, with the same scores.

Shapes: B images, N query tokens, M key tokens (both with the class token first), d channels a head, G = B * heads.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from models.attention import AttentionMap

# Elements of a block of rows of the map, over all heads: on a CPU, where the images take turns, a block stays in the
# second-level cache; elsewhere, and in a compiled graph, where every block is a copy of the code, it is large enough
# to fill the device.
BLOCK_ELEMENTS = {"cpu": 2**18}
BLOCK_ELEMENTS_ELSEWHERE = 2**25
MIN_BLOCK_ROWS = 32


@torch.no_grad()
def class_token_scores(maps: Sequence[AttentionMap], *, last_stage: bool) -> Tensor:
    """Scores every patch of a stage by the chained attention between it and the class token.

    Args:
        maps: the attention map of each block of the stage, in order.
        last_stage: stage 4, where M = N and A = P_{K-1} ... P_0. In stages 1-3 the maps are not square and
            Q_k = P_k for odd k, P_k^T for even k.

    Returns:
        (B, heads, N - 1): row 0 of A without its first column. No gradient.
    """
    shape = maps[0].queries.shape[:2]
    with torch.autocast(maps[0].queries.device.type, enabled=False):
        if maps[0].queries.device.type == "cpu" and not torch.compiler.is_compiling():
            images = [[attention.of_image(image) for attention in maps] for image in range(shape[0])]
            row = torch.cat([chained_row(image, last_stage=last_stage) for image in images])
        else:
            row = chained_row([attention.flattened() for attention in maps], last_stage=last_stage)
    return row.unflatten(0, shape)[..., 1:]


def chained_row(maps: Sequence[AttentionMap], *, last_stage: bool) -> Tensor:
    """Row 0 of A for maps (G, N, M): (G, N)."""
    is_transposed = [not last_stage and k % 2 == 0 for k in range(len(maps))]
    row = class_column(maps[-1]) if is_transposed[-1] else class_row(maps[-1])
    for k in reversed(range(len(maps) - 1)):
        row = map_times(maps[k], row) if is_transposed[k] else times_map(row, maps[k])
    return row


def select_patches(scores: Tensor, count: int) -> Tensor:
    """The `count` best patches of each head in falling order: (B, heads, N - 1) to (B, heads, count) indices."""
    return scores.topk(count, dim=-1, sorted=True).indices


def gather_patches(patches: Tensor, selected: Tensor) -> Tensor:
    """Patches (B, N - 1, C) at indices (B, heads, k), one head after the other: (B, heads * k, C)."""
    indices = selected.flatten(1).unsqueeze(2)  # (B, heads * k, 1)
    return patches.gather(1, indices.expand(-1, -1, patches.shape[2]))  # take_along_dim would fix an export's batch


def class_row(attention: AttentionMap) -> Tensor:
    """Row 0 of P, how the class token's query sees the keys: (G, M)."""
    _, probabilities = next(attention.row_blocks(1))
    return probabilities[:, 0]


def class_column(attention: AttentionMap) -> Tensor:
    """Column 0 of P, how the queries see the class token's key: (G, N)."""
    if attention.kept:
        return torch.cat([block[..., 0] for block in attention.kept[0]], dim=1)
    if attention.logsumexp is not None:  # then nothing of the other columns is needed
        attention = attention._replace(keys=attention.keys[:, :1])
    return torch.cat([probabilities[..., 0] for _, probabilities in row_blocks(attention)], dim=1)


def map_times(attention: AttentionMap, vector: Tensor) -> Tensor:
    """P w for a vector w over the keys, (G, M) to (G, N)."""
    row = vector.unsqueeze(1)  # w^T P^T: as a row, since batched products with a single column are slow on a CPU
    return torch.cat([row @ probabilities.mT for _, probabilities in row_blocks(attention)], dim=2).squeeze(1)


def times_map(vector: Tensor, attention: AttentionMap) -> Tensor:
    """w^T P for a vector w over the queries, (G, N) to (G, M)."""
    row = vector.unsqueeze(1)
    return sum(row[..., rows] @ probabilities for rows, probabilities in row_blocks(attention)).squeeze(1)


def row_blocks(attention: AttentionMap) -> Iterator[tuple[slice, Tensor]]:
    """The map in blocks of rows of a size that suits the device; whole in an exported graph, which fits any batch."""
    if torch.compiler.is_exporting():  # a number of blocks that follows the batch would fix its size
        return attention.row_blocks(attention.queries.shape[1])
    device = "compiled" if torch.compiler.is_compiling() else attention.queries.device.type
    elements = BLOCK_ELEMENTS.get(device, BLOCK_ELEMENTS_ELSEWHERE)
    elements_a_row = attention.queries.shape[0] * attention.keys.shape[1]
    return attention.row_blocks(max(MIN_BLOCK_ROWS, elements // elements_a_row))
