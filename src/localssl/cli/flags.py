"""The flags of each command (those of train are in runs/config.py): dataclasses that the command line is made from."""

from __future__ import annotations

import dataclasses
import io
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import tyro
from tyro.conf import Positional, UseAppendAction, subcommand

from localssl.cli import misread
from localssl.errors import unknown
from localssl.runs import flagfile
from localssl.runs.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class Train(TrainConfig):
    """Train an encoder by one rule on unlabelled images.

    Only --rule, --data and --out are needed; everything else defaults to what suits the data set.
    """

    dry_run: bool = False
    """Print sizes, memory and time to expect; write nothing. Estimated from some real steps. --out may be left out."""
    expect: Path | None = None
    """Folder of a run that this one should repeat, metrics and weights bit for bit; status 1 if not. Alone, with its
    settings and threads; --out: that folder with -again."""
    no_report: bool = False
    """Do not write report.html when training is done. It is one page about the run and takes seconds; localssl report
    writes it at any time, with what probe and align have measured by then."""
    report: bool = False
    """Write it all the same, where a file of flags says no-report."""


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
    """Skip and count images that cannot be decoded, and gray among colour. Training's own flag holds here, too."""
    own: tuple[Path, ...] = ()
    """Files with code of yours that the run names, PATH.py: they run only where you name them."""


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
    """Images in a batch. Default: as in training, or a tenth of the test images where two batches would not fit."""
    fit_batches: int = 32
    """Batches of training images on which the reference's B or head is fitted."""
    skip_bad: bool = False
    """Skip and count images that cannot be decoded, and gray among colour."""
    threads: int | None = None
    """CPU threads. Default: PyTorch's own choice."""
    data: str | None = None
    """Measure on another data set than the one trained on."""
    data_root: Path | None = None
    """Folder that holds the data set. Default: where training found it."""
    own: tuple[Path, ...] = ()
    """Files with code of yours that the run names, PATH.py: they run only where you name them."""


@dataclass(frozen=True, kw_only=True)
class Compare:
    """Rules side by side: each is trained, probed and aligned on the same data, encoder and views; one table, one plot.

    Every rule and seed is a cell, a small JSON in --out; the same command goes on where it stopped, and more rules or
    seeds may be added. The untrained encoder is always among the rows. A rule that fails leaves the others alone; its
    row says why, and the exit status is 1.
    """

    data: str
    """digits, mnist, cifar10, imagefolder:PATH, and others. These are stl10, tiny-imagenet, parquet:PATH, shards:PATH,
    npz:PATH, and your own, PATH.py:NAME."""
    out: Path
    """Folder for the table, its plot and the cells. In it: cells, runs, table.csv, table.md, table.tex, seeds.csv,
    table.png and flags.yaml."""
    config: Path | None = None
    """File of flags, or a comparison's folder; flags given win. A flag a line, e.g. seeds: 2; of a folder its
    flags.yaml is read."""
    rules: tuple[str, ...] | None = None
    """Rules to compare, e.g. clapp++ "ipc objective=lpl steps=5". Options and their rule stand in quotes. Default: all,
    every registered rule but yardsticks."""
    epochs: int | None = None
    """Passes over the images. Default: 40 on digits, else 10. The paper has 300."""
    seeds: int = 4
    """Number of seeds, counted from 0. The intervals are over them."""
    jobs: int = 1
    """Cells that run at the same time. Each is a process of its own."""
    threads: int | None = None
    """CPU threads of each. Default: the machine's, shared among the jobs."""
    width: float = 1.0
    """Factor on the encoder's channel numbers. 1 is the paper's."""
    encoder: str | None = None
    """As that of localssl train, the same for all rules. E.g. vgg6, torchvision:NAME, timm:NAME, PATH.py:NAME.
    Default: what suits the data."""
    encoder_options: tuple[str, ...] = ()
    """Of the encoder, NAME=VALUE, e.g. blocks=4. Default: what each rule asks for."""
    views: str | None = None
    """As that of localssl train, the same for all rules: patches, PATH.py:NAME. Default: those of the data."""
    labels: tuple[Literal["1", "10", "all"], ...] = ("all",)
    """Labels per class of the probe (fast protocol)."""
    limit_images: int | None = None
    """Train on this many images. They are drawn once with a fixed seed. The probe uses all, or --probe-images."""
    probe_images: int | None = None
    """The probe fits on this many training images. Default: all."""
    image_size: int | None = None
    """Side to which images are resized. Default: the data set's own; of images of yours the shorter
    side of the first, rounded down to a multiple of 32, from 32 to 96."""
    skip_bad: bool = False
    """Skip and count images that cannot be decoded, and gray among colour."""
    batch_size: int = 64
    """Images in a batch (each gives two views)."""
    patches: tuple[int, ...] | None = None
    """Side of the patches that share a projection, one per block; the probe's, too. Default: Table A2's."""
    align_batches: int = 10
    """Batches of test images on which alignment is measured; 0: not at all."""
    search_lr: tuple[float, ...] = ()
    """Learning rates tried for every rule on a part of the training images, judged on held-out training images; one
    alone is taken as it is. Default: no search, the rule's or the data set's own rate."""
    search_epochs: int = 2
    """Epochs of each trial of the search."""
    precision: Literal["32-true", "bf16-mixed", "64-true"] = "32-true"
    """Arithmetic of the training step."""
    bits: tuple[str, ...] = ()
    """Every rule in floats and in integers of these numbers of bits, 4,6,8,16; also writes bits.csv and bits.png."""
    weight_noise: tuple[float, ...] = ()
    """With --bits: also with noise of these strengths on the weights that a batch reads, see localssl train --help."""
    dead: tuple[float, ...] = ()
    """With --bits: also with these shares of dead synapses."""
    mismatch: tuple[float, ...] = ()
    """With --bits: also with changes of synapses that are unequal by so much."""
    data_root: Path | None = None
    """Folder that holds the data set. Default: $LOCALSSL_DATA, else ./data."""
    own: tuple[Path, ...] = ()
    """Files with code of yours, PATH.py, that the file of --config names: they run only where you name them."""
    report: bool = False
    """Also write report.html. It has all on one page, beside the paper's numbers."""


