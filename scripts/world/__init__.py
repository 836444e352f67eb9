"""The small world that the embedded model is trained on: its words, and one file of questions for each of its parts."""
