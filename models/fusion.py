"""The fusion head: one pre-norm transformer block of which only the first token is used (paper section 4).

docs/method.md derives the form for one token.
"""

from typing import Any

import torch
from timm.layers import Mlp
from torch import Tensor, nn


class FirstTokenAttention(nn.Module):
    """Multi-head attention for one query, that of the first token.

    For a single query the key and value projections are not applied to every token: q^T (W_k x_j + b_k) is
    (W_k^T q)^T x_j + q^T b_k, and the weighted sum of W_v x_j + b_v is W_v applied to the weighted sum of x_j, plus
    b_v. The result is that of the textbook form; the cost falls from N * C^2 to N * C * heads.
    """

    def __init__(self, hidden_dim: int, num_heads: int, dropout: float):
        super().__init__()
        if hidden_dim % num_heads:
            largest = hidden_dim // num_heads * num_heads
            raise ValueError(
                f"hidden_dim is {hidden_dim}: expected a multiple of the fusion block's {num_heads} heads; "
                f"{largest or num_heads} is the {'largest below it' if largest else 'smallest'}"
            )
        self.num_heads = num_heads
        self.query = nn.Linear(hidden_dim, hidden_dim)
        self.key = nn.Linear(hidden_dim, hidden_dim)
        self.value = nn.Linear(hidden_dim, hidden_dim)
        self.out = nn.Linear(hidden_dim, hidden_dim)
        self.attn_dropout = nn.Dropout(dropout)
        self.proj_dropout = nn.Dropout(dropout)

    def weights(self, x: Tensor) -> Tensor:
        """Normed tokens (B, N, C) to the first token's attention to each of them (B, heads, N), rows of sum 1."""
        query = self.query(x[:, 0]).unflatten(1, (self.num_heads, -1))  # (B, heads, d)
        key_weight = self.key.weight.unflatten(0, (self.num_heads, -1))  # (heads, d, C)
        key_query = torch.einsum("bhd,hdc->bhc", query, key_weight)  # (B, heads, C)
        # The same for every token, so it cancels in the softmax; it keeps the parameter in the graph.
        bias = (query * self.key.bias.unflatten(0, (self.num_heads, -1))).sum(dim=2, keepdim=True)  # (B, heads, 1)
        logits = (key_query @ x.mT + bias) * query.shape[2] ** -0.5  # (B, heads, N)
        return logits.softmax(dim=2)

    def forward(self, x: Tensor) -> Tensor:
        """Normed tokens (B, N, C) to the first token's attention output (B, C)."""
        probabilities = self.attn_dropout(self.weights(x))
        value_weight = self.value.weight.unflatten(0, (self.num_heads, -1))  # (heads, d, C)
        mean_token = probabilities @ x  # (B, heads, C)
        total = probabilities.sum(dim=2, keepdim=True)  # 1 but for dropout: (B, heads, 1)
        values = torch.einsum("bhc,hdc->bhd", mean_token, value_weight)  # (B, heads, d)
        values = values + total * self.value.bias.unflatten(0, (self.num_heads, -1))
        return self.proj_dropout(self.out(values.flatten(1)))


class FusionBlock(nn.Module):
    """`x + attn(norm(x))`, then `x + mlp(norm(x))`, for the first token alone: (B, N, C) to (B, C)."""

    def __init__(
        self,
        hidden_dim: int,
        *,
        mlp_dim: int = 3072,
        num_heads: int = 12,
        dropout_rate: float,
        attention_dropout_rate: float,
        attention: type[FirstTokenAttention] = FirstTokenAttention,
    ):
        super().__init__()
        self.attention_norm = nn.LayerNorm(hidden_dim, eps=1e-6)
        self.ffn_norm = nn.LayerNorm(hidden_dim, eps=1e-6)
        self.ffn = Mlp(hidden_dim, mlp_dim, drop=dropout_rate)
        self.attn = attention(hidden_dim, num_heads, attention_dropout_rate)
        for linear in (self.ffn.fc1, self.ffn.fc2):
            init_xavier(linear)

    def forward(self, x: Tensor, *context: object) -> Tensor:
        """Tokens (B, N, C) to the block's first output token (B, C); no norm follows. `context`: of the attention."""
        first = x[:, 0] + self.attn(self.attention_norm(x), *context)
        return first + self.ffn(self.ffn_norm(first))


def init_xavier(linear: Any) -> None:
    """Initial values of the head's linear layers: Xavier uniform, biases normal with std 1e-6."""
    nn.init.xavier_uniform_(linear.weight)
    nn.init.normal_(linear.bias, std=1e-6)
