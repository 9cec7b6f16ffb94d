"""Several processes that train one network."""

import csv
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch

from binseg.errors import UsageError
from binseg.losses import LOSSES, BatchCounts, build_loss
from binseg.training import distributed
from binseg.training.batches import Shares, build_batches
from binseg.training.distributed import ALONE, Ranks, planned_ranks, started_ranks
from binseg.transforms.augmentation import build_augment
from binseg.types import IGNORE

RECIPE = """
data: {path: synthetic}
input: {size: 16}
model: {name: unet, options: {width: 2, depth: 1, norm: none}}
loss: {name: bce-dice}
augment: {preset: strong}
schedule: {name: plateau, patience: 0}
train: {epochs: 2, batch_size: 8, per_epoch: 21, precision: fp32, device: cpu}
"""
COMMAND = [sys.executable, "-m", "binseg", "train"]
CPU = torch.device("cpu")


@pytest.mark.parametrize("num", [2, 3, 5])
def test_shares_are_each_batch_once_and_change_as_in_one_process(
    num: int, pixels: Callable[..., Any], recipe: Callable[..., Any]
) -> None:
    """Shares laid side by side are the batch of one process, augmented to the bit alike."""
    asked = recipe(augment__preset="strong")
    augment = build_augment(asked.augment)
    cache = pixels(10)

    def epoch(shares: Shares) -> list[Any]:
        given = build_batches(cache, asked, device=CPU, shares=shares).epoch(1)
        found = []
        for batch in given:
            images, targets = augment(
                batch.inputs_BHWC.permute(0, 3, 1, 2),
                batch.targets_BHW,
                seed=0,
                epoch=1,
                step=batch.step,
                first=batch.first,
                total=batch.total,
            )
            if batch.is_empty:
                assert bool((batch.targets_BHW == IGNORE).all())
                images, targets = images[:0], targets[:0]
            found.append((images, targets))
        return found

    whole = epoch(Shares())
    parts = [epoch(Shares(rank, num)) for rank in range(num)]
    for step, (images, targets) in enumerate(whole):
        assert torch.equal(images, torch.cat([part[step][0] for part in parts]))
        assert torch.equal(targets, torch.cat([part[step][1] for part in parts]))


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_the_mean_of_unequal_shares_is_the_loss_of_the_batch(name: str) -> None:
    """Losses and gradients of two shares average to those of the whole, ignored pixels or not."""
    torch.manual_seed(0)
    logits = torch.randn(5, 1, 8, 8, requires_grad=True)
    target = (torch.rand(5, 1, 8, 8) > 0.6).float()
    valid = torch.rand(5, 1, 8, 8) > 0.2
    valid[3] = False
    loss = build_loss(name)
    expected = loss(logits, target, valid)
    (gradient,) = torch.autograd.grad(expected, logits)
    parts = [slice(0, 1), slice(1, 5)]
    told: list[torch.Tensor] = []

    def note(own: torch.Tensor) -> torch.Tensor:
        told.append(own)
        return own

    for part in parts:
        BatchCounts.of(valid[part], world_size=2, add=note)

    def shared(part: slice) -> torch.Tensor:
        counts = BatchCounts.of(valid[part], world_size=2, add=lambda own: told[0] + told[1])
        return loss(logits[part], target[part], valid[part], counts)

    mean = (shared(parts[0]) + shared(parts[1])) / 2
    torch.testing.assert_close(mean, expected)
    torch.testing.assert_close(torch.autograd.grad(mean, logits)[0], gradient)


def test_torchrun_and_srun_are_known_by_their_variables() -> None:
    """Ranks come from torchrun or srun; a batch script of SLURM's is one process."""
    torchrun = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    ranks = started_ranks({**torchrun, "GROUP_RANK": "1", "MASTER_ADDR": "10.0.0.1"})
    assert ranks is not None
    assert (ranks.rank, ranks.world_size, ranks.local_rank, ranks.node_rank) == (3, 4, 1, 1)
    srun = {
        "SLURM_PROCID": "5",
        "SLURM_STEP_NUM_TASKS": "8",
        "SLURM_STEP_NUM_NODES": "2",
        "SLURM_LOCALID": "1",
        "SLURM_NODEID": "1",
        "SLURM_STEP_NODELIST": "node[03-04]",
        "SLURM_JOB_ID": "12345",
    }
    ranks = started_ranks(srun)
    assert ranks is not None
    assert (ranks.rank, ranks.local_world_size, ranks.address, ranks.port) == (
        5,
        4,
        "node03",
        17345,
    )
    assert started_ranks({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}) is None
    assert started_ranks({}) is None


