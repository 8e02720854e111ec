#!/usr/bin/env python3
"""Reads a calibatt plan file by its published format (docs/plan_format.md), without any of the C++ code.

    python3 tools/plan_reader.py plan.safetensors            # what is in it
    python3 tools/plan_reader.py --dump plan.safetensors     # every step, every mask, every anchor, as text

As a module: `plan = read_plan(path)`, then `plan.mask(entry, layer, head)` is a list of rows (query blocks) of 0/1 per key block,
which numpy.array() takes as it is. Masks are decoded when asked for. Needs nothing but Python and, from version 2 on, libzstd
or the zstandard package; checksums are verified where libxxhash or the xxhash package is installed, and `plan.checksum_verified` says
whether they were.
"""
import argparse
import ctypes
import itertools
import json
import mmap
import os
import struct
import sys
from dataclasses import dataclass

FORMAT_VERSION = 3
HAS_INTERVALS, ANCHORED = 1, 2
PREVIOUS, ABOVE, MAX_SHIFT, KEY_ENTRY_INTERVAL = 1, 2, 7, 8  # filters of a head's bits; which entries refer to no other
EIGHT_BIT_PARTS = ("none", "attention", "layers", "attention+layers")
REUSE_SOURCES = {"forward": 0, "hold": 1, "residual": 1, "linear": 2}  # how many earlier steps a prediction is made from
CODES = {"U8": "B", "U16": "H", "U32": "I", "I64": "q", "F64": "d"}  # dtypes that occur in plans → struct codes


class PlanError(Exception):
    pass


@dataclass
class Tensor:
    dtype: str
    shape: list
    raw: memoryview

    def values(self):
        return memoryview(bytes(self.raw)).cast(CODES[self.dtype]) if self.raw.nbytes else ()

    def tolist(self):
        return list(self.values())


def read_safetensors(path):
    """→ (tensors by name, metadata). Refuses what does not add up."""
    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size < 8:
            raise PlanError("shorter than 8 bytes")
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    (header_bytes,) = struct.unpack_from("<Q", content)
    if header_bytes > len(content) - 8:
        raise PlanError("truncated: the header is longer than the file")
    header = json.loads(content[8 : 8 + header_bytes])
    metadata = header.pop("__metadata__", {})
    data = memoryview(content)[8 + header_bytes :]
    tensors, end = {}, 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        first, last = entry["data_offsets"]
        count = 1
        for extent in entry["shape"]:
            count *= extent
        if entry["dtype"] not in CODES:
            raise PlanError(f"{name}: dtype {entry['dtype']} does not occur in plans")
        size = count * struct.calcsize(CODES[entry["dtype"]])
        if first != end or last - first != size or last > len(data):
            raise PlanError(f"{name}: its bytes are not where the header says")
        tensors[name] = Tensor(entry["dtype"], entry["shape"], data[first:last])
        end = last
    if end != len(data):
        raise PlanError("bytes that belong to no tensor")
    return tensors, metadata


def xxh3_128(content):
    """Hex digits of XXH3-128, or None where no library has it."""
    try:
        import xxhash

        return xxhash.xxh3_128_hexdigest(content)
    except ImportError:
        pass

    class Hash(ctypes.Structure):
        _fields_ = [("low", ctypes.c_uint64), ("high", ctypes.c_uint64)]

    try:
        function = ctypes.CDLL("libxxhash.so.0").XXH3_128bits
    except (OSError, AttributeError):
        return None
    function.restype, function.argtypes = Hash, [ctypes.c_char_p, ctypes.c_size_t]
    result = function(content, len(content))
    return f"{result.high:016x}{result.low:016x}"


