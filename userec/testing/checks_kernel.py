def kernel_checks(cls, settings, plugins):
    return []
