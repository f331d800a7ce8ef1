"""The command line: one file per group of verbs, thin over the library. Nothing heavy is imported before it is used."""
