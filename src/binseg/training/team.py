"""The processes that train one network together: who they are, and what they tell each other.

The first one leads: it alone validates, writes, prints and decides. Before each step it gives its
word to the others, whether to go on, and at which rate and size; the steps themselves are
Lightning's distributed data parallel (DDP).
"""

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from torch import distributed
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # missing from its stubs

from binseg.errors import TrainingError, UsageError

__all__ = ["ALONE", "MEMBER_MODULE", "Place", "Team", "external_place", "own_place"]

MEMBER_MODULE = "binseg.pipelines.following"
"""What a process that this one starts runs: everything else it hears from the leader."""
DEFAULT_PORT = "29500"
"""Of the leader, where several machines train and none is given: torchrun's."""
PATIENCE = timedelta(days=1)
"""Others wait while the leader reads images and validates; a dead process is known at once."""
PARTING_SECONDS = 30.0


@dataclass(frozen=True, kw_only=True)
class Place:
    """Which of the processes this one is."""

    rank: int = 0
    num: int = 1
    local_rank: int = 0
    """On this machine."""
    local_num: int = 1
    node: int = 0
    address: str = "127.0.0.1"
    """Of the leader's machine."""
    port: str = "0"
    """There; 0 is any free one."""
    is_external: bool = False
    """Whether torchrun or SLURM started all processes; else each machine starts its own."""

    def variables(self) -> dict[str, str]:
        """The environment by which torch and Lightning know the place."""
        return {
            "RANK": str(self.rank),
            "WORLD_SIZE": str(self.num),
            "LOCAL_RANK": str(self.local_rank),
            "LOCAL_WORLD_SIZE": str(self.local_num),
            "GROUP_RANK": str(self.node),
            "MASTER_ADDR": self.address,
            "MASTER_PORT": self.port,
        }


