"""Weight inheritance: which numbers of a teacher a student holds, and what a teacher cannot give."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from open_clip.model import resize_pos_embed
from torch import Tensor, nn

from clip_models import LoadedModel, create_student, load_model, save_model
from clip_models.inheritance import Inherited, inherit, read_inheritance, summary, write_inheritance
from shards.errors import UserError

Make = Callable[..., tuple[Any, Any]]
Weights = Mapping[str, np.ndarray]

BLOCKS = "transformer.resblocks"
VISION: dict[str, Any] = {"image_size": 16, "patch_size": 8, "layers": 2, "width": 48, "head_width": 16}
RESNET: dict[str, Any] = {"image_size": 32, "layers": [2, 2, 2, 2], "width": 12, "head_width": 16}
TEXT: dict[str, Any] = {"context_length": 8, "vocab_size": 40, "layers": 2, "width": 48, "heads": 3}


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A model of 48 wide towers (3 heads of 16) and embeddings 24 wide, with changes, in its first weights."""

    def made(
        vision: dict[str, Any] | None = None,
        text: dict[str, Any] | None = None,
        *,
        seed: int = 0,
        towers: tuple[Any, ...] = ("image", "text"),
        **changes: Any,
    ) -> tuple[Any, Any]:
        config = {"embed_dim": 24, "vision_cfg": VISION | (vision or {}), "text_cfg": TEXT | (text or {}), **changes}
        path = tmp_path / "model.json"
        path.write_text(json.dumps(config))
        return create_student(str(path), seed, towers)

    return made


def as_teacher(model: Any, config: Any) -> LoadedModel:
    def never(*_: Any) -> Any:
        raise AssertionError

    return LoadedModel("the teacher", model.eval(), config, never, never)


@torch.no_grad()
def numbered(model: nn.Module) -> Weights:
    """Make every element of a model its own number; returns them all."""
    count = 1
    for value in model.state_dict().values():
        value.copy_(torch.arange(count, count + value.numel()).reshape(value.shape))
        count += value.numel()
    assert count < 2**24, "float32 cannot tell them apart"
    return {name: value.numpy().copy() for name, value in model.state_dict().items()}


