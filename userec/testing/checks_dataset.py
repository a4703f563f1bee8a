def dataset_checks(cls, settings, plugins):
    return []
