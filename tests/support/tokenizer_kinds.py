"""Small tokenizers of each kind that there is."""

import json
from functools import cache

from tiny import TRAINING_TEXTS
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

SPECIAL = ["<unk>", "<s>", "</s>", "<|endoftext|>", "<|user|>", "[MASK]"]
SIZE = 600
GPT4 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
DIGITS_FROM_THE_END = r"\d{1,3}(?=(?:\d{3})*(?!\d))"


def byte_level():
    """GPT-2's kind."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer, trainers.BpeTrainer(initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), **SHARED)


def digits():
    """GPT-4's words, and numbers in groups of three counted from their end."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.normalizer = normalizers.NFC()
    splits = [pre_tokenizers.Split(Regex(one), "isolated") for one in (DIGITS_FROM_THE_END, GPT4)]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, byte_level])
    return tokenizer, trainers.BpeTrainer(initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), **SHARED)


def word_piece():
    """BERT's kind, for which a long word is one unknown token."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer, trainers.WordPieceTrainer(**SHARED)


def spaced_words():
    """WordPiece over whatever stands between spaces, so that names of control tokens are words of its vocabulary."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer, trainers.WordPieceTrainer(**SHARED)


def unigram():
    """XLM-R's kind."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    return tokenizer, trainers.UnigramTrainer(unk_token="<unk>", **SHARED)


def metaspace():
    """BPE over words that begin with their space."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    return tokenizer, trainers.BpeTrainer(**SHARED)


def whole_text():
    """Llama 2's kind: the text is one word, whose unknown characters become bytes."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.ByteFallback()
    bytes_too = {"special_tokens": [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))], "vocab_size": SIZE + 256}
    return tokenizer, trainers.BpeTrainer(**SHARED | bytes_too)


SHARED = {"vocab_size": SIZE, "special_tokens": SPECIAL, "show_progress": False}
KINDS = {kind.__name__: kind for kind in (byte_level, digits, word_piece, spaced_words, unigram, metaspace, whole_text)}


@cache
def tokenizer_of(kind):
    """The tokenizer of that kind; never change it."""
    tokenizer, trainer = KINDS[kind]()
    tokenizer.train_from_iterator([*TRAINING_TEXTS, "123 456 7890", "aaaa  \n\n    ", "<s> | user >"], trainer)
    layout = json.loads(tokenizer.to_str())
    layout["added_tokens"] = [token for token in layout["added_tokens"] if token["content"] in SPECIAL]  # no bytes
    tokenizer = Tokenizer.from_str(json.dumps(layout))
    tokenizer.add_special_tokens([AddedToken("[MASK]", lstrip=True, normalized=False)])
    tokenizer.add_tokens([AddedToken("<think>", lstrip=kind == "metaspace", normalized=False)])
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<|endoftext|>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
