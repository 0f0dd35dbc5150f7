"""Encoders: stacks of blocks. Every block is one unit of local learning; its output is the activity z^l.

An encoder knows nothing of rules. ``encoder(x)`` runs the blocks in order and returns every output.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from localssl import networks, own
from localssl.blocks import BlackBoxError
from localssl.errors import UsageError, unknown
from localssl.grids import Grid
from localssl.layers import ACTIVATIONS, NORMS, ImageNorm, Triangle
from localssl.peers_nets import NETS, Stage

VGG6_CHANNELS = (128, 256, 256, 512, 1024, 1024)  # paper, Table A1
VGG6_POOLS = (False, True, False, True, True, True)
VGG5_CHANNELS = (16, 32, 32, 64, 64)  # ours, for 16x16 digits
VGG5_POOLS = (False, True, False, True, True)


class Encoder(nn.Module):
    """A stack of blocks.

    Args:
        blocks: the blocks, first to last; each maps the previous block's output to its own.
        config: how a named encoder was built, kept beside its weights; None for a stack of the user's own.
        emit: per block, what stands between its output and what the next block, the probe and others see of it; None:
            nothing.
        entry: what every image goes through by itself, before a rule's inputs make pairs or noisy copies of it; None:
            nothing.

    Attributes:
        preprocess: normalises images as in training; set by ``localssl.load``, otherwise None.
    """

    def __init__(
        self,
        blocks: Iterable[nn.Module],
        config: dict[str, Any] | None = None,
        emit: Iterable[nn.Module] | None = None,
        entry: nn.Module | None = None,
    ):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.entry = nn.Identity() if entry is None else entry
        self.emit = nn.ModuleList([nn.Identity() for _ in self.blocks] if emit is None else emit)
        self.config = config
        self.preprocess: nn.Module | None = None
        if len(self.blocks) == 0:
            raise UsageError("an encoder needs at least one block, got none")

    @classmethod
    def from_blocks(cls, blocks: Sequence[nn.Module]) -> Encoder:
        """An encoder from any modules, for instance the stages of a ResNet.

        Raises:
            UsageError: no block, or something that is not an ``nn.Module``.
        """
        for i, block in enumerate(blocks):
            if not isinstance(block, nn.Module):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise UsageError(f"block {i + 1} is a {type(block).__name__}; every block must be a torch.nn.Module")
        return cls(blocks)

    @classmethod
    def from_torchvision(cls, name: str, blocks: int | Sequence[str] = 4, **options: Any) -> Encoder:
        """A network of torchvision (random weights) in blocks, each learning by backpropagation within.

        Args:
            name: as ``torchvision.models`` calls it: "resnet18".
            blocks: their number, cut where the maps change their size; or the modules that they end with.
            options: see ``other_peoples``.

        Raises:
            UsageError: see ``networks.blocks_of``; a cut through a skip connection is one.
        """
        return other_peoples(f"torchvision:{name}", blocks, **options)

    @classmethod
    def from_timm(cls, name: str, blocks: int | Sequence[str] = 4, **options: Any) -> Encoder:
        """The same for a network of timm, which has to be installed."""
        return other_peoples(f"timm:{name}", blocks, **options)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Every block's output, first to last, for inputs ``x`` of shape (N, ...)."""
        outputs: list[Tensor] = []
        for number, block in enumerate(self.blocks, start=1):
            x = run_block(block, x, number)
            outputs.append(x)
        return outputs

    def emitted(self, x: Tensor) -> list[Tensor]:
        """What goes on from every block, for the probe, embeddings and monitors: nearly always the outputs."""
        return [emit(z) for emit, z in zip(self.emit, self(self.entry(x)), strict=True)]

    @torch.no_grad()
    def output_shapes(self, input_shape: Sequence[int], emitted: bool = False) -> list[tuple[int, ...]]:
        """Shape of every block's output (or of what goes on from it) for one input, without the batch dimension.

        Raises:
            UsageError: the blocks do not accept inputs of this shape.
        """
        param = next(self.parameters(), torch.empty(0))
        x = torch.zeros(2, *input_shape, dtype=param.dtype, device=param.device)
        was_training = self.training
        self.eval()  # batch statistics of zeros must not enter running averages
        try:
            return [tuple(z.shape[1:]) for z in (self.emitted(x) if emitted else self(x))]
        except UsageError:
            raise
        except BlackBoxError as error:
            raise UsageError(f"{error}, for inputs of zeros {tuple(input_shape)}") from error
        except (RuntimeError, ValueError, TypeError) as error:
            reason = self._mismatch(input_shape) or str(error).splitlines()[0]
            raise UsageError(f"the encoder does not accept inputs of shape {tuple(input_shape)}: {reason}") from error
        finally:
            self.train(was_training)

    def _mismatch(self, shape: Sequence[int]) -> str:
        """How inputs differ from what the first layer takes; "" where that is not what is wrong."""
        weighted = (m for m in self.blocks[0].modules() if isinstance(m, nn.Conv2d | nn.Linear))
        first = next(weighted, None)
        if isinstance(first, nn.Linear) and first.in_features != math.prod(shape):
            return f"its first layer takes {first.in_features} numbers a sample, these have {math.prod(shape)}"
        if isinstance(first, nn.Conv2d) and first.in_channels != shape[0]:
            return f"its first layer takes {first.in_channels} channels, these have {shape[0]}"
        return ""


