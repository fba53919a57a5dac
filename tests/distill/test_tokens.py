"""Tokens from memory are open_clip's own, whatever the text holds."""

from __future__ import annotations

import random

import open_clip
import pytest
import torch

from distill.data.tokens import with_memory

TEXTS = [
    "",
    "   ",
    "a photo of a cat",
    "A Photo, of   a CAT!!! ",
    "don't we're I'll they'd it's o'clock 'sup 's",
    "1234 5.6e7 3rd 2x4 no.1",
    "tabs\tand\nlines\r\nand\x0bmore\x0c",
    "control\x00codes\x1b[31mred\x1b[0m\x7f",
    "fish &amp; chips &lt;b&gt; &amp;amp; R&D AT&T &#39;",
    "caf&Atilde;&copy; <b>",  # what is made of the first word hangs on the second
    "<start_of_text> x <end_of_text> <START_OF_TEXT>",
    "naïve café ﬁne “quoted” l’été",
    "schÃ¶n mojibake â€œhereâ€",
    "日本語 の 写真 🙂🙂",
    "under_score-hyphen/slash\\back @user #tag http://a.b/c?d=e",
    "word " * 100,
    "supercalifragilisticexpialidocious" * 5,
]


@pytest.mark.parametrize("context", [77, 8, 3])
def test_tokens_are_open_clips(context: int) -> None:
    theirs = open_clip.get_tokenizer("ViT-B-32", context_length=context)
    ours = with_memory(theirs)
    assert ours is not theirs
    for _ in range(2):  # the second time from memory
        assert torch.equal(ours(TEXTS), theirs(TEXTS))
    assert ours(TEXTS).dtype == torch.int64
    assert ours([]).shape == (0, context)


def test_random_text_has_the_same_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distill.data.tokens._WORDS", 50)  # forgotten again and again
    theirs = open_clip.get_tokenizer("ViT-B-32")
    ours = with_memory(theirs)
    draw = random.Random(5)
    alphabets = ["abc XYZ 019 '.,-!&;<>_", "".join(map(chr, range(32, 127))), "aé “”\u00a0\u200b\u3000ß漢\n "]
    for alphabet in alphabets:
        texts = ["".join(draw.choices(alphabet, k=draw.randint(0, 40))) for _ in range(400)]
        assert torch.equal(ours(texts), theirs(texts))


def test_what_is_not_clips_own_is_left_alone() -> None:
    def other(texts: list[str]) -> torch.Tensor:
        return torch.zeros(len(texts), 4, dtype=torch.int64)

    assert with_memory(other) is other
    for options in ({"clean": "canonicalize"}, {"reduction_mask": "random"}):
        tokenizer = open_clip.SimpleTokenizer(**options)
        assert with_memory(tokenizer) is tokenizer
