"""A small stand-in for ComfyUI: what integrations/comfyui uses of it, with the names and signatures that ComfyUI has.

Modules that the nodes import, a model patcher with clones and wrappers, a sampler, and two tiny transformers whose
blocks call attention as ComfyUI's do.
"""

import copy
import importlib.util
import sys
import types
from pathlib import Path

import torch
from torch import nn

ROOT = Path(__file__).resolve().parents[2]
OUTER_SAMPLE, APPLY_MODEL = "outer_sample", "apply_model"


class Executor:
    """Calls wrappers from the first to the last, then what they wrap."""

    def __init__(self, original, class_obj, wrappers):
        self.original, self.class_obj, self.wrappers = original, class_obj, wrappers

    def __call__(self, *args, **kwargs):
        if not self.wrappers:
            return self.original(*args, **kwargs)
        return self.wrappers[0](Executor(self.original, self.class_obj, self.wrappers[1:]), *args, **kwargs)


def sdpa(q, k, v, heads, mask=None, skip_reshape=False, skip_output_reshape=False, **_):
    if not skip_reshape:
        q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return out if skip_output_reshape else out.transpose(1, 2).flatten(2)


def optimized_attention(q, k, v, heads, mask=None, transformer_options=None, **kwargs):
    override = (transformer_options or {}).get("optimized_attention_override")
    if override is not None:
        return override(sdpa, q, k, v, heads, mask=mask, transformer_options=transformer_options, **kwargs)
    return sdpa(q, k, v, heads, mask=mask, **kwargs)


def rotated(x, table):
    """x [B, tokens, heads, d], table [1, tokens, 1, d/2, 2, 2]."""
    pairs = x.unflatten(-1, (-1, 1, 2))
    return (table[..., 0] * pairs[..., 0] + table[..., 1] * pairs[..., 1]).flatten(-2)


def rotations(angles):
    """[…] → […, 2, 2]."""
    return torch.stack([angles.cos(), -angles.sin(), angles.sin(), angles.cos()], -1).unflatten(-1, (2, 2))


class WanAttention(nn.Module):
    def __init__(self, dim, heads, context_dim=None):
        super().__init__()
        self.heads = heads
        self.q, self.o = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.k, self.v = nn.Linear(context_dim or dim, dim), nn.Linear(context_dim or dim, dim)

    def forward(self, x, freqs=None, context=None, transformer_options=None):
        source = x if context is None else context
        q, k = self.q(x).unflatten(-1, (self.heads, -1)), self.k(source).unflatten(-1, (self.heads, -1))
        if freqs is not None:
            q, k = rotated(q, freqs), rotated(k, freqs)
        out = optimized_attention(q.flatten(2), k.flatten(2), self.v(source), heads=self.heads, transformer_options=transformer_options)
        return self.o(out)


class WanBlock(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, elementwise_affine=False)
        self.self_attn, self.cross_attn = WanAttention(dim, heads), WanAttention(dim, heads)
        self.modulation = nn.Parameter(torch.randn(1, 6, dim) * 0.3)
        self.ffn = nn.Linear(dim, dim)

    def forward(self, x, e, freqs, context, context_img_len=257, transformer_options=None):
        shift, scale, gate = (self.modulation.unsqueeze(0) + e).unbind(2)[:3]
        x = x + gate * self.self_attn(self.norm1(x) * (1 + scale) + shift, freqs, transformer_options=transformer_options)
        x = x + self.cross_attn(x, context=context, transformer_options=transformer_options)
        return x + self.ffn(x)


