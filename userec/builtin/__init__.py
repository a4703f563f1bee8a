"""The defaults, written exactly as a stranger would write them: `userec.registry.DEFAULTS` names their modules."""
