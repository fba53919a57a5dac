"""`tokenizer.json`: a model's own tokenizer for the library `tokenizers`, which needs no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import open_clip
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from clip_models import LoadedModel
from distill.export.compare import CAPTIONS, has_text
from distill.use.text import TOKENIZER_NAME, TextTokens, cleaning

START, END = "<|startoftext|>", "<|endoftext|>"
_PUNCTUATION = r"[!-/:-@\[-`{-~]"
# CLIP's, github.com/openai/CLIP simple_tokenizer.py.
_WORDS = (
    r"<\|startoftext\|>|<\|endoftext\|>|'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD]"
    r"|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)


def write_tokenizer(folder: Path, loaded: LoadedModel) -> int | None:
    """Write `tokenizer.json`, which pads and cuts to the context by itself; None of a model without a text tower.

    Returns how many of `CAPTIONS` it gives other ids than open_clip does, for want of open_clip's cleaning (ftfy, HTML
    entities). Raises `RuntimeError` if ids differ for another reason.
    """
    if not has_text(loaded.model):
        return None
    text_cfg = loaded.config["model_cfg"]["text_cfg"]
    tokenizer = _named(loaded.tokenizer) if text_cfg.get("hf_tokenizer_name") else _clips(cleaning(text_cfg))
    length = text_cfg.get("context_length", 77)
    wanted = loaded.tokenizer(CAPTIONS).numpy()
    # What it is padded with is told by the text that is empty.
    pad = int(wanted[CAPTIONS.index("")][-1])
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(length=length, pad_id=pad, pad_token=tokenizer.id_to_token(pad) or "")
    tokenizer.save(str(folder / TOKENIZER_NAME))
    found = TextTokens(folder, text_cfg)(CAPTIONS)
    for caption, here, there in zip(CAPTIONS, wanted, found, strict=True):
        if here.tolist() != there.tolist():
            raise RuntimeError(f"tokenizer.json differs on {caption!r}: {there.tolist()} instead of {here.tolist()}")
    raw = Tokenizer.from_file(str(folder / TOKENIZER_NAME)).encode_batch(CAPTIONS)
    differing: int = sum(one.ids != row.tolist() for one, row in zip(raw, wanted, strict=True))
    return differing


def keep_tokenizer(folder: Path, loaded: LoadedModel) -> None:
    """A model's tokenizer for who loads the folder with it, or without torch: a named one's own files, or CLIP's
    `tokenizer.json`, which open_clip does not look at.
    """
    if hasattr(loaded.tokenizer, "save_pretrained") and has_text(loaded.model):
        loaded.tokenizer.save_pretrained(str(folder))
    else:
        write_tokenizer(folder, loaded)


def _named(own: Any) -> Tokenizer:
    """A tokenizer of the hub's, by itself: a copy."""
    return Tokenizer.from_str(own.tokenizer.backend_tokenizer.to_str())


def _clips(clean: str) -> Tokenizer:
    """CLIP's byte-pair encoding with open_clip's vocabulary, under OpenAI's names of the special tokens."""
    own = open_clip.SimpleTokenizer()
    vocabulary = dict(own.encoder)
    vocabulary[START] = vocabulary.pop("<start_of_text>")
    vocabulary[END] = vocabulary.pop("<end_of_text>")
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=list(own.bpe_ranks),
            end_of_word_suffix="</w>",
            fuse_unk=False,
            unk_token=END,
        )
    )
    steps: list[Any] = [normalizers.NFC()]
    if clean == "canonicalize":
        steps += [normalizers.Replace("_", " "), normalizers.Replace(Regex(_PUNCTUATION), "")]
    steps += [normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
    if clean != "whitespace":
        steps.append(normalizers.Lowercase())
    tokenizer.normalizer = normalizers.Sequence(steps)
    words = pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    ends = (END, vocabulary[END]), (START, vocabulary[START])
    tokenizer.post_processor = processors.RobertaProcessing(*ends, trim_offsets=False, add_prefix_space=False)
    tokenizer.add_special_tokens([AddedToken(name, normalized=True, special=True) for name in (START, END)])
    return tokenizer
