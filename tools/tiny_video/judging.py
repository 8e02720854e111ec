"""The judge in parallel processes. Imports little, because every process imports it."""

from __future__ import annotations

import multiprocessing

import numpy


def judge_file(job: tuple[str, dict]) -> dict:
    from .judge import judge

    path, labels = job
    return judge(numpy.load(path), labels)


def judge_files(jobs: list[tuple[str, dict]], workers: int) -> list[dict]:
    """jobs: (.npy file of uint8 [T, H, W, 3], labels). Processes are spawned: CUDA does not survive a fork."""
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        return pool.map(judge_file, jobs, chunksize=1)
