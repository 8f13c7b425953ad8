"""What a user of a command line is told of an error: one line, with the option or the command that mends it."""

import shlex

from benchmark.errors import Remedy, UserError, is_refusal, place_in_user_code

# The options of pytest and of the commands, for the settings of the library.
_SETTINGS = {
    "data_dir": "name another folder with --data-dir",
    "device": "name another one with --device",
    "results": "name another folder with --results",
    "store": "name another folder with --store",
}
_RECORDING = {
    "baseline": ": record one with --record-baselines, or name a limit with --fpr-limit",
    "improvement": "; record it with --record-baselines",
}


def one_line(error: BaseException) -> str | None:
    """What a user is told of an error; None of a bug of ours, which keeps its traceback.

    An error in the user's own code is told with its kind, its file and its line.
    """
    place = place_in_user_code(error)
    if isinstance(error, UserError):
        return told(error)
    if place:
        return _joined(f"{type(error).__name__}: {error} ({place})")
    if isinstance(error, MemoryError):
        return _joined(f"there is not enough memory: {str(error) or 'close other programs, or take fewer images'}")
    if isinstance(error, OSError) or is_refusal(error):
        return _joined(str(error))
    return None


def told(error: UserError) -> str:
    """The message of an error, with the place in the user's code that it is due to and with what mends it."""
    place = place_in_user_code(error.__cause__)
    known = place is None or all(part in str(error) for part in place.rsplit(", ", 1))
    return _joined(f"{error}{'' if known else f' ({place})'}") + on_command_line(error.remedy)


def on_command_line(remedy: Remedy | None) -> str:
    """What mends an error, as the end of a message; nothing where it is not known."""
    if remedy is None:
        return ""
    if remedy.action == "set":
        return f"; {_SETTINGS[remedy.name]}"
    if remedy.action == "record":
        return _RECORDING[remedy.name]
    if remedy.action == "run":
        return f"; make it again with: {remedy.name}"
    suite = ["--suite", str(remedy.file)] if remedy.file else []
    folder = ["--data-dir", str(remedy.data_dir)] if remedy.data_dir else []
    verb, command = ("make it again", "variant") if remedy.action == "make" else ("get it", "fetch")
    return f"; {verb} with: {shlex.join(['python', '-m', 'benchmark', command, remedy.name, *suite, *folder])}"


def _joined(message: str) -> str:
    """A message in one line, whatever torch or a user put into it."""
    return " ".join(message.split("\n"))
