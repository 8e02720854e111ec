"""Golden data of tokenizers that are saved as tokenizer.json, and of combining marks, from transformers and tokenizers.

    python tools/golden/tokenizer_json.py

Writes tests/golden/data/tokenizer_json/: saved/ is what transformers 5 saves of a T5 tokenizer with SentencePiece's own
nmt_nfkc table and pieces of bytes; converted/ is what transformers' converter makes of the small SentencePiece model in
tests/golden/data/tokenizer, as transformers 4 saved it, with more added tokens; cases.json has texts and their ids for
both, for that SentencePiece model itself and for the shipped one. Deterministic.
"""

import json
import pathlib
import random
import shutil
import tempfile
import types

DATA = pathlib.Path(__file__).resolve().parents[2] / "tests/golden/data"
SHIPPED = DATA.parents[2] / "models/tiny-wan"
FOLDER = DATA / "tokenizer_json"

SENTENCES = [
    "a red circle moves to the left while the camera pans", "Ein grüner Kreis dreht sich um die Mitte.",
    "Красный круг движется влево, камера неподвижна.", "Un café crème sur la table, l'été à Paris.",
    "一只红色的圆形向左移动，背景是条纹。", "赤い円が左に動きます。カメラは固定。", "빨간 원이 왼쪽으로 움직입니다.",
    "دائرة حمراء تتحرك إلى اليسار", "लाल वृत्त बाईं ओर चलता है", "Một hình tròn màu đỏ di chuyển sang trái",
    "วงกลมสีแดงเคลื่อนไปทางซ้าย", "עיגול אדום נע שמאלה", "κόκκινος κύκλος κινείται αριστερά", "кра́сный",
]
MARKS = "\u0300\u0301\u0302\u0303\u0304\u0307\u0308\u030a\u030c\u0327\u0328\u0323\u0338\u0345\u05b7\u064b\u0651\u093c\u094d" \
        "\u0e31\u0e49\u1dc4\u20d7\u20e3\u3099\u309a\ufe0f\ufe20\u200d\u200c\u1ab0\U0001f3fb\U0001e8d0\U000e0101"
BASES = "aAeEoOuUcCnNzZiI.,-0123 %&xyüéñçåøßœ½²©™…“—αωάЖйёאشनकกか゛ガ漢한각\u1100\u1161¨´¸˚ﬁﬀＡ１ｱﾞ①㎏℃™🦊👩👍🇩🇪ŀĿǆſẛἀΐﷺ\u00a0\u3000\u2003" \
        "\u200b\u00ad\ufeff\u2060\u202e\t\n▁"


def hard_texts(count, seed):
    """Short texts of characters that normalisation changes, with marks upon them, between words and added tokens."""
    pick = random.Random(seed)
    words = " ".join(SENTENCES).split() + ["</s>", "<pad>", "<unk>", "<extra_id_1>", "<s>", "<0x41>", "▁", "  ", "word", "Word"]
    texts = []
    for _ in range(count):
        parts = []
        for _ in range(pick.randint(1, 4)):
            kind = pick.random()
            if kind < 0.25:
                parts.append(pick.choice(words))
            elif kind < 0.9:
                parts.append("".join(pick.choice(BASES) + "".join(pick.choices(MARKS, k=pick.choice([0, 0, 1, 1, 1, 2, 3])))
                                     for _ in range(pick.randint(1, 4))))
            else:
                parts.append("".join(chr(pick.choice([pick.randint(0x20, 0x2fff), pick.randint(0x3000, 0xd7ff),
                                                      pick.randint(0xe000, 0xfffd), pick.randint(0x10000, 0x1ffff)]))
                                     for _ in range(pick.randint(1, 5))))
        texts.append(pick.choice(["", " "]).join(parts))
    return texts


def make_saved(folder):
    import sentencepiece
    from transformers import T5Tokenizer

    captions = (SHIPPED / "prompts/heldout.txt").read_text().splitlines()
    with tempfile.TemporaryDirectory() as temporary:
        temporary = pathlib.Path(temporary)
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(captions + 4 * SENTENCES), model_prefix=str(temporary / "spiece"), vocab_size=540,
            model_type="unigram", pad_id=0, eos_id=1, bos_id=2, unk_id=3, byte_fallback=True, num_threads=1,
            normalization_rule_name="nmt_nfkc", character_coverage=0.98, minloglevel=2)
        (temporary / "tokenizer_config.json").write_text(json.dumps(
            {"tokenizer_class": "T5Tokenizer", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>",
             "bos_token": "<s>", "extra_ids": 3}))
        T5Tokenizer.from_pretrained(temporary).save_pretrained(folder)
    saved = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(saved, ensure_ascii=False, separators=(",", ":")) + "\n")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    keep = ("backend", "eos_token", "pad_token", "unk_token", "bos_token", "tokenizer_class", "extra_ids")
    (folder / "tokenizer_config.json").write_text(json.dumps({k: config[k] for k in keep if k in config}, indent=2) + "\n")


def make_converted(folder):
    from tokenizers import AddedToken
    from transformers.convert_slow_tokenizer import T5Converter

    folder.mkdir(exist_ok=True)
    slow = types.SimpleNamespace(vocab_file=str(DATA / "tokenizer/spiece.model"), _extra_ids=0,
                                 convert_tokens_to_ids=lambda token: {"</s>": 1}[token])
    fast = T5Converter(slow).converted()
    fast.add_special_tokens(["<pad>", "</s>", "<unk>"])
    fast.add_tokens([AddedToken("<extra_id_1>", normalized=False, special=True),
                     AddedToken("<extra_id_11>", normalized=False, special=True),
                     AddedToken("<wide>", normalized=False, lstrip=True, rstrip=True),
                     AddedToken("wo", normalized=False, single_word=True),
                     AddedToken("Ｗord", normalized=True)])
    fast.enable_truncation(512)
    fast.save(str(folder / "tokenizer.json"), pretty=False)
    return fast


def main():
    import tokenizers
    from transformers import T5Tokenizer

    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    make_saved(FOLDER / "saved")
    make_converted(FOLDER / "converted")
    converted = tokenizers.Tokenizer.from_file(str(FOLDER / "converted/tokenizer.json"))
    converted.no_truncation()
    encoders = {
        "saved": T5Tokenizer.from_pretrained(FOLDER / "saved").encode,
        "converted": lambda text: converted.encode(text).ids,
        "spiece": T5Tokenizer.from_pretrained(DATA / "tokenizer").encode,
        "shipped": T5Tokenizer.from_pretrained(SHIPPED / "tokenizer").encode,
    }
    special = ["wo", "two wo, wo!", "swo wo_ wo2", "a <wide> b", "a  <wide><wide>  b", "<extra_id_11>2", "Word Ｗord wordWord",
               "Ｗｏｒｄ", "<wide>", "  <wide> ", "", " ", "▁", "▁▁ a▁b", "a" * 300, "漢" * 100, "\x00a", "a\x1fb\x85c\u2028d"]
    texts = SENTENCES + special + hard_texts(550, 1)
    cases = [{"text": text, **{name: encode(text) for name, encode in encoders.items()}} for text in texts]
    (FOLDER / "cases.json").write_text("[\n" + ",\n".join(json.dumps(c, separators=(",", ":")) for c in cases) + "\n]\n")


if __name__ == "__main__":
    main()
