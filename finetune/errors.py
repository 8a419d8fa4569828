"""The one exception that means "the user can mend this": shown as a message, exit status 2."""


class UserError(ValueError):
    """A mistake in what the user supplied: a recipe, a file, a folder, a command line.

    The message names the field or the file and says what to do. Programs print it without a
    traceback and exit with status 2; every other exception is a defect of this package.

    Args:
        message: For the user.
        kind: What is wrong with a file, for programs that sort such mistakes, as the doctor does.
    """

    def __init__(self, message: str = "", *, kind: str = "") -> None:
        super().__init__(message)
        self.kind = kind


def first_line(error: BaseException) -> str:
    """The first line of what another library says, or the error's name."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