def external_place(environment: Mapping[str, str] = os.environ) -> Place | None:
    """Tell which process this is where torchrun or SLURM's srun started several; else None."""
    if "RANK" in environment and int(environment.get("WORLD_SIZE", "1")) > 1:
        local = int(environment.get("LOCAL_WORLD_SIZE", "1"))
        rank = int(environment["RANK"])
        return Place(
            rank=rank,
            num=int(environment["WORLD_SIZE"]),
            local_rank=int(environment.get("LOCAL_RANK", str(rank % local))),
            local_num=local,
            node=int(environment.get("GROUP_RANK", str(rank // local))),
            address=environment.get("MASTER_ADDR", "127.0.0.1"),
            port=environment.get("MASTER_PORT", DEFAULT_PORT),
            is_external=True,
        )
    # Only srun sets the number of its own tasks; a batch script has SLURM_NTASKS without them.
    num = int(environment.get("SLURM_STEP_NUM_TASKS", "1"))
    if num > 1 and "SLURM_PROCID" in environment:
        nodes = int(environment.get("SLURM_STEP_NUM_NODES", "1"))
        job = environment.get("SLURM_JOB_ID", "0")
        return Place(
            rank=int(environment["SLURM_PROCID"]),
            num=num,
            local_rank=int(environment["SLURM_LOCALID"]),
            local_num=num // nodes,
            node=int(environment.get("SLURM_NODEID", "0")),
            address=environment.get("MASTER_ADDR")
            or SLURMEnvironment.resolve_root_node_address(
                environment.get("SLURM_STEP_NODELIST", "127.0.0.1")
            ),
            port=environment.get("MASTER_PORT", str(15000 + int(job[-4:]))),
            is_external=True,
        )
    return None


def own_place(devices: int, num_nodes: int, environment: Mapping[str, str] = os.environ) -> Place:
    """Give the place of a machine's first process, which starts the others there.

    Args:
        devices: processes on each machine.
        num_nodes: machines; with several, NODE_RANK, MASTER_ADDR and MASTER_PORT tell them apart.
        environment: those variables.

    Raises:
        UsageError: several machines that don't know each other.
    """
    if num_nodes == 1:
        return Place(num=devices, local_num=devices)
    if "NODE_RANK" not in environment or "MASTER_ADDR" not in environment:
        raise UsageError(
            f"{num_nodes} machines must know each other: run the same command on each, with "
            "NODE_RANK=0, 1, ... and MASTER_ADDR=address of the first one; or use torchrun or srun"
        )
    node = int(environment["NODE_RANK"])
    if not 0 <= node < num_nodes:
        raise UsageError(f"NODE_RANK is {node}; of {num_nodes} machines it is 0 to {num_nodes - 1}")
    return Place(
        rank=node * devices,
        num=num_nodes * devices,
        local_num=devices,
        node=node,
        address=environment["MASTER_ADDR"],
        port=environment.get("MASTER_PORT", DEFAULT_PORT),
    )


@dataclass(kw_only=True)
class Team:
    """This process among the others; alone, nothing is sent to anyone.

    Args:
        place: which one it is.
        control: carries words between the processes, apart from the gradients.
        others: that this process has started.
    """

    place: Place = field(default_factory=Place)
    control: Any = None
    others: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def rank(self) -> int:
        """From 0, the leader's."""
        return self.place.rank

    @property
    def num(self) -> int:
        """Processes in all."""
        return self.place.num

    @property
    def leads(self) -> bool:
        """Whether this process decides."""
        return self.place.rank == 0

    @classmethod
    def join(cls, place: Place, *, device: torch.device | None = None) -> "Team":
        """Meet the other processes, after starting those that this machine lacks.

        Args:
            place: this process's.
            device: gradients of a GPU go by NCCL, of a processor by Gloo.

        Raises:
            TrainingError: they can't be reached.
        """
        if place.num == 1:
            return ALONE
        on_gpu = device is not None and device.type == "cuda"
        others: list[subprocess.Popen[bytes]] = []
        try:
            store = _store(place)
            place = _at_port(place, store)
            os.environ.update(place.variables())
            if not place.is_external and not place.local_rank:
                others = _start_others(place, on_gpu=on_gpu)
            store.set(_here(place.rank), "1")
            _await(others, store, place)
            distributed.init_process_group(
                "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
                store=store,
                rank=place.rank,
                world_size=place.num,
                timeout=PATIENCE,
            )
            control = distributed.new_group(backend="gloo", timeout=PATIENCE)
            return cls(place=place, control=control, others=others)
        except (RuntimeError, OSError) as problem:
            for other in others:
                other.kill()
            raise TrainingError(
                f"process {place.rank + 1} of {place.num} can't reach the others at "
                f"{place.address}:{place.port} ({str(problem).splitlines()[0]}); check MASTER_ADDR "
                "and MASTER_PORT, and GLOO_SOCKET_IFNAME where a machine has several networks"
            ) from None

    def add(self, tensor: torch.Tensor) -> torch.Tensor:
        """Give the sum of a tensor over all processes."""
        if self.num == 1:
            return tensor
        total = tensor.detach().clone()
        distributed.all_reduce(total)
        return total

    def tell(self, word: Any = None) -> Any:
        """Give everyone the leader's word; what the others pass is not looked at."""
        words = [word]
        if self.num > 1:
            distributed.broadcast_object_list(words, src=0, group=self.control)
        return words[0]

    def part(self) -> None:
        """Leave the others, and wait for those that this process started; late ones are ended."""
        if self.num == 1:
            return
        distributed.destroy_process_group()
        for name in self.place.variables():
            if not self.place.is_external:
                os.environ.pop(name, None)
        for other in self.others:
            try:
                other.wait(PARTING_SECONDS)
            except subprocess.TimeoutExpired:
                other.kill()
                other.wait()

    def abandon(self) -> None:
        """End the processes that this one started, where the run has failed."""
        for other in self.others:
            other.kill()

    def environment(self) -> TorchElasticEnvironment:
        """What tells Lightning that the processes are there; it reads torchrun's variables."""
        return TorchElasticEnvironment()


ALONE = Team()


def _store(place: Place) -> Any:
    """Where the processes find each other."""
    if place.is_external and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        leads = False  # torchrun holds it
    else:
        leads = place.rank == 0
    return TCPStore(
        place.address,
        int(place.port),
        world_size=place.num,
        is_master=leads,
        timeout=PATIENCE,
        wait_for_workers=False,
    )


def _at_port(place: Place, store: Any) -> Place:
    if place.port != "0":
        return place
    return Place(**{**vars(place), "port": str(store.port)})


def _here(rank: int) -> str:
    return f"binseg/{rank} is here"


def _await(others: list[subprocess.Popen[bytes]], store: Any, place: Place) -> None:
    """Wait until the processes that this one has started are there; one may die on its way."""
    keys = [_here(place.rank + 1 + index) for index in range(len(others))]
    while keys and not store.check(keys):
        for index, other in enumerate(others):
            if other.poll() is not None:
                raise RuntimeError(
                    f"process {place.rank + 2 + index} ended with exit code {other.returncode} "
                    "before it began"
                )
        time.sleep(0.1)


def _start_others(place: Place, *, on_gpu: bool) -> list[subprocess.Popen[bytes]]:
    """Start this machine's other processes; what they need they hear from the leader."""
    started = []
    for local in range(1, place.local_num):
        theirs = Place(**{**vars(place), "rank": place.rank + local, "local_rank": local})
        started.append(
            subprocess.Popen(  # this Python, and a module of ours
                [sys.executable, "-m", MEMBER_MODULE, "cuda" if on_gpu else "cpu"],
                env={**os.environ, **theirs.variables()},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )
        )
    return started
