"""Other people's networks in blocks, cut where one value alone goes on: at ends of stages, or where the user says."""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import fx, nn
from typing_extensions import override

from localssl.errors import UsageError, one_line, unknown

SOURCES = ("torchvision", "timm")
NORMS = ("batch", "group")
SIDE = 224  # of the image that shows where the stages are
_CLASSIFIERS = ("classifier", "fc", "head")


def network(source: str, name: str) -> nn.Module:
    """A network of torchvision or timm with random weights.

    Raises:
        UsageError: unknown source or name, or timm is not installed.
    """
    if source == "torchvision":
        from torchvision import models  # pyright: ignore[reportMissingTypeStubs]

        known = models.list_models(module=models)
        if name not in known:
            raise unknown("network of torchvision", name, known)
        return models.get_model(name, weights=None)
    if source != "timm":
        raise unknown("source of networks", source, SOURCES)
    if importlib.util.find_spec("timm") is None:
        raise UsageError("networks of timm need it: pip install timm")
    import timm  # pyright: ignore[reportMissingImports]

    if not timm.is_model(name):
        raise unknown("network of timm", name, timm.list_models())
    return timm.create_model(name, pretrained=False)


def blocks_of(
    model: nn.Module,
    blocks: int | Sequence[str],
    in_channels: int | None = None,
    inner_norm: str = "batch",
    name: str = "",
) -> list[nn.Module]:
    """The network without its classifier, cut into blocks; what runs within a block is the network's own.

    Args:
        model: changed in place: no operation writes to its input any more, and see ``in_channels`` and ``inner_norm``.
        blocks: their number: a stage is what has maps of one size, the first ones are joined where there are more. Or
            the names of the modules that blocks end with, the last one of all included: ("layer1", "layer2.0", …).
        in_channels: of the images; the first convolution is replaced where it takes another number. None: it stays.
        inner_norm: "group" puts a group norm of 32 channels a group, or one group, in place of every batch norm.
        name: in errors.

    Raises:
        UsageError: a cut through a skip connection or inside of something that runs twice, an unknown name, more blocks
            than stages, a network whose way cannot be followed, or one without maps.
    """
    name = name or type(model).__name__
    if inner_norm not in NORMS:
        raise unknown("inner_norm", str(inner_norm), NORMS)
    _prepare(model, in_channels, inner_norm == "group")
    ends = () if isinstance(blocks, int) else tuple(blocks)
    modules: dict[str, nn.Module] = dict(model.named_modules())  # pyright: ignore[reportUnknownArgumentType]
    for end in ends:
        if end not in modules or not end:
            raise unknown(f"module of {name}", str(end), [n for n in modules if n])
    graph = _traced(model, ends, name)
    nodes = list(graph.graph.nodes)
    cuts = _stages(graph, blocks, name) if isinstance(blocks, int) else _named(nodes, ends, name)
    return _split(graph, cuts)


