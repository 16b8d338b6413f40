"""Test items: the questions that a judge is asked about a unit, and what is known about their answers.

Items come from test documents only and do not depend on any explanation, so that all explanations of a unit answer
the same questions. Active and inactive items come in groups that are shown with equally much text, so that neither
length nor position gives an answer away. One table holds the items of all units and scorers, one row each:

``unit``, ``layer``, ``head``, ``kind``, ``scorer``; ``item`` and ``group`` (unique within unit and scorer); ``role``
(``active``, ``negative_...``, ``quiet``, ``place``, ``random_place``, ``own``, ``intruder``, ``random``); ``label``
(whether the answer is yes); ``strength`` (attention or activation); ``doc``, ``window``, ``query``, ``key``; ``pieces``
(the excerpt as JSON); ``program_prediction`` and ``lookup_prediction``; ``weight`` (of the scorer "firing": how many
test tokens an item stands for); ``reason``. A scorer that cannot be used on a unit has one row with an empty ``item``
and the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import pandas as pd

from mechatlas.explain.excerpts import Piece, pieces_to_json
from mechatlas.io import UserError, rng_for
from mechatlas.score.judge.baselines import Baseline
from mechatlas.score.judge.places import LEAST_ROOM, Activity, Place, Spot, spread

COLUMNS = (
    *("unit", "layer", "head", "kind", "scorer", "item", "group", "role", "label", "strength"),
    *(
        "doc",
        "window",
        "query",
        "key",
        "pieces",
        "program_prediction",
        "lookup_prediction",
        "weight",
        "reason",
    ),
)
#: Role of tokens of stretches that were drawn at random (latents).
RANDOM_PLACE = "random_place"
#: Longest stretch of text of a simulation, in tokens.
STRETCH = 24
#: Items of an intruder trial, the intruder included.
TRIAL = 5
#: Fewest groups of items (pairs, trials, stretches) for a score.
LEAST_GROUPS = 10


@dataclass(frozen=True)
class ItemSettings:
    """How many items of each kind (config: judge), and the documents' share in them (capture.max_per_document)."""

    items: int
    pairs: int
    sequences: int
    trials: int
    context_tokens: int
    max_per_document: int
    seed: int


@dataclass(frozen=True)
class UnitName:
    """Name of a unit and its numbers: layer and index of a head or latent, -1 for a planted unit."""

    unit: str
    layer: int = -1
    head: int = -1


@dataclass
class Draft:
    """An item before it has a name."""

    group: int
    role: str
    label: bool
    place: Place
    pieces: tuple[Piece, ...]
    weight: float = np.nan


@dataclass
class Drafts:
    """The items of one scorer, or why there are none."""

    items: list[Draft] = field(default_factory=list)
    reason: str = ""


def unit_items(
    name: UnitName,
    activity: Activity,
    scorers: Sequence[str],
    settings: ItemSettings,
    baselines: Mapping[str, Baseline],
) -> pd.DataFrame:
    """Build the items of one unit.

    Parameters
    ----------
    name : UnitName
    activity : Activity
        What is known of the unit on test documents (or on others, to choose among explanations).
    scorers : sequence of str
        Some of `BUILDERS`. The items of a scorer do not depend on the others.
    settings : ItemSettings
    baselines : mapping
        ``program`` and ``lookup``, as far as there are any.

    Returns
    -------
    data frame
        Columns `COLUMNS`.

    Raises
    ------
    UserError
        If a scorer is unknown.
    """
    frames = []
    for scorer in scorers:
        if scorer not in BUILDERS:
            raise UserError(f"judge.scorers: {scorer!r} is not one of {', '.join(BUILDERS)}")
        drafts = BUILDERS[scorer](activity, settings, name.unit)
        frame = _frame(drafts, scorer)
        for column in ("program", "lookup"):
            values: Any = np.nan
            if column in baselines and not drafts.reason:
                values = baselines[column].predict(scorer, frame)
            frame[f"{column}_prediction"] = np.asarray(values, dtype=np.float64)
        frames.append(frame.assign(scorer=scorer))
    table = pd.concat(frames, ignore_index=True)
    table = table.assign(unit=name.unit, layer=name.layer, head=name.head, kind=activity.kind.name)
    return table[list(COLUMNS)]


