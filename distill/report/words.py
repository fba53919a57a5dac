"""Settings and figures as a reader wants them: a few rows in words, or every value by its dotted name."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from distill.run_folder import RunFolder


def say(value: float | None) -> str:
    """A figure with four digits; whole numbers whole."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if value == int(value) or abs(value) >= 1000 else f"{value:#.4g}"


def say_hours(hours: float | None) -> str:
    """How long something took, in the largest unit that it fills: 15 s, 1.5 min, 3.2 h."""
    if hours is None:
        return "–"
    # What rounds to 60 of one unit is 1 of the next.
    seconds = 3600 * hours
    value, unit = (seconds, "s") if seconds < 59.5 else (60 * hours, "min") if seconds < 59.5 * 60 else (hours, "h")
    return f"{value:,.0f} {unit}" if value >= 9.95 else f"{round(value, 1):g} {unit}"


def state(run: RunFolder) -> str:
    """Whether the run has ended, and where it is."""
    if run.done is not None:
        return f"finished, {run.done.get('steps', run.step):,} steps"
    return f"at step {run.step:,} of {run.planned:,}" if run.planned else f"at step {run.step:,}"


def in_short(run: RunFolder) -> dict[str, str]:
    """What is trained: student, teachers, data, losses, length, optimiser; without what is not known."""
    settings = run.settings
    found = {
        "student": _student(run),
        "teachers": "; ".join(_teacher(teacher) for teacher in _objects(run.facts.get("teachers"))),
        "data": _data(run),
        "losses": ", ".join(_term(name, term) for name, term in losses(run).items()),
        "length": _length(run),
        "optimiser": _optimiser({**_object(settings.get("optimiser")), **_warmup(run)}),
        "computed": _computed(run),
    }
    return {name: text for name, text in found.items() if text}


def losses(run: RunFolder) -> Mapping[str, Any]:
    """Loss → weight and options. The identity has them with defaults filled in."""
    found = _object(run.identity.get("settings")).get("losses") or run.settings.get("losses")
    return {name: term if isinstance(term, dict) else {"weight": term} for name, term in _object(found).items()}


def flat(run: RunFolder) -> dict[str, str]:
    """Every setting and fact by its dotted name, as JSON; without the run's own folder."""
    settings = {**run.settings, "losses": losses(run)}
    settings.pop("out", None)
    # How many steps an epoch's fraction came to is news; a number of steps that was asked for is not.
    facts = {name: value for name, value in run.facts.items() if name != "steps" or not settings.get("steps")}
    return dict(_flat("", settings)) | dict(_flat("facts", facts))


def _flat(name: str, value: object) -> Iterator[tuple[str, str]]:
    if isinstance(value, list) and value and all(isinstance(part, dict) for part in value):
        value = {str(place): part for place, part in enumerate(value)}
    if isinstance(value, dict) and value:
        for key, part in value.items():
            yield from _flat(f"{name}.{key}" if name else str(key), part)
    elif value not in ({}, []):
        yield name, value if isinstance(value, str) else json.dumps(_plain(value))


def _plain(value: object) -> object:
    """Whole floats as integers, so that 2000.0 is no other weight than 2000."""
    if isinstance(value, list):
        return [_plain(part) for part in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _object(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _objects(value: object) -> list[Mapping[str, Any]]:
    return [_object(part) for part in value] if isinstance(value, list) else []


def _listed(value: object) -> str:
    return ", ".join(str(part) for part in value) if isinstance(value, list) else ""


def _number(value: object) -> str:
    """Of a setting: as it was written, without a float's tail."""
    return f"{value:,}" if type(value) is int else f"{value:g}" if isinstance(value, float) else str(value)


def millions(parameters: object) -> str:
    return f"{parameters / 1e6:.3g} M" if isinstance(parameters, int) else str(parameters)


def _student(run: RunFolder) -> str:
    facts, settings = _object(run.facts.get("student")), run.settings
    words = [str(facts.get("name") or settings.get("student") or "")]
    towers = _object(facts.get("parameters"))
    if towers:
        words.append(" + ".join(f"{millions(count)} ({tower})" for tower, count in towers.items()) + " parameters")
    words += [f"from {settings['initial']}"] if settings.get("initial") else []
    words += ["text embeddings from the cache, frozen"] if settings.get("text_tower") == "cache" else []
    words += [f"locked: {_listed(settings['lock'])}"] if settings.get("lock") else []
    words += [f"{settings['patch_mask']:.0%} of patches masked"] if settings.get("patch_mask") else []
    return ", ".join(word for word in words if word)


def _teacher(teacher: Mapping[str, Any]) -> str:
    words = [str(teacher.get("model") or teacher.get("name") or "")]
    words += [f"{teacher['embed_dim']}-d"] if "embed_dim" in teacher else []
    words += [f"logit scale {_number(teacher['logit_scale'])}"] if "logit_scale" in teacher else []
    words += [f"fingerprint {str(teacher['fingerprint'])[:12]}"] if "fingerprint" in teacher else []
    return ", ".join(words)


def _data(run: RunFolder) -> str:
    facts, settings = _object(run.facts.get("dataset")), run.settings
    words = [str(facts.get("name") or settings.get("shards") or "")]
    words += [f"{_number(facts['samples'])} samples"] if "samples" in facts else []
    words += [f"content {str(facts['content'])[:12]}"] if "content" in facts else []
    words += [f"cache {settings['cache']}"] if settings.get("cache") else []
    captions = _listed(settings.get("captions"))
    words += [f"captions {captions}"] if captions not in ("", "txt") else []
    return ", ".join(word for word in words if word)


def _term(name: str, term: Mapping[str, Any]) -> str:
    weight = term.get("weight", 1)
    if isinstance(weight, list):
        weight = " → ".join(f"{_number(point[1])} at {point[0]:.0%}" for point in weight)
    options = ", ".join(f"{key} {_number(value)}" for key, value in _object(term.get("options")).items())
    return f"{name} × {weight if isinstance(weight, str) else _number(weight)}" + (f" ({options})" if options else "")


def _length(run: RunFolder) -> str:
    batch, each = run.settings.get("batch_size"), run.facts.get("steps_per_epoch")
    words = [f"{run.planned:,} steps"] if run.planned else []
    words += [f"of {batch:,} samples"] if batch else []
    if run.planned and each:
        words.append(f"= {run.planned / each:.3g} epochs of {each:,} steps")
    return " ".join(words)


def _warmup(run: RunFolder) -> dict[str, Any]:
    """The steps that it took, which may be fewer than were set."""
    return {"warmup": run.facts["warmup"]} if "warmup" in run.facts else {}


def _optimiser(settings: Mapping[str, Any]) -> str:
    if not settings:
        return ""
    words = ["AdamW"]
    named = {"lr": "lr", "schedule": "", "warmup": "warm-up", "weight_decay": "weight decay", "betas": "betas"}
    for key, word in (named | {"clip_norm": "gradient norm at most", "ema": "EMA"}).items():
        if settings.get(key) not in (None, 0):
            value = settings[key]
            words.append(f"{word} {_listed(value) if isinstance(value, list) else _number(value)}".strip())
    return ", ".join(words)


def _computed(run: RunFolder) -> str:
    facts = run.facts
    words = [str(facts["device"])] if "device" in facts else []
    if "processes" in facts:
        words.append(f"{facts['processes']} {'process' if facts['processes'] == 1 else 'processes'}")
    words += [str(run.settings["precision"])] if "precision" in run.settings else []
    words += [f"{name} {version}" for name, version in _object(facts.get("versions")).items()]
    return ", ".join(words)
