"""LORA, LORA-V, TGCA-PVT and TGCA-PVT-V in textbook form: the formulas of docs/method.md over a state dict.

This is what the other modules are tested against and timed against. It imports none of them and is not fast: attention
keeps its maps, re-attention multiplies whole maps into N x N matrices, and the fusion block computes every token though
only the first is used. It has no dropout and no drop path; only the choice of patches has no gradient. It runs in
float32 and float64. TGCA-PVT (ACM MM 2024) gives each token of each stage its topic's context, attends to
the stage's maximum in each row, and passes all tokens through both maps of the fusion.

Shapes: B images, N tokens of a stage, M reduced key/value tokens, both with the class token if the stage has one;
C channels of a stage, D of the visual sequence, E of the fusion head.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

FUSION_HEADS = 12

Params = Mapping[str, Tensor]


class Output(NamedTuple):
    """The logits, and what leads to them."""

    logits: Tensor  # (B, classes)
    visual_tokens: Tensor  # (B, n_visual, D), after the last LayerNorm
    selected: list[Tensor]  # patch indices (B, heads, k), one for each re-attention stage in order


def lora_v_forward(
    params: Params,
    images: Tensor,
    *,
    alpha: int,
    locals: Sequence[int],
    heads: Sequence[int] = (1, 2, 5, 8),
    reductions: Sequence[int] = (8, 4, 2, 1),
    fuse_num_heads: int = 12,
) -> Output:
    """LORA-V on images (B, 3, H, W), sides multiples of 32; `params` is its state dict."""
    visual, selected = visual_sequence(params, images, alpha=alpha, locals=locals, heads=heads, reductions=reductions)
    tokens = linear(params, "v_proj", visual)  # (B, n_visual, E)
    return Output(fusion_head(params, tokens, num_heads=fuse_num_heads), visual, selected)


def lora_forward(
    params: Params,
    images: Tensor,
    text_features: Tensor,
    *,
    alpha: int,
    locals: Sequence[int],
    heads: Sequence[int] = (1, 2, 5, 8),
    reductions: Sequence[int] = (8, 4, 2, 1),
    fuse_num_heads: int = 12,
) -> Output:
    """LORA on images (B, 3, H, W) and text features (B, T, C_text), which follow the visual tokens."""
    visual, selected = visual_sequence(params, images, alpha=alpha, locals=locals, heads=heads, reductions=reductions)
    parts = [linear(params, "v_proj", visual), linear(params, "l_proj", text_features)]
    tokens = torch.cat(parts, dim=1)  # (B, n_visual + T, E)
    return Output(fusion_head(params, tokens, num_heads=fuse_num_heads), visual, selected)


def tgca_pvt_v_forward(
    params: Params,
    images: Tensor,
    topics: Tensor,
    *,
    alpha: int,
    locals: Sequence[int],
    heads: Sequence[int] = (1, 2, 5, 8),
    reductions: Sequence[int] = (8, 4, 2, 1),
) -> Output:
    """TGCA-PVT-V on images (B, 3, H, W) and topics (B,)."""
    sizes: dict[str, Any] = {"alpha": alpha, "locals": locals, "heads": heads, "reductions": reductions}
    visual, selected = topic_sequence(params, images, topics, **sizes)
    return Output(topic_fusion_head(params, linear(params, "v_proj", visual), topics), visual, selected)


def tgca_pvt_forward(
    params: Params,
    images: Tensor,
    text_features: Tensor,
    topics: Tensor,
    *,
    alpha: int,
    locals: Sequence[int],
    heads: Sequence[int] = (1, 2, 5, 8),
    reductions: Sequence[int] = (8, 4, 2, 1),
) -> Output:
    """TGCA-PVT on images (B, 3, H, W), text features (B, T, C_text) and topics (B,)."""
    sizes: dict[str, Any] = {"alpha": alpha, "locals": locals, "heads": heads, "reductions": reductions}
    visual, selected = topic_sequence(params, images, topics, **sizes)
    tokens = [linear(params, "v_proj", visual), linear(params, "l_proj", text_features)]
    return Output(topic_fusion_head(params, torch.cat(tokens, dim=1), topics), visual, selected)


def visual_sequence(
    params: Params,
    images: Tensor,
    *,
    alpha: int,
    locals: Sequence[int],
    heads: Sequence[int],
    reductions: Sequence[int],
) -> tuple[Tensor, list[Tensor]]:
    """The visual tokens (B, n_visual, D), and the patches chosen in each stage with re-attention."""
    feature_map, global_tokens, local_tokens, selected = images, [], [], []
    for stage in (1, 2, 3, 4):
        last_stage = stage == 4
        reattend = last_stage or bool(locals[stage - 1])
        x, maps, grid = backbone_stage(params, feature_map, stage, num_heads=heads[stage - 1], class_token=reattend)
        patches = x[:, 1:] if reattend else x  # (B, grid, C)
        if reattend:
            count = alpha * (1 if last_stage else reductions[stage - 1] ** 2)
            chosen = choose_patches(maps, count, last_stage=last_stage)  # (B, heads, count)
            selected.append(chosen)
            local = torch.stack([image[index] for image, index in zip(patches, chosen.flatten(1), strict=True)])
            local_tokens.append(local if last_stage else perceptron(params, f"vision_model.local_proj{stage}", local))
            token = x[:, :1]  # (B, 1, C)
            global_tokens.append(token if last_stage else perceptron(params, f"vision_model.global_proj{stage}", token))
        feature_map = patches.mT.unflatten(2, grid)  # (B, C, H, W)
    sequence = torch.cat([*reversed(global_tokens), torch.cat(local_tokens, dim=1).flip(1)], dim=1)
    return layer_norm(params, "vision_model.norm", sequence, eps=1e-6), selected


def topic_sequence(
    params: Params,
    images: Tensor,
    topics: Tensor,
    *,
    alpha: int,
    locals: Sequence[int],
    heads: Sequence[int],
    reductions: Sequence[int],
) -> tuple[Tensor, list[Tensor]]:
    """TGCA-PVT's visual tokens (B, n_visual, D), and the patches chosen in each stage with re-attention."""
    feature_map, local_tokens, selected = images, [], []
    global_tokens: list[Tensor] = []
    topic_tokens: list[Tensor] = []
    for stage in (1, 2, 3, 4):
        last_stage = stage == 4
        reattend = last_stage or bool(locals[stage - 1])
        feature_map = frequency_module(params, f"vision_model.patch_embed{stage}.fft", feature_map)
        x, maps, grid = backbone_stage(params, feature_map, stage, num_heads=heads[stage - 1], class_token=reattend)
        with_context = topic_context(params, f"vision_model.conv{stage}", x, topics)  # (B, N, C)
        if reattend:
            chosen = choose_patches(maps, alpha * reductions[stage - 1] ** 2, last_stage=last_stage)
            selected.append(chosen)
            local = torch.stack([image[index] for image, index in zip(x[:, 1:], chosen.flatten(1), strict=True)])
            local = attended(local, local.amax(dim=1, keepdim=True).expand_as(local))  # (B, heads * count, C)
            local_tokens.append(local if last_stage else perceptron(params, f"vision_model.local_proj{stage}", local))
            for tokens, token in ((global_tokens, x[:, :1]), (topic_tokens, with_context[:, :1])):
                tokens.append(token if last_stage else perceptron(params, f"vision_model.global_proj{stage}", token))
        feature_map = (x[:, 1:] if reattend else x).mT.unflatten(2, grid)  # (B, C, H, W)
    attending = attended(*(torch.cat(tokens[::-1], dim=1) for tokens in (global_tokens, topic_tokens)))
    sequence = torch.cat([attending, torch.cat(local_tokens, dim=1).flip(1)], dim=1)
    return layer_norm(params, "vision_model.norm", sequence, eps=1e-6), selected