def published(name: str, shape: Iterable[int], teacher: Weights, layers: Mapping[str, list[int]]) -> np.ndarray:
    """What a student's tensor holds by the published rule; `layers` of the teacher by stack."""
    stack = next((stack for stack in layers if f"{stack}." in name), None)
    if stack:
        before, _, after = name.partition(f"{stack}.")
        index, _, rest = after.partition(".")
        name = f"{before}{stack}.{layers[stack][int(index)]}.{rest}"
    whole, shape = teacher[name], tuple(shape)
    if "in_proj" in name:
        # Heads lie one after the other: the first heads of a third are its first rows.
        whole = np.concatenate([third[: shape[0] // 3] for third in np.split(whole, 3)])
    return whole[tuple(map(slice, shape))]


def cut(whole: np.ndarray, slices: str) -> np.ndarray:
    """A row's own words, taken as numpy."""
    shape, _, brackets = slices.partition("[")
    if shape and "grid" not in shape:
        whole = whole.reshape(json.loads(shape.replace("(", "[").replace(")", "]")))
    index = [
        slice(int(part[1:])) if part[1:] else slice(None) for part in brackets.rstrip("]").split(", ") if part[0] == ":"
    ]
    return whole[tuple(index)] if index else whole


def check_all(student: nn.Module, rows: list[Inherited], teacher: Weights, layers: Mapping[str, list[int]]) -> None:
    """Every tensor but the scalars of the logits is the published part of the teacher's, and its row says so."""
    by_name = {row.student: row for row in rows}
    state = {name: value.numpy() for name, value in student.state_dict().items() if name != "logit_scale"}
    assert by_name.keys() == state.keys()
    for name, value in state.items():
        np.testing.assert_array_equal(value, published(name, value.shape, teacher, layers), err_msg=name)
        row = by_name[name]
        np.testing.assert_array_equal(value.ravel(), cut(teacher[row.teacher], row.slices).ravel(), err_msg=name)
        assert row.elements == value.size


@pytest.mark.parametrize(
    ("teacher_layers", "student_layers", "taken"),
    [
        (12, 9, [0, 1, 2, 3, 4, 5, 6, 7, 8]),
        (12, 6, [0, 2, 4, 6, 8, 10]),
        (9, 6, [0, 1, 2, 3, 4, 5]),
        (12, 10, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]),
        (12, 3, [0, 4, 8]),
    ],
)
def test_a_transformer_student_holds_the_published_elements(
    make: Make, teacher_layers: int, student_layers: int, taken: list[int]
) -> None:
    """Narrower by a head, of narrower embeddings, with fewer layers, and with a shorter context."""
    teacher, config = make({"layers": teacher_layers}, {"layers": teacher_layers})
    weights = numbered(teacher)
    student, own = make(
        {"layers": student_layers, "width": 32},
        {"layers": student_layers, "width": 32, "heads": 2, "context_length": 6},
        embed_dim=20,
    )
    scale = float(student.logit_scale.detach())
    rows = inherit(student, own, as_teacher(teacher, config))
    check_all(student, rows, weights, {BLOCKS: taken})
    assert float(student.logit_scale.detach()) == scale
    last = f"visual.{BLOCKS}.{student_layers - 1}.attn"
    row = next(row for row in rows if row.student == f"{last}.in_proj_weight")
    assert (row.layer, row.heads, row.slices) == (
        (student_layers - 1, taken[-1]),
        (2, 3),
        "(3, 3, 16, 48)[:, :2, :, :32]",
    )


def test_a_resnet_student_holds_the_published_elements_stage_by_stage(make: Make) -> None:
    teacher, config = make(RESNET | {"layers": [4, 3, 2, 5]})
    weights = numbered(teacher)
    student, own = make(RESNET | {"layers": [2, 2, 1, 2], "width": 8}, {"layers": 1})
    rows = inherit(student, own, as_teacher(teacher, config))
    check_all(
        student, rows, weights, {"layer1": [0, 2], "layer2": [0, 1], "layer3": [0], "layer4": [0, 2], BLOCKS: [0]}
    )
    names = {row.student for row in rows}
    assert {"visual.layer1.1.bn2.running_var", "visual.layer4.0.downsample.1.num_batches_tracked"} <= names
    pools = [row for row in rows if re.search(r"attnpool\.[qkv]_proj", row.student)]
    assert {row.heads for row in pools} == {(16, 24)}
    assert len(pools) == 6


@pytest.mark.parametrize(
    ("teacher_vision", "student_vision", "grids", "words"),
    [
        (VISION | {"image_size": 40}, VISION | {"image_size": 24, "width": 32}, (5, 3, 3), "[:, :32]"),
        (VISION | {"image_size": 16}, VISION | {"image_size": [24, 32]}, (2, 3, 4), "[...]"),
        (RESNET | {"image_size": 128}, RESNET | {"image_size": 96, "width": 8}, (4, 3, 3), "[:, :256]"),
    ],
    ids=["vit", "larger and not square", "resnet"],
)
def test_positions_of_another_image_size_are_those_that_open_clip_loads(
    make: Make, teacher_vision: dict[str, Any], student_vision: dict[str, Any], grids: tuple[int, int, int], words: str
) -> None:
    """Interpolated at the teacher's width, then cut; every other tensor is a plain part of the teacher's."""
    teacher, config = make(teacher_vision)
    weights = dict(numbered(teacher))
    student, own = make(student_vision)
    rows = inherit(student, own, as_teacher(teacher, config))
    name = (
        "visual.attnpool.positional_embedding"
        if "visual.attnpool.positional_embedding" in weights
        else "visual.positional_embedding"
    )
    side, height, width = grids
    state = {"visual.positional_embedding": torch.from_numpy(weights[name])}
    resize_pos_embed(state, SimpleNamespace(visual=SimpleNamespace(grid_size=(height, width))))
    weights[name] = state["visual.positional_embedding"].numpy()
    layers = {BLOCKS: [0, 1]} | {f"layer{stage}": [0, 1] for stage in (1, 2, 3, 4)}
    check_all(student, rows, weights, layers)
    row = next(row for row in rows if row.student == name)
    assert row.slices == f"({side}, {side}) grid to ({height}, {width}){words}"
    assert row.shape == (1 + side * side, weights[name].shape[1])
    assert "logit_scale" not in {row.student for row in rows}


def test_positions_of_a_grid_that_is_not_square_keep_their_rows(make: Make) -> None:
    """Two rows of four that embed their row alone, and the class: so do the student's two rows of two."""
    teacher, config = make({"image_size": [16, 32]})
    positions = teacher.visual.positional_embedding
    with torch.no_grad():
        positions.copy_(torch.tensor([7.0, 1, 1, 1, 1, 2, 2, 2, 2])[:, None].expand_as(positions))
    student, own = make({"image_size": 16, "width": 32})
    inherit(student, own, as_teacher(teacher, config))
    expected = torch.tensor([7.0, 1, 1, 2, 2])[:, None].expand(5, 32)
    torch.testing.assert_close(student.visual.positional_embedding.detach(), expected)


@pytest.mark.parametrize(("of_teacher", "of_student"), [(False, True), (True, False)])
def test_a_text_tower_is_found_wherever_a_model_keeps_it(make: Make, of_teacher: bool, of_student: bool) -> None:
    teacher, config = make(custom_text=of_teacher)
    weights = numbered(teacher)
    student, own = make(text={"width": 32, "heads": 2}, custom_text=of_student)
    inherit(student, own, as_teacher(teacher, config))
    here, there = ("text." if custom else "" for custom in (of_student, of_teacher))
    for name in ("positional_embedding", "text_projection", f"{BLOCKS}.1.mlp.c_proj.weight"):
        value = student.state_dict()[here + name]
        np.testing.assert_array_equal(value, published(there + name, value.shape, weights, {}))


@torch.no_grad()
def outputs(model: Any) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    side = model.visual.image_size
    pixels = torch.randn(4, 3, *(side if isinstance(side, tuple) else (side, side)), generator=generator)
    tokens = torch.randint(0, 40, (4, 8), generator=generator)
    model.eval()
    return [model.encode_image(pixels), model.encode_text(tokens)]


@pytest.mark.parametrize(
    "vision",
    [{}, RESNET, {"timm_model_name": "test_vit", "image_size": 32}],
    ids=["vit", "resnet", "timm"],
)
def test_a_student_of_the_teachers_architecture_goes_on_as_the_teacher(
    make: Make, tmp_path: Path, vision: dict[str, Any]
) -> None:
    """To the bit, and with its scale; also from a folder, and from a model of any family."""
    teacher, config = make(vision, seed=1, init_logit_scale=3.0)
    save_model(teacher, config, str(tmp_path / "teacher"))
    student, own = make(vision, seed=2)
    rows = inherit(student, own, load_model(str(tmp_path / "teacher")))
    assert {row.student for row in rows} == student.state_dict().keys()
    assert float(student.logit_scale.detach()) == 3.0
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(outputs(student), outputs(teacher), strict=True))


def test_a_shallower_student_is_the_teacher_without_the_other_layers(make: Make) -> None:
    teacher, config = make({"layers": 6}, {"layers": 7}, seed=1)
    student, own = make({"layers": 3}, {"layers": 3}, seed=2)
    inherit(student, own, as_teacher(teacher, config))
    teacher.visual.transformer.resblocks = nn.ModuleList(teacher.visual.transformer.resblocks[at] for at in (0, 2, 4))
    teacher.transformer.resblocks = nn.ModuleList(teacher.transformer.resblocks[at] for at in (0, 2, 4))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(outputs(student), outputs(teacher), strict=True))


