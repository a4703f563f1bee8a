"""The checks of an objective: what it asks is fair, what it prices is a number that trains."""


def objective_checks(cls, settings, plugins):
    return []
