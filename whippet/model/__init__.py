"""The decoder: its description, its rotary embedding, its attention, its cache, its size."""
