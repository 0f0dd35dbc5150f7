"""Where the curves of a run go besides metrics.csv: TensorBoard, Weights & Biases, MLflow, all into the run's folder.

Each is a logger of Lightning Fabric. Nothing is ever sent: Weights & Biases writes an offline run, MLflow a file store.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_fabric.loggers.logger import Logger
from lightning_fabric.loggers.tensorboard import TensorBoardLogger

from localssl.errors import UsageError
from localssl.system.files import write_text

PACKAGES = {"wandb": "wandb", "mlflow": "mlflow"}  # TensorBoard comes with localssl


def check(names: Sequence[str]) -> None:
    """Refuse trackers whose package is not here.

    Raises:
        UsageError: names the package.
    """
    for name in names:
        if name in PACKAGES and importlib.util.find_spec(PACKAGES[name]) is None:
            raise UsageError(f"--trackers {name} needs the package {PACKAGES[name]}: pip install 'localssl[{name}]'")


def make(names: Sequence[str], run: Path, resume_step: int | None = None) -> list[Logger]:
    """The loggers of these names.

    Args:
        names: "tensorboard", "wandb", "mlflow"; each once.
        run: the run's folder.
        resume_step: the step that the run goes on from; None: it begins.

    Raises:
        UsageError: a package is missing.
    """
    check(names)
    loggers: list[Logger] = []
    for name in dict.fromkeys(names):
        if name == "tensorboard":
            # purge_step: what an earlier process wrote after the checkpoint disappears from the curves.
            purge = None if resume_step is None else resume_step + 1
            loggers.append(TensorBoardLogger(run, name="tensorboard", version="", purge_step=purge))
        else:
            loggers.append({"wandb": OfflineWandb, "mlflow": LocalMLflow}[name](run, resume_step is not None))
    return loggers


class OfflineWandb(Logger):
    """Weights & Biases, offline: ``wandb/`` in the run's folder, which ``wandb sync`` sends where the user wants.

    Args:
        run: the run's folder.
        resumed: go on with the run that lies there, by its id.
    """

    def __init__(self, run: Path, resumed: bool):
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # read at import; reports go over the network
        wandb: Any = importlib.import_module("wandb")
        file = run / "wandb" / "localssl-id"
        before = file.read_text(encoding="utf-8").strip() if resumed and file.is_file() else None
        quiet = wandb.Settings(console="off", silent=True, x_disable_stats=True, disable_git=True, save_code=False)
        self.run: Any = wandb.init(
            project="localssl", dir=run, mode="offline", name=run.name, id=before, reinit="create_new", settings=quiet
        )
        write_text(file, f"{self.run.id}\n")

    @property
    def name(self) -> str:
        """The project."""
        return "localssl"

    @property
    def version(self) -> str:
        """The run's id."""
        return self.run.id

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:  # pyright: ignore
        """A row."""
        self.run.log(dict(metrics), step=step)

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """The configuration."""
        self.run.config.update(vars(params) if isinstance(params, Namespace) else params, allow_val_change=True)

    def finalize(self, status: str) -> None:
        """Write everything out."""
        self.run.finish(exit_code=0 if status == "success" else 1)


class LocalMLflow(Logger):
    """MLflow's file store: ``mlruns/`` in the run's folder; ``mlflow ui --backend-store-uri`` shows it.

    Args:
        run: the run's folder.
        resumed: go on with the run that lies there.
    """

    def __init__(self, run: Path, resumed: bool):
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read at import
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # its makers would rather have a database
        tracking: Any = importlib.import_module("mlflow.tracking")
        self.client: Any = tracking.MlflowClient(tracking_uri=(run / "mlruns").resolve().as_uri())
        known = self.client.get_experiment_by_name("localssl")
        experiment = self.client.create_experiment("localssl") if known is None else known.experiment_id
        before = self.client.search_runs([experiment], max_results=1) if resumed else []
        self.id: str = (before or [self.client.create_run(experiment, run_name=run.name)])[0].info.run_id
        self.client.update_run(self.id, status="RUNNING")

    @property
    def name(self) -> str:
        """The experiment."""
        return "localssl"

    @property
    def version(self) -> str:
        """The run's id."""
        return self.id

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:  # pyright: ignore
        """A row."""
        for key, value in metrics.items():
            self.client.log_metric(self.id, key, value, step=step)

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """The configuration."""
        for key, value in (vars(params) if isinstance(params, Namespace) else params).items():
            self.client.log_param(self.id, key, value)

    def finalize(self, status: str) -> None:
        """Say how it ended."""
        self.client.set_terminated(self.id, "FINISHED" if status == "success" else "FAILED")