def test_the_first_heads_attend_as_they_did_in_the_teacher(make: Make) -> None:
    """Where the teacher's other channels are silent, a narrower layer's attention is the teacher's first heads'."""
    teacher, config = make(seed=1)
    student, own = make({"width": 32}, seed=2)
    inherit(student, own, as_teacher(teacher, config))
    generator = torch.Generator().manual_seed(3)
    narrow = torch.randn(1, 5, 32, generator=generator)
    wide = torch.cat([narrow, torch.zeros(1, 5, 16)], dim=2)
    with torch.no_grad():
        ours, theirs = (
            model.visual.transformer.resblocks[1].attn(x, x, x, average_attn_weights=False)[1]
            for model, x in ((student, narrow), (teacher, wide))
        )
    torch.testing.assert_close(ours, theirs[:, :2])


def test_the_scale_is_inherited_with_its_bias_or_not_at_all(make: Make) -> None:
    teacher, config = make(init_logit_scale=3.0, init_logit_bias=-7.0)
    biased, own = make(init_logit_bias=-10.0)
    inherit(biased, own, as_teacher(teacher, config))
    assert (float(biased.logit_scale.detach()), float(biased.logit_bias.detach())) == (3, -7)
    plain, own = make()
    rows = inherit(plain, own, as_teacher(teacher, config))
    assert float(plain.logit_scale.detach()) == pytest.approx(np.log(1 / 0.07))
    assert summary(rows).splitlines()[-1] == "logits: scale not inherited"