def run_block(block: nn.Module, x: Tensor, number: int) -> Tensor:
    """The block's output for input ``x``, which is the previous block's output and must stay as it is.

    Raises:
        UsageError: the block changed its input in place, which would silently change the previous block's loss.
    """
    if x.is_inference():  # such tensors keep no count of their changes
        return block(x)
    version = x._version
    out = block(x)
    if x._version != version:
        raise UsageError(
            f"block {number} changes its input in place (ReLU(inplace=True) at its head?), "
            f"and with it the output of the block before; use inplace=False there"
        )
    return out


@dataclass(frozen=True)
class Options:
    """What may differ in the blocks of a named encoder.

    Args:
        norm: "length", "standardise" or "batch" (per channel over the batch, no trained part), of every block's input;
            or None.
        activation: "relu", "relu-ste" (gradient straight through), "gelu", "tanh" or "triangle".
        late: activation and pooling stand at the head of the next block, so that a block's output is its drive a,
            before them; ``Encoder.emitted`` has what goes on. For rules whose loss is of the drive.
        paired: the first norm stands before the inputs, on every image by itself, not in the first block: of what the
            inputs make of images (the mean of two says whether they are alike, noise how large it is) it would take
            that away. ``Encoder.entry`` holds it.
        init: weights start from N(0, init²/fan_in), biases from 0; None: PyTorch's own start.
        bits: what enters and what leaves a layer is rounded to numbers of so many bits, see ``grids``; None: it is not.
    """

    norm: str | None = None
    activation: str = "relu"
    late: bool = False
    paired: bool = False
    init: float | None = None
    bits: int | None = None

    def __post_init__(self) -> None:
        if self.norm is not None and self.norm not in (*NORMS, "batch"):
            raise unknown("norm", str(self.norm), (*NORMS, "batch"))
        if self.activation not in ACTIVATIONS:
            raise unknown("activation", str(self.activation), ACTIVATIONS)
        if self.init is not None and (type(self.init) not in (int, float) or not 0 < self.init < math.inf):
            raise UsageError(f"init is {self.init!r}; use a positive number, or None for PyTorch's own start")
        if self.bits is not None:
            Grid(self.bits)  # refuses what it does not take

    def norm_of(self, layer: nn.Module) -> nn.Module:
        """The norm in front of a convolution or linear layer, or of several in a row."""
        if isinstance(layer, nn.Sequential):
            layer = layer[0]
        if self.norm == "batch":
            if isinstance(layer, nn.Conv2d):
                return nn.BatchNorm2d(layer.in_channels, affine=False)
            assert isinstance(layer, nn.Linear)
            return nn.BatchNorm1d(layer.in_features, affine=False)
        return nn.Identity() if self.norm is None else NORMS[self.norm]()

    def entry_of(self, first: nn.Module) -> nn.Module | None:
        """The norm of images by themselves, where ``paired`` asks for one before the first layer."""
        if not self.paired or self.norm is None:
            return None
        return ImageNorm(self.norm_of(first), flat=isinstance(first, nn.Linear))

    @torch.no_grad()
    def start(self, layer: nn.Module) -> None:
        """Draw the weights anew, where ``init`` asks for it."""
        for m in layer.modules():
            if self.init is not None and isinstance(m, nn.Conv2d | nn.Linear):
                m.weight.normal_(0, self.init / m.weight[0].numel() ** 0.5)
                if m.bias is not None:  # pyright: ignore[reportUnnecessaryComparison]
                    m.bias.zero_()

    def stack(self, weighted: Sequence[nn.Module], pools: Sequence[bool], config: dict[str, Any]) -> Encoder:
        """The encoder of these convolutions or linear layers."""
        tails = [[ACTIVATIONS[self.activation](), *([nn.MaxPool2d(2)] if pool else [])] for pool in pools]
        return self.assemble(weighted, tails, config)

    def assemble(
        self,
        weighted: Sequence[nn.Module],
        tails: Sequence[list[nn.Module]],
        config: dict[str, Any],
        pads: Sequence[int] = (),
    ) -> Encoder:
        """The encoder of these weighted parts, each followed by its tail of activation and pooling.

        ``pads``: width of the reflecting padding in front of each; the standardisation is over what is padded, the
        other norms over what is not.
        """
        blocks: list[nn.Module] = []
        emit: list[nn.Module] = []
        tail: list[nn.Module] = []
        for i, (layer, own_tail) in enumerate(zip(weighted, tails, strict=True)):
            head: list[nn.Module] = [nn.Flatten()] if i == 0 and isinstance(layer, nn.Linear) else []
            if self.late:
                head += tail
            pad = [nn.ReflectionPad2d(pads[i])] if pads else []
            norm = [] if self.norm is None or (self.paired and i == 0) else [self.norm_of(layer)]
            head += pad + norm if self.norm == "standardise" else norm + pad
            self.start(layer)
            tail = own_tail
            into = [Grid(self.bits)] if self.bits and (i == 0 or norm or self.late) else []
            out = [Grid(self.bits)] if self.bits else []
            blocks.append(nn.Sequential(*head, *into, layer, *([] if self.late else tail), *out))
            emit.append(nn.Sequential(*tail))
        own = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}
        return Encoder(blocks, config | own, emit if self.late else None, self.entry_of(weighted[0]))


