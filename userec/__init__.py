"""userec: the plugin host of user modelling. What is here to import is in the rooms; see README.md and docs/architecture.md."""
