"""Pyramid Vision Transformer, version 1 (Wang et al., ICCV 2021): the blocks of LORA's backbone (spec section 1).

Shapes: B images, C channels of a stage, N tokens of a stage (class token included), M reduced key/value tokens.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from timm.layers import DropPath, Mlp, trunc_normal_
from torch import Tensor, nn

from models.attention import AttentionMap, attend

BASE_IMAGE_SIZE = 224  # pixels; the position embeddings have one vector a grid cell of this size
# Elements of the MLP's hidden layer that are made at a time on a CPU without gradient: few enough for its cache.
HIDDEN_ELEMENTS = 2**19


@dataclass(frozen=True)
class PVTConfig:
    """Widths and depths of the four stages; `reductions` is the spatial reduction of keys and values."""

    embed_dims: tuple[int, int, int, int] = (64, 128, 320, 512)
    num_heads: tuple[int, int, int, int] = (1, 2, 5, 8)
    mlp_ratios: tuple[int, int, int, int] = (8, 8, 4, 4)
    depths: tuple[int, int, int, int] = (3, 4, 6, 3)
    reductions: tuple[int, int, int, int] = (8, 4, 2, 1)
    patch_sizes: tuple[int, int, int, int] = (4, 2, 2, 2)

    def base_grid(self, stage: int) -> int:
        """Grid cells a side of stage 0 to 3 for a 224 px image: 56, 28, 14, 7."""
        stride = 1
        for patch_size in self.patch_sizes[: stage + 1]:
            stride *= patch_size
        return BASE_IMAGE_SIZE // stride


BACKBONES = {
    "pvt_tiny": PVTConfig(depths=(2, 2, 2, 2)),
    "pvt_small": PVTConfig(),
    "pvt_medium": PVTConfig(depths=(3, 4, 18, 3)),
    "pvt_large": PVTConfig(depths=(3, 8, 27, 3)),
    # Not published: narrow enough to train on a laptop's processor in minutes (configs/demo.py).
    "pvt_demo": PVTConfig(embed_dims=(32, 64, 128, 192), num_heads=(1, 2, 4, 6), depths=(2, 2, 2, 2)),
}


class PatchConv(nn.Conv2d):
    """Convolution with kernel = stride = patch as one matrix product: (B, C_in, H, W) to tokens (B, H' * W', C).

    The maps between stages are tokens seen as maps, so that a patch's rows lie together in memory and the product's
    input is made by copying runs; the convolution itself copies the whole map to its own layout first.
    """

    def __init__(self, in_channels: int, out_channels: int, patch_size: int):
        super().__init__(in_channels, out_channels, kernel_size=patch_size, stride=patch_size)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C_in, H, W), sides multiples of the patch, to tokens (B, H' * W', C)."""
        patch = self.kernel_size[0]
        x = x.unflatten(3, (-1, patch)).unflatten(2, (-1, patch))  # (B, C_in, H', patch, W', patch)
        x = x.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)  # (B, H' * W', patch * patch * C_in)
        return F.linear(x, self.weight.permute(0, 2, 3, 1).flatten(1), self.bias)


class PatchEmbed(nn.Module):
    """Convolution with kernel = stride = patch, flatten, LayerNorm: (B, C_in, H, W) to (B, H' * W', C)."""

    def __init__(self, patch_size: int, in_channels: int, embed_dim: int):
        super().__init__()
        self.proj = PatchConv(in_channels, embed_dim, patch_size)
        self.norm = nn.LayerNorm(embed_dim, eps=1e-5)

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Returns the patch tokens (B, H' * W', C) and their grid (H', W')."""
        patch = self.proj.kernel_size[0]
        return self.norm(self.proj(x)), (x.shape[2] // patch, x.shape[3] // patch)


class SpatialReductionAttention(nn.Module):
    """Attention whose keys and values come from spatially reduced tokens; a class token is not reduced."""

    def __init__(self, embed_dim: int, num_heads: int, reduction: int, drop: float):
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(embed_dim, embed_dim)
        self.kv = nn.Linear(embed_dim, 2 * embed_dim)
        self.proj = nn.Linear(embed_dim, embed_dim)
        self.proj_drop = nn.Dropout(drop)
        self.reduction = reduction
        if reduction > 1:
            self.sr = PatchConv(embed_dim, embed_dim, reduction)
            self.norm = nn.LayerNorm(embed_dim, eps=1e-5)

    def reduce(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, N, C) to (B, M, C): the convolution sees the patches only, a class token joins in front of the norm."""
        if self.reduction == 1:
            return x
        class_token, patches = x.tensor_split([x.shape[1] - grid[0] * grid[1]], dim=1)
        patches = self.sr(patches.transpose(1, 2).unflatten(2, grid))  # (B, H * W / r^2, C)
        return self.norm(torch.cat([class_token, patches], dim=1))  # (B, M, C)

    def forward(self, x: Tensor, grid: tuple[int, int]) -> tuple[Tensor, AttentionMap]:
        """Returns the output (B, N, C) and the attention's map (B, heads, N, M)."""
        queries = self.q(x).unflatten(2, (self.num_heads, -1)).transpose(1, 2)  # (B, heads, N, d)
        keys_values = self.kv(self.reduce(x, grid)).unflatten(2, (2, self.num_heads, -1))  # (B, M, 2, heads, d)
        keys, values = keys_values.permute(2, 0, 3, 1, 4)  # (B, heads, M, d) each
        x, attention = attend(queries, keys, values)  # (B, heads, N, d)
        x = self.proj(x.transpose(1, 2).flatten(2))  # (B, N, C)
        return self.proj_drop(x), attention


