"""The attention kernels on torch tensors, through the C interface of libcalibatt (include/calibatt/c_api.h)."""

import ctypes
from ctypes import POINTER, byref, c_char_p, c_float, c_int32, c_int64, c_size_t, c_void_p

import numpy as np
import torch

DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}


class _Heads(ctypes.Structure):
    _fields_ = [("data", c_void_p), ("batch_stride", c_int64), ("token_stride", c_int64), ("head_stride", c_int64)]


class _Masks(ctypes.Structure):
    _fields_ = (
        [("struct_size", c_size_t)]
        + [(name, c_int32) for name in ("device", "num_heads", "num_queries", "num_keys", "block_q", "block_k")]
        + [("kept", c_void_p), ("summarize_skipped", c_int32), ("anchor_tokens", c_void_p), ("num_anchors", c_int32)]
        + [("anchor_of", c_void_p)]
    )


class _Call(ctypes.Structure):
    _fields_ = (
        [("struct_size", c_size_t), ("device", c_int32), ("dtype", c_int32), ("out_f32", c_int32)]
        + [(name, _Heads) for name in ("q", "k", "v", "out")]
        + [(name, c_int32) for name in ("batch", "num_heads", "head_dim", "num_queries", "num_keys", "block_q", "block_k")]
        + [("scale", c_float), ("schedule", c_void_p), ("block_energy", c_void_p), ("kernel", c_char_p)]
        + [("workspace", c_void_p), ("workspace_bytes", c_size_t), ("stream", c_void_p)]
    )


def _heads(tensor):
    """Of a [batch, tokens, heads, head_dim] tensor."""
    assert tensor.stride(3) == 1
    return _Heads(tensor.data_ptr(), tensor.stride(0), tensor.stride(1), tensor.stride(2))


def _device(tensor):
    return tensor.device.index if tensor.is_cuda else -1


class Library:
    def __init__(self, path):
        lib = self._lib = ctypes.CDLL(str(path))
        call = POINTER(_Call)
        for name, result, arguments in [
            ("calibatt_last_error", c_char_p, []),
            ("calibatt_schedule_make", c_int32, [POINTER(_Masks), POINTER(c_void_p)]),
            ("calibatt_schedule_free", None, [c_void_p]),
            ("calibatt_schedule_bytes", c_int64, [c_void_p]),
            ("calibatt_attention_kernel", c_int32, [call, POINTER(c_char_p), POINTER(c_size_t)]),
            ("calibatt_attention", c_int32, [call]),
        ]:
            function = getattr(lib, name)
            function.restype, function.argtypes = result, arguments

    def check(self, status):
        if status != 0:
            raise RuntimeError(self._lib.calibatt_last_error().decode())

    def make_schedule(self, kept, heads, queries, keys, block_q, block_k, summarize=False, anchors=None, device=0):
        """kept: uint8 numpy [heads, query blocks, key blocks] or None; anchors: (tokens, source_of) as int32 numpy, or None."""

        def pointer(array, dtype):
            if array is None:
                return None
            assert array.dtype == dtype and array.flags.c_contiguous
            return array.ctypes.data

        tokens, source_of = anchors if anchors is not None else (None, None)
        masks = _Masks(
            ctypes.sizeof(_Masks), device, heads, queries, keys, block_q, block_k, pointer(kept, np.uint8), int(summarize),
            pointer(tokens, np.int32), 0 if tokens is None else len(tokens), pointer(source_of, np.int32),
        )  # fmt: skip
        handle = c_void_p()
        self.check(self._lib.calibatt_schedule_make(byref(masks), byref(handle)))
        return Schedule(self, handle)

    def attention(self, q, k, v, out, *, scale, block_q=128, block_k=128, schedule=None, energy=None, kernel=""):
        return Attention(self, q, k, v, out, scale, block_q, block_k, schedule, energy, kernel)


class Schedule:
    def __init__(self, library, handle):
        self._library, self.handle = library, handle

    @property
    def size_bytes(self):
        return self._library._lib.calibatt_schedule_bytes(self.handle)

    def __del__(self):
        self._library._lib.calibatt_schedule_free(self.handle)


class Attention:
    """A prepared call: run() enqueues it on torch's current stream."""

    def __init__(self, library, q, k, v, out, scale, block_q, block_k, schedule, energy, kernel):
        self._library, self._keep = library, (q, k, v, out, schedule, energy)
        self._call = _Call(
            struct_size=ctypes.sizeof(_Call), device=_device(q), dtype=DTYPES[q.dtype],
            out_f32=int(out.dtype == torch.float32), q=_heads(q), k=_heads(k), v=_heads(v), out=_heads(out),
            batch=q.shape[0], num_heads=q.shape[2], head_dim=q.shape[3], num_queries=q.shape[1], num_keys=k.shape[1],
            block_q=block_q, block_k=block_k, scale=scale, schedule=schedule.handle if schedule is not None else None,
            block_energy=energy.data_ptr() if energy is not None else None, kernel=kernel.encode() or None,
        )  # fmt: skip
        name, size = c_char_p(), c_size_t()
        library.check(library._lib.calibatt_attention_kernel(byref(self._call), byref(name), byref(size)))
        self.kernel_name = name.value.decode()
        self._workspace = torch.empty(max(size.value, 1), dtype=torch.uint8, device=q.device)  # torch aligns to 512 bytes
        self._call.workspace, self._call.workspace_bytes = self._workspace.data_ptr(), self._workspace.numel()

    @property
    def workspace_bytes(self):
        return self._workspace.numel()

    def run(self):
        if self._workspace.is_cuda:
            self._call.stream = torch.cuda.current_stream().cuda_stream
        self._library.check(self._library._lib.calibatt_attention(byref(self._call)))
