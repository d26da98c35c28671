"""TGCA-PVT and TGCA-PVT-V: LORA with topics ("Topic ID Guided Context-Aware PVT", ACM MM 2024).

Stickers of one topic in a batch are each other's context. docs/method.md has the formulas, and why these forms give
the published results.

Shapes: B images, G topics among them, N tokens of the fusion, C channels.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from timm.layers import trunc_normal_
from torch import Tensor, nn

from models.attention import AttentionMap
from models.fusion import FirstTokenAttention
from models.lora import LORA, LORA_V, build_parts
from models.reattention import times_map
from models.text import build_text_model
from models.vision import VisionModel


class Gate(nn.Module):
    """Squeeze and excitation without biases: maps (B, C, H, W) to a factor from 0 to 1 for each channel."""

    def __init__(self, channels: int):
        super().__init__()
        with warnings.catch_warnings(action="ignore"):  # an image's 3 channels have empty weights: 0.5
            squeeze = nn.Linear(channels, channels // 16, bias=False)
            excite = nn.Linear(channels // 16, channels, bias=False)
        self.fc = nn.Sequential(squeeze, nn.ReLU(), excite, nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        """The factors (B, C, 1, 1)."""
        return self.fc(x.mean(dim=(2, 3)))[:, :, None, None]


class FrequencyModule(nn.Module):
    """Adds to the spectrum of a map a gated function of itself; of `r` and `i` only the diagonals act."""

    def __init__(self, channels: int):
        super().__init__()
        self.r, self.i = (nn.Parameter(torch.empty(channels, channels)) for _ in range(2))
        self.rb, self.ib = (nn.Parameter(torch.empty(channels)) for _ in range(2))
        self.SE1, self.SE2 = Gate(channels), Gate(channels)
        for parameter in self.parameters():
            trunc_normal_(parameter, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, H, W) of an even width to maps of the same shape, in float32 at least."""
        with torch.autocast(x.device.type, enabled=False):  # complex numbers have no bfloat16
            spectrum = torch.fft.rfft2(x.to(torch.promote_types(x.dtype, torch.float32)), norm="ortho")
            real, imaginary = spectrum.real, spectrum.imag  # (B, C, H, W / 2 + 1)
            r, i = self.r.diagonal()[:, None, None], self.i.diagonal()[:, None, None]
            u = F.relu(r * real - i * imaginary + self.rb[:, None, None])
            v = F.relu(r * imaginary + i * real + self.ib[:, None, None])
            return inverse_transform(real + self.SE1(u) * u, imaginary + self.SE2(v) * v)


def inverse_transform(real: Tensor, imaginary: Tensor) -> Tensor:
    """Half a spectrum (B, C, H, W / 2 + 1), W even, to maps (B, C, H, W)."""
    columns = torch.fft.ifft(torch.complex(real, imaginary), dim=2, norm="ortho")
    last = real.shape[3] - 1
    # The spectrum is not that of real maps, and libraries treat imaginary parts in columns 0 and W / 2 differently.
    inner = torch.arange(last + 1, device=real.device) % last != 0
    return torch.fft.irfft(torch.complex(columns.real, columns.imag * inner), n=2 * last, dim=3, norm="ortho")


class TopicGroups(NamedTuple):
    """The stickers of a batch by topic: the group of each, (B,), and those in each group, (G, B)."""

    rows: Tensor
    members: Tensor

    def mean(self, x: Tensor) -> Tensor:
        """The mean over the stickers of each group: (B, n, C) to (G, n, C)."""
        with torch.autocast(x.device.type, enabled=False):
            members = self.members.to(x.dtype)
            return (members @ x.flatten(1)).unflatten(1, x.shape[1:]) / members.sum(dim=1)[:, None, None]


def group_topics(topics: Tensor | None, images: Tensor) -> TopicGroups | None:
    """The groups of a batch, None if each sticker is alone; raises ValueError unless there is an integer an image."""
    if topics is None:
        return None
    if topics.shape != images.shape[:1] or topics.dtype not in (torch.int32, torch.int64):
        expected, found = f"{images.shape[0]} integers, one an image", f"{tuple(topics.shape)} of {topics.dtype}"
        raise ValueError(f"topics: expected {expected}, found the shape {found}")
    distinct, rows = topics.unique(return_inverse=True)  # their number is data: on a GPU the program would wait for it
    members = torch.arange(distinct.shape[0], device=rows.device)[:, None] == rows
    return TopicGroups(rows.to(images.device), members.to(images.device))


class TopicContext(nn.Conv1d):
    """Adds m + W m + b to each token, m its mean over the stickers of the topic: W once a topic, as it is linear."""

    def __init__(self, channels: int):
        super().__init__(channels, channels, kernel_size=1)

    def forward(self, x: Tensor, groups: TopicGroups | None = None) -> Tensor:
        """Tokens (B, n, C) to tokens with their context (B, n, C)."""
        mean = x if groups is None else groups.mean(x)  # (G, n, C)
        context = mean + F.linear(mean, self.weight.squeeze(2), self.bias)
        return x + (context if groups is None else context[groups.rows])


