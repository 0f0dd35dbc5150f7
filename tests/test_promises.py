"""Names and flags that other people's programs rely on. A line that has to change here breaks them."""

from __future__ import annotations

import dataclasses
import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import localssl
from localssl import api, cli, errors, nir_graph, rulefile
from localssl.cli import usage
from localssl.encoders import Encoder
from localssl.rules import Batch, Rule, ScoreRule
from localssl.runs.config import TrainConfig

ROOT = Path(__file__).resolve().parents[1]
CALLS: list[tuple[Any, str]] = [
    (localssl.encoders.vgg6, "width in_channels"),
    (localssl.encoders.mlp, "in_features widths bias"),
    (localssl.encoders.Encoder.from_blocks, "blocks"),
    (localssl.encoders.Encoder.from_torchvision, "name blocks"),
    (localssl.encoders.Encoder.from_timm, "name blocks"),
    (localssl.encoders.networks.blocks_of, "model blocks in_channels inner_norm name"),
    (localssl.blocks.BlackBox, "function out_shape timeout name"),
    (localssl.rules.names, ""),
    (localssl.rules.get, "name options"),
    (localssl.rules.register, "name rule"),
    (localssl.Learner, "encoder rule input_shape patches engine device"),
    (localssl.Learner.losses, "self view_a view_b negatives labels"),
    (localssl.Learner.accumulate_grads, "self view_a view_b negatives labels"),
    (localssl.load, "path encoder"),
    (localssl.train, "report rule data out"),
    (localssl.open_run, "path"),
    (localssl.trust, "files"),
    (localssl.testing.check_rule, "rule"),
    (localssl.certificate.certify, "subject seed"),
    (localssl.system.allocator.keep_freed, ""),
    (localssl.report.arithmetic.layers, "encoder shape patches"),
    (localssl.represent.activities, "encoder images patches whole"),
    (localssl.represent.similarity, "x y measure permutations seed"),
    (localssl.represent.layers, "one other measure permutations seed"),
    (localssl.represent.spatial, "weight to_map from_map"),
    (rulefile.write, "run path"),
    (nir_graph.to_nir, "encoder input_shape path activation"),
    (localssl.alignment.measure, "encoder rules data reference patches fit"),
    (localssl.callbacks.Align, "learner batches reference"),
    (localssl.callbacks.Observe, "learner view_a view_b images labels"),
    (localssl.callbacks.Curves, "out measurements every trackers"),
    (localssl.callbacks.Curves.__call__, "self step losses"),
    (localssl.callbacks.Curves.close, "self"),
    (Rule.build, "self dims"),
    (Rule.layer_loss, "self batch layer projections"),
    (Rule.losses, "self batch projections"),
    (Rule.inputs, "self"),
    (Rule.patches, "self patches"),
    (Rule.constants, "self part samples"),
    (Batch.positives, "self layer"),
    (localssl.theory.optimal_projection, "z_pos z_neg c f loss_type weight_decay c_neg"),
]

DECLARED: dict[str, Any] = {  # by a rule of one's own, and what holds where it says nothing
    "credit": "local",
    "uses_negatives": False,
    "uses_labels": False,
    "encoder_options": {},
    "optimizer": None,
    "lr": None,
    "weight_decay": None,
    "no_draws": {},
    "exceptions": {},
}

