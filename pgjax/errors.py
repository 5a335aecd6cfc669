"""The one exception for what a user can mend; every other exception is a bug of ours."""


class UserError(ValueError):
  """A mistake in a config, a file or a command line, told in one sentence.

  The sentence says what is wrong, the value, what is allowed and what to do. The commands print it
  without a stack trace and exit with status 1 (pgjax/cli.py).
  """
