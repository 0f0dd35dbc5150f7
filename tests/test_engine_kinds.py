"""The engine against autograd in what the tables of rules and pools leave out: every B, geometry, head, margin."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from localssl import rules
from localssl.encoders import Encoder
from localssl.encoders.layers import LengthNorm, Standardise
from localssl.engine import passes
from localssl.engine.blocks import plan
from localssl.engine.events import events
from localssl.projections import KINDS

from .engine_util import RULES, N, assert_engines_equal, assert_equal, batch, learner, learner_of, update

CHEAP = [kind for kind in KINDS if kind != "dense"]
Layers = Callable[[int, int], list[nn.Module]]
GEOMETRIES: dict[str, Layers] = {
    "stride": lambda i, o: [nn.Conv2d(i, o, 3, stride=2, padding=1), nn.ReLU()],
    "unequal sides": lambda i, o: [nn.Conv2d(i, o, (3, 1), stride=(1, 2), padding=(1, 0)), nn.ReLU()],
    "dilation": lambda i, o: [nn.Conv2d(i, o, 3, padding=2, dilation=2), nn.ReLU(), nn.MaxPool2d(2, 1)],
    "groups": lambda i, o: [nn.Conv2d(i, o, 3, padding=1, groups=2), nn.ReLU(), nn.AvgPool2d(2)],
    "ceil of max": lambda i, o: [nn.Conv2d(i, o, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2, ceil_mode=True)],
    "dilated max": lambda i, o: [nn.Conv2d(i, o, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2, 2, dilation=2)],
    "ceil of average": lambda i, o: [nn.Conv2d(i, o, 3, padding=1), nn.ReLU(), nn.AvgPool2d(3, 2, ceil_mode=True)],
    "divisor": lambda i, o: [nn.Conv2d(i, o, 3, padding=1), nn.ReLU(), nn.AvgPool2d(3, 2, 1, divisor_override=5)],
    "length norm": lambda i, o: [LengthNorm(), nn.Conv2d(i, o, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)],
    "standardised": lambda i, o: [Standardise(), nn.Conv2d(i, o, 3, padding=1), nn.ReLU()],
    "reflected": lambda i, o: [nn.ReflectionPad2d(1), nn.Conv2d(i, o, 3), nn.ReLU(), nn.AvgPool2d(2)],
    "identity": lambda i, o: [nn.Identity(), nn.Conv2d(i, o, 3, padding=1, bias=False), nn.ReLU()],
}
SERIES: dict[str, Layers] = {
    "stride": lambda i, o: [nn.Conv1d(i, o, 3, stride=2, padding=1), nn.ReLU()],
    "dilation": lambda i, o: [nn.Conv1d(i, o, 3, padding=2, dilation=2), nn.ReLU(), nn.MaxPool1d(2, 1)],
    "groups": lambda i, o: [nn.Conv1d(i, o, 3, padding=1, groups=2), nn.ReLU(), nn.AvgPool1d(2, ceil_mode=True)],
    "length norm": lambda i, o: [LengthNorm(), nn.Conv1d(i, o, 3, padding=1), nn.ReLU(), nn.MaxPool1d(2)],
}
SMALL = {"rank": 3, "margin": 0.3}


def two_blocks(layers: Layers) -> Encoder:
    return Encoder.from_blocks([nn.Sequential(*layers(2, 6)), nn.Sequential(*layers(6, 4))])


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("kind", ["linear", "none", "max", "average", "max of a sequence", "average of a sequence"])
def test_cheap_projections(kind: str, name: str) -> None:
    patches = None if kind == "linear" else (3, 1, 1)
    for projection in CHEAP:
        for form in ({"f": "hinge"}, {"f": "softplus", "loss_type": 1, "negatives": "random"}):
            rule = rules.get(name, projection=projection, **SMALL, **form)
            case = (projection, form)
            assert_engines_equal(lambda e, r=rule: learner(kind, r, e, torch.float64, patches), batch(kind), case=case)


@pytest.mark.parametrize("projection", CHEAP)
@pytest.mark.parametrize("kind", ["linear", "max"])
def test_events_with_cheap_projections(kind: str, projection: str) -> None:
    patches = None if kind == "linear" else (3, 1, 1)
    for name in RULES:
        rule = rules.get(name, f="softplus", projection=projection, **SMALL)
        exact = update(learner(kind, rule, "autograd", torch.float64, patches), batch(kind))[1:]
        made = learner(kind, rule, "auto", torch.float64, patches)
        assert len(list(events(made.step(*batch(kind))))) == 4 * N
        assert_equal([p.grad for p in made.parameters()], exact, name)


@pytest.mark.parametrize("samples", [None, 1, 3])
@pytest.mark.parametrize("axes", [1, 2])
def test_geometries_and_heads(axes: int, samples: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every one in chunks of the usual size, of one sample and of three."""
    if samples is not None:
        monkeypatch.setattr(passes, "_chunk", lambda block, x: samples)
    kind = "max" if axes == 2 else "sequence"
    views = batch(kind)
    for what, layers in (GEOMETRIES if axes == 2 else SERIES).items():
        for name in RULES:
            rule = rules.get(name, f="softplus", negatives="random")
            assert_engines_equal(
                lambda e, r=rule, of=layers: learner_of(lambda: two_blocks(of), r, e, torch.float64, views.shape[2:]),
                views,
                case=(what, name),
            )


