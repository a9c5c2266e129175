"""Applications over the library; they compute nothing that it does not."""
