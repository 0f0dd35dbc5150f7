"""What a rule is: a declaration of choices (readout, reference, projection, loss, credit) plus what is its own."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeAlias, cast

import torch
from torch import Tensor, nn
from typing_extensions import override

from localssl import losses, projections, readout
from localssl.errors import UsageError, unknown
from localssl.inputs import Inputs
from localssl.references import Own, Reference, take

PER_LAYER = ("local", "optimum", "hebbian")  # credit assignments with one loss per layer; the others have one in all
Projections: TypeAlias = Mapping[str, Sequence[nn.Module]]  # by key, one projection per loss


def next_sample(samples: int, device: torch.device) -> Tensor:
    """The index of every sample's negative where none is drawn, (i + 1) mod ``samples``."""
    return (torch.arange(samples, device=device) + 1) % samples


@dataclass(frozen=True)
class Batch:
    """What a rule sees of one batch: the readouts of both views, stacked a then b (or as its ``inputs`` lay them out).

    Args:
        z: per block, (2n, d_l), with its block's graph.
        negatives: (2n,), indexes the positives, or None.
        labels: (n,), or None.
        maps: per block, its whole output (2n, ...), of which ``z`` is the readout.
        drawn: the choices of negatives that were drawn beforehand, each (2n,), in the order in which they are used.
    """

    z: Sequence[Tensor]
    negatives: Tensor | None = None
    labels: Tensor | None = None
    maps: Sequence[Tensor] = ()
    drawn: Iterator[Tensor] | None = None

    @classmethod
    def read(
        cls,
        outputs: Sequence[Tensor],
        patches: Sequence[int | None],
        negatives: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> Batch:
        """The batch of these block outputs, each (2n, ...), read out over patches of these sizes."""
        z = [readout.readout(h, patch) for h, patch in zip(outputs, patches, strict=True)]
        return cls(z, negatives, labels, outputs)

    @property
    def n(self) -> int:
        """Number of images, where the samples are two views of them."""
        return len(self.z[0]) // 2

    def positives(self, layer: int) -> Tensor:
        """The other view of every sample, (2n, d): concat(z[n:], z[:n])."""
        z = self.z[layer]
        return torch.cat((z[self.n :], z[: self.n]))


@dataclass(frozen=True)
class Form:
    """A rule's columns of the paper's Table 1, in words, for the documentation.

    Type 1: f((z_pos - z_neg).B c). Type 2: f(z_pos.B c_pos) + f(-z_neg.B c_neg).

    Args:
        f: the decreasing function of a score x, or what stands in its place.
        loss_type: 1 or 2; None: no contrast of two scores.
        reference: what z is compared with.
        projection: B.
        c: c_pos and c_neg in the Table's own symbols, of the rules that are rows of it.
        norm: how the loss itself normalises z; what normalises blocks' inputs stands in ``encoder_options``.
    """

    f: str
    loss_type: int | None = None
    reference: str = ""
    projection: str = ""
    c: tuple[str, str] = ("", "")
    norm: str = ""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Base of every rule. Options are the dataclass fields; what the class declares is in the class variables.

    A rule of your own: subclass, give ``layer_loss`` (local) or override ``losses``, and ``register`` it.
    """

    name: ClassVar[str] = ""
    credit: ClassVar[str] = "local"  # how losses reach weights, see localssl.credit
    uses_negatives: ClassVar[bool] = False  # the next sample, where none are given and there is no option "negatives"
    uses_labels: ClassVar[bool] = False
    encoder_options: ClassVar[Mapping[str, Any]] = {}  # of the encoder that train builds, e.g. {"norm": "length"}
    weight_decay: ClassVar[float | None] = None  # where the published rule fixes it; None: the data set's
    optimizer: ClassVar[str | None] = None  # "plain-sgd" where the update is no gradient to be rescaled; None: adam
    lr: ClassVar[float | None] = None  # where the rule needs another rate than the data set's default
    form: ClassVar[Form | None] = None  # of Table 1; score rules have theirs from their options and references
    exceptions: ClassVar[Mapping[str, str]] = {}  # checks of localssl.testing that cannot hold, each with its reason
    no_draws: ClassVar[Mapping[str, Any]] = {}  # options under which the losses of given negatives draw nothing

    @property
    def per_layer(self) -> bool:
        """Whether every layer has a loss of its own; else there is one, at the last layer."""
        return self.credit in PER_LAYER

    def for_images(self, shape: Sequence[int]) -> Rule:
        """The rule for images of ``shape`` (C, H, W), which the learner asks for; itself unless something follows.

        Raises:
            UsageError: images that the rule cannot take.
        """
        return self

    def inputs(self) -> Inputs:
        """What enters the encoder for a batch; the two views by default."""
        return Inputs()

    def patches(self, patches: list[int | None]) -> list[int | None]:
        """The patch size of every block's readout; the learner's own by default."""
        return patches

    def build(self, dims: Sequence[int]) -> dict[str, list[nn.Module]]:
        """The rule's trainable parts besides the encoder, by key; ``dims[l]`` is the length of readout l.

        A learner hands ``readout.Dims`` over, which know of how many channels each is made.
        """
        return {}

    def constants(self, part: str, samples: int) -> Sequence[int]:
        """The samples that all terms with this part take for constants: what a check holds the losses to.

        Args:
            part: a key of ``build``.
            samples: of the readouts, ``len(z)``.
        """
        return ()

    def layer_loss(self, batch: Batch, layer: int, projections: Projections) -> Tensor:
        """Loss of one layer, a scalar."""
        raise NotImplementedError(f"rule {self.name or type(self).__name__!r} defines neither layer_loss nor losses")

    def loss_layers(self, n_layers: int) -> list[int]:
        """The layers that have a loss, in order: all of them, or the last one for an end-to-end rule."""
        return list(range(n_layers)) if self.per_layer else [n_layers - 1]

    def losses(self, batch: Batch, projections: Projections) -> Tensor:
        """One loss per layer, (L,), or one for an end-to-end rule, (1,): that of its last layer.

        Raises:
            UsageError: ``layer_loss`` returned no scalar.
        """
        layers = self.loss_layers(len(batch.z))
        found = [self.layer_loss(batch, layer, projections) for layer in layers]
        for layer, loss in zip(layers, found, strict=True):
            if not isinstance(loss, Tensor) or loss.ndim:  # pyright: ignore[reportUnnecessaryIsInstance]
                tensor = isinstance(loss, Tensor)  # pyright: ignore[reportUnnecessaryIsInstance]
                what = f"a tensor of shape {tuple(loss.shape)}" if tensor else repr(loss)
                raise UsageError(
                    f"rule {self.name or type(self).__name__!r}: layer_loss returned {what} for block {layer + 1}; it "
                    f"must return a scalar tensor, for instance a mean over the samples"
                )
        return torch.stack(found)

    def with_negatives(self, batch: Batch) -> Batch:
        """The batch with the next sample, (i + 1) mod 2n, as every sample's negative, for a rule that takes negatives
        and was given none; as it is for a rule that has the option ``negatives`` and chooses itself.
        """
        if batch.negatives is not None or not self.uses_negatives or hasattr(self, "negatives"):
            return batch
        return replace(batch, negatives=next_sample(len(batch.z[0]), batch.z[0].device))


@dataclass(frozen=True, kw_only=True)
class ScoreRule(Rule):
    """Rules of the paper's common formalism: scores z.Bc, a decreasing f, type 1 or 2, a choice of references.

    Loss of layer l = Σ over the declared references of contrast(z_pos.Bc, z_neg.Bc); with several references each has
    its own B. z_neg = z_pos[negatives]: the next sample (default) or a uniform draw, anew for every layer and loss.

    Args:
        f: "hinge", "softplus" or "linear".
        loss_type: 2, f(s_pos) + f(-s_neg), or 1, f(s_pos - s_neg).
        margin: the m of hinge and softplus, under both types (PhyLL's type-1 form at θ = 1 is f="softplus", margin=0).
        negatives: "next", (arange(2n) + 1) % 2n, or "random".
        projection: "dense"; "low-rank", two trained factors; "low-rank-frozen", the inner one stays random;
            "patch-local", the B of the own layer joins each patch with itself alone, by a matrix a patch, and
            "patch-shared", by one matrix for all, other B being low-rank; "patch-local-frozen" and
            "patch-shared-frozen", other B being low-rank-frozen.
        rank: of the low-rank ones; layers whose B is no larger have a dense one.
    """

    f: str = "hinge"
    loss_type: int = 2
    margin: float = 1.0
    negatives: str = "next"
    projection: str = "dense"
    rank: int = 64

    references: ClassVar[dict[str, Reference]] = {}
    uses_negatives: ClassVar[bool] = True

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        found = cast(Any, cls.references)  # a class of the user's, unchecked
        values = list(cast("dict[str, Any]", found).values()) if isinstance(found, dict) else [None]
        if not all(isinstance(one, Reference) and not isinstance(one, type) for one in values):
            raise UsageError(
                f"{cls.__name__}: references is a dict, from a name of its B to where c comes from, for instance "
                f'{{"own": Own(), "last": Last()}} of localssl.references; found {found!r}'
            )

    def __post_init__(self) -> None:
        if self.f not in losses.FORMS:
            raise unknown("loss function f", str(self.f), losses.FORMS)
        if type(self.loss_type) is not int or self.loss_type not in (1, 2):
            raise UsageError(f"loss_type must be 1 or 2, got {self.loss_type!r}")
        if not isinstance(self.margin, int | float) or not math.isfinite(self.margin):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise UsageError(f"margin must be a finite number, got {self.margin!r}")
        if self.negatives not in ("next", "random"):
            raise unknown("choice of negatives", str(self.negatives), ("next", "random"))
        if self.projection not in projections.KINDS:
            raise unknown("projection", str(self.projection), projections.KINDS)
        if type(self.rank) is not int or self.rank < 1:
            raise UsageError(f"rank must be a positive whole number, got {self.rank!r}")

    @override
    def build(self, dims: Sequence[int]) -> dict[str, list[nn.Module]]:
        kind = projections.KINDS[self.projection]
        if not isinstance(dims, readout.Dims):
            if kind.own.startswith("patch-"):
                raise UsageError(f"projection {self.projection!r} needs the channels, too: give build readout.Dims")
            dims = readout.Dims(dims, dims)
        channels = dims.channels

        def one(reference: Reference, layer: int) -> nn.Module:
            of = kind.own if isinstance(reference, Own) else kind.other
            source = reference.source(layer, len(dims))
            return projections.make(of, dims[layer], dims[source], self.rank, channels[layer])

        layers = self.loss_layers(len(dims))
        return {key: [one(reference, layer) for layer in layers] for key, reference in self.references.items()}

    def draw(self, batch: Batch) -> Tensor:
        """Indices of the negatives among the positives, (2n,): those given with the batch, or the rule's own choice."""
        if batch.negatives is not None:
            return batch.negatives
        if batch.drawn is not None:
            return next(batch.drawn)
        samples, device = 2 * batch.n, batch.z[0].device
        if self.negatives == "random":
            return torch.randint(samples, (samples,), device=device)
        return next_sample(samples, device)

    def scores(self, batch: Batch, layer: int, key: str, projection: nn.Module) -> tuple[Tensor, Tensor]:
        """Scores (s_pos, s_neg), each (2n,), of one layer against one of its references."""
        g = projection(take(self.references[key], batch.z, layer))
        z_pos = batch.positives(layer)
        return losses.score(z_pos, g), losses.score(z_pos[self.draw(batch)], g)

    @override
    def layer_loss(self, batch: Batch, layer: int, projections: Projections) -> Tensor:
        i = self.loss_layers(len(batch.z)).index(layer)
        terms = [
            losses.contrast(*self.scores(batch, layer, key, projections[key][i]), self.f, self.loss_type, self.margin)
            for key in self.references
        ]
        return torch.stack(terms).sum()
