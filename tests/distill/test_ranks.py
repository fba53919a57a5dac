"""Several processes take the steps that one takes: the same batches, losses and gradients of the global batch."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from distill.pruning import PruneSettings
from distill.run_folder import read_log
from distill.settings import EvaluationSettings, RunSettings
from distill.training.ranks import Ranks
from distill.training.train import train
from tests.distill.ranks_program import gradients, pruned, written

ALONE = Ranks(0, 1, torch.device("cpu"))
SIZES = (2, 4)
EVERY_LOSS = {"affinity": 1.0, "contrastive": 0.3, "fd": 20.0, "gd": 5.0, "icl": 0.5, "afd": 0.5, "sigmoid": 0.1}
CASES = (
    "losses",
    "micro-batches",
    "teachers and captions",
    "two datasets",
    "untaught",
    "untaught in micro-batches",
    "text from the cache",
    "text from a teacher of texts",
    "chosen from a super-batch",
    "images from the cache",
    "images from the cache through a head",
    "out of reach",
    "only the loss learns",
    "one tower locked",
    "under masks",
    "under masks in micro-batches",
    "batch norms",
    "batch norms in micro-batches",
)
AS_CUT = ("batch norms in micro-batches",)
"""Whose gradients are estimated from a micro-batch: compared with one process that has as many."""
STEPS = {"out of reach": [1, 2], "untaught": [0, 1, 2, 3], "untaught in micro-batches": [0, 1, 2, 3]}


@dataclass(frozen=True)
class Ran:
    """`cases`: a run's settings by name; `out`: SIZE/NAME is where each wrote."""

    cases: dict[str, RunSettings]
    out: Path

    def of(self, name: str, size: int) -> list[tuple[dict[str, Tensor], list[dict[str, Any]]]]:
        """By rank, what `gradients` returned."""
        folder = self.out / str(size) / name
        return [
            (load_file(folder / f"{rank}.safetensors"), json.loads((folder / f"{rank}.json").read_text()))
            for rank in range(size)
        ]


def at_size(settings: RunSettings, out: Path) -> RunSettings:
    return replace(settings, out=str(out))


