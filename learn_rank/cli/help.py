"""What --help says of a command's options: a group after the other, each option with its default and its sentences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from textwrap import wrap

from learn_rank.cli.config import SCHEMAS, RunConfig
from learn_rank.cli.load import recipe_names
from learn_rank.cli.words import headings_of, keys_of

_WIDTH = 110


def options_of(config: str, sections: Sequence[str] = ()) -> list[str]:
    """Lines on the options of a config by name; of a run's, those in these sections and run_dir.

    ranker.checkpoint: when checkpoints are saved, and how many are kept
      ranker.checkpoint.keep=2
          Number of the newest checkpoints that are kept, beside that of the best epoch.
    """
    schema = SCHEMAS.get(config, RunConfig)
    shown = () if config in SCHEMAS else ("run_dir", *sections)
    lines = list(_groups(schema, shown))
    for section in sections:
        if recipes := recipe_names(section):
            lines.append(f"  {section}=NAME with NAME one of {', '.join(recipes)}")
    if "ablate" in sections:
        lines.append(f"  names of ablate.variants: {', '.join(recipe_names('ablation'))}")
    return lines


def _groups(schema: type, shown: Sequence[str]) -> Iterator[str]:
    """The options of no group first, then group by group."""
    groups: dict[str, list[str]] = {"": []}
    for key, default, text in keys_of(schema):
        if not shown or key.split(".")[0] in shown:
            lines = groups.setdefault(key.rpartition(".")[0], [])
            lines.append(f"  {key}={default}")
            lines += wrap(text, _WIDTH, initial_indent="      ", subsequent_indent="      ")
    headings = headings_of(schema)
    for name, lines in groups.items():
        if name:
            yield ""
            yield f"{name}: {headings[name]}" if headings.get(name) else name
        yield from lines
