"""``whippet bench``: the table of figures of the machine that it runs on, with other trainers beside it.

A ``Row`` (``settings.py``) is measured (``steps.py``, ``records.py``, ``context.py``, ``cold.py``) and becomes a
``Result`` (``results.py``); ``peers.py`` runs the others in processes of their own; ``table.py`` goes through the rows,
``chart.py`` draws them.
"""
