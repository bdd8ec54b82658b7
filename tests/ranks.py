"""Runs a function in several processes that know of each other."""

import multiprocessing

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
