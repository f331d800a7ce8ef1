"""A run's page, a file a part: what stands on top, and the tabs. Only the open tab computes."""