@pytest.fixture(scope="module")
def ran(
    *,
    world: Any,
    second: Any,
    part: Any,
    rich: str,
    save_student: Callable[..., str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Ran:
    root = tmp_path_factory.mktemp("ranks")
    biased = save_student(root / "biased.json", custom_text=True, init_logit_bias=-3.0)
    convolutional = save_student(root / "convolutional.json", vision_layers=[1, 1, 1, 1], width=16)
    settings = world.settings
    several: dict[str, Any] = {"cache": rich, "teachers": ("teach", "other"), "captions": ("txt", "json-key")}
    two: dict[str, Any] = {"shards": (world.shards, second.shards), "cache": (world.cache, second.cache)}
    texts: dict[str, Any] = {"cache": rich, "text_tower": "cache"}
    images: dict[str, Any] = {"cache": rich, "image_tower": "cache"}
    prune = PruneSettings(target=0.9, ramp=0, lr=0.5)
    masks: dict[str, Any] = {**several, "prune": prune, "losses": {"affinity": 1.0, "fd": 9.0}}
    changes: dict[str, dict[str, Any]] = {
        "losses": {"losses": EVERY_LOSS},
        "micro-batches": {"losses": EVERY_LOSS, "micro_batches": 2},
        "teachers and captions": {**several, "losses": {"reinforcement": 0.7, "fd": 9.0, "crd": 1.0}},
        "two datasets": {**two, "losses": {"affinity": 1.0, "fd": 9.0}},
        "text from the cache": {**texts, "teachers": ("other",), "losses": {"contrastive": 1.0, "affinity": 1.0}},
        "text from a teacher of texts": {**texts, "teachers": ("texts",)},
        "chosen from a super-batch": {**several, "super_batch": 16, "losses": {"affinity": 1.0, "fd": 9.0}},
        "images from the cache": {**images, "teachers": ("other",)},
        "images from the cache through a head": {
            **images,
            "teachers": ("teach",),
            "image_head": True,
            "losses": {"contrastive": 1.0, "affinity": 1.0},
            "micro_batches": 2,
        },
        # A bias that no loss looks at.
        "out of reach": {"student": biased},
        "only the loss learns": {
            "lock": ("image", "text"),
            "losses": {"fd": 1.0},
            "student_scale": 10.0,
            "micro_batches": 2,
        },
        "one tower locked": {"lock": ("image",), "micro_batches": 2},
        "under masks": masks,
        "under masks in micro-batches": {**masks, "micro_batches": 2},
        "batch norms": {"student": convolutional, "losses": {"affinity": 1.0, "fd": 9.0}},
        "batch norms in micro-batches": {"student": convolutional, "micro_batches": 2},
    }
    cases = {name: settings(root, batch_size=8, **change) for name, change in changes.items()}
    untaught = part.settings(root, join="none", losses={"affinity": 1.0, "contrastive": 0.5, "fd": 10.0}, batch_size=4)
    cases |= {"untaught": untaught, "untaught in micro-batches": replace(untaught, batch_size=8, micro_batches=2)}
    assert set(cases) == set(CASES)

    pruning = replace(cases["under masks"], micro_batches=2, prune=PruneSettings(target=0.5, ramp=4, lr=0.7))

    # A whole run, of two datasets, and one that a single process begins.
    whole = settings(
        root / "1" / "whole",
        **two,
        weights={second.shards: 0.5},
        batch_size=8,
        losses={"affinity": 1.0, "fd": 5.0},
        checkpoint_every=3,
        optimiser={"ema": 0.5},
        # Batches that cannot be dealt out evenly.
        evaluation=EvaluationSettings(on=(world.shards,), every=3, batch_size=5),
    )
    train(whole)
    begun = root / "begun"
    shutil.copytree(whole.out, begun)
    (begun / "done.json").unlink()
    shutil.rmtree(begun / "checkpoints" / "00000008")

    plan: dict[int, Any] = {}
    for size in SIZES:
        (root / str(size)).mkdir()
        at = {name: at_size(case, root / str(size) / name) for name, case in cases.items()}
        plan[size] = {name: {"settings": written(case), "steps": STEPS.get(name, [1])} for name, case in at.items()}
        if size == 2:
            plan[size]["pruned"] = {"settings": written(at_size(pruning, root / "2" / "pruned")), "steps": []}
        shutil.copytree(begun, root / str(size) / "resumed")
        shutil.copytree(begun, root / str(size) / "resumed in shards")
        for name in ("resumed", "resumed in shards", *(("whole", "in shards") if size == 2 else ())):
            run = replace(whole, shard_optimiser=name.endswith("in shards"))
            plan[size][name] = {"settings": written(at_size(run, root / str(size) / name)), "steps": []}
    (root / "plan.json").write_text(json.dumps(plan))
    command = [sys.executable, "-W", "error", "-m", "tests.distill.ranks_program", str(root / "plan.json")]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=600, cwd=Path(__file__).parents[2]
    )
    assert done.returncode == 0, done.stderr[-6000:]
    return Ran({**cases, "pruned": pruning, "whole": whole}, root)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", CASES)
def test_gradients_are_those_of_one_process(ran: Ran, name: str, size: int) -> None:
    """In float64, so that only the order of sums is between them; one process takes the batch in one piece."""
    steps = STEPS.get(name, [1])
    case = ran.cases[name] if name in AS_CUT else replace(ran.cases[name], micro_batches=1)
    wanted, told = gradients(case, ALONE, steps)
    assert max(float(gradient.abs().max()) for gradient in wanted.values()) > 1e-3
    parts = ran.of(name, size)
    for at in range(len(steps)):
        assert [key for _, they in parts for key in they[at]["keys"]] == told[at]["keys"]
        assert sum(they[at]["present"] for _, they in parts) == told[at]["present"]
        for _, they in parts:
            assert they[at]["values"].keys() == told[at]["values"].keys()
            for term, value in told[at]["values"].items():
                assert they[at]["values"][term] == pytest.approx(value, rel=1e-12, abs=1e-14), term
    for got, _ in parts:
        nothing = {key for key in got.keys() - wanted.keys() if not got[key].any()}
        assert got.keys() - nothing == wanted.keys()
        for key, gradient in wanted.items():
            assert (got[key] - gradient).abs().max() <= 1e-12 * max(1e-3, float(gradient.abs().max())), key


def test_the_untaught_are_dealt_unevenly(ran: Ran) -> None:
    """Else the cases would prove little: some process has none that a teacher knows, while another has."""
    present = {
        size: [[they[at]["present"] for _, they in ran.of("untaught", size)] for at in range(4)] for size in SIZES
    }
    assert any(0 in step and any(step) for step in present[4]), present
    assert any(len(set(step)) > 1 for step in present[2]), present


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("whole", 2),
        ("in shards", 2),
        ("resumed", 2),
        ("resumed", 4),
        ("resumed in shards", 2),
        ("resumed in shards", 4),
    ],
)
def test_a_run_of_several_ends_where_a_run_of_one_ends(ran: Ran, name: str, size: int) -> None:
    """To float32's rounding; also one that a single process began, for they go on with the same batches."""
    one, several = ran.out / "1" / "whole", ran.out / str(size) / name
    expected, got = (load_file(out / "model" / "open_clip_model.safetensors") for out in (one, several))
    assert expected.keys() == got.keys()
    for key, value in expected.items():
        assert (got[key] - value).abs().max() < 2e-4, key
    lines, others = read_log(one / "log.jsonl"), read_log(several / "log.jsonl")
    assert [line["step"] for line in others] == [line["step"] for line in lines] == [3, 3, 6, 6, 8, 8]
    for line, other in zip(lines, others, strict=True):
        for figure in {"loss", "affinity", "fd", "grad_norm", "logit_scale", "lr"} & line.keys():
            assert other[figure] == pytest.approx(line[figure], rel=1e-4), figure
        assert {n: v for n, v in other.items() if "eval" in n} == {n: v for n, v in line.items() if "eval" in n}
    assert any(line.get("eval/retrieval/image_to_text/R@5", 0) > 0 for line in others)
    assert not [path for path in (several / "checkpoints").iterdir() if not path.name.isdigit()]
    assert json.loads((several / "done.json").read_text())["steps"] == 8
    if name.startswith("resumed"):
        (event,) = (json.loads(line) for line in (several / "events.jsonl").read_text().splitlines())
        assert (event["step"], event["kind"]) == (6, "resumed")


