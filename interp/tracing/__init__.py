"""Reading and editing a model's activations; start at `model.py`."""
