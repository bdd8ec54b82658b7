"""Processes that know of each other: a function in each, or what torchrun tells."""

import multiprocessing
import socket

import torch


def _as_rank(rank, world, folder, function, arguments):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world
    )
    torch.save(function(rank, world, *arguments), folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def in_ranks(world, folder, function, *arguments):
    """What function(rank, world, *arguments) gives in each of the processes."""
    context = multiprocessing.get_context("fork")  # no second import of everything
    folder.mkdir(exist_ok=True)
    processes = [
        context.Process(
            target=_as_rank, args=(rank, world, folder, function, arguments)
        )
        for rank in range(world)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    return [torch.load(folder / f"{rank}.pt") for rank in range(world)]


def as_torchrun(world):
    """The environment of each of the processes, as torchrun makes it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    known = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    known |= {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world)}
    return [
        {**known, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(world)
    ]
