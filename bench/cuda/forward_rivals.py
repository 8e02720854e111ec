"""diffusers' side of forward.py: WanTransformer3DModel and MochiTransformer3DModel with random weights, timed and asked for predictions.

Inputs are a dict on the host: latents [channels, frames, rows, columns], timestep [1], texts: a list of [tokens, width], one for each forward
of a run. Wan runs one; Mochi runs the two of a guided step in one batch, as its pipe does, the second with the empty prompt's zero tokens.
"""

import contextlib
import time
from types import SimpleNamespace
from unittest.mock import patch

import diffusers.models.attention_processor as attention_module
import torch
from diffusers import MochiTransformer3DModel, WanTransformer3DModel
from diffusers.models.attention_processor import MochiAttnProcessor2_0
from diffusers.models.transformers.transformer_wan import WanAttnProcessor
from torch.nn.attention import SDPBackend, sdpa_kernel

BLOCK = 128  # tokens of the plan's query and key blocks
TEXT_TOKENS = 60
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def synchronize():
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def pairs_of(blocks, tokens, text=0):
    """[heads, query blocks, key blocks] → [1, heads, tokens + text, tokens + text]. Text sees and is seen by everything, and so is the
    block in which video ends and text begins."""
    whole = tokens // BLOCK if text > 0 else -(-tokens // BLOCK)  # blocks of video alone
    pairs = blocks[:, :whole, :whole].repeat_interleave(BLOCK, 1).repeat_interleave(BLOCK, 2)[:, :tokens, :tokens]
    more = tokens + text - pairs.shape[1]
    return torch.nn.functional.pad(pairs, (0, more, 0, more), value=True)[None]


class Rival:
    """A transformer of diffusers, first in float32 with weights that the dtype can represent."""

    def __init__(self, config, layers, dtype):
        self.dtype, self.compiled = dtype, False
        torch.manual_seed(1)
        with torch.device(DEVICE):
            self.model = self.model_class(num_layers=layers, **config).eval().requires_grad_(False)
        for name, parameter in self.model.named_parameters():
            self.initialise(name, parameter)
            parameter.copy_(parameter.to(dtype))

    def to_dtype(self):
        """As from_pretrained(torch_dtype=…) leaves it; buffers stay in float32."""
        kept = set(self.model._keep_in_fp32_modules or [])
        for name, parameter in self.model.named_parameters():
            if not kept & set(name.split(".")):
                parameter.data = parameter.data.to(self.dtype)
        if DEVICE == "cuda":
            torch.cuda.empty_cache()

    def padded_texts(self, inputs):
        """[texts, padded tokens, width], and which of the rows are there."""
        texts = inputs["texts"]
        rows = torch.zeros((len(texts), self.padded_tokens, texts[0].shape[1]))
        there = torch.zeros(rows.shape[:2], dtype=torch.bool)
        for index, text in enumerate(texts):
            rows[index, : len(text)] = text
            there[index, : len(text)] = True
        return rows, there

    def stance(self, compiled):
        """One set of weights for eager and compiled: this decides whether what was compiled is used."""
        return torch.compiler.set_stance("force_eager") if self.compiled and not compiled else contextlib.nullcontext()

    @torch.no_grad()
    def run(self, device_inputs, compiled=False):
        with self.stance(compiled), self.attention_backend():
            return self.model(*device_inputs, return_dict=False)[0]

    def predict(self, inputs, compiled=False):
        """[forwards, channels, frames, rows, columns] float32 on the host."""
        return self.run(self.to_device(inputs), compiled).float().cpu()

    def seconds(self, device_inputs, compiled=False):
        synchronize()
        begin = time.perf_counter()
        self.run(device_inputs, compiled)
        synchronize()
        return time.perf_counter() - begin


class MaskedWanProcessor(WanAttnProcessor):
    """Self-attention of which only some blocks are computed: the mask is spread out to pairs of tokens for each call."""

    def __init__(self, blocks, tokens):
        super().__init__()
        self.blocks, self.tokens = blocks.bool().to(DEVICE), tokens

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, rotary_emb=None):
        assert attention_mask is None and encoder_hidden_states is None and hidden_states.shape[1] == self.tokens
        return super().__call__(attn, hidden_states, None, pairs_of(self.blocks, self.tokens), rotary_emb)


