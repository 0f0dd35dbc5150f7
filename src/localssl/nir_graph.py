"""The encoder as a graph of the Neuromorphic Intermediate Representation (NIR, Pedersen et al. 2024).

NIR has convolutions, linear layers, average and sum pools and flattening, which mean there what they mean here. It has
no ReLU and no max-pool. For a ReLU integrate-and-fire neurons can stand, whose rate approaches its activity. Among them
average pools become sum pools, their 1/k² a factor of the next weights: sums of spikes, which readers of spikes run.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from localssl.encoders import Encoder
from localssl.engine.blocks import leaves
from localssl.errors import UsageError
from localssl.grids import Grid
from localssl.system.files import write_atomic

WEIGHTED = nn.Conv1d | nn.Conv2d | nn.Linear
PLACES = (nn.Conv1d, nn.Conv2d, nn.Linear, nn.AvgPool2d, nn.LPPool2d, nn.Flatten, nn.Identity, nn.ReLU)
HEADROOM = 10.0  # threshold over the largest drive seen: a neuron spikes at most every tenth step or so
IMAGES = 64  # random ones, standard normal, on which drives are measured


@dataclass(frozen=True)
class Exported:
    """What a graph came to.

    Args:
        nodes: their number, input and output apart.
        scales: of every block with spiking neurons, what one spike a step stands for in the block's activity.
        output: what 1 a step of the graph's output stands for in the last block's activity: 1 without spiking neurons;
            with them the last scale, divided by the units of a pool (k²) if one follows the last neurons.
    """

    nodes: int
    scales: tuple[float, ...]
    output: float


def to_nir(encoder: Encoder, input_shape: tuple[int, ...], path: Path, activation: str | None = None) -> Exported:
    """Write the encoder as a NIR graph: input one normalised image, output the last block's activity, or its spikes.

    Args:
        encoder: of the run.
        input_shape: of one image, (C, H, W).
        path: file to write, HDF5 as ``nir.read`` takes it.
        activation: None refuses ReLU; "if": integrate-and-fire neurons in its place, threshold 1, reset to 0. Weights
            and biases are then scaled so that a block's rate (spikes a step) times its scale stands for its activity,
            and average pools are sum pools.

    Raises:
        UsageError: nir is not installed, or layers that NIR cannot express: every one is named.
    """
    encoder = encoder.eval().float()
    check(encoder, activation)
    if importlib.util.find_spec("nir") is None:
        raise UsageError("--nir needs nir: pip install 'localssl[nir]', in a clone '.[nir]'")
    spiking = any(isinstance(module, nn.ReLU) for module in encoder.blocks.modules())
    import nir

    nodes: dict[str, Any] = {"input": nir.Input({"input": np.array(input_shape)})}
    scales: list[float] = []
    with torch.no_grad():
        x = torch.randn(IMAGES, *input_shape, generator=torch.Generator().manual_seed(0))
        scale = 1.0  # what 1 of what arrives stands for
        for name, module, drive in _layers(encoder):
            after = module(x)
            if isinstance(module, nn.ReLU):
                units = np.ones(tuple(after.shape[1:]), dtype=np.float32)
                meaning = {"activity of one spike a step": scale}
                nodes[name] = nir.IF(units, units.copy(), np.zeros_like(units), metadata=meaning)
                scales.append(scale)
            elif isinstance(module, WEIGHTED):
                new = scale if drive is None else _stands_for(drive, after)
                nodes[name] = _weighted(module, tuple(x.shape[2:]), scale / new, 1 / new)
                scale = new
            elif isinstance(module, nn.AvgPool2d) and spiking:
                nodes[name] = _pool(module, nir.SumPool2d)
                scale /= _units(module)
            elif not isinstance(module, nn.Identity):
                nodes[name] = _plain(module, tuple(x.shape[1:]))
            x = after
        nodes["output"] = nir.Output({"output": np.array(x.shape[1:])}, metadata={"activity of 1 a step": scale})
    names = list(nodes)
    graph = nir.NIRGraph(nodes, list(pairwise(names)))
    write_atomic(path, lambda temporary: nir.write(str(temporary), graph))
    return Exported(len(nodes) - 2, tuple(scales), scale)


def check(encoder: Encoder, activation: str | None) -> None:
    """Refuse layers that NIR cannot express.

    Raises:
        UsageError: names every one of them, with its block, in one line.
    """
    if any(isinstance(module, Grid) for module in encoder.modules()):  # one a block, beside which nothing else matters
        raise UsageError(
            "NIR has no node that rounds, as every block of --bits does; a run without --bits rounds nothing"
        )
    entry = type(encoder.entry)
    found = [] if entry is nn.Identity else [f"before block 1: {entry.__name__}"]
    for number, block in enumerate(encoder.blocks, start=1):
        for module in leaves(block):
            why = _refused(module, activation)
            if why:
                found.append(f"block {number}: {why}")
    if found:
        advice = {"ReLU": "--nir-activation if puts spiking neurons in place of ReLU"}
        advice |= {"MaxPool2d": "--encoder-options pool=avg trains vgg6 and vgg5 without max-pools"}
        fitting = [text for kind, text in advice.items() if any(f.endswith(f": {kind}") for f in found)]
        raise UsageError("; ".join([f"NIR has no node for {', '.join(found)}", *fitting]))


def _refused(module: nn.Module, activation: str | None) -> str:
    """What of a layer NIR has no node for; "" where it has one."""
    kind = type(module).__name__
    if type(module) not in PLACES or (isinstance(module, nn.ReLU) and activation is None):
        return kind
    if isinstance(module, nn.Conv1d | nn.Conv2d) and (
        module.padding_mode != "zeros" or isinstance(module.padding, str)
    ):
        return f"{kind} padded by other than a number of zeros"
    if isinstance(module, nn.AvgPool2d):
        pads = np.any(np.array(module.padding)) and not module.count_include_pad
        return f"{kind} with options of its own" if module.ceil_mode or module.divisor_override or pads else ""
    if isinstance(module, nn.LPPool2d):
        return "" if module.norm_type == 1 and not module.ceil_mode else f"{kind} that is no sum"
    return f"{kind} of some axes" if isinstance(module, nn.Flatten) and module.start_dim != 1 else ""


def _layers(encoder: Encoder) -> Iterator[tuple[str, nn.Module, list[nn.Module] | None]]:
    """Every layer with its node's name, and what stands between it and the ReLU that follows; None where none does."""
    found = [
        (f"block_{number}_{place}_{type(module).__name__.lower()}", module)
        for number, block in enumerate(encoder.blocks, start=1)
        for place, module in enumerate(leaves(block), start=1)
    ]
    for i, (name, module) in enumerate(found):
        stops = (j for j in range(i + 1, len(found)) if isinstance(found[j][1], nn.ReLU | WEIGHTED))
        stop = next(stops, None)
        neurons = stop is not None and isinstance(found[stop][1], nn.ReLU)
        between = [behind for _, behind in found[i + 1 : stop]] if neurons else None
        yield name, module, between


