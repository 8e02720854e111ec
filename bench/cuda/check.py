"""Whether a case's result is right: some query blocks of some heads against a float64 softmax over the keys that they keep."""

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

ERROR_FACTOR = 1.1  # of torch's own bf16 error on the same rows and keys
WRONG = 0.02  # relative error beyond any rounding: a result that is not worth timing
BLOCK = 128  # query rows


def _block_means(x, block):
    """[tokens, head_dim] → float64 means of blocks, and tokens per block."""
    padded = torch.nn.functional.pad(x.double(), (0, 0, 0, -len(x) % block))
    counts = torch.full((len(padded) // block,), float(block), dtype=torch.float64, device=x.device)
    counts[-1] = len(x) - (len(counts) - 1) * block
    return padded.view(-1, block, x.shape[1]).sum(1) / counts[:, None], counts


def _torch_errors(q, k, v, scale, exact):
    """Squared errors of torch's kernels in the inputs' precision, by name: FlashAttention-2 and cuDNN (each where it takes the call)."""
    errors = {}
    for name in ("FLASH_ATTENTION", "CUDNN_ATTENTION"):
        try:
            with sdpa_kernel(getattr(SDPBackend, name)):
                out = torch.nn.functional.scaled_dot_product_attention(q[None, None], k[None, None], v[None, None], scale=scale)
        except RuntimeError:
            continue
        errors[name] = float(((out[0, 0].double() - exact) ** 2).sum())
    return errors


def _block_of(shape, prepared, summarize, head, first, last):
    """Of query positions first … last: their tokens, the exact result, and the keys and values that give torch the same task. A
    skipped block's summary counts as often as the block has tokens: for torch, each of its keys is replaced by the rounded mean."""
    anchors, mask, block_k = prepared["anchors"], prepared["mask"], prepared["block_k"]
    k, v = shape.k[0, :, head], shape.v[0, :, head]
    tokens = torch.arange(first, last, device=k.device) if anchors is None else torch.from_numpy(anchors[0][first:last]).long().to(k.device)
    keys, values, bias = k.double(), v.double(), torch.zeros(shape.tokens, dtype=torch.float64, device=k.device)
    if mask is not None:
        kept_blocks = torch.from_numpy(mask[head, first // BLOCK].astype(bool)).to(k.device)
        kept = kept_blocks.repeat_interleave(block_k)[: shape.tokens]
        bias[~kept] = -torch.inf
        if summarize:
            (mean_k, counts), (mean_v, _) = _block_means(k, block_k), _block_means(v, block_k)
            summary_bias = counts.log()
            summary_bias[kept_blocks] = -torch.inf
            keys, values, bias = torch.cat([keys, mean_k]), torch.cat([values, mean_v]), torch.cat([bias, summary_bias])
            block_of_key = torch.arange(shape.tokens, device=k.device) // block_k
            k, v = (torch.where(kept[:, None], x, mean.to(x.dtype)[block_of_key]) for x, mean in ((k, mean_k), (v, mean_v)))
        else:
            k, v = k[kept], v[kept]
    logits = shape.q[0, tokens, head].double() @ keys.T * shape.scale + bias
    return tokens, logits.softmax(1) @ values, k, v


def check_case(shape, prepared, summarize, max_error=None):
    """Runs the case over poison. Returns relative errors (ours, and that of torch's most precise kernel), whether they satisfy (`ok`:
    at most max_error where a case sets one, as those in 8 bits do), and whether the result is right enough to be timed (`usable`)."""
    shape.out.fill_(float("nan"))
    if prepared["energy"] is not None:
        prepared["energy"].fill_(float("nan"))
    prepared["run"]()
    if shape.out.is_cuda:
        torch.cuda.synchronize()
    anchors = prepared["anchors"]
    unwritten = int(torch.isnan(shape.out).sum())
    num_computed = shape.tokens if anchors is None else len(anchors[0])
    num_blocks = -(-num_computed // BLOCK)
    exact_total, ours, torchs = 0.0, 0.0, {}
    for head in sorted({0, 1, 2, shape.heads // 2, shape.heads - 1} & set(range(shape.heads))):
        for block in sorted({0, num_blocks // 3, num_blocks - 2, num_blocks - 1} & set(range(num_blocks))):
            first, last = block * BLOCK, min(num_computed, (block + 1) * BLOCK)
            tokens, exact, k, v = _block_of(shape, prepared, summarize, head, first, last)
            ours += float(((shape.out[0, tokens, head].double() - exact) ** 2).sum())
            exact_total += float((exact**2).sum())
            for name, error in _torch_errors(shape.q[0, tokens, head], k, v, shape.scale, exact).items():
                torchs[name] = torchs.get(name, 0.0) + error
    error = (ours / exact_total) ** 0.5
    torchs = {name: (each / exact_total) ** 0.5 for name, each in torchs.items()}
    result = {"error": error, "torch_error": min(torchs.values()), "torch_errors": torchs, "unwritten": unwritten}
    result["ok"] = unwritten == 0 and error <= (max_error or ERROR_FACTOR * result["torch_error"])
    result["usable"] = unwritten == 0 and error <= max(WRONG, 2 * (max_error or 0))
    if anchors is not None:  # every token holds its anchor's row
        source = torch.from_numpy(anchors[0][anchors[1]].astype(np.int64)).to(shape.out.device)
        for head in range(shape.heads):
            result["usable"] &= bool(torch.equal(shape.out[0, :, head], shape.out[0, source, head]))
    if prepared["energy"] is not None:
        result["energy_error"] = _energy_error(shape, prepared["energy"], block_k=prepared["block_k"])
        result["ok"] &= result["energy_error"] < 1e-4
        result["usable"] &= result["energy_error"] < 1e-2
    result["ok"] &= result["usable"]
    if not result["usable"]:
        result["reason"] = f"wrong: {result}"
    return result


def _energy_error(shape, energy, block_k):
    """Relative L2 error of some rows of the block energy; infinite when any of it was not written."""
    if bool(torch.isnan(energy).any()):
        return float("inf")
    difference = total = 0.0
    for head, block in [(0, 0), (1 % shape.heads, energy.shape[2] // 2), (shape.heads - 1, energy.shape[2] - 1)]:
        queries = shape.q[0, block * 128 : (block + 1) * 128, head].double()
        weights = (queries @ shape.k[0, :, head].double().T * shape.scale).softmax(1)
        exact = torch.nn.functional.pad(weights, (0, -shape.tokens % block_k)).view(len(queries), -1, block_k).sum(2).mean(0)
        difference += float(((energy[0, head, block].double() - exact) ** 2).sum())
        total += float((exact**2).sum())
    return (difference / total) ** 0.5
