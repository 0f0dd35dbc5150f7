"""A small twin of a network: the same blocks, layer for layer, with few channels, on small images.

Golden vectors are of the twin: those of the network itself would fill gigabytes and say nothing more about the rule.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from localssl import engine
from localssl.blocks import black_boxes
from localssl.encoders import Encoder
from localssl.errors import UsageError
from localssl.grids import Grid
from localssl.learner import Learner
from localssl.rulefile.rounding import unrounded
from localssl.runs.config import RunConfig

CHANNELS = 4
SIDE = 16  # of an image, halved until it is no larger, as far as the network goes along
IMAGES = 3
WARM = 20  # batches before them, at most
EVEN = 4  # images of a learner in integers, in which a mean is a shift
INPUT = -12  # exponent of the numbers that enter a learner in integers
LARGE = 20_000  # weights of a network that cannot be made smaller
SEEDS = 50  # of weights, tried until every one is updated in every batch
BATCHES = 3  # of golden vectors
FAINT = 1e-6  # of the largest number in all updates
GAIN = 1.5  # on all weights: away from where every hinge is active and every loss flat
SPREAD = 0.3  # of the difference of two views of an image, over the image's own


Stepper = Callable[[int], object]  # one step of an optimiser, counted from 0


def twin(encoder: Encoder, config: RunConfig, stepper: Callable[[Learner], Stepper]) -> Learner:
    """A learner in float64 of a run's rule on the twin of its encoder, of which as many weights as can are updated.

    Args:
        encoder: of the run, untouched.
        config: of the run.
        stepper: makes what steps the optimiser of a learner.

    Raises:
        UsageError: the network holds a black box, or is large and of other parts than convolutions, linear layers and
            what has no weights; or an update is rounding noise under every seed.
    """
    if boxes := black_boxes(encoder.blocks):
        number, box = boxes[0]
        raise UsageError(
            f"export --rule: black box {box.name!r} in block {number} is a function, which no manifest can hold"
        )
    best: tuple[int, Learner] | None = None
    names: list[str] = []
    lacking: UsageError | None = None
    for seed in range(SEEDS):
        torch.manual_seed(seed)
        learner = _smallest(encoder, config).double()
        learner = learner.to(memory_format=torch.channels_last)  # as of a run: fused AdamW mixes up two layouts
        with torch.no_grad():
            for p in learner.parameters():
                if p.requires_grad:
                    p.mul_(GAIN)
        _centre(learner)
        _on_grids(learner)
        try:
            silent, names = _faint(learner, stepper, images_of(config))
            if learner.engine == "integer":  # its golden steps in floats are of the same weights
                names = _faint(in_floats(learner, config), stepper, images_of(config))[1]
        except UsageError as error:  # another seed may have what this one lacks
            lacking = error
            continue
        if not names and (best is None or silent < best[0]):
            best = silent, learner
        if best is not None and best[0] == 0:
            break
    if best is None and lacking is not None:
        raise lacking
    if best is None:
        raise _noise(names)
    return best[1]


def _noise(names: Sequence[str]) -> UsageError:
    return UsageError(f"export --rule: the update of {', '.join(names)} cancels to rounding noise in a small twin")


@torch.no_grad()
def _centre(learner: Learner) -> None:
    """Move biases until every unit is on half the time: what a unit that is always on learns at its bias cancels."""

    def after(layer: nn.Module, args: object, drive: Tensor) -> Tensor | None:
        if not isinstance(layer.bias, nn.Parameter):
            return None
        over = [d for d in range(drive.ndim) if d != 1]
        mean = drive.mean(over)
        layer.bias -= mean
        return drive - mean.view(-1, *[1] * (drive.ndim - 2))

    x, _ = enter(learner, 0, IMAGES)
    weighted = [m for m in learner.encoder.blocks.modules() if isinstance(m, nn.Conv1d | nn.Conv2d | nn.Linear)]
    handles = [module.register_forward_hook(after) for module in weighted]
    learner.encoder(x)
    for handle in handles:
        handle.remove()


@torch.no_grad()
def _on_grids(learner: Learner) -> None:
    """Round weights that were on grids and have been changed."""
    if learner.engine != "integer":
        return
    for numbers, weights in engine.places(learner.encoder, learner.parts):
        for name, these in weights.items():
            grid = numbers.store(name).grid
            grid.calibrate(torch.cat([w.flatten() for w in these]))
            for w in these:
                w.copy_(grid(w))


def enter(learner: Learner, step: int, images: int) -> tuple[Tensor, Tensor]:
    """What enters the first block of a batch of random images, the same every time, and labels in turn."""
    generator = torch.Generator().manual_seed(step)
    shape = (images, *learner.input_shape)
    a, b = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    labels = (torch.arange(images) + step) % int(getattr(learner.rule, "classes", 10))
    torch.manual_seed(step)
    x = learner.enter(a, a + SPREAD * b, None, labels)
    return (torch.round(x * 2.0**-INPUT) * 2.0**INPUT if learner.engine == "integer" else x), labels


def images_of(config: RunConfig) -> int:
    """How many images a batch of the small network has."""
    return IMAGES if config.bits is None else EVEN


def warm(learner: Learner, step_on: Stepper, images: int, ready: Callable[[], bool]) -> None:
    """Steps before the golden ones, one or more, until the grids and the sizes of steps are chosen.

    Raises:
        UsageError: ``WARM`` batches do not choose them all, or one chooses a size by an update that is rounding noise.
    """
    for step in range(BATCHES, BATCHES + WARM):
        x, labels = enter(learner, step, images)
        torch.manual_seed(step)
        for _ in learner.credit.updates(learner.step_of(x, None, labels)):
            pass
        if names := _cancelled(learner):
            raise _noise(names)
        step_on(step)
        learner.zero_grad(set_to_none=True)
        if ready():
            return
    raise UsageError("export --rule: in a small twin of this network some weights are never updated")


def _faint(learner: Learner, stepper: Callable[[Learner], Stepper], images: int) -> tuple[int, list[str]]:
    """How many weights are not updated in one of the steps; and whose update is rounding noise of terms that cancel."""
    trial = copy.deepcopy(learner)
    step_on = stepper(trial)
    silent: set[str] = set()
    noise: dict[str, None] = {}
    for step in range(BATCHES):
        trial.zero_grad(set_to_none=True)
        x, labels = enter(trial, step, images)
        torch.manual_seed(step)
        for _ in trial.credit.updates(trial.step_of(x, None, labels)):
            pass
        silent |= {n for n, size in _sizes_of_updates(trial).items() if size == 0}
        noise |= dict.fromkeys(_cancelled(trial))
        step_on(step)
    return len(silent), list(noise)


def _sizes_of_updates(learner: Learner) -> dict[str, float]:
    """The largest number in every weight's update."""
    trained = {n: p.grad for n, p in learner.named_parameters() if p.requires_grad}
    return {n: 0.0 if g is None else float(g.abs().max()) for n, g in trained.items()}


