"""The one exception a user is meant to read."""


class UserError(Exception):
    """Something the user can mend, said in one plain sentence.

    The command line prints it and exits with code 2; the page shows it as a message.
    """
