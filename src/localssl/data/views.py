"""Views: two random transforms of every image, made in batch on the device where the training runs."""

from __future__ import annotations

from collections.abc import Sequence

import kornia.augmentation as K
import torch
from torch import Tensor, nn

from localssl.data.specs import Augmentation


def blur_kernel(image_size: int) -> int:
    """Side of the Gaussian blur: a tenth of the image, made odd by adding one (3, 9, 7 at 32, 96, 64)."""
    kernel = int(0.1 * image_size)
    return kernel + 1 - kernel % 2


def transform(augmentation: Augmentation, channels: int, image_size: int) -> nn.Sequential:
    """The random transform of one view, on float images in [0, 1] of shape (N, C, H, W).

    SimCLR, with torchvision's meaning of every parameter (recipe; paper Appendix B): random resized crop (area
    from ``crop_scale``, ratio 3/4 to 4/3), flip 0.5, with probability 0.8 colour jitter (0.8, 0.8, 0.8, 0.2),
    grayscale 0.2, with probability 0.5 Gaussian blur of sigma 0.1 to 2. Grey images get no saturation, hue or
    grayscale step. One difference: the order of the four jitter steps is drawn once a call, for all its images.

    Affine: every image is turned, shifted (by parts of a pixel too), zoomed and sheared along x; bilinear, the
    outside is 0.
    """
    if augmentation.kind == "affine":
        a = augmentation
        # p: Kornia's own default leaves half of the images as they are.
        return nn.Sequential(K.RandomAffine(a.degrees, (a.translate, a.translate), a.scale, a.shear, p=1.0))
    size = (image_size, image_size)
    kernel = blur_kernel(image_size)
    colour: list[nn.Module] = (
        [K.ColorJitter(0.8, 0.8, 0.8, 0.2, p=0.8), K.RandomGrayscale(p=0.2)]
        if channels == 3
        else [K.ColorJitter(0.8, 0.8, 0.0, 0.0, p=0.8)]
    )
    return nn.Sequential(
        # align_corners: Kornia's own default (True) stretches the crop by another grid than torchvision's.
        K.RandomResizedCrop(size, scale=augmentation.crop_scale, ratio=(3 / 4, 4 / 3), align_corners=False),
        K.RandomHorizontalFlip(p=0.5),
        *colour,
        K.RandomGaussianBlur((kernel, kernel), (0.1, 2.0), p=0.5),
    )


class Normalise(nn.Module):
    """uint8 images (N, C, H, W) to floats, (x / 255 - mean) / std per channel; floats are taken to be in [0, 1]."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        self.register_buffer("mean", torch.tensor(list(mean)).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(list(std)).view(-1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """The normalised images, in the dtype of the constants where the images are uint8."""
        if images.dtype == torch.uint8:
            images = images.to(self.mean.dtype) / 255
        return (images - self.mean) / self.std


class Views(nn.Module):
    """Two independently drawn, normalised views of a batch of images (n, C, H, W): a pair of float tensors.

    The images are uint8, or floats in [0, 1]; after ``.double()`` the views are drawn and made in float64.
    Randomness comes from torch's global generator, so a checkpoint that keeps its state resumes the same views.
    """

    def __init__(
        self, augmentation: Augmentation, mean: Sequence[float], std: Sequence[float], channels: int, image_size: int
    ):
        super().__init__()
        self.transform = transform(augmentation, channels, image_size)
        self.normalise = Normalise(mean, std)

    @torch.no_grad()
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """View a and view b."""
        floats = images.to(self.normalise.mean.dtype)
        if images.dtype == torch.uint8:
            floats = floats / 255
        # One call a view: in a single call over both, the two would share the order of the jitter steps.
        return self.normalise(self.transform(floats)), self.normalise(self.transform(floats))