@dataclass(frozen=True, kw_only=True)
class Certify:
    """What a rule's updates really read, and whether that is local: from the trace of one update, never from a tag.

    verdict: local; block-local, gradients stay inside blocks of several layers; not local, and why. layers: from a
    weight to the farthest thing that its update read. operations (multiply-accumulates), bytes: of what learning adds
    to the forward pass, one sample. docs/certificate.md says what counts as local and what each finding rests on.
    """

    rule: Annotated[tuple[tuple[str, ...], ...], UseAppendAction] = ()
    """Rules to certify, built-in or your own, PATH.py:CLASS. Default: all built-in ones."""
    rule_options: tuple[str, ...] = ()
    """Options of the rule, NAME=VALUE, where it is one alone."""
    encoder: str | None = None
    """vgg6, vgg5, mlp, a net of a publication, torchvision:NAME, timm:NAME or PATH.py:NAME. Default: a small network of
    three blocks that the rule takes."""
    width: float | None = None
    """Factor on the encoder's channel numbers, with --encoder. Default: 0.0625, of others' networks and your own 1;
    costs grow with it."""
    image_size: int | None = None
    """Side of the random images, with --encoder. Default: 32."""
    out: Path | None = None
    """CSV file for everything that was read, parameter by parameter, and the costs of every layer."""


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
    """The frozen encoder for other programs, or the learning rule as data."""

    run: Positional[Path]
    """Folder of the run."""
    onnx: bool = False
    """Write encoder.onnx into the run's folder (or to --out), checked with onnxruntime."""
    nir: Path | None = None
    """Write the encoder as a graph of the Neuromorphic Intermediate Representation to this file."""
    nir_activation: Literal["if"] | None = None
    """What stands for a ReLU in the graph (nir), which has none. if: integrate-and-fire neurons, whose rates approach
    it."""
    rule: bool = False
    """Write rule.json into the run's folder (or to --out): the learning rule as data, with golden vectors."""
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
    own: tuple[Path, ...] = ()
    """Files with code of yours that the run names, PATH.py: they run only where you name them."""


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
    scale: Literal["cpu", "paper", "kept"] = "cpu"
    """paper: the paper's own sizes (GPUs, days), for fig4c, figA2, alignment-accuracy, table2, tableA3, fig5,
    lpl-cifar10 and the peers' own settings (scff-cifar10 and so on). kept: the settings of the comparison that lies in
    the folder, for table2, tableA3 and fig5."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """One page about a run, report.html in its folder: a single file for any browser, nothing is fetched.

    What was run and how to repeat it, losses, accuracy by layer and alignment (of the probe and align commands that
    were given before), filters, images that excite a unit most, embedding, structure of the projections, cost.
    """

    runs: Positional[tuple[Path, ...]]
    """Folders of the runs; each gets its own page."""
    images: int = 1000
    """Test images looked at for units and embedding, evenly spaced; 0: none."""
    units: int = 4
    """Units shown of every block."""
    data: str | None = None
    """Images of another data set than the one trained on."""
    data_root: Path | None = None
    """Folder that holds the data set. Default: where training found it."""
    skip_bad: bool = False
    """Skip and count images that cannot be decoded, and gray among colour. Training's own flag holds here, too."""
    threads: int | None = None
    """CPU threads. Default: PyTorch's own choice."""
    own: tuple[Path, ...] = ()
    """Files with code of yours that the run names, PATH.py: they run only where you name them."""


