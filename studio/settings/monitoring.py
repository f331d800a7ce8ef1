"""What a new draft begins with: monitoring, automatic resumes, whom to tell."""

from __future__ import annotations

from typing import Any

import streamlit as st

from fluxcore.alerts import load_targets
from fluxcore.config import ConfigError, RunConfig, parse_config
from fluxcore.errors import UserError
from fluxcore.runs import default_outputs
from fluxcore.runs.installation import save_defaults

from .. import ask
from ..drafts import MONITORING, usual_settings
from ..labels import caution, label_of


def show() -> None:
    """The card."""
    outputs = default_outputs()
    now = usual_settings(outputs)
    with st.container(border=True):
        st.subheader("Monitoring of new runs", anchor=False)
        st.caption("What a new draft begins with. Runs and drafts that are there keep what they have.")
        with st.form("monitoring-defaults", border=False):
            values = {name: _field(name, now[name]) for name in MONITORING}
            for name in MONITORING:
                if said := caution(name, now[name], now["enable_monitoring"]):
                    st.caption(f":orange[:material/warning: {label_of(name)}: {said}]")
            if st.form_submit_button("Save", icon=":material/check:") and (problem := _save(values)):
                st.error(problem, icon=":material/error:")


def _field(name: str, value: Any) -> Any:
    label, key, help = label_of(name), f"default-{name}", RunConfig.model_fields[name].description
    if isinstance(value, bool):
        return st.checkbox(label, value, key=key, help=help)
    if isinstance(value, int):
        return st.number_input(label, value=value, step=1, key=key, help=help)
    if isinstance(value, float):
        return st.number_input(label, value=value, step=1.0, format="%g", key=key, help=help)
    try:
        names = [target.name for target in load_targets(default_outputs())]
    except UserError:
        names = []
    choices = list(dict.fromkeys(["all", "off", *names, str(value)]))
    return st.selectbox(label, choices, index=choices.index(str(value)), key=key, help=help)


def _save(values: dict[str, Any]) -> str:
    """Keep them; or why they can't be."""
    try:
        parse_config({"lora_name": "any", **values})
    except ConfigError as error:
        return "; ".join(f"{label_of(name)} {text.removeprefix(f'{name} ')}" for name, text in error.fields.items())
    ask.do(lambda: save_defaults(default_outputs(), "app", values), "New drafts begin with that")
    return ""
