"""`UserError`, the exception for mistakes that the user can mend."""


class UserError(ValueError):
    """A mistake in what the user supplied: a recipe, a file, a folder, a command line.

    The message names the field or the file and says what to do. Programs print it without a
    traceback and exit with status 2; every other exception is a defect of this package.

    Args:
        message: For the user.
        kind: The class of mistake, by which programs such as the doctor sort files.
    """

    def __init__(self, message: str = "", *, kind: str = "") -> None:
        super().__init__(message)
        self.kind = kind


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or the error's name."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