def frequency_module(params: Params, name: str, x: Tensor) -> Tensor:
    """TGCA-PVT's change of a map's spectrum, (B, C, H, W) to the same."""
    spectrum = torch.fft.rfft2(x, norm="ortho")
    r, i = (params[f"{name}.{role}"].diagonal()[:, None, None] for role in ("r", "i"))
    u = F.relu(spectrum.real * r - spectrum.imag * i + params[f"{name}.rb"][:, None, None])
    v = F.relu(spectrum.imag * r + spectrum.real * i + params[f"{name}.ib"][:, None, None])
    gates = []
    for gate, part in (("SE1", u), ("SE2", v)):
        squeezed = F.relu(F.linear(part.mean(dim=(2, 3)), params[f"{name}.{gate}.fc.0.weight"]))
        gates.append(F.linear(squeezed, params[f"{name}.{gate}.fc.2.weight"]).sigmoid()[:, :, None, None])
    change = torch.complex(gates[0] * u, gates[1] * v)
    return torch.fft.irfft2(spectrum + change, s=x.shape[2:], norm="ortho")


def topic_context(params: Params, name: str, x: Tensor, topics: Tensor) -> Tensor:
    """Each token of (B, N, C) plus the mean, over the stickers of its topic, of x + W x + b."""
    y = x + F.conv1d(x.mT, params[f"{name}.weight"], params[f"{name}.bias"]).mT
    return x + torch.stack([y[topics == topic].mean(dim=0) for topic in topics])


