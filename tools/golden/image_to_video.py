"""Golden data of image to video: what diffusers' WanImageToVideoPipeline makes of a picture, in float32 on the CPU.

    python tools/golden/image_to_video.py

Writes tests/golden/data/i2v/: transformer/ and transformer_2/, a small pair as in Wan 2.2 I2V-A14B (random weights,
bfloat16), golden.safetensors with a picture [height, width, 3] and the frames [frames, height, width, 3] made of it, and
every setting in golden.json. Text encoder, tokenizer, autoencoder and scheduler are those of models/tiny-wan. The same in i2v_clip/ for one transformer that sees the picture through
CLIP, too, as in Wan 2.1 I2V, with image_encoder/, image_processor/, and what they make of the picture. And data/pictures/: files as
programs write them (photo.jpg in the eight orientations of a camera, with_alpha.png, grey.jpg, cmyk.jpg, lossy.webp), what Pillow
reads of each, and what its Lanczos and its cubic filter make of picture.png in other sizes. Deterministic. With `small` behind it, it writes
data/pictures/small/ alone: a PNG of every kind of pixel, pictures with Exif notes, and what diffusers reads of each by Pillow (golden.safetensors).
"""

import json
import pathlib
import shutil
import struct
import sys
import zlib

import numpy
import torch
from diffusers import AutoencoderKLWan, WanImageToVideoPipeline, WanPipeline, WanTransformer3DModel
from experts import CONFIG, make_transformer, write_frames
from PIL import Image, ImageOps
from safetensors.torch import save_file
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

ROOT = pathlib.Path(__file__).resolve().parents[2]
DATA = ROOT / "tests/golden/data/i2v"
CLIP_DATA = ROOT / "tests/golden/data/i2v_clip"
PICTURES = ROOT / "tests/golden/data/pictures"
SETTINGS = dict(prompt="a red circle moves to the right", negative_prompt="blurred", seed=17, height=48, width=80,
                video_frames=9, steps=6, cfg_scale=3.5, cfg_scale_2=2.5, boundary_ratio=0.9)  # fmt: skip
PNGS = {"grey": (0, 1, (1, 2, 4, 8, 16)), "rgb": (2, 3, (8, 16)), "palette": (3, 1, (1, 2, 4, 8)), "grey_alpha": (4, 2, (8, 16)),
        "rgb_alpha": (6, 4, (8, 16))}  # the kind's number in the file, numbers of a pixel, bits of each  # fmt: skip
CHANNELS = 16
SIZES = ((48, 80), (33, 40), (90, 131), (61, 97))  # other than the picture's: smaller, larger, the same


def picture(height, width):
    """Smooth colours, and edges that a filter must not smear."""
    rows, columns = numpy.mgrid[0:height, 0:width] / numpy.array([height, width]).reshape(2, 1, 1)
    smooth = numpy.stack([columns, rows, 0.5 + 0.5 * numpy.sin(9 * columns + 5 * rows)], axis=2)
    disc = ((rows - 0.4) ** 2 + (columns - 0.6) ** 2 < 0.05)[:, :, None]
    return Image.fromarray((255 * numpy.where(disc, [0.9, 0.1, 0.2], smooth)).round().astype(numpy.uint8))


def pixels(image):
    return torch.from_numpy(numpy.array(image.convert("RGB")).copy())


def write_pictures():
    shutil.rmtree(PICTURES, ignore_errors=True)
    PICTURES.mkdir(parents=True)
    image = picture(61, 97)
    image.save(PICTURES / "picture.png")
    read = {"picture.png": pixels(image)}
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        name = f"photo{orientation}.jpg"
        image.save(PICTURES / name, quality=95, subsampling=0, exif=exif)
        read[name] = pixels(ImageOps.exif_transpose(Image.open(PICTURES / name)))
    alpha = Image.fromarray(numpy.linspace(255, 0, 61 * 97).reshape(61, 97).astype(numpy.uint8))
    Image.merge("RGBA", (*image.split(), alpha)).save(PICTURES / "with_alpha.png")
    image.convert("L").save(PICTURES / "grey.jpg", quality=95)
    black = Image.fromarray(numpy.linspace(0, 200, 61 * 97).reshape(61, 97).astype(numpy.uint8))
    Image.merge("CMYK", (*image.convert("CMYK").split()[:3], black)).save(PICTURES / "cmyk.jpg", quality=95)
    image.save(PICTURES / "lossy.webp", quality=95)
    for name in ("with_alpha.png", "grey.jpg", "cmyk.jpg", "lossy.webp"):
        read[name] = pixels(Image.open(PICTURES / name))
    for height, width in SIZES:
        read[f"picture.png.{height}x{width}"] = pixels(image.resize((width, height), Image.Resampling.LANCZOS))
        read[f"picture.png.{height}x{width}.cubic"] = pixels(image.resize((width, height), Image.Resampling.BICUBIC))
    save_file(read, PICTURES / "golden.safetensors")


def write_png(path, numbers, bits, kind, *chunks):
    """Pillow writes no PNG of colours in 16 bits. numbers: [height, width, channels]; chunks: name and content, before the pixels."""
    height, width, channels = numbers.shape

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    rows = numbers.reshape(height, -1)
    if bits < 8:
        each = numpy.unpackbits(rows.astype(numpy.uint8)[:, :, None], axis=2)[:, :, 8 - bits :]
        rows = numpy.packbits(each.reshape(height, -1), axis=1)
    lines = b"".join(b"\0" + row.astype(">u2" if bits == 16 else numpy.uint8).tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(lines, 9)), (b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts))


