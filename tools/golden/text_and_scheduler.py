"""Golden data of text cleaning, tokenizer, schedulers and random numbers, from diffusers, transformers and torch.

    python tools/golden/text_and_scheduler.py [random|scheduler|given_steps|linear_quadratic|text|tokenizer ...]     (all without arguments)

Writes tests/golden/data/{random,scheduler}.safetensors, scheduler/, text_clean.json and tokenizer/. Deterministic.
"""

import json
import pathlib
import sys

import numpy as np
import torch
from safetensors.torch import save_file

DATA = pathlib.Path(__file__).resolve().parents[2] / "tests/golden/data"


def make_random():
    """torch.randn of CPU generators: sizes on both sides of torch's two paths, seeds beyond 32 bits, calls in a row."""
    tensors = {}
    for seed in (0, 42, 2**32 + 42, 2**40 + 123456789, 2**63 - 1):
        for size in (1, 5, 15, 16, 17, 100):
            generator = torch.Generator("cpu").manual_seed(seed)
            tensors[f"{seed}/{size}"] = torch.randn(size, generator=generator, dtype=torch.float32)
    generator = torch.Generator("cpu").manual_seed(7)
    tensors["7/4096"] = torch.randn(4096, generator=generator, dtype=torch.float32)
    generator = torch.Generator("cpu").manual_seed(9)
    for i, size in enumerate((3, 17, 4, 1, 32, 2)):
        tensors[f"9/row/{i}/{size}"] = torch.randn(size, generator=generator, dtype=torch.float32)
    save_file(tensors, DATA / "random.safetensors")


SCHEDULERS = {
    # name: (class, settings, steps, shifts)
    "unipc": ("UniPCMultistepScheduler", {}, (1, 2, 4, 15, 50), (1.0, 3.0, 5.0, 8.0)),
    "unipc_order1": ("UniPCMultistepScheduler", {"solver_order": 1}, (4, 15), (1.0, 5.0)),
    "unipc_order3": ("UniPCMultistepScheduler", {"solver_order": 3}, (2, 4, 15, 50), (1.0, 5.0)),
    "unipc_bh1": (
        "UniPCMultistepScheduler",
        {"solver_type": "bh1", "solver_order": 3, "final_sigmas_type": "sigma_min"},
        (4, 15),
        (1.0, 5.0),
    ),
    "unipc_no_corrector": ("UniPCMultistepScheduler", {"disable_corrector": [0, 1, 4]}, (4, 15), (3.0,)),
    "euler": ("FlowMatchEulerDiscreteScheduler", {}, (1, 2, 4, 15, 50), (1.0, 3.0, 5.0, 8.0)),
}


def toy_model(sample, timestep):
    """Some smooth function of the sample and the time, in float32 arithmetic that C++ repeats exactly."""
    t = torch.tensor(float(timestep), dtype=torch.float32) / 1000
    return sample * (0.75 - 0.5 * t) - (0.3 + t) / (1 + sample * sample)