def decompressed(frame, size):
    """A zstd frame of this content size."""
    try:
        import zstandard

        try:
            content = zstandard.ZstdDecompressor().decompress(frame, max_output_size=size)
        except zstandard.ZstdError as error:
            raise PlanError(f"not a zstd frame: {error}") from None
    except ImportError:
        try:
            library = ctypes.CDLL("libzstd.so.1")
        except OSError:
            raise PlanError("masks need libzstd, or the zstandard package (pip install zstandard)") from None
        function = library.ZSTD_decompress
        function.restype = ctypes.c_size_t
        function.argtypes = [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_size_t]
        buffer = ctypes.create_string_buffer(size)
        content = buffer.raw if function(buffer, size, frame, len(frame)) == size else b""
    if len(content) != size:
        raise PlanError("not a zstd frame of the right size")
    return content


def checksummed_bytes(tensors, metadata):
    number = struct.Struct("<q").pack
    parts = [number(len(tensors))]

    def text(content):
        parts.extend((number(len(content)), content))

    for name in sorted(tensors, key=str.encode):
        tensor = tensors[name]
        text(name.encode())
        text(tensor.dtype.encode())
        parts.append(number(len(tensor.shape)))
        parts.extend(map(number, tensor.shape))
        if name != "sections" or metadata["format_version"] == "1":  # sections have checksums of their own
            text(tensor.raw.tobytes())
    for key in sorted(metadata, key=str.encode):
        if key != "checksum":
            text(key.encode())
            text(metadata[key].encode())
    return b"".join(parts)


def intervals_of(bits):
    """The runs of ones as (begin, end)."""
    result, at = [], 0
    while bits:
        zeros = (bits & -bits).bit_length() - 1
        bits >>= zeros
        ones = (~bits & bits + 1).bit_length() - 1
        result.append((at + zeros, at + zeros + ones))
        bits >>= ones
        at += zeros + ones
    return result


