"""A run: its configuration, its images, its learner. Built from flags, or opened from its folder."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor

from localssl import encoders, own, rules
from localssl import engine as engines
from localssl.blocks import black_boxes
from localssl.data import arrays
from localssl.data.sources import Images, is_here, open_images
from localssl.data.specs import default_patches, spec_for, spec_of_arrays
from localssl.data.views import Normalise, Views, by_name, check_shades
from localssl.encoders import others, registry
from localssl.errors import UsageError
from localssl.learner import Learner
from localssl.optimizer import power_of_two
from localssl.runs import checkpoint
from localssl.runs.config import RunConfig, TrainConfig, parse_options
from localssl.runs.limits import check
from localssl.system import devices

INTEGER_LR = 2.0**-6  # of shift-sgd: the size of a step beside the weights
MEASURED_ON = 10_000  # images from which mean and std are measured where a data set has no published ones


@dataclass(frozen=True)
class Run:
    """A run's folder, opened. Where the data lie may differ between machines and is not part of the configuration."""

    path: Path
    config: RunConfig

    def learner(self) -> Learner:
        """The untrained learner of the run's seed: weights and projections as they were before the first step."""
        return build(self.config)

    def encoder(self) -> encoders.Encoder:
        """The trained encoder."""
        return checkpoint.load(self.path)

    def trained_learner(self) -> tuple[Learner, int]:
        """The learner with weights and projections of the last checkpoint, and its step."""
        learner = build(self.config)
        state, _ = checkpoint.read_last(self.path)
        if state is None:
            raise UsageError(f"{self.path} has no checkpoint yet; let the run write one first")
        checkpoint.load_weights(learner, state["learner"], f"the last checkpoint in {self.path}")
        return learner, int(state["step"])

    def images(
        self,
        split: str,
        root: Path | None = None,
        data: str | None = None,
        limit: int | None = None,
        skip_bad: bool = False,
        memory_limit: int | None = None,
        processes: int = 1,
    ) -> Images:
        """The run's images, or another data set's in the run's size and channels; bad ones skipped as in training."""
        c = self.config
        kind, _, path = c.data.partition(":")
        if data is None and path and not own.is_path(c.data) and not is_here(c.data):  # often relative, from elsewhere
            raise UsageError(f"{path}, on which {self.path} was trained, is not here; name it with --data {kind}:PATH")
        return open_images(
            data or c.data,
            split,
            root=root or stored_root(self.path),
            channels=c.channels,
            image_size=c.image_size,
            limit=limit,
            skip_bad=skip_bad or c.skip_bad,
            memory_limit=memory_limit,
            processes=processes,
        )

    def normalise(self) -> Normalise:
        """Normalisation of the images as in training."""
        return Normalise(self.config.mean, self.config.std)

    def views(self) -> Views:
        """The two views as in training."""
        return make_views(self.config)


def open_run(path: str | Path) -> Run:
    """Open a run's folder.

    Raises:
        UsageError: there is no run, or its configuration cannot be read.
    """
    return open_config(Path(path) / "config.yaml")


def run_in(folder: Path) -> str | None:
    """Of what makes a folder a run's the first that lies in it; None where nothing does."""
    names = ("checkpoint", "config.yaml", "encoder.safetensors")
    return next((name for name in names if (folder / name).exists()), None)