SCORE = {"f": "hinge", "loss_type": 2, "margin": 1.0, "projection": "dense", "rank": 64}
LPL = {"pull": 1.0, "push": 1.0, "decorrelation": 10.0, "eps": 1e-4}
CODING = {"eta_h": 0.1, "momentum": 0.5, "learnt_feedback": False, "classes": 10}
RULES: dict[str, dict[str, Any]] = {  # name: its options and their defaults
    "clapp": SCORE,
    "clapp++": SCORE,
    "clapp++dfb": SCORE,
    "clapp++both": SCORE,
    "bp-clapp++": {**SCORE, "spatial": False},
    "bp-infonce": {"projection_dim": 1024, "temperature": 0.1},
    "optimum": SCORE,
    "ff": {"threshold": 1.0, "peer": 0.0, "views": 2, "blurs": 8},
    "ff-supervised": {"threshold": 1.0, "peer": 0.0, "views": 2, "classes": 10},
    "phyll": {"theta": 4.0, "views": 2, "blurs": 8, "labelled": False, "classes": 10},
    "scff": {
        "theta1": (0, 5, 6),
        "theta2": (1, 9, 10),
        "penalty": (0.0012, 0.0007, 0.0005),
        "halves": "same",
        "pad": 0,
    },
    "stochastic-ff": {"copies": 4, "dropout": 0.2, "channels": (30, 20, 10)},
    "softhebb": {"t": (1, 0.65, 0.25), "rates": (8, 0.5, 1)},
    "clapp-illing": {"variant": "clapp", "coin": True, "patch": None, "stride": None},
    "lpl": LPL,
    "bp-lpl": LPL,
    "dfa": {**SCORE, "spatial": False, "per_position": False},
    "fa": {**SCORE, "spatial": False},
    "sign-symmetric": {**SCORE, "spatial": False, "magnitudes": "fixed"},
    "pc": {"objective": "clapp", "steps": 8, **CODING},
    "ipc": {"objective": "clapp", "steps": 9, **CODING},
    "bp": {"classes": 10},
    "bp-simclr": {"hidden": None, "projection_dim": 128, "temperature": 0.5},
}

PROJECTIONS = {
    "clapp": {"lateral": 3},
    "clapp++": {"lateral": 3},
    "clapp++dfb": {"feedback": 3},
    "clapp++both": {"lateral": 3, "feedback": 3},
    "bp-clapp++": {"lateral": 1},
    "bp-infonce": {"head": 1},
    "optimum": {"feedback": 3},
    "ff": {},
    "ff-supervised": {},
    "phyll": {"direction": 3},
    "scff": {},
    "stochastic-ff": {"channels": 3},
    "softhebb": {},
    "clapp-illing": {"predict_1": 3, "retrodict_1": 3},
    "lpl": {},
    "bp-lpl": {},
    "dfa": {"lateral": 1, "direct": 2},
    "fa": {"lateral": 1, "backward": 3},
    "sign-symmetric": {"lateral": 1, "backward": 3},
    "pc": {"lateral": 1},
    "ipc": {"lateral": 1},
    "bp": {"head": 1},
    "bp-simclr": {"hidden": 1, "head": 1},
}

COMMANDS = {  # all ten, each with all that it takes; in capitals what has its place on the line
    "train": "rule rule-options data data-root download config views view-strength image-size epochs width seed out "
    "encoder encoder-options patches engine lr batch-size weight-decay optimizer schedule device precision threads "
    "devices nodes across exchange shard-b patience pipeline split staleness probe-every align-every checkpoint-every "
    "limit-images trackers on-nan expect report no-report own resume skip-bad memory dry-run bits weight-noise dead "
    "mismatch",
    "probe": "RUN protocol labels draws epochs data data-root limit-images device threads skip-bad own",
    "align": "RUN data data-root batches batch-size fit-batches reference threads skip-bad own",
    "compare": "rules data data-root epochs seeds out config jobs threads encoder encoder-options own width patches "
    "precision batch-size limit-images search-lr search-epochs labels probe-images align-batches report bits "
    "weight-noise dead mismatch skip-bad image-size views",
    "theory": "full cases",
    "certify": "rule rule-options encoder width image-size out",
    "reproduce": "NAMES out data-root seeds jobs threads scale",
    "doctor": "data-root quick",
    "report": "RUNS images units data data-root threads skip-bad own",
    "export": "RUN onnx nir nir-activation rule embeddings split data data-root skip-bad own out",
}
BESIDE = "--help --version --citation --completion"  # what the command line takes before a command
NAMES = (
    "Learner __version__ align alignment blocks callbacks certificate certify compare doctor dry_run encoders load "
    "open_run represent reproduce rules testing theory train trust"
)
FUNCTIONS = (
    "train dry_run open_run probe align compare certify theory reproduce report export doctor"  # of localssl.api
)
ERRORS = "UsageError RunError"  # exit status 2 and 1


