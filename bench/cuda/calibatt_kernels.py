"""The CUDA attention kernels on torch tensors, through libcalibatt_attention_bench.so (attention_bench.h)."""

import ctypes
from ctypes import POINTER, byref, c_char_p, c_float, c_int32, c_int64, c_void_p

import numpy as np
import torch


class _Heads(ctypes.Structure):
    _fields_ = [("data", c_void_p), ("batch_stride", c_int64), ("token_stride", c_int64), ("head_stride", c_int64)]


class _Call(ctypes.Structure):
    _fields_ = (
        [(name, _Heads) for name in ("q", "k", "v", "out")]
        + [(name, c_int32) for name in ("is_fp16", "out_f32", "batch", "num_heads", "head_dim", "num_queries", "num_keys")]
        + [("block_q", c_int32), ("block_k", c_int32), ("scale", c_float), ("block_energy", c_void_p), ("schedule", c_void_p)]
    )


def _heads(tensor):
    """Of a [batch, tokens, heads, head_dim] tensor."""
    assert tensor.stride(3) == 1
    return _Heads(tensor.data_ptr(), tensor.stride(0), tensor.stride(1), tensor.stride(2))


class Library:
    def __init__(self, path):
        lib = self._lib = ctypes.CDLL(str(path))
        call = POINTER(_Call)
        for name, result, arguments in [
            ("calibatt_error", c_char_p, []),
            ("calibatt_make_schedule", c_void_p, [c_void_p] + [c_int32] * 6 + [c_void_p, c_int32, c_void_p]),
            ("calibatt_free_schedule", None, [c_void_p]),
            ("calibatt_schedule_bytes", c_int64, [c_void_p]),
            ("calibatt_choose", c_char_p, [call, c_char_p]),
            ("calibatt_workspace_bytes", c_int64, [call, c_char_p]),
            ("calibatt_launch", c_int32, [call, c_void_p, c_int64, c_void_p, c_char_p]),
        ]:
            function = getattr(lib, name)
            function.restype, function.argtypes = result, arguments

    def checked(self, result, failed):
        if failed:
            raise RuntimeError(self._lib.calibatt_error().decode())
        return result

    def make_schedule(self, kept, heads, queries, keys, block_q, block_k, summarize=False, anchors=None):
        """kept: uint8 numpy [heads, query blocks, key blocks] or None; anchors: (tokens, source_of) as int32 numpy, or None."""

        def pointer(array, dtype):
            if array is None:
                return None
            assert array.dtype == dtype and array.flags.c_contiguous
            return array.ctypes.data

        tokens, source_of = anchors if anchors is not None else (None, None)
        handle = self._lib.calibatt_make_schedule(
            pointer(kept, np.uint8), heads, queries, keys, block_q, block_k, int(summarize),
            pointer(tokens, np.int32), 0 if tokens is None else len(tokens), pointer(source_of, np.int32),
        )  # fmt: skip
        return Schedule(self, self.checked(handle, handle is None))

    def attention(self, q, k, v, out, *, scale, block_q=128, block_k=128, schedule=None, energy=None, kernel=""):
        return Attention(self, q, k, v, out, scale, block_q, block_k, schedule, energy, kernel)


class Schedule:
    def __init__(self, library, handle):
        self._library, self.handle = library, handle

    @property
    def size_bytes(self):
        return self._library._lib.calibatt_schedule_bytes(self.handle)

    def __del__(self):
        self._library._lib.calibatt_free_schedule(self.handle)


class Attention:
    """A prepared call: run() enqueues it on torch's current stream."""

    def __init__(self, library, q, k, v, out, scale, block_q, block_k, schedule, energy, kernel):
        self._library, self._keep, self._kernel = library, (q, k, v, out, schedule, energy), kernel.encode()
        self._call = _Call(
            _heads(q), _heads(k), _heads(v), _heads(out), int(q.dtype == torch.float16),
            int(out.dtype == torch.float32 and q.dtype != torch.float32), q.shape[0], q.shape[2], q.shape[3], q.shape[1],
            k.shape[1], block_q, block_k, scale, energy.data_ptr() if energy is not None else None,
            schedule.handle if schedule is not None else None,
        )  # fmt: skip
        lib = library._lib
        name = lib.calibatt_choose(byref(self._call), self._kernel)
        self.kernel_name = library.checked(name, name is None).decode()
        size = lib.calibatt_workspace_bytes(byref(self._call), self._kernel)
        library.checked(size, size < 0)
        self._workspace = torch.empty(max(size, 1), dtype=torch.uint8, device=q.device)  # torch aligns to 512 bytes

    @property
    def workspace_bytes(self):
        return self._workspace.numel()

    def run(self):
        stream = torch.cuda.current_stream().cuda_stream if self._workspace.is_cuda else None
        result = self._library._lib.calibatt_launch(
            byref(self._call), self._workspace.data_ptr(), self._workspace.numel(), stream, self._kernel
        )
        self._library.checked(result, result != 0)
