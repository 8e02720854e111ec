"""Block masks of the benchmark: which (query block, key block) pairs the heads keep, and anchor rows."""

import numpy as np


def blocks(tokens, block):
    return -(-tokens // block)


def make_mask(kind, density, heads, tokens, frame, block_q, block_k, seed=1):
    """uint8 [heads, query blocks, key blocks] of about this density. Kind "mixed": a third of the heads a diagonal band, a third
    stripes at multiples of a frame, a third random; "random": all random. Every query block keeps at least one key block."""
    rng = np.random.default_rng(seed)
    rows, columns = blocks(tokens, block_q), blocks(tokens, block_k)
    middle_q = (np.arange(rows) + 0.5) * block_q
    middle_k = (np.arange(columns) + 0.5) * block_k
    distance = np.abs(middle_q[:, None] - middle_k[None, :])
    to_frame = np.abs((distance + frame / 2) % frame - frame / 2)
    count = round(density * rows * columns)

    def nearest(score):  # ties broken at random, or whole diagonals would come and go
        score = score + rng.random(score.shape) * 1e-3
        return score <= np.partition(score, count - 1, axis=None)[count - 1]

    band, stripes = nearest(distance), nearest(to_frame)
    mask = np.empty((heads, rows, columns), dtype=np.uint8)
    for head in range(heads):
        kind_of_head = head % 3 if kind == "mixed" else 2
        mask[head] = (band, stripes)[kind_of_head] if kind_of_head < 2 else rng.random((rows, columns)) < density
    empty = ~mask.any(axis=2)
    mask[np.nonzero(empty)[0], np.nonzero(empty)[1], 0] = 1
    return mask


def kept_share(mask, tokens, block_q, block_k):
    """Kept (query, key) token pairs over all: the last, partial blocks count as what they are."""
    rows = np.full(mask.shape[1], block_q, dtype=np.float64)
    columns = np.full(mask.shape[2], block_k, dtype=np.float64)
    rows[-1] = tokens - (len(rows) - 1) * block_q
    columns[-1] = tokens - (len(columns) - 1) * block_k
    pairs = np.einsum("hrc,r,c->", mask, rows, columns, optimize=True)
    return float(pairs / (mask.shape[0] * float(tokens) ** 2))


def make_anchors(tokens, frame, rows, kept_rows):
    """(tokens, source_of): evenly spaced rows of each frame are computed, every other row copies its nearest one."""
    width = frame // rows
    centers = ((np.arange(kept_rows) + 0.5) * rows / kept_rows).astype(np.int64)
    nearest = np.abs(np.arange(rows)[:, None] - centers[None, :]).argmin(axis=1)
    position = np.arange(tokens)
    frame_of, row_of, column_of = position // frame, position % frame // width, position % width
    source = (frame_of * kept_rows + nearest[row_of]) * width + column_of
    frames = tokens // frame
    anchors = (np.arange(frames)[:, None, None] * frame + centers[None, :, None] * width + np.arange(width)).reshape(-1)
    return anchors.astype(np.int32), source.astype(np.int32)
