"""Views: two random transforms of every image, made in batch on the device where the training runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import kornia.augmentation as K
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from localssl import own
from localssl.data.part import Part
from localssl.data.specs import Augmentation
from localssl.errors import RunError, UsageError

PATCHES = "patches"  # the views that --views has by name


def blur_kernel(image_size: int) -> int:
    """Side of the Gaussian blur: a tenth of the image, made odd by adding one (3, 9, 7 at 32, 96, 64)."""
    kernel = int(0.1 * image_size)
    return kernel + 1 - kernel % 2


class Steps(nn.Sequential):
    """Random steps one after the other, Kornia's and ours."""

    @override
    def forward(self, input: Tensor, part: Part | None = None) -> Tensor:
        """One view of a batch (n, …); ``part``: of which batch it is a part, None: it is the whole."""
        x, part = input, part or Part.all(len(input))
        for step in self:
            x = part.through(step, x) if isinstance(step, K.AugmentationBase2D) else step(x, part)
        return x


def transform(augmentation: Augmentation, channels: int, image_size: int) -> Steps:
    """The random transform of one view, on float images in [0, 1] of shape (N, C, H, W).

    SimCLR, with torchvision's meaning of every parameter (recipe; paper Appendix B): random resized crop (area
    from ``crop_scale``, ratio 3/4 to 4/3), flip 0.5, with probability 0.8 colour jitter (0.8, 0.8, 0.8, 0.2),
    grayscale 0.2, with probability 0.5 Gaussian blur of sigma 0.1 to 2. Grey images get no saturation, hue or
    grayscale step. One difference: the order of the four jitter steps is drawn once a call, for all its images.

    Affine: every image is turned, shifted (by parts of a pixel too), zoomed and sheared along x; bilinear, the
    outside is 0. Crops: see ``cropped``.
    """
    if augmentation.kind == "crops":
        return Steps(Crops(augmentation.pad, augmentation.reflect, augmentation.flip))
    if augmentation.kind == "signal":
        return Steps(Signal(augmentation.noise, augmentation.mask, augmentation.translate))
    if augmentation.kind == "affine":
        a = augmentation
        # p: Kornia's own default leaves half of the images as they are.
        return Steps(K.RandomAffine(a.degrees, (a.translate, a.translate), a.scale, a.shear, p=1.0))
    size = (image_size, image_size)
    kernel = blur_kernel(image_size)
    colour: list[nn.Module] = (
        [K.ColorJitter(0.8, 0.8, 0.8, 0.2, p=0.8), K.RandomGrayscale(p=0.2)]
        if channels == 3
        else [K.ColorJitter(0.8, 0.8, 0.0, 0.0, p=0.8)]
    )
    return Steps(
        # align_corners: Kornia's own default (True) stretches the crop by another grid than torchvision's.
        K.RandomResizedCrop(size, scale=augmentation.crop_scale, ratio=(3 / 4, 4 / 3), align_corners=False),
        K.RandomHorizontalFlip(p=0.5),
        *colour,
        K.RandomGaussianBlur((kernel, kernel), (0.1, 2.0), p=0.5),
    )


def check_shades(data: str, batches: Iterable[Tensor]) -> None:
    """Refuse floats that the views of images would clip.

    Raises:
        UsageError: some lie outside 0 to 1.
    """
    for x in batches:
        if x.dtype != torch.uint8 and (x.min() < 0 or x.max() > 1):
            raise UsageError(
                f"{data}: x has numbers from {float(x.min()):g} to {float(x.max()):g}; square maps of 1 or 3 channels "
                f"are seen as images, uint8 or floats from 0 to 1: scale them, or give --views of your own"
            )


class Crops(nn.Module):
    """``cropped`` as a view: flips, and shifts of at most ``pad`` pixels each way."""

    def __init__(self, pad: int, reflect: bool, flip: bool):
        super().__init__()
        self.pad, self.reflect, self.flip = pad, reflect, flip

    def forward(self, x: Tensor, part: Part | None = None) -> Tensor:
        """Of the shape of ``x`` (N, C, H, W); every image is drawn for itself."""
        return cropped(x, self.pad, self.reflect, flip=self.flip, part=part)


