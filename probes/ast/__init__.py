"""The AST probe: the whole syntax tree of a program, read from hidden states (Hernández López et al. 2022)."""
