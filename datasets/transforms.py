"""From a picture in RGB to the tensor that the network reads (spec section 5)."""

from collections.abc import Callable

import torch
from PIL import Image
from timm.data import create_transform
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.data.transforms import ResizeKeepRatio
from torch import Tensor
from torchvision import transforms
from torchvision.transforms import functional

from errors import UserError

Transform = Callable[[Image.Image], Tensor]


def build_transform(
    is_train: bool,
    *,
    input_size: int | tuple[int, int],
    color_jitter: float | None = 0.1,
    auto_augment: str | None = "rand-m9-mstd0.5-inc1",
    interpolation: str = "bicubic",
    reprob: float = 0.0,
    remode: str = "pixel",
    recount: int = 1,
    scale: tuple[float, float] = (0.08, 1.0),
) -> Transform:
    """The way from a picture in RGB to a tensor (3, H, W), normalised with ImageNet's mean and deviation.

    In training: random crop of `scale` of the area, flip, augmentation; timm leaves the colour jitter out where
    `auto_augment` is set. In evaluation: the short side resized to int(256 / 224 * size), bicubic, and the centre
    cropped. `input_size` is the side in pixels, or (height, width), and all that matters in evaluation.

    Raises:
        UserError: timm does not know the augmentation, the interpolation or the mode of random erasing.
    """
    if not is_train:
        return _evaluation_transform((input_size, input_size) if isinstance(input_size, int) else tuple(input_size))
    try:
        transform = create_transform(
            input_size,
            is_training=True,
            color_jitter=color_jitter,
            auto_augment=auto_augment,
            interpolation=interpolation,
            re_prob=reprob,
            re_mode=remode,
            re_count=recount,
            scale=scale,
        )
    except (AssertionError, KeyError, ValueError, TypeError, IndexError) as error:
        raise UserError(
            f"--aa {auto_augment}, --train-interpolation {interpolation}, --remode {remode}: expected what timm knows, "
            f"found {type(error).__name__} {error}: correct the flag"
        ) from error
    steps = transform.transforms
    place = next(place for place, step in enumerate(steps) if isinstance(step, transforms.Normalize))
    steps[place - 1], steps[place].inplace = _ToTensor(), True
    return transform


def first_size(transform: transforms.Compose) -> tuple[int, int]:
    """(height, width) that the first step of a transform of `build_transform` crops or resizes to."""
    return tuple(transform.transforms[0].size)


def _evaluation_transform(size: tuple[int, int]) -> Transform:
    """Resize, centre crop and normalise, for images of `size` (height, width)."""
    return transforms.Compose(
        [
            _Resize(tuple(int(256 / 224 * side) for side in size)),
            transforms.CenterCrop(size),
            _ToTensor(),
            transforms.Normalize(IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, inplace=True),
        ]
    )


class _ToTensor:
    """A picture as a tensor (3, H, W) with values from 0 to 1: those of torchvision's ToTensor, in fewer passes."""

    def __call__(self, image: Image.Image) -> Tensor:
        """The tensor, which is new and may be changed in place."""
        values = functional.pil_to_tensor(image)
        return values.to(torch.float32, memory_format=torch.contiguous_format).div_(255)


class _Resize:
    """Resizes a picture until it just covers (height, width); with equal sides that is a rule for the short side."""

    def __init__(self, size: tuple[int, int]):
        self.size = size

    def __call__(self, image: Image.Image) -> Image.Image:
        """The resized picture; raises UserError (see `check_proportions`)."""
        check_proportions(image, self.size)
        is_square = self.size[0] == self.size[1]
        size = self.size[0] if is_square else ResizeKeepRatio.get_params(image, self.size, longest=0)
        return functional.resize(image, size, transforms.InterpolationMode.BICUBIC)


def check_proportions(image: Image.Image, size: tuple[int, int]) -> None:
    """Raises UserError for a picture so elongated that it outgrows Pillow's limit where it covers (height, width)."""
    scale = max(size[0] / image.height, size[1] / image.width)
    if Image.MAX_IMAGE_PIXELS and image.height * image.width * scale**2 > Image.MAX_IMAGE_PIXELS:
        found = f"{image.width} x {image.height}"
        raise UserError(f"expected a picture of usual proportions, found {found} pixels: crop it")
