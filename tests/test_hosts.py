"""Training on several machines: network namespaces of this one, joined by a cable, each with its own addresses."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from .train_util import encoder_bytes, rows

pytestmark = pytest.mark.long
NAMES = CABLES = (f"lssl{os.getpid()}a", f"lssl{os.getpid()}b")  # other suites may run on this machine
ADDRESSES = ("10.77.11.1", "10.77.11.2")
WHAT = ("--rule", "clapp++dfb", "--data", "digits", "--width", "0.25", "--limit-images", "256", "--threads", "1")


def ip(*arguments: str, check: bool = True) -> bool:
    done = subprocess.run(["ip", *arguments], capture_output=True, check=False)
    assert done.returncode == 0 or not check, done.stderr
    return done.returncode == 0


@pytest.fixture(scope="module")
def hosts() -> Generator[None]:
    if shutil.which("ip") is None or not ip("netns", "add", NAMES[0], check=False):
        pytest.skip("no network namespaces: needs Linux, ip of iproute2, and the right to make them")
    try:
        ip("netns", "add", NAMES[1])
        ip("link", "add", CABLES[0], "type", "veth", "peer", "name", CABLES[1])
        for name, address, cable in zip(NAMES, ADDRESSES, CABLES, strict=True):
            ip("link", "set", cable, "netns", name)
            ip("-n", name, "addr", "add", f"{address}/24", "dev", cable)
            ip("-n", name, "link", "set", cable, "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield
    finally:
        for name in NAMES:
            ip("netns", "delete", name, check=False)


@contextmanager
def begun(
    out: Path, epochs: int, *flags: str, named: bool = True, by_torchrun: bool = False, devices: int = 1
) -> Generator[list[subprocess.Popen[str]]]:
    """A run on both machines, ended with the block; ``named``: each is told which network they share."""
    started: list[subprocess.Popen[str]] = []
    try:
        for rank, (name, cable) in enumerate(zip(NAMES, CABLES, strict=True)):
            meeting = {"MASTER_ADDR": ADDRESSES[0], "MASTER_PORT": "29511", "NODE_RANK": str(rank)}
            environment = {**os.environ, **({} if by_torchrun else meeting), "OMP_NUM_THREADS": "1"}
            environment |= {"GLOO_SOCKET_IFNAME": cable} if named else {}
            command = ["ip", "netns", "exec", name, sys.executable]
            if by_torchrun:
                command += ["-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
                command += ["--node-rank", str(rank), "--master-addr", ADDRESSES[0], "--master-port", "29511"]
            command += ["-m", "localssl", "train", *WHAT, *flags]
            command += ["--devices", str(devices), "--nodes", "2", "--out", str(out), "--epochs", str(epochs)]
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
            started.append(subprocess.Popen(command, env=environment, text=True, **pipes))
        yield started
    finally:
        for process in started:
            process.kill()
        for name in NAMES:
            here = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=False)
            subprocess.run(["kill", "-9", *here.stdout.split()], capture_output=True, check=False)


@pytest.mark.usefixtures("hosts")
def test_two_machines_are_two_processes_of_one(tmp_path: Path) -> None:
    with begun(tmp_path / "two", 1) as machines:
        said = [machine.communicate(timeout=120)[0] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], said
    assert "done: " in said[0]
    assert "done: " not in said[1]  # one of them speaks
    assert "machine 1 of 0 to 1: begins when all have found 10.77.11.1" in said[1]
    one = [sys.executable, "-m", "localssl", "train", *WHAT, "--devices", "2", "--epochs", "1"]
    subprocess.run([*one, "--out", str(tmp_path / "one")], check=True, capture_output=True, timeout=120)
    assert encoder_bytes(tmp_path / "two") == encoder_bytes(tmp_path / "one")
    assert rows(tmp_path / "two") == rows(tmp_path / "one")
    with begun(tmp_path / "torchrun", 1, by_torchrun=True) as machines:
        said = [machine.communicate(timeout=120)[0] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], said
    assert encoder_bytes(tmp_path / "torchrun") == encoder_bytes(tmp_path / "one")


@pytest.mark.usefixtures("hosts")
@pytest.mark.parametrize(("devices", "flags"), [(2, ()), (1, ("--pipeline", "2")), (1, ("--shard-b",))])
def test_several_processes_on_each_machine(devices: int, flags: tuple[str, ...], tmp_path: Path) -> None:
    with begun(tmp_path / "two", 1, *flags, devices=devices) as machines:
        said = [machine.communicate(timeout=200)[0] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], said
    one = [sys.executable, "-m", "localssl", "train", *WHAT, *flags, "--devices", str(2 * devices), "--epochs", "1"]
    subprocess.run([*one, "--out", str(tmp_path / "one")], check=True, capture_output=True, timeout=200)
    assert encoder_bytes(tmp_path / "two") == encoder_bytes(tmp_path / "one")
    assert rows(tmp_path / "two") == rows(tmp_path / "one")


def wait_for_checkpoint(out: Path) -> None:
    deadline = time.monotonic() + 90
    while not (out / "checkpoint").exists():
        assert time.monotonic() < deadline
        time.sleep(0.2)


@pytest.mark.usefixtures("hosts")
def test_a_machine_that_dies_ends_the_run_on_the_other(tmp_path: Path) -> None:
    with begun(tmp_path / "x", 1000) as machines:
        wait_for_checkpoint(tmp_path / "x")
        pids = subprocess.run(["ip", "netns", "pids", NAMES[1]], capture_output=True, text=True, check=True)
        subprocess.run(["kill", "-9", *pids.stdout.split()], check=True)
        said, _ = machines[0].communicate(timeout=30)
    assert machines[0].returncode == 1
    assert "another process of the run ended before its time" in said
    assert "go on with: " in said
    assert "Traceback" not in said


@pytest.mark.usefixtures("hosts")
def test_a_machine_that_is_cut_off_ends_the_run_on_both(tmp_path: Path) -> None:
    """Nothing says that it is gone: each waits for as long as --patience has it."""
    with begun(tmp_path / "x", 1000, "--patience", "0.25") as machines:
        wait_for_checkpoint(tmp_path / "x")
        ip("-n", NAMES[1], "link", "set", CABLES[1], "down")
        try:
            said = [machine.communicate(timeout=60)[0] for machine in machines]
        finally:
            ip("-n", NAMES[1], "link", "set", CABLES[1], "up")
    assert [machine.returncode for machine in machines] == [1, 1], said
    assert "localssl: no word from another process for 0.25 minutes (its machine cut off?); the last check" in said[0]
    assert "go on with: " in said[0]
    assert "--patience 0.25" in said[0]
    assert "Traceback" not in said[0]


@pytest.mark.usefixtures("hosts")
def test_machines_that_do_not_find_each_other(tmp_path: Path) -> None:
    """Each takes its own name for its address, which leads to itself: whoever is refused first says so."""
    with begun(tmp_path / "x", 1, named=False) as machines:
        deadline = time.monotonic() + 120
        while not (ended := [machine for machine in machines if machine.poll() is not None]):
            assert time.monotonic() < deadline
            time.sleep(0.2)
        said, _ = ended[0].communicate()
    assert ended[0].returncode == 1
    assert "localssl: the processes did not find each other: RuntimeError: Gloo" in said
    assert "GLOO_SOCKET_IFNAME=" in said
    assert "Traceback" not in said
    assert not (tmp_path / "x").exists()