def _stands_for(between: list[nn.Module], x: torch.Tensor) -> float:
    """What 1 of a layer's output x stands for, with a tenth of the threshold for the neurons behind these pools."""
    units = 1
    for module in between:
        x = module(x)
        units *= _units(module) if isinstance(module, nn.AvgPool2d) else 1  # a sum pool in the graph
    return HEADROOM * max(float(x.max()), 1e-12) * units


def _units(pool: nn.AvgPool2d) -> int:
    """k² of a pool."""
    k = pool.kernel_size
    return k[0] * k[1] if isinstance(k, tuple) else k * k


def _weighted(module: nn.Conv1d | nn.Conv2d | nn.Linear, positions: tuple[int, ...], w: float, b: float) -> Any:
    import nir

    weight = _ungrouped(module) * np.float32(w)
    zeros = torch.zeros(len(weight))
    bias = (zeros if module.bias is None else module.bias).numpy() * np.float32(b)  # pyright: ignore[reportUnnecessaryComparison]
    if isinstance(module, nn.Linear):
        return nir.Affine(weight, bias)
    geometry = {key: getattr(module, key) for key in ("stride", "padding", "dilation")}
    if isinstance(module, nn.Conv1d):
        single = {key: value[0] for key, value in geometry.items()}
        return nir.Conv1d(positions[0], weight, groups=1, bias=bias, **single)
    return nir.Conv2d((positions[0], positions[1]), weight, groups=1, bias=bias, **geometry)


def _ungrouped(module: nn.Conv1d | nn.Conv2d | nn.Linear) -> np.ndarray:
    """Weights of which every output sees all inputs: nir's type check does not know groups."""
    weight = module.weight.numpy()
    if isinstance(module, nn.Linear) or module.groups == 1:
        return weight
    whole = np.zeros((len(weight), module.in_channels, *weight.shape[2:]), dtype=weight.dtype)
    outputs, inputs = len(weight) // module.groups, weight.shape[1]
    for g in range(module.groups):
        rows = slice(g * outputs, (g + 1) * outputs)
        whole[rows, g * inputs : (g + 1) * inputs] = weight[rows]
    return whole


def _plain(module: nn.Module, shape: tuple[int, ...]) -> Any:
    import nir

    if isinstance(module, nn.Flatten):
        return nir.Flatten({"input": np.array(shape)}, start_dim=0)
    assert isinstance(module, nn.AvgPool2d | nn.LPPool2d)
    return _pool(module, nir.AvgPool2d if isinstance(module, nn.AvgPool2d) else nir.SumPool2d)


def _pool(module: nn.AvgPool2d | nn.LPPool2d, kind: type[Any]) -> Any:
    """A pool of the layer's geometry."""
    padding = module.padding if isinstance(module, nn.AvgPool2d) else 0
    stride = module.kernel_size if module.stride is None else module.stride  # pyright: ignore[reportUnnecessaryComparison]
    sides = (module.kernel_size, stride, padding)
    return kind(*(np.array(n if isinstance(n, tuple) else (n, n)) for n in sides))