@pytest.mark.parametrize(("function", "names"), CALLS, ids=lambda value: getattr(value, "__qualname__", ""))
def test_signatures(function: Any, names: str) -> None:
    assert list(inspect.signature(function).parameters)[: len(names.split())] == names.split()


@pytest.mark.parametrize("name", RULES)
def test_rules(name: str) -> None:
    assert name in localssl.rules.names()
    rule = localssl.rules.get(name)
    assert {key: getattr(rule, key) for key in RULES[name]} == RULES[name]
    blocks = [
        nn.Sequential(nn.Conv2d(c_in, c_out, 3, padding=1), nn.ReLU()) for c_in, c_out in ((3, 4), (4, 5), (5, 6))
    ]
    learner = localssl.Learner(Encoder.from_blocks(blocks), rule, input_shape=(3, 8, 8), patches=(4, 4, 2))
    assert {key: len(modules) for key, modules in learner.projections.items()} == PROJECTIONS[name]
    a, b = torch.randn(2, 5, 3, 8, 8)
    negatives = torch.randperm(10)
    labels = torch.arange(5) if rule.uses_labels else None
    torch.manual_seed(1)
    losses = learner.losses(a, b, negatives=negatives, labels=labels)
    assert losses.shape == ((3,) if rule.per_layer else (1,))
    torch.manual_seed(1)  # rules that draw
    updated = learner.accumulate_grads(a, b, negatives=negatives, labels=labels)
    torch.testing.assert_close(updated, losses, rtol=1e-6, atol=0)  # the engine's last digit may differ
    for key, modules in learner.projections.items():
        for layer, module in enumerate(modules):
            trained = isinstance(module.weight, nn.Parameter) and module.weight.requires_grad
            assert (module.weight.grad is not None) == trained
            if key == "lateral" and len(modules) == 3 and name != "clapp":
                d = (16, 20, 96)[layer]
                assert module.weight.shape == (d, d)
            if key == "feedback":
                assert module.weight.shape == ((16, 20, 96)[layer], 96)


def test_every_built_in_rule_is_promised() -> None:
    built_in = {
        n for n in localssl.rules.names() if type(localssl.rules.get(n)).__module__.startswith("localssl.rules.")
    }
    assert built_in == set(RULES) == set(PROJECTIONS)


def test_encoders() -> None:
    encoder = localssl.encoders.vgg6(width=0.125, in_channels=3)
    assert isinstance(encoder.blocks, nn.ModuleList)
    outputs = encoder(torch.zeros(2, 3, 32, 32))
    assert [z.shape[2] for z in outputs] == [32, 16, 16, 8, 4, 2]
    assert inspect.signature(localssl.encoders.vgg6).parameters["width"].default == 1.0


def test_alignment_quantities() -> None:
    assert localssl.alignment.QUANTITIES[:4] == ("cosine", "relative_error", "norm_ratio", "sign_agreement")


def test_certificates() -> None:
    fields = [field.name for field in dataclasses.fields(localssl.certificate.Certificate)]
    assert fields[:5] == ["rule", "reads", "layers", "samples", "cost"]
    assert {"verdict", "reasons", "distance"} <= set(dir(localssl.certificate.Certificate))
    assert localssl.certificate.REASONS[:6] == (
        "weight transport",
        "gradient through a layer above",
        "error of a layer above",
        "labels",
        "batch statistics",
        "another synapse's weight",
    )


