"""Pyramid Vision Transformer, version 1 (Wang et al., ICCV 2021): LORA's backbone (paper section 4).

Alone it is a classifier: what the backbone is pretrained as, and what LORA is compared with. docs/method.md says what
the paper leaves open.

Shapes: B images, C channels of a stage, N tokens of a stage (class token included), M reduced key/value tokens.
"""

import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath, Mlp, trunc_normal_
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.attention import AttentionMap, attend

BASE_IMAGE_SIZE = 224  # pixels; the position embeddings have one vector for each grid cell of this size
STRIDE = 32  # pixels of the image along a side of one cell of stage 4's grid
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
        """Grid cells along a side in stage 0 to 3 for a 224 px image: 56, 28, 14, 7."""
        return BASE_IMAGE_SIZE // math.prod(self.patch_sizes[: stage + 1])


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


def mlp_in_rows(mlp: Any, x: Tensor) -> Tensor:
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


class PVT(nn.Module):
    """Images (B, 3, H, W) to logits (B, num_classes), by a linear layer on stage 4's class token.

    The parameters have the names of the published PVT checkpoints, so that checkpoints of it serve as LORA's backbone.

    Args:
        config: widths and depths.
        num_classes: 0 for no classifier.
        drop: dropout on embedded tokens, on the attention's output and in the MLP.
        drop_path: stochastic depth of the last block.
        class_tokens: 1 for each of the four stages that has a class token.
        projections: makes the modules of stage 0 to 3 that are registered before its patch embedding, by name.
    """

    def __init__(
        self,
        config: PVTConfig,
        *,
        num_classes: int,
        drop: float,
        drop_path: float,
        class_tokens: Sequence[int] = (0, 0, 0, 1),
        projections: Callable[[int], Mapping[str, nn.Module]] = lambda stage: {},
    ):
        super().__init__()
        self.config = config
        self.class_tokens = tuple(class_tokens)
        self.grad_checkpointing = False
        self.pos_drop = nn.Dropout(drop)
        # Parameters are registered in the published order, which the optimizer state of a checkpoint refers to.
        for stage, dim in enumerate(config.embed_dims):
            if stage < 3 and class_tokens[stage]:
                self.register_parameter(f"cls_token{stage + 1}", nn.Parameter(torch.zeros(1, 1, dim)))
            cells = config.base_grid(stage) ** 2 + (stage == 3)
            self.register_parameter(f"pos_embed{stage + 1}", nn.Parameter(torch.zeros(1, cells, dim)))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.embed_dims[3]))
        all_blocks = build_blocks(config, drop=drop, drop_path=drop_path)
        for stage, dims in enumerate(itertools.pairwise((3, *config.embed_dims))):
            for name, module in projections(stage).items():
                self.add_module(name, module)
            self.add_module(f"patch_embed{stage + 1}", PatchEmbed(config.patch_sizes[stage], *dims))
            self.add_module(f"block{stage + 1}", all_blocks[stage])
            for name, module in self.after_blocks(stage).items():
                self.add_module(name, module)
        self.norm = nn.LayerNorm(config.embed_dims[3], eps=1e-6)
        for parameter in self.parameters(recurse=False):  # class tokens and position embeddings
            trunc_normal_(parameter, std=0.02)
        self.apply(init_linear)
        self.head = nn.Linear(config.embed_dims[3], num_classes) if num_classes else nn.Identity()
        init_linear(self.head)

    def after_blocks(self, stage: int) -> Mapping[str, nn.Module]:
        """The modules of stage 0 to 3 that are registered after its blocks, by name: none."""
        return {}

    def has_class_token(self, stage: int) -> bool:
        """Whether stage 0 to 3 has a class token."""
        return bool(self.class_tokens[stage])

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Whether training keeps only each block's input and computes the rest again for the gradient.

        Results and gradients stay the same, dropout and stochastic depth included; memory falls, time rises.
        """
        self.grad_checkpointing = enable

    def group_matcher(self, coarse: bool = False) -> Callable[[str], int]:
        """The layers of the network, for timm's layer-wise learning rates."""
        return layer_matcher(self)

    def embed(self, x: Tensor, stage: int) -> tuple[Tensor, tuple[int, int]]:
        """A stage's embedded tokens (B, N, C), the class token first if it has one, and the grid of its patches."""
        x, grid = self.get_submodule(f"patch_embed{stage + 1}")(x)
        position = self.get_parameter(f"pos_embed{stage + 1}")  # (1, cells, C)
        if not self.has_class_token(stage):
            return self.pos_drop(x + interpolate_position_embedding(position, grid)), grid
        if stage == 3:
            token, cells = self.cls_token, position[:, 1:]
        else:  # the class token shares slot 0 with the first patch: the position embedding is that of plain PVT
            token, cells = self.get_parameter(f"cls_token{stage + 1}"), position
        positions = torch.cat([position[:, :1], interpolate_position_embedding(cells, grid)], dim=1)  # (1, N, C)
        x = torch.cat([token.expand(x.shape[0], -1, -1), x], dim=1) + positions  # (B, N, C)
        return self.pos_drop(x), grid

    def forward_stage(self, x: Tensor, stage: int) -> tuple[Tensor, Tensor, list[AttentionMap]]:
        """Runs stage 0 to 3 on images or the map of the stage before, (B, C_in, H, W).

        Returns:
            The patches as a map (B, C, H', W'), the class token (B, 0 or 1, C), and with a class token the attention
            map of each block.
        """
        x, grid = self.embed(x, stage)
        maps: list[AttentionMap] = []
        for block in self.get_submodule(f"block{stage + 1}").children():
            if self.grad_checkpointing and torch.is_grad_enabled():
                x, attention = checkpoint(block, x, grid, use_reentrant=False)
            else:
                x, attention = block(x, grid)
            if self.has_class_token(stage):
                maps.append(attention.beside(maps))
        class_token, patches = x.tensor_split([x.shape[1] - grid[0] * grid[1]], dim=1)
        return patches.transpose(1, 2).unflatten(2, grid), class_token, maps

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) to logits (B, num_classes).

        Raises:
            ValueError: sides that are not multiples of 32.
        """
        check_sides(images.shape[2], images.shape[3])
        x = images
        for stage in range(4):
            x, class_token, _ = self.forward_stage(x, stage)
        return self.head(self.norm(class_token[:, 0]))


def build_pvt(*, num_classes: int = 7, backbone: str = "pvt_small", drop: float = 0.0, drop_path: float = 0.1) -> PVT:
    """Builds PVT as a classifier; `backbone` is a name of `BACKBONES`."""
    return PVT(find_config(backbone), num_classes=num_classes, drop=drop, drop_path=drop_path)


def find_config(backbone: str) -> PVTConfig:
    """The widths and depths of a backbone; raises ValueError for an unknown name."""
    if backbone not in BACKBONES:
        raise ValueError(f"backbone is {backbone!r}: expected one of {', '.join(BACKBONES)}")
    return BACKBONES[backbone]


def check_sides(height: int, width: int) -> None:
    """Raises ValueError unless an image's sides, in pixels, are multiples of 32."""
    for side in (height, width):
        if side < STRIDE or side % STRIDE:
            raise ValueError(
                f"input_size gives {height} x {width} px images: each side must be a multiple of {STRIDE}; use "
                f"{max(side // STRIDE, 1) * STRIDE} in place of {side}"
            )


