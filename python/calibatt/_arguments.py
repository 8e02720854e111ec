"""Arguments that several functions take, checked before anything is begun."""

from __future__ import annotations

import contextlib
import math
import operator
from typing import Any, Dict, Iterable, List, Mapping

from . import _errors


def texts(prompts: Any) -> List[str]:
    listed = list(prompts) if isinstance(prompts, Iterable) and not isinstance(prompts, (str, bytes)) else []
    if not listed or not all(isinstance(prompt, str) for prompt in listed):
        raise _errors.UsageError("prompts is to be a list of texts, one or more; for a file of prompts: Path('prompts.txt').read_text().splitlines()")
    return [str(prompt) for prompt in listed]


def first_seed(seed: Any, num_prompts: int) -> int:
    with contextlib.suppress(TypeError):
        seed = operator.index(seed)
        if 0 <= seed <= 2**64 - num_prompts:
            return seed
    raise _errors.UsageError(f"seed is {seed!r}, and is to be a whole number from 0; prompt i has the noise of seed + i, which is less than 2^64")


def with_density(settings: Any, density: Any) -> Dict[str, Any]:
    if not isinstance(settings, Mapping):
        raise _errors.UsageError(f"settings is {settings!r}, and is to be a dictionary: settings={{'token_order': 'raster'}}")
    if density is None:
        return dict(settings)
    if settings.get("density") is not None:
        raise _errors.UsageError("the density is given twice, as density and in settings; leave one out")
    return {**settings, "density": density}


def whole(name: str, value: Any, lowest: int) -> int:
    with contextlib.suppress(TypeError):
        number = operator.index(value)
        if number >= lowest and not isinstance(value, bool):
            return number
    raise _errors.UsageError(f"{name} is {value!r}, and is to be a whole number from {lowest}")


def amount(name: str, value: Any, positive: bool = False) -> float:
    if not isinstance(value, bool) and isinstance(value, (int, float)) and math.isfinite(value) and (value > 0 if positive else value >= 0):
        return value
    raise _errors.UsageError(f"{name} is {value!r}, and is to be a number {'above' if positive else 'from'} 0")


def seeds(seed: Any, number: int) -> List[int]:
    """One for all, or one for each."""
    listed = [seed] * number if not isinstance(seed, Iterable) or isinstance(seed, (str, bytes)) else list(seed)
    if len(listed) != number:
        raise _errors.UsageError(f"seed has {len(listed)} numbers for {number} prompts; give one for each, or one for all")
    for each in listed:
        if whole("seed", each, 0) >= 2**64:
            raise _errors.UsageError(f"seed is {each!r}, and is to be less than 2^64")
    return [operator.index(each) for each in listed]
