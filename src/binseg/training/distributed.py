"""The ranks that train one network: who they are, how they meet, and what they tell each other.

torchrun or SLURM start all of them; else the first rank of each machine starts the others there, as
`binseg train` with torchrun's variables. Between ranks there are tensors and JSON, no pickles.
Ranks of one machine meet on its loopback address alone.
"""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from datetime import timedelta
from signal import SIG_DFL
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning_fabric.strategies.ddp import DDPStrategy
from torch import distributed, nn
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # missing from its stubs

from binseg.config.recipe import Recipe
from binseg.errors import TrainingError, UsageError
from binseg.parallel import heard
from binseg.progress import hushed
from binseg.training.devices import resolve_device

LOOPBACK = "127.0.0.1"
DEFAULT_PORT = 29500  # port of rank 0 where several machines train and none is given: torchrun's


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """This process among all that train one network, in torch's terms."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0  # on this machine
    local_world_size: int = 1
    node_rank: int = 0  # number of this machine
    address: str = LOOPBACK  # address at which rank 0 listens
    port: int = 0  # there; 0 is any free one
    is_external: bool = False
    """True if torchrun or SLURM started all processes; else each machine starts its own."""

    @property
    def is_one_machine(self) -> bool:
        """Return True if all ranks are on this machine."""
        return self.world_size == self.local_world_size

    def variables(self) -> dict[str, str]:
        """The environment by which torch and Fabric know the ranks: torchrun's."""
        return {
            "RANK": str(self.rank),
            "WORLD_SIZE": str(self.world_size),
            "LOCAL_RANK": str(self.local_rank),
            "LOCAL_WORLD_SIZE": str(self.local_world_size),
            "GROUP_RANK": str(self.node_rank),
            "MASTER_ADDR": self.address,
            "MASTER_PORT": str(self.port),
        }


