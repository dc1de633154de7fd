"""SIGKILL at any moment of an extraction: the next one goes on after the last part, to the same store."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.content.conftest import LETTERS

pytest.importorskip("transformers")

from learn_rank.store.reader import FrozenStore

# One process imports, and forks a child per attempt. Each is killed at a random moment after so many parts more; the
# last one is left to end. Every text that a child begins to encode is written down.
_ATTEMPTS = """
import json, os, random, signal, sys, time
from pathlib import Path
import transformers.models.llama.modeling_llama
from learn_rank.artifact import Manifest
from learn_rank.publish import publish
from learn_rank.content import catalogue, extract, huggingface, parts
from learn_rank.content.encoder import EncoderOptions
from learn_rank.content.text import TextOptions

prepared, root, options, seed = sys.argv[1:]
prepared, root, options, moments = Path(prepared), Path(root), json.loads(options), random.Random(int(seed))
options = EncoderOptions(**{**options, "text": TextOptions(**options["text"])})
parts._PART_TEXTS, catalogue.BLOCK_TEXTS, catalogue._BATCH_ROWS = 8, 40, 16
tokenize, save = huggingface.TextEncoder.tokenize, parts._save

def run(folder):
    def spied(self, texts):
        with (root / "begun").open("a") as begun:
            begun.write("".join(text + chr(10) for text in texts))
        return tokenize(self, texts)
    def slow(path, part):
        save(path, part)
        time.sleep(0.02)
    huggingface.TextEncoder.tokenize, parts._save = spied, slow
    with publish(folder, Manifest("extract", {}, {}), is_resumable=True) as (work, facts):
        facts.update(extract.extract(prepared, work, options))

def start(folder):
    child = os.fork()
    if child == 0:
        try:
            run(folder)
            os._exit(0)
        finally:
            os._exit(1)
    return child

def num_parts():
    return len([path for path in (root / ".killed.partial" / "parts").glob("*.npz") if ".tmp" not in path.name])

kills = 0
for _ in range(5):
    child, wanted = start(root / "killed"), num_parts() + moments.randrange(1, 3)
    while num_parts() < wanted and os.waitpid(child, os.WNOHANG)[0] == 0:
        time.sleep(0.001)
    time.sleep(moments.uniform(0, 0.03))
    if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        os.kill(child, signal.SIGKILL)
        kills += 1
    os.waitpid(child, 0)
(root / "kills").write_text(str(kills))
for name in ("killed", "whole"):
    (root / "begun").rename(root / f"begun-{name}") if name == "whole" else None
    assert os.waitpid(start(root / name), 0)[1] == 0
"""


def test_killed_again_and_again_no_text_is_lost_doubled_or_encoded_anew(
    catalogue_of: Callable[..., Path], tiny_llama: Path, tmp_path: Path
) -> None:
    num_texts = 150
    titles = [f"{'tent ' * (i % 7)}{LETTERS[i % 25]} {LETTERS[i // 25]}" for i in range(num_texts)]
    prepared = catalogue_of([*titles, None, *titles[:30]])
    options = {"kind": "hf", "model": str(tiny_llama), "text": {"template": "{value}"}}
    arguments = [str(prepared), str(tmp_path), json.dumps(options), "3"]
    done = subprocess.run(
        [sys.executable, "-c", _ATTEMPTS, *arguments], capture_output=True, text=True, check=False, timeout=200
    )
    assert done.returncode == 0, done.stderr[-4000:]
    kills = int((tmp_path / "kills").read_text())
    assert kills >= 3
    killed, whole = (FrozenStore(tmp_path / name, stage="extract") for name in ("killed", "whole"))
    assert killed.fingerprint == whole.fingerprint
    assert killed.manifest.facts == whole.manifest.facts
    assert killed.num_rows == num_texts + 30
    assert len((tmp_path / "begun").read_text().splitlines()) == num_texts  # of the whole run
    begun = (tmp_path / "begun-whole").read_text().splitlines()
    assert len(set(begun)) == num_texts
    # a kill costs the part under way and the two that are tokenised ahead of it
    assert len(begun) <= num_texts + kills * 8 * 4
