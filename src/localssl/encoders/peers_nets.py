"""The nets of the rules' own publications, as data: what ``encoders`` builds under these names."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """One convolutional block: reflecting padding, convolution (stride 1), activation, pooling.

    Args:
        channels: of its output, at width 1.
        kernel: side of the kernel.
        pool: "max4" or "avg4" (windows of 4, stride 2, zeros around), "max2" or "avg2" (windows of 2).
        power: of the triangle activation; None: ReLU.
        separable: depthwise, then 1x1.
    """

    channels: int
    kernel: int
    pool: str
    power: float | None = None
    separable: bool = False


@dataclass(frozen=True)
class Net:
    """A published net.

    Args:
        stages: its blocks.
        bias: whether its convolutions have one.
        xavier: Xavier-uniform weights at the start; else PyTorch's own, or what the option ``init`` says.
        probed: side of the patches over which the publication's readout averages, per block, at its image size.
    """

    stages: tuple[Stage, ...]
    bias: bool
    xavier: bool
    probed: tuple[int, ...]


NETS = {
    "scff3": Net(  # Chen et al. 2025, CIFAR-10
        (Stage(96, 5, "max4", 1.0), Stage(384, 3, "max4", 1.0), Stage(1536, 3, "avg2")),
        bias=True,
        xavier=True,
        probed=(2, 2, 2),
    ),
    "scff4": Net(  # the same, STL-10; its readout takes blocks 3 and 4 alone, the last under a 3 x 3 maximum of 2 x 2
        (
            Stage(96, 5, "max4", 1.0),
            Stage(384, 3, "max4", 1.0),
            Stage(1536, 3, "max4"),
            Stage(6144, 3, "max2", 1.0),
        ),
        bias=True,
        xavier=True,
        probed=(16, 8, 4, 3),
    ),
    "softhebb3": Net(  # Journé et al. 2023, CIFAR-10; its readout takes the last block alone
        (Stage(96, 5, "max4", 0.7), Stage(384, 3, "max4", 1.4), Stage(1536, 3, "avg2", 1.0)),
        bias=False,
        xavier=False,
        probed=(2, 2, 1),
    ),
    "stochastic-ff3": Net(  # Zhu et al. 2025, CIFAR-10; likewise
        (
            Stage(96, 5, "max4"),
            Stage(384, 3, "max4", separable=True),
            Stage(1536, 3, "avg2", separable=True),
        ),
        bias=False,
        xavier=False,
        probed=(2, 2, 1),
    ),
}
