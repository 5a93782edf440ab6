"""The one exception a user is meant to read."""


class UserError(Exception):
    """Something the user can mend, said in one plain sentence.

    The command line prints it and exits with code 2; the page shows it as a message. Half of an emoji, which a request
    can hold and no answer, becomes a question mark.
    """

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence.encode("utf-8", "replace").decode("utf-8"))
