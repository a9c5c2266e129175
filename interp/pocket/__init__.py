"""How the bundled model is made: its tokenizer, the documents it reads, its training and its card."""
