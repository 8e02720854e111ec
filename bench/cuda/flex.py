"""FlexAttention on the benchmark's block masks."""

import torch


def flex_runner(q, k, v, mask, block_k):
    """mask: uint8 [heads, query blocks, key blocks], query blocks of 128 tokens. Compiles on the first run."""
    from torch.nn.attention.flex_attention import BlockMask, flex_attention

    kept = torch.from_numpy(mask.astype(bool)).to(q.device)[None]
    counts = kept.sum(-1).to(torch.int32)
    indices = torch.argsort(kept.to(torch.int8), dim=-1, descending=True, stable=True).to(torch.int32)
    tokens = q.shape[1]
    # Kept blocks are whole, but for the last one of the sequence, which flex masks by itself.
    block_mask = BlockMask.from_kv_blocks(
        torch.zeros_like(counts), torch.zeros_like(indices), counts, indices, BLOCK_SIZE=(128, block_k), seq_lengths=(tokens, tokens)
    )
    compiled = torch.compile(flex_attention, dynamic=False)
    queries, keys, values = (x.transpose(1, 2) for x in (q, k, v))
    return lambda: compiled(queries, keys, values, block_mask=block_mask)
