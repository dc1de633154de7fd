"""`learn-rank <command> [key=value ...]`: parses, dispatches, and turns what the user can fix into one line."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout, suppress
from typing import NoReturn, TextIO, cast

from learn_rank import __version__
from learn_rank.cli.commands import COMMANDS, call
from learn_rank.cli.streams import BROKEN_PIPE_STATUS, Printable, discard, open_streams, reader_is_gone
from learn_rank.errors import InputError
from learn_rank.printable import printable


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one command and exits: 0 done, 2 something the user can fix, 130 interrupted, 141 nobody reads the output;
    a bug shows its traceback."""
    open_streams()
    try:
        with redirect_stdout(cast(TextIO, Printable(sys.stdout))):
            _dispatch(list(sys.argv[1:] if arguments is None else arguments))
            sys.stdout.flush()
    except InputError as error:
        _fail(str(error))
    except ModuleNotFoundError as error:
        missing = (error.name or "").split(".")[0]
        if missing not in _EXTRAS:
            raise
        _fail(f"this command needs {error.name}; pip install 'learn-rank[{_EXTRAS[missing]}]'")
    except OSError as error:
        if isinstance(error, BrokenPipeError) and reader_is_gone():
            discard()
            sys.exit(BROKEN_PIPE_STATUS)
        _fail(_explain(error))
    except KeyboardInterrupt:
        _say("interrupted; run the same command again to continue")
        sys.exit(130)


def _dispatch(words: list[str]) -> None:
    if not words or words[0] in ("-h", "--help", "help"):
        print(_overview())
        return
    if words[0] == "--version":
        print(f"learn-rank {__version__}")
        return
    if words[0] == "store" and (len(words) == 1 or words[1] in ("-h", "--help")):
        print(_overview("store "))
        return
    size = 2 if words[0] == "store" else 1
    command = _find(" ".join(words[:size]))
    if any(word in ("-h", "--help") for word in words[size:]):
        print(_help(command))
        return
    for word in words[size:]:
        if not word.isascii() and word != os.fsencode(word).decode("utf-8", "replace"):
            raise InputError(f"'{word}' is not UTF-8 text; rename it, or where the locale is at fault set PYTHONUTF8=1")
    _run(command, words[size:])


# the extra that installs what a command may miss
_EXTRAS = {
    **dict.fromkeys(("torch", "torchrec", "fbgemm_gpu", "tensorboard"), "cpu"),
    **dict.fromkeys(("transformers", "peft", "accelerate"), "hf"),
    **dict.fromkeys(("mlflow", "wandb"), "trackers"),
}
_LONGEST_LINE = 1200
_FREE, _ELSEWHERE = "free some space (or inodes)", "give yourself the right or choose another folder"
_REMEDIES = {
    errno.ENOSPC: _FREE,
    errno.EDQUOT: _FREE,
    errno.EACCES: _ELSEWHERE,
    errno.EPERM: _ELSEWHERE,
    errno.EROFS: "choose another folder",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ENOTDIR: "choose a folder where no file stands in the way",
    errno.EEXIST: "choose another name",
    errno.EISDIR: "name a file",
    errno.ELOOP: "mend the symbolic links",
    errno.EBUSY: "see who uses it",
    errno.EMFILE: "raise ulimit -n",
    errno.ENFILE: "close some files",
}


def _run(command: str, overrides: Sequence[str]) -> None:
    # waiting OpenMP threads that spin cost a busy machine up to 20x; read when torch starts its threads
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from learn_rank.cli.load import load

    config, function = COMMANDS[command].config, COMMANDS[command].function
    # of a command with a config of its own, run_dir= asks for its step in a run
    if COMMANDS[command].step and config != "run" and any(word.startswith("run_dir=") for word in overrides):
        config, function = "run", COMMANDS[command].step
    call(function, load(config, overrides))


def _find(word: str) -> str:
    if word in COMMANDS:
        return word
    from difflib import get_close_matches

    near = get_close_matches(word, COMMANDS, n=1)
    raise InputError(f"no command '{word}'" + (f"; did you mean '{near[0]}'?" if near else "; see learn-rank --help"))


def _overview(prefix: str = "") -> str:
    lines = ["usage: learn-rank <command> [key=value ...]", ""]
    lines += [f"  {name:<18} {command.summary}" for name, command in COMMANDS.items() if name.startswith(prefix)]
    lines += ["", "learn-rank <command> --help says what a command reads, writes and takes. RUN is run_dir."]
    return "\n".join(lines)


def _help(name: str) -> str:
    from learn_rank.cli.help import options_of

    command = COMMANDS[name]
    lines = [
        f"learn-rank {name}: {command.summary}",
        "",
        f"reads    {command.reads_text}",
        f"writes   {command.writes_text}",
        f"code     learn_rank.{command.code}",
        f"example  {command.example}",
        "",
        "options",
        *options_of(command.config, command.sections),
    ]
    return "\n".join(lines)


def _explain(error: OSError) -> str:
    """What the operating system would not do, and where; what to do about it."""
    where = " -> ".join(
        os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)
    )
    said = error.strerror or str(error) or type(error).__name__
    remedy = _REMEDIES.get(error.errno or 0, "")
    where = where or ("the working folder" if error.errno == errno.ENOENT else "reading or writing")
    return f"{where}: {said}" + (f"; {remedy}, then run again" if remedy else "")


def _fail(message: str) -> NoReturn:
    _say(f"error: {message}")
    sys.exit(2)


def _say(message: str) -> None:
    """One line on stderr, if it can be told at all; of a very long one the beginning and the end."""
    line = printable(message)
    if len(line) > _LONGEST_LINE:
        line = f"{line[: _LONGEST_LINE * 2 // 3]} ... {line[-_LONGEST_LINE // 3 :]}"
    with suppress(OSError, ValueError):
        print(f"learn-rank: {line}", file=sys.stderr, flush=True)
    discard()
