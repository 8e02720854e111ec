"""Whether a case's result is right: some query rows of some heads against a float64 softmax over the keys that they keep."""

import numpy as np
import torch

ERROR_FACTOR = 1.1  # of torch's own bf16 error on the same rows and keys
SUMMARY_FACTOR = 1.25  # torch's run has no summaries, whose means are rounded too
WRONG = 0.02  # relative error beyond any rounding: a result that is not worth timing


def _sampled(count, tokens, block):
    """Row numbers: both ends, both sides of a block's edge, and some between."""
    spread = np.linspace(0, tokens - 1, count).astype(int).tolist()
    return sorted({0, 1, block - 1, block, tokens - 1, *spread} & set(range(tokens)))


def _block_means(x, block):
    """[tokens, head_dim] float64 → means of blocks, and tokens per block."""
    padded = torch.nn.functional.pad(x, (0, 0, 0, -len(x) % block))
    counts = torch.full((len(padded) // block,), float(block), dtype=torch.float64, device=x.device)
    counts[-1] = len(x) - (len(counts) - 1) * block
    return padded.view(-1, block, x.shape[1]).sum(1) / counts[:, None], counts


def _torch_row(q, k, v, scale):
    """torch's bf16 attention of one query row."""
    out = torch.nn.functional.scaled_dot_product_attention(q[None, None, None], k[None, None], v[None, None], scale=scale)
    return out[0, 0, 0].double()


def check_case(shape, prepared, summarize, rows_per_head=10):
    """Runs the case over poison. Returns relative errors (ours, torch's), whether they satisfy (`ok`), and whether the result is right
    enough to be timed (`usable`)."""
    shape.out.fill_(float("nan"))
    if prepared["energy"] is not None:
        prepared["energy"].fill_(float("nan"))
    prepared["run"]()
    if shape.out.is_cuda:
        torch.cuda.synchronize()
    anchors, mask, block_k = prepared["anchors"], prepared["mask"], prepared["block_k"]
    unwritten = int(torch.isnan(shape.out).sum())
    num_computed = shape.tokens if anchors is None else len(anchors[0])
    totals = {"ours": 0.0, "torch": 0.0, "exact": 0.0}
    for head in sorted({0, 1, 2, shape.heads // 2, shape.heads - 1} & set(range(shape.heads))):
        k, v = shape.k[0, :, head], shape.v[0, :, head]
        keys, values = k.double(), v.double()
        means = _block_means(keys, block_k) + _block_means(values, block_k)[:1] if summarize else None
        for position in _sampled(rows_per_head, num_computed, 128):
            token = position if anchors is None else int(anchors[0][position])
            query = shape.q[0, token, head]
            logits = keys @ query.double() * shape.scale
            seen = slice(None)
            if mask is not None:
                kept_blocks = torch.from_numpy(mask[head, position // 128].astype(bool)).to(k.device)
                kept = kept_blocks.repeat_interleave(block_k)[: shape.tokens]
                logits[~kept] = -torch.inf
                seen = kept
            rows = values
            if summarize:
                bias = means[0] @ query.double() * shape.scale + means[1].log()
                bias[kept_blocks] = -torch.inf
                logits, rows = torch.cat([logits, bias]), torch.cat([values, means[2]])
            exact = logits.softmax(0) @ rows
            destinations = [token] if anchors is None else np.flatnonzero(anchors[1] == position)[:5].tolist()
            for destination in destinations:
                totals["ours"] += float(((shape.out[0, destination, head].double() - exact) ** 2).sum()) / len(destinations)
            totals["exact"] += float((exact**2).sum())
            reference = exact if not summarize else (logits[: shape.tokens].softmax(0) @ values)
            scale_of_error = float((exact**2).sum()) / float((reference**2).sum())
            torch_error = float(((_torch_row(query, k[seen], v[seen], shape.scale) - reference) ** 2).sum())
            totals["torch"] += torch_error * scale_of_error
    error, torch_error = ((totals[name] / totals["exact"]) ** 0.5 for name in ("ours", "torch"))
    result = {"error": error, "torch_error": torch_error, "unwritten": unwritten}
    result["ok"] = unwritten == 0 and error <= (SUMMARY_FACTOR if summarize else ERROR_FACTOR) * torch_error
    result["usable"] = unwritten == 0 and error <= WRONG
    if anchors is not None:  # every token holds its anchor's row
        source = torch.from_numpy(anchors[0][anchors[1]].astype(np.int64)).to(shape.out.device)
        for head in range(shape.heads):
            result["usable"] &= bool(torch.equal(shape.out[0, :, head], shape.out[0, source, head]))
    if prepared["energy"] is not None:
        result["energy_error"] = _energy_error(shape, prepared["energy"], block_k)
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