def started_ranks(environment: Mapping[str, str] = os.environ) -> Ranks | None:
    """Tell which rank this is where torchrun, SLURM's srun or rank 0 started several; else None."""
    get = environment.get
    if "RANK" in environment and int(get("WORLD_SIZE", "1")) > 1:
        rank, local = int(environment["RANK"]), int(get("LOCAL_WORLD_SIZE", "1"))
        return Ranks(
            rank=rank,
            world_size=int(environment["WORLD_SIZE"]),
            local_rank=int(get("LOCAL_RANK", rank % local)),
            local_world_size=local,
            node_rank=int(get("GROUP_RANK", rank // local)),
            address=get("MASTER_ADDR", LOOPBACK),
            port=int(get("MASTER_PORT", DEFAULT_PORT)),
            is_external=True,
        )
    # Only srun sets the number of its own tasks; a batch script has SLURM_NTASKS without them.
    num = int(get("SLURM_STEP_NUM_TASKS", "1"))
    if num <= 1 or "SLURM_PROCID" not in environment:
        return None
    nodes = int(get("SLURM_STEP_NUM_NODES", "1"))
    first = SLURMEnvironment.resolve_root_node_address(get("SLURM_STEP_NODELIST", LOOPBACK))
    return Ranks(
        rank=int(environment["SLURM_PROCID"]),
        world_size=num,
        local_rank=int(environment["SLURM_LOCALID"]),
        local_world_size=num // nodes,
        node_rank=int(get("SLURM_NODEID", "0")),
        address=get("MASTER_ADDR") or (LOOPBACK if nodes == 1 else first),
        port=int(get("MASTER_PORT", 15000 + int(get("SLURM_JOB_ID", "0")[-4:]))),
        is_external=True,
    )


def planned_ranks(
    devices: int, num_nodes: int, environment: Mapping[str, str] = os.environ
) -> Ranks:
    """Give the rank of a machine's first process; UsageError without NODE_RANK, MASTER_ADDR."""
    if num_nodes == 1:
        return Ranks(world_size=devices, local_world_size=devices)
    if "NODE_RANK" not in environment or "MASTER_ADDR" not in environment:
        raise UsageError(
            f"{num_nodes} machines must know each other: run the same command on each, with "
            "NODE_RANK=0, 1, ... and MASTER_ADDR=address of the first one; or use torchrun or srun"
        )
    node = int(environment["NODE_RANK"])
    if not 0 <= node < num_nodes:
        raise UsageError(f"NODE_RANK is {node}; of {num_nodes} machines it is 0 to {num_nodes - 1}")
    return Ranks(
        rank=node * devices,
        world_size=num_nodes * devices,
        local_world_size=devices,
        node_rank=node,
        address=environment["MASTER_ADDR"],
        port=int(environment.get("MASTER_PORT", DEFAULT_PORT)),
    )


def ranks_of(recipe: Recipe) -> Ranks:
    """Tell which rank this process is; UsageError if devices, processes and GPUs don't agree."""
    devices, nodes = recipe.train.devices, recipe.train.num_nodes
    device = resolve_device(recipe.train.device)
    gpus = torch.cuda.device_count() if device.type == "cuda" else None
    ranks = started_ranks()
    if ranks is not None:
        asked = (ranks.local_world_size if devices == "auto" else devices) * nodes
        if asked not in {1, ranks.world_size}:
            raise UsageError(
                f"train.devices and train.num_nodes ask for {asked} processes, but "
                f"{ranks.world_size} were started; leave both out, and what started them decides"
            )
    else:
        ranks = planned_ranks((gpus or 1) if devices == "auto" else devices, nodes)
    if gpus is not None and ranks.local_world_size > gpus:
        raise UsageError(
            f"train.devices is {ranks.local_world_size}, but this machine has {gpus} GPUs"
        )
    if ranks.world_size > recipe.train.batch_size:
        raise UsageError(
            f"{ranks.world_size} processes can't share batches of {recipe.train.batch_size}; raise "
            "train.batch_size, which is that of all processes together"
        )
    return ranks


PATIENCE = timedelta(days=1)
"""Others wait while rank 0 reads images and validates; a dead process is known at once."""
PARTING_SECONDS = 30.0
HERE = "binseg/{} is here"  # the key by which a rank tells that it has come
THIRD_PARTY_WARNINGS: tuple[tuple[str, type[Warning]], ...] = (
    # A recipe's number of loader processes may exceed a small machine's cores; the run is the same.
    ("This DataLoader will create", UserWarning),
    # Python 3.12 warns of any fork beside threads; loader processes only index arrays.
    (".*use of fork\\(\\) may lead to deadlocks", DeprecationWarning),
    # A 1x1 convolution's weights lie alike in memory, channels last or not; torch can't tell.
    (".*Grad strides do not match bucket view strides", UserWarning),
)


def rank_device(asked: str, ranks: Ranks) -> torch.device:
    """Give the device of a rank for `auto`, `cpu`, `cuda` or `mps`, and make it torch's own."""
    device = resolve_device(asked)
    if device.type == "cuda" and ranks.world_size > 1:
        torch.cuda.set_device(ranks.local_rank)
        return torch.device("cuda", ranks.local_rank)
    return device


@dataclass(kw_only=True)
class ProcessGroup:
    """This rank among the others; where it is alone, nothing is sent to anyone."""

    ranks: Ranks = field(default_factory=Ranks)
    children: list[subprocess.Popen[bytes]] = field(default_factory=list)
    """Processes that this one has started."""

    def __post_init__(self) -> None:
        self.rank, self.world_size = self.ranks.rank, self.ranks.world_size
        self.is_first = self.rank == 0  # True for rank 0, which validates, writes and prints

    def share(self, data: bytes = b"") -> bytes:
        """Give every rank the bytes of rank 0."""
        if self.world_size == 1:
            return data
        size = torch.tensor([len(data)])
        distributed.broadcast(size, src=0)
        sent = bytearray(data) if self.is_first else bytearray(int(size))
        if sent:
            distributed.broadcast(torch.frombuffer(sent, dtype=torch.uint8), src=0)
        return bytes(sent)

    def share_json(self, value: Any = None) -> Any:
        """Give every rank a value of rank 0, by way of JSON."""
        return value if self.world_size == 1 else json.loads(self.share(json.dumps(value).encode()))

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Add up a tensor over all ranks."""
        if self.world_size == 1:
            return tensor
        total = tensor.detach().clone()
        distributed.all_reduce(total)
        return total

    def agree(self, stop: int, of_first: tuple[float, ...]) -> tuple[int, tuple[float, ...]]:
        """Give all ranks one view: the numbers of rank 0 (none below 0), and any signal to stop."""
        if self.world_size == 1:
            return stop, of_first
        own = of_first if self.is_first else (0.0,) * len(of_first)
        told = torch.tensor([float(stop), *own], dtype=torch.float64)
        distributed.all_reduce(told, op=distributed.ReduceOp.MAX)
        number, *others = told.tolist()
        return int(number), tuple(others)

    def fabric(self, device: torch.device) -> Fabric:
        """Build what places and wraps the network; its autocast would round the network's input."""
        kind = device.type
        if self.world_size == 1:
            # Alone, whatever a batch script of SLURM's sets: Fabric would look for the others.
            alone: Any = 1 if device.type == "cpu" else [device.index]
            fabric = Fabric(accelerator=kind, devices=alone, plugins=[LightningEnvironment()])
        else:
            backend, env = _backend(device), TorchElasticEnvironment()
            strategy = DDPStrategy(cluster_environment=env, process_group_backend=backend)
            devices = self.ranks.local_world_size
            nodes = self.world_size // devices
            fabric = Fabric(accelerator=kind, devices=devices, num_nodes=nodes, strategy=strategy)
            # Else Fabric chooses a number of threads of its own.
            os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))
        fabric.launch()
        return fabric

    def synchronised(self, model: nn.Module, device: torch.device) -> nn.Module:
        """Let batch norm learn from the whole batch: torch can do that on GPUs alone."""
        if self.world_size == 1 or device.type != "cuda":
            return model
        converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        return converted

    def leave(self) -> None:
        """Leave the others, and wait for those that this process started; late ones are ended."""
        distributed.destroy_process_group()
        for child in self.children:
            try:
                child.wait(PARTING_SECONDS)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