def conv_block(c_in: int, c_out: int, pool: bool) -> nn.Sequential:
    """3x3 convolution (stride 1, zero padding 1, bias), ReLU and, if ``pool``, 2x2 max-pooling."""
    layers: list[nn.Module] = [nn.Conv2d(c_in, c_out, 3, padding=1), nn.ReLU()]
    if pool:
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers)


def _vgg(
    name: str,
    base: Sequence[int],
    pools: Sequence[bool],
    width: float | Sequence[int],
    in_channels: int,
    options: Mapping[str, Any],
) -> Encoder:
    if isinstance(width, Sequence):
        channels = [int(c) for c in width]
        if len(channels) != len(base) or min(channels) < 1:
            raise UsageError(f"{name} takes a width factor or {len(base)} positive channel numbers, got {list(width)}")
    else:
        channels = [round(width * c) for c in base]
        if not min(channels) >= 1:
            raise UsageError(f"width {width:g} leaves {name} without channels; use at least {1 / min(base):.3g}")
    inputs = [in_channels, *channels[:-1]]
    convs = [nn.Conv2d(c_in, c, 3, padding=1) for c_in, c in zip(inputs, channels, strict=True)]
    return Options(**options).stack(convs, pools, {"name": name, "width": channels, "in_channels": in_channels})


