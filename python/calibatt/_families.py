"""What calibatt knows of each kind of pipe: its transformers, how their tokens run, and what its scheduler says of a run."""

from __future__ import annotations

import threading
import weakref
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

import torch

from . import _errors, _library, _ops, _processors
from ._runtime import Binding, ForwardContext, Grid, Sample, Switch
from ._session import DTYPES, OutputFacts, RunFacts

SCHEDULERS = {"UniPCMultistepScheduler": "unipc", "FlowMatchEulerDiscreteScheduler": "euler"}  #: as plans name them


def unwrapped(module: Any) -> Any:
    """The module itself, where torch.compile wrapped it."""
    return getattr(module, "_orig_mod", module)


class Family:
    """One kind of pipe."""

    pipeline_class: str
    transformer_class: str
    processor_class: str
    blocks_name: str
    transformer_names: Tuple[str, ...]
    joint: bool  #: text stands behind the video in one attention, in another number for each sample
    prediction_sign = 1.0  #: 1: the transformer predicts noise − data; −1: data − noise

    def transformers(self, pipe: Any) -> List[Any]:
        """Those that the pipe has, in the order of falling noise levels."""
        found = [unwrapped(getattr(pipe, name, None)) for name in self.transformer_names]
        if found[0] is None:
            raise _errors.Unsupported(f"the pipe has no transformer; load it with one, a {self.transformer_class}")
        return [transformer for transformer in found if transformer is not None]

    def blocks(self, transformer: Any) -> List[Any]:
        return list(getattr(transformer, self.blocks_name))

    def hook(self, transformer: Any, site: torch.Tensor, switch: Switch) -> List[Any]:
        """Puts tokens in order before the blocks and back behind them. Returns the handles of the hooks."""
        raise NotImplementedError

    def grid_of(self, transformer: Any, latents: torch.Tensor) -> Grid:
        """Of the latents that a forward is called with."""
        raise NotImplementedError

    def processor(self, site: torch.Tensor, switch: Switch, original: Any) -> Any:
        raise NotImplementedError

    def video_of(self, pipe: Any, grid: Grid) -> Tuple[int, int, int]:
        """Frames, height and width in pixels of the video that such a latent grid decodes to."""
        raise NotImplementedError

    def branch_of_sample(self, pipe: Any, sample: Sample) -> int:
        """Which branch of guidance a batch's sample is of, where both are one batch."""
        return _library.CONDITIONAL

    def step_transformer(self, pipe: Any) -> Tuple[int, ...]:
        return ()

    def watch(self, block: Any, inputs: "BlockInputs") -> List[Any]:
        """Notes what a block is called with, for output_facts. Returns the handles of the hooks."""
        raise NotImplementedError

    def output_facts(self, block: Any, inputs: "BlockInputs", out: torch.Tensor, sample: int) -> OutputFacts:
        """What follows the attention in the block. out: [1, tokens, heads, head_dim], what the attention is going to write."""
        raise NotImplementedError

    def names(self, pipe: Any) -> Tuple[str, ...]:
        """What messages and plans call the transformers."""
        path = getattr(pipe.config, "_name_or_path", None) or type(pipe).__name__
        return (f"{self.transformer_class} {Path(str(path)).name}",) * len(self.transformers(pipe))

    def run_facts(self, pipe: Any, grid: Grid, num_layers: int, fingerprints: Sequence[Optional[str]]) -> RunFacts:
        """The run that pipe is in: its scheduler's steps are set. num_layers is told, since step caches hide blocks while a forward runs."""
        transformers = self.transformers(pipe)
        config, scheduler = transformers[0].config, pipe.scheduler
        return RunFacts(
            grid=grid,
            num_heads=config.num_attention_heads,
            head_dim=config.attention_head_dim,
            num_layers=num_layers,
            sigmas=noise_levels(scheduler),
            step_transformer=self.step_transformer(pipe),
            transformer_names=self.names(pipe),
            fingerprints=tuple(fingerprints),
            video=self.video_of(pipe, grid),
            flow_shift=flow_shift(scheduler),
            guidance_scale=guidance_of(pipe, "_guidance_scale"),
            scheduler=SCHEDULERS.get(type(scheduler).__name__),
            second_guidance_scale=guidance_of(pipe, "_guidance_scale_2") if len(transformers) > 1 else None,
        )


