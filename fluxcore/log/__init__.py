"""The event log: one JSON object a line, appended by many, read by all."""

from .event import Event, EventError, format_ts, new_writer_id, number, parse_ts, utc_now, whole_number
from .patient import PatientLog
from .reader import FolderReader, LogReader, read_events
from .side import side_data
from .writer import EventLog

__all__ = [
    "Event",
    "EventError",
    "EventLog",
    "FolderReader",
    "LogReader",
    "PatientLog",
    "format_ts",
    "new_writer_id",
    "number",
    "parse_ts",
    "read_events",
    "side_data",
    "utc_now",
    "whole_number",
]
