"""The command line: thin commands that read arguments, call an analysis and show its result."""