def cropped(
    x: Tensor, pad: int, reflect: bool = False, side: int | None = None, flip: bool = True, part: Part | None = None
) -> Tensor:
    """Images (n, C, H, W), each flipped or not and cropped at random, by whole pixels.

    Args:
        x: the images.
        pad: they are padded by this much first.
        reflect: whether the padding reflects (else zeros).
        side: of the crop; None: the images' own size.
        flip: whether half of them are flipped.
        part: of which batch they are a part; None: they are the whole.
    """
    n, part = len(x), part or Part.all(len(x))
    if flip:
        x = torch.where(part.own(torch.rand(part.of, 1, 1, 1, device=x.device)) < 0.5, x.flip(3), x)
    height, width = (side, side) if side else x.shape[2:]
    if pad:
        x = F.pad(x, (pad,) * 4, mode="reflect" if reflect else "constant")
    room = x.shape[2] - height, x.shape[3] - width
    if room == (0, 0):
        return x
    at = [part.own(torch.randint(more + 1, (part.of, 1), device=x.device)) for more in room]
    rows = at[0] + torch.arange(height, device=x.device)
    columns = at[1] + torch.arange(width, device=x.device)
    image = torch.arange(n, device=x.device)[:, None, None]
    return x.movedim(1, 3)[image, rows[:, :, None], columns[:, None, :]].movedim(3, 1)


class Signal(nn.Module):
    """A view of standardised vectors (N, d), series (N, C, T) or maps: shifted round the end, a part of it 0, noise.

    Vectors are not shifted, and lose features here and there; what has a last axis loses a piece of it, all channels
    alike.
    """

    def __init__(self, noise: float, mask: float, shift: float):
        super().__init__()
        self.noise, self.mask, self.shift = noise, mask, shift

    def forward(self, x: Tensor, part: Part | None = None) -> Tensor:
        """Of the shape of ``x``; every sample is drawn for itself."""
        n, length, part = len(x), x.shape[-1], part or Part.all(len(x))
        whole = (part.of, *x.shape[1:])
        if x.ndim == 2:
            kept = part.own(torch.rand(whole, device=x.device, dtype=x.dtype)) >= self.mask
        else:
            place = torch.arange(length, device=x.device)
            by = ((2 * part.own(torch.rand(part.of, 1, device=x.device)) - 1) * self.shift * length).round().long()
            piece = round(self.mask * length)
            start = (part.own(torch.rand(part.of, 1, device=x.device)) * (length - piece + 1)).long()
            wide = (n, *[1] * (x.ndim - 2), length)
            x = x.gather(-1, ((place - by) % length).view(wide).expand(x.shape))
            kept = ((place < start) | (place >= start + piece)).view(wide)
        return x * kept + self.noise * part.own(torch.randn(whole, device=x.device, dtype=x.dtype))


class Patches(nn.Module):
    """Both views of an image at once: two patches of it, the one right below the other, no colour changed.

    After CLAPP's, where a patch is compared with patches below it in its column that it does not overlap (Illing et al.
    2021). A patch is half as high and half as wide as the image, rounded down. Column and, of an odd height, row of the
    upper one are uniform over the pixels where both fit; with probability 1/2 both are mirrored, left to right; each is
    as often view a as view b. Then each is enlarged to the image's size, bilinear, so that every rule, encoder and
    probe takes them. In the source they are grey, enter as they are, 16 of 64 pixels, and lie up to four steps of half
    a patch further apart.
    """

    def forward(self, x: Tensor, part: Part | None = None) -> tuple[Tensor, Tensor]:
        """View a and view b of images (n, C, H, W), each of their shape; every image is drawn for itself.

        Args:
            x: the images.
            part: of which batch they are a part; None: they are the whole.

        Raises:
            UsageError: no images, or sides of one pixel.
        """
        self.check(x)
        n, _, height, width = x.shape
        h, w = height // 2, width // 2
        part = part or Part.all(n)

        def drawn(choices: int) -> Tensor:
            return part.own(torch.randint(choices, (part.of, 1), device=x.device))

        columns = drawn(width - w + 1) + torch.arange(w, device=x.device)
        columns = torch.where(drawn(2) == 1, columns.flip(1), columns)
        rows = drawn(height - 2 * h + 1) + torch.arange(h, device=x.device)
        down = h * drawn(2)
        of = torch.arange(n, device=x.device).view(n, 1, 1)

        def enlarged(rows: Tensor) -> Tensor:
            patch = x[of, :, rows.unsqueeze(2), columns.unsqueeze(1)].permute(0, 3, 1, 2)
            return nn.functional.interpolate(patch, (height, width), mode="bilinear", align_corners=False)

        return enlarged(rows + down), enlarged(rows + h - down)

    def check(self, images: Tensor) -> None:
        """Refuse what no patches can be cut from.

        Raises:
            UsageError: no images (n, C, H, W), or sides of one pixel.
        """
        if images.ndim != 4 or min(images.shape[2:]) < 2:
            raise UsageError(
                f"--views {PATCHES} are cut from images (C, H, W) of 2 pixels a side or more, got shape "
                f"{tuple(images.shape[1:])}; leave it out"
            )


