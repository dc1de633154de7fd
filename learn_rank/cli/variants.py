"""What is a variant of LEARN? A recipe of configs/ablation on top of a run's own options."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar, cast

from learn_rank.alignment.objectives import find_objective, unread_options
from learn_rank.alignment.options import SHAPE, AlignOptions
from learn_rank.artifact import read_manifest
from learn_rank.cli.config import PAPER_DATASETS, RunConfig
from learn_rank.cli.load import config_dir, recipe_names
from learn_rank.cli.recipe_file import read_recipe
from learn_rank.cli.words import build, convert, keys_of, locate, nearest, put, read_word
from learn_rank.content.encoder import EncoderOptions
from learn_rank.errors import InputError
from learn_rank.schema import MANIFEST

REFERENCE = "learn"  # the run's own options, the paper's row LEARN
BASELINE = "baseline"  # folder of the rankers without LEARN
T = TypeVar("T")
_SECTIONS: dict[str, type] = {"align": AlignOptions, "encoder": EncoderOptions}
_NEEDED = "???"  # stands in a recipe for what whoever uses it has to say


@dataclass
class Recipe:
    """configs/ablation/NAME.yaml."""

    title: str = ""  # the paper's name of the row
    tables: list[int] = field(default_factory=list)  # of the paper
    align: dict[str, Any] = field(default_factory=dict)
    encoder: dict[str, Any] = field(default_factory=dict)
    # dataset -> metric -> the paper's figure; "parameters": trainable ones
    paper: dict[str, dict[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Variant:
    """A recipe applied to a run; name is its folder."""

    name: str
    recipe: Recipe
    align: AlignOptions
    encoder: EncoderOptions | None  # None: it reads RUN's content, or none

    @property
    def title(self) -> str:
        return self.recipe.title or self.name

    @property
    def changes(self) -> dict[str, Any]:
        """The options it sets, by their keys on the command line."""
        return {f"{part}.{key}": value for part in _SECTIONS for key, value in getattr(self.recipe, part).items()}


def variant_names() -> list[str]:
    """The recipes that come with the package."""
    return recipe_names("ablation")


def read_variants(config: RunConfig) -> list[Variant]:
    """The variants of `ablate.variants`, and `learn` where it is not among them, each with its checked options.

    A variant is the name of a recipe, a YAML file of the user's, or "NAME: align.KEY=VALUE encoder.KEY=VALUE": settings
    on top of the recipe of that name, if there is one. InputError: an unknown name or key, options that do not go
    together, two variants of one name, two that are the same thing in this run.
    """
    variants: dict[str, Variant] = {}
    given = config.ablate.variants
    for written in [*given, *([] if REFERENCE in given else [REFERENCE])]:
        name, recipe = _read(written)
        if name in variants:
            raise InputError(f"ablate.variants has two of the name '{name}'; write \"NAME: ...\" to tell them apart")
        variants[name] = _variant(name, recipe, config)
    _refuse_twins(variants)
    return list(variants.values())


def _read(written: str) -> tuple[str, Recipe]:
    """Name and recipe of one entry of `ablate.variants`."""
    is_path = written.endswith((".yaml", ".yml")) and os.path.isfile(written)  # a colon may be of its name
    head, settings = (written, "") if is_path else (part.strip() for part in written.partition(":")[::2])
    path = Path(head) if is_path or head.endswith((".yaml", ".yml")) else config_dir() / "ablation" / f"{head}.yaml"
    name = path.stem
    if not re.fullmatch(r"\w[\w.+-]*", name) or name.endswith((".json", ".md")) or name == BASELINE:
        allowed = f"use letters, digits, _ . + - (and not {BASELINE})"
        raise InputError(f"ablate.variants: '{name}' cannot be a variant's name; {allowed}")
    known = variant_names()
    near = get_close_matches(head, known, n=1, cutoff=0.85 if settings else 0.5)
    if not path.is_file() and (near or not settings or path == Path(head)):
        hint = f"did you mean '{near[0]}'?" if near else f"expected a YAML file or one of {', '.join(known)}"
        raise InputError(f"ablate.variants: no variant '{head}'; {hint}")
    values = _content(path) if path.is_file() else {}
    try:
        words = shlex.split(settings)
    except ValueError as error:
        raise InputError(f"ablate.variants: '{written}' cannot be read: {error}")
    for word in words:
        part, dot, setting = word.partition(".")
        key, equals, text = setting.partition("=")
        if part not in _SECTIONS or not (dot and key and equals):
            raise InputError(f"ablate.variants: '{word}' in '{written}' is not align.KEY=VALUE or encoder.KEY=VALUE")
        option = locate(_SECTIONS[part], key)
        if option is None:
            valid = [key for key, _, _ in keys_of(_SECTIONS[part])]
            raise InputError(f"{name}: {part} has no option '{key}'{nearest(key, valid)}")
        put(values.setdefault(part, {}), option.path, read_word(text, option.kind, key=f"{name}: {part}.{key}"))
    for part in _SECTIONS:
        for key, value in values.get(part, {}).items():
            if value == _NEEDED:
                raise InputError(f"{name} needs {part}.{key}: 'ablate.variants=[\"{name}: {part}.{key}=...\"]'")
    recipe = Recipe(**values)
    for dataset in recipe.paper:
        if dataset not in PAPER_DATASETS:
            raise InputError(f"{path}: paper has no '{dataset}', expected {', '.join(PAPER_DATASETS)}")
    if name == REFERENCE and (recipe.align or recipe.encoder):
        raise InputError(f"ablate.variants: {REFERENCE} is the run's own options; give '{written}' another name")
    return name, recipe


def _variant(name: str, recipe: Recipe, config: RunConfig) -> Variant:
    align = _changed(config.align, recipe.align, name)
    fixed = [f"align.{key}" for key in recipe.align if key in SHAPE] + ["encoder"] * bool(recipe.encoder)
    if align.init_from and "init_from" not in recipe.align and fixed:
        raise InputError(
            f"{name}: {fixed[0]} is that of the towers in align.init_from; give the variant towers of its own to start "
            f'from, or none: "{name}: align.init_from=..."'
        )
    encoder = None
    if recipe.encoder and align.inputs != "id":
        encoder = _changed(config.encoder, {**_encoder_of_run(config), **recipe.encoder}, name)
    return Variant(name, recipe, align, encoder)


def _content(path: Path) -> dict[str, Any]:
    """The values of a variant's YAML file, with those of its options' types."""
    content = read_recipe(path)
    parts = {part: content.pop(part) for part in _SECTIONS if part in content}
    values: dict[str, Any] = convert(content, Recipe, where=str(path))
    for part, changes in parts.items():
        values[part] = convert(changes, _SECTIONS[part], key=part, where=str(path))
    return values


def _changed(options: T, changes: Mapping[str, Any], name: str) -> T:
    """Options with some of them changed, checked as if all had been given on the command line."""
    values = asdict(cast(Any, options))
    for key, value in changes.items():
        values[key] = {**values[key], **value} if isinstance(value, dict) else value
    try:
        return build(type(options), values)
    except InputError as error:
        raise InputError(f"{name}: {error}")


def _refuse_twins(variants: Mapping[str, Variant]) -> None:
    """InputError where two variants would be trained alike: a table of both would show chance as an effect."""
    first_of: dict[str, str] = {}
    twins = {}
    for name in sorted(variants, key=lambda name: name != REFERENCE):
        twin = first_of.setdefault(repr(_what_counts(variants[name])), name)
        if twin != name:
            twins[name] = twin
    if twins:
        pairs = ", ".join(f"{name} is {twin}" for name, twin in twins.items())
        kept = ",".join(name for name in variants if name not in twins)
        raise InputError(
            f"ablate.variants: in this run (align.objective={variants[REFERENCE].align.objective}) {pairs}; leave out "
            f"what changes nothing: ablate.variants=[{kept}]"
        )


def _encoder_of_run(config: RunConfig) -> dict[str, Any]:
    """What RUN/extract says of its encoder, unless this command makes it again."""
    directory = Path(config.run_dir) / "extract"
    if config.dataset is not None or not (directory / MANIFEST).is_file():
        return {}
    recorded = read_manifest(directory, stage="extract").options
    # of parts only what decides a vector is recorded, not where their models are
    return {name: value for name, value in recorded.items() if name in vars(config.encoder) and name != "parts"}


def _what_counts(variant: Variant) -> tuple[Any, ...]:
    """Two variants in which this is equal are trained alike."""
    align, objective = variant.align, find_objective(variant.align.objective)
    if not objective.trains:
        return (align.objective, variant.encoder)
    is_alone = align.item_tower == "b" and not objective.has_target_sequences  # then (a) and (b) are the same
    fields = asdict(replace(align, item_tower="a") if is_alone else align)
    for name in (*unread_options(align.objective), *(("embedding_dim",) if align.item_tower == "c" else ())):
        del fields[name]
    return (fields, variant.encoder)
