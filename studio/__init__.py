"""The app: the entry script, the banner, charts, forms, the gate and the file routes. Pages are in `pages/`."""
