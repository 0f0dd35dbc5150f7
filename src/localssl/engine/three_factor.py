"""The three-factor engine: local credit for score rules without autograd, one block's activity and update at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor
from typing_extensions import override

from localssl import readout
from localssl.blocks import black_boxes
from localssl.credit import Step
from localssl.credit.local import Local
from localssl.engine import factors
from localssl.engine.blocks import Block, plan
from localssl.engine.factors import Among
from localssl.engine.passes import Passed, learn, run
from localssl.engine.spread import Apart, Gathered, seen_by_all, sources
from localssl.rules.base import Batch, Projections, ScoreRule


class ThreeFactor(Local):
    """The update of local credit, equal to autograd's, block by block.

    Where every reference is the layer's own readout, a block runs, its gradients are yielded to be applied and freed,
    and only then does the next one run, on the activity from before. Where a reference lies above, ``lean`` runs all
    blocks once for the references and then does the same; otherwise they run once, and of each its input, output and
    route are kept. With black boxes they always run once, and before anything learns.
    """

    def __init__(self, lean: bool = False):
        self.lean = lean

    @override
    def updates(self, step: Step) -> Iterator[Tensor]:
        """As ``Credit.updates``, but yields once a block, always the same losses (L,), whole after the last one."""
        rule, blocks = step.rule, plan(step.encoder)
        assert isinstance(rule, ScoreRule)
        layers = len(step.encoder.blocks)
        if isinstance(blocks, str) or shared(rule, step.projections, layers):
            # other blocks or hooks since; or no block can be stepped alone
            yield from super().updates(step)
            return
        asked = above(rule, len(blocks))
        first = asked or black_boxes(step.encoder.blocks)  # a box that fails must fail before any change
        if first and not self.lean:
            kept = list(_in_turn(blocks, step.x))
            known = {i: read(step, passed.z, i) for i, passed in enumerate(kept) if i in asked}
            passes = _handed_over(kept)
        else:
            known = _references(step, blocks, asked)
            passes = _in_turn(blocks, step.x)
        losses: Tensor | None = None
        for layer, passed in enumerate(passes):
            loss, changes = learn_block(step, rule, blocks[layer], passed, known, layer)
            del passed  # its input makes room for a dense change of B, and for the next block
            make_changes(step, rule, changes, layer)
            losses = loss.new_zeros(len(blocks)) if losses is None else losses
            losses[layer] = loss
            yield losses


def above(rule: ScoreRule, layers: int) -> set[int]:
    """The layers whose readout is a reference of another layer."""
    return {source for layer, known in enumerate(sources(rule, layers)) for source in known if source != layer}


def shared(rule: ScoreRule, projections: Projections, layers: int) -> bool:
    """Whether layers have a projection in common."""
    owned = [{id(p) for p in factors.parameters(rule, projections, layer)} for layer in range(layers)]
    return sum(map(len, owned)) != len(set().union(*owned))


def _in_turn(blocks: Sequence[Block], x: Tensor) -> Iterator[Passed]:
    """Every block's run, keeping none but its output for the next."""
    for block in blocks:
        with torch.no_grad():
            passed = [run(block, x)]
        x = passed[0].z
        yield passed.pop()


def _handed_over(kept: list[Passed]) -> Iterator[Passed]:
    """Every run in order, held by nobody else from then on."""
    kept.reverse()
    while kept:
        yield kept.pop()


@torch.no_grad()
def _references(step: Step, blocks: Sequence[Block], asked: set[int]) -> dict[int, Tensor]:
    """The readouts of the layers asked for, from a run that keeps nothing else."""
    known: dict[int, Tensor] = {}
    x = step.x
    for layer, block in enumerate(blocks if asked else ()):
        x = run(block, x, keep=False).z
        if layer in asked:
            known[layer] = read(step, x, layer)
    return known


def read(step: Step, z: Tensor, layer: int) -> Tensor:
    """The readout of a block's output, of all samples where it goes to all processes."""
    found = readout.readout(z, step.patches[layer])
    return found if step.processes is None or layer not in gathered(step) else step.processes.gather(found)


def gathered(step: Step) -> frozenset[int]:
    """The layers whose readouts go to all processes."""
    assert isinstance(step.rule, ScoreRule)
    return seen_by_all(step.rule, len(step.patches), step.matrices)


@torch.no_grad()
def learn_block(
    step: Step, rule: ScoreRule, block: Block, passed: Passed, known: Mapping[int, Tensor], layer: int
) -> tuple[Tensor, list[factors.Change]]:
    """One block's loss and the changes of its projections; its own gradients are added to ``.grad``.

    Args:
        step: the batch; of its inputs only the number is of interest here.
        rule, block: whose loss, and whose synapses.
        passed: what is kept of the block's run.
        known: readouts of other layers by layer, of those that are references of this one.
        layer: which it is among all.
    """
    here = known[layer] if layer in known else read(step, passed.z, layer)
    readouts, processes, among = {**known, layer: here}, step.processes, Among()
    if processes is not None and layer in step.matrices:  # its own samples, also of readouts that all processes have
        seen = gathered(step)
        readouts = {i: processes.own(z) if i in seen else z for i, z in readouts.items()}
        among = Apart(processes)
    elif processes is not None:
        among = Gathered(processes)
    nothing = readouts[layer][:, :0]  # in place of readouts that no reference of this layer takes
    z = [readouts.get(i, nothing) for i in range(len(step.patches))]
    batch = Batch(z, step.negatives, drawn=step.drawn)
    loss, soma, changes = factors.learn(rule, batch, layer, step.projections, among=among)
    learn(block, passed, soma, readout.kernel(passed.z.shape[2:], step.patches[layer]))
    return loss, changes


def make_changes(step: Step, rule: ScoreRule, changes: list[factors.Change], layer: int) -> None:
    """Add the changes of a block's projections to ``.grad``, and let go of them.

    As the factors that they have where ``step`` says that the optimiser takes them; not where each process makes a
    part, as the sum over processes is one of matrices.
    """
    summed = step.processes is not None and layer in step.matrices
    for change in changes:
        change.add(step.factored and not summed)
    changes.clear()
    if step.processes is not None and summed:
        step.processes.add_up(factors.parameters(rule, step.projections, layer))
