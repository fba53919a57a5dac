"""A run's settings as a reader wants them: a few rows in words, or every value by its name in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distill.run_folder import RunFolder
from pages.words import in_words, millions, say_number, say_value


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
    """Every setting and fact by its name in words, in words; without the run's own folder."""
    settings = {**run.settings, "losses": {name: _weighed(term) for name, term in losses(run).items()}}
    settings.pop("out", None)
    # How many steps an epoch's fraction came to is news; a number of steps that was asked for is not.
    facts = {name: value for name, value in run.facts.items() if name != "steps" or not settings.get("steps")}
    return {name: say_value(value) for part in (settings, facts) for name, value in in_words(part)}


def _weighed(term: Mapping[str, Any]) -> dict[str, Any]:
    return {**term, "weight": _weight(term)}


def _object(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _objects(value: object) -> list[Mapping[str, Any]]:
    return [_object(part) for part in value] if isinstance(value, list) else []


def _listed(value: object) -> str:
    return ", ".join(str(part) for part in value) if isinstance(value, list) else ""


def _student(run: RunFolder) -> str:
    facts, settings = _object(run.facts.get("student")), run.settings
    words = [str(facts.get("name") or settings.get("student") or "")]
    towers = _object(facts.get("parameters"))
    if towers:
        words.append(" + ".join(f"{millions(count)} ({tower})" for tower, count in towers.items()) + " parameters")
    words += [f"from {settings['initial']}"] if settings.get("initial") else []
    words += ["text embeddings from the cache, frozen"] if settings.get("text_tower") == "cache" else []
    if settings.get("image_tower") == "cache":
        words.append(f"image embeddings from the cache{', through a head' if settings.get('image_head') else ''}")
    words += [f"at {settings['image_size']} pixels"] if settings.get("image_size") else []
    words += [f"{settings['context_length']} tokens a caption"] if settings.get("context_length") else []
    words += [f"locked: {_listed(settings['lock'])}"] if settings.get("lock") else []
    words += [f"{settings['patch_mask']:.0%} of patches masked"] if settings.get("patch_mask") else []
    return ", ".join(word for word in words if word)


def _teacher(teacher: Mapping[str, Any]) -> str:
    words = [str(teacher.get("model") or teacher.get("name") or "")]
    words += [f"{teacher['embed_dim']}-d"] if "embed_dim" in teacher else []
    words += [f"logit scale {say_number(teacher['logit_scale'])}"] if "logit_scale" in teacher else []
    words += [f"fingerprint {str(teacher['fingerprint'])[:12]}"] if "fingerprint" in teacher else []
    return ", ".join(words)


def _data(run: RunFolder) -> str:
    facts, settings = _object(run.facts.get("dataset")), run.settings
    words = [str(facts.get("name") or _listed(settings.get("shards")))]
    words += [f"{say_number(facts['samples'])} samples"] if "samples" in facts else []
    words += [f"content {str(facts['content'])[:12]}"] if "content" in facts else []
    words += [share_in_words(part) for part in _objects(facts.get("parts"))]
    words += [f"cache {_listed(settings['cache'])}"] if settings.get("cache") else []
    words += [f"samples by score: {settings['by_score']}"] if settings.get("by_score") else []
    captions = _listed(settings.get("captions"))
    words += [f"captions {captions}"] if captions not in ("", "txt") else []
    return ", ".join(word for word in words if word)


def share_in_words(part: Mapping[str, Any]) -> str:
    """How much of one of several datasets an epoch shows."""
    name, weight, samples, shown = (part[key] for key in ("name", "weight", "samples", "in_an_epoch"))
    each = "each once" if weight == 1 else f"each {weight:g} times on average"
    return f"of {name} an epoch shows {shown:,} of {samples:,} samples, {each}"


def _term(name: str, term: Mapping[str, Any]) -> str:
    options = ", ".join(f"{key} {say_number(value)}" for key, value in _object(term.get("options")).items())
    return f"{name} × {_weight(term)}" + (f" ({options})" if options else "")


def _weight(term: Mapping[str, Any]) -> str:
    weight = term.get("weight", 1)
    if isinstance(weight, list):
        return " → ".join(f"{say_value(point[1])} at {point[0]:.0%}" for point in weight)
    return say_value(weight)


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
            words.append(f"{word} {_listed(value) if isinstance(value, list) else say_number(value)}".strip())
    return ", ".join(words)


def _computed(run: RunFolder) -> str:
    facts = run.facts
    words = [str(facts["device"])] if "device" in facts else []
    if "processes" in facts:
        words.append(f"{facts['processes']} {'process' if facts['processes'] == 1 else 'processes'}")
    words += [str(run.settings["precision"])] if "precision" in run.settings else []
    words += [f"{name} {version}" for name, version in _object(facts.get("versions")).items()]
    return ", ".join(words)
