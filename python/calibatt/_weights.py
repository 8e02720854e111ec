"""Whether a pipe has the weights that a plan was made for: fingerprints of the folders that its transformers were loaded from."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

from . import _errors, _library, _memory

AS_MEASURED = "the same as in memory when the plan was measured"
QUICK_BYTES = 2 << 30  #: weights that are read and compared without being asked to: seconds


def source_folder(pipe: Any, name: str, transformer: Any) -> Optional[Path]:
    """The folder (config.json, *.safetensors) that from_pretrained read the transformer from; None where that is not known."""
    told = [getattr(transformer.config, "_name_or_path", None), getattr(pipe.config, "_name_or_path", None)]
    for path in [Path(str(each)) for each in told if each]:
        for folder in (path, path / name):
            try:
                config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            except (OSError, ValueError):
                continue
            if config.get("_class_name") == type(transformer).__name__ and list(folder.glob("*.safetensors")):
                return folder
    return None


def exchanged_text_encoder(pipe: Any, name: str, transformer: Any) -> Optional[str]:
    """A text encoder that is not the one beside the transformer, as a calibration's conditions tell it from others; None: it is that one."""
    encoder = getattr(pipe, "text_encoder", None)
    if encoder is None:
        return None
    beside = source_folder(pipe, name, transformer)
    for folder in [*([beside.parent] if beside else []), Path(str(getattr(pipe.config, "_name_or_path", None)))]:
        files = _files(folder / "text_encoder")
        if not files:
            continue
        if not getattr(encoder, "peft_config", None) and _memory.changed_tensor(encoder, files) is None:
            return None
        break
    return in_memory("text_encoder", encoder)


def reason_of_change(pipe: Any, transformer: Any) -> Optional[str]:
    """Why the weights in memory are not those of the folder, as far as one can see; None: they seem to be."""
    if getattr(transformer, "peft_config", None):
        return "LoRAs are loaded"
    if getattr(pipe, "fused_loras", None):
        return "LoRAs are fused"
    quantised = getattr(transformer, "hf_quantizer", None) is not None
    if quantised or not all(_memory.is_plain(each) for each in transformer.parameters()):
        return "they are quantised"
    return None


def difference(pipe: Any, transformer: Any, folder: Path) -> Optional[str]:
    """The same, and what a look at one row of each tensor shows: weights that were changed by hand, LoRAs that were fused into them."""
    reason = reason_of_change(pipe, transformer)
    if reason is None:
        changed = _memory.changed_tensor(transformer, _files(folder))
        reason = changed and f"{changed} is not what {folder} has: they were changed in memory"
    return reason


def _files(folder: Path) -> List[Path]:
    return sorted(folder.glob("*.safetensors"))


def _cache_path() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base) / "calibatt" / "fingerprints.json"


def _key(folder: Path, like: str) -> str:
    """Changes when a file does: names, sizes and times."""
    facts = [str(folder.resolve()), like if ":" not in like else like[: like.index(":")]]  # the scheme's name; old ones have none
    for file in [folder / "config.json", *_files(folder)]:
        status = file.stat()
        facts += [file.name, str(status.st_size), str(status.st_mtime_ns)]
    return hashlib.sha256("\0".join(facts).encode("utf-8", "surrogateescape")).hexdigest()


def _cached() -> Dict[str, str]:
    try:
        cached = json.loads(_cache_path().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return cached if isinstance(cached, dict) else {}


def _remember(known: Dict[str, str]) -> None:
    """Nothing is lost where it cannot be kept."""
    path = _cache_path()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as file:
            json.dump({**_cached(), **known}, file)
        os.replace(file.name, path)
    except OSError:
        pass


def fingerprint(folder: Path, like: str = "") -> str:
    """Of the weights in the folder, in the scheme that `like` is of. Reads all of them, unless it did so before and no file changed since.

    Raises NotFound, FormatError.
    """
    key = _key(folder, like)
    known = _cached().get(key)
    if isinstance(known, str):
        return known
    library = _library.loaded()
    result = library.text(lambda text: library.fingerprint(_library.encoded(str(folder)), _library.encoded(like), text))
    _remember({key: result, _key(folder, result): result})  # a plan made of these asks in their own scheme
    return result


def in_memory(name: str, transformer: Any) -> str:
    """Of weights without a fingerprint, as a calibration's conditions tell them from others."""
    return f"weights of {name}: {_memory.digest(transformer)}"


def compared(pipe: Any, name: str, transformer: Any, like: str, check: Optional[bool], conditions: str) -> Tuple[Optional[str], str]:
    """(fingerprint, why it is None) of one transformer, for comparison with a plan's, whose calibration had these conditions.

    check: True reads the weights however many they are, and raises Unsupported where they are not known; False does not; None compares
    where that takes seconds or was done before.
    """
    folder = source_folder(pipe, name, transformer)
    reason = None
    if check is False:
        reason = "not asked for"
    elif not like:
        reason = "the plan does not know those it was made for"
    else:
        reason = difference(pipe, transformer, folder) if folder else reason_of_change(pipe, transformer)
        reason = reason or (None if folder else "the folder that they were loaded from is not known")
    if reason and check is not False and conditions and in_memory(name, transformer) in conditions:
        return None, AS_MEASURED
    if reason:
        if check and like:
            raise _errors.Unsupported(f"the weights of pipe.{name} cannot be compared with the plan's: {reason}; leave out check_weights=True")
        return None, reason
    assert folder is not None
    size = sum(file.stat().st_size for file in _files(folder))
    if not check and size > QUICK_BYTES and _key(folder, like) not in _cached():
        return None, f"reading {size / 1e9:.0f} GB takes a while; check_weights=True does it once"
    return fingerprint(folder, like), ""