def attended(x: Tensor, other: Tensor) -> Tensor:
    """x + softmax(x other^T) other for two sequences (B, N, C); without a scale."""
    return x + (x @ other.mT).softmax(dim=-1) @ other


@torch.no_grad()
def choose_patches(maps: Sequence[Tensor], count: int, *, last_stage: bool) -> Tensor:
    """The `count` patches with the highest scores of each head, in falling order: (B, heads, count)."""
    return reattention_scores(maps, last_stage=last_stage).topk(count, dim=-1).indices


def reattention_scores(maps: Sequence[Tensor], *, last_stage: bool) -> Tensor:
    """Score of each patch (B, heads, N - 1) by products of whole maps.

    `maps` are the attention maps P_k (B, heads, N, M) of the stage's blocks, at least two outside the last stage.
    """
    if not last_stage and len(maps) < 2:
        raise ValueError(f"re-attention of stages 1-3 needs at least 2 blocks, not {len(maps)}")
    product = maps[0]  # A_0, (B, heads, N, M)
    for k, attention in enumerate(maps[1:], start=1):
        if last_stage:
            product = attention @ product  # (B, heads, N, N)
        elif k == 1:
            product = attention @ product.mT  # (B, heads, N, N)
        elif k % 2 == 0:
            product = attention.mT @ product  # (B, heads, M, N)
        else:
            product = attention @ product  # (B, heads, N, N)
    return product[:, :, 0, 1:]


def backbone_stage(
    params: Params, feature_map: Tensor, stage: int, *, num_heads: int, class_token: bool
) -> tuple[Tensor, list[Tensor], tuple[int, int]]:
    """One stage of PVT: tokens (B, N, C), the maps of its blocks if it has a class token, and the grid."""
    x, grid = embed(params, feature_map, stage, class_token=class_token)
    maps = []
    for block in range(stage_depth(params, stage)):
        name = f"vision_model.block{stage}.{block}"
        normed = layer_norm(params, f"{name}.norm1", x, eps=1e-6)
        update, attention = reduced_attention(params, f"{name}.attn", normed, grid, num_heads=num_heads)
        x = x + update
        x = x + mlp(params, f"{name}.mlp", layer_norm(params, f"{name}.norm2", x, eps=1e-6))
        if class_token:
            maps.append(attention)
    return x, maps, grid


def stage_depth(params: Params, stage: int) -> int:
    """Number of blocks of a stage, counted in the parameters."""
    depth = 0
    while f"vision_model.block{stage}.{depth}.norm1.weight" in params:
        depth += 1
    return depth


def embed(params: Params, feature_map: Tensor, stage: int, *, class_token: bool) -> tuple[Tensor, tuple[int, int]]:
    """Patch, position and class embedding of a stage: tokens (B, N, C) and the grid of the patches."""
    name = f"vision_model.patch_embed{stage}"
    weight = params[f"{name}.proj.weight"]
    x = F.conv2d(feature_map, weight, params[f"{name}.proj.bias"], stride=weight.shape[-1])  # (B, C, H, W)
    grid = (x.shape[-2], x.shape[-1])
    x = layer_norm(params, f"{name}.norm", x.flatten(2).mT, eps=1e-5)  # (B, H * W, C)
    positions = params[f"vision_model.pos_embed{stage}"]
    # Only stage 4 has a vector of its own for the class token; elsewhere it shares the first patch's.
    x = x + resized_positions(positions[:, 1:] if stage == 4 else positions, grid)
    if class_token:
        token = params["vision_model.cls_token" + ("" if stage == 4 else str(stage))] + positions[:, :1]
        x = torch.cat([token.expand(len(x), -1, -1), x], dim=1)  # (B, 1 + H * W, C)
    return x, grid


def resized_positions(positions: Tensor, grid: tuple[int, int]) -> Tensor:
    """Position embedding (1, side * side, C) resized to a grid, bilinear: (1, H * W, C)."""
    side = math.isqrt(positions.shape[1])
    if grid == (side, side):
        return positions
    image = positions.mT.unflatten(2, (side, side))  # (1, C, side, side)
    return F.interpolate(image, size=grid, mode="bilinear", align_corners=False).flatten(2).mT


