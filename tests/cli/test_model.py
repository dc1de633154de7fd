"""export-model: what the command says where it cannot work."""

from __future__ import annotations

from pathlib import Path

import pytest

from learn_rank.cli.main import main


def said(capsys: pytest.CaptureFixture[str], *command: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(["export-model", *command])
    assert stopped.value.code == 2
    return capsys.readouterr().err


def test_help_names_what_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    main(["export-model", "--help"])
    shown = capsys.readouterr().out
    assert "scorer.pt2" in shown
    for option in ("run_dir=", "arm=learn", "out=", "onnx=", "link_stores=false"):
        assert f"  {option}" in shown


def test_a_run_is_needed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "run_dir is missing; see `learn-rank export-model --help`" in said(capsys)
    assert "run `learn-rank prepare` first" in said(capsys, f"run_dir={tmp_path}")
    assert "no option 'arms'; did you mean 'arm'?" in said(capsys, f"run_dir={tmp_path}", "arms=[learn]")


@pytest.mark.parametrize("arm", ["../train/learn", "", "/etc", "learn/checkpoint-1", "Learn"])
@pytest.mark.parametrize("command", ["export-model", "export-features"])
def test_an_arm_is_one_of_three_and_no_path(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, arm: str
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([command, f"run_dir={tmp_path}", f"arm={arm}"])
    assert stopped.value.code == 2
    assert f"arm is '{arm}', expected one of baseline, learn, shuffled" in capsys.readouterr().err
