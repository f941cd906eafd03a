"""The command line: one file a command, one shared set of options."""
