"""What the fast transformers share: compiling block by block, and choosing an attention kernel by its speed."""

from __future__ import annotations

from collections.abc import Callable

import torch


def compile_blocks(blocks) -> None:
    """One compilation per shape serves all blocks of a kind."""
    torch._dynamo.config.automatic_dynamic_shapes = False
    torch._dynamo.config.recompile_limit = 64
    for block in blocks:
        block.compile()


def eager(function, *arguments):
    """Calls without compiled code: other batch sizes and inference would be compiled anew."""
    with torch.compiler.set_stance("force_eager"):
        return function(*arguments)


def fastest(candidates: dict[str, Callable[[], torch.Tensor]]) -> str:
    """The name of the call that is fastest, forward and backward, on the GPU; one that fails takes no part."""
    times = {}
    for name, call in candidates.items():
        try:
            for repeat in range(6):
                if repeat == 2:
                    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
                    begin.record()
                output = call()
                output.backward(torch.ones_like(output))
            end.record()
            torch.cuda.synchronize()
            times[name] = begin.elapsed_time(end) / 4
        except RuntimeError as error:
            print(f"attention {name}: {str(error).splitlines()[0]}", flush=True)
            times[name] = float("inf")
    print("attention, ms forward and backward:", {k: round(v, 2) for k, v in times.items()}, flush=True)
    return min(times, key=times.get)