def backbone_of(model: nn.Module) -> Any:
    """What sees the images in a network: a part of it, or the network itself."""
    return getattr(model, "vision_model", model)


BLOCK = re.compile(r"(?:vision_model\.)?block(\d)\.(\d+)\.")
STAGE_INPUT = re.compile(r"(?:vision_model\.)?(?:(?:patch_embed|pos_embed|cls_token)(\d)|cls_token$)")
TEXT_LAYER = re.compile(r"text_model\.encoder\.layer\.(\d+)\.")


def layer_matcher(model: Any) -> Callable[[str], int]:
    """A function from a parameter's name to the number of its layer, as timm's `group_matcher` wants it.

    The backbone's blocks count through all stages from 1; what embeds a stage belongs to the block before it, so that
    the first stage's embedding is 0. The text encoder's layers count so that its last one has the number of the last
    block. Everything else (projections, fusion, head) is the layer after the last block.
    """
    depths = backbone_of(model).config.depths
    text_layers = len(model.text_model.encoder.layer) if hasattr(model, "text_model") else 0
    last = sum(depths)

    def number(name: str) -> int:
        if block := BLOCK.match(name):
            return 1 + sum(depths[: int(block[1]) - 1]) + int(block[2])
        if stage := STAGE_INPUT.match(name):
            return sum(depths[: int(stage[1] or 4) - 1])  # `cls_token` without a number is stage 4's
        if layer := TEXT_LAYER.match(name):
            return max(last - text_layers + 1 + int(layer[1]), 0)
        return max(last - text_layers, 0) if name.startswith("text_model.embeddings.") else last + 1

    return number