def test_the_second_stage_inherits_from_the_first(make: Make) -> None:
    """12 → 9 → 6 layers: of the first teacher the layers 0 to 5, not every other one."""
    teacher, config = make({"layers": 12})
    weights = numbered(teacher)
    middle = make({"layers": 9, "width": 32}, seed=1)
    inherit(*middle, as_teacher(teacher, config))
    student, own = make({"layers": 6, "width": 16}, seed=2)
    inherit(student, own, as_teacher(*middle))
    for name, value in student.visual.state_dict(prefix="visual.").items():
        np.testing.assert_array_equal(value, published(name, value.shape, weights, {BLOCKS: [0, 1, 2, 3, 4, 5]}))


def test_an_image_tower_alone_takes_its_part(make: Make) -> None:
    teacher, config = make()
    weights = numbered(teacher)
    student, own = make({"width": 32}, towers=("image",))
    rows = inherit(student, own, as_teacher(teacher, config))
    check_all(student, rows, weights, {})
    whole, config = make({"width": 32})
    with pytest.raises(UserError, match="the teacher: it has no text tower, the student has one"):
        inherit(whole, config, as_teacher(student, own))


@pytest.mark.parametrize(
    ("vision", "text", "changes", "message"),
    [
        ({"width": 64}, {}, {}, r"its visual\.\S+ is \(48,\), the student's \(64,\)\. Give a wider teacher"),
        ({"layers": 3}, {}, {}, r"transformer\.resblocks of its image tower has 2 layers, of the student's 3"),
        ({}, {"layers": 4}, {}, r"transformer\.resblocks of its text tower has 2 layers, of the student's 4"),
        ({}, {}, {"embed_dim": 32}, r"its visual\.proj is \(48, 24\), the student's \(48, 32\)"),
        ({}, {}, {"quick_gelu": True}, r"quick_gelu of its image tower is False, of the student's True"),
        ({"head_width": 24}, {}, {}, r"head_width of its image tower is 16, of the student's 24"),
        ({}, {"heads": 2}, {}, r"head_width of its text tower is 16, of the student's 24"),
        ({"patch_size": 4}, {}, {}, r"patch_size of its image tower is \[8, 8\], of the student's \[4, 4\]"),
        ({}, {"vocab_size": 30}, {}, r"vocab_size of its text tower is 40, of the student's 30"),
        ({"pool_type": "avg"}, {}, {}, r"pool_type of its image tower is tok, of the student's avg"),
        (RESNET, {}, {}, r"its image tower is a VisionTransformer, the student's a ModifiedResNet"),
        (
            {"timm_model_name": "test_vit", "image_size": 32},
            {},
            {},
            r"is a VisionTransformer, the student's a TimmModel",
        ),
    ],
)
def test_what_a_teacher_cannot_give_is_said_and_nothing_is_half_done(
    make: Make, vision: dict[str, Any], text: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    teacher = as_teacher(*make(seed=1))
    student, own = make(vision, text, seed=2, **changes)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    with pytest.raises(UserError, match=message) as caught:
        inherit(student, own, teacher)
    assert str(caught.value).startswith("the teacher: ")
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())


def test_a_resnet_does_not_ask_for_the_activation_of_a_vit(make: Make) -> None:
    """Its own is ReLU. A deeper stage than the teacher's is refused like any other."""
    teacher = as_teacher(*make(RESNET, quick_gelu=True))
    student = make(RESNET, quick_gelu=False, towers=("image",))
    assert inherit(*student, teacher)
    with pytest.raises(UserError, match=r"layer3 of its image tower has 2 layers, of the student's 3"):
        inherit(*make(RESNET | {"layers": [1, 1, 3, 1]}, quick_gelu=True), teacher)


def test_a_family_that_cannot_be_cut_is_inherited_whole_or_not_at_all(make: Make) -> None:
    timm = {"timm_model_name": "test_vit", "image_size": 32}
    teacher = as_teacher(*make(timm))
    student, own = make(timm, {"layers": 1})
    rows = inherit(student, own, teacher)
    assert {row.tower for row in rows} == {"image", "text"}, "the text tower is another: the scale is not inherited"
    with pytest.raises(
        UserError, match=r"embed_dim of its image tower is 24, .* a TimmModel is inherited whole or not"
    ):
        inherit(*make(timm, embed_dim=16), teacher)


