"""Errors that are the user's to mend: shown in words, without a traceback."""


class UserError(Exception):
    """What was wrong, which value, and what to do. A job prints it and exits with status 2."""


class MishapError(UserError):
    """What the same command may not meet again: exit status 1, after which a launcher starts all again."""
