"""Attention that keeps its map, or what the map can be computed again from.

Fused attention does not store the map P = softmax(q k^T / sqrt(d)): any of its rows are a matrix product and an
exponential of the queries, the keys and, if the kernel returns it, the logarithm of each row's sum. In bfloat16 on a
CPU the fused kernel takes longer than the products themselves; there the map is written out in blocks of rows, which
are kept for re-attention if they are not too many.

Shapes: B images, N query tokens, M key tokens, d channels a head.
"""

import math
import time
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

LOG2_E = math.log2(math.e)
# In bfloat16 on a CPU, where the map is written out in blocks of rows. All are numbers of elements.
BLOCK_ELEMENTS = 2**19  # of a block: 2 MiB in float32, which stay in the cache
KEPT_ELEMENTS = 2**24  # of a stage's maps that are kept for re-attention: 64 MiB
GRADIENT_ELEMENTS = 2**22  # of an image's map, beyond which training keeps none: above 512 px


class AttentionMap(NamedTuple):
    """The map P of one attention, as queries and keys: (B, heads, N, M), or (G, N, M) with G = B * heads."""

    queries: Tensor  # (..., N, d)
    keys: Tensor  # (..., M, d)
    logsumexp: Tensor | None  # log of the sum of exp(q k^T / sqrt(d)) over the keys, (..., N); None: not known
    kept: Sequence[Sequence[Tensor]] = ()  # P of the first images in blocks of rows (heads, rows, M), in float32

    def num_kept(self) -> int:
        """The elements that are kept."""
        return sum(block.numel() for blocks in self.kept for block in blocks)

    def beside(self, others: Sequence["AttentionMap"]) -> "AttentionMap":
        """The same map, which keeps no more than `KEPT_ELEMENTS` together with the others of its stage."""
        if not self.kept:
            return self
        room = KEPT_ELEMENTS - sum(other.num_kept() for other in others)
        return self._replace(kept=self.kept[: room // map_elements(self.queries, self.keys)])

    def of_image(self, image: int) -> "AttentionMap":
        """The maps of one image, (heads, N, M)."""
        logsumexp = None if self.logsumexp is None else self.logsumexp[image]
        return AttentionMap(self.queries[image], self.keys[image], logsumexp, self.kept[image : image + 1])

    def flattened(self) -> "AttentionMap":
        """The maps of all images, (B * heads, N, M)."""
        logsumexp = None if self.logsumexp is None else self.logsumexp.flatten(0, 1)
        return AttentionMap(self.queries.flatten(0, 1), self.keys.flatten(0, 1), logsumexp)

    def row_blocks(self, step: int) -> Iterator[tuple[slice, Tensor]]:
        """P (G, N, M) in blocks of `step` rows: (the rows, their probabilities (G, rows, M)), one after another.

        In float32 at least: re-attention multiplies many small probabilities. If P is kept, in the blocks as they are.
        """
        if self.kept:
            yield from self.kept_blocks()
            return
        scale = self.keys.shape[2] ** -0.5
        dtype = torch.promote_types(self.queries.dtype, torch.float32)
        in_one_product = self.logsumexp is not None and self.queries.dtype == dtype
        # Scaled before the product, which in float16 would pass 65504 sooner.
        transposed_keys = (self.keys if in_one_product else self.keys * scale).mT  # (G, d, M)
        if self.logsumexp is not None:
            # exp2 is a few vector instructions everywhere; exp goes through MKL on a CPU, three times slower on AMD's.
            offset = (self.logsumexp.contiguous() * -LOG2_E).unsqueeze(2)  # (G, N, 1)
        for start in range(0, self.queries.shape[1], step):
            rows = slice(start, min(start + step, self.queries.shape[1]))
            if self.logsumexp is None:
                logits = self.queries[:, rows] @ transposed_keys
                yield rows, logits.softmax(dim=2, dtype=dtype)
            elif in_one_product:  # no pass for the largest logit and none for the sum
                logits = torch.baddbmm(offset[:, rows], self.queries[:, rows], transposed_keys, alpha=scale * LOG2_E)
                yield rows, logits.exp2_()
            else:
                logits = self.queries[:, rows] @ transposed_keys
                yield rows, torch.add(offset[:, rows], logits, alpha=LOG2_E).exp2_()

    def kept_blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """As `row_blocks`, the blocks of one image that are kept."""
        start = 0
        for block in self.kept[0]:
            yield slice(start, start + block.shape[1]), block
            start += block.shape[1]


def attend(queries: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, AttentionMap]:
    """Attention of queries (B, heads, N, d) to keys and values (B, heads, M, d): its output and its map.

    `F.scaled_dot_product_attention` does not return the log-sum-exp that its kernels compute. On a CPU the kernel that
    it would choose is called by name; elsewhere the map has no log-sum-exp.
    """
    if is_written_out(queries, keys):
        return attend_in_rows(queries, keys, values)
    if gives_logsumexp(queries):
        output, logsumexp = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(queries, keys, values)
        return output, AttentionMap(queries, keys, logsumexp)
    output = F.scaled_dot_product_attention(queries, keys, values)
    return output, AttentionMap(queries, keys, None)


def attend_in_rows(queries: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, AttentionMap]:
    """As `attend`, one image after another and the map in blocks of rows."""
    scaled_keys = (keys * keys.shape[3] ** -0.5).mT  # (B, heads, d, M)
    elements = map_elements(queries, keys)
    outputs, kept = [], list[list[Tensor]]()
    for image_queries, image_keys, image_values in zip(queries, scaled_keys, values, strict=True):
        rows, blocks = [], []
        for block in image_queries.tensor_split(math.ceil(elements / BLOCK_ELEMENTS), dim=1):
            probabilities, rounded = Probabilities.apply(block @ image_keys)  # (heads, rows, M)
            rows.append(rounded @ image_values)
            if (len(kept) + 1) * elements <= KEPT_ELEMENTS:
                blocks.append(probabilities)
        outputs.append(torch.cat(rows, dim=1))  # (heads, N, d)
        kept += [blocks] if blocks else []
    return torch.stack(outputs), AttentionMap(queries, keys, None, kept)


class Probabilities(torch.autograd.Function):
    """Softmax of each row of bfloat16 logits: in float32 for re-attention, and rounded, with a gradient."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor) -> tuple[Tensor, Tensor]:
        probabilities = logits.softmax(dim=-1, dtype=torch.float32)
        rounded = probabilities.to(logits.dtype)
        ctx.mark_non_differentiable(probabilities)
        ctx.save_for_backward(rounded)
        return probabilities, rounded

    @staticmethod
    def backward(ctx: Any, _: Tensor, gradient: Tensor) -> Tensor:  # type: ignore[override]
        (rounded,) = ctx.saved_tensors
        return torch.ops.aten._softmax_backward_data(gradient, rounded, -1, rounded.dtype)


def map_elements(queries: Tensor, keys: Tensor) -> int:
    """The elements of the map of one image."""
    return queries.shape[1] * queries.shape[2] * keys.shape[2]


def is_written_out(queries: Tensor, keys: Tensor) -> bool:
    """Whether the map is written out: in bfloat16 on a CPU that has it, unless the gradient would keep too much."""
    if queries.dtype != torch.bfloat16 or queries.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    return has_bfloat16() and (not torch.is_grad_enabled() or map_elements(queries, keys) <= GRADIENT_ELEMENTS)


@cache
def has_bfloat16() -> bool:
    """Whether the CPU multiplies bfloat16 matrices faster than float32 ones, measured once in a few milliseconds.

    The ratio is about 2 with instructions for bfloat16, and 0.4 without: there oneDNN converts the matrices. It is
    that of one thread, since several wait for one another on a busy machine.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    matrices = {dtype: torch.ones(256, 256, dtype=dtype) for dtype in (torch.float32, torch.bfloat16)}
    seconds = dict.fromkeys(matrices, math.inf)
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        for _ in range(5):
            for dtype, matrix in matrices.items():
                began = time.perf_counter()
                matrix @ matrix
                seconds[dtype] = min(seconds[dtype], time.perf_counter() - began)
    torch.set_num_threads(threads)
    return seconds[torch.bfloat16] < seconds[torch.float32]


def gives_logsumexp(queries: Tensor) -> bool:
    """Whether the CPU's fused kernel can be called by name and returns the log-sum-exp.

    PyTorch's decomposition of it for exported graphs returns the map instead, and its description for compiled graphs
    says float32 while the kernel returns float64.
    """
    if queries.device.type != "cpu" or torch.compiler.is_exporting():
        return False
    return not (torch.compiler.is_compiling() and queries.dtype == torch.float64)
