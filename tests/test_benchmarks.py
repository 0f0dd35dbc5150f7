"""The benchmarks run, on networks too small to say anything; the arithmetic beside them against counted operations."""

from __future__ import annotations

import importlib
import json
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from torch.utils.flop_counter import FlopCounterMode

import localssl
from localssl import encoders, projections, references, rules
from localssl.data.sources import open_images
from localssl.engine import factors, passes
from localssl.engine.blocks import plan
from localssl.optimizer import FactoredAdamW
from localssl.report import arithmetic, benchmark_tables, growth_figure, step_tables
from localssl.rules import ScoreRule

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
PATCHES = (4, 4, 4, 2, 2, 1)


def benchmark(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module(name)


@pytest.fixture
def growth(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return benchmark("growth", monkeypatch)


@pytest.mark.parametrize("name", ["bp-clapp++", "clapp", "clapp++", "clapp++dfb", "clapp++both"])
@pytest.mark.parametrize("projection", projections.KINDS)
def test_multiply_adds_and_parameters(name: str, projection: str) -> None:
    rule = rules.get(name, projection=projection, rank=3)
    patches = [None] * 6 if name == "clapp" else list(PATCHES)
    learner = localssl.Learner(encoders.vgg6(0.05), rule, (3, 32, 32), patches)
    cost = arithmetic.step(learner.encoder, rule, (3, 32, 32), patches, 4)
    optimiser = FactoredAdamW(learner.parameters())
    views = torch.rand(2, 4, 3, 32, 32)
    with FlopCounterMode(display=False) as counted:
        for _ in learner.updates(views[0], views[1], factored=True):
            optimiser.step()
            optimiser.zero_grad()
    assert counted.get_total_flops() == 2 * cost.products
    assert cost.encoder == sum(p.numel() for p in learner.encoder.parameters())
    assert cost.b == sum(p.numel() for p in learner.projections.parameters())
    assert cost.fixed == sum(b.numel() for b in learner.projections.buffers())


def test_no_arithmetic_for_others() -> None:
    with pytest.raises(ValueError, match="no arithmetic"):
        arithmetic.step(encoders.vgg6(0.05), rules.get("ff"), (3, 32, 32), PATCHES, 4)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
@pytest.mark.parametrize("rule", ["bp-clapp++", "clapp++both"])
def test_growth_of_one_point(growth: ModuleType, rule: str) -> None:
    point = {"width": 0.02, "depth": 8, "batch": 2, "size": 64, "patch": 0.5}
    found = growth.one({"rule": rule, "point": point}, 2, 0.0)
    assert found["steps"] == 2
    assert found["seconds"] > 0
    assert found["activity"] > 0


def test_exponents_and_their_figure(growth: ModuleType, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = []
    for point in growth.points("width", tiny=False):
        figures = {"seconds": 0.1 * point.width**2, "activity": 7.0, "total": 3.0 * point.width}
        rows.append(growth.row("width", "clapp++", point, figures))
    found = {e["quantity"]: e for e in growth.exponents(rows)}
    assert [found[q]["exponent"] for q in ("seconds", "activity", "total")] == [2, 0, 1]
    assert found["seconds"]["arithmetic"]["parameters"] == pytest.approx(2, abs=0.02)  # B and weights are squares
    file = growth_figure.draw("width", rows, list(found.values()), tmp_path / "x.png")
    assert file.read_bytes().startswith(b"\x89PNG")


def test_patches_are_counted_on_every_map(growth: ModuleType) -> None:
    assert [growth.place("patches", p) for p in growth.points("patches", tiny=False)] == [6, 9, 30, 120, 468]
    assert growth.place("width", growth.Point(width=0.5)) == 0.5


def test_rates_of_a_machine_that_keeps_them(growth: ModuleType) -> None:
    rows: list[dict[str, Any]] = []
    for axis in ("width", "depth", "batch", "patches"):
        for point in growth.points(axis, tiny=False):
            need = growth.arithmetic("clapp++both", point)
            seconds = 2e-11 * need.convolutions + 5e-11 * need.projections + 1e-9 * need.parameters + 0.01
            rows.append(growth.row(axis, "clapp++both", point, {"seconds": seconds, "activity": 1, "total": 1}))
            rows[-1]["seconds"] = seconds
    found = growth.rates(rows)
    assert found["seconds_a_product"] == pytest.approx(2e-11, rel=1e-3)
    assert found["seconds_a_product_of_b"] == pytest.approx(5e-11, rel=1e-3)
    assert found["seconds_a_parameter"] == pytest.approx(1e-9, rel=1e-3)
    assert found["seconds_a_step"] == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("negatives", ["next", "random"])
@pytest.mark.parametrize("rule", ["clapp++", "clapp++both"])
@pytest.mark.parametrize("loss_type", [1, 2])
def test_inactive_samples_leave_nothing(
    rule: str, loss_type: int, negatives: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = benchmark("inactive", monkeypatch)
    options: dict[str, Any] = {"loss_type": loss_type, "margin": -0.1, "negatives": negatives}  # few are active
    torch.manual_seed(0)
    made = localssl.Learner(encoders.vgg6(0.05), rules.get(rule, **options), (3, 32, 32), PATCHES)
    views = torch.randn(2, 32, 3, 32, 32)
    with torch.no_grad():
        batch = made.batch(views[0], views[1])
        drawn = torch.randint(64, (64,)) if negatives == "random" else None
        batch = localssl.rules.Batch([4 * z for z in batch.z], drawn)
    seen: list[float] = []
    for layer in range(6):
        _, soma, changes = factors.learn(made.rule, batch, layer, made.parts)  # pyright: ignore[reportArgumentType]
        no_b = torch.stack([(c.signal == 0).all(1) for c in changes]).all(0)
        no_w = (soma == 0).all(1)
        assert module.inactive(made, batch, layer) == (float(no_b.float().mean()), float(no_w.float().mean()))
        seen += [float(no_b.float().mean()), float(no_w.float().mean())]
    assert max(seen) > 0
    assert min(seen) < 1


def test_states_of_predictive_coding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One step up reaches block 5 alone, and is backpropagation's; states that move far lower the loss."""
    module = benchmark("pc_states", monkeypatch)
    torch.manual_seed(0)
    made = localssl.Learner(encoders.vgg6(0.05), rules.get("pc"), (3, 32, 32), PATCHES)
    with torch.no_grad():
        for b in made.parameters():
            b.mul_(2)
    batches = [tuple(torch.randn(2, 8, 3, 32, 32)) for _ in range(2)]
    found = module.cosines(module.after(made, 1), batches)
    assert found[:4] == [None] * 4
    assert found[4] == pytest.approx(1, abs=1e-4)
    path = module.losses(made, 3, batches)
    before = [float(made.losses(*views).sum().detach()) for views in batches]
    assert path[0] == pytest.approx(sum(before) / 2, abs=1e-3)
    assert len(path) == 4
    assert path[3] < path[0]
    assert all(p.grad is None for p in made.encoder.parameters())


def test_the_first_errors_of_predictive_coding_are_lost_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """While B is near 0, h and μ of the lowest blocks differ by less than their rounding; in float64 they do not."""
    module = benchmark("pc_states", monkeypatch)
    found: dict[torch.dtype, float] = {}
    for dtype in (torch.float32, torch.float64):
        torch.manual_seed(0)
        made = localssl.Learner(encoders.vgg6(0.05), rules.get("pc"), (3, 32, 32), PATCHES).to(dtype)
        views = torch.randn(2, 8, 3, 32, 32, dtype=torch.float64).to(dtype)
        found[dtype] = module.cosines(module.after(made, 8).to(dtype), [tuple(views)])[0]
    assert found[torch.float32] < 0.5
    assert found[torch.float64] > 0.99


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
def test_large_data_of_a_small_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = benchmark("large_data", monkeypatch)
    (tmp_path / "set").mkdir()
    module.generate(tmp_path / "set", 4, "val")
    assert module.generate(tmp_path / "set", 70) > 70 * 10_000
    for size in (32, 64, 96):
        images = open_images(f"shards:{tmp_path / 'set'}", image_size=size)
        assert module.numbers(images.batch(torch.tensor([65, 3, 0, 69]))) == [65, 3, 0, 69]
    case = {"shards": str(tmp_path / "set"), "rule": "clapp++", "width": 0.02, "size": 32, "batch": 8}
    case["threads"] = torch.get_num_threads()
    found = module.order({**case, "until": 3}, tmp_path, apart=False)
    assert (found["steps"], found["stopped_at"], found["as_ordered"], found["each_once"]) == (8, 3, True, True)
    row = module.throughput(case, tmp_path, 2, 2)
    assert row["images_per_second"] > 0
    assert row["low"] <= row["ratio"] <= row["high"]


def test_throughput_of_a_tiny_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, loops = benchmark("throughput", monkeypatch), benchmark("loops", monkeypatch)
    root, data = loops.cifar10(tmp_path / "nothing", tmp_path, 8)
    assert data == loops.NOISE
    began = time.perf_counter()
    times = module.once("clapp++", 0.02, 2, 2, root, tmp_path / "run", torch.get_num_threads())
    assert set(times) == {"views", "step", "ahead", "loop", "checkpoint"}
    assert min(times.values()) > 0
    assert sum(times.values()) < time.perf_counter() - began
    given = {"views": 1.0, "step": 3.0, "ahead": 4.0, "loop": 5.0, "checkpoint": 0.0}
    row = module.row("clapp++", 0.02, 2, 2, [given])
    assert (row["of_step_and_views"], row["of_step"], row["views_share"]) == (0.8, 0.6, 0.25)
    assert row["ahead_of_step"] == row["ahead_of_step_low"] == 0.75
    assert (row["images_per_second"], row["step_images_per_second"]) == (0.8, 1.3)


@pytest.mark.long
def test_processes_of_a_tiny_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module = benchmark("parallel", monkeypatch)
    given = (2, str(tmp_path), [module.Case("clapp++", 0.02, 2)], 2, 1)
    mp.start_processes(module.work, given, nprocs=2, start_method="fork")  # pyright: ignore[reportPrivateImportUsage]
    found = {r["exchange"]: r for r in torch.load(tmp_path / "rows", weights_only=True)}
    assert found["rows"]["bytes_sent"] < found["sharded"]["bytes_sent"] < found["matrices"]["bytes_sent"]
    assert found["rows"]["auto"] == []
    assert 2 * found["sharded"]["numbers_of_b"] == found["rows"]["numbers_of_b"]
    assert 0 < found["rows"]["share_of_communication"] < 1
    assert found["matrices"]["of_matrices"] == found["matrices"]["low"] == found["matrices"]["high"] == 1
    assert found["rows"]["low"] <= found["rows"]["of_matrices"] <= found["rows"]["high"]
    assert all(number > 0 for number in torch.load(tmp_path / "pace", weights_only=True).values())


def test_pool_before_relu_comes_to_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    module = benchmark("step", monkeypatch)
    net = encoders.vgg6(0.05)
    turned = module.pool_first(net)
    assert [type(m).__name__ for m in turned.blocks[1]] == ["_AsTheEngine", "MaxPool2d", "ReLU"]
    x = torch.randn(2, 3, 32, 32)
    for a, b in zip(net(x), turned(x), strict=True):
        assert torch.equal(a, b)


def test_rows_of_a_step(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = benchmark("step", monkeypatch)
    shared = benchmark("shared", monkeypatch)
    monkeypatch.setattr(shared.os, "getloadavg", lambda: (shared.torch.get_num_threads() + 0.6, 0, 0))
    base, case = module.Case("bp-clapp++"), module.Case("clapp++dfb")
    (row,) = module.rows(base, [case], 0.02, 2, 2, 0, iter(()))
    assert (row["state"], row["n"], row["load"]) == ("start", 2, round(torch.get_num_threads() + 0.6, 2))
    assert (row["torch"], row["commit"]) == (torch.__version__, shared.commit())
    assert "the machine is busy" in capsys.readouterr().err
    batches, name = module.photographs(tmp_path / "nothing", tmp_path, 2)
    (row,) = module.rows(base, [case], 0.02, 2, 2, 3, batches)
    assert (row["state"], name) == ("3 steps", "noise in place of CIFAR-10")
    assert row["milliseconds_against"] > 0


def test_both_networks_are_trained_on_the_same_views_and_timed_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    module = benchmark("step", monkeypatch)
    seen: list[tuple[str, float]] = []

    class Seen:
        def __init__(self, name: str):
            self.name = name

        def step(self, view_a: torch.Tensor, view_b: torch.Tensor) -> None:
            seen.append((self.name, float(view_a.sum() + view_b.sum())))

    monkeypatch.setattr(module, "made_of", lambda case, width: Seen(case.rule))
    batches = (torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8) for _ in range(9))
    seconds = module.measure((module.Case("a"), module.Case("b")), 0.02, 2, 4, 3, batches)
    assert [len(s) for s in seconds] == [4, 4]
    assert [name for name, _ in seen] == list("ababab" + "ba" + "abba" * 2)
    assert all(first[1] == second[1] for first, second in zip(seen[::2], seen[1::2], strict=True))
    assert len({x for _, x in seen}) == 8


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
def test_memory_with_a_low_rank_b(growth: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growth, "AXES", {"batch": ("batch", (2, 4)), "width": ("width", (0.05,))})
    monkeypatch.setattr(growth, "in_process", lambda _, case: growth.one(case, case["steps"], case["seconds"]))
    found = growth.low_rank(["width", "batch"], tiny=True, threads=1)
    assert [(r["axis"], r["x"], r["rule"]) for r in found["rows"]] == [
        ("batch", x, rule) for x in (2, 4) for rule in growth.LOCAL
    ]
    assert all(r["activity"] > 0 and "seconds" not in r for r in found["rows"])


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc")
def test_steps_with_memory_that_is_kept_and_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which of the two is faster, and how many pages it fetches, is ``test_allocator``'s."""
    module = benchmark("allocator", monkeypatch)
    flags = ["--widths", "0.02", "--repeats", "2", "--threads", "1", "--out", str(tmp_path / "x.json")]
    monkeypatch.setattr(module, "LOCAL", ("clapp++",))
    monkeypatch.setattr(sys, "argv", ["allocator", *flags])
    module.main()
    found = json.loads((tmp_path / "x.json").read_text())["rows"]
    assert [(r["rule"], r["kept"]) for r in found] == [
        (rule, kept) for rule in ("bp-clapp++", "clapp++") for kept in (False, True)
    ]
    assert all(0 < r["low"] <= r["milliseconds"] <= r["high"] and r["peak_mib"] > 50 for r in found)


def test_the_published_layout_by_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ratios are of one round, to the case with the same allocator or to the engine's with kept memory."""
    module = benchmark("published", monkeypatch)
    rounds = [[{"milliseconds": 100.0 * (i + 1) * speed, "faults": 7} for i in range(10)] for speed in (1, 2, 3)]
    found = module.summary(rounds, 1.0)
    of = {(r["rule"], r["layout"], r["kept"]): r for r in found}
    slow = of["clapp++", "published", False]
    assert [c["kept"] for c in module.CASES[:2]] == [True, False]
    assert slow["of_bp"] == slow["of_bp_low"] == slow["of_bp_high"] == 8 / 2
    assert (slow["of_ours"], slow["of_ours_alike"]) == (pytest.approx(8 / 3, abs=1e-4), 8 / 4)
    assert "of_ours" not in of["clapp++", "ours", False]
    assert (slow["milliseconds"], slow["n"], slow["faults"]) == (1600, 3, 7)
    monkeypatch.setattr(benchmark_tables, "RESULTS", tmp_path)
    made_by = {"torch": "9", "threads": 2, "commit": "abc", "processor": "x"}
    (tmp_path / "published.json").write_text(json.dumps({**made_by, "rows": found}))
    text = step_tables.published()
    assert "| bp-clapp++ | ours | as it is | 1 | 400 | 7 | 1.00 (1.00 to 1.00) |  |  | 3 |" in text
    assert "is 2.67 (2.67 to 2.67) times as fast as that layout with the allocator as it is (aim 2.5: reached)" in text
    assert "and 2.00 (2.00 to 2.00) times where neither keeps it" in text


def test_activity_is_within_its_goals(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the width where that is harder; allocations are counted, so that the machine does not matter."""
    shared = benchmark("shared", monkeypatch)
    views = shared.random_views(32)

    def of(rule: str) -> float:
        made = shared.make(rule, encoders.vgg6(0.25))
        made.step(*views)
        return shared.activity(lambda: made.step(*views))

    base = of(shared.BASE)
    for rule, goal in (("clapp++", 0.35), ("clapp++dfb", 0.45), ("clapp++both", 0.45)):
        assert of(rule) <= goal * base, rule


@pytest.mark.parametrize("name", ["gpu", "engines"])
def test_tiny_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = benchmark(name, monkeypatch)
    flags = {
        "gpu": ["--device", "cpu", "--rules", "clapp++both"],
        "engines": ["--repeats", "2", "--threads", str(torch.get_num_threads())],
    }
    monkeypatch.setattr(sys, "argv", [name, *flags[name], "--tiny", "--out", str(tmp_path / "x.json")])
    module.main()
    found = json.loads((tmp_path / "x.json").read_text())
    if name == "gpu":
        (row,) = found["rows"]
        assert row["images_per_second"] > 0
        assert 0 < row["busy"] <= 1
        took = list(row["milliseconds_of_operations"].values())  # which are the dearest is the machine's load's, too
        assert len(took) == module.SHOWN
        assert took == sorted(took, reverse=True)
        assert took[0] > 0
        assert row["bound_by"]
    else:
        assert [r["rule"] for r in found["rows"]] == ["clapp++", "clapp++dfb", "clapp++both"]
        assert all(r["low"] <= r["ratio"] <= r["high"] and r["auto"] == "autograd" for r in found["rows"])


@pytest.mark.parametrize("name", ["clapp++", "clapp++dfb", "clapp++both"])
def test_what_waits_between_the_views(name: str) -> None:
    """Against the readouts that references of view a really take."""
    rule = rules.get(name)
    assert isinstance(rule, ScoreRule)
    learner = localssl.Learner(encoders.vgg6(0.05), rule, (3, 32, 32), PATCHES)
    read = [torch.zeros(1, d) for d in learner.lengths]
    taken = [references.take(r, read, i) for r in rule.references.values() for i in range(len(read))]
    found = arithmetic.layers(learner.encoder, (3, 32, 32), PATCHES)
    assert arithmetic.between_views(found, rule) == sum({t.data_ptr(): t.numel() for t in taken}.values())


def test_in_a_batch_the_order_turns_round() -> None:
    found = arithmetic.layers(encoders.vgg6(0.05), (3, 32, 32), PATCHES)
    lateral, feedback = rules.get("clapp++"), rules.get("clapp++dfb")
    assert isinstance(lateral, ScoreRule)
    assert isinstance(feedback, ScoreRule)
    assert arithmetic.between_views(found, lateral) > arithmetic.between_views(found, feedback)
    assert arithmetic.in_batch(found, lateral) < arithmetic.in_batch(found, feedback)
    blocks = plan(encoders.vgg6(0.05))
    assert not isinstance(blocks, str)
    kept, x = [], torch.rand(1, 3, 32, 32)
    for block in blocks:
        kept.append(passes.run(block, x))
        x = kept[-1].z
    routes = [0 if p.route is None else p.route.numel() * p.route.element_size() // 4 for p in kept]
    assert sum(routes) > 0
    assert arithmetic.in_batch(found, feedback) == (
        sum(p.x.numel() for p in kept) + sum(routes) + x.numel() + 6 * max(layer.d for layer in found)
    )
    inputs = 3 * 32 * 32 + sum(z.numel() for z in encoders.vgg6(0.05)(torch.zeros(1, 3, 32, 32))[:-1])
    assert arithmetic.in_batch(found, feedback) > inputs  # of every block