def test_a_sharded_optimiser_changes_nothing(ran: Ran) -> None:
    """The same bytes, of the model and of the optimiser in the last checkpoint, which one process goes on from."""
    folders = [ran.out / "2" / name for name in ("whole", "in shards")]
    for file in ("model/open_clip_model.safetensors", "checkpoints/00000008/optimiser.safetensors"):
        one, other = (load_file(folder / file) for folder in folders)
        assert one.keys() == other.keys()
        for key, value in one.items():
            assert torch.equal(value, other[key]), key
    states = [json.loads((folder / "checkpoints" / "00000008" / "state.json").read_text()) for folder in folders]
    assert states[0]["optimiser"] == states[1]["optimiser"]


def test_a_run_in_shards_goes_on_in_one_process(ran: Ran, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(ran.out / "2" / "in shards", out)
    (out / "done.json").unlink()
    shutil.rmtree(out / "checkpoints" / "00000008")
    train(replace(ran.cases["whole"], out=str(out), shard_optimiser=True))
    expected, got = (load_file(f / "model" / "open_clip_model.safetensors") for f in (ran.out / "2" / "whole", out))
    for key, value in expected.items():
        assert (got[key] - value).abs().max() < 2e-4, key


def test_several_prune_to_the_model_that_one_prunes_to(ran: Ran) -> None:
    """In float64, the masked weights, the multipliers and what is materialised; each process comes to the same."""
    alone = pruned(replace(ran.cases["pruned"], micro_batches=1), ALONE)
    one, other = (load_file(ran.out / "2" / "pruned" / f"{rank}.safetensors") for rank in (0, 1))
    assert one.keys() == alone.keys()
    for name, value in alone.items():
        assert torch.equal(one[name], other[name]), name
        assert one[name].shape == value.shape, name
        assert (one[name] - value).abs().max() < 1e-9, name
    full, left = (alone[f"{part}/visual.conv1.weight"] for part in ("masked", "dense"))
    assert 8 < len(left) < len(full) == 32
    assert alone["masked/visual.transformer.gates.mlp"].std() > 0.01
    assert (alone["prune/multipliers"] - 10).abs().min() > 0.5
