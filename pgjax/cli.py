"""The command line that all commands share.

`run` parses the flags, loads and checks the config before JAX is imported, prints --help, and
reports a UserError in one line; bugs keep their stack trace. A command's file calls `signals.begin`
before its other imports.
"""

import gc
import logging
import sys
import textwrap
import traceback
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

from absl import flags as absl_flags

from pgjax import disk
from pgjax.distributed import console, launchers, peers, signals
from pgjax.errors import UserError, printable

_DEFINE = {
  str: absl_flags.DEFINE_string,
  int: absl_flags.DEFINE_integer,
  float: absl_flags.DEFINE_float,
  bool: absl_flags.DEFINE_bool,
  list: absl_flags.DEFINE_list,
  tuple: absl_flags.DEFINE_multi_string,
}
# Of Python's three generations. By default each 700 objects: an eighth of the time in which a model
# is traced, whose millions of objects have few cycles.
COLLECT_AFTER = (100_000, 20, 20)
_CONFIG_HELP = "the run's config file, with arguments after a colon: configs/x.py:res=448,tune=full"
_OVERRIDE_HELP = "replaces a field of the config, such as --config.lr=3e-6 or --config.seed=1"


class Flag(NamedTuple):
  """One flag of a command; its value becomes an attribute of `args`."""

  name: str
  kind: type  # str, int, float, bool, list (texts joined by commas) or tuple (given repeatedly).
  default: Any = None
  required: bool = False
  help: str = ""  # Without a full stop.
  positional: bool = False  # Written without --name=, before or between the flags.
  least: int | None = None  # The smallest value.
  instead: str = ""  # Of a required flag: another that makes it optional.


STEP = Flag("step", int, help="which step of the workdir; without it the newest")
EMA = Flag("ema", bool, True, help="use a run's EMA weights, if it has them (config.ema_decay)")
BASE = Flag("base", str, help="with a PEFT adapter: the weights it was trained on, of any format")
WEIGHTS = Flag("weights", str, help="the file or index to read, where a folder has several of them")
PEER_TIMEOUT = Flag(
  "peer_timeout",
  int,
  peers.DEFAULT_SECONDS,
  least=peers.LEAST_SECONDS,
  help="of several processes: the others end within so many seconds after one fell silent",
)
QUANTIZE = Flag("quantize", str, help="store the matrices in int8 or nf4 (docs/lora.md)")


def run(
  main: Callable[[SimpleNamespace], int | None],
  doc: str,
  flags: Sequence[Flag] = (),
  *,
  config: str = "required",
  examples: Sequence[str] = (),
  argv: Sequence[str] | None = None,
) -> None:
  """Calls main(args) and exits: 0, 1 after a UserError, 2 for a wrong command line.

  After a signal it exits with signals.STOPPED. argv: of a call in another program's process.
  config: whether --config is "required", "optional" or "none". With it, args.config is the checked
  config or None, args.config_spec its text, and args.overrides the --config.x=... as a dict.
  """
  logging.basicConfig(format="%(message)s", force=True)  # Replaces the handlers of libraries.
  logging.getLogger("pgjax").setLevel(logging.INFO)
  if argv is None:
    signals.begin()
    gc.set_threshold(*COLLECT_AFTER)
  argv = list(sys.argv if argv is None else argv)
  if config != "none":
    flags = [Flag("config", str, required=config == "required", help=_CONFIG_HELP), *flags]
  if any(arg in ("--help", "-help", "-h", "--helpfull") for arg in argv[1:]):
    say(help_page(argv[0], doc, flags, config, examples))
    sys.exit(0)
  try:
    args = parse(argv, flags, config)
  except (UserError, absl_flags.Error) as e:
    _fail(f"{_unknown_flag(e, flags, config) or e} (--help lists the flags)", 2)
  try:
    for name, value, least in ((f.name, getattr(args, f.name), f.least) for f in flags):
      if least is not None and value is not None and value < least:
        raise UserError(f"--{name}={value} must be a whole number >= {least}.")
    if config != "none":
      from pgjax.config import load, validate  # After --help and the flags: this takes a moment.

      args.config_spec = spec = args.config
      args.config = validate.validated(load.load(spec, args.overrides)) if spec else None
    peers.set_seconds(getattr(args, PEER_TIMEOUT.name, None) or peers.DEFAULT_SECONDS)
    status = main(args)
    signals.of_process().finish()
    if lost := console.stdout_error():
      sys.stderr.write(f"What was printed to stdout is lost: {disk.reason(lost)}.\n")
    peers.leave(status or 0)
    sys.exit(status)
  except UserError as e:
    _fail(str(e), 1)
  except KeyboardInterrupt:
    _interrupted()
  except Exception as e:
    if not peers.group():
      raise
    _fail_together(e)


def _unknown_flag(error: Exception, flags: Sequence[Flag], config: str) -> str | None:
  """A sentence for a flag that is a field of the config, or another trainer's word."""
  if not isinstance(error, absl_flags.UnrecognizedFlagError):
    return None
  from pgjax.config import schema, synonyms  # After --help and the flags: this takes a moment.

  name = error.flagname.partition("=")[0]
  hint = synonyms.flag_hint(name, [flag.name for flag in flags])
  if not hint and config != "none":
    value = str(error.flagvalue).partition("=")[2]  # absl stores the whole argument.
    hint = schema.hint(name.replace("-", "_"), (), value)
  return f"There is no flag --{name}.{hint}" if hint else None


