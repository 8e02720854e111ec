"""Golden data of GGUF files, written and read by the gguf library.

    python tools/golden/ggml_forms.py

Writes tests/golden/data/gguf/: forms.gguf, matrices [3, 512] in every form that is read, of random blocks (Q8_0: of
random numbers), and forms.safetensors, what gguf's own dequantize makes of them; wan.gguf, a transformer of
tests/golden/data/experts as city96's converter lays it out (Wan-AI's names, matrices in Q8_0 where their rows are whole
blocks, else F16 and F32, the patches flattened with their shape noted), and wan.safetensors with its first block's
matrices; umt5.gguf, the text encoder tests/golden/data/t5/square as llama.cpp's converter lays it out, matrices in Q8_0,
and umt5.safetensors, what they hold. Deterministic.
"""

import pathlib

import gguf
import numpy as np
from safetensors.numpy import save_file
from safetensors.torch import load_file

from files import original

ROOT = pathlib.Path(__file__).resolve().parents[2] / "tests/golden/data"
DATA = ROOT / "gguf"
Type = gguf.GGMLQuantizationType


def random_blocks(form, rows, columns, generator):
    """Bytes of any value, but scales that are finite and of a usual size."""
    elements, size = gguf.GGML_QUANT_SIZES[form]
    blocks = generator.integers(0, 256, (rows * columns // elements, size), dtype=np.uint8)
    places = {Type.Q4_K: (0, 2), Type.Q5_K: (0, 2), Type.Q6_K: (208,)}[form]
    for place in places:
        scale = generator.uniform(-0.1, 0.1, len(blocks)).astype(np.float16)
        blocks[:, place : place + 2] = scale.view(np.uint8).reshape(-1, 2)
    return blocks.reshape(rows, -1)


def make_forms(generator):
    writer = gguf.GGUFWriter(DATA / "forms.gguf", "wan")
    writer.add_array("a.nested.list", ["x", "yz"])
    expected = {}
    for form in (Type.Q8_0, Type.Q4_K, Type.Q5_K, Type.Q6_K):
        if form == Type.Q8_0:
            stored = gguf.quants.quantize(generator.normal(size=(3, 512)).astype(np.float32), form)
        else:
            stored = random_blocks(form, 3, 512, generator)
        writer.add_tensor(form.name, stored, raw_dtype=form)
        expected[form.name] = gguf.quants.dequantize(stored, form)
    values = generator.normal(size=(3, 512)).astype(np.float32)
    writer.add_tensor("F32", values)
    writer.add_tensor("F16", values.astype(np.float16))
    expected |= {"F32": values, "F16": values.astype(np.float16).astype(np.float32)}
    close(writer)
    save_file(expected, DATA / "forms.safetensors")


def make_wan():
    writer = gguf.GGUFWriter(DATA / "wan.gguf", "wan")
    expected = {}
    for name, tensor in load_file(ROOT / "experts/transformer/diffusion_pytorch_model.safetensors").items():
        values, theirs = tensor.float().numpy(), original(name)
        if values.ndim > 4:
            writer.add_array(f"comfy.gguf.orig_shape.{theirs}", [int(extent) for extent in values.shape])
            values = values.reshape(values.shape[0], -1)
        is_matrix = name.startswith("blocks.") and values.ndim == 2 and values.shape[1] > 1
        if is_matrix and values.shape[1] % 32 == 0:
            stored = gguf.quants.quantize(values, Type.Q8_0)
            writer.add_tensor(theirs, stored, raw_dtype=Type.Q8_0)
            values = gguf.quants.dequantize(stored, Type.Q8_0)
        elif is_matrix:
            writer.add_tensor(theirs, values.astype(np.float16))
            values = values.astype(np.float16).astype(np.float32)
        else:
            writer.add_tensor(theirs, np.ascontiguousarray(values))
        if is_matrix and name.startswith("blocks.0."):
            expected[name] = np.ascontiguousarray(values)
    close(writer)
    save_file(expected, DATA / "wan.safetensors")


# llama.cpp's names (gguf-py, tensor_mapping.py) of an encoder block's layers.
T5_BLOCK = {"layer.0.layer_norm": "attn_norm", "layer.0.SelfAttention.q": "attn_q", "layer.0.SelfAttention.k": "attn_k",
            "layer.0.SelfAttention.v": "attn_v", "layer.0.SelfAttention.o": "attn_o",
            "layer.0.SelfAttention.relative_attention_bias": "attn_rel_b", "layer.1.layer_norm": "ffn_norm",
            "layer.1.DenseReluDense.wi_0": "ffn_gate", "layer.1.DenseReluDense.wi_1": "ffn_up",
            "layer.1.DenseReluDense.wo": "ffn_down"}  # fmt: skip


def make_umt5():
    writer = gguf.GGUFWriter(DATA / "umt5.gguf", "t5encoder")
    expected = {}
    for name, tensor in load_file(ROOT / "t5/square/model.safetensors").items():
        if name == "encoder.embed_tokens.weight":
            continue
        values = tensor.float().numpy()
        if name.startswith("encoder.block."):
            _, _, block, layer = name.removesuffix(".weight").split(".", 3)
            theirs = f"enc.blk.{block}.{T5_BLOCK[layer]}.weight"
        else:
            theirs = {"shared.weight": "token_embd.weight", "encoder.final_layer_norm.weight": "enc.output_norm.weight"}[name]
        if values.ndim == 2 and "rel_b" not in theirs:
            stored = gguf.quants.quantize(values, Type.Q8_0)
            writer.add_tensor(theirs, stored, raw_dtype=Type.Q8_0)
            expected[name] = gguf.quants.dequantize(stored, Type.Q8_0)
        else:
            writer.add_tensor(theirs, values)
            expected[name] = values
    close(writer)
    save_file(expected, DATA / "umt5.safetensors")


def close(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main():
    DATA.mkdir(parents=True, exist_ok=True)
    make_forms(np.random.default_rng(5))
    make_wan()
    make_umt5()


if __name__ == "__main__":
    main()
