"""Plotly figures as pure functions of results."""
