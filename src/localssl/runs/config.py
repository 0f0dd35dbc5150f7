"""A run's configuration: what the user asked for (TrainConfig), what that came to and is kept (RunConfig)."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
import typing
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

from localssl import own, rules
from localssl.data.specs import Augmentation
from localssl.errors import UsageError, in_shell, unknown
from localssl.runs.kinds import in_words, is_of, shown
from localssl.runs.plain import plain_yaml

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

FORMAT = 1  # of config.yaml, encoder.json and checkpoints; files of format 1 stay readable


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Train an encoder by one rule on unlabelled images.

    Only --rule, --data and --out are needed; everything else defaults to what suits the data set.
    """

    rule: str | None = None
    """Learning rule, e.g. clapp++dfb, or PATH.py:CLASS. The latter is your own; misspell one to see all. Not needed
    with --resume."""
    data: str | None = None
    """digits, mnist, cifar10, imagefolder:PATH, and others. These are stl10, tiny-imagenet, parquet:PATH, shards:PATH,
    npz:PATH, and your own, PATH.py:NAME."""
    out: Path | None = None
    """Folder of the run. It gets config.yaml, flags.yaml, metrics.csv, checkpoint/, encoder.safetensors, manifest.json,
    cost.json."""
    config: Path | None = None
    """File of flags, or a run's folder; flags given win. A flag a line, e.g. rule: clapp++dfb; of a folder
    its flags.yaml is read; a run's config.yaml is taken, too."""
    data_root: Path | None = None
    """Folder that holds the data set. Default: $LOCALSSL_DATA, else ./data."""
    download: bool = False
    """Let torchvision download mnist, cifar10 or stl10 into --data-root."""
    epochs: int | None = None
    """Passes over the images. Default: 40 on digits, else 10. The paper has 300."""
    width: float = 1.0
    """Factor on the encoder's channel numbers. 1 is the paper's."""
    seed: int = 0
    """Seed of weights, order, views and negatives."""
    encoder: str | None = None
    """vgg6, mlp, torchvision:NAME, timm:NAME, PATH.py:NAME, and others. These are vgg5, vgg11, cnn1d, scff3, scff4,
    softhebb3, stochastic-ff3. Default: what suits the data."""
    patches: tuple[int, ...] | None = None
    """Side of the patches that share a projection, one per block. Default: Table A2's."""
    encoder_options: tuple[str, ...] = ()
    """Of the encoder, NAME=VALUE, e.g. norm=length. Default: what the rule asks for."""
    rule_options: tuple[str, ...] = ()
    """Options of the rule, NAME=VALUE, e.g. f=softplus. Several: f=softplus loss_type=1 negatives=random."""
    lr: float | None = None
    """Learning rate. Default: the rule's own or the data's. The latter is 2e-3 on digits, 1e-3 elsewhere (the paper:
    2e-4)."""
    batch_size: int = 64
    """Images in a batch, two views each."""
    weight_decay: float | None = None
    """Decoupled (adam-l2: in the gradient). Default: 0; on tiny-imagenet 1e-5, bp-infonce always 0."""
    optimizer: Literal["adam", "adam-factored", "adam-l2", "sgd", "plain-sgd", "shift-sgd"] | None = None
    """adam-factored keeps a dense B's second moment by row and column; sgd has momentum 0.9, plain-sgd none;
    shift-sgd: powers of two, --lr beside the weights. Default: the rule's, else adam; with --bits shift-sgd."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Learning rate over the run: constant (the paper's) or cosine to zero."""
    image_size: int | None = None
    """Side to which images are resized. Default: the data set's own; of images of yours the shorter
    side of the first, rounded down to a multiple of 32, from 32 to 96."""
    views: str | None = None
    """patches, or views of your own, PATH.py:NAME. patches: two of every image, one below the other, colours as they
    are, after CLAPP's. Default: those of the data."""
    view_strength: float | None = None
    """Factor on how far affine views turn, shift, zoom and shear (digits, mnist). Default: 1."""
    limit_images: int | None = None
    """Train on this many images. They are drawn once with a fixed seed."""
    skip_bad: bool = False
    """Skip and count images that cannot be decoded, and gray among colour."""
    memory: float | None = None
    """GiB of this machine for decoded images; more are read from disk whenever they are used. Default: half of what is
    free."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    precision: Literal["32-true", "bf16-mixed", "64-true"] = "32-true"
    """Arithmetic of the training step."""
    engine: Literal["auto", "autograd", "hebbian", "hebbian-lean"] = "auto"
    """hebbian: three factors, no autograd; lean: less memory, more time. auto: hebbian where it can
    do the rule, but autograd, which is faster there, for small steps of one process on a CPU."""
    bits: int | None = None
    """Learn in integers of 2 to 16 bits (weights, activities, signals), by powers of two: docs/hardware.md."""
    weight_noise: float = 0.0
    """With --bits: noise with which every batch reads the weights, as a share of the largest one."""
    dead: float = 0.0
    """With --bits: share of the synapses that are stuck at 0."""
    mismatch: float = 0.0
    """With --bits: spread, over synapses, of the factor by which their changes are too large or small."""
    threads: int | None = None
    """CPU threads of every process. Default: PyTorch's own choice, shared among the processes."""
    devices: int = 1
    """Processes that share every batch, each a part of it, on this machine (as many of its devices). See --nodes. With
    --pipeline each of them is as many."""
    nodes: int = 1
    """Machines, each with --devices processes; start the same command on all, or let torchrun or SLURM start it."""
    across: Literal["all", "process"] = "all"
    """With --devices: whose samples are compared (negatives). all: the whole batch's; process: each process's own."""
    exchange: Literal["auto", "rows", "matrices"] = "auto"
    """With --devices: how changes of B come about. rows: readouts go to all, each process makes all of the change;
    matrices: each makes its samples' part, parts are summed; auto: layer by layer what takes less time."""
    shard_b: bool = False
    """With --devices: every process keeps some rows of every dense B, with their optimiser's state. Same numbers."""
    patience: float = 60.0
    """With --devices: minutes that a process waits for word from another before it takes it for lost, its machine cut
    off. One that is killed is seen at once."""
    pipeline: int | None = None
    """Train the blocks in this many processes at the same time, each a part of them. Default: one process."""
    split: tuple[int, ...] | None = None
    """Blocks of every process, e.g. 2 4, with --pipeline. Default: balanced by estimated work."""
    staleness: int = 0
    """Batches that a block may run before it has learnt from an earlier one; for rules with feedback. 0: none."""
    probe_every: int = 1
    """Epochs between rows of the online monitors (kNN, effective rank, dead units, active hinges); 0: never."""
    align_every: int = 0
    """Epochs between measurements of alignment with backpropagation, on four batches of training images; 0: never."""
    checkpoint_every: float = 10.0
    """Minutes between checkpoints. Small runs also write one at step 0 and at every epoch's end."""
    trackers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ("tensorboard",)
    """Where curves go besides metrics.csv, all into --out and offline; wandb and mlflow are extra packages."""
    own: tuple[Path, ...] = ()
    """Files with code of yours, PATH.py, that a run names which goes on or begins by --config."""
    on_nan: Literal["stop", "skip", "rollback"] = "stop"
    """A batch with NaN or infinite gradients. stop: end, state kept; skip: leave it out; rollback: go on after it with
    the last checkpoint's weights. Those two hold the gradients of all blocks at once."""
    resume: bool = False
    """Go on from the last checkpoint in --out. Where there is none, start from the beginning."""

    @property
    def together(self) -> int:
        """Processes of one machine that are started together: of every part of a batch as many as --pipeline says.

        1: those of --pipeline alone are started by the run itself.
        """
        return self.devices * (self.pipeline or 1) if self.devices * self.nodes > 1 else 1

    def command(self) -> str:
        """The command that asks for this run, without --resume and --report: every flag that is not as by default."""
        return as_typed("train", self, but=("resume", "report", "no_report", "dry_run"))

    def own_files(self) -> list[str]:
        """The files with code of the user's that were named, to be named again."""
        typed = [name for name in (self.rule, self.data, self.encoder, self.views) if name and own.is_path(name)]
        files = [*map(str, self.own), *(own.file_of(name) for name in typed)]
        return list({Path(file).expanduser().absolute(): file for file in reversed(files)}.values())[::-1]

    def resume_command(self) -> str:
        """The command that goes on with this run, to be pasted into a shell; the folder holds all other settings."""
        words = ["train", "--resume", "--out", str(self.out)]
        for flag in (
            "device",
            "threads",
            "memory",
            "checkpoint_every",
            "devices",
            "nodes",
            "exchange",
            "shard_b",
            "patience",
            "pipeline",
            "split",
            "trackers",
            "on_nan",
        ):
            value = getattr(self, flag)
            if value != getattr(type(self), flag):
                words += _typed_flag(flag, value)
        if files := self.own_files():
            words += ["--own", *files]
        return f"{program()} {in_shell(words)}"