def _prepare(model: nn.Module, in_channels: int | None, group: bool) -> None:
    first = True
    found: list[tuple[str, nn.Module]] = list(model.named_modules())  # pyright: ignore[reportUnknownArgumentType]
    for path, module in found:
        if getattr(module, "inplace", False):
            module.inplace = False  # pyright: ignore[reportArgumentType]
        replaced: nn.Module | None = None
        if isinstance(module, nn.Conv2d) and first:
            first = False
            if in_channels is not None and module.in_channels != in_channels:
                how = {k: getattr(module, k) for k in ("stride", "padding", "dilation", "padding_mode")}
                size = cast(tuple[int, int], module.kernel_size)
                bias = module.bias is not None  # pyright: ignore[reportUnnecessaryComparison]
                replaced = nn.Conv2d(in_channels, module.out_channels, size, bias=bias, **how)
        if isinstance(module, nn.BatchNorm2d) and group:
            channels = module.num_features
            replaced = nn.GroupNorm(channels // 32 if channels % 32 == 0 else 1, channels)
        if replaced is not None:
            parent, _, own = path.rpartition(".")
            setattr(model.get_submodule(parent), own, replaced)


class _Tracer(fx.Tracer):
    """Looks into the network itself, into sequences, and into what holds one of the named modules."""

    def __init__(self, ends: Sequence[str]) -> None:
        super().__init__()
        self.ends = ends

    @override
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if any(end.startswith(f"{module_qualified_name}.") for end in self.ends):
            return False
        return module_qualified_name in self.ends or not isinstance(m, nn.Sequential)


def _traced(model: nn.Module, ends: Sequence[str], name: str) -> fx.GraphModule:
    try:
        return fx.GraphModule(model, _Tracer(ends).trace(model))
    except Exception as error:  # whatever the network's own code does with what it is not made for
        reason = one_line(error)[:200]
        raise UsageError(f"the way through {name} cannot be followed ({type(error).__name__}: {reason})") from error


def _alone(nodes: Sequence[fx.Node], at: int) -> bool:
    """Whether behind this node nothing is used that was made before it."""
    later = set(nodes[at + 1 :])
    return not any(later & set(node.users) for node in nodes[:at])


def _named(nodes: Sequence[fx.Node], ends: Sequence[str], name: str) -> list[fx.Node]:
    found: list[fx.Node] = []
    for end in ends:
        calls = [node for node in nodes if node.op == "call_module" and node.target == end]
        if len(calls) != 1:
            raise UsageError(f"{end} of {name} runs {len(calls)} times, so that no block can end there")
        at = nodes.index(calls[0])
        if not _alone(nodes, at):
            near = _whole(nodes)
            raise UsageError(
                f"a block that ends with {end} of {name} would cut a skip connection; whole ones end with "
                f"{', '.join(near[:12])}{', …' if len(near) > 12 else ''}"
            )
        found.append(calls[0])
    if not found or [nodes.index(n) for n in found] != sorted({nodes.index(n) for n in found}):
        raise UsageError(f"blocks of {name}: name the module that each block ends with, in the order in which they run")
    return found


def _whole(nodes: Sequence[fx.Node]) -> list[str]:
    """The modules that a block can end with; for one that runs several times, the module that it is the last of."""
    calls = [(i, str(node.target)) for i, node in enumerate(nodes) if node.op == "call_module"]
    times = Counter(target for _, target in calls)
    found: list[str] = []
    for at, target in calls:
        around = target.rpartition(".")[0]
        last = bool(around) and not any(i > at and other.startswith(f"{around}.") for i, other in calls)
        if _alone(nodes, at) and (times[target] == 1 or last):
            found.append(target if times[target] == 1 else around)
    return found


def _stages(graph: fx.GraphModule, count: int, name: str) -> list[fx.Node]:
    """The last node of every stage, the first stages joined."""
    _sizes(graph, name)
    nodes = list(graph.graph.nodes)
    runs: list[tuple[int, fx.Node, bool]] = []  # size of the maps, last node, whether there are weights
    for at, node in enumerate(nodes):
        if node.op in ("placeholder", "get_attr"):
            continue
        shape = node.meta.get("shape", ())
        maps = len(shape) == 4 and shape[-1] == shape[-2] > 1
        if node.op == "output" or str(node.target).split(".")[0] in _CLASSIFIERS:
            break
        module = graph.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, nn.AdaptiveAvgPool2d):
            break  # the classifier begins
        weights = module is not None and next(module.parameters(), None) is not None
        if not maps:
            continue
        if not runs or shape[-1] != runs[-1][0]:
            if _alone(nodes, at):
                runs.append((shape[-1], node, weights))
        else:
            runs[-1] = (runs[-1][0], node if _alone(nodes, at) else runs[-1][1], runs[-1][2] or weights)
    ends: list[fx.Node] = []
    for _, node, weights in runs:
        if weights or not ends:
            ends.append(node)
        else:
            ends[-1] = node  # a pool alone belongs to what stands before it
    if not ends:
        raise UsageError(f"{name} has no maps (N, C, H, W) between its layers; convolutional networks have")
    if not 1 <= count <= len(ends):
        raise UsageError(
            f"{name} has no more stages than {len(ends)}: use blocks=1 to {len(ends)}, or name the ends of blocks"
        )
    return ends[len(ends) - count :]


class _Shapes(fx.Interpreter):
    """Notes the shape of every value."""

    @override
    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        n.meta["shape"] = tuple(value.shape) if isinstance(value, torch.Tensor) else ()
        return value


def _sizes(graph: fx.GraphModule, name: str) -> None:
    """Note the shape of every value for an image, without computing any."""
    first = next((m for m in graph.modules() if isinstance(m, nn.Conv2d)), None)
    channels = 3 if first is None else first.in_channels
    was = {m: m.training for m in graph.modules()}
    graph.eval()
    try:
        with torch.no_grad():
            device = next(graph.parameters(), torch.empty(0)).device
            _Shapes(graph).run(torch.zeros(1, channels, SIDE, SIDE, device=device))
    except Exception as error:
        reason = one_line(error)[:200]
        raise UsageError(f"{name} does not take images of {SIDE} x {SIDE} ({reason}); name the blocks' ends") from error
    finally:
        for module, mode in was.items():
            module.training = mode


def _split(graph: fx.GraphModule, ends: Sequence[fx.Node]) -> list[nn.Module]:
    """A module for what runs up to each of these nodes; what comes after the last one is left out."""
    nodes = list(graph.graph.nodes)
    found: list[nn.Module] = []
    start = next(i for i, node in enumerate(nodes) if node.op == "placeholder")
    entry = nodes[start]
    for end in ends:
        stop = nodes.index(end)
        part = fx.Graph()
        values: dict[fx.Node, fx.Node] = {entry: part.placeholder("x")}
        for node in nodes[:start]:  # constants
            if node.op == "get_attr":
                values[node] = part.node_copy(node)
        for node in nodes[start + 1 : stop + 1]:
            values[node] = part.node_copy(node, values.__getitem__)
        part.output(values[end])
        found.append(fx.GraphModule(graph, part))
        start, entry = stop, end
    return found
