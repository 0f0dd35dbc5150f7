"""resnet18 against vgg6: the table of both at a tiny size, and what the full size is."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from localssl import encoders, experiments
from localssl.data.specs import default_patches
from localssl.experiments import resnet18
from localssl.experiments.cells import Settings
from localssl.experiments.rows import Study
from localssl.readout import dim

from .compare_util import in_this_process

TINY = Study("digits", epochs=1, batch_size=16, limit_images=32, probe_images=100, align_batches=2)


def test_both_in_one_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = in_this_process(monkeypatch)
    studies = {
        "resnet18": replace(TINY, encoder="torchvision:mobilenet_v3_small", patches=(1, 1, 1, 1)),
        "vgg6": replace(TINY, encoder="vgg5", width=0.25),
    }
    monkeypatch.setattr(resnet18, "STUDIES", studies)
    monkeypatch.setattr(resnet18, "RULES", ("clapp++dfb", "bp-clapp++"))
    settings = Settings(tmp_path, threads=1, seeds=1)
    experiments.EXPERIMENTS["resnet18"](settings)
    assert len(asked) == 2 * (1 + 2)  # encoders; rules and the untrained encoder

    comment, *lines = (tmp_path / "resnet18.csv").read_text(encoding="utf-8").splitlines()
    assert "torchvision:mobilenet_v3_small" in comment
    table = list(csv.DictReader(lines))
    found = {(r["encoder"], r["rule"], r["quantity"], r["block"]): float(r["mean"]) for r in table}
    for net, blocks in (("resnet18", 4), ("vgg6", 5)):
        assert {b for n, _, q, b in found if (n, q) == (net, "accuracy")} == {"all", *map(str, range(1, blocks + 1))}
        accuracy = {rule: found[net, rule, "accuracy", "all"] for rule in ("untrained", "clapp++dfb", "bp-clapp++")}
        assert found[net, "clapp++dfb", "above untrained", "all"] == pytest.approx(
            accuracy["clapp++dfb"] - accuracy["untrained"], abs=1e-3
        )
        assert found[net, "clapp++dfb", "beside bp-clapp++", "all"] == pytest.approx(
            accuracy["clapp++dfb"] - accuracy["bp-clapp++"], abs=1e-3
        )
        assert found[net, "bp-clapp++", "cosine", "1"] == pytest.approx(1, abs=1e-4)
    assert {r["seeds"] for r in table} == {"1"}
    assert (tmp_path / "resnet18.md").read_text(encoding="utf-8").count("\n| ") == 1 + 2 * 3  # below the header

    experiments.EXPERIMENTS["resnet18"](settings)
    assert len(asked) == 2 * (1 + 2)  # finished cells are not run again


def macs(encoder: encoders.Encoder) -> int:
    """Multiply-adds of the convolutions of one image of 32 × 32, by hand."""
    total = 0

    def count(module: nn.Module, inputs: object, out: torch.Tensor) -> None:
        nonlocal total
        assert isinstance(module, nn.Conv2d)
        total += out.numel() * module.weight[0].numel()

    for module in encoder.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(count)
    with torch.no_grad():
        encoder.eval()(torch.zeros(1, 3, 32, 32))
    return total


def test_the_two_cost_the_same_and_are_read_out_alike() -> None:
    resnet, vgg = resnet18.STUDIES.values()
    assert resnet.encoder is not None
    one = encoders.build(resnet.encoder, (3, 32, 32), options={"blocks": 4})
    other = encoders.build("vgg6", (3, 32, 32), vgg.width)
    assert macs(one) == pytest.approx(37.0e6, rel=0.01)
    assert macs(other) == pytest.approx(macs(one), rel=0.02)
    patches = default_patches("vgg6", 32)
    assert patches is not None
    by_side = {shape[-1]: patch for shape, patch in zip(other.output_shapes((3, 32, 32)), patches, strict=True)}
    shapes = one.output_shapes((3, 32, 32))
    assert resnet.patches is not None
    assert [by_side[s[-1]] for s in shapes[:3]] == list(resnet.patches[:3])  # vgg6 has no maps of one pixel
    assert [dim(s, p) for s, p in zip(shapes, resnet.patches, strict=True)] == [1024, 512, 1024, 512]