def test_towers_of_any_family_are_inherited_at_another_image_size(make: Make) -> None:
    """Positions by timm's own interpolation; by open_clip's in a ViT that pools by attention."""
    timm = {"timm_model_name": "test_vit", "image_size": 32}
    pooled = {"attentional_pool": True, "attn_pooler_queries": 4, "attn_pooler_heads": 2}
    for vision, positions in ((timm, "visual.trunk.pos_embed"), (VISION | pooled, "visual.positional_embedding")):
        teacher = as_teacher(*make(vision))
        student, own = make(vision | {"image_size": 48})
        inherit(student, own, teacher)
        ours, theirs = (model.state_dict()[positions] for model in (student, teacher.model))
        assert ours.shape[-2] > theirs.shape[-2]
        # The mean over the grid hardly changes; the class position, the first, not at all.
        assert torch.equal(ours.flatten(0, -2)[0], theirs.flatten(0, -2)[0])
        assert (ours.flatten(0, -2)[1:].mean(0) - theirs.flatten(0, -2)[1:].mean(0)).abs().max() < 0.01
        assert student.visual(torch.zeros(1, 3, 48, 48)).shape == (1, own["model_cfg"]["embed_dim"])


def test_a_longer_context_interpolates_positions_and_a_shorter_one_takes_the_leading(make: Make) -> None:
    teacher = as_teacher(*make())
    theirs = teacher.model.positional_embedding.detach().numpy()
    length = len(theirs)
    for count in (2 * length, length - 3):
        student, own = make({}, {"context_length": count})
        rows = {row.student: row for row in inherit(student, own, teacher)}
        ours = student.positional_embedding.detach().numpy()
        if count < length:
            assert (ours == theirs[:count]).all()
            continue
        # Each new position in the middle of its share of the old ones, between the two nearest.
        at = np.clip((np.arange(count) + 0.5) * length / count - 0.5, 0, length - 1)
        for column in range(theirs.shape[1]):
            np.testing.assert_allclose(ours[:, column], np.interp(at, np.arange(length), theirs[:, column]), atol=1e-6)
        assert rows["positional_embedding"].slices.startswith(f"{length} positions to {count}")


def test_a_pruned_tower_is_inherited_by_one_of_its_own_shape_only(make: Make) -> None:
    """Layers of different sizes, one of them without heads."""
    full = {"width": 48, "heads": 3, "mlp": 192}
    shape = {"vision": {"full": full, "layers": [{"heads": 2, "mlp": 50}, {"heads": 0, "mlp": 7}]}}
    other = {"vision": {"full": full, "layers": [{"heads": 2, "mlp": 50}, {"heads": 1, "mlp": 7}]}}
    teacher, config = make({"width": 40}, seed=1, clipstill_pruned=shape)
    student, own = make({"width": 40}, seed=2, clipstill_pruned=shape)
    rows = inherit(student, own, as_teacher(teacher, config))
    assert {row.student for row in rows} == student.state_dict().keys()
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(outputs(student), outputs(teacher), strict=True))
    with pytest.raises(UserError, match=r"clipstill_pruned of its image tower is .*inherited whole or not at all"):
        inherit(*make({"width": 40}, clipstill_pruned=other), as_teacher(teacher, config))
    with pytest.raises(UserError, match=r"its image tower was pruned: its layers differ"):
        inherit(*make(), as_teacher(teacher, config))