def vgg6(width: float | Sequence[int] = 1.0, in_channels: int = 3, **options: Any) -> Encoder:
    """The six-block VGG of paper Table A1: 128, 256 M, 256, 512 M, 1024 M, 1024 M channels (M: 2x2 max-pool).

    Args:
        width: factor on the channel numbers (rounded), or a list of six channel numbers.
        in_channels: channels of the images.
        options: see ``Options``.

    Raises:
        UsageError: a width that leaves a block without channels, an unknown norm or activation.
    """
    return _vgg("vgg6", VGG6_CHANNELS, VGG6_POOLS, width, in_channels, options)


def vgg5(width: float | Sequence[int] = 1.0, in_channels: int = 1, **options: Any) -> Encoder:
    """A five-block VGG for 16x16 images: 16, 32 M, 32, 64 M, 64 M channels (ours; not in the paper).

    Args:
        width: factor on the channel numbers (rounded), or a list of five channel numbers.
        in_channels: channels of the images.
        options: see ``Options``.

    Raises:
        UsageError: a width that leaves a block without channels, an unknown norm or activation.
    """
    return _vgg("vgg5", VGG5_CHANNELS, VGG5_POOLS, width, in_channels, options)


def mlp(in_features: int = 784, widths: Sequence[int] = (512,) * 6, bias: bool = True, **options: Any) -> Encoder:
    """A multi-layer perceptron of [linear, ReLU] blocks; inputs of any shape are flattened first.

    Args:
        in_features: numbers in one input.
        widths: units of each block.
        bias: whether the linear layers have one.
        options: see ``Options``.

    Raises:
        UsageError: no block, a width below one, an unknown norm or activation.
    """
    if len(widths) == 0 or min(widths) < 1 or in_features < 1:
        raise UsageError(f"mlp needs positive sizes, got in_features={in_features}, widths={list(widths)}")
    inputs = [in_features, *widths[:-1]]
    layers = [nn.Linear(d_in, d, bias=bias) for d_in, d in zip(inputs, widths, strict=True)]
    config = {"name": "mlp", "in_features": in_features, "widths": list(widths), "bias": bias}
    return Options(**options).stack(layers, [False] * len(layers), config)


def cnn1d(width: float = 1.0, in_channels: int = 1) -> Encoder:
    """Four blocks for time series (N, C, T): 32, 64, 64, 128 channels, kernels of 5, ReLU, the time halved by maxima.

    Args:
        width: factor on the channel numbers (rounded).
        in_channels: channels of the series.

    Raises:
        UsageError: a width that leaves a block without channels.
    """
    channels = [round(width * c) for c in (32, 64, 64, 128)]
    if min(channels) < 1:
        raise UsageError(f"width {width:g} leaves cnn1d without channels; use at least 0.03")
    sizes = zip([in_channels, *channels[:-1]], channels, strict=True)
    blocks = [nn.Sequential(nn.Conv1d(c_in, c, 5, padding=2), nn.ReLU(), nn.MaxPool1d(2)) for c_in, c in sizes]
    return Encoder(blocks, {"name": "cnn1d", "width": width, "in_channels": in_channels})


