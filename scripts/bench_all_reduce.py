#!/usr/bin/env python3
"""Times the sum of float32 numbers over ranks with Gloo, the engine that vigdet's ranks use. For torchrun:

    torchrun --nproc-per-node 2 scripts/bench_all_reduce.py 1 19186708
"""
import sys
import time

import torch
import torch.distributed as dist

PIECE = 8 << 20  # vigdet's, in numbers
ROUNDS = 6


def main():
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    for count in map(int, sys.argv[1:]):
        numbers = torch.ones(count)
        seconds = []
        for _ in range(ROUNDS):
            dist.barrier()
            start = time.perf_counter()
            for work in [dist.all_reduce(piece, async_op=True) for piece in numbers.split(PIECE)]:
                work.wait()
            seconds.append(time.perf_counter() - start)
            numbers.fill_(1)
        if dist.get_rank() == 0:
            print(f"{dist.get_world_size()} ranks, {count} numbers: best {min(seconds):.4f} s, "
                  f"median {sorted(seconds)[ROUNDS // 2]:.4f} s")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
