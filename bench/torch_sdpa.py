"""torch's CPU scaled_dot_product_attention, computed when a line on standard input asks for it (see torch_process.h).

Arguments: number of threads, folder for tensors. Requests: `version`; `load NAME DTYPE HEADS TOKENS HEAD_DIM` (reads q, k and v
from the folder, writes the output as float32); `run CLOCK NAME` (answers the seconds of one
call: on the wall, or of processor time over threads).
"""

import sys
import time

import torch


def main():
    threads, folder = int(sys.argv[1]), sys.argv[2]
    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    attention = torch.nn.functional.scaled_dot_product_attention
    inputs = {}
    for line in sys.stdin:
        request, *arguments = line.split()
        try:
            if request == "version":
                answer = torch.__version__
            elif request == "load":
                name, dtype, *shape = arguments
                shape = [1, *map(int, shape)]
                count = shape[1] * shape[2] * shape[3]
                tensors = [
                    torch.from_file(f"{folder}/{part}", size=count, dtype=getattr(torch, dtype)).view(shape).clone()
                    for part in ("q", "k", "v")
                ]
                inputs[name] = tensors
                with open(f"{folder}/out", "wb") as file:
                    file.write(attention(*tensors).float().contiguous().numpy().tobytes())
                answer = "loaded"
            else:
                clock, name = arguments
                tensors = inputs[name]
                now = time.perf_counter if clock == "wall" else lambda: time.process_time() / threads
                start = now()
                attention(*tensors)
                answer = str(now() - start)
        except Exception as error:  # the asking process reports it
            answer = "error " + " ".join(str(error).split())
        print(answer, flush=True)


main()