def reduced_attention(
    params: Params, name: str, x: Tensor, grid: tuple[int, int], *, num_heads: int
) -> tuple[Tensor, Tensor]:
    """Spatial-reduction attention of PVT: its output (B, N, C) and its map P (B, heads, N, M)."""
    q = split_heads(linear(params, f"{name}.q", x), num_heads)  # (B, heads, N, C / heads)
    key, value = linear(params, f"{name}.kv", reduced_tokens(params, name, x, grid)).chunk(2, dim=-1)  # (B, M, C)
    mixed, attention = softmax_attention(q, split_heads(key, num_heads), split_heads(value, num_heads))
    return linear(params, f"{name}.proj", mixed), attention


def reduced_tokens(params: Params, name: str, x: Tensor, grid: tuple[int, int]) -> Tensor:
    """The tokens that keys and values are made of, (B, M, C): the class token, and patches reduced by a convolution."""
    if f"{name}.sr.weight" not in params:
        return x
    num_class_tokens = x.shape[1] - grid[0] * grid[1]
    weight = params[f"{name}.sr.weight"]
    image = x[:, num_class_tokens:].mT.unflatten(2, grid)  # (B, C, H, W)
    reduced = F.conv2d(image, weight, params[f"{name}.sr.bias"], stride=weight.shape[-1]).flatten(2).mT
    reduced = torch.cat([x[:, :num_class_tokens], reduced], dim=1)
    return layer_norm(params, f"{name}.norm", reduced, eps=1e-5)


def softmax_attention(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """softmax(q k^T / sqrt(head_dim)) v with heads joined, (B, N, C), and the map (B, heads, N, M)."""
    attention = (q @ k.mT * q.shape[-1] ** -0.5).softmax(dim=-1)
    return (attention @ v).transpose(1, 2).flatten(2), attention


def fusion_head(params: Params, tokens: Tensor, *, num_heads: int) -> Tensor:
    """Logits (B, classes) from projected tokens (B, T, E): one pre-norm block over all tokens."""
    x = tokens + params["pos_embed"]
    normed = layer_norm(params, "fusion_model.attention_norm", x, eps=1e-6)
    names = [f"fusion_model.attn.{role}" for role in ("query", "key", "value")]
    mixed, _ = softmax_attention(*(split_heads(linear(params, name, normed), num_heads) for name in names))
    x = x + linear(params, "fusion_model.attn.out", mixed)
    x = x + mlp(params, "fusion_model.ffn", layer_norm(params, "fusion_model.ffn_norm", x, eps=1e-6))
    return linear(params, "head", x[:, 0])


def topic_fusion_head(params: Params, tokens: Tensor, topics: Tensor) -> Tensor:
    """As `fusion_head`, with topic queries t between queries and keys: softmax(q t^T) softmax(t k^T) v."""
    x = tokens + params["pos_embed"]
    name = "fusion_model.attn"
    normed = layer_norm(params, "fusion_model.attention_norm", x, eps=1e-6)
    q, k, v = (
        split_heads(linear(params, f"{name}.{role}", normed), FUSION_HEADS) for role in ("query", "key", "value")
    )
    context = topic_context(params, f"{name}.conv", normed, topics)
    t = split_heads(linear(params, f"{name}.query", context), FUSION_HEADS)
    mixed, _ = softmax_attention(t, k, v)
    mixed, _ = softmax_attention(q, t, split_heads(mixed, FUSION_HEADS))
    x = x + linear(params, f"{name}.out", mixed)
    x = x + mlp(params, "fusion_model.ffn", layer_norm(params, "fusion_model.ffn_norm", x, eps=1e-6))
    return linear(params, "head", x[:, 0])


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """(B, T, C) to (B, heads, T, C / heads)."""
    return x.unflatten(2, (num_heads, -1)).transpose(1, 2)


def linear(params: Params, name: str, x: Tensor) -> Tensor:
    """The linear layer `name`."""
    return F.linear(x, params[f"{name}.weight"], params[f"{name}.bias"])


def layer_norm(params: Params, name: str, x: Tensor, *, eps: float) -> Tensor:
    """The LayerNorm `name` over the channels."""
    return F.layer_norm(x, x.shape[-1:], params[f"{name}.weight"], params[f"{name}.bias"], eps)


def mlp(params: Params, name: str, x: Tensor) -> Tensor:
    """Two linear layers with the exact GELU between."""
    return linear(params, f"{name}.fc2", F.gelu(linear(params, f"{name}.fc1", x)))


def perceptron(params: Params, name: str, x: Tensor) -> Tensor:
    """Two linear layers with ReLU between, which bring a stage's tokens to D channels."""
    return linear(params, f"{name}.2", F.relu(linear(params, f"{name}.0", x)))