class Plan:
    def __init__(self, tensors, metadata):
        self.info = json.loads(metadata["plan"])
        self.geometry = self.info["geometry"]
        g = self.geometry
        g.setdefault("text_tokens", 0)
        self.num_tokens = g["frames"] * g["height"] * g["width"] + g["text_tokens"]
        self.num_key_blocks = -(-self.num_tokens // g["block_k"])
        self.sigmas = tensors["sigmas"].tolist()
        self.energy_targets = tensors["energy_targets"].tolist()
        self.step_entry = tensors["step_entry"].tolist()
        provenance = self.info["provenance"]
        if metadata["format_version"] in ("1", "2"):  # one transformer, by two texts
            provenance["transformers"] = [{"name": provenance.pop("model_name"), "fingerprint": provenance.pop("model_fingerprint")}]
        self.transformers = provenance["transformers"]
        self.step_transformer = tensors["step_transformer"].tolist() if "step_transformer" in tensors else [0] * len(self.sigmas)
        if sorted(set(self.step_transformer)) != list(range(len(self.transformers))) or len(self.step_transformer) != len(self.sigmas):
            raise PlanError("steps and transformers do not fit each other")
        self.step_reuse = self._reuse()
        self.eight_bits = self._eight_bits()
        self.num_entries, self.num_layers, self.num_heads = tensors["head_kind"].shape
        self.kinds = tensors["head_kind"].tolist()
        if "raster_of_position" in tensors:
            self.raster_of_position = tensors["raster_of_position"].tolist()
        else:
            self.raster_of_position = list(range(self.num_tokens))
        self.query_tokens, self.source_of = self._anchors(tensors)
        if "sections" in tensors:
            self._sections = tensors["sections"].raw
            self._ends = tensors["section_end"].tolist()
            self._checksums = tensors["section_checksum"].raw.tobytes()
            self._token_pairs = tensors["token_pairs"].tolist()
            self._site, self._site_rows = None, None  # the layer decoded last
        else:
            self._rows = self._read_rows(tensors)

    def _reuse(self):
        """How each step gets its prediction: "forward", or from so many of the latest steps of its transformer that ran."""
        reuse = self.info.get("step_reuse")
        reuse = ["forward"] * len(self.sigmas) if reuse is None else reuse
        if not isinstance(reuse, list) or len(reuse) != len(self.sigmas):
            raise PlanError("step_reuse does not fit the steps")
        ran = 0
        for step, how in enumerate(reuse):
            if how not in REUSE_SOURCES:
                raise PlanError(f"it needs 'step_reuse: {how}', which this reader does not know")
            if step and self.step_transformer[step] != self.step_transformer[step - 1]:
                ran = 0
            if REUSE_SOURCES[how] > ran:
                raise PlanError(f"step {step} is made from steps that do not run ({how})")
            ran += how == "forward"
        return reuse

    def _eight_bits(self):
        """Which parts of each step are in 8 bits; None: the plan does not say."""
        parts = self.info.get("eight_bits")
        if parts is None:
            return None
        if not isinstance(parts, list) or len(parts) != len(self.sigmas):
            raise PlanError("eight_bits does not fit the steps")
        for each in parts:
            if each not in EIGHT_BIT_PARTS:
                raise PlanError(f"it needs 'eight_bits: {each}', which this reader does not know")
        return parts

    def _anchors(self, tensors):
        """Which tokens an anchored head computes, and whose output each token receives (index into the former)."""
        if "anchor_rows" not in tensors:
            return [], []
        g, rows = self.geometry, tensors["anchor_rows"].tolist()
        nearest = [min(rows, key=lambda anchor: (abs(anchor - row), anchor)) for row in range(g["height"])]
        num_video_tokens = g["frames"] * g["height"] * g["width"]

        def anchor_of(raster):
            if raster >= num_video_tokens:
                return raster
            line, column = divmod(raster, g["width"])
            frame, row = divmod(line, g["height"])
            return (frame * g["height"] + nearest[row]) * g["width"] + column

        queries = [p for p, raster in enumerate(self.raster_of_position) if anchor_of(raster) == raster]
        index = {self.raster_of_position[p]: i for i, p in enumerate(queries)}
        return queries, [index[anchor_of(raster)] for raster in self.raster_of_position]

    def num_queries(self, kind):
        return len(self.query_tokens) if kind & ANCHORED else self.num_tokens

    def num_query_blocks(self, kind):
        return -(-self.num_queries(kind) // self.geometry["block_q"])

    def _read_rows(self, tensors):
        """Per head: None (all key blocks) or, per query block, the list of kept (begin, end)."""
        counts = iter(tensors["interval_counts"].tolist() if "interval_counts" in tensors else ())
        bounds = iter(tensors["intervals"].tolist() if "intervals" in tensors else ())
        heads = []
        for kind in self.kinds:
            if not kind & HAS_INTERVALS:
                heads.append(None)
                continue
            rows = []
            for _ in range(self.num_query_blocks(kind)):
                flat = list(itertools.islice(bounds, 2 * next(counts)))
                row = list(zip(flat[::2], flat[1::2]))
                last = -1
                for begin, end in row:
                    if not last < begin < end <= self.num_key_blocks:
                        raise PlanError(f"interval [{begin}, {end}) is out of order or out of range")
                    last = end
                if not row:
                    raise PlanError("a query block keeps no key block")
                rows.append(row)
            heads.append(rows)
        if next(counts, None) is not None or next(bounds, None) is not None:
            raise PlanError("more intervals than the heads have rows")
        return heads

    def _section_bits(self, entry, layer):
        """Per head: its rows as integers (bit c: key block c is kept), or None without intervals."""
        site = entry * self.num_layers + layer
        begin, end = self._ends[site - 1] if site else 0, self._ends[site]
        where = f"entry {entry}, layer {layer}"
        if not 0 <= begin <= end <= len(self._sections):
            raise PlanError(f"{where}: its section is not where the index says")
        stored = self._sections[begin:end].tobytes()
        checksum = xxh3_128(stored)
        if checksum is not None and checksum != self._checksums[16 * site : 16 * site + 16].hex():
            raise PlanError(f"{where}: its masks were altered or damaged (checksum)")
        kinds = [self.kind(entry, layer, head) for head in range(self.num_heads)]
        num_rows = [self.num_query_blocks(kind) if kind & HAS_INTERVALS else 0 for kind in kinds]
        if not any(num_rows):
            return [None] * self.num_heads
        row_bytes = -(-self.num_key_blocks // 8)
        content = decompressed(stored, self.num_heads + sum(num_rows) * row_bytes)
        filters, at, heads = content[: self.num_heads], self.num_heads, []
        previous = None
        if PREVIOUS in filters:
            if entry % KEY_ENTRY_INTERVAL == 0:
                raise PlanError(f"{where}: it refers to the entry before, which it cannot")
            previous = self._section_bits(entry - 1, layer)
        for head, count in enumerate(num_rows):
            rows = [int.from_bytes(content[at + r * row_bytes : at + (r + 1) * row_bytes], "little") for r in range(count)]
            at += count * row_bytes
            if filters[head] == PREVIOUS:
                if not count or previous[head] is None or len(previous[head]) != count:
                    raise PlanError(f"{where}, head {head}: it refers to the entry before, which it cannot")
                rows = [row ^ before for row, before in zip(rows, previous[head])]
            elif filters[head] >= ABOVE:
                shift = filters[head] - ABOVE
                if not count or shift > MAX_SHIFT:
                    raise PlanError(f"{where}, head {head}: its filter is {filters[head]}")
                for r in range(1, count):
                    rows[r] ^= rows[r - 1] << shift & (1 << self.num_key_blocks) - 1
            if any(row == 0 or row >> self.num_key_blocks for row in rows):
                raise PlanError(f"{where}, head {head}: a query block keeps no key block, or one that is not there")
            heads.append(rows if count else None)
        return heads

    def _rows_of(self, entry, layer, head):
        """None (all key blocks) or, per query block, the list of kept (begin, end)."""
        if not hasattr(self, "_sections"):
            return self._rows[self._index(entry, layer, head)]
        if self._site != (entry, layer):
            self._site_rows = [rows and [intervals_of(row) for row in rows] for rows in self._section_bits(entry, layer)]
            self._site = (entry, layer)
        return self._site_rows[head]

    def _index(self, entry, layer, head):
        return (entry * self.num_layers + layer) * self.num_heads + head

    def kind(self, entry, layer, head):
        return self.kinds[self._index(entry, layer, head)]

    def intervals(self, entry, layer, head):
        rows = self._rows_of(entry, layer, head)
        if rows is None:
            return [[(0, self.num_key_blocks)]] * self.num_query_blocks(self.kind(entry, layer, head))
        return rows

    def mask(self, entry, layer, head):
        """Rows: query blocks (an anchored head's are packed from its anchor tokens), columns: key blocks; 1 = computed."""
        result = []
        for row in self.intervals(entry, layer, head):
            bits = bytearray(self.num_key_blocks)
            for begin, end in row:
                bits[begin:end] = b"\x01" * (end - begin)
            result.append(list(bits))
        return result

    def token_pairs(self, entry, layer, head):
        """Computed (query, key) token pairs."""
        block_q, block_k = self.geometry["block_q"], self.geometry["block_k"]
        num_queries, pairs = self.num_queries(self.kind(entry, layer, head)), 0
        for block, row in enumerate(self.intervals(entry, layer, head)):
            queries = min(block_q, num_queries - block * block_q)
            pairs += queries * sum(min(end * block_k, self.num_tokens) - begin * block_k for begin, end in row)
        return pairs

    def _entries_run(self):
        return [entry for entry, how in zip(self.step_entry, self.step_reuse) if how == "forward"]

    def density(self):
        """Of the steps that run their transformer."""
        if hasattr(self, "_sections"):  # the index knows
            per_entry = self.num_layers * self.num_heads
            entry_pairs = [sum(self._token_pairs[e * per_entry : (e + 1) * per_entry]) for e in range(self.num_entries)]
            return sum(entry_pairs[e] for e in self._entries_run()) / (self.num_tokens**2 * per_entry * len(self._entries_run()))
        all_pairs = self.num_tokens**2 * self.num_layers * self.num_heads
        entry_pairs = [
            sum(self.token_pairs(entry, layer, head) for layer in range(self.num_layers) for head in range(self.num_heads))
            for entry in range(self.num_entries)
        ]
        return sum(entry_pairs[entry] for entry in self._entries_run()) / (all_pairs * len(self._entries_run()))


def read_plan(path):
    tensors, metadata = read_safetensors(path)
    if metadata.get("format") != "calibatt.plan":
        raise PlanError("this is not a calibatt plan")
    if int(metadata["format_version"]) > FORMAT_VERSION:
        raise PlanError(f"format version {metadata['format_version']} is newer than {FORMAT_VERSION}")
    checksum = xxh3_128(checksummed_bytes(tensors, metadata))
    if checksum is not None and checksum != metadata.get("checksum"):
        raise PlanError("altered or damaged: the checksum does not fit")
    needed = json.loads(metadata["plan"])
    for feature in [*needed.get("required_features", []), *(key for key in ("head_precision",) if needed.get(key) is not None)]:
        raise PlanError(f"it needs {feature!r}, which this reader does not know")
    plan = Plan(tensors, metadata)
    plan.checksum_verified = checksum is not None
    return plan


def dump(plan):
    """Everything that a kernel would need, as text."""
    lines = []
    for step, (sigma, entry) in enumerate(zip(plan.sigmas, plan.step_entry)):
        transformer = f" transformer {plan.step_transformer[step]}" if len(plan.transformers) > 1 else ""
        reuse = f" reuse {plan.step_reuse[step]}" if plan.step_reuse[step] != "forward" else ""
        bits = f" 8 bits {plan.eight_bits[step]}" if plan.eight_bits else ""
        lines.append(f"step {step} noise {sigma:.6f} entry {entry}{transformer}{reuse}{bits}")
    lines.append("order " + " ".join(map(str, plan.raster_of_position)))
    if plan.query_tokens:
        lines.append("anchor queries " + " ".join(map(str, plan.query_tokens)))
        lines.append("anchor sources " + " ".join(map(str, plan.source_of)))
    for entry, layer, head in itertools.product(range(plan.num_entries), range(plan.num_layers), range(plan.num_heads)):
        anchored = " anchored" if plan.kind(entry, layer, head) & ANCHORED else ""
        lines.append(f"entry {entry} layer {layer} head {head}{anchored} pairs {plan.token_pairs(entry, layer, head)}")
        lines += ["".join(".#"[bit] for bit in row) for row in plan.mask(entry, layer, head)]
    return "\n".join(lines) + "\n"


def summary(plan):
    lines = [f"transformer: {each['name']} ({each['fingerprint'] or 'weights not compared'})" for each in plan.transformers]
    lines += [f"{key}: {value}" for key, value in plan.info["provenance"].items() if key != "transformers"]
    lines += [f"accuracy: {plan.info['accuracy']}"] if "accuracy" in plan.info else []
    lines.append("geometry: " + ", ".join(f"{key} {value}" for key, value in plan.geometry.items()))
    lines.append(f"{len(plan.sigmas)} steps, {plan.num_entries} entries, {plan.num_layers} layers, {plan.num_heads} heads")
    reused = len(plan.step_reuse) - plan.step_reuse.count("forward")
    lines += [f"reused steps: {reused} of {len(plan.sigmas)}"] if reused else []
    for part in ("attention", "layers") if plan.eight_bits else ():
        count = sum(part in parts for parts, how in zip(plan.eight_bits, plan.step_reuse) if how == "forward")
        lines.append(f"{part} in 8 bits: {count} of {len(plan.sigmas) - reused} steps that run")
    lines.append(f"density: {plan.density():.4f}")
    lines.append("checksum: " + ("right" if plan.checksum_verified else "not verified (install libxxhash)"))
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("plan")
    parser.add_argument("--dump", action="store_true", help="every step, mask and anchor as text")
    arguments = parser.parse_args()
    try:
        plan = read_plan(arguments.plan)
    except (OSError, PlanError, ValueError, KeyError, StopIteration) as error:
        sys.exit(f"{arguments.plan}: {error}")
    sys.stdout.write(dump(plan) if arguments.dump else summary(plan))


if __name__ == "__main__":
    main()
