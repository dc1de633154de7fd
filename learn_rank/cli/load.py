"""Words of the command line and YAML recipes -> checked options."""

from __future__ import annotations

import copy
import os
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from learn_rank.cli.config import GROUPS, SCHEMAS, RunConfig
from learn_rank.cli.recipe_file import read_recipe
from learn_rank.cli.renamed import RENAMED
from learn_rank.cli.words import Option, build, convert, keys_of, locate, nearest, put, read_word, split_list
from learn_rank.data.recipe import DatasetRecipe
from learn_rank.errors import InputError
from learn_rank.options import flat_record


def config_dir() -> Path:
    """The YAML recipes: inside the installed package, or beside it in a checkout."""
    inside = Path(__file__).parents[1] / "configs"
    return inside if inside.is_dir() else Path(__file__).parents[2] / "configs"


def recipe_names(folder: str) -> list[str]:
    """The recipes of a folder of configs/ by name."""
    return sorted(path.stem for path in (config_dir() / folder).glob("*.yaml"))


def load(name: str, words: Sequence[str]) -> Any:
    """configs/NAME.yaml with key=value words as the dataclass of that name; InputError says what is off.

    Of a key that is given twice the last counts. A + before a key changes nothing.
    """
    schema = SCHEMAS.get(name, RunConfig)
    chosen, options = _sort_words(schema, words)
    recipe = Path(chosen.pop("dataset")) if chosen.get("dataset", "").endswith((".yaml", ".yml")) else None
    values = _composed(name, chosen)
    if recipe is not None:
        values["dataset"] = _recipe(recipe)
    for option, value in options:
        if option.path[0] == "dataset" and values["dataset"] is None:
            name = ".".join(option.path)
            raise InputError(f"{name} is set but no dataset; add dataset=NAME or dataset=FILE.yaml")
        put(values, option.path, value)
        if option.path[0] == "encoder" and len(option.path) == 2:
            for part in values["encoder"]["parts"]:  # each reads of it what is its own
                part[option.path[1]] = value
    return build(schema, values)


def _sort_words(schema: type, words: Sequence[str]) -> tuple[dict[str, str], list[tuple[Option, Any]]]:
    """The recipes that are chosen by name, and the options with their values."""
    groups = GROUPS if schema is RunConfig else ()
    chosen: dict[str, str] = {}
    options: list[tuple[Option, Any]] = []
    for word in words:
        key, equals, text = word.partition("=")
        key = key.lstrip("+")
        if not equals:
            raise InputError(f"'{word}' is not key=value")
        if key in groups:
            chosen[key] = text
            continue
        if schema is RunConfig and key in RENAMED:
            raise InputError(f"{key} is now {RENAMED[key]}")
        located = locate(schema, key)
        if located is None:
            raise InputError(f"no option '{key}'{nearest(key, [*(name for name, _, _ in keys_of(schema)), *groups])}")
        options.append((located, read_word(text, located.kind, key=key)))
    return chosen, options


def _composed(name: str, chosen: Mapping[str, str]) -> dict[str, Any]:
    """The values of configs/NAME.yaml with the recipes of these names in it; encoder=[A,B] is both side by side."""
    encoder = chosen.get("encoder", "")
    if encoder.startswith("[") and encoder.endswith("]"):
        each = [_composed(name, {**chosen, "encoder": part}) for part in split_list(encoder, where="encoder")]
        if len(each) < 2:
            raise InputError(f"encoder={encoder}: expected two or more, such as [minilm,tfidf_svd], or a name alone")
        options = [{key: value for key, value in values["encoder"].items() if key != "text"} for values in each]
        parts = [part for own in options for part in own.pop("parts") or [own]]
        return {**each[0], "encoder": {**each[0]["encoder"], "kind": "side_by_side", "parts": parts}}
    for key, value in chosen.items():
        names = recipe_names(key)
        if value not in names and not (key == "dataset" and not value):
            own = ", or a YAML file" if key == "dataset" else ""
            raise InputError(f"{key}={value}: expected one of {', '.join(names)}{own}")
    return copy.deepcopy(_compose(config_dir().resolve(), name, tuple(chosen.items())))


@cache  # hydra takes .15 s for what a study or a suite of tests asks for again and again
def _compose(folder: Path, name: str, chosen: tuple[tuple[str, str], ...]) -> dict[str, Any]:
    _register_schemas()
    overrides = [f"{key}={value or 'null'}" for key, value in chosen]
    try:
        with _working_folder(), initialize_config_dir(str(folder), version_base="1.3"):
            config = compose(name, overrides=overrides)
    except (HydraException, OmegaConfBaseException) as error:
        raise _refused(error, folder)
    return typing.cast(dict[str, Any], OmegaConf.to_container(config, resolve=False))


def _refused(error: Exception, folder: Path) -> InputError:
    """What hydra has against a YAML file of the folder, in a line; of an old option, what it is called now."""
    said = str(error).splitlines()
    file = re.match(r"In '([^']+)'", said[0])
    if file is None:
        return InputError(f"{folder}: {said[0]}")
    path, group = folder / f"{file[1]}.yaml", file[1].rpartition("/")[0]
    content = read_recipe(path)
    for key in flat_record({group: content} if group else content):
        if key in RENAMED:
            return InputError(f"{path}: {key} is now {RENAMED[key]}")
    return InputError(f"{path}: {said[1] if len(said) > 1 else said[0]}")


@cache
def _register_schemas() -> None:
    store = ConfigStore.instance()
    for key, node in {"run": RunConfig, **SCHEMAS}.items():
        store.store(name=f"{key}_schema", node=node)


@contextmanager
def _working_folder() -> Iterator[None]:
    """A working folder for hydra, which asks for one, where that of the process was removed."""
    try:
        os.getcwd()
    except FileNotFoundError:
        here = os.open(".", os.O_RDONLY)
        os.chdir("/")
        try:
            yield
        finally:
            os.fchdir(here)
            os.close(here)
    else:
        yield


def _recipe(path: Path) -> dict[str, Any]:
    """A recipe of the user's own."""
    content = read_recipe(path) if path.is_file() else None
    if content is None:
        raise InputError(f"dataset={path}: no such file")
    values: dict[str, Any] = convert(content, DatasetRecipe, where=str(path))
    # a recipe's files lie beside it unless it says otherwise
    return {**values, "root": str(path.parent / values.get("root", ".")), "name": values.get("name", path.stem)}
