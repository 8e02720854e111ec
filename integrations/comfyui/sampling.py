"""One sampling run of ComfyUI with calibatt's attention: what the Apply Plan node hangs on a clone of the model.

ComfyUI calls, from the outside in: OUTER_SAMPLE once a run, APPLY_MODEL once a forward, and
transformer_options["optimized_attention_override"] for each attention. All three belong to the clone; nothing of the
model itself changes but for hooks that are there while it samples (transformers.py).
"""

from __future__ import annotations

import contextlib
import logging
from typing import Any, Callable, Optional

import torch

import comfy.patcher_extension
from calibatt import Plan, Unsupported
from calibatt._plan import nearest_transformers
from calibatt._reuse import StepPredictor, described
from calibatt._session import DTYPES, RunFacts, Session

from .transformers import Transformer, require_tokens, transformer_of, untraced

KEY = "calibatt"
OVERRIDE = "optimized_attention_override"
SCHEDULERS = ("euler", "unipc")  # samplers of ComfyUI that calibatt has too, by its names
# Patches of other nodes that are given the tokens inside of the block stack and may count on their place.
TOKEN_PATCHES = ("patches", "patches_replace")
STEP_CACHES = {"easycache": "EasyCache", "lazycache": "LazyCache"}  # the keys of their wrappers


class Run:
    """What attends in one sampling run; Planned here, Recording in calibration.py."""

    def __init__(self, sampling: "Sampling", session: Session):
        self.sampling, self.session = sampling, session

    def install(self) -> None:
        """Adds hooks of its own (Sampling.hook)."""

    def begin_forward(self, step: int, branches: list[int], batch: int) -> bool:
        """branches: for each part of the batch 0 (conditional) or 1. False: nothing of this forward is ours."""
        raise NotImplementedError

    def without_forward(self, step: int, sigma: float, x: torch.Tensor, options: dict[str, Any]) -> Optional[torch.Tensor]:
        """What the model gives in a step that runs no forward; None: it runs."""

    def ran(self, step: int, sigma: float, x: torch.Tensor, options: dict[str, Any], denoised: torch.Tensor) -> None:
        """A forward gave `denoised` at x."""

    def attend(self, layer: int, q, k, v, out, dense: Callable[[slice], None]) -> None:
        """q, k, v, out: [B, tokens, heads, head_dim] in the session's token order. dense(samples) has ComfyUI compute some."""
        raise NotImplementedError