class WanRival(Rival):
    name, model_class, channels, text_tokens = "WanTransformer3DModel", WanTransformer3DModel, 16, (TEXT_TOKENS,)
    padded_tokens = 512  # rows of zeros behind the text, which the public models attend to

    @staticmethod
    def text_width(config):
        return config["text_dim"]

    @staticmethod
    def initialise(name, parameter):
        if name.endswith(("norm_q.weight", "norm_k.weight", "norm2.weight")):
            parameter.fill_(1)
        elif parameter.dim() > 1 and "scale_shift_table" not in name:
            parameter.mul_(3**0.5)  # a deviation of 1/√inputs; with torch's own the layers would hardly show in the prediction

    def to_device(self, inputs):
        dtype = self.model.proj_out.weight.dtype
        latents, text = inputs["latents"][None], self.padded_texts(inputs)[0]
        return latents.to(DEVICE, dtype), inputs["timestep"].to(DEVICE, torch.int64), text.to(DEVICE, dtype)

    def set_attention_backend(self, name):
        self.model.set_attention_backend(name)

    def attention_backend(self):
        return contextlib.nullcontext()

    def predict_masked(self, inputs, masks):
        tokens = inputs["latents"][0].numel() // 4
        before = [block.attn1.processor for block in self.model.blocks]
        try:
            for block, layer in zip(self.model.blocks, masks, strict=True):
                block.attn1.set_processor(MaskedWanProcessor(layer, tokens))
            return self.predict(inputs)
        finally:
            for block, processor in zip(self.model.blocks, before, strict=True):
                block.attn1.set_processor(processor)

    compilations = ("",)

    def compile(self, mode, _how):
        self.model.compile_repeated_blocks(fullgraph=True, mode=mode)
        self.compiled = True


class MaskedMochiProcessor(MochiAttnProcessor2_0):
    """The same for joint attention: diffusers' processor with another attention function."""

    def __init__(self, blocks, tokens):
        super().__init__()
        self.blocks, self.tokens = blocks.bool().to(DEVICE), tokens

    def __call__(self, *arguments, **keywords):
        def masked(query, key, value, **_):
            pairs = pairs_of(self.blocks, self.tokens, query.shape[2] - self.tokens)
            return torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=pairs)

        functions = SimpleNamespace(scaled_dot_product_attention=masked, pad=torch.nn.functional.pad)
        with patch.object(attention_module, "F", functions):
            return super().__call__(*arguments, **keywords)


class MochiRival(Rival):
    """Its processor calls torch's attention by itself, so the backends are torch's, by the names that diffusers has for them."""

    name, model_class, channels, text_tokens = "MochiTransformer3DModel", MochiTransformer3DModel, 12, (TEXT_TOKENS, 0)
    padded_tokens = 256
    backends = {"native": None, "_native_cudnn": SDPBackend.CUDNN_ATTENTION, "_native_flash": SDPBackend.FLASH_ATTENTION,
                "_native_efficient": SDPBackend.EFFICIENT_ATTENTION}  # fmt: skip
    backend = None

    @staticmethod
    def text_width(config):
        return config.get("text_embed_dim", 4096)

    @staticmethod
    def initialise(name, parameter):
        if name == "pos_frequencies":  # for frames, rows and columns: a few turns over a video
            parameter.normal_().mul_(parameter.new_tensor([0.3, 0.05, 0.05])[:, None, None])
        elif parameter.dim() > 1:
            parameter.mul_(3**0.5)

    def to_device(self, inputs):
        dtype = self.model.proj_out.weight.dtype
        text, there = self.padded_texts(inputs)
        latents = inputs["latents"][None].expand(len(text), -1, -1, -1, -1)
        timestep = inputs["timestep"].to(DEVICE, torch.int64).expand(len(text))
        return latents.to(DEVICE, dtype), text.to(DEVICE, dtype), timestep, there.to(DEVICE)

    def set_attention_backend(self, name):
        if name not in self.backends:
            raise ValueError("diffusers' processor of Mochi has no such backend")
        self.backend = self.backends[name]

    def attention_backend(self):
        if self.backend is None:
            return contextlib.nullcontext()
        return sdpa_kernel([self.backend, SDPBackend.MATH], set_priority=True)  # the pooled prompt's heads are too wide for most

    def predict_masked(self, inputs, masks):
        tokens = inputs["latents"][0].numel() // 4
        before = [block.attn1.processor for block in self.model.transformer_blocks]
        try:
            for block, layer in zip(self.model.transformer_blocks, masks, strict=True):
                block.attn1.processor = MaskedMochiProcessor(layer, tokens)
            return self.predict(inputs)
        finally:
            for block, processor in zip(self.model.transformer_blocks, before, strict=True):
                block.attn1.processor = processor

    compilations = ("", " in parts")  # the first is faster, where it works

    def compile(self, mode, how):
        """Block by block, as the model has no list of repeated ones. Its processor asks which text is there, which breaks a graph by default."""
        torch.compiler.reset()
        torch._dynamo.config.capture_dynamic_output_shape_ops = how == ""
        for block in self.model.transformer_blocks:
            block.compile(fullgraph=how == "", mode=mode)
        self.compiled = True


RIVALS = {"wan": WanRival, "mochi": MochiRival}
