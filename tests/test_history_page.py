"""The History page without a browser: questions, answers, and what is refused."""

from __future__ import annotations

import io

import pyarrow.parquet as pq
import pytest

from fluxcore.errors import UserError
from fluxcore.history import run_sql
from studio import queries, results
from studio.asking import Asked
from studio.live import live_runs
from studio.queries import EXAMPLES
from tests.drawn_pages import open_page, text
from tests.fake_runs import FakeRun
from tests.place import wait_until


@pytest.fixture
def outputs(tmp_path, monkeypatch):
    outputs = tmp_path / "outputs"
    outputs.mkdir()
    monkeypatch.setenv("FLUXGYM_OUTPUTS", str(outputs))
    for name in ("cat", "dog"):
        run = FakeRun(outputs, name)
        run.start(pid=1, create_time=1)
        run.steps(40)
        run.machine()
    return outputs


def answered(app):
    """The page once its statement has its answer: a guarded process takes a moment to start."""
    asked = app.session_state["sql.asked"]
    asked.wait(20)
    return app.run()


def test_a_question_is_asked_kept_and_forgotten(outputs):
    app = open_page("history")
    assert "Choose a question" in text(app)
    assert any("utilization_percent" in item.value for item in app.markdown), "the views' columns are at hand"
    app.text_area(key="sql").set_value("SELECT run, step FROM runs ORDER BY run").run()
    app.button(key="sql-ask").click().run()
    app = answered(app)
    assert app.dataframe[0].value.to_dict("list") == {"run": ["cat", "dog"], "step": [40, 40]}
    app.text_input(key="sql-name").set_value(" How far ").run()
    app.button(key="sql-keep-yes").click().run()
    assert queries.load_queries(outputs) == {"How far": "SELECT run, step FROM runs ORDER BY run"}
    app.button(key="sql-forget").click().run()
    assert "How far" in queries.load_queries(outputs), "it is asked first"
    app.button(key="confirm-yes").click().run()
    assert queries.load_queries(outputs) == {} and "SELECT run, step" in app.text_area(key="sql").value
    assert not app.exception and app.selectbox(key="sql-saved").value is None


def test_what_stands_in_the_box_is_there_for_the_next_visitor(outputs):
    app = open_page("history")
    assert not (outputs / queries.FILE).exists(), "a look writes nothing"
    app.text_area(key="sql").set_value("SELECT half").run()
    app.text_input(key="sql-name").set_value("Half").run()
    app.button(key="sql-keep-yes").click().run()
    app.text_area(key="sql").set_value("SELECT half of").run()
    assert queries.load_queries(outputs) == {"Half": "SELECT half"}
    assert open_page("history").text_area(key="sql").value == "SELECT half of"
    app.selectbox(key="sql-saved").select("Loss by epoch").run()
    assert open_page("history").text_area(key="sql").value == EXAMPLES["Loss by epoch"]


def test_a_question_may_be_chosen_again_when_one_comes_back(outputs):
    app = open_page("history")
    for _ in range(2):
        app.selectbox(key="sql-saved").select("Loss by epoch").run()
        assert "epoch" in app.text_area(key="sql").value
        app.text_area(key="sql").set_value("SELECT 1").run()
        app.switch_page("../pages/runs.py").run()
        app.switch_page("../pages/history.py").run()
        assert app.selectbox(key="sql-saved").value is None and app.text_area(key="sql").value == "SELECT 1"


def test_a_statement_is_called_off_on_the_page(outputs):
    app = open_page("history")
    app.text_area(key="sql").set_value("SELECT count(*) FROM range(10000000) a, range(100000) b").run()
    app.button(key="sql-ask").click().run()
    assert "being answered" in text(app)
    app.button(key="sql-cancel").click().run()
    app = answered(app)
    assert "ancelled" in app.error[0].value and "sql-cancel" not in [button.key for button in app.button]


def test_what_is_refused_is_said_and_stays_in_the_box(outputs):
    app = open_page("history")
    app.text_area(key="sql").set_value("DROP VIEW runs").run()
    app.button(key="sql-ask").click().run()
    app = answered(app)
    assert "nothing can be changed" in app.error[0].value and app.text_area(key="sql").value == "DROP VIEW runs"


def test_a_chart_is_drawn_of_what_fits(outputs):
    app = open_page("history")
    app.selectbox(key="sql-saved").select("Loss by epoch").run()
    app = answered(app)
    app.segmented_control(key="sql-as").set_value("Chart").run()
    assert not app.exception
    [chart] = app.get("arrow_vega_lite_chart") or app.get("vega_lite_chart")
    assert '"title": "epoch"' in chart.proto.spec.replace(
        '":"', '": "'
    ) and '"title": "run"' in chart.proto.spec.replace('":"', '": "')


def test_every_saved_question_is_answered(outputs):
    for name, sql in EXAMPLES.items():
        assert run_sql(outputs, sql, history=live_runs().history).columns, name


def test_a_statement_is_called_off(outputs):
    asked = Asked(outputs, "SELECT count(*) FROM range(10000000) a, range(100000) b", live_runs().history)
    wait_until(lambda: asked.waited > 0.2)
    asked.cancel()
    asked.wait(10)
    assert not asked.is_running and "cancelled" in asked.problem and asked.seconds < 9


def test_the_answer_as_files(outputs):
    result = run_sql(outputs, "SELECT run, started, tags, config, loss, NULL AS nothing, 1 AS a, 2 AS a FROM runs")
    table = results.as_table(result)
    assert table.column_names == ["run", "started", "tags", "config", "loss", "nothing", "a", "a_2"]
    read = pq.read_table(io.BytesIO(results.as_parquet(table)))
    assert read.equals(table) and read["started"].type == "timestamp[us]"
    head, first, *_ = results.as_csv(table).decode().splitlines()
    assert head.startswith('"run","started"') and first.startswith('"cat"')


def test_a_name_that_cannot_be_is_refused(outputs):
    for name in ("", "x" * 81, "All runs"):
        with pytest.raises(UserError):
            queries.save_query(outputs, name, "SELECT 1")
    (outputs / queries.FILE).write_text("{torn")
    assert queries.load_queries(outputs) == {}