def test_machines_that_do_not_know_each_other_are_refused() -> None:
    """Without NODE_RANK and MASTER_ADDR nobody could tell which machine leads."""
    with pytest.raises(UsageError, match="NODE_RANK=0, 1"):
        planned_ranks(2, 2, {})
    with pytest.raises(UsageError, match="0 to 1"):
        planned_ranks(2, 2, {"NODE_RANK": "2", "MASTER_ADDR": "10.0.0.1"})
    assert planned_ranks(2, 2, {"NODE_RANK": "1", "MASTER_ADDR": "10.0.0.1"}).rank == 2


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc/net")
def test_ranks_of_one_machine_meet_on_its_loopback_address_alone() -> None:
    """The kernel's own table shows where the store listens: nobody else can knock."""
    store, ranks = distributed._meeting_place(Ranks(world_size=2, local_world_size=2))
    assert store.check(["nothing"]) is False
    rows = [
        line.split()[1:4]
        for table in ("tcp", "tcp6")
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]
    ]
    listening = {where for where, _, state in rows if state == "0A"}
    assert [where for where in listening if where.endswith(f":{ranks.port:04X}")] == [
        f"0100007F:{ranks.port:04X}"
    ]


def test_nothing_pickled_passes_between_ranks() -> None:
    """Training calls none of the collectives for objects, of torch or of Fabric."""
    folder = Path(distributed.__file__).parent
    words = ("_object", "fabric.broadcast", "pickle.")
    for path in folder.glob("*.py"):
        assert not [word for word in words if word in path.read_text("utf-8")], path.name


def test_alone_nothing_is_sent() -> None:
    """One rank agrees with itself, with no process group in sight."""
    assert not torch.distributed.is_initialized()
    assert ALONE.share(b"abc") == b"abc"
    assert ALONE.share_json({"a": float("inf")}) == {"a": float("inf")}
    assert ALONE.agree(2, (1.5, 0.5)) == (2, (1.5, 0.5))


MEETING = """
import sys, torch
from binseg.training.distributed import process_group
from binseg.training.distributed import Ranks
rank, port = int(sys.argv[1]), int(sys.argv[2])
ranks = Ranks(rank=rank, world_size=2, local_rank=rank, local_world_size=2, port=port,
              is_external=True)
with process_group(ranks, torch.device("cpu")) as group:
    print(group.share_json({"from": rank, "n": [1, None]}), group.share(bytes([rank]) * 3),
          group.sum(torch.tensor(float(rank + 1))).item(),
          group.agree(rank * 15, (7.5 - rank, 0.25 - rank / 8)))
"""


def test_two_ranks_agree() -> None:
    """Rank 0's bytes and numbers count, sums are of both, and whoever is to stop stops both."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    pair = [
        subprocess.Popen(
            [sys.executable, "-c", MEETING, str(rank), port],
            stdout=subprocess.PIPE,
            env=_environment(),
            text=True,
        )
        for rank in range(2)
    ]
    said = [one.communicate(timeout=300)[0].strip() for one in pair]
    assert said == ["{'from': 0, 'n': [1, None]} b'\\x00\\x00\\x00' 3.0 (15, (7.5, 0.25))"] * 2


def _environment(**more: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", **more}


def _losses(folder: Path) -> np.ndarray:
    with (folder / "metrics.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    names = ("lr", "train_loss", "train_dice", "val_loss", "val_dice")
    return np.array([[float(row[name]) for name in names] for row in rows])


def _weights(folder: Path) -> dict[str, np.ndarray]:
    return safetensors.numpy.load_file(folder / "bundle" / "weights.safetensors")


def _assert_equal_runs(one: Path, other: Path) -> None:
    np.testing.assert_allclose(_losses(one), _losses(other), atol=1e-4)
    # Adam divides by the gradient's size, so that noise in a tiny gradient moves a weight visibly.
    for name, value in _weights(one).items():
        np.testing.assert_allclose(value, _weights(other)[name], atol=1e-3, err_msg=name)


@pytest.mark.slow
def test_two_processes_give_the_run_of_one(tmp_path: Path) -> None:
    """Gradients, averages and the plateau's rate agree within float noise; no batch norm."""
    (tmp_path / "r.yaml").write_text(RECIPE)
    for devices in ("1", "2"):
        asked = ["--devices", devices]
        subprocess.run(
            [*COMMAND, str(tmp_path / "r.yaml"), "--out", str(tmp_path / devices), *asked],
            env=_environment(),
            check=True,
            capture_output=True,
            timeout=600,
        )
    _assert_equal_runs(tmp_path / "1", tmp_path / "2")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="follows processes through /proc")