class Block(nn.Module):
    """Pre-norm transformer block; also returns its attention map, all that re-attention needs of it."""

    def __init__(self, embed_dim: int, num_heads: int, mlp_ratio: int, reduction: int, drop: float, drop_path: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(embed_dim, eps=1e-6)
        self.attn = SpatialReductionAttention(embed_dim, num_heads, reduction, drop)
        self.drop_path = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(embed_dim, eps=1e-6)
        self.mlp = Mlp(embed_dim, mlp_ratio * embed_dim, drop=drop)

    def forward(self, x: Tensor, grid: tuple[int, int]) -> tuple[Tensor, AttentionMap]:
        """(B, N, C) to (B, N, C), with the attention's map (B, heads, N, M)."""
        attended, attention = self.attn(self.norm1(x), grid)
        x = x + self.drop_path(attended)
        x = x + self.drop_path(mlp_in_rows(self.mlp, self.norm2(x)))
        return x, attention


def mlp_in_rows(mlp: Mlp, x: Tensor) -> Tensor:
    """The MLP on tokens (B, N, C); on a CPU without gradient in blocks of tokens, if there are many.

    Its hidden layer is the largest tensor of the network: 26 MB an image of 448 px in stage 1. In blocks it is neither
    written to nor read from memory.
    """
    rows = HIDDEN_ELEMENTS // mlp.fc1.out_features
    tokens = x.flatten(0, 1)
    if x.device.type != "cpu" or torch.is_grad_enabled() or torch.compiler.is_compiling() or len(tokens) <= 2 * rows:
        return mlp(x)
    return torch.cat([mlp(block) for block in tokens.split(rows)]).unflatten(0, x.shape[:2])


def build_blocks(config: PVTConfig, *, drop: float, drop_path: float) -> list[nn.ModuleList]:
    """The blocks of the four stages; stochastic depth grows linearly from 0 to `drop_path` over all of them."""
    last = max(sum(config.depths) - 1, 1)
    rates = [drop_path * number / last for number in range(sum(config.depths))]
    stages = []
    for stage, depth in enumerate(config.depths):
        width = (config.embed_dims[stage], config.num_heads[stage], config.mlp_ratios[stage])
        blocks = [Block(*width, config.reductions[stage], drop, rates.pop(0)) for _ in range(depth)]
        stages.append(nn.ModuleList(blocks))
    return stages


def interpolate_position_embedding(position_embedding: Tensor, grid: tuple[int, int]) -> Tensor:
    """Bilinear interpolation of a square grid's position embedding, (1, G * G, C), to (1, H * W, C)."""
    side = round(position_embedding.shape[1] ** 0.5)
    if grid == (side, side):
        return position_embedding
    cells = position_embedding.transpose(1, 2).unflatten(2, (side, side))  # (1, C, G, G)
    cells = F.interpolate(cells, size=grid, mode="bilinear", align_corners=False)  # (1, C, H, W)
    return cells.flatten(2).transpose(1, 2)


def init_linear(module: nn.Module) -> None:
    """Initial values of the backbone: linear weights truncated normal (std 0.02), linear biases 0."""
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
