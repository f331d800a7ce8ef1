"""The supervisor: reads requests from the logs, starts trainers, watches, ends, explains and resumes them."""

VERSION = "0.1.0"
