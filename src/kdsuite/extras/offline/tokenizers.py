"""Tokenizers trained on the spot, built like those of the default pair: Qwen2.5's and TinyLlama's.

Both encode any text without loss: the byte-level one since its alphabet is all bytes, the SentencePiece-style
one since characters that it does not know fall back to byte tokens.
"""

import json
from collections.abc import Iterable
from functools import partial

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

FAST = partial(PreTrainedTokenizerFast, clean_up_tokenization_spaces=False)
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
ZEPHYR = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>\n' + message['content'] + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)


def byte_level_tokenizer(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with ChatML turns; `<|im_end|>` ends a turn, `<|endoftext|>` pads."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = Tokenizer(models.BPE())
    digits, words = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, words])  # as Qwen2's, which it is loaded as
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(
        texts, BpeTrainer(vocab_size=vocabulary, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    )
    return FAST(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=CHATML)


def sentencepiece_tokenizer(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A BPE tokenizer that marks blanks as ▁ and falls back to bytes, with Zephyr turns.

    `</s>` ends a turn and pads. Merges are learned inside words; they are applied, as SentencePiece does it,
    without splitting into words first.
    """
    special = ["<unk>", "<s>", "</s>"]
    learned = _learn_merges(texts, special + [f"<0x{byte:02X}>" for byte in range(256)], vocabulary)
    tokenizer = Tokenizer(
        models.BPE(
            vocab=learned["vocab"],
            merges=list(map(tuple, learned["merges"])),
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", learned["vocab"]["<s>"])]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    ends = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    return FAST(tokenizer_object=tokenizer, unk_token="<unk>", **ends, chat_template=ZEPHYR)


def _learn_merges(texts: Iterable[str], first: list[str], vocabulary: int) -> dict:
    """Vocabulary (`first` at its beginning) and merges; newlines are left to byte fallback."""
    learner = Tokenizer(models.BPE())
    learner.normalizer = normalizers.Replace(" ", "▁")
    learner.pre_tokenizer = pre_tokenizers.Split(Regex(r"<\|\w+\|>|▁?\w+|\W"), "isolated")
    trainer = BpeTrainer(vocab_size=vocabulary, special_tokens=first, show_progress=False)
    learner.train_from_iterator((line for text in texts for line in text.split("\n")), trainer)
    return json.loads(learner.to_str())["model"]