def _cancelled(learner: Learner) -> list[str]:
    """Weights whose update is the rounding noise of terms that cancel; whole numbers have none."""
    sizes = _sizes_of_updates(learner)
    most = max(sizes.values(), default=0.0)
    return [n for n, size in sizes.items() if learner.engine != "integer" and 0 < size <= FAINT * most]


def _smallest(encoder: Encoder, config: RunConfig) -> Learner:
    refused: UsageError | None = None
    patches = config.patches
    for size, factor in _sizes(config.input_shape):
        rule = config.make_rule()
        try:
            small = narrow(encoder, rule.for_images(size).inputs().shape(size))
            fewer = None if patches is None else [None if p is None else max(1, p // factor) for p in patches]
            return Learner(small, rule, size, fewer, config.engine)
        except UsageError as error:
            refused = error
    assert refused is not None
    raise refused


def in_floats(learner: Learner, config: RunConfig) -> Learner:
    """A learner without grids, of the same weights."""
    blocks = [unrounded(block) for block in copy.deepcopy(learner.encoder.blocks)]
    encoder = Encoder(blocks, entry=copy.deepcopy(learner.encoder.entry))
    made = Learner(encoder, config.make_rule(), learner.input_shape, learner.patches).double()
    state = learner.state_dict()
    made.load_state_dict({name: state[name] for name in made.state_dict()})
    return made.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def _sizes(shape: Sequence[int]) -> Iterator[tuple[tuple[int, ...], int]]:
    """Sizes of images, the smallest first, and by what they were divided."""
    found = [(tuple(shape), 1)]
    while len(shape) > 1 and max(found[-1][0][1:]) > SIDE and all(n % 2 == 0 for n in found[-1][0][1:]):
        size, factor = found[-1]
        found.append(((size[0], *(n // 2 for n in size[1:])), 2 * factor))
    yield from reversed(found)


def narrow(encoder: Encoder, sample: Sequence[int]) -> Encoder:
    """The same blocks with ``CHANNELS`` channels or units each, newly drawn, for samples of this shape.

    Raises:
        UsageError: the blocks are not stacks of layers, and have more than ``LARGE`` weights.
    """
    if not all(_plain(block) for block in encoder.blocks):
        count = sum(p.numel() for p in encoder.parameters())
        if count > LARGE:
            raise UsageError(
                f"export --rule: blocks that are no stacks of layers have no small twin, and {count:,} weights are "
                f"too many for golden vectors: at most {LARGE:,} (a rule that is block-local on them is refused anyway)"
            )
        return copy.deepcopy(encoder)
    x = torch.zeros(2, *sample)
    blocks: list[nn.Module] = []
    for block in encoder.blocks:
        made = _narrowed(block, x)
        x = _through(made, x)
        blocks.append(made)
    return Encoder(blocks, entry=copy.deepcopy(encoder.entry))


def _plain(module: nn.Module) -> bool:
    if type(module) is nn.Sequential:
        return all(_plain(part) for part in module)
    return type(module) in _NARROW or not list(module.parameters())


def _narrowed(module: nn.Module, x: Tensor) -> nn.Module:
    if type(module) is nn.Sequential:
        parts: list[nn.Module] = []
        for part in module:
            parts.append(_narrowed(part, x))
            x = _through(parts[-1], x)
        return nn.Sequential(*parts)
    make = _NARROW.get(type(module))
    return copy.deepcopy(module) if make is None else make(module, x)


def _through(module: nn.Module, x: Tensor) -> Tensor:
    try:
        with torch.no_grad():
            return copy.deepcopy(module).eval()(x)
    except RuntimeError as error:
        raise UsageError(f"the encoder does not accept inputs of shape {tuple(x.shape[1:])}") from error


def _convolution(old: nn.Module, x: Tensor) -> nn.Module:
    assert isinstance(old, nn.Conv1d | nn.Conv2d)
    inputs = x.shape[1]
    groups = inputs if old.groups == old.in_channels else 1
    outputs = inputs if groups > 1 else min(CHANNELS, old.out_channels)
    geometry = {"stride": old.stride, "padding": old.padding, "dilation": old.dilation}
    bias = old.bias is not None  # pyright: ignore[reportUnnecessaryComparison]
    made = {"groups": groups, "bias": bias, "padding_mode": old.padding_mode, **geometry}
    return type(old)(inputs, outputs, old.kernel_size, **made)  # pyright: ignore[reportArgumentType]


def _linear(old: nn.Module, x: Tensor) -> nn.Module:
    assert isinstance(old, nn.Linear)
    bias = old.bias is not None  # pyright: ignore[reportUnnecessaryComparison]
    return nn.Linear(x.shape[-1], min(CHANNELS, old.out_features), bias=bias)


def _grid(old: nn.Module, x: Tensor) -> nn.Module:
    assert isinstance(old, Grid)
    return Grid(old.bits)


def _norm(old: nn.Module, x: Tensor) -> nn.Module:
    assert isinstance(old, nn.BatchNorm1d | nn.BatchNorm2d)
    return type(old)(x.shape[1], affine=old.affine)


_NARROW: dict[type[nn.Module], Callable[[nn.Module, Tensor], nn.Module]] = {
    nn.Conv1d: _convolution,
    nn.Conv2d: _convolution,
    nn.Linear: _linear,
    Grid: _grid,
    nn.BatchNorm1d: _norm,
    nn.BatchNorm2d: _norm,
}