def _frame(drafts: Drafts, scorer: str) -> pd.DataFrame:
    if drafts.reason:
        nowhere = {
            "doc": "",
            "window": -1,
            "query": -1,
            "key": -1,
            "strength": np.nan,
            "weight": np.nan,
        }
        row = {"item": "", "group": "", "role": "", "label": False, "pieces": "", **nowhere}
        return pd.DataFrame([row | {"reason": drafts.reason}])
    rows = [
        {
            **{"item": f"{scorer}.{i}", "group": f"{scorer}.{d.group}", "role": d.role},
            **{"label": d.label, "strength": d.place.strength, "doc": d.place.doc},
            **{"window": d.place.window, "query": d.place.query, "key": d.place.key},
            **{"pieces": pieces_to_json(d.pieces), "weight": d.weight, "reason": ""},
        }
        for i, d in enumerate(drafts.items)
    ]
    return pd.DataFrame(rows)


Builder = Callable[[Activity, ItemSettings, str], Drafts]


def detection(activity: Activity, settings: ItemSettings, unit: str) -> Drafts:
    """Pair active places with places where the unit is quiet, both shown without what would give them away."""
    active = activity.active()
    # A query that attends to several keys is one item.
    anchors = _anchors(active.drop_duplicates(["window", "query"]), settings, "detection", unit)
    wanted = settings.items // 2

    def groups() -> Iterator[list[tuple[str, Place]]]:
        for anchor in anchors:
            quiet = activity.quiet(anchor)
            if quiet is None:
                return
            yield [("active", anchor), ("quiet", quiet)]

    chosen = list(islice(groups(), wanted))
    drafts = _excerpted(chosen, activity.hidden, activity, settings)
    why = activity.quiet_shortage() if len(active) >= wanted else _few_active(active)
    return _enough(drafts, len(chosen), wanted, "pairs of active and quiet places", why)


def fuzzing(activity: Activity, settings: ItemSettings, unit: str) -> Drafts:
    """Pair rightly marked places with wrongly marked ones at the same distance or in the same text."""
    active = activity.active()
    wanted = settings.items // 2
    chosen = _with_negatives(
        activity, settings, "fuzzing", unit, active, wanted, (activity.position_matched,)
    )
    drafts = _excerpted(chosen, activity.marked, activity, settings)
    words = activity.position_matched.replace("_", " ")
    why = f"{len(active)} active places, few of which have an inactive {words} counterpart"
    return _enough(drafts, len(chosen), wanted, f"{words} pairs", why)


def pair_auc(activity: Activity, settings: ItemSettings, unit: str) -> Drafts:
    """Put every kind of matched negative beside each active place."""
    active = activity.active()
    kinds = activity.negatives
    chosen = _with_negatives(activity, settings, "pair_auc", unit, active, settings.pairs, kinds)
    drafts = _excerpted(chosen, activity.marked, activity, settings)
    why = _few_active(active)
    return _enough(drafts, len(chosen), settings.pairs, "active places with negatives", why)


def simulation(activity: Activity, settings: ItemSettings, unit: str) -> Drafts:
    """Take stretches of text; each token is an item, its strength is to be predicted."""
    stretches = activity.stretches(settings.sequences, STRETCH)
    drafts = []
    for group, stretch in enumerate(stretches):
        for at in range(stretch.start, stretch.stop):
            strength = float(stretch.strengths[at - stretch.start])
            pair = activity.kind.name == "head"
            query, key = (stretch.stop - 1, at) if pair else (at, -1)
            place = Place(stretch.window, stretch.doc, query, key, strength)
            pieces = (activity.token(stretch.window, at),)
            role = RANDOM_PLACE if stretch.random else "place"
            drafts.append(Draft(group, role, stretch.active, place, pieces))
    return _enough(drafts, len(stretches), settings.sequences, "stretches of text", "")


