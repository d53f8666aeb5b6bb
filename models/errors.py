"""The models' own way to report a user's mistake (``models`` imports nothing of ``utils``)."""


class ModelError(ValueError):
    """A setting or a checkpoint that no model can be made of. The message is one line for the user."""

    is_user_error = True
