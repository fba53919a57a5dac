"""How often a run's datasets are seen: by the user's weights, and by those of what its recipe was published on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from shards.errors import UserError


def _names_of(place: str) -> tuple[str, str]:
    """What a dataset is called: its path, or the last part of it."""
    whole = place.rstrip("/")
    return whole, whole.rpartition("/")[2]


def check_weights(shards: Sequence[str], weights: Mapping[str, float]) -> None:
    """Raise `UserError` unless each of the weights is of one of several datasets."""
    if weights and len(shards) == 1:
        raise UserError(
            "a weight is beside other datasets', and there is one dataset", where="--weight", do="Leave it out"
        )
    for name in weights:
        named = [place for place in shards if name in _names_of(place)]
        if len(named) != 1:
            raise UserError(
                f"{name} is {'none' if not named else 'more than one'} of the datasets",
                where="--weight",
                do=f"Use one of {', '.join(shards)}",
            )


def check_published(shards: Sequence[str], published: Mapping[str, float]) -> None:
    """Raise `UserError` if these are in another order than what the recipe was published on, as far as names tell, or
    so many that its weights have no meaning.
    """
    told = " + ".join(published)
    if len(published) != len(shards):
        if any(weight != 1 for weight in published.values()):
            raise UserError(
                f"the recipe weighs {told}, and {len(shards)} stand here",
                where=", ".join(shards),
                do="Give a dataset for each, in this order",
            )
        return
    for place, own in zip(shards, published, strict=True):
        last = _names_of(place)[1].lower()
        if own.lower() not in last and any(name.lower() in last for name in published):
            raise UserError(f"{place} stands where the recipe has {own}", where="SHARDS", do=f"Give {told}, in order")


def weights_in_order(
    shards: Sequence[str], weights: Mapping[str, float], published: Mapping[str, float]
) -> tuple[float, ...]:
    """How many times an epoch shows the samples of each: as the user says, else the recipe of as many, else once."""
    beneath = list(published.values()) if len(published) == len(shards) else [1.0] * len(shards)
    return tuple(
        next((weight for name, weight in weights.items() if name in _names_of(place)), float(own))
        for place, own in zip(shards, beneath, strict=True)
    )


def on_other_data(recipe: str | None, shards: Sequence[str], published: Mapping[str, float]) -> str:
    """What to say where a recipe was published on another number of datasets; "" where it was not."""
    if not published or len(published) == len(shards):
        return ""
    given = "one dataset" if len(shards) == 1 else f"{len(shards)} datasets"
    return f"the recipe {recipe} was published on {' + '.join(published)}, and this run is of {given}"
