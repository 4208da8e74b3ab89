"""Names of the short options of a distillation's command line."""

SHORT_OPTIONS = {
    "--hours": "--run.hours",
    "--teacher": "--teacher.source",
    "--student": "--student.arch",
    "--output-dir": "--run.output-dir",
    "--probe-data": "--probe-data.source",
}
"""Options by their short names."""

RESUME = "--resume"
"""Option that continues a run."""
