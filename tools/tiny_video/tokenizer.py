"""The tokenizer: a SentencePiece unigram model of our own captions' words, in the layout that diffusers' pipelines load.

  python -m tools.tiny_video.tokenizer -o models/tiny-wan/tokenizer

Ids as T5's: 0 padding, 1 end of sentence, 2 unknown. Case is folded. Every printable ASCII character is a piece, so that words no
caption has are spelled rather than unknown.
"""

from __future__ import annotations

import argparse
import collections
import io
import json
import math
import pathlib
import random
import re
import string

from .parts import VOCABULARY_SIZE

CAPTIONS = 40_000
SEED = 20261123


def corpus() -> list[str]:
    from .clips import caption, sample_scene

    rng = random.Random(SEED)
    return [caption(sample_scene(rng, "train"), rng) for _ in range(CAPTIONS)]


def train_model(sentences: list[str]) -> bytes:
    """A unigram model whose pieces are the captions' words and single characters.

    SentencePiece's own training cuts so small a set of words into fragments; whole words are shorter and easier to learn
    from. So its trainer supplies the normaliser and settings, and the pieces are ours, scored by log frequency.
    """
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2

    characters = [c for c in string.printable if c.isprintable() and c != " " and not c.isupper()]
    trained = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences[:2000]),
        model_writer=trained,
        model_type="unigram",
        vocab_size=VOCABULARY_SIZE,
        hard_vocab_limit=False,
        character_coverage=1.0,
        normalization_rule_name="nmt_nfkc_cf",
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    model = sentencepiece_model_pb2.ModelProto.FromString(trained.getvalue())
    del model.pieces[3:]  # padding, end of sentence and unknown stay
    counts: collections.Counter[str] = collections.Counter()
    for sentence in map(str.lower, sentences):
        for word in sentence.split():
            head, *rest = re.findall(r"\w+|[^\w]", word)
            counts["\u2581" + head] += 1
            counts.update(rest)
    total = sum(counts.values())
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    known = [(piece, math.log(count / total)) for piece, count in ranked]
    spelled = [(c, -14.0) for c in ["\u2581", *characters] if c not in counts]
    for piece, score in known + spelled:
        model.pieces.add(piece=piece, score=score)
    if len(model.pieces) > VOCABULARY_SIZE:
        raise SystemExit(f"{len(model.pieces)} pieces, but the text encoders have {VOCABULARY_SIZE} embeddings")
    model.trainer_spec.vocab_size = len(model.pieces)
    return model.SerializeToString()


def write(folder: pathlib.Path, prompt_tokens: int = 512, model: pathlib.Path | None = None) -> None:
    """spiece.model (made anew, or `model` as it is) and the files that make transformers read it as T5Tokenizer."""
    from transformers import T5Tokenizer

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spiece.model").write_bytes(model.read_bytes() if model else train_model(corpus()))
    settings = {
        "tokenizer_class": "T5Tokenizer",
        "model_max_length": prompt_tokens,
        "pad_token": "<pad>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "extra_ids": 0,
        "additional_special_tokens": [],
        "legacy": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    tokens = {key: settings[key] for key in ("pad_token", "eos_token", "unk_token")}
    (folder / "special_tokens_map.json").write_text(json.dumps(tokens, indent=2) + "\n")
    T5Tokenizer.from_pretrained(folder)  # must load


class CaptionTokenizer:
    """Captions to ids for training, straight through SentencePiece."""

    def __init__(self, folder: pathlib.Path, length: int):
        import sentencepiece

        self.processor = sentencepiece.SentencePieceProcessor(model_file=str(pathlib.Path(folder) / "spiece.model"))
        self.length = length

    def __call__(self, texts: list[str]):
        """int64 [B, length]; ids, end of sentence, padding. The last position is always padding."""
        import torch

        rows = torch.zeros(len(texts), self.length, dtype=torch.long)
        for row, ids in zip(rows, self.processor.encode(texts)):
            ids = ids[: self.length - 2] + [1]
            row[: len(ids)] = torch.tensor(ids)
        return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", default="models/tiny-wan/tokenizer", type=pathlib.Path)
    write(parser.parse_args().output)


if __name__ == "__main__":
    main()
