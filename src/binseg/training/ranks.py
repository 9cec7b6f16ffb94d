"""The rank of this process among those that train one network, and who else there is."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment

from binseg.config.recipe import Recipe
from binseg.errors import UsageError
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
    """Give the rank of a machine's first process, which will start the others there.

    NODE_RANK, MASTER_ADDR and MASTER_PORT tell several machines apart; UsageError without.
    """
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