@dataclass(frozen=True, kw_only=True)
class Doctor:
    """What this machine has for localssl, and what to do where something is missing.

    Versions, devices, rules, data sets, disk, and the speed of a training step, measured now. Exit status 1 where
    localssl cannot work as it is; a data set or an extra package that is missing is no failure.
    """

    data_root: Path | None = None
    """Folder that holds the data sets. Default: $LOCALSSL_DATA, else ./data."""
    quick: bool = False
    """Do not measure speed."""


Command = (
    Annotated[Train, subcommand("train")]
    | Annotated[Probe, subcommand("probe")]
    | Annotated[Align, subcommand("align")]
    | Annotated[Compare, subcommand("compare")]
    | Annotated[Certify, subcommand("certify")]
    | Annotated[Theory, subcommand("theory")]
    | Annotated[Reproduce, subcommand("reproduce")]
    | Annotated[Report, subcommand("report")]
    | Annotated[Export, subcommand("export")]
    | Annotated[Doctor, subcommand("doctor")]
)


STYLE = (tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes)


def commands() -> dict[str, type[Any]]:
    """Every command's dataclass by its name."""
    return {settings.name: kind for kind, settings in map(get_args, get_args(Command))}


def parse(arguments: list[str]) -> object:
    """The command with its flags.

    Raises:
        UsageError: no such command, a file of --config that cannot be taken, or what tyro finds wrong with a flag.
    """
    kinds = commands()
    if arguments[0] not in kinds:
        raise unknown("command", arguments[0], kinds)
    more: Any = {} if (default := _from_file(arguments)) is None else {"default": default}
    # The command alone: what tyro says of a misspelt flag is not about the flags of other commands.
    prog = f"localssl {arguments[0]}"
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            command: Any = tyro.cli(kinds[arguments[0]], prog=prog, args=arguments[1:], config=STYLE, **more)
    except SystemExit as error:
        if error.code != 2:
            raise
        raise misread.refusal(said.getvalue(), arguments[0], kinds[arguments[0]]) from None
    return flagfile.taken(command) if isinstance(command, Train | Compare) else command


def _from_file(arguments: list[str]) -> object | None:
    """The command with the flags of its --config file; what neither file nor default gives is tyro's MISSING."""
    kinds: dict[str, type[Train | Compare]] = {"train": Train, "compare": Compare}
    kind, path = kinds.get(arguments[0]), None
    for word, following in zip(arguments, [*arguments[1:], None], strict=True):
        flag, equals, value = word.partition("=")
        if flag == "--config":
            path = value if equals else following
    if kind is None or path is None:
        return None
    missing = {f.name: tyro.MISSING for f in dataclasses.fields(kind) if f.default is dataclasses.MISSING}
    return kind(**{**missing, **flagfile.read(Path(path), kind)})