ROUTES: dict[str, tuple[Callable[[], nn.Module], tuple[int, int], torch.dtype]] = {
    "small": (lambda: nn.MaxPool2d(2), (8, 8), torch.uint8),
    "the widest of a byte": (lambda: nn.MaxPool2d(2), (4, 254), torch.uint8),
    "wider": (lambda: nn.MaxPool2d(2), (4, 255), torch.int16),
    "high": (lambda: nn.MaxPool2d(2), (600, 4), torch.uint8),
    "padded": (lambda: nn.MaxPool2d(3, 2, padding=1), (8, 126), torch.uint8),
    "padded and dilated": (lambda: nn.MaxPool2d(3, 1, padding=1, dilation=2), (9, 64), torch.int16),
    "two bytes are not enough": (lambda: nn.MaxPool2d((6, 2), 2), (8, 7000), torch.int32),
}


@pytest.mark.parametrize("what", ROUTES)
def test_a_max_pools_way_back_takes_a_byte_a_unit(what: str) -> None:
    """Wherever its windows fit into one, and leads to the places that autograd finds."""
    made, sides, dtype = ROUTES[what]
    encoder = Encoder.from_blocks([nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), made())]).double()
    blocks = plan(encoder)
    assert not isinstance(blocks, str)
    x = torch.randn(2, 2, *sides, dtype=torch.float64)
    passed = passes.run(blocks[0], x)
    assert passed.route is not None
    assert passed.route.dtype == dtype
    soma = torch.randn(2, passed.z[0].numel(), dtype=torch.float64)
    with torch.no_grad():
        passes.learn(blocks[0], passed, soma, (1, 1))
    mine = [p.grad for p in encoder.parameters()]
    exact = torch.autograd.grad((encoder(x)[0].flatten(1) * soma).sum(), list(encoder.parameters()))
    assert_equal(mine, exact)


@pytest.mark.parametrize("margin", [-0.5, 0.0, 0.3, 20.0])
@pytest.mark.parametrize("f", ["hinge", "softplus"])
def test_margins(f: str, margin: float) -> None:
    for loss_type in (1, 2):
        rule = rules.get("clapp++both", f=f, loss_type=loss_type, margin=margin)
        assert_engines_equal(lambda e, r=rule: learner("max", r, e, torch.float64, (3, 1, 1)), batch("max"))


@pytest.mark.parametrize("name", RULES)
def test_negatives_given_by_hand(name: str) -> None:
    """Some of them several times, some never, one the positive itself; events take the same."""
    negatives = torch.tensor([3, 3, 3, 0, 9, 5, 1, 8, 2, 2])
    for loss_type in (1, 2):
        rule = rules.get(name, f="softplus", loss_type=loss_type)
        assert_engines_equal(lambda e, r=rule: learner("max", r, e, torch.float64, (3, 1, 1)), batch("max"), negatives)
    rule = rules.get(name, f="softplus")
    exact = update(learner("max", rule, "autograd", torch.float64, (3, 1, 1)), batch("max"), negatives)[1:]
    made = learner("max", rule, "auto", torch.float64, (3, 1, 1))
    list(events(made.step(*batch("max"), negatives)))
    assert_equal([p.grad for p in made.parameters()], exact)