def intruder(activity: Activity, settings: ItemSettings, unit: str) -> Drafts:
    """Mix one place of another unit into places of this one."""
    active = activity.active()
    roomy = _roomy(active, (TRIAL - 1) * settings.trials)
    own = _anchors(roomy, settings, "intruder", unit)
    others = _roomy(activity.foreign(), settings.trials)
    foreign = _anchors(others, settings, "intruder foreign", unit)
    rng = rng_for(settings.seed, "trials", unit)
    chosen = []
    for _ in range(settings.trials):
        trial = [("own", place) for place in islice(own, TRIAL - 1)]
        trial += [("intruder", place) for place in islice(foreign, 1)]
        if len(trial) == TRIAL:
            chosen.append([trial[i] for i in rng.permutation(TRIAL)])
    drafts = _excerpted(chosen, activity.marked, activity, settings)
    why = f"{len(active)} active places"
    return _enough(drafts, len(chosen), settings.trials, "trials", why)


def firing(activity: Activity, settings: ItemSettings, unit: str) -> Drafts:
    """Put uniformly random inactive places beside active ones of all strengths, each with the number it stands for.

    With these weights (Horvitz and Thompson 1952) precision and recall are those at the unit's true rate, where active
    places are few; balanced items say nothing about that.
    """
    if activity.kind.name != "latent":
        return Drafts(reason="made for latents; heads' pairs have too many inactive places")
    active = activity.active()
    wanted = settings.items // 2
    anchors = list(islice(_anchors(active, settings, "firing", unit), wanted))
    inactive, count = activity.random_inactive(len(anchors))
    groups = [
        [("active", one), ("random", other)] for one, other in zip(anchors, inactive, strict=False)
    ]
    drafts = _excerpted(groups, activity.marked, activity, settings)
    for draft in drafts:
        total = len(active) if draft.role == "active" else count
        draft.weight = total / max(len(groups), 1)
    return _enough(
        drafts, len(groups), wanted, "pairs of active and random places", _few_active(active)
    )


BUILDERS: dict[str, Builder] = {
    "detection": detection,
    "fuzzing": fuzzing,
    "pair_auc": pair_auc,
    "simulation": simulation,
    "intruder": intruder,
    "firing": firing,
}


def _anchors(places: pd.DataFrame, settings: ItemSettings, use: str, unit: str) -> Iterator[Place]:
    return spread(places, settings.max_per_document, settings.seed, use, unit)


def _roomy(places: pd.DataFrame, wanted: int) -> pd.DataFrame:
    """Leave out places with little text before them, if others suffice; they would shorten whole trials."""
    first = places["key"].where(places["key"] >= 0, places["query"])
    roomy = places[first > LEAST_ROOM]
    return roomy if len(roomy) >= wanted else places


def _with_negatives(
    activity: Activity,
    settings: ItemSettings,
    use: str,
    unit: str,
    active: pd.DataFrame,
    wanted: int,
    kinds: Sequence[str],
) -> list[list[tuple[str, Place]]]:
    """Active places, each with those of its matched negatives that exist, at least one."""
    used: set[Spot] = set()

    def groups() -> Iterator[list[tuple[str, Place]]]:
        for anchor in _anchors(active, settings, use, unit):
            group = [("active", anchor)]
            for kind in kinds:
                found = activity.negative(anchor, kind, used)
                if found is not None:
                    used.add(found.spot)
                    group.append((f"negative_{kind}", found))
            if len(group) > 1:
                yield group

    return list(islice(groups(), wanted))


def _excerpted(
    groups: Sequence[Sequence[tuple[str, Place]]],
    show: Callable[[Place, int], tuple[Piece, ...]],
    activity: Activity,
    settings: ItemSettings,
) -> list[Draft]:
    """Show all places of a group with the same number of tokens before them."""
    drafts = []
    for number, group in enumerate(groups):
        before = min(settings.context_tokens, *(activity.room(place) for _, place in group))
        for role, place in group:
            label = role in ("active", "intruder")
            drafts.append(Draft(number, role, label, place, show(place, before)))
    return drafts


def _enough(drafts: list[Draft], found: int, wanted: int, words: str, why: str) -> Drafts:
    if found < min(LEAST_GROUPS, wanted):
        return Drafts(reason=f"only {found} of {wanted} {words}{': ' if why else ''}{why}")
    return Drafts(drafts)


def _few_active(active: pd.DataFrame) -> str:
    return f"{len(active)} active places in {active['doc'].nunique()} test documents"
