"""Recipes: each shipped one is a run as published; what is said again overrides; what is wrong is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from clipstill.main import main
from distill.recipe import list_recipes, load_recipe, merged, settings_from
from distill.settings import LossTerm, RunSettings
from shards import UserError

NAMES = [facts.name for facts in list_recipes()]
GIVEN = {"shards": "S", "cache": "C", "out": "O"}


def settings(name: str, **given: Any) -> RunSettings:
    return settings_from(load_recipe(name), **GIVEN, **given)


def weights(run: RunSettings) -> dict[str, Any]:
    return {name: term.weight for name, term in run.losses.items()}


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def write(text: str, name: str = "mine") -> str:
        (tmp_path / f"{name}.toml").write_text(text)
        return str(tmp_path / f"{name}.toml")

    return write


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_is_a_run_of_a_student_there_is(name: str) -> None:
    from clip_models import student_names  # noqa: PLC0415

    # What goes on from a pruned model takes that one.
    given = {} if load_recipe(name).get("student") else {"student": "ViT-B-32"}
    assert not given or name.startswith("tinyclip-auto")
    run = settings(name, **given, initial="ViT-B-32:laion2b_e16")
    assert run.student in {*student_names(), "MobileCLIP-S1", "MobileCLIP-B", "MobileCLIP2-S0", "ViT-B-32"}
    assert run.losses


def test_the_list_tells_each_recipe_in_a_line() -> None:
    for facts in list_recipes():
        assert 20 < len(facts.about) < 120
        assert facts.about[0] != "#"
    assert {"clip-kd", "dr-small", "teensy-tiny-5m"} <= set(NAMES)


@pytest.mark.parametrize("name", [name for name in NAMES if "tinyclip-vit" in name or "resnet" in name])
def test_tinyclip_is_as_published(name: str) -> None:
    run = settings(name)
    assert weights(run) == {"affinity": 1}
    assert (run.teacher_scale, run.student_scale) == (50, 50)
    optimiser = run.optimiser
    assert (optimiser.lr, optimiser.weight_decay, optimiser.clip_norm, optimiser.warmup) == (1e-4, 0.2, 5, 2000)
    vit = "vit" in name
    assert (*optimiser.betas, optimiser.eps) == ((0.9, 0.98, 1e-6) if vit else (0.9, 0.999, 1e-8))
    assert (optimiser.schedule, optimiser.final_lr) == ("cosine", 0)
    assert run.epochs == (25 if "-16-" in name else 6)
    assert name == run.student.lower()


@pytest.mark.parametrize(
    ("model", "start", "target", "steps"),
    [("63m-32-text-31m", 0, 0.25, 3000), ("45m-32-text-18m", 0.25, 0.5, 5000), ("22m-32-text-10m", 0.5, 0.75, 8000)],
)
def test_automatic_tinyclip_is_as_published(model: str, start: float, target: float, steps: int) -> None:
    # Each stage after the first goes on from the model of the one before, which has to be given.
    recipe = load_recipe(f"tinyclip-auto-vit-{model}-prune")
    assert recipe.get("student") == ("ViT-B-32" if start == 0 else None)
    run = settings(f"tinyclip-auto-vit-{model}-prune", student="ViT-B-32", initial="ViT-B-32:laion2b_e16")
    assert run.prune is not None
    assert (run.prune.target, run.prune.ramp, run.prune.lr) == (target, 1000, 0.02)
    # What the stage before has left; published is that it left all but its target.
    assert run.prune.start is None
    assert run.prune.begun_at(start).target_at(500) == (start + target) / 2
    assert (run.steps, run.epochs, run.optimiser.warmup) == (steps, None, steps)
    on = settings("tinyclip-auto", student="ViT-B-32")
    assert (weights(run), run.optimiser.lr, run.student_scale) == (weights(on), on.optimiser.lr, on.student_scale)
    assert on.prune is None
    assert (on.optimiser.warmup, on.optimiser.schedule, on.optimiser.final_lr, on.epochs) == (0, "cosine", 0, 6)


@pytest.mark.parametrize(
    ("method", "added"),
    [
        ("-crd", {"crd": 1}),
        ("-fd", {"fd": 2000}),
        ("-mfd", {"fd": 2000}),
        ("-gd-reference", {"gd": 1e8}),
        ("-icl", {"icl": 1}),
        ("-afd", {"afd": 1}),
        ("", {"crd": 1, "icl": 1, "fd": 2000}),
    ],
)
def test_clip_kd_is_as_published(method: str, added: dict[str, float]) -> None:
    run = settings(f"clip-kd{method}")
    assert weights(run) == {"contrastive": 1, **added}
    assert (run.epochs, run.batch_size, run.precision) == (32, 1024, "fp16")
    optimiser = run.optimiser
    assert (optimiser.lr, optimiser.weight_decay, optimiser.warmup, optimiser.clip_norm) == (1e-3, 0.1, 10_000, 0)
    assert optimiser.loss_weight_decay == 0.01
    assert run.patch_mask == (0.75 if method == "-mfd" else 0)
    assert (run.teacher_scale, run.student_scale, run.max_scale) == (None, None, 100)


def test_gradient_distillation_comes_as_meant_and_as_the_reference_has_it() -> None:
    assert settings("clip-kd-gd").losses["gd"].options == {}
    assert settings("clip-kd-gd-reference").losses["gd"].options == {"form": "reference"}


def test_dataset_reinforcement_is_as_published() -> None:
    small, large = settings("dr-small"), settings("dr-large")
    assert weights(small) == {"reinforcement": 1}
    assert weights(large) == {"contrastive": 0.25, "reinforcement": 0.75}
    for run in (small, large):
        assert run.captions == ("txt", "syn")
        assert len(run.teachers) == 2
        assert run.teacher_scale == 100
        optimiser = run.optimiser
        assert (optimiser.lr, optimiser.final_lr, optimiser.betas) == (1e-3, 1e-6, (0.9, 0.95))
        assert (optimiser.weight_decay, optimiser.ema, run.precision) == (0.2, 0.9995, "bf16")


def test_the_second_reinforcement_has_a_scale_for_each_teacher_as_published() -> None:
    run = settings("dr2")
    assert run.teacher_scale == {"dfn2b-l14": 70, "dfn2b-s39b-l14": 60}
    assert set(run.teacher_scale) == set(run.teachers)
    assert weights(run) == {"reinforcement": 1}
    assert (run.steps, run.batch_size, run.captions) == (30_000, 8192, ("txt", "syn"))
    optimiser = run.optimiser
    assert (optimiser.lr, optimiser.warmup, optimiser.weight_decay, optimiser.betas) == (1e-3, 1000, 0.2, (0.9, 0.95))
    assert (optimiser.clip_norm, optimiser.ema) == (1, None)


def test_teensy_tiny_learns_to_meet_the_caches_texts() -> None:
    four, five = settings("teensy-tiny-4m"), settings("teensy-tiny-5m")
    assert (four.student, four.batch_size) == ("clip-mixer-4M", 512)
    assert (five.student, five.batch_size) == ("clip-mixer-5M", 384)
    assert four.text_tower == five.text_tower == "cache"


def test_what_is_given_overrides_a_recipe_field_by_field_and_losses_as_a_whole() -> None:
    run = settings("clip-kd", student="RN50", optimiser={"lr": 0.5}, losses={"icl": LossTerm(weight=3.0)}, steps=7)
    assert (run.student, run.steps, run.epochs) == ("RN50", 7, None)
    assert (run.optimiser.lr, run.optimiser.warmup) == (0.5, 10_000)
    assert weights(run) == {"icl": 3.0}
    assert run.batch_size == 1024


def test_a_model_that_is_given_to_begin_with_is_the_student_unless_another_is(tmp_path: Path) -> None:
    given = str(tmp_path)
    assert settings("tinyclip-auto", initial=given).student == given
    assert settings("tinyclip-auto", initial=given, student="RN50").student == "RN50"
    assert settings("clip-kd", initial=given).student == "ViT-T-16"
    with pytest.raises(UserError, match="student is missing"):
        settings("tinyclip-auto", initial="ViT-B-32:laion2b_e16")


def test_merging_changes_neither_side() -> None:
    beneath, above = {"optimiser": {"lr": 1.0}, "steps": 3}, {"optimiser": {"warmup": 2}, "epochs": 1.0}
    assert merged(beneath, above) == {"optimiser": {"lr": 1.0, "warmup": 2}, "epochs": 1.0}
    assert beneath == {"optimiser": {"lr": 1.0}, "steps": 3}
    assert above == {"optimiser": {"warmup": 2}, "epochs": 1.0}


def test_a_file_of_ones_own(write: Any) -> None:
    path = write(
        """
        base = "clip-kd"
        lock = ["text"]
        [losses]
        contrastive = 1
        fd = [[0, 0], [0.5, 2000]]
        icl = {scale = "reference"}
        [evaluation]
        on = "V"
        every = 5
        """
    )
    run = settings(path, evaluation={"every": 9})
    assert run.lock == ("text",)
    assert run.losses["fd"].at(0.25) == 1000
    assert run.losses["icl"] == LossTerm(weight=1.0, options={"scale": "reference"})
    assert run.evaluation is not None
    assert (run.evaluation.on, run.evaluation.every) == (("V",), 9)
    assert run.student == "ViT-T-16"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('studnet = "ViT-T-16"', ["studnet", "closest is student"]),
        ("steps = 1.5", ["steps is 1.5", "a whole number"]),
        ("steps = true", ["steps is True", "a whole number"]),
        ('batch_size = "8"', ["batch_size is '8'", "a whole number"]),
        ('captions = "txt"', ["captions is 'txt'", "a list of"]),
        ('precision = "half"', ["precision is 'half'", "one of fp32, bf16, fp16"]),
        ("[optimiser]\nlearning = 1", ["optimiser.learning is no setting"]),
        ('[optimiser]\nlr = "fast"', ["optimiser.lr is 'fast'", "a number"]),
        ("[weights]\nmine = 0.0", ["weights.mine is 0.0, it must be a number, above 0"]),
        ("[optimiser]\nbetas = [0.9]", ["optimiser.betas", "2 of"]),
        ("optimiser = 3", ["optimiser is 3", "[optimiser]"]),
        ("[losses]\nfeature = 1", ["losses.feature", "there is no loss 'feature'", "affinity"]),
        ("[losses]\nfd = -1", ["losses.fd", "-1"]),
        ('[losses]\nfd = "much"', ["losses.fd: weight is 'much'", "a number"]),
        ('[losses]\ngd = {from = "x"}', ["losses.gd", "no option 'from'", "form"]),
        ('[losses]\ngd = {form = "x"}', ["losses.gd", "'x'", "reference"]),
        ('shards = "S"', ["shards has no place", "--shards"]),
        ("steps = ", ["not readable as TOML"]),
        ('base = "tinyclip-vit-40m-32-text-19m"', ["tinyclip-vit-40m-32-text-19m has a base too"]),
        ("base = 3", ["base is 3"]),
    ],
)
def test_a_recipe_that_is_wrong_is_named_with_its_key(write: Any, text: str, told: list[str]) -> None:
    path = write(text)
    with pytest.raises(UserError) as error:
        load_recipe(path)
    for words in (path, *told):
        assert words in str(error.value)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(("name", "told"), [("clip-dk", "clip-kd"), ("nowhere.toml", "nowhere.toml")])
def test_a_recipe_that_is_not_there(name: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        load_recipe(name)


@pytest.mark.parametrize(("left_out", "told"), [("shards", "SHARDS"), ("out", "--out"), ("student", "--student")])
def test_what_is_missing_is_asked_for(left_out: str, told: str) -> None:
    given = {"shards": "S", "out": "O", "student": "X", "steps": 1}
    del given[left_out]
    with pytest.raises(UserError, match=f"{left_out} is missing.*{told}"):
        settings_from({}, **given)
    with pytest.raises(UserError, match=r"evaluation\.on is missing.*--eval"):
        settings("clip-kd", evaluation={"every": 3})


def test_a_recipes_warm_up_fits_the_run_unless_it_is_asked_for() -> None:
    """A recipe in epochs was written for millions of samples; one in steps brings its own length."""
    given: dict[str, Any] = {"shards": "s", "cache": "c", "out": "o"}
    short = settings_from(load_recipe("clip-kd"), **given)
    assert short.optimiser.warmup_steps(187) == 18
    assert short.optimiser.warmup_steps(468_000) == 10_000
    asked = settings_from(load_recipe("clip-kd"), **given, optimiser={"warmup": 100})
    assert asked.optimiser.warmup_steps(187) == 100
    prune = load_recipe("tinyclip-auto-vit-63m-32-text-31m-prune")
    assert settings_from(prune, **given).optimiser.warmup_steps(3000) == 3000
    assert settings_from(prune, **given, steps=40).optimiser.warmup_steps(40) == 4


def test_clip_kds_two_datasets_are_each_seen_once_and_in_their_order(capfd: pytest.CaptureFixture[str]) -> None:
    both = {"shards": ("d/cc3m-clean", "d/cc12m"), "cache": ("a", "b")}
    for name in (name for name in NAMES if name.startswith("clip-kd")):
        run = settings_from(load_recipe(name), **both, out="O")
        assert (tuple(run.datasets), run.weights_in_order()) == (("CC3M", "CC12M"), (1.0, 1.0))
    mine = settings_from(load_recipe("clip-kd"), **both, out="O", weights={"cc12m": 0.5})
    assert mine.weights_in_order() == (1.0, 0.5)
    with pytest.raises(UserError, match=r"d/cc12m stands where the recipe has CC3M.*CC3M \+ CC12M, in order"):
        settings_from(load_recipe("clip-kd"), **both | {"shards": both["shards"][::-1]}, out="O")
    assert settings_from(load_recipe("clip-kd"), **both | {"shards": ("x", "y")}, out="O").weights_in_order() == (1, 1)
    # One dataset, perhaps both in one, is trained too; whoever reads the figures is told.
    assert main(["distill", "nowhere", "--cache", "C", "--recipe", "clip-kd", "--out", "O"]) == 2
    assert "published on CC3M + CC12M, and this run is of one dataset" in capfd.readouterr().out


def test_a_recipes_own_weights_need_its_datasets(write: Any) -> None:
    path = write('base = "clip-kd"\n[datasets]\nmine = 2\nyours = 0.25\n')
    run = settings_from(load_recipe(path), shards=("a", "b"), cache=("c", "d"), out="O")
    assert run.weights_in_order() == (2, 0.25)
    assert run.identity()["weights"] == (2, 0.25)
    for shards in (("a",), ("a", "b", "c")):
        with pytest.raises(UserError, match=f"the recipe weighs mine \\+ yours, and {len(shards)} stand here"):
            settings_from(load_recipe(path), shards=shards, cache=shards, out="O")