def make_scheduler():
    import diffusers

    tensors = {}
    first = torch.randn(1, 4, 1, 1, 2, generator=torch.Generator("cpu").manual_seed(3), dtype=torch.float32)
    tensors["first"] = first
    configs = {}
    for name, (cls, settings, all_steps, shifts) in SCHEDULERS.items():
        if cls.startswith("UniPC"):
            settings = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, **settings}
        for shift in shifts:
            shift_key = "flow_shift" if cls.startswith("UniPC") else "shift"
            scheduler = getattr(diffusers, cls)(**settings, **{shift_key: shift})
            configs[name] = dict(scheduler.config)
            for steps in all_steps:
                scheduler.set_timesteps(steps)
                sample = first.clone()
                halfway = None
                for i, t in enumerate(scheduler.timesteps):
                    sample = scheduler.step(toy_model(sample, t), t, sample, return_dict=False)[0]
                    if i == (steps - 1) // 2:
                        halfway = sample
                assert torch.isfinite(sample).all(), (name, steps, shift)
                key = f"{name}/{steps}/{shift:g}"
                tensors[f"{key}/sigmas"] = scheduler.sigmas.float()
                tensors[f"{key}/timesteps"] = scheduler.timesteps.float()
                tensors[f"{key}/halfway"] = halfway.clone()
                tensors[f"{key}/last"] = sample.contiguous()
    save_file(tensors, DATA / "scheduler.safetensors")
    for name, config in configs.items():
        config = {"_class_name": SCHEDULERS[name][0], **{k: v for k, v in config.items() if k[0] != "_"}}
        (DATA / "scheduler").mkdir(exist_ok=True)
        (DATA / "scheduler" / f"{name}.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def make_linear_quadratic():
    """Mochi's sampler as its pipeline runs it: noise levels of its own, and a scheduler that counts data in place of noise."""
    from diffusers import FlowMatchEulerDiscreteScheduler
    from diffusers.pipelines.mochi.pipeline_mochi import linear_quadratic_schedule

    first = torch.randn(9, generator=torch.Generator("cpu").manual_seed(5), dtype=torch.float32)
    runs = []
    for steps in (2, 3, 4, 7, 30, 64):
        for shift in (1.0, 3.0):
            scheduler = FlowMatchEulerDiscreteScheduler(shift=shift, invert_sigmas=True)
            scheduler.set_timesteps(steps, sigmas=np.array(linear_quadratic_schedule(steps, 0.025)))
            scheduler.set_begin_index(0)
            sample = first.clone()
            for t in scheduler.timesteps:  # the model predicts data - noise
                sample = scheduler.step(-toy_model(sample, 1000 - t), t, sample, return_dict=False)[0]
            runs.append(dict(steps=steps, shift=shift, timesteps=scheduler.timesteps.tolist(), last=sample.tolist()))
    lines = ",\n".join(json.dumps(run) for run in runs)
    (DATA / "scheduler" / "linear_quadratic.json").write_text(
        f'{{"first": {json.dumps(first.tolist())}, "runs": [\n{lines}\n]}}\n')
    config = {"_class_name": "FlowMatchEulerDiscreteScheduler",
              **{k: v for k, v in FlowMatchEulerDiscreteScheduler(invert_sigmas=True).config.items() if k[0] != "_"}}
    (DATA / "scheduler" / "mochi.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def make_given_steps():
    """Steps that were listed: diffusers shifts the levels that it is given, once."""
    import diffusers

    lists = {"four steps": [1, 0.75, 0.5, 0.25], "FastWan": [1, 0.757, 0.522], "uneven": [0.995, 0.7, 0.69, 0.2, 0.001]}
    first = torch.randn(1, 4, 1, 1, 2, generator=torch.Generator("cpu").manual_seed(3), dtype=torch.float32)
    runs = []
    for kind, shift_key in (("FlowMatchEulerDiscreteScheduler", "shift"), ("UniPCMultistepScheduler", "flow_shift")):
        settings = {"prediction_type": "flow_prediction", "use_flow_sigmas": True} if kind.startswith("UniPC") else {}
        for name, levels in lists.items():
            for shift in (1.0, 5.0):
                scheduler = getattr(diffusers, kind)(**settings, **{shift_key: shift})
                scheduler.set_timesteps(sigmas=np.array(levels))
                sample = first.clone()
                for t in scheduler.timesteps:
                    sample = scheduler.step(toy_model(sample, t), t, sample, return_dict=False)[0]
                runs.append({"scheduler": "euler" if shift_key == "shift" else "unipc", "name": name, "levels": levels,
                             "shift": shift, "sigmas": scheduler.sigmas.tolist(), "timesteps": scheduler.timesteps.tolist(),
                             "last": sample.flatten().tolist()})
    lines = ",\n".join(json.dumps(run) for run in runs)
    (DATA / "scheduler" / "given_steps.json").write_text(
        f'{{"first": {json.dumps(first.flatten().tolist())}, "runs": [\n{lines}\n]}}\n')


TOKENIZER_TEXTS = [
    "a red circle moves left", "A Red Circle, drifting!", "", "  two   spaces  ", "naïve café", "ﬁne flow ﬂ",
    "漢字 русский", "emoji 😀😀 🦊", "a</s>b <pad> <unk> c", "x <extra_id_0> y", "ＦＵＬＬ width", "tab\tnew\nline",
    "a\u00a0b\u3000c", "zero\u200bwidth", "a▁b", "don't", "e\u0301te\u0301", "1234567890", "ÄÖÜß", "< /s>", "</s>",
    "a</s>", "</s></s> </s>a", "🦊🦊 🦊", "\u00ad soft", "--prompt", "ab\u0300\u0301c", "क्षि नमस्ते", "한국어 테스트",
    "the large green hexagon orbits around the centre over a background of stripes while the camera pans", "...",
    "a" * 40, "<pad", "pad>", "red,blue;green.yellow",
]


def make_tokenizer():
    """A small SentencePiece model of captions, and what transformers' T5Tokenizer makes of some texts with it."""
    import itertools
    import tempfile

    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2

    folder = DATA / "tokenizer"
    folder.mkdir(exist_ok=True)
    colours = "red green blue yellow orange purple cyan white".split()
    shapes = "circle square triangle hexagon star ring".split()
    motions = ["moves to the left", "moves right", "bounces up and down", "orbits around the centre", "grows slowly",
               "rotates", "shrinks"]
    backgrounds = itertools.cycle(["stripes", "dots", "clouds", "waves, softly", "bricks"])
    captions = [f"a {colour} {shape} {motion} over a background of {next(backgrounds)}"
                for colour, shape, motion in itertools.product(colours, shapes, motions)]
    captions += 3 * ["The camera pans, 0123456789 frames!",
                     "don't stop; it's ABCDEFGHIJKLMNOPQRSTUVWXYZ - jqxvz <extra_id_/>"]
    rules = [(chr(0xFEE0 + i), chr(i)) for i in range(0x21, 0x7F)]  # full-width forms
    rules += [(blank, " ") for blank in "\u00a0\u3000\t\n"]
    rules += [("\u200b", ""), ("ﬁ", "fi"), ("ﬂ", "fl"), ("e\u0301", "é")]
    points = lambda text: " ".join(f"{ord(character):X}" for character in text)
    with tempfile.TemporaryDirectory() as temporary:
        temporary = pathlib.Path(temporary)
        (temporary / "rules.tsv").write_text("".join(f"{points(a)}\t{points(b)}\n" for a, b in rules))
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(captions), model_prefix=str(temporary / "spiece"), vocab_size=120,
            model_type="unigram",
            pad_id=0, eos_id=1, unk_id=2, bos_id=-1, num_threads=1, normalization_rule_tsv=str(temporary / "rules.tsv"),
            character_coverage=1.0, minloglevel=2)
        model = sentencepiece_model_pb2.ModelProto.FromString((temporary / "spiece.model").read_bytes())
        model.trainer_spec.model_prefix = "spiece"  # not the temporary folder, which is another one each time
        model.normalizer_spec.normalization_rule_tsv = ""
        (folder / "spiece.model").write_bytes(model.SerializeToString(deterministic=True))
    (folder / "tokenizer_config.json").write_text(json.dumps(
        {"tokenizer_class": "T5Tokenizer", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>",
         "extra_ids": 0, "additional_special_tokens": []}, indent=2) + "\n")
    write_token_cases(folder, TOKENIZER_TEXTS, folder / "cases.json")

    shipped = DATA.parents[2] / "models/tiny-wan"
    prompts = (shipped / "prompts/heldout.txt").read_text().splitlines()[:16]
    write_token_cases(shipped / "tokenizer", prompts + TOKENIZER_TEXTS, folder / "tiny_wan_cases.json")


def write_token_cases(tokenizer_folder, texts, path):
    from transformers import T5Tokenizer

    tokenizer = T5Tokenizer.from_pretrained(tokenizer_folder)
    cases = []
    for text in texts:
        cut = tokenizer(text, padding="max_length", max_length=8, truncation=True, add_special_tokens=True)
        cases.append({"text": text, "ids": tokenizer(text).input_ids, "ids_of_8": cut.input_ids})
    path.write_text("[\n" + ",\n".join(json.dumps(c) for c in cases) + "\n]\n")



PROMPTS = [
    "a red circle moves to the left", "  two   spaces \t and\nlines  ", "", "   ",
    "it\u2019s \u201cquoted\u201d \u2018text\u2019 \u201elow\u201c", "ﬁne ﬂow o\ufb03ce ﬀ ﬆ ĳ ŉ Ǆ", "ＦＵＬＬ　ＷＩＤＴＨ １２３！",
    "ﾊﾝｶｸ ｶﾞﾀｶﾅ", "a &amp; b &lt;c&gt; &quot;d&quot;", "&amp;amp;amp; twice",
    "caf&eacute; &EACUTE;COLE &szlig; STRA&SZLIG;E &NTILDE;",
    "&#233; &#xe9; &#XE9; &#8217; &#150; &#0; &#xD83D; &#x1F98A;", "a <b>bold</b> &amp; word",
    "first &amp; line\nsecond <i> &amp; line\nthird &amp; line", "AT&T &ampx &notit; &nosuch; &;& &#; &#x;",
    "&hellip; &checkmark; &mdash;", "&lt;tag&gt; then &amp;lt;", "line\r\nbreak\rand\u2028two\u2029three\x85end",
    "\x1b[31mred\x1b[0m text \x1b[1;32m!", "bell\x07 nul\x00 esc\x1b x\x7f",
    "\ufeffbom \ufff9annotation\ufffb \ufffc", "joiner 👨\u200d👩\u200d👧 flag 🇩🇪",
    "e\u0301te\u0301 a\u030a \u1100\u1161", "zero\u200bwidth soft\xadhyphen", "no\xa0break\u3000ideographic\u2003em",
    "naÃ¯ve cafÃ©", "l\u00e2\u20ac\u2122art", "Ã¤Ã¶Ã¼ ÃŸ", "â€œquotedâ€\x9d", "schÃƒÂ¶n", "Ã©",
    "voilÃ\xa0 le travail", "ðŸ¦Š fox", "æ¼¢å\xad—", "Ø§Ù„Ø¹Ø±Ø¨", "ÐŸÑ€Ð¸Ð²ÐµÑ‚", "naïve café déjà vu",
    "ÄÖÜß Ñandú São Paulo", "10² m³ ½ cup ±5°C", "© 2024 ACME® ™ “TM”", "50 € or £40 ¥100", "CAFÉ®", "Œuvre œuf",
    "«guillemets» ‹single›", "\x91curly\x92 \x93C1\x94 \x96 \x85", "\x81\x8d odd C1",
    "漢字 русский ελληνικά עברית العربية", "emoji 😀😀 🦊", "₂ ² ﹪ ①", "a\u0300\u0301b", "trailing entity &amp",
    "&copy2024 &COPY; &times;2", "½ &frac12; &#189;", "“”‘’‛‟ʼ", "a--b – c — d", "100% sure; 5 > 3 & 2 < 4",
    "&amp;#x27;hi&amp;#39;", "\x0b vertical \x0c form", "\x1c\x1d\x1e\x1f separators", "×²", "Ãœber",
    "&eacute; faÃ§ade", "🦊 naÃ¯ve – Ã©", "漢字 cafÃƒÂ©", "“â€™” Ã", "é Ã\x97 â\x84¢", "à²\xa0", "Ð°Ð±Ð²",
    "Ã\xa0 la carte", "don´t ´quote´ ¨", "&nbsp;edges&nbsp;", "&Tab;&NewLine;x", "ﷺ ﬅ ſt", "\u212b \u2126 \uf900",
]
HTML_TEXTS = [
    "&amp", "&ampx", "&amp;", "&notit;", "&notin;", "&not", "&n;", "&", "&&amp;", "&#", "&#x", "&#;", "&#65", "&#65;",
    "&#x41", "&#x41g", "&#00065;", "&#99999999999999999999999;", "&#x110000;", "&#xD800;", "&#0;", "&#13;", "&#128;",
    "&#129;", "&#11;", "&#127;", "&#xFDD0;", "&#xFFFE;", "&#x1FFFF;", "&AElig", "&AEligx;",
    "&CounterClockwiseContourIntegral;", "&NotEqualTilde;", "&aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa;", "&lt<",
    "&gt &gt;", "&#59;",
]


def make_text():
    """What diffusers' Wan pipeline makes of prompts before it tokenizes them."""
    import html

    from diffusers.pipelines.wan import pipeline_wan

    assert pipeline_wan.is_ftfy_available()
    lines = lambda pairs: ",\n".join(json.dumps(pair) for pair in pairs)
    clean = [(text, pipeline_wan.prompt_clean(text)) for text in PROMPTS]
    plain = [(text, html.unescape(text)) for text in HTML_TEXTS]
    (DATA / "text_clean.json").write_text('{"clean": [\n' + lines(clean) + '\n], "html": [\n' + lines(plain) + "\n]}\n")


MAKERS = {"random": make_random, "scheduler": make_scheduler, "given_steps": make_given_steps, "linear_quadratic": make_linear_quadratic, "text": make_text, "tokenizer": make_tokenizer}


if __name__ == "__main__":
    DATA.mkdir(parents=True, exist_ok=True)
    for maker in sys.argv[1:] or MAKERS:
        MAKERS[maker]()