class Sampling:
    """The transformer, size and noise levels of a run that has begun, and the hooks that are there while it lasts."""

    def __init__(self, guider: Any, noise: torch.Tensor, sampler: Any, sigmas: torch.Tensor):
        patcher = guider.model_patcher
        self.patcher, self.model = patcher, patcher.model
        self.transformer: Transformer = transformer_of(self.model.diffusion_model)
        _refuse_what_does_not_combine(guider, noise)
        self.device: torch.device = patcher.load_device
        self.flow_shift = float(getattr(patcher.get_model_object("model_sampling"), "shift", 0) or 0)  # of a node, if there is one
        self.noise_shape = noise.shape
        self.grid = self.transformer.grid(noise.shape)
        self.sigmas = tuple(float(sigma) for sigma in sigmas)[:-1]
        guidance = getattr(guider, "cfg", None)
        self.guidance_scale = None if guidance is None else float(guidance)
        name = getattr(getattr(sampler, "sampler_function", None), "__name__", "").removeprefix("sample_")
        self.scheduler = name if name in SCHEDULERS else None
        self.compile_settings = guider.model_options.get("torch_compile_kwargs")
        self.calls = 0
        self.layer: Optional[int] = None
        self.order_reason = ""  # why tokens are reordered at every call of the present forward; empty: they are not
        self.order_reasons: list[str] = []  # of all forwards
        self._hooks = contextlib.ExitStack()
        self._order: Optional[torch.Tensor] = None
        self._orderings: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # by the number of tokens, on the device

    @property
    def num_tokens(self) -> int:
        frames, height, width = self.grid
        return frames * height * width

    def facts(self, step_transformer: tuple[int, ...] = (), num_transformers: int = 1) -> RunFacts:
        """What a session has to know. Weights are not compared: a live model may be cast, quantised or carry LoRA."""
        transformer, model = self.transformer, self.model
        # Older ComfyUIs do not say how many pixels a latent has; the autoencoder of 48 channels is Wan 2.2 TI2V-5B's.
        pixels = getattr(model.latent_format, "spacial_downscale_ratio", 16 if self.noise_shape[1] == 48 else 8)
        frames, height, width = self.noise_shape[-3:]
        return RunFacts(
            grid=self.grid,
            num_heads=transformer.num_heads,
            head_dim=transformer.head_dim,
            num_layers=len(transformer.blocks),
            sigmas=self.sigmas,
            step_transformer=step_transformer,
            transformer_names=("",) * num_transformers,
            fingerprints=(None,) * num_transformers,
            video=((frames - 1) * transformer.frames_per_latent + 1, height * pixels, width * pixels),
            flow_shift=self.flow_shift,
            guidance_scale=self.guidance_scale,
            scheduler=self.scheduler,
        )

    def step_of(self, sigma: float) -> int:
        """The step of the nearest noise level: samplers of higher order also evaluate between steps."""
        return min(range(len(self.sigmas)), key=lambda step: abs(self.sigmas[step] - sigma))

    @contextlib.contextmanager
    def hooked(self, session: Session):
        order = session.token_order(self.num_tokens)
        raster = torch.arange(self.num_tokens)
        self._order = None if torch.equal(order, raster) else order
        with self._hooks:
            for layer, block in enumerate(self.transformer.blocks):
                self._hook_layer(layer, self.transformer.self_attention(block))
            yield

    def _hook_layer(self, layer: int, attention: torch.nn.Module) -> None:
        @untraced
        def enter(_module, _args):
            self.layer = layer

        @untraced
        def leave(_module, _args, _out):
            self.layer = None

        self.hook(attention.register_forward_pre_hook(enter))
        self.hook(attention.register_forward_hook(leave, always_call=True))

    def hook(self, handle: Any) -> None:
        """Removed when the run ends."""
        self._hooks.callback(handle.remove)

    @contextlib.contextmanager
    def forward(self, arguments: dict[str, Any], options: dict[str, Any]):
        """Tokens are reordered once around the block stack where nothing in between minds, else at every call."""
        self.order_reason = "" if self._order is None else self._what_minds_order(arguments, options)
        if self.order_reason and self.order_reason not in self.order_reasons:
            self.order_reasons.append(self.order_reason)
        if self._order is None or self.order_reason:
            yield
            return
        removers = self.transformer.token_hooks(*self._ordering(self.num_tokens))
        try:
            yield
        finally:
            for remove in removers:
                remove()

    def is_compiled(self) -> bool:
        parts = [self.model.diffusion_model, *self.transformer.module.blocks]
        return self.compile_settings is not None or any(hasattr(part, "_orig_mod") for part in parts)

    def _what_minds_order(self, arguments: dict[str, Any], options: dict[str, Any]) -> str:
        if self.is_compiled():  # code that was traced without hooks does not look for them
            return "the model is compiled (torch.compile)"
        for name in TOKEN_PATCHES:
            if any(options.get(name, {}).values()):
                return f"another node patches the model's blocks ({', '.join(map(str, options[name]))})"
        if arguments.get("denoise_mask") is not None:
            return "frames have noise levels of their own (image to video)"
        return ""

    def call_order(self, num_tokens: int) -> Optional[tuple[torch.Tensor, torch.Tensor]]:
        """Where tokens are reordered at every call: the order and its inverse, text behind the video left where it is."""
        return self._ordering(num_tokens) if self.order_reason else None

    def _ordering(self, num_tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        if num_tokens not in self._orderings:
            order = torch.cat([self._order, torch.arange(self.num_tokens, num_tokens)])
            self._orderings[num_tokens] = order.to(self.device), order.argsort().to(self.device)
        return self._orderings[num_tokens]


def _refuse_what_does_not_combine(guider: Any, noise: torch.Tensor) -> None:
    if guider.model_options.get("context_handler") is not None:
        raise Unsupported("calibatt: context windows give the model other sizes than the video's; remove that node, or calibatt's")
    if noise.ndim != 5:
        raise Unsupported(f"calibatt: the latent has {noise.ndim} dimensions, and a video has 5; give an empty video latent")


class Attachment:
    """What one node put on one clone. `begin(attachment, execute)` is a whole sampling run and gives its result, by `sample`."""

    def __init__(self, begin: Callable[..., Any], previous: Optional[Callable[..., Any]]):
        self.begin, self.previous = begin, previous
        self.sampling: Optional[Sampling] = None
        self.run: Optional[Run] = None
        self.guider: Any = None
        self.start: tuple[Any, Any, Any] = (None, None, None)  # noise, latent, seed
        self.active = False  # within a forward of which attention is ours

    def __deepcopy__(self, memo: Any) -> "Attachment":
        """ComfyUI copies a model's options when nodes behind this one clone it: deeply, methods with their objects."""
        return self

    # ---- OUTER_SAMPLE

    def outer_sample(self, executor: Any, noise, latent, sampler, sigmas, denoise_mask=None, callback=None, disable_pbar=False, seed=None, **kwargs):
        execute = lambda: executor(noise, latent, sampler, sigmas, denoise_mask, callback, disable_pbar, seed, **kwargs)  # noqa: E731
        if len(sigmas) < 2:
            return execute()
        if self.sampling is not None:
            raise Unsupported(
                "calibatt: a model with a plan samples within its own sampling; give the inner sampler the model from before calibatt's node"
            )
        self.guider, self.start = executor.class_obj, (noise, latent, seed)
        self.sampling = Sampling(self.guider, noise, sampler, sigmas)
        try:
            return self.begin(self, execute)
        finally:
            self.sampling = self.run = self.guider = None
            self.start = (None, None, None)

    def sample(self, run: Optional[Run], execute: Callable[[], Any]) -> Any:
        """The sampling itself, with `run` attending; None: ComfyUI's own attention."""
        if run is None:
            return execute()
        self.run = run
        with self.sampling.hooked(run.session):
            run.install()
            return execute()

    # ---- APPLY_MODEL

    def apply_model(self, executor: Any, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None, **kwargs):
        options = transformer_options if transformer_options is not None else {}
        execute = lambda: executor(x, t, c_concat, c_crossattn, control, options, **kwargs)  # noqa: E731
        if self.run is None:
            return execute()
        sampling = self.sampling
        if sampling.transformer.grid(x.shape) != sampling.grid:
            raise Unsupported(
                f"calibatt: a part of the video is sampled by itself ({_grid(sampling.transformer.grid(x.shape))} of {_grid(sampling.grid)}):"
                " areas, tiles and context windows do not combine with a plan"
            )
        sigma = float(options["sigmas"].flatten()[0])
        step = sampling.step_of(sigma)
        made = self.run.without_forward(step, sigma, x, options)
        if made is not None:
            return made
        if not self.run.begin_forward(step, list(options.get("cond_or_uncond", [0])), x.shape[0]):
            return execute()
        self.active = True
        try:
            with sampling.forward(kwargs, options):
                result = execute()
        finally:
            self.active = False
        if sampling.calls == 0:  # nothing leaves out a run's first forward
            raise Unsupported(
                "calibatt: no self-attention reached the plan. Another node replaced ComfyUI's attention after calibatt's: put"
                " calibatt's node behind that one. Or ComfyUI is older than 0.3.60: update it"
            )
        self.run.ran(step, sigma, x, options, result)
        return result

    # ---- each attention

    @untraced
    def override(self, func: Callable[..., Any], q, k, v, heads: int, mask=None, **kwargs):
        layer = self.sampling.layer if self.active else None
        if layer is None:
            if self.active and q.shape == k.shape and q.shape[-2] >= self.sampling.num_tokens and self.sampling.is_compiled():
                raise Unsupported("calibatt: compiled code ran a self-attention without telling its layer; remove the node that compiles the model")
            return self._theirs(func, q, k, v, heads, mask, kwargs)
        sampling = self.sampling
        split = kwargs.get("skip_reshape", False)  # [B, heads, tokens, head_dim] instead of [B, tokens, heads · head_dim]
        q_, k_, v_ = ((x.transpose(1, 2) if split else x.unflatten(-1, (heads, -1))) for x in (q, k, v))
        self._require(q_, mask)
        k_, v_ = k_.to(q_.dtype), v_.to(q_.dtype)
        order = sampling.call_order(q_.shape[1])
        if order is not None:
            q_, k_, v_ = (x.index_select(1, order[0]) for x in (q_, k_, v_))
        out = torch.empty(q_.shape, dtype=q_.dtype, device=q_.device)

        def dense(samples: slice) -> None:
            given = (x[samples].flatten(2) for x in (q_, k_, v_))
            plain = {name: value for name, value in kwargs.items() if name not in ("skip_reshape", "skip_output_reshape")}
            out[samples] = self._theirs(func, *given, heads, None, plain).unflatten(-1, (heads, -1))

        self.run.attend(layer, q_, k_, v_, out, dense)
        sampling.calls += 1
        if order is not None:
            out = out.index_select(1, order[1])
        return out.transpose(1, 2) if kwargs.get("skip_output_reshape", False) else out.flatten(2)

    def _theirs(self, func, q, k, v, heads, mask, kwargs):
        """As without calibatt: by the override that another node had put there, or ComfyUI's choice."""
        if self.previous is not None:
            return self.previous(func, q, k, v, heads, mask=mask, **kwargs)
        return func(q, k, v, heads, mask=mask, **kwargs)

    def _require(self, q: torch.Tensor, mask: Any) -> None:
        sampling = self.sampling
        if mask is not None:
            raise Unsupported("calibatt: this model masks its self-attention, which a plan does not know; remove what brings the mask")
        if q.dtype not in DTYPES:
            raise Unsupported(f"calibatt: attention in {q.dtype} is not supported; use bf16, fp16 or fp32")
        joint = sampling.transformer.joint and q.shape[1] > sampling.num_tokens  # text behind
        require_tokens(sampling.num_tokens if joint else q.shape[1], sampling.num_tokens)


def _grid(grid: tuple[int, int, int]) -> str:
    return "×".join(map(str, grid))


def attach(model: Any, begin: Callable[[Attachment, Callable[[], Any]], Any]) -> Any:
    """A clone of the model whose sampling runs go through `begin(attachment, execute)`. Raises Unsupported."""
    transformer_of(model.model.diffusion_model)
    if model.get_wrappers(comfy.patcher_extension.WrappersMP.OUTER_SAMPLE, KEY):
        raise Unsupported("calibatt: the model has a plan or a calibration already; connect the model from before that node")
    clone = model.clone()
    options = clone.model_options["transformer_options"]
    attachment = Attachment(begin, options.get(OVERRIDE))
    options[OVERRIDE] = attachment.override
    clone.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.OUTER_SAMPLE, KEY, attachment.outer_sample)
    clone.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.APPLY_MODEL, KEY, attachment.apply_model)
    return clone


