"""Messages and their text: tokenizer, templates, renderer and parser. Training, serving and guarding share them."""