class OwnView(nn.Module):
    """Views by the user's own, PATH.py:NAME: a function of floats (n, …) that returns one view of the same shape.

    A class is called without arguments, and what it makes is that function.
    """

    def __init__(self, name: str):
        super().__init__()
        if not own.is_path(name):
            raise UsageError(f"--views takes {PATCHES}, or views of your own, PATH.py:NAME, not {name!r}")
        self.name, self.function = name, own.load(name, "view", callable)
        if isinstance(self.function, type):
            self.function = own.called(name, "view", self.function)
        if not callable(self.function):
            raise UsageError(f"{name} is a {type(self.function).__name__}; a view of your own is a function of a batch")

    def forward(self, x: Tensor) -> Tensor:
        """One view.

        Raises:
            RunError: the function returned something else.
        """
        view = self.function(x)
        if not isinstance(view, Tensor) or view.shape != x.shape:
            got = f"of shape {tuple(view.shape)}" if isinstance(view, Tensor) else f"a {type(view).__name__}"
            raise RunError(f"view {own.short_name(self.name)} returned {got}, expected a tensor {tuple(x.shape)}")
        return view.to(x.dtype)

    def check(self, images: Tensor) -> None:
        """Draw one view of a batch (n, …), leaving torch's random numbers as they are: before a run writes anything.

        Raises:
            UsageError: the function fails, or returns something else.
        """
        floats = images / 255 if images.dtype == torch.uint8 else images
        with torch.random.fork_rng(devices=[]):  # pyright: ignore[reportUnknownMemberType]
            try:
                own.called(self.name, "view", self.function, floats)
                self(floats)
            except RunError as error:
                raise UsageError(str(error)) from error


def by_name(name: str) -> OwnView | Patches:
    """The views that --views names.

    Raises:
        UsageError: neither patches nor a function in a file.
    """
    return Patches() if name == PATCHES else OwnView(name)


class Normalise(nn.Module):
    """uint8 images (N, C, H, W) to floats, (x / 255 - mean) / std per channel; floats are taken to be in [0, 1].

    Series (N, C, T) and vectors (N, d) alike; vectors have one mean and one std.
    """

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
        shape = (-1, *[1] * (images.ndim - 2))
        return (images - self.mean.view(shape)) / self.std.view(shape)


class Views(nn.Module):
    """Two normalised views of a batch of images (n, C, H, W), drawn independently or as ``Patches``: float tensors.

    ``name``: views by name or of the user's own, in place of those of ``augmentation``.

    The images are uint8, or floats in [0, 1]; after ``.double()`` the views are drawn and made in float64.
    Randomness comes from torch's global generator, so a checkpoint that keeps its state resumes the same views.
    """

    @property
    def own(self) -> bool:
        """Whether the user's own function makes them."""
        return isinstance(self.transform, OwnView)

    def __init__(
        self,
        augmentation: Augmentation,
        mean: Sequence[float],
        std: Sequence[float],
        channels: int,
        image_size: int,
        name: str | None = None,
    ):
        super().__init__()
        self.standardised = augmentation.kind == "signal" and name is None  # what the transform is made for
        self.transform = transform(augmentation, channels, image_size) if name is None else by_name(name)
        self.normalise = Normalise(mean, std)

    @torch.no_grad()
    def forward(self, images: Tensor, part: Part | None = None) -> tuple[Tensor, Tensor]:
        """View a and view b.

        Args:
            images: (n, C, H, W).
            part: of which batch they are a part: then numbers are drawn for all of it, but by views of the user's own,
                which know nothing of other images. None: they are the whole.
        """
        floats = images.to(self.normalise.mean.dtype)
        if images.dtype == torch.uint8:
            floats = floats / 255
        if self.standardised:
            floats = self.normalise(floats)
            return self.transform(floats, part), self.transform(floats, part)
        if isinstance(self.transform, Patches):
            view_a, view_b = self.transform(floats, part)
            return self.normalise(view_a), self.normalise(view_b)
        # One call a view: in a single call over both, the two would share the order of the jitter steps.
        return self.normalise(self._seen(floats, part)), self.normalise(self._seen(floats, part))

    def _seen(self, floats: Tensor, part: Part | None) -> Tensor:
        return self.transform(floats) if self.own else self.transform(floats, part)
