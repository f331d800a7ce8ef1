"""Configs that another version wrote: an older one is migrated on reading, a later one's new settings are left out."""

import pytest

from fluxcore.config import migrate as module
from fluxcore.config import parse_saved, saved_config
from fluxcore.config.migrate import SCHEMA, migrate
from fluxcore.log import EventLog, read_events
from fluxcore.runs import fold


@pytest.fixture
def renamed(monkeypatch):
    """As if `rank` had become `network_dim`, and then `rate` a text."""

    def first(values):
        return {**{key: value for key, value in values.items() if key != "rank"}, "network_dim": values["rank"]}

    def second(values):
        return {**values, "learning_rate": str(values["learning_rate"])}

    monkeypatch.setattr(module, "SCHEMA", 3)
    monkeypatch.setattr(module, "MIGRATIONS", {1: first, 2: second})


def test_an_old_config_is_todays_in_the_fold(tmp_path, renamed):
    with EventLog(tmp_path, "cli") as log:
        log.append("config.saved", {"config": {"lora_name": "a", "rank": 8, "learning_rate": 1e-4}})
        log.append("config.saved", {"config": {"lora_name": "a", "network_dim": 9, "learning_rate": 2e-4}, "schema": 2})
        log.append("config.saved", {"config": {"lora_name": "a", "network_dim": 7, "learning_rate": "1"}, "schema": 3})
    state = fold("a", read_events(tmp_path))
    found = [(config["network_dim"], config["learning_rate"]) for config in state.configs.values()]
    assert found == [(8, "0.0001"), (9, "0.0002"), (7, "1")]
    assert parse_saved(state.config).network_dim == 7


def test_a_later_versions_settings_are_left_out():
    config = parse_saved({"lora_name": "a", "invented_in_2030": True})
    assert config.lora_name == "a"
    assert migrate({"x": 1}, SCHEMA + 5) == {"x": 1} and migrate({"x": 1}, "?") == {"x": 1}


def test_every_migration_up_to_today_is_there():
    assert set(module.MIGRATIONS) == set(range(1, SCHEMA))
    assert saved_config(parse_saved({"lora_name": "a"}))["schema"] == SCHEMA