def test_a_killed_pair_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    """Killing the leader ends its follower too, and both go on from the newest checkpoint."""
    (tmp_path / "r.yaml").write_text(RECIPE.replace("epochs: 2", "epochs: 40"))
    start = [*COMMAND, str(tmp_path / "r.yaml"), "--devices", "2", "--out"]
    known = {"env": _environment(), "capture_output": True, "timeout": 600}
    subprocess.run([*start, str(tmp_path / "whole")], check=True, **known)  # type: ignore[call-overload]
    leader = subprocess.Popen(
        [*start, str(tmp_path / "cut")],
        env=_environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    metrics = tmp_path / "cut" / "metrics.csv"
    _wait(lambda: metrics.exists() and len(metrics.read_text().splitlines()) > 5)
    followers = _children(leader.pid)
    assert followers
    leader.kill()
    leader.wait()
    _wait(lambda: not any(_runs(one) for one in followers))
    assert not (tmp_path / "cut" / "bundle").exists()
    again = [*COMMAND, "--resume", "--out", str(tmp_path / "cut")]
    subprocess.run(again, check=True, **known)  # type: ignore[call-overload]
    for name, value in _weights(tmp_path / "whole").items():
        assert np.array_equal(value, _weights(tmp_path / "cut")[name]), name
    assert np.array_equal(_losses(tmp_path / "whole"), _losses(tmp_path / "cut"))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds processes through /proc")
def test_a_dead_rank_ends_the_run_with_one_line(tmp_path: Path) -> None:
    """Rank 1 is killed: rank 0 says so, with the way on, which leads to the run's end."""
    recipe = RECIPE.replace("epochs: 2", "epochs: 40, checkpoint_minutes: 0.0001")
    (tmp_path / "r.yaml").write_text(recipe)
    folder = tmp_path / "run"
    first = subprocess.Popen(
        [*COMMAND, str(tmp_path / "r.yaml"), "--devices", "2", "--out", str(folder)],
        env=_environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    metrics = folder / "metrics.csv"
    _wait(lambda: metrics.exists() and len(metrics.read_text().splitlines()) > 3)
    (second,) = _children(first.pid)
    os.kill(second, signal.SIGKILL)
    said = first.communicate(timeout=120)[1].splitlines()
    assert first.returncode == 1
    assert "another process of this run has died" in said[-1]
    assert f"go on with `binseg train --out {folder} --resume`" in said[-1]
    assert not [line for line in said if "Traceback" in line]
    subprocess.run([*COMMAND, "--resume", str(folder)], env=_environment(), check=True, timeout=600)
    assert len(_losses(folder)) == 40


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds processes through /proc")
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_any_one_rank_stops_all_and_the_run_goes_on(
    tmp_path: Path, number: signal.Signals, rank: int
) -> None:
    """Both ranks end by themselves, rank 0 with the signal's exit code and the way on."""
    (tmp_path / "r.yaml").write_text(RECIPE.replace("epochs: 2", "epochs: 40"))
    folder = tmp_path / "run"
    first = subprocess.Popen(
        [*COMMAND, str(tmp_path / "r.yaml"), "--devices", "2", "--out", str(folder)],
        env=_environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    metrics = folder / "metrics.csv"
    _wait(lambda: metrics.exists() and len(metrics.read_text().splitlines()) > 3)
    (second,) = _children(first.pid)
    os.kill((first.pid, second)[rank], number)
    said = first.communicate(timeout=120)[1].splitlines()
    assert first.returncode == 128 + number
    assert f"go on with `binseg train --out {folder} --resume`" in said[-1]
    _wait(lambda: not _runs(second))
    assert not (folder / "bundle").exists()
    before = _losses(folder)
    assert 3 <= len(before) < 40
    subprocess.run([*COMMAND, "--resume", str(folder)], env=_environment(), check=True, timeout=600)
    after = _losses(folder)
    assert len(after) == 40
    assert np.array_equal(after[: len(before)], before)


@pytest.mark.slow
def test_machines_started_by_hand_stop_and_go_on_together(tmp_path: Path) -> None:
    """The same command on each machine, with NODE_RANK, begins a run and goes on with it."""
    (tmp_path / "r.yaml").write_text(RECIPE.replace("epochs: 2", "epochs: 40"))
    folder = tmp_path / "two"

    def on_both(*words: str) -> list[subprocess.Popen[bytes]]:
        return [
            subprocess.Popen(
                [*COMMAND, *words, "--out", str(folder)],
                env=_environment(NODE_RANK=str(node), MASTER_ADDR="127.0.0.1", MASTER_PORT="29517"),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            for node in range(2)
        ]

    metrics = folder / "metrics.csv"
    pair = on_both(str(tmp_path / "r.yaml"), "--num-nodes", "2", "--devices", "1")
    _wait(lambda: metrics.exists() and len(metrics.read_text().splitlines()) > 3)
    pair[0].send_signal(signal.SIGINT)
    assert [one.wait(120) for one in pair] == [130, 0]
    assert not (folder / "bundle").exists()
    assert [one.wait(600) for one in on_both("--resume")] == [0, 0]
    assert len(_losses(folder)) == 40


def _wait(until: Callable[[], bool]) -> None:
    for _ in range(6000):
        if until():
            return
        time.sleep(0.1)
    raise AssertionError("it did not happen within ten minutes")


def _children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(word) for word in text.split()]


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.slow
@pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("ip") is None or os.geteuid() != 0,
    reason="network namespaces need Linux, iproute2 and root",
)
def test_two_machines_give_the_run_of_one(tmp_path: Path) -> None:
    """Two network namespaces, joined by a wire alone, train as one process does."""
    (tmp_path / "r.yaml").write_text(RECIPE)
    names = [f"binseg{os.getpid()}{side}" for side in "ab"]
    wires = [f"bsg{os.getpid() % 10**6}{side}" for side in "ab"]

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True)

    made = []
    try:
        for name in names:
            ip("netns", "add", name)
            made.append(name)
        ip("link", "add", wires[0], "type", "veth", "peer", "name", wires[1])
        for number, (name, wire) in enumerate(zip(names, wires, strict=True)):
            ip("link", "set", wire, "netns", name)
            ip("-n", name, "addr", "add", f"10.77.0.{number + 1}/24", "dev", wire)
            ip("-n", name, "link", "set", wire, "up")
            ip("-n", name, "link", "set", "lo", "up")
        command = [*COMMAND, str(tmp_path / "r.yaml"), "--out"]
        runs = [
            subprocess.Popen(
                ["ip", "netns", "exec", name, *command, str(tmp_path / "two")],
                env=_environment(
                    RANK=str(rank),
                    WORLD_SIZE="2",
                    LOCAL_RANK="0",
                    LOCAL_WORLD_SIZE="1",
                    GROUP_RANK=str(rank),
                    MASTER_ADDR="10.77.0.1",
                    MASTER_PORT="29511",
                    GLOO_SOCKET_IFNAME=wires[rank],
                ),
                stderr=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
            )
            for rank, name in enumerate(names)
        ]
        said = [run.communicate(timeout=600)[1].decode() for run in runs]
        assert [run.returncode for run in runs] == [0, 0], said
    except subprocess.CalledProcessError as problem:
        if len(made) < len(names):
            pytest.skip(f"no network namespaces here: {problem.stderr.decode().strip()}")
        raise
    finally:
        for name in made:
            subprocess.run(["ip", "netns", "delete", name], check=False)
    command = [*COMMAND, str(tmp_path / "r.yaml"), "--out"]
    subprocess.run(
        [*command, str(tmp_path / "one")],
        env=_environment(),
        check=True,
        capture_output=True,
        timeout=600,
    )
    _assert_equal_runs(tmp_path / "one", tmp_path / "two")