class RopeEmbedder(nn.Module):
    def __init__(self, head_dim):
        super().__init__()
        self.register_buffer("frequencies", torch.rand(3, head_dim // 2))

    def forward(self, ids):  # [1, tokens, 3] → [1, 1, tokens, d/2, 2, 2]
        return rotations(ids @ self.frequencies).unsqueeze(1)


class WanModel(nn.Module):
    dtype = torch.float32

    def __init__(self, dim=32, num_heads=2, num_layers=3, channels=4, context_dim=32):
        super().__init__()
        self.dim, self.num_heads, self.patch_size, self.channels = dim, num_heads, (1, 2, 2), channels
        self.patch_embedding = nn.Conv3d(channels, dim, self.patch_size, self.patch_size)
        self.rope_embedder = RopeEmbedder(dim // num_heads)
        self.time = nn.Linear(1, 6 * dim)
        self.blocks = nn.ModuleList(WanBlock(dim, num_heads) for _ in range(num_layers))
        self.head = nn.Linear(dim, channels * 4)

    def forward(self, x, timestep, context, transformer_options=None, **kwargs):
        embedded = self.patch_embedding(x)
        frames, rows, columns = grid = embedded.shape[2:]
        ids = torch.cartesian_prod(*(torch.arange(n, dtype=torch.float32) for n in grid)).unsqueeze(0)
        freqs = self.rope_embedder(ids).movedim(1, 2)
        tokens = embedded.flatten(2).transpose(1, 2)
        e = self.time(timestep.flatten().unsqueeze(-1) / 1000).reshape(len(x), -1, 6, self.dim)
        e = e.repeat_interleave(tokens.shape[1] // e.shape[1], 1) if e.shape[1] > 1 else e
        replaced = (transformer_options or {}).get("patches_replace", {}).get("dit", {})
        for i, block in enumerate(self.blocks):
            if ("double_block", i) in replaced:
                tokens = replaced["double_block", i]({"img": tokens}, {})["img"]
            else:
                tokens = block(tokens, e=e, freqs=freqs, context=context, transformer_options=transformer_options)
        out = self.head(tokens).view(-1, frames, rows, columns, 2, 2, self.channels)
        return out.permute(0, 6, 1, 2, 4, 3, 5).reshape(x.shape)


class MochiAttention(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.qkv_x, self.qkv_y = nn.Linear(dim, 3 * dim), nn.Linear(dim, 3 * dim)
        self.proj_x, self.proj_y = nn.Linear(dim, dim), nn.Linear(dim, dim)

    def forward(self, x, y, rope_cos=None, rope_sin=None, transformer_options=None):
        q, k, v = self.qkv_x(x).unflatten(-1, (3, self.heads, -1)).unbind(2)

        def turn(part):
            even, odd = part[..., 0::2], part[..., 1::2]
            return torch.stack([even * rope_cos - odd * rope_sin, even * rope_sin + odd * rope_cos], -1).flatten(-2)

        text = self.qkv_y(y).unflatten(-1, (3, self.heads, -1)).unbind(2)
        joined = [torch.cat(pair, 1).transpose(1, 2) for pair in zip((turn(q), turn(k), v), text)]
        out = optimized_attention(*joined, self.heads, skip_reshape=True, transformer_options=transformer_options)
        return self.proj_x(out[:, : x.shape[1]]), self.proj_y(out[:, x.shape[1] :])


def rms_norm(x):
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)


class MochiBlock(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.mod_x, self.attn = nn.Linear(dim, 4 * dim), MochiAttention(dim, heads)

    def forward(self, x, c, y, transformer_options=None, **rope):
        scale, gate, _, _ = self.mod_x(nn.functional.silu(c)).chunk(4, dim=1)
        made, text = self.attn(rms_norm(x) * (1 + scale.unsqueeze(1)), y, transformer_options=transformer_options, **rope)
        return x + rms_norm(made) * gate.tanh().unsqueeze(1), y + text


class TokensOf(nn.Module):
    def __init__(self, channels, dim):
        super().__init__()
        self.proj = nn.Conv3d(channels, dim, (1, 2, 2), (1, 2, 2))

    def forward(self, x):
        return self.proj(x).flatten(2).transpose(1, 2)


class FinalLayer(nn.Module):
    def __init__(self, dim, out):
        super().__init__()
        self.linear = nn.Linear(dim, out)

    def forward(self, x, c):
        return self.linear(x)


class AsymmDiTJoint(nn.Module):
    dtype = torch.float32

    def __init__(self, dim=32, num_heads=2, num_layers=2, channels=4):
        super().__init__()
        self.num_heads, self.head_dim, self.patch_size, self.channels = num_heads, dim // num_heads, 2, channels
        self.x_embedder, self.final_layer = TokensOf(channels, dim), FinalLayer(dim, channels * 4)
        self.time = nn.Linear(1, dim)
        self.blocks = nn.ModuleList(MochiBlock(dim, num_heads) for _ in range(num_layers))
        self.register_buffer("frequencies", torch.rand(3, num_heads, self.head_dim // 2))

    def forward(self, x, timestep, context, transformer_options=None, **kwargs):
        grid = x.shape[2], x.shape[3] // 2, x.shape[4] // 2
        ids = torch.cartesian_prod(*(torch.arange(n, dtype=torch.float32) for n in grid))
        angles = torch.einsum("np,phf->nhf", ids, self.frequencies)
        tokens, c, y = self.x_embedder(x), self.time(timestep.unsqueeze(-1) / 1000), context
        for block in self.blocks:
            tokens, y = block(tokens, c, y, rope_cos=angles.cos(), rope_sin=angles.sin(), transformer_options=transformer_options)
        out = self.final_layer(tokens, c).view(-1, *grid, 2, 2, self.channels)
        return out.permute(0, 6, 1, 2, 4, 3, 5).reshape(x.shape)


class BaseModel:
    manual_cast_dtype = None
    latent_format = types.SimpleNamespace()
    model_sampling = types.SimpleNamespace(shift=3.0)

    def __init__(self, diffusion_model):
        self.diffusion_model = diffusion_model

    def get_dtype(self):
        return self.diffusion_model.dtype

    def apply_model(self, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None, **kwargs):
        return Executor(self._apply_model, self, transformer_options["wrappers"].get(APPLY_MODEL, []))(
            x, t, c_concat, c_crossattn, control, transformer_options, **kwargs
        )

    def _apply_model(self, x, t, c_concat, c_crossattn, control, transformer_options, denoise_mask=None, extra_frame=None, **kwargs):
        """The denoised latent, as ComfyUI's flow models give it. t: noise levels."""
        frames, sigma, t = x.shape[2], t.view(-1, 1, 1, 1, 1), t * 1000
        given = x if extra_frame is None else torch.cat([x, extra_frame], 2)
        if denoise_mask is not None:  # a noise level for each frame
            t = denoise_mask * t.unsqueeze(-1)
        return x - sigma * self.diffusion_model(given, t, context=c_crossattn, transformer_options=transformer_options)[:, :, :frames]


class ModelPatcher:
    load_device = torch.device("cpu")

    def __init__(self, model):
        self.object_patches, self.patches = {}, {}
        self.model, self.wrappers, self.model_options = model, {}, {"transformer_options": {}}

    def clone(self):
        other = ModelPatcher(self.model)
        other.wrappers = {kind: {key: list(each) for key, each in keys.items()} for kind, keys in self.wrappers.items()}
        other.object_patches, other.patches = dict(self.object_patches), dict(self.patches)
        other.model_options = copy.deepcopy(self.model_options)
        return other

    def get_model_object(self, name):
        return self.object_patches.get(name, getattr(self.model, name))

    def add_wrapper_with_key(self, kind, key, wrapper):
        self.wrappers.setdefault(kind, {}).setdefault(key, []).append(wrapper)

    def get_wrappers(self, kind, key):
        return self.wrappers.get(kind, {}).get(key, [])


def sample_euler():
    """The name of what a sampler calls is all that is looked at."""


class Guider:
    """Samples by Euler's method. together: both branches in one batch."""

    def __init__(self, patcher, positive, negative=None, cfg=5.0, together=False, arguments=None, repeat=1):
        self.model_patcher, self.model_options, self.cfg = patcher, patcher.model_options, cfg
        self.conds = {"positive": [{"cross_attn": positive}], "negative": [{"cross_attn": negative}] if negative is not None else []}
        self.together, self.arguments, self.repeat = together, arguments or {}, repeat

    def sample(self, noise, sigmas, seed=7):
        wrappers = [wrapper for each in self.model_patcher.wrappers.get(OUTER_SAMPLE, {}).values() for wrapper in each]
        return Executor(self.outer_sample, self, wrappers)(
            noise, torch.zeros_like(noise), types.SimpleNamespace(sampler_function=sample_euler), sigmas, None, None, True, seed
        )

    def outer_sample(self, noise, latent, sampler, sigmas, denoise_mask=None, callback=None, disable_pbar=False, seed=None):
        x = noise
        for step in range(len(sigmas) - 1):
            for _ in range(self.repeat):
                denoised = self.predict(x, sigmas, step)
            x = x + (sigmas[step + 1] - sigmas[step]) * (x - denoised) / sigmas[step]
        return x

    def predict(self, x, sigmas, step):
        branches = [branch for branch, name in ((1, "negative"), (0, "positive")) if self.conds[name]]
        outputs = {}
        for group in [branches] if self.together else [[branch] for branch in branches]:
            context = torch.cat([self.conds["positive" if branch == 0 else "negative"][0]["cross_attn"] for branch in group])
            options = {
                **self.model_options["transformer_options"],
                "wrappers": {kind: [w for each in keys.values() for w in each] for kind, keys in self.model_patcher.wrappers.items()},
                "cond_or_uncond": group, "sigmas": sigmas[step : step + 1], "sample_sigmas": sigmas,
            }  # fmt: skip
            model = self.model_patcher.model
            t = sigmas[step].repeat(len(group) * len(x))
            made = model.apply_model(
                torch.cat([x] * len(group)), t, c_crossattn=context.repeat_interleave(len(x), 0), transformer_options=options, **self.arguments
            )
            outputs.update(zip(group, made.chunk(len(group))))
        return outputs[0] if 1 not in outputs else outputs[1] + self.cfg * (outputs[0] - outputs[1])


def _io():
    def field(kind):
        class Input:
            def __init__(self, id, **options):  # noqa: A002
                self.id, self.kind, self.options = id, kind, options

        class Output:
            def __init__(self, display_name=None):
                self.kind, self.display_name = kind, display_name

        return types.SimpleNamespace(Input=Input, Output=Output)

    class Schema:
        def __init__(self, node_id, inputs, outputs, display_name=None, category="", description="", hidden=()):
            self.node_id, self.inputs, self.outputs, self.hidden = node_id, inputs, outputs, hidden

    class NodeOutput:
        def __init__(self, *args):
            self.args = args

    class ComfyNode:
        hidden = types.SimpleNamespace(unique_id="1")

    kinds = {name: field(name.upper()) for name in ("Model", "Combo", "String", "Float", "Int", "Boolean", "Latent")}
    return types.SimpleNamespace(
        Schema=Schema, NodeOutput=NodeOutput, ComfyNode=ComfyNode, Custom=field, Hidden=types.SimpleNamespace(unique_id="UNIQUE_ID"), **kinds
    )


class PromptServer:
    instance = None


def install(models_dir, monkeypatch):
    """The package of the nodes, as ComfyUI would import it, on this stand-in."""
    paths = {}

    def listed(folder):
        return sorted(str(path.relative_to(base)) for base in map(Path, paths[folder]) for path in base.rglob("*") if path.is_file())

    def full(folder, name):
        return next(str(Path(base) / name) for base in paths[folder] if (Path(base) / name).is_file())

    modules = {
        "comfy": types.ModuleType("comfy"),
        "comfy.patcher_extension": types.SimpleNamespace(WrappersMP=types.SimpleNamespace(OUTER_SAMPLE=OUTER_SAMPLE, APPLY_MODEL=APPLY_MODEL)),
        "comfy_api": types.ModuleType("comfy_api"),
        "comfy_api.latest": types.SimpleNamespace(ComfyExtension=object, io=_io()),
        "server": types.SimpleNamespace(PromptServer=PromptServer),
        "folder_paths": types.SimpleNamespace(
            models_dir=str(models_dir), add_model_folder_path=lambda name, path: paths.setdefault(name, []).append(path),
            get_filename_list=listed, get_full_path_or_raise=full, get_folder_paths=lambda name: paths[name],
        ),
    }  # fmt: skip
    modules["comfy"].patcher_extension = modules["comfy.patcher_extension"]
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    for name in [name for name in sys.modules if name.split(".")[0] == "calibatt_comfyui"]:
        monkeypatch.delitem(sys.modules, name)
    folder = ROOT / "integrations/comfyui"
    spec = importlib.util.spec_from_file_location("calibatt_comfyui", folder / "__init__.py")
    package = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "calibatt_comfyui", package)
    spec.loader.exec_module(package)
    return package


def random_weights(module):
    """For a transformer of ComfyUI's: large enough for attention to be anything but even."""
    random = torch.Generator().manual_seed(11)
    weights = {}
    for name, each in module.state_dict().items():
        scale = 0.3 if each.ndim < 2 else 1.5 / each[0].numel() ** 0.5
        weights[name] = torch.randn(each.shape, generator=random) * scale + ("norm" in name and "weight" in name)
    return weights