ALONE = ProcessGroup()


@contextmanager
def process_group(ranks: Ranks, device: torch.device) -> Iterator[ProcessGroup]:
    """Meet the other ranks, started here where they lack, and part; else TrainingError."""
    if ranks.world_size == 1:
        yield ALONE
        return
    with _share_of_cores(ranks):
        group = _join(ranks, device)
        try:
            yield group
        except BaseException:
            for child in group.children:  # the run has ended: nothing of theirs is worth keeping
                child.kill()
            raise
        finally:
            group.leave()


def _join(ranks: Ranks, device: torch.device) -> ProcessGroup:
    if ranks.is_one_machine:
        loopback = next((name for _, name in socket.if_nameindex() if name[:2] == "lo"), "lo")
        for library in ("GLOO", "NCCL"):
            os.environ.setdefault(f"{library}_SOCKET_IFNAME", loopback)
    children: list[subprocess.Popen[bytes]] = []
    try:
        # Rank 0 may never come, having failed, and torch's waiting hears nothing.
        with heard(SIG_DFL) if ranks.rank > 0 else nullcontext():
            store, ranks = _meeting_place(ranks)
            os.environ.update(ranks.variables())
            if not ranks.is_external and ranks.local_rank == 0:
                children = _start_others(ranks, device)
            store.set(HERE.format(ranks.rank), "1")
            _await(children, store, ranks)
            place: Any = {"store": store, "rank": ranks.rank, "world_size": ranks.world_size}
            distributed.init_process_group(_backend(device), timeout=PATIENCE, **place)
    except (RuntimeError, OSError) as problem:
        for child in children:
            child.kill()
        raise TrainingError(
            f"process {ranks.rank + 1} of {ranks.world_size} can't reach the others at "
            f"{ranks.address}:{ranks.port} ({str(problem).splitlines()[0]}); check MASTER_ADDR "
            "and MASTER_PORT, and GLOO_SOCKET_IFNAME where a machine has several networks"
        ) from None
    return ProcessGroup(ranks=ranks, children=children)


def _backend(device: torch.device) -> str:
    return "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"


def _meeting_place(ranks: Ranks) -> tuple[Any, Ranks]:
    """Open, or find, the store in which the ranks meet; rank 0 holds it unless torchrun does."""
    holds = ranks.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    listening: dict[str, Any] = {}
    if holds and ranks.address in {LOOPBACK, "localhost"}:  # torch would listen to all networks
        listener = socket.create_server((LOOPBACK, ranks.port))
        ranks = replace(ranks, port=listener.getsockname()[1])
        listening = {"master_listen_fd": listener.detach()}
    store = TCPStore(
        ranks.address,
        ranks.port,
        world_size=ranks.world_size,
        is_master=holds,
        timeout=PATIENCE,
        wait_for_workers=False,
        **listening,
    )
    return store, replace(ranks, port=store.port)


def _start_others(ranks: Ranks, device: torch.device) -> list[subprocess.Popen[bytes]]:
    """Start this machine's other ranks; what they train on they hear from rank 0."""
    started, none = [], subprocess.DEVNULL
    command = [sys.executable, "-m", "binseg", "train", "--device", device.type]
    for local in range(1, ranks.local_world_size):
        theirs = replace(ranks, rank=ranks.rank + local, local_rank=local)
        environment = {**os.environ, **theirs.variables()}
        started.append(subprocess.Popen(command, env=environment, stdin=none, stdout=none))
    return started


def _await(children: list[subprocess.Popen[bytes]], store: Any, ranks: Ranks) -> None:
    """Wait until the ranks that this one has started are there; one may die on its way."""
    keys = [HERE.format(ranks.rank + 1 + index) for index in range(len(children))]
    while keys and not store.check(keys):
        for index, child in enumerate(children):
            if child.poll() is not None:
                told = f"ended with exit code {child.returncode} before it began"
                raise RuntimeError(f"process {ranks.rank + 2 + index} {told}")
        time.sleep(0.1)


@contextmanager
def _share_of_cores(ranks: Ranks) -> Iterator[None]:
    """Use this rank's share of the machine's cores; at the end all is as it was."""
    threads, variables = torch.get_num_threads(), dict(os.environ)
    torch.set_num_threads(max(1, threads // ranks.local_world_size))
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        for name in os.environ.keys() - variables.keys():
            del os.environ[name]
        os.environ.update(variables)


def quiet() -> AbstractContextManager[None]:
    """Silence what Fabric and torch tell people who write training loops."""
    return hushed("lightning_fabric", *THIRD_PARTY_WARNINGS)
