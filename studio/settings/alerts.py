"""Who is told how runs go: masked addresses, a test, a new one. An address goes in and is never shown again."""

from __future__ import annotations

from collections.abc import Callable

import streamlit as st

from fluxcore.alerts import KINDS, Target, add_target, check_url, is_shared, load_targets, remove_target, send_test
from fluxcore.errors import UserError
from fluxcore.runs import default_outputs

from .. import dialogs, words


def show() -> None:
    """The card."""
    outputs = default_outputs()
    with st.container(border=True):
        st.subheader("Alerts", anchor=False)
        try:
            targets = load_targets(outputs)
        except UserError as error:
            st.error(words.escape(str(error)), icon=":material/error:")
            return
        if not targets:
            st.caption("Nobody is told yet. A phone (ntfy), e-mail, Telegram, Discord, Slack or a webhook can be.")
        for target in targets:
            _row(target)
        if is_shared(outputs):
            st.caption(
                ":material/warning: Others on this machine can read the file with the addresses: `chmod 600` it, or "
                "use `FLUXGYM_ALERTS`."
            )
        _add()


def _row(target: Target) -> None:
    kinds = [kind for kind in KINDS if kind in target.kinds]
    told = "all" if len(kinds) == len(KINDS) else ", ".join(kinds)
    with st.container(horizontal=True, vertical_alignment="center", key=f"alert-{target.name}"):
        st.markdown(
            f"**{words.escape(target.name)}** `{target.masked}` :small[is told of: {told}]"
            + (" :small[· from the environment]" if target.from_environment else ""),
            width="stretch",
        )
        if st.button("Send a test", key=f"alert-test-{target.name}", icon=":material/send:"):
            with st.spinner("Sending …"):
                _say(lambda: send_test(default_outputs(), target.name), f"The test reached {target.name}")
        if not target.from_environment:
            st.button(
                "",
                key=f"alert-remove-{target.name}",
                icon=":material/delete:",
                type="tertiary",
                help=f"Tell {words.escape(target.name)} nothing any more",
                on_click=dialogs.confirm,
                args=(
                    f"Forget {words.escape(target.name)}?",
                    "It is told nothing any more, and its address, which is shown nowhere, is gone.",
                    "Forget it",
                    lambda: remove_target(default_outputs(), target.name),
                    f"{target.name} is forgotten",
                ),
            )


def _add() -> None:
    with (
        st.expander("Add an address", icon=":material/add:", key="alert-new"),
        st.form("alert-add", border=False, clear_on_submit=False),
    ):
        name = st.text_input("Name", key="alert-name", placeholder="phone")
        url = st.text_input(
            "Address",
            key="alert-url",
            type="password",
            placeholder="ntfys://ntfy.sh/my-topic",
            help="An Apprise URL; docs/alerts.md lists the forms. It is kept in a file that only you can read.",
        )
        kinds = st.pills("Tell of", list(KINDS), default=list(KINDS), selection_mode="multi", key="alert-kinds")
        if st.form_submit_button("Add", icon=":material/add:", type="primary"):

            def add() -> None:
                check_url(url.strip())
                add_target(default_outputs(), name.strip(), url, kinds)

            if _say(add):
                dialogs.tell(f"{name.strip()} will be told")
                for key in ("alert-url", "alert-name"):
                    st.session_state.pop(key, None)
                st.rerun()


def _say(what: Callable[[], object], done: str = "") -> bool:
    try:
        what()
    except UserError as error:
        st.error(words.escape(str(error)), icon=":material/error:")
        return False
    if done:
        st.toast(done, icon=":material/check:")
    return True