class TopicVision(VisionModel):
    """LORA's visual half with frequency modules, topic tokens, and the stage's maximum in the local tokens."""

    def __init__(self, *args: Any, **settings: Any):
        super().__init__(*args, **settings)
        for stage, channels in enumerate((3, *self.config.embed_dims[:3])):
            self.get_submodule(f"patch_embed{stage + 1}").fft = FrequencyModule(channels)
            used = stage == 3 or (self.has_class_token(stage) and self.keeps_global)
            self.get_submodule(f"conv{stage + 1}").requires_grad_(used)  # else other processes wait for its gradient

    def embed(self, x: Tensor, stage: int) -> tuple[Tensor, tuple[int, int]]:
        """As `PVT.embed`, of what the stage's frequency module makes of the map."""
        return super().embed(self.get_submodule(f"patch_embed{stage + 1}.fft")(x), stage)

    def after_blocks(self, stage: int) -> Mapping[str, nn.Module]:
        """The topic context of a stage, of which only the class token's is used."""
        return {f"conv{stage + 1}": TopicContext(self.config.embed_dims[stage])}

    def refine(self, chosen: Tensor) -> Tensor:
        """Adds the maximum over the selected patches (B, heads * count, C), which is all that attention to it gives."""
        return chosen + chosen.amax(dim=1, keepdim=True)

    def global_tokens(self, class_tokens: Mapping[int, Tensor], groups: TopicGroups | None = None) -> Tensor:
        """G + softmax(G T^T) T, where T are the class tokens with their context: (B, stages, C_4)."""
        contexts = {stage: self.get_submodule(f"conv{stage + 1}")(x, groups) for stage, x in class_tokens.items()}
        tokens = torch.stack([super().global_tokens(class_tokens), super().global_tokens(contexts)])
        with torch.autocast(tokens.device.type, enabled=False):  # without a scale the logits reach thousands
            tokens, topic_tokens = tokens.to(torch.promote_types(tokens.dtype, torch.float32))
            return tokens + (tokens @ topic_tokens.mT).softmax(dim=2) @ topic_tokens


class PlainLocalVision(TopicVision):
    """The ablation with LORA's local tokens: the selected patches as they are."""

    refine = VisionModel.refine


class TopicAttention(FirstTokenAttention):
    """The first token attends to topic queries, and these to all tokens: softmax(q_0 t^T) softmax(t k^T) v."""

    def __init__(self, hidden_dim: int, num_heads: int, dropout: float):
        super().__init__(hidden_dim, num_heads, dropout)
        self.conv = TopicContext(hidden_dim)
        self.norm = nn.LayerNorm(hidden_dim).requires_grad_(False)  # of the published checkpoints; never used

    def project(self, x: Tensor, groups: TopicGroups | None) -> tuple[Tensor, ...]:
        """The first token's query (B, heads, 1, d); topic queries, keys and values (B, heads, N, d)."""
        projected = self.query(x[:, :1]), self.query(self.conv(x, groups)), self.key(x), self.value(x)
        return tuple(one.unflatten(2, (self.num_heads, -1)).transpose(1, 2) for one in projected)

    @torch.no_grad()
    def weights(self, x: Tensor, groups: TopicGroups | None = None) -> Tensor:
        """The first token's row of the product of both maps, (B, heads, N), with sum 1; no map is kept."""
        first, topic, keys, _ = self.project(x, groups)
        row = (first @ topic.mT * first.shape[3] ** -0.5).softmax(dim=3)  # (B, heads, 1, N)
        row = times_map(row.flatten(0, 2), AttentionMap(topic, keys, None).flattened())
        return row.unflatten(0, first.shape[:2])

    def forward(self, x: Tensor, groups: TopicGroups | None = None) -> Tensor:
        """Normed tokens (B, N, C) to the first token's attention output (B, C)."""
        first, topic, keys, values = self.project(x, groups)
        dropout = self.attn_dropout.p if self.training else 0.0
        attended = F.scaled_dot_product_attention(topic, keys, values, dropout_p=dropout)  # (B, heads, N, d)
        attended = F.scaled_dot_product_attention(first, topic, attended, dropout_p=dropout)  # (B, heads, 1, d)
        return self.proj_dropout(self.out(attended.flatten(1)))


class TGCA_PVT_V(LORA_V):
    """The network without text."""

    def forward(  # type: ignore[override]
        self, images: Tensor, topics: Tensor | None = None, selected: Sequence[Tensor] | None = None
    ) -> Tensor:
        """As `LORA_V.forward`; topics (B,) are integers, equal for stickers of one topic. None: each is alone."""
        return super().forward(images, selected, group_topics(topics, images))


class TGCA_PVT(LORA):
    """The whole network."""

    def forward(  # type: ignore[override]
        self,
        images: Tensor,
        word_ids: Tensor | None = None,
        word_mask: Tensor | None = None,
        topics: Tensor | None = None,
        text_features: Tensor | None = None,
        selected: Sequence[Tensor] | None = None,
    ) -> Tensor:
        """As `LORA.forward`; topics: see `TGCA_PVT_V.forward`."""
        return super().forward(images, word_ids, word_mask, text_features, selected, group_topics(topics, images))


def build_tgca_pvt(
    vision: type[TopicVision] = TopicVision,
    *,
    bert: Mapping[str, Any] | None = None,
    tunebert: bool = False,
    **settings: Any,
) -> TGCA_PVT:
    """Builds TGCA-PVT; `bert` and `tunebert`: see `models.text.build_text_model`; settings: see `build_parts`."""
    vision_model, head = build_parts(vision, TopicAttention, **settings)
    return TGCA_PVT(vision_model, build_text_model(bert, tunebert=tunebert), **head)


def build_with_plain_locals(**settings: Any) -> TGCA_PVT:
    """Builds TGCA-PVT with LORA's local tokens; settings: see `build_tgca_pvt`."""
    return build_tgca_pvt(PlainLocalVision, **settings)


def build_tgca_pvt_v(**settings: Any) -> TGCA_PVT_V:
    """Builds TGCA-PVT-V; settings: see `build_parts`."""
    vision_model, head = build_parts(TopicVision, TopicAttention, **settings)
    return TGCA_PVT_V(vision_model, **head)
