"""Fused attention that keeps what its map can be computed again from.

The map P = softmax(q k^T / sqrt(d)) is never stored: any of its rows are a matrix product and an exponential of the
queries, the keys and, if the fused kernel returns it, the logarithm of each row's sum.

Shapes: B images, N query tokens, M key tokens, d channels a head.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

LOG2_E = math.log2(math.e)


class AttentionMap(NamedTuple):
    """The map P of one attention, as queries and keys: (B, heads, N, M), or (G, N, M) with G = B * heads."""

    queries: Tensor  # (..., N, d)
    keys: Tensor  # (..., M, d)
    logsumexp: Tensor | None  # log of the sum of exp(q k^T / sqrt(d)) over the keys, (..., N); None: not known

    def of_image(self, image: int) -> "AttentionMap":
        """The maps of one image, (heads, N, M)."""
        logsumexp = None if self.logsumexp is None else self.logsumexp[image]
        return AttentionMap(self.queries[image], self.keys[image], logsumexp)

    def flattened(self) -> "AttentionMap":
        """The maps of all images, (B * heads, N, M)."""
        logsumexp = None if self.logsumexp is None else self.logsumexp.flatten(0, 1)
        return AttentionMap(self.queries.flatten(0, 1), self.keys.flatten(0, 1), logsumexp)

    def row_blocks(self, step: int) -> Iterator[tuple[slice, Tensor]]:
        """P (G, N, M) in blocks of `step` rows: (the rows, their probabilities (G, rows, M)), one after another.

        In float32 at least: re-attention multiplies many small probabilities.
        """
        scale = self.keys.shape[2] ** -0.5
        transposed_keys = self.keys.mT  # (G, d, M)
        dtype = torch.promote_types(self.queries.dtype, torch.float32)
        if self.logsumexp is not None:
            # exp2 is a few vector instructions everywhere; exp goes through MKL on a CPU, three times slower on AMD's.
            offset = (self.logsumexp.contiguous() * -LOG2_E).unsqueeze(2)  # (G, N, 1)
        for start in range(0, self.queries.shape[1], step):
            rows = slice(start, min(start + step, self.queries.shape[1]))
            if self.logsumexp is None:
                logits = self.queries[:, rows] @ transposed_keys
                yield rows, (logits * scale).softmax(dim=2, dtype=dtype)
            elif self.queries.dtype == dtype:  # no pass for the largest logit and none for the sum
                logits = torch.baddbmm(offset[:, rows], self.queries[:, rows], transposed_keys, alpha=scale * LOG2_E)
                yield rows, logits.exp2_()
            else:
                logits = self.queries[:, rows] @ transposed_keys
                yield rows, torch.add(offset[:, rows], logits, alpha=scale * LOG2_E).exp2_()


def attend(queries: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, AttentionMap]:
    """Attention of queries (B, heads, N, d) to keys and values (B, heads, M, d): its output and its map.

    `F.scaled_dot_product_attention` does not return the log-sum-exp that its kernels compute. On a CPU the kernel that
    it would choose is called by name; elsewhere the map has no log-sum-exp.
    """
    if gives_logsumexp(queries):
        output, logsumexp = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(queries, keys, values)
        return output, AttentionMap(queries, keys, logsumexp)
    output = F.scaled_dot_product_attention(queries, keys, values)
    return output, AttentionMap(queries, keys, None)


def gives_logsumexp(queries: Tensor) -> bool:
    """Whether the CPU's fused kernel can be called by name and returns the log-sum-exp.

    PyTorch's decomposition of it for exported graphs returns the map instead, and its description for compiled graphs
    says float32 while the kernel returns float64.
    """
    if queries.device.type != "cpu" or torch.compiler.is_exporting():
        return False
    return not (torch.compiler.is_compiling() and queries.dtype == torch.float64)
