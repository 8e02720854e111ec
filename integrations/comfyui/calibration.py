"""The Calibrate node: a sampling run computed densely and measured, then a plan made of all runs measured so far."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any, Callable, Iterator, Optional

import torch

from calibatt import Unsupported
from calibatt._record import Calibration, PromptFacts
from calibatt._session import PRECISIONS, OutputFacts, Session

from .sampling import Attachment, Run, Sampling, attach
from .transformers import BlockInput, untraced

EPSILON = 1e-6  # of the norm behind Mochi's output projection
# Of a conditioning: what a run of another prompt, or of another start image, differs in.
CONDITIONING = ("cross_attn", "concat_latent_image", "concat_mask")


class Recording(Run):
    """Measures the conditional sample of each forward; everything else is ComfyUI's own dense attention."""

    def __init__(self, sampling: Sampling, session: Session):
        super().__init__(sampling, session)
        self.sample = 0
        self.last_step = -1
        self.wanted = False  # what follows the attention, in the present forward
        self.inputs: Optional[BlockInput] = None

    def install(self):
        @untraced
        def enter(_block, args, kwargs):
            if self.wanted:
                self.inputs = self.sampling.transformer.block_input(args, kwargs)

        for block in self.sampling.transformer.blocks:
            self.sampling.hook(block.register_forward_pre_hook(enter, with_kwargs=True))

    def begin_forward(self, step, branches, batch):
        self.wanted, self.inputs = False, None
        if batch != len(branches) or branches.count(0) > 1:
            raise Unsupported("calibatt: Calibrate measures one video of one prompt at a time; use batch size 1 and one conditioning without areas")
        if 0 not in branches:
            return False
        if step <= self.last_step:
            raise Unsupported(
                f"calibatt: this sampler asks the model more than once for step {step}; calibrate with one that does not, such as euler or"
                " uni_pc (the plan serves all samplers)"
            )
        self.sample, self.last_step = branches.index(0), step
        self.session.begin_forward(step, 0)
        self.wanted = self.session.wants_output()
        return True

    def attend(self, layer, q, k, v, out, dense):
        ours = slice(self.sample, self.sample + 1)
        for others in (slice(0, self.sample), slice(self.sample + 1, q.shape[0])):
            if q[others].shape[0] > 0:
                dense(others)
        output = self._output(layer, out[ours]) if self.inputs is not None else None
        self.session.attend(layer, q[ours], k[ours], v[ours], out[ours], output)

    def _output(self, layer: int, out: torch.Tensor) -> OutputFacts:
        inputs, self.inputs = self.inputs, None
        transformer, sample = self.sampling.transformer, self.sample
        block = transformer.blocks[layer]
        projection = transformer.output_projection(block)
        norm = torch.linalg.vector_norm(inputs.residual[sample], dtype=torch.float32)

        def squared_gain() -> float:
            projected = projection(out[:, : self.sampling.num_tokens].flatten(2))
            return 1 / (float(projected.float().square().mean()) + EPSILON)

        return OutputFacts(
            weight=_weight_of(projection, out),
            gate=transformer.gate(block, inputs.modulation, sample),
            residual_square_sum=float(norm) ** 2,
            squared_gain=squared_gain if transformer.normalised_output else None,
        )


def _weight_of(linear: torch.nn.Module, like: torch.Tensor) -> torch.Tensor:
    """W [out, in] as the module applies it, whatever it stores: fp8, GGUF, a LoRA to be added, weights kept elsewhere."""
    size = like.shape[-2] * like.shape[-1]
    rows = torch.eye(size + 1, size, dtype=like.dtype, device=like.device)  # the last one is zero: the bias
    made = linear(rows.unsqueeze(0))[0]
    return (made[:-1] - made[-1]).T.contiguous()


def _digest(*tensors: Any) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        if isinstance(tensor, torch.Tensor):
            digest.update(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:32]


def prompt_of(guider: Any, noise: torch.Tensor, latent: Optional[torch.Tensor], seed: Any) -> PromptFacts:
    """What tells this run from another: a model in ComfyUI sees conditionings and noise, not texts."""

    def text(branch: str) -> str:
        return "conditioning " + _digest(*(each.get(name) for each in guider.conds.get(branch, []) for name in CONDITIONING))

    return PromptFacts(f"{text('positive')}, noise {_digest(noise, latent)}", text("negative"), seed if isinstance(seed, int) else 0)