class Planned(Run):
    def __init__(self, sampling: Sampling, session: Session):
        super().__init__(sampling, session)
        self.predictor = StepPredictor(session.step_rules(len(sampling.sigmas)))
        self.reuses = any(rule.sources for rule in self.predictor.rules)
        self.asked: set[tuple[int, Any]] = set()  # steps and conditionings
        if self.reuses:
            _refuse_step_caches(sampling.patcher)

    def without_forward(self, step, sigma, x, options):
        """The model's answer is the denoised latent x − σ·v; v = (x − denoised) / σ is what is predicted, for each conditioning by itself."""
        if not self.reuses:
            return None
        parts = _conditionings(options)
        for part in parts:
            if (step, part) in self.asked:
                raise Unsupported(
                    f"calibatt: the model is asked more than once for step {step} with one prompt, and the plan runs no forward in some steps: use a"
                    " sampler that asks once a step, such as euler, uni_pc or dpmpp_2m, without skip-layer guidance; or a plan of density alone"
                )
            self.asked.add((step, part))
        if not self.predictor.reuses(step):
            return None
        velocities = [self.predictor.predicted(step, part, each) for part, each in zip(parts, x.chunk(len(parts)))]
        return x - sigma * torch.cat(velocities).to(x.dtype)

    def ran(self, step, sigma, x, options, denoised):
        if not self.reuses:
            return
        parts = _conditionings(options)
        for part, each, result in zip(parts, x.chunk(len(parts)), denoised.chunk(len(parts))):
            self.predictor.computed(step, part, each, (each - result) / sigma)

    def begin_forward(self, step, branches, batch):
        self.announced = (step, 1 if branches and all(branch == 1 for branch in branches) else 0)
        return True

    def attend(self, layer, q, k, v, out, dense):
        if self.announced is not None:  # a step that a caching node leaves out never gets here
            self.session.begin_forward(*self.announced)
            self.announced = None
        self.session.attend(layer, q, k, v, out)


