"""Trackers get the curves of metrics.csv, in the run's folder and without a network."""

from __future__ import annotations

import importlib.util
import socket
from pathlib import Path
from typing import Any

import pytest

from localssl.cli import main
from localssl.errors import UsageError
from localssl.runs import metrics, trackers

from .train_util import run_tiny


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    real = socket.socket.connect

    def connect(self: socket.socket, address: Any) -> None:
        local = isinstance(address, str | bytes) or address[0] in ("127.0.0.1", "::1", "localhost")
        assert local, f"a connection to {address}"
        real(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect)


def losses(run: Path) -> dict[int, float]:
    return {int(row["step"]): float(row["loss"]) for row in metrics.read(run)}


def of_mlflow(run: Path) -> tuple[dict[int, float], Any]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=(run / "mlruns").as_uri())
    experiment = client.get_experiment_by_name("localssl")
    assert experiment is not None
    (found,) = client.search_runs([experiment.experiment_id])
    return {m.step: m.value for m in client.get_metric_history(found.info.run_id, "loss")}, found


def test_mlflow(tmp_path: Path) -> None:
    pytest.importorskip("mlflow", reason="no MLflow here: pip install '.[mlflow]'")
    run = run_tiny(tmp_path / "x", trackers=("mlflow",), epochs=1).path
    curve, found = of_mlflow(run)
    assert curve == losses(run)
    assert found.data.params["rule"] == "clapp++"
    assert found.info.status == "FINISHED"
    assert not (run / "tensorboard").exists()
    run_tiny(run, resume=True, trackers=("mlflow",), epochs=2)  # the same run goes on
    assert of_mlflow(run)[0] == losses(run)
    assert max(losses(run)) == 8


def test_wandb(tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="no Weights & Biases here: pip install '.[wandb]'")
    run = run_tiny(tmp_path / "x", trackers=("wandb", "tensorboard"), epochs=1).path
    (file,) = run.glob("wandb/offline-run-*/run-*.wandb")
    kept = file.read_bytes()
    assert b"loss_1" in kept
    assert b"clapp++" in kept
    assert list((run / "tensorboard").glob("events*"))
    run_tiny(run, resume=True, trackers=("wandb",), epochs=2)
    names = {path.name for path in run.glob("wandb/offline-run-*/run-*.wandb")}
    assert names == {file.name}  # another part of the same run


def test_a_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "wandb" else find(name, *rest))
    flags = f"--rule clapp --data digits --out {tmp_path / 'x'} --trackers tensorboard wandb"
    assert main(["train", *flags.split()]) == 2
    said = capsys.readouterr().err
    assert said == "localssl: --trackers wandb needs the package wandb: pip install 'localssl[wandb]'\n"
    assert not (tmp_path / "x").exists()
    with pytest.raises(UsageError):
        trackers.make(["wandb"], tmp_path)


def test_none_at_all(tmp_path: Path) -> None:
    run = run_tiny(tmp_path / "x", trackers=(), epochs=1).path
    assert losses(run)
    assert not (run / "tensorboard").exists()
