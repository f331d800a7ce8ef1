"""What a person is told. Every expected failure is a `UserError`: one sentence that says what to do."""


class UserError(ValueError):
    """A request that can't be granted; the message is for a person, no traceback belongs to it."""