def guidance_of(pipe: Any, name: str) -> Optional[float]:
    scale = getattr(pipe, name, None)
    return None if scale is None else float(scale)


def noise_levels(scheduler: Any) -> Tuple[float, ...]:
    """[steps] σ of each step that the scheduler is set to: x = (1 − σ)·data + σ·noise."""
    count = len(scheduler.timesteps)
    levels = torch.as_tensor(scheduler.sigmas).double().cpu()[:count]
    if getattr(scheduler.config, "invert_sigmas", False):  # counts data, from 0 to 1
        levels = 1 - levels
        levels = levels.float().double()  # 1 − σ as float32 gives it, as a scheduler that counts noise has it
    result = tuple(levels.tolist())
    if not result or result[0] > 1 or result[-1] < 0 or any(later >= sooner for sooner, later in zip(result, result[1:])):
        raise _errors.Unsupported(f"the noise levels of {type(scheduler).__name__} do not fall from at most 1 to 0, one for each step; "
                                  "use a flow-matching scheduler of first order calls: UniPCMultistepScheduler or FlowMatchEulerDiscreteScheduler")  # fmt: skip
    return result


def flow_shift(scheduler: Any) -> float:
    shift = getattr(scheduler.config, "flow_shift", None)
    if shift is None:
        shift = getattr(scheduler, "shift", None)
    return float(shift or 0)


class BlockInputs:
    """What a block is running on, from its beginning to its attention."""

    residual: Optional[torch.Tensor] = None  #: [batch, tokens, channels]
    modulation: Optional[torch.Tensor] = None  #: what its gate comes from

    def clear(self) -> None:
        self.residual = self.modulation = None


def square_sum(x: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(x, dtype=torch.float32)) ** 2


def output_weight(linear: Any, like: torch.Tensor) -> torch.Tensor:
    """W_o, [out_features, in_features], as the layer applies it to `like`: with its LoRAs, unpacked, on the device that it computes on."""
    weight = getattr(linear, "weight", None)
    if type(linear) is torch.nn.Linear and weight.dtype in DTYPES and weight.device == like.device and not hasattr(linear, "_hf_hook"):
        return weight.detach().contiguous()
    features = linear.in_features
    applied = linear(torch.eye(features, dtype=like.dtype, device=like.device)) - linear(like.new_zeros((1, features)))
    return applied.T.contiguous()


def _grid(latents: torch.Tensor, patch: Grid) -> Grid:
    """latents: [batch, channels, frames, height, width]."""
    _, _, frames, height, width = latents.shape
    return frames // patch[0], height // patch[1], width // patch[2]