def say(text: str) -> None:
  """Prints to stdout at once."""
  print(text, flush=True)  # noqa: T201


def result(text: str) -> None:
  """Prints what the command was asked for; raises UserError if it cannot be written."""
  try:
    say(text)
    lost = console.stdout_error()
  except OSError as error:
    lost = error
  if lost:
    raise UserError(f"The result cannot be written to stdout: {disk.reason(lost)}.")


def parse(argv: Sequence[str], flags: Sequence[Flag], config: str) -> SimpleNamespace:
  """The flags' values as attributes; with a config also `overrides`."""
  values = absl_flags.FlagValues()
  for flag in flags:
    _DEFINE[flag.kind](flag.name, flag.default, flag.help, flag_values=values)
  plain, overrides = _split_overrides(argv) if config != "none" else (argv, {})
  rest = values(plain)[1:]
  for flag in flags:
    if flag.positional and rest:
      values[flag.name].value = rest.pop(0)
  if rest:
    raise UserError(f"{rest[0]!r} is not a flag; write --name=value.")
  given = {flag.name for flag in flags if values[flag.name].value}
  missing = [_name(f) for f in flags if f.required and not given & {f.name, f.instead}]
  if missing:
    raise UserError(f"{' and '.join(missing)} must be given.")
  return SimpleNamespace(
    **{flag.name: values[flag.name].value for flag in flags}, overrides=overrides
  )


def _split_overrides(argv: Sequence[str]) -> tuple[list[str], dict[str, str]]:
  """Takes `--config.a.b=c` and `--config.a.b c` out of the command line."""
  plain, overrides = [], {}
  arguments = iter(argv)
  for arg in arguments:
    name, equals, value = arg.lstrip("-").partition("=")
    if not arg.startswith("-") or not name.startswith("config."):
      plain.append(arg)
      continue
    if not equals and (value := next(arguments, None)) is None:
      raise UserError(f"{arg} needs a value: {arg}=...")
    overrides[name.removeprefix("config.")] = value
  return plain, overrides


def help_page(
  program: str, doc: str, flags: Sequence[Flag], config: str, examples: Sequence[str]
) -> str:
  """The text of --help: the command's docstring, its flags, examples."""
  name = program.removesuffix(".py").removesuffix("/__main__").rsplit("/", 1)[-1]
  rows = [(_left(flag), _right(flag)) for flag in flags]
  if config != "none":
    rows.insert(1, ("--config.FIELD=VALUE", _OVERRIDE_HELP))
  usage = " ".join([name, *(_name(flag) for flag in flags if flag.positional), "[flags]"])
  lines = [doc.strip(), "", f"usage: python -m pgjax.{usage}", "", "flags:"]
  for left, right in rows:
    wrapped = textwrap.wrap(right, 66) or [""]
    lines.append(f"  {left:<26}  {wrapped[0]}".rstrip())
    lines += [" " * 30 + more for more in wrapped[1:]]
  if examples:
    lines += ["", "examples:", *(f"  {example}" for example in examples)]
  return "\n".join(lines)


def _name(flag: Flag) -> str:
  return flag.name.upper() if flag.positional else f"--{flag.name}"


def _left(flag: Flag) -> str:
  if flag.positional:
    return _name(flag)
  if flag.kind is bool:
    return f"--[no]{flag.name}" if flag.default else f"--{flag.name}"
  shown = {list: "A,B,...", tuple: "STR ..."}
  return f"--{flag.name}={shown.get(flag.kind, flag.kind.__name__.upper())}"


def _right(flag: Flag) -> str:
  if flag.required:
    return f"{flag.help} (required{flag.instead and f', or --{flag.instead}'})"
  plain = flag.default in (None, "", []) or flag.kind is bool
  return flag.help if plain else f"{flag.help} (default: {flag.default})"


def _fail(message: str, status: int) -> None:
  signals.of_process().finish()
  print(f"error: {printable(message)}", file=sys.stderr)  # noqa: T201
  _leave_others(message, status)
  sys.exit(status)


def _interrupted() -> None:
  """After a second signal; it may have come to all processes, of which the first one prints."""
  signals.of_process().is_reported = True
  signals.of_process().finish()
  if launchers.is_first():
    _fail("interrupted.", signals.AT_ONCE)
  _leave_others("interrupted.", signals.AT_ONCE)
  sys.exit(signals.AT_ONCE)


def _fail_together(error: Exception) -> None:
  """An error that is no UserError, in one of several processes."""
  explained = peers.explained(error)
  if explained is not error:
    _fail(str(explained), 1)
  traceback.print_exception(error)
  _leave_others(f"{type(error).__name__}: {error}", 1)


def _leave_others(message: str, status: int) -> None:
  """Of several processes: at once, as the others do not come to the end of JAX's runtime."""
  if peers.group():
    peers.leave(status, message)
    signals.of_process().end("", status, peers.CLEAN_SECONDS)
