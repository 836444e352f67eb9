"""The command line: a thin table of verbs."""
