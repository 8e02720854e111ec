#!/usr/bin/env python3
"""How many bits a block of a plan's masks takes in several representations, each compressed with zstd, one section per (entry, layer):
the measurements behind docs/decisions/0002-plan-at-scale.md.

    python3 tools/plan_representations.py plan.safetensors …

  version 1   intervals as pairs of the narrowest integers, not compressed
  gaps        distances from one end of an interval to the next, as bytes
  rows        a bit per block, rows of whole bytes
  ⊕ above     rows, each exclusive-or the row above; "shifted": moved by the columns that a diagonal moves per row
  ⊕ previous  rows, each exclusive-or the same row of the entry before (the first entry as it is)
  version 2   each head by the filter of least byte entropy, every eighth entry without "previous"
  entropy     of independent blocks of this density: no representation of random masks takes less
"""
import ctypes
import math
import sys
from collections import Counter

import plan_reader

LEVEL = 3


def compressed_size(content):
    library = ctypes.CDLL("libzstd.so.1")
    library.ZSTD_compressBound.restype = library.ZSTD_compress.restype = ctypes.c_size_t
    room = library.ZSTD_compressBound(ctypes.c_size_t(len(content)))
    buffer = ctypes.create_string_buffer(room)
    return library.ZSTD_compress(buffer, ctypes.c_size_t(room), content, ctypes.c_size_t(len(content)), LEVEL)


def byte_entropy(content):
    return sum(count * math.log2(len(content) / count) for count in Counter(content).values())


def measure(plan):
    columns, geometry = plan.num_key_blocks, plan.geometry
    row_bytes, all_columns = -(-columns // 8), (1 << columns) - 1
    shift = min(7, round(geometry["block_q"] / geometry["block_k"]))
    names = ["version 1", "gaps", "rows", "⊕ above", "⊕ above, shifted", "⊕ previous", "version 2"]
    sizes, num_blocks, num_kept = dict.fromkeys(names, 0), 0, 0

    def packed(rows):
        return b"".join(row.to_bytes(row_bytes, "little") for row in rows)

    for layer in range(plan.num_layers):
        previous = {}
        for entry in range(plan.num_entries):
            content, present = {name: [] for name in names}, {}
            for head in range(plan.num_heads):
                if not plan.kind(entry, layer, head) & plan_reader.HAS_INTERVALS:
                    continue
                intervals = plan.intervals(entry, layer, head)
                rows = [sum((1 << end) - (1 << begin) for begin, end in row) for row in intervals]
                present[head] = rows
                num_blocks += len(rows) * columns
                num_kept += sum(end - begin for row in intervals for begin, end in row)
                width = 1 if columns < 256 else 2
                sizes["version 1"] += sum(2 * width * len(row) + 1 for row in intervals)
                for row in intervals:
                    last = 0
                    for begin, end in row:
                        content["gaps"] += [gap.to_bytes(width, "little") for gap in (begin - last, end - begin)]
                        last = end
                    content["gaps"].append(b"\xff" * width)
                candidates = {"rows": packed(rows)}
                for name, columns_moved in (("⊕ above", 0), ("⊕ above, shifted", shift)):
                    moved = [(row << columns_moved) & all_columns for row in rows]
                    candidates[name] = packed([rows[0]] + [row ^ above for row, above in zip(rows[1:], moved)])
                before = previous.get(head, ())
                has_previous = len(before) == len(rows)
                candidates["⊕ previous"] = packed([a ^ b for a, b in zip(rows, before)]) if has_previous else candidates["rows"]
                for name, value in candidates.items():
                    content[name].append(value)
                if entry % 8 == 0:
                    del candidates["⊕ previous"]
                content["version 2"].append(min(candidates.values(), key=byte_entropy))
            previous = present
            for name in names[1:]:
                sizes[name] += compressed_size(b"".join(content[name])) if content[name] else 0
    density = num_kept / num_blocks
    entropy = -sum(p * math.log2(p) for p in (density, 1 - density) if p > 0)
    return density, entropy, {name: 8 * size / num_blocks for name, size in sizes.items()}


def main():
    for path in sys.argv[1:]:
        density, entropy, bits = measure(plan_reader.read_plan(path))
        print(f"{path}: density {density:.3f}, entropy {entropy:.3f}; " + ", ".join(f"{k} {v:.3f}" for k, v in bits.items()))


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main()