PUBLISHED: dict[str, tuple[str, *tuple[Any, ...]]] = {
    "TinyCLIP-ViT-39M-16-Text-19M": ("ViT-B-16", (8, 12), [*range(12)], (8, 8), [*range(0, 12, 2)]),
    "TinyCLIP-ViT-8M-16-Text-3M": ("ViT-B-16", (4, 12), [*range(10)], (4, 8), [0, 4, 8]),
    "TinyCLIP-ViT-61M-32-Text-29M": ("ViT-B-32", (10, 12), [*range(12)], (8, 8), [*range(9)]),
    "TinyCLIP-ViT-40M-32-Text-19M": ("TinyCLIP-ViT-61M-32-Text-29M", (8, 10), [*range(12)], (8, 8), [*range(6)]),
    "TinyCLIP-ResNet-30M-Text-29M": ("RN50", (28, 32), [*range(6)], (8, 8), [*range(9)]),
    "TinyCLIP-ResNet-19M-Text-19M": ("TinyCLIP-ResNet-30M-Text-29M", (22, 28), [*range(6)], (8, 8), [*range(6)]),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_students_take_their_share(name: str) -> None:
    """Heads and layers of the published teachers, of a ResNet's the third stage's; nothing else is left out."""
    teacher, *expected = PUBLISHED[name]
    with torch.device("meta"):
        student, config = create_student(name, 0)
        rows = inherit(student, config, as_teacher(*create_student(teacher, 0)))
    found: list[Any] = []
    for tower in ("image", "text"):
        own = [row for row in rows if row.tower == tower]
        (heads,) = {row.heads for row in own if row.heads}
        found += [heads, sorted({row.layer[1] for row in own if row.layer and row.stack in (BLOCKS, "layer3")})]
    assert found == expected
    every = {key: value.numel() for key, value in student.state_dict().items() if key != "logit_scale"}
    assert {row.student: row.elements for row in rows} == every


def test_the_rows_are_told_in_a_few_lines_and_written_whole(make: Make, tmp_path: Path) -> None:
    teacher = as_teacher(*make(RESNET | {"layers": [4, 2, 2, 2]}, {"layers": 4}))
    student, own = make(RESNET | {"width": 8}, {"layers": 2, "width": 32, "heads": 2})
    rows = inherit(student, own, teacher)
    sizes = {name: value.numel() for name, value in student.state_dict().items() if name != "logit_scale"}
    image = [size for name, size in sizes.items() if name.startswith("visual.")]
    text = [size for name, size in sizes.items() if not name.startswith("visual.")]
    assert summary(rows) == (
        f"image: {len(image)} tensors, {sum(image):,} elements; 16 of 24 heads; layer1 from 0, 2; layer2 from 0, 1; "
        "layer3 from 0, 1; layer4 from 0, 1\n"
        f"text: {len(text)} tensors, {sum(text):,} elements; 2 of 3 heads; resblocks from 0, 2\n"
        "logits: scale not inherited"
    )
    write_inheritance(rows, tmp_path / "run" / "inheritance.json")
    body = json.loads((tmp_path / "run" / "inheritance.json").read_text())
    assert body["elements"] == sum(sizes.values())
    assert [row["student"] for row in body["tensors"]] == [row.student for row in rows]
    assert body["tensors"][0] == {
        "student": "visual.conv1.weight",
        "teacher": "visual.conv1.weight",
        "tower": "image",
        "shape": [6, 3, 3, 3],
        "slices": "[:4, :, :, :]",
        "elements": 4 * 3 * 3 * 3,
        "stack": None,
        "layer": None,
        "layers": None,
        "heads": None,
    }
    written = {row["student"]: (row["layer"], row["layers"], row["heads"], row["shape"]) for row in body["tensors"]}
    assert written["visual.layer1.1.conv1.weight"] == ([1, 2], [2, 4], None, [12, 48, 1, 1])
    assert written[f"{BLOCKS}.1.attn.in_proj_bias"] == ([1, 2], [2, 4], [2, 3], [144])
    assert read_inheritance(tmp_path / "run" / "inheritance.json") == rows


@pytest.mark.parametrize(
    "damage",
    [
        {"tower": "sound"},
        {"shape": "wide"},
        {"shape": [0]},
        {"elements": None},
        {"layer": [1]},
        {"layers": None},
        {"layers": [1, 0]},
        {"heads": [1, 0]},
    ],
)
def test_a_file_that_is_not_what_was_written_is_refused(make: Make, tmp_path: Path, damage: dict[str, Any]) -> None:
    path = tmp_path / "inheritance.json"
    student, own = make()
    write_inheritance(inherit(student, own, as_teacher(*make())), path)
    body = json.loads(path.read_text())
    row = next(row for row in body["tensors"] if row["heads"])
    for written in (
        "",
        "[]",
        json.dumps({"tensors": [{key: value for key, value in row.items() if key not in damage}]}),
        json.dumps({"tensors": [row | damage]}),
    ):
        path.write_text(written)
        with pytest.raises(UserError, match=r"inheritance\.json: it does not say what was inherited .*Restore it"):
            read_inheritance(path)
