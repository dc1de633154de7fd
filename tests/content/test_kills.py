"""SIGKILL at any moment of an extraction: the next one goes on after the last part, to the same store."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.content.conftest import LETTERS

pytest.importorskip("transformers")

from learn_rank.store.reader import FrozenStore
from tests.ranks import run_alone

# A child is forked per attempt. Each dies at a random moment after so many parts more; the last
# one is left to end. Every text that a child begins to encode is written down.
_ATTEMPTS = """
import json, os, random, sys
from pathlib import Path
import transformers.models.llama.modeling_llama
from learn_rank.artifact import Manifest
from learn_rank.publish import publish
from learn_rank.content import catalogue, encode, extract
from learn_rank.content.encoders import huggingface
from learn_rank.content.encoder import EncoderOptions
from learn_rank.content.text import TextOptions
from tests.kills import die_when, renames_to

prepared, root, options, seed = sys.argv[1:]
prepared, root, options, moments = Path(prepared), Path(root), json.loads(options), random.Random(int(seed))
options = EncoderOptions(**{**options, "text": TextOptions(**options["text"])})
encode._FILE_TEXTS, catalogue.BLOCK_TEXTS, catalogue._BATCH_ROWS = 8, 40, 16
tokenize = huggingface.HuggingFace.tokenize

def run(folder):
    def spied(self, texts):
        with (root / "begun").open("a") as begun:
            begun.write("".join(text + chr(10) for text in texts))
        return tokenize(self, texts)
    huggingface.HuggingFace.tokenize = spied
    with publish(folder, Manifest("extract", {}, {}), is_resumable=True) as (work, facts):
        facts.update(extract.extract(prepared, work, options))

def status(folder, **death):
    child = os.fork()
    if child == 0:
        try:
            if death:
                die_when(renames_to(".npz"), **death)
            run(folder)
            os._exit(0)
        finally:
            os._exit(1)
    ended = os.waitpid(child, 0)[1]
    assert ended == 0 or os.WIFSIGNALED(ended)
    return ended

deaths = [{"times": moments.randrange(1, 3)} for _ in range(3)]  # with a part written that has no name yet
deaths += [{"work_seconds": moments.uniform(1e-6, 0.004)} for _ in range(2)]
kills, is_killed = 0, True
for death in [*deaths, {}]:
    if is_killed:
        is_killed = os.WIFSIGNALED(status(root / "killed", **death))
        kills += is_killed
assert not is_killed
(root / "kills").write_text(str(kills))
(root / "begun").rename(root / "begun-killed")
assert status(root / "whole") == 0
"""


def test_killed_again_and_again_no_text_is_lost_doubled_or_encoded_anew(
    catalogue_of: Callable[..., Path], tiny_llama: Path, tmp_path: Path
) -> None:
    num_texts = 150
    titles = [f"{'tent ' * (i % 7)}{LETTERS[i % 25]} {LETTERS[i // 25]}" for i in range(num_texts)]
    prepared = catalogue_of([*titles, None, *titles[:30]])
    options = {"kind": "hf", "model": str(tiny_llama), "text": {"template": "{value}"}}
    run_alone(_ATTEMPTS, prepared, tmp_path, json.dumps(options), 3)
    kills = int((tmp_path / "kills").read_text())
    assert kills >= 3
    killed, whole = (FrozenStore(tmp_path / name, stage="extract") for name in ("killed", "whole"))
    assert killed.fingerprint == whole.fingerprint
    assert killed.manifest.facts == whole.manifest.facts
    assert killed.num_rows == num_texts + 30
    assert len((tmp_path / "begun").read_text().splitlines()) == num_texts  # of the whole run
    begun = (tmp_path / "begun-killed").read_text().splitlines()
    assert len(set(begun)) == num_texts
    # a kill costs the part under way and the two that are tokenised ahead of it
    assert len(begun) <= num_texts + kills * 8 * 4