def _conditionings(options: dict[str, Any]) -> list[Any]:
    """What tells the parts of a batch apart, and is the same in every step."""
    branches = list(options.get("cond_or_uncond", [0]))
    uuids = options.get("uuids") or [branches[:index].count(branch) for index, branch in enumerate(branches)]
    return list(zip(branches, uuids))


def _refuse_step_caches(patcher: Any) -> None:
    for keys in getattr(patcher, "wrappers", {}).values():
        for key in keys:
            if str(key).lower() in STEP_CACHES:
                raise Unsupported(
                    f"calibatt: the plan runs no forward in some steps, which it chose together, and the node {STEP_CACHES[key.lower()]} leaves out others:"
                    " remove that node, or use a plan of density alone"
                )


def apply_plan(model: Any, plan: Plan, transformer: Optional[int], on_mismatch: str, tell: Callable[[str], None]) -> Any:
    """A clone that samples by the plan. transformer: which of the plan's the model is; None: by noise level. `tell` is
    given what each run did."""

    def begin(attachment: Attachment, execute: Callable[[], Any]) -> Any:
        sampling = attachment.sampling
        facts = sampling.facts(_step_transformer(plan, sampling.sigmas, transformer), len(plan.transformers))
        session = Session.open(plan, facts, sampling.device, on_mismatch, reuses_steps=True)
        try:
            reason = session.report().get("fallback_reason")
            run = None if reason else Planned(sampling, session)
            result = attachment.sample(run, execute)
            tell(f"dense: {reason}" if run is None else _told(session.report(), sampling, run.predictor))
            return result
        finally:
            session.close()

    return attach(model, begin)


def _step_transformer(plan: Plan, sigmas: tuple[float, ...], transformer: Optional[int]) -> tuple[int, ...]:
    if len(plan.transformers) < 2:
        return ()
    if transformer is not None:
        return (transformer,) * len(sigmas)
    each = nearest_transformers(plan, sigmas)
    if len(set(each)) > 1:
        raise Unsupported(
            f"calibatt: by their noise levels ({sigmas[0]:.3f} to {sigmas[-1]:.3f}) the steps of this sampler belong to both transformers of the"
            " plan, and one model does them all; say in Apply Plan which one it is"
        )
    return each


def _told(report: dict[str, Any], sampling: Sampling, predictor: StepPredictor) -> str:
    lines = [f"density {report['density']:.3f} over {sampling.calls} attention calls"]
    if predictor.reused:
        lines.append(f"steps: {described(predictor.reused, len(sampling.sigmas))}")
    if report.get("step_mapping"):
        lines.append(report["step_mapping"])
    lines += [f"tokens are reordered at every call, which costs some 3 %: {reason}" for reason in sampling.order_reasons]
    return "\n".join([*lines, *report.get("warnings", [])])


def log(text: str) -> None:
    for line in text.splitlines():
        logging.info("calibatt: %s", line)
