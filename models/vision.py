"""LORA's visual half without its head: PVT whose stages select local tokens by re-attention (paper section 4).

docs/method.md has the order of the visual sequence and the number of its tokens.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from models.pvt import PVT, STRIDE, PVTConfig, check_sides
from models.reattention import class_token_scores, gather_patches, select_patches


class VisualFeatures(NamedTuple):
    """Visual tokens, and of each stage with re-attention, in order, what it selected.

    Attributes:
        tokens: (B, num_tokens, C_4).
        selected: patch indices (B, heads, k).
        scores: of all patches, (B, heads, N - 1).
    """

    tokens: Tensor
    selected: list[Tensor]
    scores: list[Tensor]


class VisionModel(PVT):
    """PVT with local re-attention: images (B, 3, H, W) to the visual sequence of the fusion head.

    Args:
        config: widths and depths of the backbone.
        alpha: how many patches a head selects, in multiples of a stage's squared reduction.
        locals: which of the four stages give local tokens beside stage 4; four entries, the fourth 0.
        tokens: what the visual sequence has beside stage 4's class token: global tokens (the class tokens of stages
            1-3), local tokens (the selected patches), both as in the paper, or none. An ablation; projections that are
            not used are left out.
        rates: `drop` and `drop_path`, see `PVT`.
    """

    def __init__(self, config: PVTConfig, *, alpha: int, locals: Sequence[int], tokens: str = "both", **rates: float):
        kinds = [kind for kind in ("local", "global") if tokens in ("both", kind)]

        def projections(stage: int) -> Mapping[str, nn.Module]:
            dims = (config.embed_dims[stage], config.embed_dims[3])
            return {f"{kind}_proj{stage + 1}": token_projection(*dims) for kind in kinds if locals[stage]}

        super().__init__(config, num_classes=0, class_tokens=(*locals[:3], 1), projections=projections, **rates)
        self.alpha = alpha
        self.keeps_local, self.keeps_global = "local" in kinds, "global" in kinds

    @property
    def num_tokens(self) -> int:
        """Length of the visual sequence, the same at any image size (996 for locals 1110 at alpha 8)."""
        stages = [stage for stage in range(4) if self.has_class_token(stage)]
        local_tokens = sum(self.config.num_heads[stage] * self.patches_a_head(stage) for stage in stages)
        return (len(stages) if self.keeps_global else 1) + self.keeps_local * local_tokens

    def patches_a_head(self, stage: int) -> int:
        """How many patches a head of stage 0 to 3 selects: alpha * r, where r is the squared reduction."""
        return self.alpha * self.config.reductions[stage] ** 2

    def score_stage(self, x: Tensor, stage: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """Runs a stage as `forward_stage`; returns its patches' scores (B, heads, N - 1) in place of its maps."""
        x, class_token, maps = self.forward_stage(x, stage)
        return x, class_token, class_token_scores(maps, last_stage=stage == 3) if maps else None

    def forward(self, images: Tensor, selected: Sequence[Tensor] | None = None, *context: Any) -> VisualFeatures:
        """Images (B, 3, H, W) to the visual tokens and the selected patches; `context` is what `global_tokens` needs.

        Args:
            selected: patch indices (B, heads, k) for each stage with re-attention, taken in place of its own choice.

        Raises:
            ValueError: sides that are not multiples of 32, or too small for alpha.
        """
        check_image_size(images.shape[2], images.shape[3], self.alpha)
        class_tokens: dict[int, Tensor] = {}
        local_tokens: list[Tensor] = []
        taken: list[Tensor] = []
        all_scores: list[Tensor] = []
        x = images
        for stage in range(4):
            x, class_token, scores = self.score_stage(x, stage)
            if scores is None:
                continue
            count = self.patches_a_head(stage)  # alpha * r
            patches = select_patches(scores, count) if selected is None else selected[len(taken)]  # (B, heads, count)
            taken.append(patches)
            all_scores.append(scores)
            if self.keeps_local:
                chosen = gather_patches(x.flatten(2).transpose(1, 2), patches)  # (B, heads * count, C)
                refined = self.refine(chosen).flip(1)  # the visual sequence has the last one first
                local_tokens.append(self.project(refined, "local", stage))  # (B, heads * count, C_4)
            if self.keeps_global or stage == 3:
                class_tokens[stage] = class_token  # (B, 1, C)
        tokens = [self.global_tokens(class_tokens, *context), *reversed(local_tokens)]
        return VisualFeatures(self.norm(torch.cat(tokens, dim=1)), taken, all_scores)

    def refine(self, chosen: Tensor) -> Tensor:
        """The selected patches (B, heads * count, C) of a stage as they are projected: in LORA, as they are."""
        return chosen

    def global_tokens(self, class_tokens: Mapping[int, Tensor]) -> Tensor:
        """The class tokens (B, 1, C) of stages 0 to 3 at the width of stage 4, last stage first: (B, stages, C_4)."""
        tokens = [self.project(token, "global", stage) for stage, token in class_tokens.items()]
        return torch.cat(tokens[::-1], dim=1)

    def project(self, tokens: Tensor, kind: str, stage: int) -> Tensor:
        """Local or global tokens (B, n, C) of stage 0 to 3 to the width of stage 4, which has it already."""
        return tokens if stage == 3 else self.get_submodule(f"{kind}_proj{stage + 1}")(tokens)


def token_projection(in_features: int, out_features: int) -> nn.Sequential:
    """The perceptron that brings local or global tokens of stages 1-3 to the width of stage 4."""
    return nn.Sequential(nn.Linear(in_features, in_features), nn.ReLU(), nn.Linear(in_features, out_features))


def check_image_size(height: int, width: int, alpha: int = 1) -> None:
    """Raises ValueError unless the sides, in pixels, are multiples of 32 with at least `alpha` cells in stage 4."""
    check_sides(height, width)
    cells = (height // STRIDE) * (width // STRIDE)
    if alpha > cells:
        raise ValueError(
            f"alpha {alpha} is too large for {height} x {width} px images: the largest value that works is {cells} "
            f"((height / {STRIDE}) x (width / {STRIDE})); lower it or take larger images"
        )
