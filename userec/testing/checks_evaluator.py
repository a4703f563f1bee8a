def evaluator_checks(cls, settings, plugins):
    return []