class Wan(Family):
    """Wan 2.1 and 2.2 text-to-video. Both branches of guidance are calls of their own; text is attended to in other layers."""

    pipeline_class = "WanPipeline"
    transformer_class = "WanTransformer3DModel"
    processor_class = "WanAttnProcessor"
    blocks_name = "blocks"
    transformer_names = ("transformer", "transformer_2")
    joint = False

    def grid_of(self, transformer: Any, latents: torch.Tensor) -> Grid:
        return _grid(latents, tuple(transformer.config.patch_size))

    def hook(self, transformer: Any, site: torch.Tensor, switch: Switch) -> List[Any]:
        patch = tuple(transformer.config.patch_size)
        arrange = torch.ops.calibatt.arrange

        def grid_of(latents: torch.Tensor) -> Grid:
            return _grid(latents, patch)

        def order_rope(_: Any, inputs: Any, output: Any) -> Any:  # the first of a forward
            if not switch.on:
                return output
            grid = grid_of(inputs[0])
            cos, sin = output
            return arrange(cos, site, *grid, True, False), arrange(sin, site, *grid, False, False)

        def order_patches(_: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:  # [batch, channels, frames, height, width]
            if not switch.on:
                return output
            grid = grid_of(inputs[0])
            tokens = arrange(output.flatten(2).transpose(1, 2), site, *grid, False, False)
            return tokens.transpose(1, 2).contiguous().unflatten(2, grid)  # blocks then see the strides that they always see

        def restore_order(_: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
            return arrange(output, site, 0, 0, 0, False, True) if switch.on else output

        return [
            transformer.rope.register_forward_hook(order_rope),
            transformer.patch_embedding.register_forward_hook(order_patches),
            transformer.proj_out.register_forward_hook(restore_order),
        ]

    def processor(self, site: torch.Tensor, switch: Switch, original: Any) -> Any:
        return _processors.WanProcessor(site, switch, original)

    def watch(self, block: Any, inputs: BlockInputs) -> List[Any]:
        def note(_: Any, given: Any, named: Dict[str, Any]) -> None:
            bound = {**dict(zip(("hidden_states", "encoder_hidden_states", "temb"), given)), **named}
            inputs.residual, inputs.modulation = bound["hidden_states"], bound["temb"]

        return [block.register_forward_pre_hook(note, with_kwargs=True)]

    def output_facts(self, block: Any, inputs: BlockInputs, out: torch.Tensor, sample: int) -> OutputFacts:
        assert inputs.residual is not None and inputs.modulation is not None
        modulation = inputs.modulation[sample].float()  # [6, channels], or [tokens, 6, channels] where each token has a timestep
        if modulation.dim() == 3:
            modulation = modulation[0]  # all the same: the video is made from text
        gate = (block.scale_shift_table[0].float() + modulation)[2].contiguous()
        facts = OutputFacts(output_weight(block.attn1.to_out[0], out), gate, square_sum(inputs.residual[sample]))
        inputs.clear()
        return facts

    def video_of(self, pipe: Any, grid: Grid) -> Tuple[int, int, int]:
        p_t, p_h, p_w = self.transformers(pipe)[0].config.patch_size
        spatial = pipe.vae_scale_factor_spatial
        return (grid[0] * p_t - 1) * pipe.vae_scale_factor_temporal + 1, grid[1] * p_h * spatial, grid[2] * p_w * spatial

    def step_transformer(self, pipe: Any) -> Tuple[int, ...]:
        if len(self.transformers(pipe)) == 1:
            return ()
        ratio = pipe.config.boundary_ratio
        if ratio is None:
            raise _errors.Unsupported("the pipe has a transformer_2 and no boundary_ratio; register one, 0.875 for Wan 2.2 T2V-A14B: "
                                      "pipe.register_to_config(boundary_ratio=0.875)")  # fmt: skip
        boundary = ratio * pipe.scheduler.config.num_train_timesteps
        return tuple(0 if t >= boundary else 1 for t in pipe.scheduler.timesteps.tolist())


class Mochi(Family):
    """Mochi 1. Both branches of guidance are one batch; each sample attends to its own video and text at once."""

    pipeline_class = "MochiPipeline"
    transformer_class = "MochiTransformer3DModel"
    processor_class = "MochiAttnProcessor2_0"
    blocks_name = "transformer_blocks"
    transformer_names = ("transformer",)
    joint = True
    prediction_sign = -1.0

    def grid_of(self, transformer: Any, latents: torch.Tensor) -> Grid:
        side = transformer.config.patch_size
        return _grid(latents, (1, side, side))

    def hook(self, transformer: Any, site: torch.Tensor, switch: Switch) -> List[Any]:
        patch = transformer.config.patch_size
        arrange = torch.ops.calibatt.arrange
        shape = _Shape()

        def note_shape(_: Any, inputs: Any, named: Dict[str, Any]) -> None:  # patch_embed sees frames of all samples as one batch
            latents = inputs[0] if inputs else named["hidden_states"]
            shape.batch, _, shape.frames, height, width = latents.shape
            shape.height, shape.width = height // patch, width // patch
            shape.timestep = inputs[2] if len(inputs) > 2 else named.get("timestep")

        def order_patches(_: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:  # [batch · frames, rows · columns, channels]
            if not switch.on:
                return output
            tokens = output.unflatten(0, (shape.batch, shape.frames)).flatten(1, 2)
            tokens = arrange(tokens, site, shape.frames, shape.height, shape.width, True, False, shape.timestep)
            return tokens.unflatten(1, (shape.frames, -1)).flatten(0, 1)

        def order_rope(_: Any, inputs: Any, output: Any) -> Any:  # [tokens, heads, channels / 2]
            if not switch.on:
                return output
            return tuple(arrange(x[None], site, shape.frames, shape.height, shape.width, False, False)[0] for x in output)

        def restore_order(_: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
            return arrange(output, site, 0, 0, 0, False, True) if switch.on else output

        return [
            transformer.register_forward_pre_hook(note_shape, with_kwargs=True),
            transformer.patch_embed.register_forward_hook(order_patches),
            transformer.rope.register_forward_hook(order_rope),
            transformer.proj_out.register_forward_hook(restore_order),
        ]

    def processor(self, site: torch.Tensor, switch: Switch, original: Any) -> Any:
        return _processors.MochiProcessor(site, switch, original)

    def watch(self, block: Any, inputs: BlockInputs) -> List[Any]:
        def note_residual(_: Any, given: Any, named: Dict[str, Any]) -> None:
            inputs.residual = given[0] if given else named["hidden_states"]

        def note_gate(_: Any, given: Any, output: Any) -> None:
            inputs.modulation = output[1]

        return [block.register_forward_pre_hook(note_residual, with_kwargs=True), block.norm1.register_forward_hook(note_gate)]

    def output_facts(self, block: Any, inputs: BlockInputs, out: torch.Tensor, sample: int) -> OutputFacts:
        assert inputs.residual is not None and inputs.modulation is not None
        residual, projection = inputs.residual[sample], block.attn1.to_out[0]

        def squared_gain() -> float:  # of the norm behind W_o, over the video's tokens
            projected = projection(out[:, : residual.shape[0]].flatten(2)).float()
            return 1 / (float(projected.square().mean()) + block.norm2.eps)

        gate = torch.tanh(inputs.modulation[sample].float()).contiguous()
        return OutputFacts(output_weight(projection, out), gate, square_sum(residual), squared_gain)

    def video_of(self, pipe: Any, grid: Grid) -> Tuple[int, int, int]:
        side = self.transformers(pipe)[0].config.patch_size * pipe.vae_spatial_scale_factor
        return (grid[0] - 1) * pipe.vae_temporal_scale_factor + 1, grid[1] * side, grid[2] * side

    def branch_of_sample(self, pipe: Any, sample: Sample) -> int:
        index, batch = sample
        guided = (getattr(pipe, "_guidance_scale", None) or 0) > 1
        return _library.UNCONDITIONAL if guided and index < batch // 2 else _library.CONDITIONAL


class _Shape:
    """Of the latents of the forward that runs, in tokens."""

    batch = frames = height = width = 0
    timestep: Optional[torch.Tensor] = None  #: [batch] that the forward was given


FAMILIES = (Wan(), Mochi())


def family_of(pipe: Any) -> Family:
    """Raises Unsupported, naming what is supported."""
    bases = [cls.__name__ for cls in type(pipe).__mro__]
    for family in FAMILIES:
        if family.pipeline_class in bases:
            return family
    known = " and ".join(family.pipeline_class for family in FAMILIES)
    raise _errors.Unsupported(f"{type(pipe).__name__} is not supported; calibatt knows diffusers' {known}")


def require_supported(family: Family, name: str, transformer: Any) -> None:
    """Raises Unsupported for what a plan cannot be combined with, and says what to do."""
    if type(transformer).__name__ != family.transformer_class:
        raise _errors.Unsupported(f"pipe.{name} is a {type(transformer).__name__}; calibatt knows {family.transformer_class}")
    if getattr(transformer, "_parallel_config", None) is not None:
        raise _errors.Unsupported(f"pipe.{name} runs on several devices (enable_parallelism); calibatt runs on one: load the pipe without it")
    for layer, block in enumerate(family.blocks(transformer)):
        processor = block.attn1.processor
        if type(processor).__name__ == family.processor_class:
            continue
        raise _errors.Unsupported(f"layer {layer} of pipe.{name} has the attention processor {type(processor).__name__} of something else; "
                                  f"take that away first, so that {family.processor_class} is there again")  # fmt: skip


def attach(runtime: Any) -> None:
    """Hooks and processors for all transformers of the runtime's pipe. Each binding knows how to give back what was there."""
    family = runtime.family
    for index, transformer in enumerate(family.transformers(runtime.pipe)):
        binding = Binding(runtime, index)
        runtime.bindings.append(weakref.ref(binding))
        runtime.blocks.append(family.blocks(transformer))
        binding.attachment = _Attachment(binding, transformer, family)
        binding.attached = True


class _Attachment:
    """What was changed in one transformer. It is the transformer's, so nothing here may keep that alive: else its memory would come back only
    when Python looks for cycles.
    """

    def __init__(self, binding: Binding, transformer: Any, family: Family):
        self._transformer = weakref.ref(transformer)
        self._attentions = [block.attn1 for block in family.blocks(transformer)]
        self._originals = [attention.processor for attention in self._attentions]
        self._handles = family.hook(transformer, _ops.site_tensor(binding.number, 0), binding.runtime.switch)
        for layer, (attention, original) in enumerate(zip(self._attentions, self._originals)):
            set_processor(attention, family.processor(_ops.site_tensor(binding.number, layer), binding.runtime.switch, original))
        self._had_context = transformer.__dict__.get("cache_context")
        transformer.cache_context = _Context(binding, self._had_context or weakref.WeakMethod(transformer.cache_context))

    def detach(self) -> None:
        for handle in self._handles:
            handle.remove()
        for attention, original in zip(self._attentions, self._originals):
            if getattr(attention.processor, "original", None) is original:  # else somebody set another since
                set_processor(attention, original)
        transformer = self._transformer()
        if transformer is not None and isinstance(transformer.__dict__.get("cache_context"), _Context):
            del transformer.cache_context
            if self._had_context is not None:
                transformer.cache_context = self._had_context


class _Context:
    """A transformer's cache_context that also tells its binding: within it, the pipe's word on the step is known."""

    def __init__(self, binding: Binding, inner: Any):
        self._binding, self._inner = binding, inner

    def __call__(self, name: str, *args: Any, **named: Any) -> Any:
        context = ForwardContext(name, named.get("step_index"), named.get("num_inference_steps"))
        inner = self._inner() if isinstance(self._inner, weakref.WeakMethod) else self._inner
        return _Entered(self._binding, inner(name, *args, **named), context)


class _Entered:
    def __init__(self, binding: Binding, inner: Any, context: ForwardContext):
        self._binding, self._inner, self._context = binding, inner, context

    def __enter__(self) -> Any:
        binding, thread = self._binding, threading.get_ident()
        if binding.context is not None and binding.thread != thread:
            raise _errors.Unsupported("two threads run one transformer at the same time, and a plan is for one run at a time; let them take turns, or "
                                      "call calibatt.restore(pipe)")  # fmt: skip
        entered = self._inner.__enter__()
        binding.context, binding.thread = self._context, thread
        self._give_back = binding.runtime.take_calls(binding)
        return entered

    def __exit__(self, *raised: Any) -> Any:
        self._give_back()
        self._binding.context = None
        return self._inner.__exit__(*raised)


def set_processor(attention: Any, processor: Any) -> None:
    if hasattr(attention, "set_processor"):
        attention.set_processor(processor)
    else:
        attention.processor = processor