def open_config(file: Path) -> Run:
    """The run that a config.yaml belongs to. Errors as in ``open_run``."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        if file.parent.is_file():
            raise UsageError(f"{file.parent} is a file; give the run's folder, {file.parent.parent}") from error
        reason = "not found" if isinstance(error, FileNotFoundError) else str(error)
        raise UsageError(
            f"no run in {file.parent} ({file.name}: {reason}); train one with localssl train --out {file.parent}"
        ) from error
    return Run(file.parent, RunConfig.from_yaml(text, str(file)))


def manifest_of(run: Path, section: str) -> dict[str, Any]:
    """A section of manifest.json, "data" or "environment"; nothing where it cannot be read."""
    try:
        found = json.loads((run / "manifest.json").read_text(encoding="utf-8"))[section]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def stored_root(run: Path) -> Path | None:
    """The data folder that training read, if it is still there."""
    root = manifest_of(run, "data").get("root")
    return Path(root) if isinstance(root, str) and Path(root).is_dir() else None


def make_views(config: RunConfig) -> Views:
    """The view maker of a configuration."""
    return Views(config.augmentation, config.mean, config.std, config.channels, config.image_size, config.views)


def build(config: RunConfig) -> Learner:
    """The untrained learner of a configuration; the same seed gives the same encoder under every rule."""
    torch.manual_seed(config.seed)
    encoder = encoders.from_config(config.encoder)
    device = engines.Device(config.weight_noise, config.dead, config.mismatch)
    learner = Learner(encoder, config.make_rule(), config.input_shape, config.patches, config.engine, device)
    return learner.to(memory_format=torch.channels_last)  # the faster layout for convolutions, on CPU and GPU


def resolve(config: TrainConfig) -> tuple[RunConfig, Images]:
    """Fill every default from the data set's, and open the training images.

    Raises:
        UsageError: anything the user must mend: a misspelt name, missing data, sizes that do not fit.
    """
    if config.rule is None or config.data is None:
        raise UsageError("train needs --rule and --data, for instance --rule clapp++ --data digits")
    check(config)
    spec = spec_for(config.data)
    options = parse_options(config.rule_options)
    integers = config.bits is not None
    typed = parse_options(config.encoder_options, "--encoder-options")
    if "bits" in typed:
        raise UsageError("--encoder-options bits goes with learning in integers; give --bits instead")
    plain = arrays.are_arrays(config.data)
    if plain and config.image_size is not None:
        raise UsageError(f"--image-size goes with images, {config.data} has a shape of its own; leave it out")
    spec.augmentation.scaled(config.view_strength)
    rule = get_rule(config.rule, options)  # first: a misspelt name should not cost the reading of a data set
    if config.encoder is not None:
        registry.check_name(config.encoder)
    view = None if config.views is None else by_name(own.full_name(config.views))
    images = open_images(
        config.data,
        train_split(config.data),
        root=config.data_root,
        channels=spec.channels,
        image_size=spec.image_size if config.image_size is None else config.image_size,
        limit=config.limit_images,
        download=config.download,
        skip_bad=config.skip_bad,
        **memory_of(config),
    )
    if view is not None:
        view.check(images.batch(torch.arange(min(len(images), config.batch_size))))
    spec = spec_of_arrays(images.shape) if plain else spec
    if plain and config.views is None and spec.augmentation.kind == "simclr":
        check_shades(config.data, (images.batch(part) for part in torch.arange(len(images)).split(1000)))
    if integers and ((config.encoder or spec.encoder) == "cnn1d" or others.is_other_peoples(config.encoder or "")):
        raise UsageError(f"--bits: encoder {config.encoder or spec.encoder!r} has no grids; use vgg6, vgg5 or mlp")
    augmentation = spec.augmentation.scaled(config.view_strength)
    encoder_name = config.encoder or spec.encoder
    channels, height = (spec.channels, images.shape[-1]) if plain else images.shape[:2]
    if rule.uses_labels and images.labels is None:
        raise UsageError(
            f"rule {config.rule!r} is supervised and {config.data} has no labels; choose another of the two"
        )
    if "classes" in {field.name for field in dataclasses.fields(rule)} and images.classes:
        options = {"classes": len(images.classes)} | options
    mean, std = (spec.mean, spec.std) if spec.mean and spec.std else measure_mean_std(images)
    with registry.sketched(encoder_name):  # only its configuration is wanted
        encoder = encoders.build(encoder_name, images.shape, config.width, typed, wished(rule, config.bits))
    if config.align_every and (boxes := black_boxes(encoder.blocks)):
        raise UsageError(f"--align-every needs derivatives, and black box {boxes[0][1].name!r} has none; leave it out")
    chosen = engines.choose("integer" if integers else config.engine, encoder, rule)
    weight_decay = 0.0 if integers or config.optimizer == "shift-sgd" else config.weight_decay
    if weight_decay is None:
        weight_decay = spec.weight_decay if rule.weight_decay is None else rule.weight_decay
    resolved = RunConfig(
        rule=rules.full_name(config.rule),
        rule_options=options,
        data=own.full_name(config.data),
        image_size=height,
        channels=channels,
        mean=mean,
        std=std,
        augmentation=augmentation,
        limit_images=config.limit_images,
        skip_bad=config.skip_bad,
        encoder=encoder.config or {},
        patches=config.patches or default_patches(encoder_name, height),
        epochs=spec.epochs if config.epochs is None else config.epochs,
        batch_size=config.batch_size,
        lr=_rate(config, rule, spec.lr),
        weight_decay=weight_decay,
        optimizer=config.optimizer or rule.optimizer or ("shift-sgd" if integers else "adam"),
        schedule=config.schedule,
        seed=config.seed,
        precision="64-true" if integers else config.precision,
        engine=chosen.name,
        probe_every=config.probe_every,
        align_every=config.align_every,
        staleness=config.staleness,
        across=config.across,
        views=None if config.views is None else own.full_name(config.views),
        shape=images.shape if plain else None,
        bits=config.bits,
        weight_noise=config.weight_noise,
        dead=config.dead,
        mismatch=config.mismatch,
    )
    return resolved, images


def wished(rule: rules.Rule, bits: int | None) -> dict[str, Any]:
    """What a run asks of the encoder besides what was typed."""
    return {**rule.encoder_options, **({} if bits is None else {"bits": bits})}


def _rate(config: TrainConfig, rule: rules.Rule, default: float) -> float:
    """The learning rate; of integers a power of two."""
    if config.bits is None:
        return config.lr or rule.lr or (INTEGER_LR if config.optimizer == "shift-sgd" else default)
    return power_of_two(config.lr or rule.lr or INTEGER_LR)


def about_rate(config: TrainConfig, resolved: RunConfig) -> str | None:
    """A line for a run at a rate that nobody gave and that was not found for its encoder; None: nothing to say."""
    name = str(resolved.encoder.get("name"))
    if config.lr is not None or not (others.is_other_peoples(name) or own.is_path(name)):
        return None
    spec = spec_for(resolved.data) if resolved.shape is None else spec_of_arrays(resolved.shape)
    whose = f"{spec.encoder}'s"
    if resolved.make_rule().lr is not None:
        whose = f"{own.short_name(resolved.rule)}'s own"
    elif resolved.optimizer == "shift-sgd":
        whose = "shift-sgd's"
    return (
        f"learning rate {resolved.lr:g}, {whose}, as none was given: {own.short_name(name)} may want a lower one, "
        f"for instance --lr {0.3 * resolved.lr:g}"
    )


def train_split(data: str) -> str:
    """The part of a data set that is trained on."""
    return "unlabeled" if data == "stl10" else "train"


class Memory(TypedDict):
    """What the processes of a machine may take for decoded images, as ``open_images`` has it."""

    memory_limit: int | None
    processes: int


def memory_of(config: TrainConfig) -> Memory:
    """What --memory and --devices say."""
    limit = None if config.memory is None else int(config.memory * 2**30)
    return {"memory_limit": limit, "processes": config.devices}


def get_rule(name: str, options: dict[str, Any]) -> rules.Rule:
    """The rule with its options as they were typed.

    Raises:
        UsageError: unknown rule or option, or a value of another kind than the rule takes.
    """
    try:
        rule = rules.get(name, **options)
    except TypeError as error:  # a rule of the user's own that compares a number with a text
        raise UsageError(f"--rule-options {options}: not what rule {name!r} takes ({error})") from error
    for field in dataclasses.fields(rule):
        value = getattr(rule, field.name)
        if isinstance(field.default, bool) and not isinstance(value, bool):
            raise UsageError(f"--rule-options {field.name}={value}: use true or false")
    return rule


def sketch(config: RunConfig) -> Learner:
    """The learner of a configuration for its shapes alone: an encoder of this library takes no memory."""
    with registry.sketched(str(config.encoder.get("name"))):
        return build(config)


def check_memory(config: RunConfig, learner: Learner) -> None:
    """Refuse a learner that with gradients and optimiser is larger than this machine's memory, before it is made.

    Raises:
        UsageError: says how large it would be.
    """
    number = 8 if config.precision == "64-true" else 4  # bytes
    need = sum(p.numel() for p in learner.parameters()) * number * (4 if config.optimizer.startswith("adam") else 3)
    memory = devices.memory()
    if memory is not None and need > memory:
        raise UsageError(
            f"weights, gradients and optimiser would take {need / 2**30:,.1f} GiB, this machine has "
            f"{memory / 2**30:,.1f} GiB; use a smaller --width"
        )


def by_autograd(config: TrainConfig, resolved: RunConfig, learner: Learner) -> bool:
    """Whether a run of one process that takes the engine because it can had better take autograd: small, on a CPU.

    Several processes keep the engine, whose changes of B cost less to exchange, and so does staleness, which autograd
    cannot do.
    """
    if (config.engine, resolved.engine) != ("auto", "hebbian") or config.staleness:
        return False
    if config.devices * config.nodes > 1 or devices.choose(config.device).type != "cpu":
        return False
    weights = sum(p.numel() for p in learner.parameters())
    return engines.autograd_is_faster(learner.encoder, learner.output_shapes, weights, resolved.batch_size)


def measure_mean_std(images: Images) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Per-channel mean and standard deviation of evenly spaced images (at most 10,000), in [0, 1]; of vectors one."""
    step = max(1, len(images) // MEASURED_ON)
    total = torch.zeros(images.shape[0] if len(images.shape) > 1 else 1, dtype=torch.float64)
    square = torch.zeros_like(total)
    index = torch.arange(0, len(images), step)
    for part in index.split(1000):
        x = images.batch(part)
        x = (x.double() / 255 if x.dtype == torch.uint8 else x.double()).view(len(x), len(total), -1)
        total += x.mean(2).sum(0)
        square += x.square().mean(2).sum(0)
    mean = total / len(index)
    std = (square / len(index) - mean.square()).clamp_min(0).sqrt().clamp_min(1e-3)
    return _rounded(mean), _rounded(std)


def _rounded(values: Tensor) -> tuple[float, ...]:
    return tuple(round(float(v), 4) for v in values)
