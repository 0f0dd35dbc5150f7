"""What fits each data set when the user says nothing more: size, encoder, patches, normalisation, augmentation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from localssl.encoders.peers_nets import NETS
from localssl.errors import UsageError


@dataclass(frozen=True)
class Augmentation:
    """How a view is drawn. ``simclr``: paper Appendix B with recipe's constants. ``affine``: for digits (ours).
    ``signal``: for vectors and series (ours). ``crops``: flips and shifts by whole pixels, as some peers publish.

    Args:
        kind: "simclr", "affine", "signal" or "crops".
        crop_scale: area of the random resized crop, as a share of the image (simclr).
        degrees: largest rotation, in degrees (affine).
        translate: largest shift, as a share of the side (affine) or of the time, round its end (signal).
        scale: range of the zoom (affine).
        shear: largest shear, in degrees (affine).
        noise: standard deviation of what is added to standardised numbers (signal).
        mask: share of the features, or of the time in one piece, that is set to the mean (signal).
        pad: pixels by which images are padded before a part of their own size is cut out of them (crops).
        reflect: whether that padding reflects, else it is 0 (crops).
        flip: whether half of the images are flipped (crops).
    """

    kind: str = "simclr"
    crop_scale: tuple[float, float] = (0.08, 1.0)
    degrees: float = 15.0
    translate: float = 0.1
    scale: tuple[float, float] = (0.8, 1.2)
    shear: float = 10.0
    noise: float = 0.2
    mask: float = 0.2
    pad: int = 0
    reflect: bool = False
    flip: bool = False

    def scaled(self, strength: float | None) -> Augmentation:
        """Views that turn, shift, zoom and shear ``strength`` times as far (affine only); None leaves them.

        Raises:
            UsageError: views of another kind, or a strength outside 0 to 4.
        """
        if strength is None or strength == 1:
            return self
        if self.kind != "affine":
            raise UsageError("--view-strength goes with the affine views of digits and mnist; leave it out")
        if not 0 <= strength <= 4:
            raise UsageError(f"--view-strength {strength}: use a number from 0 to 4; 1 is the data set's own")
        low, high = (1 + strength * (end - 1) for end in self.scale)
        return replace(
            self,
            degrees=strength * self.degrees,
            translate=strength * self.translate,
            scale=(low, high),
            shear=strength * self.shear,
        )


@dataclass(frozen=True)
class DataSpec:
    """Defaults of one data set; ``mean`` and ``std`` None: measured on the training images.

    ``epochs`` and ``lr`` suit a CPU and batches of 64; the paper trains 300 epochs at 2e-4 with batches of 32. Those of
    the digits come from ``localssl reproduce demo-search``.
    """

    channels: int = 3
    image_size: int | None = None
    encoder: str = "vgg6"
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    augmentation: Augmentation = Augmentation()
    epochs: int = 10
    lr: float = 1e-3
    weight_decay: float = 0.0


_AFFINE = Augmentation(kind="affine")

SPECS: dict[str, DataSpec] = {
    "digits": DataSpec(1, 16, "vgg5", augmentation=_AFFINE, epochs=40, lr=2e-3),
    "mnist": DataSpec(1, 32, "vgg6", augmentation=_AFFINE),
    "cifar10": DataSpec(
        3,
        32,
        "vgg6",
        (125.3 / 255, 123.0 / 255, 113.9 / 255),
        (63.0 / 255, 62.1 / 255, 66.7 / 255),
        Augmentation(crop_scale=(0.25, 1.0)),
    ),
    "stl10": DataSpec(3, 96, "vgg6", (0.4313, 0.4156, 0.3663), (0.2683, 0.2610, 0.2687)),
    "tiny-imagenet": DataSpec(3, 64, "vgg6", (0.4802, 0.4481, 0.3975), (0.2302, 0.2265, 0.2262), weight_decay=1e-5),
}


def spec_for(data: str) -> DataSpec:
    """The defaults of a data set given by name or as ``imagefolder:PATH``, ``parquet:PATH`` or ``shards:PATH``."""
    return SPECS.get(data, DataSpec())


def spec_of_arrays(shape: Sequence[int]) -> DataSpec:
    """The defaults for arrays of this shape: (d,), (C, T) or (C, H, W)."""
    if len(shape) == 3 and shape[1] == shape[2]:
        kind = "simclr" if shape[0] in (1, 3) else "signal"
        return DataSpec(shape[0], shape[1], "vgg6", augmentation=Augmentation(kind=kind))
    encoder = "cnn1d" if len(shape) == 2 else "mlp"
    return DataSpec(shape[0] if len(shape) > 1 else 1, shape[-1], encoder, augmentation=Augmentation(kind="signal"))


def default_patches(encoder: str, image_size: int) -> tuple[int, ...] | None:
    """Patches that fit a named encoder at an image size; the vgg6 ones are paper Table A2's at 32, 64 and 96.

    None, the mean over all positions, for those whose maps are not known here.

    Raises:
        UsageError: an image size that the encoder's pooling does not divide.
    """
    if encoder in NETS:
        return NETS[encoder].probed
    multiple = {"vgg6": 32, "vgg5": 8}.get(encoder)
    if multiple is None:
        return None
    if image_size % multiple:
        raise UsageError(
            f"{encoder} needs an image size that is a multiple of {multiple}, got {image_size}; "
            f"use --image-size {max(multiple, round(image_size / multiple) * multiple)}"
        )
    if encoder == "vgg6":
        s = image_size // 32
        return (4 * s, 4 * s, 4 * s, 2 * s, 2 * s, s)
    s = image_size // 8
    return (2 * s, 2 * s, 2 * s, s, max(1, s // 2))
