"""PVT as a plain image classifier: what the backbone is pretrained as, and what LORA is compared with."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from models.layers import layer_matcher
from models.pvt import init_linear
from models.vision import VisionModel, check_image_size


class PVT(VisionModel):
    """The backbone with a linear layer on its class token: images (B, 3, H, W) to logits (B, num_classes).

    Its parameters have the names of the published PVT checkpoints, so that its own checkpoints serve `--visfinetune`.
    """

    def __init__(self, config: Any, *, num_classes: int, **rates: float):
        super().__init__(config, alpha=1, locals=(0, 0, 0, 0), **rates)
        self.head = nn.Linear(config.embed_dims[3], num_classes)
        init_linear(self.head)

    @property
    def vision_model(self) -> VisionModel:
        """The backbone, which is the network itself."""
        return self

    def group_matcher(self, coarse: bool = False) -> Callable[[str], int]:
        """The layers of the network, for timm's layer-wise learning rates."""
        return layer_matcher(self)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) to logits (B, num_classes); no re-attention, no local tokens, no fusion.

        Raises:
            UserError: sides that are not multiples of 32.
        """
        check_image_size(images.shape[2], images.shape[3], self.alpha)
        x = images
        for stage in range(4):
            x, grid = self.embed(x, stage)
            x, _ = self.forward_blocks(x, grid, stage)
            if stage < 3:
                x = x.transpose(1, 2).unflatten(2, grid)
        return self.head(self.norm(x[:, 0]))
