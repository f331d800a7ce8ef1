"""Settings: where things lie, what this machine has, who is told, and what to attach to a bug report."""

from __future__ import annotations

import streamlit as st

from studio.settings import access, alerts, appearance, disk, models, monitoring, queue, report

st.title("Settings", anchor=False)
left, right = st.columns(2, gap="medium")
with left:
    disk.show()
    queue.show()
    monitoring.show()
    appearance.show()
with right:
    alerts.show()
    models.show()
    access.show()
    report.show()
