"""The one exception for input that a person can put right."""


class InputError(ValueError):
    """Bad input, told in one sentence: what is wrong and what to do about it.

    Raised before any work starts and before anything is written. The command line prints the sentence and
    exits with status 2; the panels show it beside the Apply button.
    """