def write_small():
    """Every bit depth and kind of pixel, with the borders of a byte among the numbers, and transparency by colour."""
    folder = PICTURES / "small"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    generator = numpy.random.default_rng(75)
    borders = numpy.array([0, 1, 127, 128, 255, 256, 383, 384, 511, 32767, 32768, 65407, 65408, 65534, 65535])
    read = {}
    for name, (kind, channels, depths) in PNGS.items():
        for bits in depths:
            numbers = generator.integers(0, 1 << bits, (5, len(borders), channels))
            if bits == 16:
                numbers[0, :, 0] = borders
                numbers[1] = numbers[0]
                numbers[2] //= 256
            colors = [(b"PLTE", generator.integers(0, 256, 3 << bits).astype(numpy.uint8).tobytes())] if name == "palette" else []
            write_png(folder / f"{name}_{bits}.png", numbers, bits, kind, *colors)
            if not name.endswith("alpha"):
                clear = bytes(range(0, 256, 8))[: 1 << bits] if name == "palette" else numbers[0, 0].astype(">u2").tobytes()
                write_png(folder / f"{name}_{bits}_clear.png", numbers, bits, kind, *colors, (b"tRNS", clear))
    # A directory of one entry, that the picture is to be turned, which says that it has 65,535.
    claims = b"MM\0*\0\0\0\x08\xff\xff" + struct.pack(">HHIHH", 0x0112, 3, 1, 6, 0)
    write_png(folder / "exif_claims.png", generator.integers(0, 256, (4, 7, 3)), 8, 2, (b"eXIf", claims))
    exif = Image.Exif()
    exif[0x0112] = 8
    picture(9, 14).save(folder / "exif.webp", lossless=True, exif=exif)
    for path in sorted(folder.iterdir()):
        read[path.name] = pixels(ImageOps.exif_transpose(Image.open(path)))
    save_file(read, folder / "golden.safetensors")


def small_pipeline(data, **parts):
    tiny = ROOT / "models/tiny-wan"
    vae = AutoencoderKLWan.from_pretrained(tiny, subfolder="vae", torch_dtype=torch.float32)
    text = WanPipeline.from_pretrained(tiny, vae=vae, transformer=None, torch_dtype=torch.float32)
    for name in ("transformer", "transformer_2"):
        if (data / name).exists():
            parts[name] = WanTransformer3DModel.from_pretrained(data / name, torch_dtype=torch.float32)
    return WanImageToVideoPipeline(tokenizer=text.tokenizer, text_encoder=text.text_encoder, vae=vae, scheduler=text.scheduler, **parts)


@torch.no_grad()
def main():
    if sys.argv[1:] == ["small"]:
        return write_small()
    write_pictures()
    write_small()
    shutil.rmtree(DATA, ignore_errors=True)
    config = CONFIG | dict(in_channels=2 * CHANNELS + 4, out_channels=CHANNELS)
    for seed, name in ((71, "transformer"), (72, "transformer_2")):
        make_transformer(seed, config).to(torch.bfloat16).save_pretrained(DATA / name)
    image = picture(SETTINGS["height"], SETTINGS["width"])
    pipeline = small_pipeline(DATA, boundary_ratio=SETTINGS["boundary_ratio"])
    frames = write_frames(pipeline, SETTINGS, DATA, guidance_scale_2=SETTINGS["cfg_scale_2"], image=image)
    save_file({"frames": frames.contiguous(), "picture": pixels(image)}, DATA / "golden.safetensors")
    (DATA / "golden.json").write_text(json.dumps(SETTINGS, indent=1) + "\n")
    print(f"{tuple(frames.shape)} mean {frames.float().mean():.1f} std {frames.float().std():.1f}")
    make_through_clip(image)


def make_through_clip(image):
    """One transformer whose blocks see the picture through CLIP, too, as Wan 2.1 I2V has it."""
    shutil.rmtree(CLIP_DATA, ignore_errors=True)
    width = CONFIG["num_attention_heads"] * CONFIG["attention_head_dim"]
    config = CONFIG | dict(in_channels=2 * CHANNELS + 4, out_channels=CHANNELS, image_dim=40, added_kv_proj_dim=width)
    make_transformer(73, config).to(torch.bfloat16).save_pretrained(CLIP_DATA / "transformer")
    encoder = CLIPVisionModel(CLIPVisionConfig(hidden_size=40, intermediate_size=72, num_hidden_layers=3, num_attention_heads=4,
                                               image_size=28, patch_size=7, hidden_act="gelu"))  # fmt: skip
    generator = torch.Generator().manual_seed(74)
    for name, parameter in encoder.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data = 1 + 0.3 * noise if "norm" in name and name.endswith("weight") else 0.3 * noise
    encoder.eval().save_pretrained(CLIP_DATA / "image_encoder")
    processor = CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    processor.save_pretrained(CLIP_DATA / "image_processor")
    pipeline = small_pipeline(CLIP_DATA, image_encoder=encoder, image_processor=processor)
    settings = {key: value for key, value in SETTINGS.items() if key not in ("cfg_scale_2", "boundary_ratio")}
    frames = write_frames(pipeline, settings, CLIP_DATA, image=image)
    prepared = processor(images=image, return_tensors="pt")["pixel_values"]
    hidden = encoder(prepared, output_hidden_states=True).hidden_states[-2]
    save_file({"frames": frames.contiguous(), "picture": pixels(image), "prepared": prepared[0].contiguous(),
               "hidden": hidden[0].contiguous()}, CLIP_DATA / "golden.safetensors")  # fmt: skip
    (CLIP_DATA / "golden.json").write_text(json.dumps(settings, indent=1) + "\n")
    print(f"{tuple(frames.shape)} mean {frames.float().mean():.1f} std {frames.float().std():.1f}; hidden {tuple(hidden.shape)}")


if __name__ == "__main__":
    main()
