"""What a run leaves for people: metrics, curves, pages, model card."""