def as_typed(command: str, flags: DataclassInstance, but: Collection[str] = ()) -> str:
    """The command line of these flags: every one that is not as by default, but those in ``but``."""
    words = [command]
    for field in dataclasses.fields(flags):
        value = getattr(flags, field.name)
        if value != field.default and field.name not in but:
            words += _typed_flag(field.name, value)
    return f"localssl {in_shell(words)}"


def _typed_flag(name: str, value: Any) -> list[str]:
    values = value if isinstance(value, tuple) else () if value is True else (value,)
    return [f"--{name.replace('_', '-')}", *map(str, values)]


def program() -> str:
    """How this machine starts the command line."""
    return "localssl" if shutil.which("localssl") else f"{in_shell([sys.executable])} -m localssl"


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that determines a run's numbers, resolved: no default is left open. Written as ``config.yaml``.

    Where ``trained_by`` names the command of a study, the network was trained in that study's own way: rate, schedule,
    optimiser and weight decay are those of its last pass, and nothing trains anew from this configuration.
    """

    rule: str
    rule_options: dict[str, Any]
    data: str
    image_size: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augmentation: Augmentation
    limit_images: int | None
    skip_bad: bool
    encoder: dict[str, Any]
    patches: tuple[int | None, ...] | None
    epochs: int
    batch_size: int
    lr: float
    weight_decay: float
    optimizer: str
    schedule: str
    seed: int
    precision: str
    probe_every: int
    align_every: int = 0  # younger than format 1: configurations without them are read as before
    engine: str = "autograd"
    staleness: int = 0
    across: str = "all"
    views: str | None = None
    shape: tuple[int, ...] | None = None
    bits: int | None = None
    weight_noise: float = 0.0
    dead: float = 0.0
    mismatch: float = 0.0
    trained_by: str | None = None

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one image, or array."""
        return self.shape or (self.channels, self.image_size, self.image_size)

    def make_rule(self) -> rules.Rule:
        """The rule with its options."""
        return rules.get(self.rule, **self.rule_options)

    def own_files(self) -> dict[str, str]:
        """What of the run comes from a file of the user's own, PATH.py:NAME, by its part."""
        named = {"rule": self.rule, "encoder": str(self.encoder.get("name")), "data set": self.data}
        named["views"] = self.views or ""
        return {part: name for part, name in named.items() if own.is_path(name)}

    def to_yaml(self) -> str:
        """The text of config.yaml."""
        plain = json.loads(json.dumps(dataclasses.asdict(self)))
        return yaml.safe_dump({"format": FORMAT, **plain}, sort_keys=False)

    @classmethod
    def from_yaml(cls, text: str, source: str) -> RunConfig:
        """Read a config.yaml; ``source`` names it in errors.

        Raises:
            UsageError: not a configuration of this format, or unknown or missing keys.
        """
        raw = plain_yaml(text, source)
        if not isinstance(raw, dict) or raw.pop("format", None) != FORMAT:
            raise UsageError(f"{source} is not a localssl run configuration of format {FORMAT}")
        fields = dataclasses.fields(cls)
        names = [field.name for field in fields]
        for key in raw:
            if key not in names:
                raise unknown(f"key in {source}", str(key), names)
        missing = [field.name for field in fields if field.name not in raw and field.default is dataclasses.MISSING]
        if missing:
            raise UsageError(f"{source} lacks {', '.join(missing)}; write the run anew or complete it")
        values = _typed(cls, raw, source)
        augmentation = _typed(Augmentation, values["augmentation"], f"{source}: augmentation")
        try:
            values["augmentation"] = Augmentation(**augmentation)
        except TypeError as error:
            raise UsageError(f"{source}: augmentation has unknown keys ({error})") from error
        config = cls(**values)
        own.doubt(config.own_files().values())
        return config

    def flat(self) -> dict[str, Any]:
        """The configuration's values by name, those of the encoder and the augmentation as "encoder width"."""
        flat: dict[str, Any] = {}
        for key, value in dataclasses.asdict(self).items():
            flat |= {f"{key} {k}": v for k, v in value.items()} if isinstance(value, dict) else {key: value}
        return flat

    def differences(self, other: RunConfig, but: Collection[str] = ()) -> list[str]:
        """Readable differences "key mine (there: theirs)", without the keys in ``but``."""
        mine, theirs = self.flat(), other.flat()
        return [
            f"{key} {mine.get(key)!r} (there: {theirs.get(key)!r})"
            for key in {**mine, **theirs}
            if mine.get(key) != theirs.get(key) and key not in but
        ]


def _typed(owner: type[DataclassInstance], raw: dict[str, Any], source: str) -> dict[str, Any]:
    """Values as YAML gives them, for the fields of ``owner``: lists as tuples, classes as dictionaries.

    Raises:
        UsageError: a value of another type.
    """
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in raw.items()}
    for name, kind in typing.get_type_hints(owner).items():
        kind = dict if dataclasses.is_dataclass(kind) else kind
        if name in values and not is_of(values[name], kind):
            raise UsageError(f"{source}: {name} is {shown(raw[name])}, expected {in_words(kind)}")
    return values


def parse_options(pairs: Sequence[str], flag: str = "--rule-options") -> dict[str, Any]:
    """``("f=softplus", "loss_type=1")`` to ``{"f": "softplus", "loss_type": 1}``; ``flag`` names them in errors.

    Raises:
        UsageError: an item without "=".
    """
    options: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise UsageError(f"{flag} takes NAME=VALUE, got {pair!r}")
        try:
            options[name] = json.loads(value)
        except json.JSONDecodeError:
            options[name] = {"True": True, "False": False, "None": None}.get(value, value)
    return options