def published(name: str, width: float = 1.0, in_channels: int = 3, **options: Any) -> Encoder:
    """The net of a rule's own publication, see ``peers_nets``; its activations are its own.

    Args:
        name: "scff3", "scff4", "softhebb3" or "stochastic-ff3".
        width: factor on the channel numbers (rounded).
        in_channels: channels of the images.
        options: see ``Options``.

    Raises:
        UsageError: an unknown name, a width that leaves a block without channels, an unknown norm.
    """
    if name not in NETS:
        raise unknown("published net", name, NETS)
    net = NETS[name]
    weighted: list[nn.Module] = []
    c_in = in_channels
    for stage in net.stages:
        c = round(width * stage.channels)
        if c < 1:
            raise UsageError(f"width {width:g} leaves {name} without channels; use at least 0.01")
        weighted.append(_stage(stage, c_in, c, net.bias))
        c_in = c
    if net.xavier:
        for module in nn.ModuleList(weighted).modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
    tails = [[nn.ReLU() if s.power is None else Triangle(s.power), _POOLS[s.pool]()] for s in net.stages]
    config = {"name": name, "width": width, "in_channels": in_channels}
    return Options(**options).assemble(weighted, tails, config, [s.kernel // 2 for s in net.stages])


_POOLS: dict[str, Callable[[], nn.Module]] = {
    "max4": partial(nn.MaxPool2d, 4, 2, 1),
    "avg4": partial(nn.AvgPool2d, 4, 2, 1),
    "max2": partial(nn.MaxPool2d, 2),
    "avg2": partial(nn.AvgPool2d, 2),
}


def _stage(stage: Stage, c_in: int, c: int, bias: bool) -> nn.Module:
    if not stage.separable:
        return nn.Conv2d(c_in, c, stage.kernel, bias=bias)
    depthwise = nn.Conv2d(c_in, c_in, stage.kernel, groups=c_in, bias=bias)
    return nn.Sequential(depthwise, nn.Conv2d(c_in, c, 1, bias=bias))


_BUILDERS: dict[str, Callable[..., Encoder]] = {
    "vgg6": vgg6,
    "vgg5": vgg5,
    "mlp": mlp,
    "cnn1d": cnn1d,
    **{name: partial(published, name) for name in NETS},
}


def other_peoples(
    name: str,
    blocks: int | Sequence[str] = 4,
    in_channels: int = 3,
    inner_norm: str = "batch",
    norm: str | None = None,
) -> Encoder:
    """A network of torchvision or timm in blocks.

    Args:
        name: "torchvision:resnet18", "timm:resnet18".
        blocks, in_channels, inner_norm: see ``networks.blocks_of``.
        norm: "length" or "standardise", in front of every block; None: nothing.

    Raises:
        UsageError: see ``networks.blocks_of``.
    """
    if norm is not None and norm not in NORMS:
        raise unknown("norm", str(norm), NORMS)
    if isinstance(blocks, bool) or not isinstance(blocks, int | list | tuple):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise UsageError(f"blocks is {blocks!r}; give their number, or a list of the modules that they end with")
    source, _, own_name = name.partition(":")
    model = networks.network(source, own_name)
    parts = networks.blocks_of(model, blocks, in_channels, inner_norm, own_name)
    given = {"blocks": blocks if isinstance(blocks, int) else list(blocks), "in_channels": in_channels}
    options = {"inner_norm": inner_norm, "norm": norm}
    config = {"name": name, **given, **{k: v for k, v in options.items() if v not in ("batch", None)}}
    return Encoder(parts if norm is None else [nn.Sequential(NORMS[norm](), part) for part in parts], config)


def is_other_peoples(name: str) -> bool:
    """Whether a name is that of a network of torchvision or timm."""
    return name.partition(":")[0] in networks.SOURCES


def names() -> tuple[str, ...]:
    """Names that ``--encoder`` accepts, besides torchvision:NAME, timm:NAME and PATH.py:NAME."""
    return tuple(_BUILDERS)


def check_name(name: str) -> None:
    """Refuse what is no encoder's name.

    Raises:
        UsageError: the nearest names are given.
    """
    if name not in _BUILDERS and not own.is_path(name) and not is_other_peoples(name):
        raise unknown("encoder", name, (*_BUILDERS, *(f"{s}:NAME" for s in networks.SOURCES), "PATH.py:NAME"))


def of_ones_own(name: str, input_shape: Sequence[int], **options: Any) -> Encoder:
    """The encoder that a function in a user's file returns, called with the shape of one image (C, H, W) and options.

    Args:
        name: PATH.py:NAME; the function returns an ``Encoder``, or a list of blocks for ``Encoder.from_blocks``.
        input_shape: of what enters the first block.
        options: keywords of the function.

    Raises:
        UsageError: no such file or function, options that it does not take, an error in it, or no encoder from it.
    """
    make = own.load(name, "encoder", callable)
    if not callable(make):
        raise UsageError(
            f"{name} is a {type(make).__name__}; an encoder of your own is a function of the input's shape"
        )
    made = own.called(name, "encoder", make, tuple(input_shape), **options)
    if not isinstance(made, Encoder):
        if not isinstance(made, list | tuple | nn.ModuleList):
            raise UsageError(f"{name} returned a {type(made).__name__}; return an Encoder, or a list of blocks")
        made = Encoder.from_blocks(list(made))  # pyright: ignore[reportUnknownArgumentType]
    made.config = {"name": own.full_name(name), "input_shape": list(input_shape), **options}
    return made


def from_config(config: dict[str, Any]) -> Encoder:
    """Rebuild a named encoder from its ``config``.

    Raises:
        UsageError: unknown name, or options that the encoder does not have.
    """
    options = dict(config)
    name = str(options.pop("name", ""))
    check_name(name)
    if own.is_path(name):
        return of_ones_own(name, **options)
    try:
        return (partial(other_peoples, name) if is_other_peoples(name) else _BUILDERS[name])(**options)
    except TypeError as error:
        raise UsageError(f"encoder {name!r} does not take these options: {error}") from error


def build(
    name: str,
    input_shape: Sequence[int],
    width: float = 1.0,
    options: Mapping[str, Any] | None = None,
    wished: Mapping[str, Any] | None = None,
) -> Encoder:
    """A named encoder that fits images of ``input_shape`` (C, H, W), its widths scaled by ``width``.

    Args:
        name: one of ``names()``, or PATH.py:NAME.
        input_shape: of what enters the first block.
        width: an encoder of the user's own gets it as an option, where it is not 1.
        options: of the encoder.
        wished: options that the rule asks for; those that an encoder of the user's own does not take are left out.

    Raises:
        UsageError: unknown name, a width that leaves nothing, or options that the encoder does not have.
    """
    check_name(name)
    if is_other_peoples(name):
        return _scaled_other(name, input_shape, width, options or {}, wished or {})
    if own.is_path(name):
        make = own.load(name, "encoder", callable)
        taken = {k: v for k, v in (wished or {}).items() if own.takes(make, k)}
        scaled = {} if width == 1 else {"width": width}
        return of_ones_own(name, input_shape, **{**taken, **scaled, **(options or {})})
    options = {**(wished or {}), **(options or {})}
    given: dict[str, Any] = {"width": width, "in_channels": input_shape[0]}
    if name == "mlp":
        units = round(512 * width)
        if units < 1:
            raise UsageError(f"width {width:g} leaves mlp without units; use at least 0.002")
        given = {"in_features": math.prod(input_shape), "widths": (units,) * 6}
    for option in options:
        known = [] if name == "cnn1d" else [f.name for f in fields(Options)]
        if option not in known:
            raise unknown(f"option of encoder {name!r}", option, known or {"none"})
    return _BUILDERS[name](**given, **options)


def _scaled_other(
    name: str, input_shape: Sequence[int], width: float, options: Mapping[str, Any], wished: Mapping[str, Any]
) -> Encoder:
    """Somebody's network as the command line asks for it."""
    if width != 1:
        raise UsageError(f"--width {width:g}: {name} has widths of its own; leave it out, or choose a narrower network")
    if left := sorted(wished.keys() - {"norm"}):
        raise UsageError(f"the rule asks for an encoder with {', '.join(left)} of its own, {name} has others; use vgg6")
    known = ("blocks", "inner_norm", "norm")
    for option in options:
        if option not in known:
            raise unknown(f"option of encoder {name!r}", option, known)
    given: dict[str, Any] = {"in_channels": input_shape[0], **wished, **options}
    return other_peoples(name, **given)


@contextmanager
def sketched(name: str) -> Generator[None]:
    """Within, encoders of that name are made without memory, or, if not this library's, without leaving a trace."""
    if name not in _BUILDERS:  # their code may compute with the weights that it makes
        with torch.random.fork_rng():  # pyright: ignore[reportUnknownMemberType]
            yield
    else:
        with torch.device("meta"):
            yield
