"""The page Settings, a file a card."""
