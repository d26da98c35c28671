"""LORA's visual half without its head: PVT whose stages select local tokens by re-attention (spec sections 1, 2)."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from timm.layers import trunc_normal_
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.attention import AttentionMap
from models.pvt import PatchEmbed, PVTConfig, build_blocks, init_linear, interpolate_position_embedding
from models.reattention import class_token_scores, gather_patches, select_patches
from utils import UserError

TOKENS = ("both", "global", "local", "none")  # which tokens the fusion sees beside stage 4's class token
STRIDE = 32  # pixels of the image a side of one cell of stage 4's grid


class VisualFeatures(NamedTuple):
    """Visual tokens (B, n_visual, C_4) and, for each stage with re-attention in order, patch indices (B, heads, k)."""

    tokens: Tensor
    selected: list[Tensor]


class VisionModel(nn.Module):
    """PVT with local re-attention: images (B, 3, H, W) to the visual sequence of the fusion head.

    Args:
        config: widths and depths of the backbone.
        alpha: how many patches a head selects, in multiples of a stage's squared reduction.
        locals: which of the four stages give local tokens beside stage 4; four entries, the fourth 0.
        drop: dropout on embedded tokens, attention output and in the MLP.
        drop_path: stochastic depth of the last block.
        tokens: what the visual sequence has beside stage 4's class token: global tokens (the class tokens of stages
            1-3), local tokens (the selected patches), both as in the paper, or none. An ablation; without them their
            projections are not there.
    """

    def __init__(
        self,
        config: PVTConfig,
        *,
        alpha: int,
        locals: Sequence[int],
        drop: float,
        drop_path: float,
        tokens: str = "both",
    ):
        super().__init__()
        if tokens not in TOKENS:
            raise UserError(f"--tokens is {tokens!r}: expected one of {', '.join(TOKENS)}")
        self.keeps_local, self.keeps_global = tokens in ("both", "local"), tokens in ("both", "global")
        check_locals(locals)
        if alpha < 1:
            raise UserError(f"--alpha is {alpha}: expected a positive number of patches, as the paper's 8")
        self.config = config
        self.alpha = alpha
        self.locals = tuple(int(local) for local in locals)
        self.pos_drop = nn.Dropout(drop)
        # Parameters are registered in the published order, which the optimizer state of a checkpoint refers to.
        for stage, (dim, local) in enumerate(zip(config.embed_dims, self.locals, strict=True)):
            if local:
                self.register_parameter(f"cls_token{stage + 1}", nn.Parameter(torch.zeros(1, 1, dim)))
            cells = config.base_grid(stage) ** 2 + (stage == 3)
            self.register_parameter(f"pos_embed{stage + 1}", nn.Parameter(torch.zeros(1, cells, dim)))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.embed_dims[3]))
        all_blocks = build_blocks(config, drop=drop, drop_path=drop_path)
        in_channels = 3
        for stage, dim in enumerate(config.embed_dims):
            for kind, kept in (("local", self.keeps_local), ("global", self.keeps_global)):
                if self.locals[stage] and kept:
                    self.add_module(f"{kind}_proj{stage + 1}", token_projection(dim, config.embed_dims[3]))
            self.add_module(f"patch_embed{stage + 1}", PatchEmbed(config.patch_sizes[stage], in_channels, dim))
            self.add_module(f"block{stage + 1}", all_blocks[stage])
            in_channels = dim
        self.norm = nn.LayerNorm(config.embed_dims[3], eps=1e-6)
        self.grad_checkpointing = False
        self.init_weights()

    @property
    def num_tokens(self) -> int:
        """Length of the visual sequence, the same at any image size (spec section 2: 996 for 1110 at alpha 8)."""
        stages = [stage for stage in range(4) if self.has_class_token(stage)]
        local_tokens = sum(self.config.num_heads[stage] * self.patches_a_head(stage) for stage in stages)
        return (len(stages) if self.keeps_global else 1) + self.keeps_local * local_tokens

    def has_class_token(self, stage: int) -> bool:
        """Whether stage 0 to 3 has a class token, hence re-attention and local tokens."""
        return stage == 3 or bool(self.locals[stage])

    def patches_a_head(self, stage: int) -> int:
        """How many patches a head of stage 0 to 3 selects: alpha * r, with r = N // (M - 1), the reduction squared."""
        return self.alpha * self.config.reductions[stage] ** 2

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Whether training keeps each block's input alone and computes the rest again for the gradient.

        Results and gradients stay the same, dropout and stochastic depth included; memory falls, time rises.
        """
        self.grad_checkpointing = enable

    def init_weights(self) -> None:
        """Initial values of spec section 1; convolutions stay as PyTorch makes them."""
        for name, parameter in self.named_parameters(recurse=False):
            assert name.startswith(("cls_token", "pos_embed"))
            trunc_normal_(parameter, std=0.02)
        self.apply(init_linear)

    def embed(self, x: Tensor, stage: int) -> tuple[Tensor, tuple[int, int]]:
        """A stage's embedded tokens (B, N, C), class token first where it has one, and the grid of its patches."""
        x, grid = self.get_submodule(f"patch_embed{stage + 1}")(x)
        position = self.get_parameter(f"pos_embed{stage + 1}")  # (1, cells, C)
        if not self.has_class_token(stage):
            return self.pos_drop(x + interpolate_position_embedding(position, grid)), grid
        if stage == 3:
            token, cells = self.cls_token, position[:, 1:]
        else:  # the class token shares slot 0 with the first patch: no parameter is added to the backbone
            token, cells = self.get_parameter(f"cls_token{stage + 1}"), position
        position = torch.cat([position[:, :1], interpolate_position_embedding(cells, grid)], dim=1)  # (1, N, C)
        x = torch.cat([token.expand(x.shape[0], -1, -1), x], dim=1) + position  # (B, N, C)
        return self.pos_drop(x), grid

    def forward_blocks(self, x: Tensor, grid: tuple[int, int], stage: int) -> tuple[Tensor, list[AttentionMap]]:
        """Runs the blocks of stage 0 to 3 on (B, N, C); with a class token their attention maps are kept."""
        maps = []
        for block in self.get_submodule(f"block{stage + 1}"):
            if self.grad_checkpointing and torch.is_grad_enabled():
                x, attention = checkpoint(block, x, grid, use_reentrant=False)
            else:
                x, attention = block(x, grid)
            if self.has_class_token(stage):
                maps.append(attention)
        return x, maps

    def forward_stage(self, x: Tensor, stage: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """Runs stage 0 to 3 on images or the map of the stage before, (B, C_in, H, W).

        Returns:
            Patches as a map (B, C, H', W'), the stage's class token (B, 0 or 1, C), and the selected patches
            (B, heads, k), None for a stage without re-attention.
        """
        x, grid = self.embed(x, stage)
        x, maps = self.forward_blocks(x, grid, stage)
        selected = None
        if maps:
            scores = class_token_scores(maps, last_stage=stage == 3)  # (B, heads, N - 1)
            selected = select_patches(scores, self.patches_a_head(stage))  # (B, heads, alpha * r)
        class_token, patches = x.tensor_split([x.shape[1] - grid[0] * grid[1]], dim=1)
        return patches.transpose(1, 2).unflatten(2, grid), class_token, selected

    def forward(self, images: Tensor) -> VisualFeatures:
        """Images (B, 3, H, W) to the visual tokens (B, num_tokens, C_4) and the selected patches.

        Raises:
            UserError: sides that are not multiples of 32, or too small for alpha.
        """
        check_image_size(images.shape[2], images.shape[3], self.alpha)
        global_tokens, local_tokens, all_selected = [], [], []
        x = images
        for stage in range(4):
            x, class_token, selected = self.forward_stage(x, stage)
            if selected is None:
                continue
            all_selected.append(selected)
            if self.keeps_local:
                chosen = gather_patches(x.flatten(2).transpose(1, 2), selected)  # (B, heads * alpha * r, C)
                local_tokens.append(self.project(chosen, "local", stage))  # (B, heads * alpha * r, C_4)
            if self.keeps_global or stage == 3:
                global_tokens.append(self.project(class_token, "global", stage))  # (B, 1, C_4)
        tokens = [*reversed(global_tokens), *(local.flip(1) for local in reversed(local_tokens))]
        return VisualFeatures(self.norm(torch.cat(tokens, dim=1)), all_selected)

    def project(self, tokens: Tensor, kind: str, stage: int) -> Tensor:
        """Local or global tokens (B, n, C) of stage 0 to 3 to the width of stage 4, which has it already."""
        return tokens if stage == 3 else self.get_submodule(f"{kind}_proj{stage + 1}")(tokens)


def token_projection(in_features: int, out_features: int) -> nn.Sequential:
    """The perceptron that brings local or global tokens of stages 1-3 to the width of stage 4."""
    return nn.Sequential(nn.Linear(in_features, in_features), nn.ReLU(), nn.Linear(in_features, out_features))


def check_locals(locals: Sequence[int]) -> None:
    """Raises UserError unless `locals` is four entries of 0 or 1, the fourth 0."""
    if len(locals) != 4 or any(local not in (0, 1) for local in locals):
        found = " ".join(str(local) for local in locals)
        raise UserError(f"--locals is {found!r}: expected four entries of 0 or 1, as in --locals 1 1 1 0")
    if locals[3]:
        raise UserError(
            "--locals has 1 as its fourth entry: stage 4 always gives local tokens, so the largest value there is 0, "
            "as in --locals 1 1 1 0"
        )


def check_image_size(height: int, width: int, alpha: int) -> None:
    """Raises UserError unless the sides, in pixels, are multiples of 32 with at least `alpha` cells in stage 4."""
    for side in (height, width):
        if side < STRIDE or side % STRIDE:
            largest = max(side // STRIDE * STRIDE, STRIDE)
            raise UserError(
                f"--input-size gives {height} x {width} px images: each side must be a multiple of {STRIDE}; "
                f"the largest below {side} that works is {largest}"
                if side >= STRIDE
                else f"--input-size gives {height} x {width} px images: each side must be a multiple of {STRIDE}, "
                f"at least {STRIDE}"
            )
    cells = (height // STRIDE) * (width // STRIDE)
    if alpha > cells:
        raise UserError(
            f"--alpha {alpha} is too large for {height} x {width} px images: the largest value that works is {cells} "
            f"((height / {STRIDE}) x (width / {STRIDE})); lower --alpha or raise --input-size"
        )
