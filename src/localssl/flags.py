"""The flags of each command (those of train are in config.py): dataclasses that the command line is made from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import Positional, subcommand

import localssl
from localssl.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class Probe:
    """Accuracy of a classifier on the frozen encoder, layer by layer, beside the untrained encoder of the same seed."""

    run: Positional[Path]
    """Folder of the run."""
    protocol: Literal["fast", "paper"] = "fast"
    """fast: features once, L-BFGS, strength chosen on held-out training images. paper: features recomputed on augmented
    images every epoch, Adam 1e-3, batches of 32."""
    labels: tuple[Literal["1", "10", "all"], ...] = ("all",)
    """Labels per class (fast protocol)."""
    draws: int = 5
    """Draws of the labels where they are few; the interval is over them."""
    epochs: int | None = None
    """Epochs of the paper's protocol. Default: 300."""
    limit_images: int | None = None
    """Use this many training images, drawn once with a fixed seed."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    threads: int | None = None
    """CPU threads. Default: PyTorch's own choice."""
    data: str | None = None
    """Probe on another data set than the one trained on."""
    data_root: Path | None = None
    """Folder that holds the data set. Default: where training found it."""
    skip_bad: bool = False
    """Skip and count images that cannot be decoded. Training's own flag holds here, too."""


@dataclass(frozen=True, kw_only=True)
class Align:
    """Similarity of the rule's weight gradients x to backpropagation's y, block by block.

    cosine: x.y / (|x||y|), 1 is parallel. relative_error: |x - y|² / |y|². norm_ratio: |x| / |y|. sign_agreement: share
    of weights pushed in the same direction. Mean over batches, 95 % t interval over batches.

    cosine_of_mean: of the expected gradients. bias, noise: of the error a x - y, with the a >= 0 that brings the
    expected gradients nearest, the part that stays and the part that varies, over |y|². cosine_to_sum: of one batch's x
    with y summed over the other batches; reference_to_sum: of one batch's y with it. 95 % jackknife interval over
    batches.

    batches: those in which neither gradient was zero. null: with the pairs shuffled, x of one batch against y of
    another: what a number owes to the batch is its distance from it. In the CSV: rule, reference (which
    backpropagation), parameter ("weights": all of the block's but biases; then each alone), low and high.
    """

    run: Positional[Path]
    """Folder of the run; its last checkpoint is measured."""
    reference: str = "own"
    """own: backpropagation of the rule's own last-layer loss. bp-clapp++: of the averaged last layer's loss, with the
    rule's B where it has such a one, else fitted on the frozen encoder. bp-infonce: with a fitted head."""
    batches: int = 10
    """Batches of test images."""
    batch_size: int | None = None
    """Images in a batch. Default: as in training."""
    fit_batches: int = 32
    """Batches of training images on which the reference's B or head is fitted."""
    skip_bad: bool = False
    """Skip and count images that cannot be decoded."""
    threads: int | None = None
    """CPU threads. Default: PyTorch's own choice."""
    data: str | None = None
    """Measure on another data set than the one trained on."""
    data_root: Path | None = None
    """Folder that holds the data set. Default: where training found it."""


@dataclass(frozen=True, kw_only=True)
class Theory:
    """The paper's theorems, extensions and counterexamples, checked on random networks and batches on this machine.

    deviation: largest relative difference found between what should be equal (or by how much an inequality is missed).
    A counterexample passes where its deviation is at least the limit. Exit status 1 where a statement fails.
    """

    cases: int | None = None
    """Random cases of each statement. Default: 60."""
    full: bool = False
    """1,000 cases of each (200 where a case takes long): minutes."""


@dataclass(frozen=True, kw_only=True)
class Export:
    """The frozen encoder for other programs."""

    run: Positional[Path]
    """Folder of the run."""
    onnx: bool = False
    """Write encoder.onnx into the run's folder (or to --out), checked with onnxruntime."""
    embeddings: bool = False
    """Write the readouts of all blocks for the images of --data as a NumPy array to --out."""
    split: Literal["train", "test"] = "test"
    """Which images (embeddings)."""
    data: str | None = None
    """Data set for the embeddings. Default: the one trained on."""
    data_root: Path | None = None
    """Folder that holds the data set. Default: where training found it."""
    skip_bad: bool = False
    """Skip and count images that cannot be decoded (embeddings). Training's own flag holds here, too."""
    out: Path | None = None
    """File to write."""


@dataclass(frozen=True, kw_only=True)
class Reproduce:
    """Experiments of the paper and of the documentation, each by its name: figure, table and CSV in --out."""

    names: Positional[tuple[str, ...]] = ()
    """What to reproduce; none lists all."""
    out: Path = Path("runs")
    """Folder to write into; finished parts are kept and not run again."""
    data_root: Path | None = None
    """Folder that holds the data sets."""
    seeds: int | None = None
    """Number of seeds, counted from 0. Default: the experiment's own."""
    jobs: int = 1
    """Parts that run at the same time."""
    threads: int | None = None
    """CPU threads of each. Default: the machine's, shared among the jobs."""
    scale: Literal["cpu", "paper"] = "cpu"
    """paper: the paper's own sizes (GPUs, days), for fig4c, figA2, alignment-accuracy and lpl-cifar10."""


Command = (
    Annotated[TrainConfig, subcommand("train")]
    | Annotated[Probe, subcommand("probe")]
    | Annotated[Align, subcommand("align")]
    | Annotated[Theory, subcommand("theory")]
    | Annotated[Reproduce, subcommand("reproduce")]
    | Annotated[Export, subcommand("export")]
)

_STYLE = (tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes)


def parse(arguments: list[str]) -> object:
    """The command with its flags; tyro itself says what is wrong with them and exits with status 2."""
    return tyro.cli(Command, prog="localssl", description=localssl.__doc__, args=arguments, config=_STYLE)  # pyright: ignore
