"""The explorer: saved runs and a live model, to browse in a browser. `interp explore` starts it."""