def test_rule_files() -> None:
    assert (rulefile.FORMAT, rulefile.VERSION, rulefile.WRITING) == ("localssl rule", 1, 2)
    assert {"conv", "conv-weight-gradient", "matmul", "maxpool", "unpool", "take", "scatter-add"} <= set(rulefile.OPS)
    assert {"minimum", "shift", "round", "outside", "sumpool", "sumpool-spread", "root"} <= set(rulefile.OPS)


def test_what_a_rule_of_ones_own_builds_on() -> None:
    assert localssl.rules.Rule is Rule
    assert {name: getattr(Rule, name) for name in DECLARED} == DECLARED
    assert issubclass(ScoreRule, Rule)
    assert hasattr(ScoreRule, "references")
    fields = [field.name for field in dataclasses.fields(Batch)]
    assert fields[:4] == ["z", "negatives", "labels", "maps"]
    assert Batch(torch.zeros(1, 6, 2)).n == 3


def test_a_rule_of_ones_own_is_known_everywhere() -> None:
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Mine(Rule):
        strength: float = 2.0

    localssl.rules.register("mine-promised", Mine)
    assert localssl.rules.get("mine-promised", strength=3.0) == Mine(strength=3.0)


@pytest.mark.parametrize("command", COMMANDS)
def test_flags(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([command, "--help-all"]) == 0
    shown = re.findall(r"^  (?:--([a-z-]+)|([A-Z]+)  )", capsys.readouterr().out, re.MULTILINE)
    assert sorted(flag or place for flag, place in shown) == sorted(COMMANDS[command].split())


@pytest.mark.parametrize("command", ["probe", "align", "report", "export"])
def test_an_opened_run_goes_on_with_flags_for_keywords(command: str) -> None:
    taken = inspect.signature(getattr(api.TrainedRun, command)).parameters
    flags = [word.replace("-", "_") for word in COMMANDS[command].split() if word.islower()]
    assert sorted(taken) == sorted(["self", *flags])


def test_measurements_of_callbacks_are_functions_without_arguments() -> None:
    for measurement in (localssl.callbacks.Align, localssl.callbacks.Observe):
        assert list(inspect.signature(measurement.__call__).parameters) == ["self"]
    given = inspect.signature(localssl.callbacks.Curves).parameters
    assert given["measurements"].kind is inspect.Parameter.VAR_POSITIONAL
    assert (given["every"].default, given["trackers"].default) == (100, ("tensorboard",))


def test_commands_and_what_stands_beside_them() -> None:
    assert sorted(usage.commands()) == sorted(COMMANDS)
    assert [flag for flag in BESIDE.split() if flag not in usage.overview()] == []


def test_names() -> None:
    assert localssl.__all__ == sorted(NAMES.split())
    for name in [name for name in NAMES.split() if name != "__version__"]:
        assert inspect.getdoc(getattr(localssl, name)), name
    for name in FUNCTIONS.split():
        assert inspect.getdoc(getattr(api, name)), name
    assert issubclass(errors.UsageError, Exception)
    assert [name for name in ERRORS.split() if not inspect.getdoc(getattr(errors, name))] == []


def test_what_is_promised_is_documented() -> None:
    """A docstring of its own, and a place on the site's page about the API."""
    pages = re.findall(r'"(localssl[\w.]*)"', (ROOT / "website" / "hook.py").read_text(encoding="utf-8"))
    for function, _ in CALLS:
        assert inspect.getdoc(function), function
        module, name = function.__module__, function.__qualname__.partition(".")[0]
        shown = {page for page in pages if module == page or module.startswith(f"{page}.")}
        assert shown or f"{module}.{name}" in pages, f"{module}.{name}"


def test_train_needs_three_flags_only() -> None:
    assert all(field.default is not dataclasses.MISSING for field in dataclasses.fields(TrainConfig))
    assert (TrainConfig().width, TrainConfig().seed, TrainConfig().schedule) == (1.0, 0, "constant")
