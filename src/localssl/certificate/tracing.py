"""The trace of one real update: whose update differs in which world, and whether samples interact in it."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from localssl.certificate.cuts import Cuts, World, entered
from localssl.certificate.worlds import Leaks, memory
from localssl.learner import Learner

FEW = 4  # samples that are tried in a large batch
ROUNDING = 1e-12  # of the largest entry: what a mixed difference of an update must exceed, in float64


@dataclass(frozen=True)
class Trace:
    """What one update read.

    Args:
        changed: by name of a parameter with an update, the worlds in which its update differs, and there: whether it
            does in rows where the world's own parameter does not differ (meaningful for parameters of equal length).
        order: by world of a part or gate, names of the parameters that its value came together with on the way up.
        used: by parameter, operations that read it outside of its own layer's forward pass, and whether backward.
        crossing: kinds of modules that mix samples in the forward pass, with their block.
        interacting: by parameter, share of the other samples with which the first one interacts in its update.
        far: the same for samples far from the first in a larger batch; empty where nobody looked.
        labels_enter: whether the encoder's input depends on the labels.
        escaped: operations whose results left torch as Python numbers and differed.
        zero: names of trainable parameters with no update, or one of zeros.
        samples: number of samples that entered.
    """

    changed: dict[str, dict[World, bool]]
    order: dict[World, set[str]]
    used: dict[str, set[tuple[str, bool]]]
    crossing: list[tuple[str, int]]
    interacting: dict[str, float]
    labels_enter: bool
    escaped: dict[World, str]
    zero: list[str]
    samples: int
    far: dict[str, float] = field(default_factory=dict)


def trace(learner: Learner, a: Tensor, b: Tensor, labels: Tensor, seed: int = 0) -> Trace:
    """One update of a learner (its gradients are overwritten), with a seed of torch's random numbers.

    Args:
        learner: on the CPU.
        a, b: views (n, C, H, W).
        labels: (n,), given to every rule, whether it asks for them or not.
    """
    worlds = Cuts(learner, labels)
    worlds.start()
    with worlds.hooked():
        _update(worlds, a, b, seed)
    named = {memory(p): name for name, p in worlds.parameters.items()}
    updates = {name: p.grad for name, p in learner.named_parameters() if p.requires_grad and p.grad is not None}
    moved = {name: g for name, g in updates.items() if bool(g.any())}
    changed = {name: _changed(worlds, name, g) for name, g in moved.items()}
    return Trace(
        changed=changed,
        order={w: {named[k] for k in met if k in named} for w, met in worlds.met.items() if isinstance(w, World)},
        used={named[key]: ops for key, ops in worlds.used.items()},
        crossing=list(dict.fromkeys(worlds.crossing)),
        interacting={name: _interacting(worlds, g) for name, g in moved.items()},
        labels_enter=worlds.labels_enter,
        escaped={w: op for w, op in worlds.escaped.items() if isinstance(w, World)},
        zero=[name for name, p in learner.named_parameters() if p.requires_grad and name not in moved],
        samples=worlds.samples,
    )


def interactions(learner: Learner, a: Tensor, b: Tensor, labels: Tensor, seed: int = 0) -> dict[str, float]:
    """``Trace.interacting`` alone, for large batches: an update for each of a few samples far from the first.

    At most that share: it stops once every parameter's is half. Arguments of ``trace``.
    """
    hits: dict[str, float] = {}
    samples = len(learner.inputs(a, b, None, labels))
    for i in range(FEW):
        other = round((i + 0.5) / FEW * samples)
        worlds = Cuts(learner, labels, pairs=[(0,), (other,), (0, other)])
        handle = learner.encoder.blocks[0].register_forward_pre_hook(partial(entered, worlds))
        try:
            _update(worlds, a, b, seed)
        finally:
            handle.remove()
        for name, p in learner.named_parameters():
            if p.grad is not None:
                hits[name] = hits.get(name, 0) + _interacting(worlds, p.grad)
        if min(hits.values()) >= FEW / 2:
            break
    return {name: count / FEW for name, count in hits.items()}


def _update(worlds: Cuts, a: Tensor, b: Tensor, seed: int) -> None:
    torch.manual_seed(seed)
    worlds.learner.zero_grad(set_to_none=True)
    with worlds, Leaks(worlds):
        worlds.learner.accumulate_grads(a, b, None, worlds.labels)


def _changed(worlds: Cuts, name: str, update: Tensor) -> dict[World, bool]:
    """The worlds, but those of samples, in which an update differs, and whether in rows that are not the world's."""
    found: dict[World, bool] = {}
    for world in [*worlds.told(), *worlds.activities, worlds.modulator, World("labels")]:
        value = worlds.see(world, update)
        if value is None and world not in worlds.escaped:
            continue
        elsewhere = True
        if value is not None and world.rows is not None and len(update) == len(worlds.parameters[world.name]):
            elsewhere = not torch.equal(value[1 - world.rows :: 2], update.detach()[1 - world.rows :: 2])
        found[world] = elsewhere
    return found


def _interacting(worlds: Cuts, update: Tensor) -> float:
    """The share of samples k for which the update is no sum of what samples 0 and k do alone."""

    def there(*samples: int) -> Tensor:
        value = worlds.see(World("sample", samples=samples), update)
        return update.detach() if value is None else value

    others = [s[1] for s in worlds.pairs if len(s) == 2]
    bound = ROUNDING * float(update.detach().abs().max())
    mixed = [there(0, k) - there(0) - there(k) + update.detach() for k in others]
    left = any(w.kind == "sample" for w in worlds.escaped if isinstance(w, World))
    return 1.0 if left else sum(float(m.abs().max()) > bound for m in mixed) / len(others)