def patches_of(patcher: Any) -> str:
    """What tells the LoRAs and other patches of a model's weights from others: places, strengths, and the first row of each tensor."""

    def parts(value: Any) -> Iterator[Any]:
        value = getattr(value, "weights", value)  # of an adapter
        if isinstance(value, (tuple, list)):
            for each in value:
                yield from parts(each)
        else:
            yield value

    digest = hashlib.sha256()
    patches = sorted(getattr(patcher, "patches", {}).items(), key=lambda each: str(each[0]))
    for key, applied in patches:
        digest.update(str(key).encode())
        for value in parts(applied):
            if isinstance(value, torch.Tensor):
                digest.update(_digest(value[:1] if value.ndim else value[None]).encode())
            elif isinstance(value, (int, float, str)):
                digest.update(str(value).encode())
    return f"patches of the weights: {digest.hexdigest()[:32]}" if patches else ""


class PromptList:
    """The runs of a profile in the order in which they were measured: errors are measured under masks of earlier ones."""

    def __init__(self, profile: Path):
        self.folder, self.path = profile, profile / "comfyui_prompts.json"
        self.prompts: list[PromptFacts] = []
        try:
            stored = json.loads(self.path.read_text(encoding="utf-8"))
            self.prompts = [PromptFacts(str(each["text"]), str(each["negative_prompt"]), int(each["seed"])) for each in stored]
        except FileNotFoundError:
            if any(profile.glob("prompt_*.safetensors")):
                raise Unsupported(f"calibatt: {profile} holds measurements that were not made in ComfyUI; give the plan another name") from None
        except (ValueError, KeyError, TypeError):
            raise Unsupported(f"calibatt: {self.path} is damaged; give the plan another name, or delete that folder") from None

    @contextlib.contextmanager
    def holding(self, prompt: PromptFacts):
        """The list is on disk before a measurement is, so that none is without its place; a new prompt stays when all went well."""
        known = prompt in self.prompts
        if not known:
            self.prompts.append(prompt)
        self._save()
        try:
            yield
        except BaseException:
            if not known:
                self.prompts.remove(prompt)
            raise
        finally:
            self._save()

    def _save(self) -> None:
        if not self.prompts:
            self.path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # not empty
                self.folder.rmdir()
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        beside = self.path.with_suffix(f".{os.getpid()}.tmp")
        beside.write_text(json.dumps([vars(prompt) for prompt in self.prompts], indent=1), encoding="utf-8")
        os.replace(beside, self.path)


class _Missing(Exception):
    """The measurement of an earlier run is gone."""

    def __init__(self, prompt: int):
        self.prompt = prompt


def measure(
    attachment: Attachment, prompt: PromptFacts, profile: Path, settings: dict[str, Any], execute: Callable[[], Any], patches: str = ""
) -> tuple[Any, dict, Calibration]:
    """The run's result, what calibatt_record tells, and the calibration of all runs so far."""
    sampling = attachment.sampling
    results: list[Any] = []
    listed = PromptList(profile)

    def run_prompt(index: int, session: Session) -> float:
        if listed.prompts[index] != prompt:
            raise _Missing(index)
        start = time.perf_counter()
        results.append(attachment.sample(Recording(sampling, session), execute))
        return time.perf_counter() - start

    def recorded() -> tuple[dict, Calibration]:
        while True:
            calibration = Calibration(sampling.facts(), sampling.device, tuple(listed.prompts), _precision(sampling), settings, patches)
            try:
                return calibration.record(profile, run_prompt), calibration
            except _Missing as missing:
                del listed.prompts[missing.prompt]

    with listed.holding(prompt):
        report, calibration = recorded()
    if not results:  # measured before
        results.append(attachment.sample(None, execute))
    return results[0], report, calibration


def _precision(sampling: Sampling) -> str:
    dtype = sampling.model.manual_cast_dtype or sampling.model.get_dtype()
    if dtype not in PRECISIONS:
        raise Unsupported(f"calibatt: Calibrate measures runs in bf16, fp16 or fp32, and this model runs in {dtype}")
    return PRECISIONS[dtype]


def calibrate(model: Any, plan_path: Path, density: float, settings: dict[str, str], tell: Callable[[str], None]) -> Any:
    """A clone that measures its sampling runs and rewrites the plan after each. The profile lies beside the plan."""
    profile = plan_path.with_name(plan_path.name + ".profile")

    def begin(attachment: Attachment, execute: Callable[[], Any]) -> Any:
        prompt = prompt_of(attachment.guider, *attachment.start)
        plan_path.parent.mkdir(parents=True, exist_ok=True)
        result, report, calibration = measure(attachment, prompt, profile, {"density": density, **settings}, execute, patches_of(attachment.guider.model_patcher))
        plan, count = calibration.compile(profile, plan_path, progress=lambda *_: None), len(calibration.prompts)
        done = "measured" if report["prompts_recorded"] else "was measured before"
        tell(f"this run {done}; {plan_path.name} is made of {count} {'run' if count == 1 else 'runs'}\n{plan.describe()}")
        return result

    return attach(model, begin)
