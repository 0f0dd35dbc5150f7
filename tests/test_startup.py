"""What happens before anything runs: imports that wait until they are needed, and Ctrl-C while they go on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import localssl


def run_python(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_heavy_imports_wait() -> None:
    run_python(
        "import sys, localssl\n"
        "assert 'torch' not in sys.modules\n"
        "localssl.Learner, localssl.load, localssl.alignment, localssl.rules.get('clapp')\n"
        "late = {'scipy.stats', 'matplotlib', 'pyarrow', 'sklearn', 'tensorboard'} & sys.modules.keys()\n"
        "assert not late, late\n"
    )


def test_names_of_the_package() -> None:
    assert set(localssl.__all__) <= set(dir(localssl))
    assert all(hasattr(localssl, name) for name in localssl.__all__)
    assert localssl.errors.UsageError  # modules that are no public names are found as well
    with pytest.raises(AttributeError, match="module 'localssl' has no attribute 'lerner'"):
        localssl.lerner  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'lerner'"):
        from localssl import lerner  # noqa: F401
    assert not hasattr(localssl, "__wrapped__")


IMPORTING = """
import pathlib, time
pathlib.Path(__file__).with_name("began").touch()
try:
    time.sleep(60)
except BaseException as error:  # some libraries turn what they meet while they are imported into their own error
    raise ImportError("torch cannot be imported") from error
"""


@pytest.mark.parametrize("command", ["train --rule clapp --data digits --out x", "probe x", "--help"])
def test_ctrl_c_while_pytorch_is_being_imported(command: str, tmp_path: Path) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text(IMPORTING)
    source = str(Path(localssl.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), source])}
    process = subprocess.Popen(
        [sys.executable, "-m", "localssl", *command.split()],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=tmp_path,
        start_new_session=True,
    )
    while process.poll() is None and not (tmp_path / "torch" / "began").exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    said = process.communicate()
    assert (process.returncode, *said) == (130, "", "")
    assert not (tmp_path / "x").exists()
